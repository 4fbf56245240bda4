"""Pictures of a run as data URLs: only real raster images inside the run's folder, up to a size."""

from __future__ import annotations

import base64
from pathlib import Path

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)


def media_type(head: bytes) -> str | None:
    """The media type by the first bytes, never by the name; None for what must not be inlined."""
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    return None


class Images:
    """Embeds pictures below ``run_dir`` until ``max_mb`` megabytes of page text are spent."""

    def __init__(self, run_dir: Path | None, max_mb: float) -> None:
        self._root = run_dir.resolve() if run_dir is not None else None
        self._left = int(max_mb * 1_000_000)

    def embed(self, path: str) -> tuple[str | None, str]:
        """``(data URL, "")``, or ``(None, why not)``. Never raises for what a program left behind."""
        if self._root is None:
            return None, "not embedded"
        try:
            target = (self._root / path).resolve()
            if not target.is_relative_to(self._root):
                return None, "outside the run's folder"
            if not target.is_file():
                return None, "file is missing"
            with target.open("rb") as file:
                kind = media_type(file.read(16))
                if kind is None:
                    return None, "not a PNG, JPEG, GIF or WebP picture"
                size = target.stat().st_size
                encoded = (size + 2) // 3 * 4
                if encoded > self._left:
                    return None, "over the page's size limit for pictures"
                file.seek(0)
                body = file.read(size)
        except (OSError, ValueError):
            return None, "file cannot be read"
        self._left -= encoded
        return f"data:{kind};base64,{base64.b64encode(body).decode('ascii')}", ""
