"""What may lie in an archive, and under which names."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from corerun.errors import UsageError

FILE, FOLDER, LINK, HARD_LINK = "file", "folder", "link", "hard link"

_DEEPEST = 64
_LONGEST_PART = 255
_LONGEST_NAME = 2048
_DRIVE = re.compile(r"[A-Za-z]:")
# Control characters, halves of characters, and those that turn the direction of what is shown.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def _no_content() -> BinaryIO:
    raise UsageError("has no content")


@dataclass(frozen=True, slots=True)
class Member:
    """One entry: its name as it stands in the archive, and what it is.

    ``target`` is where a link leads, for a hard link the name of an earlier member.
    """

    name: str
    kind: str
    target: str = ""
    executable: bool = False
    open: Callable[[], BinaryIO] = _no_content


class Names:
    """The names of an archive so far: at most ``most``, no two alike, nothing below a file or a link."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: dict[str, tuple[str, str]] = {}

    def take(self, member: Member) -> str:
        """The member's path, parts joined by a slash; empty for the archive's own folder.

        Raises `UsageError` for a name that leads elsewhere or is taken.
        """
        parts = parts_of(member.name)
        if not parts and member.kind != FOLDER:
            raise UsageError("has no name")
        for end in range(1, len(parts)):
            self._enter("/".join(parts[:end]), FOLDER)
        path = "/".join(parts)
        if parts:
            self._enter(path, member.kind)
        if member.kind == LINK:
            _check_link(member.target)
        return path

    def file(self, name: str) -> str:
        """The path of an earlier member that is a file. Raises `UsageError` when there is none."""
        path = "/".join(parts_of(name))
        known, kind = self._taken.get(_folded(path), ("", ""))
        if known != path or kind not in (FILE, HARD_LINK):
            raise UsageError(f"is a hard link to {name!r}, which is no file before it in the archive")
        return path

    def _enter(self, path: str, kind: str) -> None:
        known, before = self._taken.get(_folded(path), ("", ""))
        if not known:
            self._taken[_folded(path)] = (path, kind)
            if len(self._taken) > self._most:
                raise UsageError(f"more than {self._most:,} files and folders")
        elif known != path:
            raise UsageError(f"{path!r} differs from {known!r} in case or spelling alone")
        elif (before, kind) != (FOLDER, FOLDER):
            again = "twice" if before == kind else f"as a {before} and as a {kind}"
            raise UsageError(f"{path!r} is there {again}")


def parts_of(name: str) -> list[str]:
    """The parts of a member's name. Raises `UsageError` for one that isn't below the archive's folder."""
    if _UNSEEN.search(name):
        raise UsageError("a name with control characters or broken bytes")
    if "\\" in name or name.startswith("/") or _DRIVE.match(name):
        raise UsageError("an absolute name, or one of another system")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise UsageError("a name that leads out of the archive")
    if len(parts) > _DEEPEST or len(name.encode()) > _LONGEST_NAME:
        raise UsageError("a name that is too long or too deep")
    if any(len(part.encode()) > _LONGEST_PART for part in parts):
        raise UsageError("a name that is too long or too deep")
    return parts


def _check_link(target: str) -> None:
    """Where a link really leads is known once all are made; these lead nowhere good."""
    if not target or target.startswith("/") or len(target.encode("utf-8", "surrogateescape")) > _LONGEST_NAME:
        raise UsageError("is a link that leads out of the archive")
    if _UNSEEN.search(target) or "\\" in target:
        raise UsageError("is a link with control characters or broken bytes")


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
