"""What kind of file system holds a folder, and whether other machines may see it too."""

from __future__ import annotations

from pathlib import Path

_NETWORK = frozenset({"afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "lustre", "nfs", "nfs4", "ocfs2"})
_ALSO_NETWORK = ("smb", "9p", "fuse")
"""Beginnings of further names. Nobody knows what is behind a FUSE mount."""


def file_system(folder: Path) -> str:
    """The type of the file system that holds ``folder``, such as ``ext4``; empty if unknown."""
    try:
        lines = Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines()
        inside = folder.resolve()
    except OSError:
        return ""
    deepest, kind = 0, ""
    for line in lines:
        left, _, right = line.partition(" - ")
        mounted = Path(left.split(" ")[4].encode().decode("unicode_escape"))
        # Of two mounts at one place, the later one hides the earlier.
        if len(mounted.parts) >= deepest and (inside == mounted or mounted in inside.parents):
            deepest, kind = len(mounted.parts), right.split(" ")[0]
    return kind


def is_network(kind: str) -> bool:
    """Whether processes of one machine can't be sure what those of another do to files of this type:
    locks may be local, and memory isn't shared."""
    return kind in _NETWORK or kind.startswith(_ALSO_NETWORK)
