"""Reads zip and tar archives member by member, forwards, and trusts none of the sizes they name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from typing import BinaryIO, Self, cast

from corerun.errors import UsageError
from corerun.inputs.members import FILE, FOLDER, HARD_LINK, LINK, Member

_LARGEST_HEADER = 1_048_576
_LARGEST_INDEX = 16 * 1_048_576
_LONGEST_LINK = 2048
_XZ_MEMORY = 256 * 1_048_576
_SET_ID = stat.S_ISUID | stat.S_ISGID
_GZIP, _BZIP2, _XZ = b"\x1f\x8b", b"BZh", b"\xfd7zX"


def zip_members(file: BinaryIO) -> Iterator[Member]:
    """The members of a zip. Raises `UsageError` for one that no plain zip has."""
    with zipfile.ZipFile(cast("BinaryIO", _Index(file))) as packed:
        for entry in packed.infolist():
            # ZipFile cuts a name at its first NUL; what stands in the archive is judged.
            name = entry.orig_filename
            mode = entry.external_attr >> 16
            kind = stat.S_IFMT(mode)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
                raise UsageError(f"{name!r} is a device or a pipe")
            if entry.flag_bits & 0x1:
                raise UsageError(f"{name!r} is encrypted")
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UsageError(f"{name!r} is packed by method {entry.compress_type}; use deflate")
            if name.endswith("/") or kind == stat.S_IFDIR:
                yield Member(name, FOLDER)
                continue
            _check_mode(mode, name)
            if kind == stat.S_IFLNK:
                with packed.open(entry) as content:
                    yield Member(
                        name, LINK, content.read(_LONGEST_LINK + 1).decode("utf-8", "surrogateescape")
                    )
                continue

            def content_of(entry: zipfile.ZipInfo = entry) -> BinaryIO:
                return cast("BinaryIO", packed.open(entry))

            yield Member(name, FILE, executable=bool(mode & 0o111), open=content_of)


def tar_members(file: BinaryIO, head: bytes, count: Callable[[int], None]) -> Iterator[Member]:
    """The members of a tar, packed or not by what its first bytes, ``head``, say; ``count`` is told of all
    bytes that are unpacked. Raises `UsageError` for one that is no file, folder or link.
    """
    stream = _Headers(_unpacked(file, head), count)
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Undamaged) as packed:
        while True:
            stream.left = _LARGEST_HEADER
            entry = packed.next()
            stream.left = None
            if entry is None:
                break
            name = entry.name
            if entry.isdir():
                yield Member(name, FOLDER)
            elif entry.issym():
                yield Member(name, LINK, entry.linkname)
            elif entry.islnk():
                _check_mode(entry.mode, name)
                yield Member(name, HARD_LINK, entry.linkname, executable=bool(entry.mode & 0o111))
            elif entry.isreg() and not entry.issparse():
                _check_mode(entry.mode, name)

                def content_of(entry: tarfile.TarInfo = entry) -> BinaryIO:
                    content = packed.extractfile(entry)
                    assert content is not None
                    return cast("BinaryIO", content)

                yield Member(name, FILE, executable=bool(entry.mode & 0o111), open=content_of)
            else:
                raise UsageError(f"{name!r} is a device, a pipe or a sparse file")
    while stream.read(io.DEFAULT_BUFFER_SIZE):
        pass  # the checksum stands at the end


def _check_mode(mode: int, name: str) -> None:
    if mode & _SET_ID:
        raise UsageError(f"{name!r} would run with the rights of another account (setuid)")


def _unpacked(file: BinaryIO, head: bytes) -> BinaryIO:
    if head.startswith(_GZIP):
        return cast("BinaryIO", gzip.GzipFile(fileobj=file))
    if head.startswith(_BZIP2):
        return cast("BinaryIO", bz2.BZ2File(file))
    if head.startswith(_XZ):
        return io.BufferedReader(_Xz(file))
    return file


class _Undamaged(tarfile.TarInfo):
    """A header; tarfile itself takes a damaged one for the archive's end."""

    @classmethod
    def fromtarfile(cls, packed: tarfile.TarFile) -> Self:
        damaged = (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError)  # type: ignore[attr-defined]
        try:
            return super().fromtarfile(packed)
        except damaged as error:
            raise UsageError(f"can't be unpacked: {error}") from None


class _Headers(io.RawIOBase):
    """A stream that counts, and gives no more than ``left`` bytes where that is set: to one header."""

    def __init__(self, stream: BinaryIO, count: Callable[[int], None]) -> None:
        self._stream = stream
        self._count = count
        # A TarFile reads the first header when it is made.
        self.left: int | None = _LARGEST_HEADER

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(size)
        self._count(len(content))
        if self.left is not None:
            self.left -= len(content)
            if self.left < 0:
                raise UsageError(f"a header of more than {_LARGEST_HEADER:,} bytes")
        return content


class _Index(io.RawIOBase):
    """A file of which nobody reads very much at once, as `zipfile.ZipFile` reads the list of members."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        if size > _LARGEST_INDEX:
            raise UsageError(f"a list of members of more than {_LARGEST_INDEX:,} bytes")
        return self._file.read(size)


class _Xz(io.RawIOBase):
    """An xz file, unpacked within a limit on memory: its header may ask for 4 GB."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._reader: lzma.LZMADecompressor | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        unread = b""
        while True:
            if self._reader is not None and self._reader.eof:
                unread, self._reader = self._reader.unused_data, None
            if self._reader is None or self._reader.needs_input:
                unread = unread or self._file.read(io.DEFAULT_BUFFER_SIZE)
                if not unread:
                    if self._reader is not None:
                        raise EOFError("it is cut off")
                    return 0
            if self._reader is None:
                self._reader = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
            content = self._reader.decompress(unread, len(buffer))
            unread = b""
            if content:
                buffer[: len(content)] = content
                return len(content)
