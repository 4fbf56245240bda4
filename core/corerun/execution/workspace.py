"""A program's folder before the run: checked paths, code and input files, private home."""

from __future__ import annotations

import os
import re
import shutil
import stat

from corerun.errors import UsageError
from corerun.execution.collect import remove_tree
from corerun.execution.environment import HOME_FOLDER, TEMPORARY_FOLDER
from corerun.execution.inside.profiles import PROFILES
from corerun.interfaces import ExecRequest

KINDS = ("python", "shell", "argv")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
"""What the file of a program may be called."""


def check(request: ExecRequest) -> None:
    """Raise `UsageError` for a request that no program can be made of."""
    if request.kind not in KINDS:
        raise UsageError(f"unknown kind of program {request.kind!r}", hint=f"one of {', '.join(KINDS)}")
    if request.preload not in (None, *PROFILES):
        known = ", ".join(PROFILES)
        raise UsageError(f"unknown profile {request.preload!r} to preload", hint=f"one of {known}")
    if request.kind == "argv" and not request.argv:
        raise UsageError("a program of kind 'argv' needs argv")
    if not NAME.fullmatch(request.label):
        raise UsageError(f"label {request.label!r} is no file name")
    if not NAME.fullmatch(request.file_name):
        raise UsageError(f"file_name {request.file_name!r} is no file name")
    workspace = request.workspace
    if not os.path.isabs(workspace) or "\0" in workspace:
        raise UsageError(f"workspace {workspace!r} is no absolute path")
    if os.path.realpath(workspace) in ("/", os.path.realpath(os.path.expanduser("~"))):
        raise UsageError(f"workspace {workspace!r} holds more than a program's files")
    for path in (request.cwd, *request.files):
        if os.path.isabs(path) or ".." in path.split("/") or "\0" in path or not path:
            raise UsageError(f"{path!r} leads out of the workspace")


def prepare(request: ExecRequest) -> str:
    """Make the folders, copy the inputs, write the code; returns the absolute working folder.

    Raises OSError when the disk or the permissions refuse, `UsageError` when an input is missing.
    """
    workspace = request.workspace
    folder = os.path.normpath(os.path.join(workspace, request.cwd))
    if request.fresh:
        remove_tree(workspace)
    os.makedirs(workspace, mode=0o700, exist_ok=True)
    for private in (HOME_FOLDER, TEMPORARY_FOLDER):
        _private_folder(os.path.join(workspace, private))
    make_inside(workspace, folder)
    for path, source in request.files.items():
        target = os.path.normpath(os.path.join(workspace, path))
        make_inside(workspace, os.path.dirname(target))
        if not os.path.exists(source):
            raise UsageError(f"input {source} doesn't exist", where=path)
        remove_tree(target)
        if os.path.isdir(source):
            # The sandbox lets the program read the folder where it lies.
            os.symlink(os.path.realpath(source), target, target_is_directory=True)
            continue
        shutil.copyfile(source, target)
        os.chmod(target, 0o400)
    if request.kind != "argv":
        path, code = program_path(request, folder), request.code.encode("utf-8", "surrogatepass")
        if not _holds(path, code):
            write_new(path, code)
    return folder


def input_folders(request: ExecRequest) -> tuple[str, ...]:
    """The folders among a request's inputs, where they really are."""
    return tuple(os.path.realpath(source) for source in request.files.values() if os.path.isdir(source))


def program_path(request: ExecRequest, folder: str) -> str:
    """Where the code lies: in the working folder, so that tracebacks name a file that stays."""
    return os.path.join(folder, f"{request.label}.sh" if request.kind == "shell" else request.file_name)


def write_new(path: str, data: bytes) -> None:
    """Write a file that wasn't there: what an earlier program put in its place is removed first."""
    remove_tree(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)


def _holds(path: str, data: bytes) -> bool:
    """Whether it is a file with just this in it: somebody's own file, which then stays his."""
    try:
        with open(path, "rb", opener=_not_following) as file:
            facts = os.fstat(file.fileno())
            same_size = stat.S_ISREG(facts.st_mode) and facts.st_size == len(data)
            return same_size and file.read(len(data) + 1) == data
    except OSError:
        return False


def _not_following(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def make_inside(workspace: str, folder: str) -> None:
    """Make a folder below the workspace; OSError when an earlier program left a link on the way."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    top = os.path.realpath(workspace)
    if os.path.commonpath([top, os.path.realpath(folder)]) != top:
        raise OSError(f"{folder} leads out of the workspace through a link")


def _private_folder(path: str) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)
            os.mkdir(path, 0o700)
