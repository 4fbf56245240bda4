"""A run on disk: its directory, lock, journal, blobs and manifest."""
