"""Names and paths made of data: one plain path element, and a path that can't leave its folder."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import Path

from corerun.errors import CorerunError, UsageError

LONGEST = 80
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9]+")
_HASH = 8
_DEVICES = frozenset(
    ("CON", "PRN", "AUX", "NUL", *(f"{kind}{number}" for kind in ("COM", "LPT") for number in range(10)))
)
"""What Windows takes for a device, with any ending."""


def safe_name(text: str, limit: int = LONGEST) -> str:
    """``text`` as one path element that is the same file on every system.

    A plain name (ASCII letters, digits, ``._-``, at most ``limit`` of them, no dot or sign in front,
    no dot at the end, no device of Windows) is kept. Of any other stays what is plain in it, and 8 hex
    digits of its sha256 tell it from others of which the same stays.
    """
    normal = unicodedata.normalize("NFC", text)
    if is_plain(normal, limit):
        return normal
    digest = hashlib.sha256(normal.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH]
    kept = _NOT_PLAIN.sub("_", normal)[: limit - _HASH - 1].strip("_")
    return f"{kept or 'unnamed'}-{digest}"


def is_plain(name: str, limit: int = LONGEST) -> bool:
    """Whether ``name`` may stand as one path element as it is."""
    return (
        len(name) <= limit
        and _PLAIN.fullmatch(name) is not None
        and not name.endswith(".")
        and name.partition(".")[0].upper() not in _DEVICES
    )


def safe_join(base: Path, part: str, *, error: type[CorerunError] = UsageError) -> Path:
    """The path of ``part`` below ``base``, through no symbolic link; raises ``error``.

    ``part`` is a relative path; nothing of it needs to be there yet. ``base`` itself may be a link.
    """
    pieces = part.split("/")
    # An absolute path begins with an empty piece.
    if "\0" in part or {"", ".", ".."} & set(pieces):
        raise error(f"{part[:200]!r} is no path below {base}")
    place = base
    try:
        for piece in pieces:
            place = place / piece
            if place.is_symlink():
                raise error(f"{part[:200]!r} leads through a symbolic link below {base}")
    except OSError as problem:  # a name that is too long
        raise error(f"{part[:200]!r} is no path below {base}: {problem.strerror}") from None
    return place
