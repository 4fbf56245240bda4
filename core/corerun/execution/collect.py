"""What a program left in its folder: the artifacts that were asked for, and its safe removal."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import os
import re
import stat
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

from corerun.execution.environment import HOME_FOLDER, TEMPORARY_FOLDER
from corerun.interfaces import Json, Limits

DEPTH = 64
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MIB = 1024 * 1024
_TOKENS = re.compile(r"\[!?\]?[^\]]*\]|\*+|.", re.DOTALL)
_ENDING = re.compile(r"\.[A-Za-z0-9]{1,10}\Z")


@dataclass(slots=True)
class Collection:
    """``files`` are ``{path, size, sha256}`` and ``name``, the old path, where one was renamed;
    ``skipped`` are ``{path, why}``. Both are sorted by path."""

    files: list[Json] = field(default_factory=list)
    skipped: list[Json] = field(default_factory=list)
    renamed: int = 0

    def skip(self, path: str, why: str) -> None:
        self.skipped.append({"path": escaped(path), "why": why})


def collect(folder: str, globs: Sequence[str], limits: Limits) -> Collection:
    """Find and hash the regular files below ``folder`` that match one of ``globs``.

    ``*`` stays within a folder, ``**`` crosses folders. Nothing outside can be reached: links,
    pipes, sockets, devices, setuid files and files with a second name are named and left alone. A file
    whose name a terminal or a shell would misread becomes ``artifact_1`` and so on, with its plain ending.
    """
    found = Collection()
    wanted = [_compile(glob) for glob in globs]
    if not wanted:
        return found
    try:
        top = os.open(folder, _FOLDER)
    except OSError:
        return found  # The program deleted its folder.
    try:
        with contextlib.closing(_walk(os.dup(top), found, limits.files)) as entries:
            for parent, name, path in entries:
                if any(pattern.fullmatch(path) for pattern in wanted):
                    _add(parent, name, path, found, limits, top)
    finally:
        os.close(top)
    found.files.sort(key=lambda item: str(item["path"]))
    found.skipped.sort(key=lambda item: str(item["path"]))
    return found


def escaped(path: str) -> str:
    """The path in printable characters; line breaks, controls and invalid bytes as escapes."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode("ascii")
        for char in path
    )


def _walk(top: int, found: Collection, most: int) -> Generator[tuple[int, str, str], None, None]:
    """All entries that are no folders, as (descriptor of the folder, name, path); closes ``top``."""
    stack: list[tuple[int, str, Iterator[os.DirEntry[str]]]] = []
    seen = 0
    try:
        stack.append((top, "", _entries(top)))
        while stack:
            descriptor, prefix, entries = stack[-1]
            entry = next(entries, None)
            if entry is None:
                os.close(descriptor)
                stack.pop()
                continue
            path = prefix + entry.name
            seen += 1
            if seen > most:
                found.skip(path, f"this and all after it: more than {most} entries")
                return
            if not entry.is_dir(follow_symlinks=False):
                yield descriptor, entry.name, path
            elif len(stack) > DEPTH:
                found.skip(path, f"deeper than {DEPTH} folders")
            elif path not in (HOME_FOLDER, TEMPORARY_FOLDER):
                try:
                    child = os.open(entry.name, _FOLDER, dir_fd=descriptor)
                except OSError as error:
                    found.skip(path, error.strerror or "unreadable")
                    continue
                stack.append((child, f"{path}/", _entries(child)))
    finally:
        for descriptor, _, _ in stack:
            os.close(descriptor)


def _entries(descriptor: int) -> Iterator[os.DirEntry[str]]:
    with os.scandir(descriptor) as entries:
        return iter(sorted(entries, key=lambda entry: entry.name))


