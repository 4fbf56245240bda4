"""Archives that nobody vouches for: honest ones come out whole, hostile ones leave nothing behind."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corerun.errors import CorerunError, StateError, UsageError
from corerun.inputs import archives
from corerun.inputs.archives import extract

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "tar.gz": gzip.compress,
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
}
Entry = tuple[tarfile.TarInfo, bytes]


def entry(name: str, body: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: object) -> Entry:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode = kind, len(body), 0o644
    for field, value in fields.items():
        setattr(info, field, value)
    return info, body


def link(name: str, to: str) -> Entry:
    return entry(name, kind=tarfile.SYMTYPE, linkname=to)


def tar(*entries: Entry) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as packed:
        for info, body in entries:
            packed.addfile(info, io.BytesIO(body))
    return file.getvalue()


def zipped(*entries: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as packed:
        for name, body in entries:
            packed.writestr(name, body)
    return file.getvalue()


def zip_entry(name: str, mode: int, method: int = zipfile.ZIP_STORED) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr, info.compress_type = 3, mode << 16, method
    return info


def unpack(folder: Path, content: bytes) -> list[str]:
    folder.mkdir(exist_ok=True)
    archive = folder / "archive"
    archive.write_bytes(content)
    return extract(archive, folder / "place" / "target")


def everything(folder: Path) -> dict[str, str]:
    """Every path with what it is: a folder, a link's target or a file's text."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = (
            f"-> {path.readlink()}"
            if path.is_symlink()
            else "/"
            if path.is_dir()
            else path.read_text(errors="replace")
        )
    return found


# -------------------------------------------------------------------------------------- honest ones

HONEST = tar(
    entry("./", kind=tarfile.DIRTYPE),
    entry("./data", kind=tarfile.DIRTYPE, mode=0o2777),
    entry("./data/a table.csv", b"x,y\n1,2\n"),
    entry("data/run.sh", b"#!/bin/sh\n", mode=0o755),
    entry("data/same.csv", kind=tarfile.LNKTYPE, linkname="data/a table.csv"),
    link("latest", "data/run.sh"),
    link("data/up", ".."),
    entry(f"{'long' * 40}/größe.txt", "ä".encode()),
)
INSIDE = {
    "data": "/",
    "data/a table.csv": "x,y\n1,2\n",
    "data/run.sh": "#!/bin/sh\n",
    "data/same.csv": "x,y\n1,2\n",
    "data/up": "-> ..",
    "latest": "-> data/run.sh",
    "long" * 40: "/",
    f"{'long' * 40}/größe.txt": "ä",
}


@pytest.mark.parametrize("packer", PACKERS)
def test_a_tar_comes_out_whole_and_private(packer: str, tmp_path: Path) -> None:
    made = unpack(tmp_path, PACKERS[packer](HONEST))
    target = tmp_path / "place" / "target"
    assert everything(target) == INSIDE
    assert made == sorted(name for name, what in INSIDE.items() if what != "/")
    modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in [target, *target.rglob("*")]}
    assert (modes["target"], modes["data"], modes["a table.csv"]) == (0o700, 0o700, 0o600)
    assert (modes["run.sh"], modes["same.csv"]) == (0o700, 0o600)
    assert os.listdir(tmp_path / "place") == ["target"]


def test_a_zip_comes_out_whole(tmp_path: Path) -> None:
    content = zipped(
        ("data/", b""),
        ("data/a.csv", b"x\n"),
        (zip_entry("run.sh", stat.S_IFREG | 0o755), b"#!/bin/sh\n"),
        (zip_entry("latest", stat.S_IFLNK | 0o777), b"data/a.csv"),
    )
    assert unpack(tmp_path, content) == ["data/a.csv", "latest", "run.sh"]
    target = tmp_path / "place" / "target"
    assert everything(target) == {
        "data": "/",
        "data/a.csv": "x\n",
        "latest": "-> data/a.csv",
        "run.sh": "#!/bin/sh\n",
    }
    assert os.access(target / "run.sh", os.X_OK) and not (target / "data/a.csv").stat().st_mode & 0o111


def test_several_packed_streams_are_one_archive(tmp_path: Path) -> None:
    for number, packer in enumerate((gzip.compress, bz2.compress, lzma.compress)):
        folder = tmp_path / str(number)
        unpack(folder, packer(HONEST[:700]) + packer(HONEST[700:]))
        assert everything(folder / "place" / "target") == INSIDE


