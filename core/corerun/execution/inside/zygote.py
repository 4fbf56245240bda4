"""A process that has imported a profile and becomes programs by forking, each in namespaces of its own."""

from __future__ import annotations

import _socket
import fcntl
import json
import marshal
import os
import struct
import sys
from array import array
from typing import Any, NoReturn

from . import confine, kernel, nanny, profiles, program

MESSAGE_BYTES = 131072
MOST_DESCRIPTORS = 16
_NAMESPACES = kernel.CLONE_NEWUSER | kernel.CLONE_NEWPID | kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC
_SHARED = ("/tmp", "/dev/shm")
_CONTROL = 3
_KEPT = 64
"""Descriptors that a program keeps beside its standard ones begin here, so that its own begin at 3."""
_HIGHEST = 256
_USER, _GROUP = os.getuid(), os.getgid()
"""Found before there is another user namespace, in which this account has no number yet."""
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_MEMORY_FLAGS = kernel.MS_NOSUID | kernel.MS_NODEV


def main() -> Any:
    """Serve the control socket that the argument names until its other end is closed.

    The argument is JSON: ``control`` (descriptor), ``profile``, ``more`` (modules), ``rules`` (see
    `corerun.execution.enclosure.Enclosure`), ``folder`` (that holds the workspaces), ``network``
    (whether programs share this process's), and ``environment``: what changes once all is imported
    (null: unset).

    Returns in each program, with its launch.

    The first message out is ``{ready: versions, own_proc, path, modules}`` or ``{failed: reason}``.
    Each message in is a request (see `_serve`).
    """
    setting = json.loads(sys.argv[2])
    if setting["control"] != _CONTROL:
        os.dup2(setting["control"], _CONTROL, inheritable=False)
        os.close(setting["control"])
    control = _socket.socket(fileno=_CONTROL)
    try:
        # The end of the control socket says the same, but not to a process that was stopped.
        kernel.die_with(None)
        ready = _prepare(setting)
    except BaseException as error:
        control.send(json.dumps({"failed": f"{type(error).__name__}: {error}"[:2000]}).encode())
        os._exit(1)
    control.send(json.dumps(ready).encode())
    del ready
    launch = None
    while launch is None:
        launch = _serve(control, setting)
    return launch


def _prepare(setting: Any) -> dict[str, Any]:
    # Some packages look for settings in the working folder.
    os.chdir("/")
    versions = profiles.load(setting["profile"], setting["more"], setting["environment"])
    # Both for the first processes of programs' namespaces, which inherit them.
    nanny.ignore_stops()
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    setting["namespaces"] = _NAMESPACES | (0 if setting["network"] else kernel.CLONE_NEWNET)
    setting["own_proc"] = _rehearse(setting)
    modules = sorted({name.partition(".")[0] for name in sys.modules})
    return {"ready": versions, "own_proc": setting["own_proc"], "path": sys.path, "modules": modules}


def _rehearse(setting: Any) -> bool:
    """Make such namespaces as programs get, once; returns whether they can have a /proc of their own.

    Raises OSError where they can't be made.
    """
    read_end, write_end = os.pipe()
    pid, pidfd = kernel.clone(setting["namespaces"])
    if pid == 0:
        os.write(write_end, _tried(setting).encode())
        os._exit(0)
    os.close(pidfd)
    os.close(write_end)
    os.waitpid(pid, 0)
    with open(read_end) as file:
        answer = file.read()
    if answer not in ("own", "shared"):
        raise OSError(f"no namespaces inside the sandbox: {answer}")
    return answer == "own"


def _tried(setting: Any) -> str:
    folder = setting["folder"]
    try:
        _make_place({"keep": [folder], "cover": folder, "size": 65536}, setting)
    except Exception as error:
        return str(error)
    try:
        _mount_proc()
    except OSError:
        return "shared"
    return "own"


def _serve(control: Any, setting: Any) -> Any:
    """Answer one request: with a pidfd of the program's first process, or ``{error: reason}``.

    Returns None, but in the program its launch.

    A request is ``{launch, environment, anew, keep, cover, size, service}``, marshalled: ``environment``
    is what changes, or with ``anew`` all of it; ``service`` is the name of a variable; for the rest see
    `_make_place`. Its descriptors are, in this order: input, output, error output, result, status, the
    service's socket if there is one, control groups.
    """
    body, descriptors = _receive(control)
    _reap()
    try:
        pid, pidfd = kernel.clone(setting["namespaces"])
    except OSError as error:
        control.send(json.dumps({"error": str(error)}).encode())
    else:
        if pid == 0:
            return _begin(body, descriptors, setting)
        control.sendmsg([b"{}"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array("i", [pidfd]))])
        os.close(pidfd)
    for descriptor in descriptors:
        os.close(descriptor)
    return None


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _receive(control: Any) -> tuple[bytes, list[int]]:
    space = _socket.CMSG_SPACE(MOST_DESCRIPTORS * 4)
    body, ancillary, _, _ = control.recvmsg(MESSAGE_BYTES, space, _socket.MSG_CMSG_CLOEXEC)
    if not body:
        os._exit(0)
    descriptors = array("i")
    for _, _, data in ancillary:
        descriptors.frombytes(data)
    return body, list(descriptors)


