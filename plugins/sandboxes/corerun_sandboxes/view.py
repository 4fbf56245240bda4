"""Which files of the machine a program sees beside its workspace."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from corerun.errors import InfrastructureError
from corerun.execution.gpus import DRIVER

_FOLDERS = ("/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin", "/opt")
_SETTINGS = tuple(
    f"/etc/{name}"
    for name in (
        *("ld.so.cache", "localtime", "ssl", "fonts", "alternatives", "nsswitch.conf", "passwd", "group"),
        "pki",
    )
)
_MINOR = re.compile(r"^Device Minor:\s*(\d+)\s*$", re.MULTILINE)
_UUID = re.compile(r"^GPU UUID:\s*(\S+)\s*$", re.MULTILINE)


@functools.cache
def system_paths() -> tuple[str, ...]:
    """The system's folders and the harmless part of its settings, as far as they exist."""
    return tuple(path for path in (*_FOLDERS, *_SETTINGS) if os.path.exists(path) and not _is_link(path))


@functools.cache
def system_links() -> Mapping[str, str]:
    """Those of them that are links, and what they say: on most machines /bin is one to usr/bin."""
    return {path: os.readlink(path) for path in (*_FOLDERS, *_SETTINGS) if _is_link(path)}


def _is_link(path: str) -> bool:
    """Whether it is a link to what is seen anyway; any other one is as good as what it leads to."""
    target = os.path.realpath(path)
    return os.path.islink(path) and any(target.startswith(f"{folder}/") for folder in _FOLDERS)


def readable(paths: Iterable[str]) -> list[str]:
    """Each path that exists, and where it really lies.

    Raises `InfrastructureError` for a home folder: keys lie in those.
    """
    found: dict[str, None] = {}
    for path in paths:
        for candidate in (path, os.path.realpath(path)):
            if os.path.isabs(candidate) and os.path.exists(candidate):
                _check(candidate)
                found[os.path.normpath(candidate)] = None
    return list(found)


def gpu_devices(ids: Iterable[str], driver: Path = DRIVER) -> list[str]:
    """The device files of these cards, and those that all cards share; none without a card.

    ``ids`` are UUIDs or numbers in the order of the bus, as `corerun.execution.gpus` hands them out.
    """
    wanted = tuple(ids)
    if not wanted:
        return []
    cards: list[str] = []
    for number, folder in enumerate(sorted(driver.iterdir())):
        facts = (folder / "information").read_text()
        minor, uuid = _MINOR.search(facts), _UUID.search(facts)
        if minor and (str(number) in wanted or (uuid and uuid[1] in wanted)):
            cards.append(f"/dev/nvidia{minor[1]}")
    shared = [f"/dev/nvidia{name}" for name in ("ctl", "-uvm", "-uvm-tools", "-modeset")]
    return [path for path in (*shared, *cards) if os.path.exists(path)]


def _check(path: str) -> None:
    home = os.path.realpath(os.path.expanduser("~"))
    if os.path.realpath(path) in ("/", home) or os.path.lexists(os.path.join(path, ".ssh")):
        raise InfrastructureError(
            f"programs would read all of {path}, where keys may lie: use a Python of a folder of its own"
        )