def test_an_empty_folder_is_filled_and_a_full_one_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "place" / "target").mkdir(parents=True)
    unpack(tmp_path, HONEST)
    with pytest.raises(UsageError, match=r"place/target: is there already"):
        unpack(tmp_path, tar(entry("new", b"x")))
    assert everything(tmp_path / "place" / "target") == INSIDE


def test_small_archives_may_unpack_to_many_times_their_size(tmp_path: Path) -> None:
    assert unpack(tmp_path, zipped(("zeros", bytes(900_000)))) == ["zeros"]


# ------------------------------------------------------------------------------------- hostile ones


def overlapping(count: int = 400, size: int = 2_000_000) -> bytes:
    """A zip whose index names the same packed bytes under many names."""
    body = zipped(("a000", bytes(size)))
    end = body.rindex(b"PK\x05\x06")
    begin = struct.unpack("<I", body[end + 16 : end + 20])[0]
    row = body[begin:end]
    rows = b"".join(row.replace(b"a000", b"a%03d" % number) for number in range(count))
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(rows), begin, 0)
    return body[:begin] + rows + tail


def long_header(size: int) -> bytes:
    """A packed tar with one extended header of ``size`` bytes, read into memory by what reads it whole."""
    body = b"%d comment=" % size
    body += random.Random(1).randbytes(size // 2).hex().encode()[: size - len(body) - 1] + b"\n"
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(body)
    return gzip.compress(info.tobuf() + body + bytes(-len(body) % 512) + tar(entry("a", b"x")))


def lying_size() -> bytes:
    """A zip that says its 3 MB are 10 bytes."""
    body = bytearray(zipped(("a", bytes(3_000_000))))
    for mark, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = body.rindex(mark) + place
        body[at : at + 4] = struct.pack("<I", 10)
    return bytes(body)


def greedy_xz() -> bytes:
    """An xz whose header asks for a gigabyte of memory."""
    return lzma.compress(HONEST, filters=[{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}])


def encrypted() -> bytes:
    body = bytearray(zipped(("a", b"x")))
    body[body.index(b"PK\x03\x04") + 6] |= 1
    body[body.index(b"PK\x01\x02") + 8] |= 1
    return bytes(body)


SLIP = [
    "../out",
    "a/../../out",
    "/tmp/out",
    "//out",
    "a\\..\\..\\out",
    "C:/out",
    "c:out",
    "\\\\host\\out",
    "..",
    "a/..",
]
STRANGE = ["a\nb", "\x1b[2J", "a\u202egpj.exe", "\udcff", "x" * 256, "/".join("d" * 70), "é" * 200]
LINKS = ["/etc/passwd", "../out", "a/../../out", "..", "../../../../../../etc", "C:\\x", "a\nb", ""]

HOSTILE: dict[str, bytes] = {
    **{f"zip named {name!a}": zipped((name, b"x"), ("good", b"x")) for name in SLIP if "\\" not in name},
    **{f"tar named {name!a}": tar(entry("good", b"x"), entry(name, b"x")) for name in SLIP},
    **{f"tar named {name[:9]!a}": tar(entry("good", b"x"), entry(name, b"x")) for name in STRANGE},
    **{f"tar folder {name!a}": tar(entry("good", b"x"), entry(name, kind=tarfile.DIRTYPE)) for name in SLIP},
    **{f"tar link to {to!a}": tar(entry("f", b"x"), link("l", to)) for to in LINKS},
    **{f"zip link to {to!a}": zipped((zip_entry("l", stat.S_IFLNK | 0o777), to.encode())) for to in LINKS},
    "zip with a NUL": zipped(("a~b", b"x")).replace(b"a~b", b"a\0b"),
    "zip with backslashes": zipped(("a~b", b"x")).replace(b"a~b", b"a\\b"),
    "a file through a link": tar(
        link("l", "/tmp"), entry("l/corerun-was-here", b"x")
    ),
    "a file through an inner link": tar(
        entry("d", kind=tarfile.DIRTYPE), link("l", "d"), entry("l/f", b"x")
    ),
    "a link through a link": tar(
        entry("a/b/f", b"x"),
        link("l", "a/b"),
        link("a/b/up", "../.."),
        link("out", "l/up/../.."),
    ),
    "a link that only reads as inside": tar(
        entry("a/b/f", b"x"),
        link("a/b/root", "../.."),
        link("out", "a/b/root/../x"),
    ),
    "a hard link out": tar(entry("l", kind=tarfile.LNKTYPE, linkname="../../archive")),
    "a hard link to the system": tar(entry("l", kind=tarfile.LNKTYPE, linkname="/etc/passwd")),
    "a hard link to a link": tar(
        link("s", "f"), entry("f", b""), entry("l", kind=tarfile.LNKTYPE, linkname="s")
    ),
    "a hard link to nothing": tar(entry("l", kind=tarfile.LNKTYPE, linkname="later"), entry("later", b"x")),
    "twice": tar(entry("a", b"1"), entry("a", b"2")),
    "twice in a zip": zipped(("a", b"1"), ("b", b"2")).replace(b"b", b"a"),
    "twice by another way": tar(entry("d/a", b"1"), entry("d/./a", b"2")),
    "other case": tar(entry("readme", b"1"), entry("README", b"2")),
    "other case of a folder": tar(entry("d/a", b"1"), entry("D/b", b"2")),
    "other spelling": tar(entry("caf\u00e9", b"1"), entry("cafe\u0301", b"2")),
    "a file and a folder": tar(entry("a", b"1"), entry("a/b", b"2")),
    "a folder and a file": tar(entry("a/b", b"2"), entry("a", b"1")),
    "a link over a file": tar(entry("a", b"1"), link("a", "b")),
    "a character device": tar(entry("good", b"x"), entry("d", kind=tarfile.CHRTYPE, devmajor=1, devminor=5)),
    "a block device": tar(entry("d", kind=tarfile.BLKTYPE, devmajor=7)),
    "a pipe": tar(entry("p", kind=tarfile.FIFOTYPE)),
    "a pipe in a zip": zipped((zip_entry("p", stat.S_IFIFO | 0o644), b"")),
    "a device in a zip": zipped((zip_entry("p", stat.S_IFCHR | 0o644), b"")),
    "setuid": tar(entry("s", b"x", mode=0o4755)),
    "setgid": tar(entry("s", b"x", mode=0o2755)),
    "setuid by hard link": tar(entry("f", b"x"), entry("s", kind=tarfile.LNKTYPE, linkname="f", mode=0o4755)),
    "setuid in a zip": zipped((zip_entry("s", stat.S_IFREG | 0o4755), b"x")),
    "an unknown kind": tar(entry("s", b"x", kind=b"V")),
    "a bomb": zipped(("a", bytes(8_000_000))),
    "a bomb of tar.gz": gzip.compress(tar(entry("a", bytes(8_000_000)))),
    "a bomb of tar.bz2": bz2.compress(tar(entry("a", bytes(8_000_000)))),
    "a bomb of tar.xz": lzma.compress(tar(entry("a", bytes(8_000_000)))),
    "overlapping entries": overlapping(),
    "a lying size": lying_size(),
    "hard links as a bomb": tar(
        entry("a", bytes(200_000)), *(entry(f"l{n}", kind=tarfile.LNKTYPE, linkname="a") for n in range(500))
    ),
    "a long header": long_header(3_000_001),
    "an xz that wants memory": greedy_xz(),
    "a zip by LZMA": zipped(("a", b"x" * 999), method=zipfile.ZIP_LZMA),
    "damage in the middle": HONEST[:1024] + b"\xff" * 512 + HONEST[1536:],
    "a cut tar": HONEST[:1600],
    "a cut tar.gz": gzip.compress(HONEST)[:-30],
    "a cut tar.xz": lzma.compress(HONEST)[:-30],
    "a cut zip": zipped(("a", random.Random(1).randbytes(9000)))[:5000],
    "a broken checksum": zipped(("a", b"abcd" * 9), method=zipfile.ZIP_STORED).replace(b"abcd", b"abce", 1),
    "an encrypted zip": encrypted(),
    "nothing": b"",
    "no archive": b"hello " * 200,
    "no name": tar(entry(".", b"x")),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_archive_is_refused_and_leaves_nothing(what: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        unpack(tmp_path / "inside", HOSTILE[what])
    assert str(caught.value).startswith(f"{tmp_path / 'inside' / 'archive'}: ")
    assert str(caught.value).isprintable() and "Error" not in str(caught.value).split("can't be unpacked")[0]
    left = {name for name in everything(tmp_path) if name != "inside/archive"}
    assert left == {"inside", "inside/place"}
    assert not Path("/tmp/corerun-was-here").exists()


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("a long header", "a header of more than 1,048,576 bytes"),
        ("an encrypted zip", "'a' is encrypted"),
        ("a bomb", "unpacks to more than 200 times its size"),
        ("overlapping entries", "can't be unpacked"),
        ("hard links as a bomb", "unpacks to more than 200 times its size"),
        ("damage in the middle", "can't be unpacked: bad checksum"),
        ("a file through an inner link", "'l' is there as a link and as a folder"),
        ("other case", "'README' differs from 'readme' in case or spelling alone"),
        ("a link that only reads as inside", "is a link that leads out of the archive"),
        ("setuid", "would run with the rights of another account"),
    ],
)
def test_the_reason_is_said(what: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        unpack(tmp_path, HOSTILE[what])
    assert why in str(caught.value)


def nested_bomb(depth: int = 4) -> bytes:
    content = zipped(("zeros", bytes(5_000_000)))
    for _ in range(depth):
        content = zipped(*((f"part{number}.zip", content) for number in range(16)))
    return content


def test_archives_within_an_archive_stay_packed(tmp_path: Path) -> None:
    made = unpack(tmp_path, nested_bomb())
    assert made == sorted(f"part{number}.zip" for number in range(16))
    assert sum(path.stat().st_size for path in (tmp_path / "place").rglob("*")) < 1_000_000


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_files_and_bytes_have_limits(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pack(files: dict[str, bytes]) -> bytes:
        return zipped(*files.items()) if kind == "zip" else tar(*(entry(*item) for item in files.items()))

    assert (archives.MOST_FILES, archives.MOST_BYTES, archives.HIGHEST_RATIO) == (50_000, 5_000_000_000, 200)
    monkeypatch.setattr(archives, "MOST_FILES", 10)
    assert len(unpack(tmp_path / "ten", pack({f"f{number}": b"" for number in range(10)}))) == 10
    with pytest.raises(UsageError, match="more than 10 files and folders"):
        unpack(tmp_path / "eleven", pack({f"f{number}": b"" for number in range(11)}))
    with pytest.raises(UsageError, match="more than 10 files and folders"):
        unpack(tmp_path / "folders", pack({f"{'d/' * 9}{letter}/f": b"" for letter in "ab"}))
    monkeypatch.setattr(archives, "MOST_BYTES", 50_000)
    body = random.Random(1).randbytes(30_000)
    assert len(unpack(tmp_path / "small", pack({"a": body}))) == 1
    with pytest.raises(UsageError, match="unpacks to more than 50,000 bytes"):
        unpack(tmp_path / "large", pack({"a": body, "b": body[::-1]}))


def test_a_list_of_members_that_fills_the_memory_is_not_read(tmp_path: Path) -> None:
    rows = b"PK\x01\x02" + bytes(20 * 1_048_576)
    head = zipped(("a", b"x"))[:40]
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 60_000, 60_000, len(rows), len(head), 0)
    with pytest.raises(UsageError, match="a list of members of more than"):
        unpack(tmp_path, head + rows + tail)


def test_what_cannot_be_written_is_no_fault_of_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "place").write_text("a file")
    with pytest.raises(StateError, match="can't be written"):
        unpack(tmp_path, HONEST)
    assert (tmp_path / "place").read_text() == "a file"
    with pytest.raises(UsageError, match="there is no such archive"):
        extract(tmp_path / "nowhere", tmp_path / "target")


def test_an_interrupted_extraction_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> Iterator[object]:
        raise KeyboardInterrupt

    monkeypatch.setattr(archives, "tar_members", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unpack(tmp_path, HONEST)
    assert everything(tmp_path / "place") == {}


SAMPLES = [HONEST, gzip.compress(HONEST), lzma.compress(HONEST), zipped(("a/b", b"text"), ("c", bytes(300)))]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_archive_comes_out_or_is_refused(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(SAMPLES)))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path / f"{zlib.crc32(content)}-{len(list(tmp_path.iterdir()))}"
    try:
        made = unpack(folder, bytes(content))
    except CorerunError:
        assert list((folder / "place").iterdir()) == []
    else:
        target = folder / "place" / "target"
        assert made == sorted(
            str(p.relative_to(target)) for p in target.rglob("*") if p.is_symlink() or p.is_file()
        )