def _add(parent: int, name: str, path: str, found: Collection, limits: Limits, top: int) -> None:
    try:
        descriptor = os.open(name, _FILE, dir_fd=parent)
    except OSError as error:
        found.skip(path, _kind(parent, name) or error.strerror or "unreadable")
        return
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            found.skip(path, "no regular file")
        elif facts.st_mode & (stat.S_ISUID | stat.S_ISGID):
            found.skip(path, "setuid or setgid")
        elif facts.st_nlink > 1:
            found.skip(path, "hard link")
        elif facts.st_size > limits.file_mb * _MIB:
            found.skip(path, f"larger than {limits.file_mb} MB")
        else:
            with open(descriptor, "rb", closefd=False) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            kept = {"path": path, "size": facts.st_size, "sha256": digest}
            found.files.append(kept if _is_plain(path) else kept | _renamed(parent, name, path, found, top))
    except OSError as error:
        found.skip(path, error.strerror or "unreadable")
    finally:
        os.close(descriptor)


def _is_plain(path: str) -> bool:
    return escaped(path) == path and not any(part.startswith("-") for part in path.split("/"))


def _renamed(parent: int, name: str, path: str, found: Collection, top: int) -> dict[str, Json]:
    """Give a file a harmless name, in its folder if that has one, else at the top."""
    folder = path.removesuffix(name)
    if not _is_plain(folder):
        folder = ""
    target = parent if folder else top
    ending = _ENDING.search(name)
    while True:
        found.renamed += 1
        new = f"artifact_{found.renamed}{ending[0] if ending else ''}"
        try:
            os.stat(new, dir_fd=target, follow_symlinks=False)
        except FileNotFoundError:
            break
    os.rename(name, new, src_dir_fd=parent, dst_dir_fd=target)
    return {"path": folder + new, "name": escaped(path)}


def _kind(parent: int, name: str) -> str:
    try:
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
    except OSError:
        return ""
    return "symbolic link" if stat.S_ISLNK(mode) else "" if stat.S_ISREG(mode) else "no regular file"


def _compile(glob: str) -> re.Pattern[str]:
    parts = glob.removeprefix("./").split("/")
    pattern = ""
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if part == "**":
            pattern += ".*" if last else "(?:.*/)?"
        else:
            pattern += _segment(part) + ("" if last else "/")
    return re.compile(pattern, re.DOTALL)


def _segment(part: str) -> str:
    """One part of a glob; its wildcards don't match the slash."""
    return "".join(map(_token, _TOKENS.findall(part)))


def _token(token: str) -> str:
    if token[0] in "*?":
        return "[^/]*" if token[0] == "*" else "[^/]"
    # Without the end of the text, which it puts behind.
    return f"(?!/){fnmatch.translate(token)[:-2]}"


def remove_tree(path: str) -> bool:
    """Remove a folder and all in it, however deep and whatever its permissions; True when it is gone.

    It goes down by descriptor and up by ``..``, so that no path gets long, no recursion deep and
    no more than two descriptors are open. Links are removed, never followed.
    """
    try:
        os.unlink(path)
        return True
    except FileNotFoundError:
        return True
    except OSError:
        pass  # A folder.
    try:
        os.chmod(path, 0o700)
        top = os.open(path, _FOLDER)
    except OSError:
        return False
    try:
        _empty(top)
        os.rmdir(path)
    except OSError:
        return False
    finally:
        os.close(top)
    return True


def _empty(top: int) -> None:
    here = os.dup(top)
    # One entry a level: its folder's identity, the names still to do; the last name is the one we are in.
    levels = [(_identity(here), os.listdir(here))]
    try:
        while True:
            _, names = levels[-1]
            if names and _is_folder(here, names[-1]):
                os.chmod(names[-1], 0o700, dir_fd=here)
                here = _step(here, names[-1])
                levels.append((_identity(here), os.listdir(here)))
            elif names:
                os.unlink(names.pop(), dir_fd=here)
            elif len(levels) == 1:
                return
            else:
                levels.pop()
                here = _step(here, "..")
                identity, names = levels[-1]
                if _identity(here) != identity:
                    raise OSError("a folder was moved while it was removed")
                os.rmdir(names.pop(), dir_fd=here)
    finally:
        os.close(here)


def _step(here: int, name: str) -> int:
    there = os.open(name, _FOLDER, dir_fd=here)
    os.close(here)
    return there


def _identity(descriptor: int) -> tuple[int, int]:
    facts = os.fstat(descriptor)
    return facts.st_dev, facts.st_ino


def _is_folder(parent: int, name: str) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
