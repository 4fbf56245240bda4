"""Starting and resuming any job: settings, plugin, directory, lock, run, manifest, report.

The command line and the Python API both come through here.
"""