def _begin(body: bytes, descriptors: list[int], setting: Any) -> Any:
    """Fork the program, where this returns its launch, and stay to watch over it.

    The first process does nothing else: each page that it and the program both touch is copied twice.
    """
    status = descriptors[4]
    try:
        kernel.die_with(None)
        child = os.fork()
    except Exception as error:
        _give_up(status, error)
    if child == 0:
        return _make_ready(body, descriptors, setting)
    os.closerange(0, status)
    os.closerange(status + 1, _HIGHEST)
    nanny.watch(child, status)


def _give_up(status: int, error: Exception) -> NoReturn:
    os.write(status, json.dumps({"broken": f"{type(error).__name__}: {error}"}).encode())
    os._exit(program.REFUSED)


def _make_ready(body: bytes, descriptors: list[int], setting: Any) -> Any:
    """Make the namespaces a place for the program, and this process one that can run it."""
    request, rules = marshal.loads(body), setting["rules"]
    launch = request["launch"]
    try:
        limits = {**launch["limits"], **rules.get("limits", {})}
        launch.update(rules, limits=limits, result=descriptors[3])
        launch["groups"] = descriptors[len(descriptors) - launch["groups"] :]
        _make_place(request, setting)
        if setting["own_proc"]:
            _mount_proc()
        confine.join_groups(launch)
        os.setsid()
        nanny.heed_stops()
        _keep_descriptors(request, launch, descriptors)
        if request["anew"]:
            os.environ.clear()
        profiles.change_environment(request["environment"])
        profiles.renew()
        kernel.drop_capabilities()
    except Exception as error:
        program.refuse(launch["result"], error)
    return launch


def _make_place(request: Any, setting: Any) -> None:
    """An account, a network with nobody else in it, fresh shared folders of ``size`` bytes, nothing in
    the folder ``cover``, all of ``keep``.

    What is kept is taken first: it may lie below a shared folder, which hides it.
    """
    # Its first process stays undumpable, so that nobody reaches the record of the end through /proc.
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
    maps = ("setgroups", "deny"), ("uid_map", f"{_USER} {_USER} 1"), ("gid_map", f"{_GROUP} {_GROUP} 1")
    for name, text in maps:
        descriptor = os.open(f"/proc/self/{name}", os.O_WRONLY)
        os.write(descriptor, text.encode())
        os.close(descriptor)
    if not setting["network"]:
        _raise_loopback()
    kept = [(path, kernel.take_tree(path)) for path in request["keep"]]
    for path in _SHARED:
        kernel.mount("tmpfs", path, "tmpfs", _MEMORY_FLAGS, f"size={request['size']},mode=1777")
    cover = request["cover"]
    covers = bool(cover) and os.path.isdir(cover)
    if covers:
        kernel.mount("tmpfs", cover, "tmpfs", _MEMORY_FLAGS, "size=64k,mode=755")
    for path, tree in kept:
        if os.path.isdir(f"/proc/self/fd/{tree}"):
            os.makedirs(path, exist_ok=True)
        elif not os.path.exists(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
    if covers:
        kernel.mount("", cover, None, _MEMORY_FLAGS | kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY)
    for path, tree in kept:
        kernel.put_tree(tree, path)


def _raise_loopback() -> None:
    any_socket = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    fcntl.ioctl(any_socket.fileno(), _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", _IFF_UP))
    any_socket.close()


def _mount_proc() -> None:
    kernel.mount("proc", "/proc", "proc", _MEMORY_FLAGS | kernel.MS_NOEXEC)


def _keep_descriptors(request: Any, launch: Any, descriptors: list[int]) -> None:
    """Standard input and outputs, the ends that the program needs, and nothing else."""
    launch["result"] = fcntl.fcntl(descriptors[3], fcntl.F_DUPFD_CLOEXEC, _KEPT)
    if request["service"]:
        request["environment"][request["service"]] = str(
            fcntl.fcntl(descriptors[5], fcntl.F_DUPFD, _KEPT + 1)
        )
    for number, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, number)
    os.closerange(3, _KEPT)
