"""The sandboxes bwrap and landlock: what programs can't reach, what they still can, and who says no."""

from __future__ import annotations

import ast
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from corerun.errors import InfrastructureError
from corerun.execution.enclosure import Place, interpreter_paths, no_enclosure
from corerun.execution.inside import kernel
from corerun.interfaces import GUARANTEES, ExecRequest, ExecResult, Limits, Policy, Sandbox, Session
from corerun_sandboxes import bwrap, landlock, landlock_abi, seccomp, system_calls, trying, view
from corerun_sandboxes.bwrap import BwrapSandbox
from corerun_sandboxes.landlock import LandlockSandbox
from tests.support.accounts import PROJECT, ordinary_account

SANDBOXES: dict[str, Sandbox] = {"bwrap": BwrapSandbox(), "landlock": LandlockSandbox()}
CONTAINED = {"env", "fs_read", "fs_write", "net", "unix_sockets", "proc_isolation", "tree_kill"}


def working(name: str) -> Sandbox:
    probe = SANDBOXES[name].probe()
    if not probe.ok:
        pytest.skip(f"needs the kernel's support for {name}: {probe.reason}")
    return SANDBOXES[name]


@pytest.fixture(params=list(SANDBOXES))
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    return working(request.param)


@pytest.fixture
async def session(sandbox: Sandbox, tmp_path: Path) -> AsyncIterator[Session]:
    opened = await sandbox.open(Policy(), str(tmp_path / "workspace"))
    yield opened
    await opened.close()


only_bwrap = pytest.mark.parametrize("sandbox", ["bwrap"], indirect=True)
only_landlock = pytest.mark.parametrize("sandbox", ["landlock"], indirect=True)


async def run(session: Session, code: str, **fields: Any) -> ExecResult:
    limits = Limits(**{"wall_s": 60.0, "grace_s": 0.2, **fields.pop("limits", {})})
    return await session.run(ExecRequest(code=code, limits=limits, **fields))


ATTEMPT = """
import os, socket
def attempt(act):
    try:
        return act() is not False
    except Exception as error:
        return type(error).__name__
"""


async def attempts(session: Session, *expressions: str, **fields: Any) -> list[Any]:
    """Whether each expression could be evaluated in a program, else the name of its exception."""
    lines = ", ".join(f"attempt(lambda: {expression})" for expression in expressions)
    code = f"{ATTEMPT}import json\nprint(json.dumps([{lines}]))"
    result = await run(session, code, **fields)
    assert result.status == "ok", result
    answers: list[Any] = json.loads(result.stdout)
    return answers


# --------------------------------------------------------------------------------------- probes


def test_what_a_sandbox_guarantees_was_tried(sandbox: Sandbox) -> None:
    probe = sandbox.probe()
    assert probe.guarantees >= CONTAINED | {"file_size", "disk_total"}
    assert probe.guarantees <= GUARANTEES


def test_what_the_kernel_has_works() -> None:
    # The other tests skip where a probe fails, and must not do so for a mistake of ours.
    if landlock_abi.version():
        assert SANDBOXES["landlock"].probe().ok, SANDBOXES["landlock"].probe().reason
    program = bwrap._program()
    words = ["--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "/bin/true"]
    if program and subprocess.run([program, *words], capture_output=True).returncode == 0:
        assert SANDBOXES["bwrap"].probe().ok, SANDBOXES["bwrap"].probe().reason


@pytest.mark.parametrize("sandbox", ["bwrap", "landlock"], indirect=True)
def test_an_attempt_that_succeeds_is_no_guarantee(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    def lets_through(place: Place, held: ExitStack) -> Any:
        facts = json.loads(Path(place.folder, "probe.py").read_text().partition("facts = ")[2].split("\n")[0])
        seen.append(facts["folder"])
        wider = Place(place.folder, (*place.read, facts["folder"]), place.limits, "host")
        return enclose(wider, held)

    seen: list[str] = []
    enclose = bwrap.enclose if sandbox.name == "bwrap" else landlock.enclose
    monkeypatch.setattr(trying, "_SECRET", "known")
    found = trying.try_sandbox(lets_through).guarantees
    assert "fs_read" not in found and "net" not in found
    assert {"fs_write", "proc_isolation"} <= found
    assert not os.path.exists(seen[0])


def test_nothing_is_guaranteed_without_a_sandbox() -> None:
    found = trying.try_sandbox(no_enclosure).guarantees
    assert not found & {"fs_read", "fs_write", "net", "unix_sockets", "proc_isolation", "disk_total"}


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("loopback: Failed RTM_NEWADDR: Operation not permitted", "no network namespace"),
        ("Failed to make / slave: Permission denied", "as in most containers"),
        ("No permissions to create new namespace", "user.max_user_namespaces"),
        ("setting up uid map: Permission denied", "user namespaces are refused"),
        ("Unknown option --size", "0.8 or newer"),
        ("something else", "something else"),
    ],
)
def test_a_bwrap_that_fails_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str, words: str
) -> None:
    monkeypatch.setattr(bwrap, "_program", lambda: failing_bwrap(tmp_path, message))
    monkeypatch.setattr(bwrap, "_restricted_by_apparmor", lambda: False)
    probe = bwrap._probe.__wrapped__()
    assert not probe.ok and not probe.guarantees
    assert probe.reason.startswith(message) and words in probe.reason
    monkeypatch.setattr(bwrap, "_restricted_by_apparmor", lambda: True)
    assert ("AppArmor" in bwrap._probe.__wrapped__().reason) == any(
        word in message for word in ("RTM", "namespace", "uid map")
    )


def failing_bwrap(folder: Path, message: str) -> str:
    script = folder / "bwrap"
    script.write_text(f"#!/bin/sh\necho 'bwrap: {message}' >&2\nexit 1\n")
    script.chmod(0o700)
    return str(script)


async def test_a_bwrap_that_broke_since_is_nobodys_program_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = await working("bwrap").open(Policy(), str(tmp_path / "workspace"))
    monkeypatch.setattr(bwrap, "_program", lambda: failing_bwrap(tmp_path, "Creating new namespace failed"))
    result = await run(opened, "print(1)")
    assert (result.status, result.stdout) == ("infra_error", "")
    assert "Creating new namespace failed" in result.infra
    monkeypatch.setattr(bwrap, "_program", lambda: None)
    result = await run(opened, "print(1)")
    assert (result.status, "apt install bubblewrap" in result.infra) == ("infra_error", True)
    assert "apt install bubblewrap" in bwrap._probe.__wrapped__().reason


def test_a_kernel_without_landlock_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock_abi, "version", lambda: 0)
    probe = landlock._probe.__wrapped__()
    assert not probe.ok and probe.reason.startswith("kernel ABI 0")
    monkeypatch.setattr(landlock_abi, "version", lambda: 7)
    monkeypatch.setattr(seccomp, "supported", lambda: False)
    assert "no system call filter" in landlock._probe.__wrapped__().reason


@pytest.mark.parametrize("version", range(1, 7))
def test_an_older_landlock_guarantees_less(monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    working("landlock")
    if landlock_abi.version() < version:
        pytest.skip(f"needs the kernel's landlock {version}")
    monkeypatch.setattr(landlock_abi, "version", lambda: version)
    probe = landlock._probe.__wrapped__()
    assert (probe.ok, probe.reason) == (True, f"kernel ABI {version}")
    assert ("fs_write" in probe.guarantees) == (version >= 3)
    assert ("proc_isolation" in probe.guarantees) == (version >= 6)
    assert {"fs_read", "net", "unix_sockets"} <= probe.guarantees


# ---------------------------------------------------------------------------------- what is held


async def test_files_outside_are_out_of_reach(session: Session, tmp_path: Path) -> None:
    secret, other = tmp_path / "secret", tmp_path / "other"
    secret.write_text("canary")
    other.mkdir()
    before = secret.stat()
    home = Path.home()
    answers = await attempts(
        session,
        f"open({str(secret)!r}).read()",
        f"os.listdir({str(tmp_path)!r}) != ['workspace']",
        f"os.rename('runfile.py', {str(other / 'x')!r})",
        f"os.truncate({str(secret)!r}, 0)",
        f"sorted(os.listdir({str(home)!r})) == {sorted(os.listdir(home))!r}",
        "open('/etc/shadow').read()",
        "open('/usr/new', 'w')",
        f"open({seccomp.__file__!r}, 'r+b')",
    )
    assert True not in answers
    # These may be done, to files of the same names in a memory of the program's own.
    for act in (
        f"os.chmod({str(secret)!r}, 0o777)",
        f"os.utime({str(secret)!r}, (1, 1))",
        f"os.makedirs({str(other / 'new')!r})",
        f"open({str(secret)!r}, 'w').write('x')",
        f"os.unlink({str(secret)!r})",
    ):
        await attempts(session, act)
    after = secret.stat()
    assert (after.st_mode, after.st_mtime_ns, secret.read_text()) == (
        before.st_mode,
        before.st_mtime_ns,
        "canary",
    )
    assert list(other.iterdir()) == []


async def test_sockets_outside_are_out_of_reach(session: Session, tmp_path: Path) -> None:
    with ExitStack() as held:
        tcp, pathname, packets, abstract = (
            held.enter_context(socket.socket(family, kind))
            for family, kind in (
                (socket.AF_INET, socket.SOCK_STREAM),
                (socket.AF_UNIX, socket.SOCK_STREAM),
                (socket.AF_UNIX, socket.SOCK_DGRAM),
                (socket.AF_UNIX, socket.SOCK_STREAM),
            )
        )
        tcp.bind(("127.0.0.1", 0))
        pathname.bind(str(tmp_path / "s"))
        packets.bind(str(tmp_path / "d"))
        abstract.bind("")
        for one in (tcp, pathname, abstract):
            one.listen()
        answers = await attempts(
            session,
            f"socket.create_connection({tcp.getsockname()!r}, 2)",
            f"socket.socket(socket.AF_UNIX).connect({str(tmp_path / 's')!r})",
            f"socket.socket(socket.AF_UNIX).connect({abstract.getsockname()!r})",
            f"socket.socketpair(type=socket.SOCK_DGRAM)[0].sendto(b'x', {str(tmp_path / 'd')!r})",
            "socket.create_connection(('1.1.1.1', 53), 2)",
        )
        assert True not in answers
        own = "(lambda pair: pair[0].send(b'x'))(socket.socketpair())"
        assert await attempts(session, own) == [True]


async def test_processes_outside_are_out_of_reach(session: Session) -> None:
    bystander = subprocess.Popen(["/bin/sleep", "1000"])
    try:
        mine = os.getpid()
        answers = await attempts(
            session,
            f"os.kill({bystander.pid}, 9)",
            f"os.kill({bystander.pid}, 0)",
            f"open('/proc/{mine}/environ', 'rb').read()",
            f"open('/proc/{mine}/mem', 'rb')",
            f"__import__('resource').prlimit({bystander.pid}, 0, (1, 1))",
            "open('/proc/1/environ', 'rb').read()",
            "[os.open(f'/proc/1/fd/{n}', os.O_WRONLY) for n in os.listdir('/proc/1/fd')]",
            "open('/proc/1/mem', 'r+b')",
            "os.readlink('/proc/1/cwd')",
        )
        assert True not in answers
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


async def test_denied_calls_are_denied_in_a_program(session: Session) -> None:
    if sys.platform != "linux" or not seccomp.supported():
        pytest.skip("needs the kernel's x86_64 or aarch64 calls")
    numbers = system_calls.refused(os.uname().machine)
    code = (
        "import ctypes, errno, json\nlibc = ctypes.CDLL(None, use_errno=True)\nfound = {}\n"
        f"for name, number in {numbers!r}.items():\n"
        "    ctypes.set_errno(0)\n"
        # Of all ones: what is not refused finds its arguments wrong, and says so otherwise.
        "    answer = libc.syscall(number, *[ctypes.c_long(-1)] * 6)\n"
        "    found[name] = errno.errorcode.get(ctypes.get_errno(), answer)\n"
        "print(json.dumps(found))\n"
    )
    result = await run(session, code)
    assert json.loads(result.stdout) == dict.fromkeys(numbers, "EPERM")


async def test_devices_cannot_be_made_and_limits_not_raised(session: Session) -> None:
    answers = await attempts(
        session,
        "os.mknod('disk', 0o60600, os.makedev(254, 0))",
        "os.mknod('memory', 0o20600, os.makedev(1, 1))",
        "__import__('resource').setrlimit(__import__('resource').RLIMIT_FSIZE, (1 << 50, 1 << 50))",
        "os.setuid(1)",
    )
    assert True not in answers


@only_bwrap
async def test_memory_folders_are_private_and_sized(session: Session, tmp_path: Path) -> None:
    code = (
        "import os\nprint(os.listdir('/tmp'), os.listdir('/dev/shm'), os.listdir('/home'))\n"
        "for folder in ('/tmp', '/dev/shm'):\n"
        "    facts = os.statvfs(folder)\n    print(facts.f_blocks * facts.f_frsize >> 20)\n"
        "    open(folder + '/mine', 'w')\n"
        "for folder in ('/', '/dev', '/home', '/run'):\n"
        "    try: open(folder + '/x', 'w')\n"
        "    except OSError as error: print(error.errno)\n"
    )
    result = await run(session, code, limits={"mem_mb": 200})
    # The way to what it may see, the interpreter for one, if that lies there.
    seen = (str(tmp_path), *interpreter_paths(""))
    shown = {Path(path).parts[2] for path in seen if path.startswith("/tmp/")}
    first, *rest = result.stdout.splitlines()
    assert set(ast.literal_eval(first.partition("]")[0] + "]")) == shown
    assert (first.partition("] ")[2], rest) == ("[] []", ["100", "100", *["30"] * 4])


@only_bwrap
async def test_a_network_of_its_own(session: Session) -> None:
    code = (
        "import socket, os\nlistener = socket.create_server(('127.0.0.1', 0))\n"
        "socket.create_connection(listener.getsockname()).send(b'x')\n"
        "print(listener.accept()[0].recv(1), [name for _, name in socket.if_nameindex()])\n"
    )
    assert (await run(session, code)).stdout == "b'x' ['lo']\n"


async def test_the_hosts_network_is_reached_when_asked_for(session: Session) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        expression = f"socket.create_connection({listener.getsockname()!r}, 2)"
        assert await attempts(session, expression, network="host") == [True]
        assert await attempts(session, "socket.socket(socket.AF_UNIX)", network="host") == [
            True if session._facts["name"] == "bwrap" else "PermissionError"  # type: ignore[attr-defined]
        ]


# ----------------------------------------------------------------------------- what still works


async def test_what_may_be_read_is_read_where_it_lies(session: Session, tmp_path: Path) -> None:
    data, link = tmp_path / "data", tmp_path / "link"
    data.mkdir()
    (data / "set.csv").write_text("1,2")
    link.symlink_to(data)
    code = f"print(open({str(link / 'set.csv')!r}).read(), open({str(data / 'set.csv')!r}).read())"
    assert (await run(session, code, read=(str(link),))).stdout == "1,2 1,2\n"
    answers = await attempts(session, f"open({str(data / 'new')!r}, 'w')", read=(str(data),))
    assert answers != [True]


async def test_a_whole_home_is_never_shown(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / "data").mkdir(parents=True)
    other = tmp_path / "elsewhere"
    (other / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    for path in ("/", str(home), str(other)):
        result = await run(session, "pass", read=(path,))
        assert result.status == "infra_error"
        assert f"all of {path}" in result.infra
    assert (await run(session, "pass", read=(str(home / "data"),))).status == "ok"


async def test_ordinary_work_is_possible(session: Session) -> None:
    code = (
        "import asyncio, os, shutil, sqlite3, subprocess, tempfile, threading, faulthandler\n"
        "open('a', 'w').write('text')\n"
        "shutil.copy2('a', 'b'); shutil.copytree('.home', 'tree'); shutil.move('b', tempfile.mkdtemp())\n"
        "os.symlink('a', 'l'); os.link('a', 'h'); os.mkfifo('f'); os.makedirs('d/e')\n"
        "os.rename('h', 'd/e/h')\n"
        "base = sqlite3.connect('base'); base.execute('create table t (a)'); base.commit()\n"
        "print(subprocess.run(['sh', '-c', 'echo $0 | tr a-z A-Z', 'shell'], capture_output=True).stdout)\n"
        "async def main():\n"
        "    process = await asyncio.create_subprocess_exec('echo', 'child', stdout=-1)\n"
        "    return (await process.communicate())[0]\n"
        "print(asyncio.run(main()))\n"
        "faulthandler.dump_traceback_later(1000); faulthandler.cancel_dump_traceback_later()\n"
        "print(open('/proc/self/comm').read().strip() != '', os.cpu_count() > 0, len(os.urandom(4)))\n"
        "open('/dev/null', 'w').write('x')\n"
    )
    result = await run(session, code)
    assert (result.status, result.stderr) == ("ok", "")
    assert result.stdout == "b'SHELL\\n'\nb'child\\n'\nTrue True 4\n"


@pytest.mark.soak
async def test_libraries_work(session: Session) -> None:
    code = (
        "import numpy as np, torch, matplotlib.pyplot as plt\n"
        "from sklearn.datasets import load_digits\nfrom sklearn.ensemble import RandomForestClassifier\n"
        "x, y = load_digits(return_X_y=True)\n"
        "print(RandomForestClassifier(10, n_jobs=2).fit(x, y).score(x, y) > 0.9)\n"
        "layer = torch.nn.Linear(4, 4); layer(torch.randn(8, 4)).sum().backward()\n"
        "torch.save(layer.state_dict(), 'm.pt'); torch.load('m.pt')\n"
        "plt.plot([1, 2]); plt.savefig('a.png'); np.save('a.npy', np.arange(3))\n"
    )
    result = await run(session, code, limits={"wall_s": 300.0})
    assert (result.status, result.stdout) == ("ok", "True\n"), result.stderr


async def test_numbers_and_plots(session: Session) -> None:
    code = (
        "import numpy as np, matplotlib.pyplot as plt\nx = np.random.rand(300, 300)\nprint((x @ x).shape)\n"
        "plt.plot([1, 2]); plt.savefig('a.png')\n"
    )
    result = await run(session, code, collect=("*.png",))
    assert (result.status, result.stdout, len(result.files)) == ("ok", "(300, 300)\n", 1), result.stderr


@only_bwrap
async def test_workers_of_a_program_share_memory(session: Session) -> None:
    code = (
        "import multiprocessing as m\nfrom multiprocessing.shared_memory import SharedMemory\n"
        "if __name__ == '__main__':\n"
        "    with m.Pool(2) as pool: print(pool.map(abs, [-1, 2]))\n"
        "    shared = SharedMemory(create=True, size=64); shared.close(); shared.unlink()\n"
    )
    result = await run(session, code)
    assert (result.status, result.stdout) == ("ok", "[1, 2]\n"), result.stderr


@only_bwrap
async def test_where_a_program_believes_to_be(session: Session, tmp_path: Path) -> None:
    code = "import os\nprint(os.getcwd(), os.environ.get('PWD'), os.getpid(), os.uname().nodename != '')"
    result = await run(session, code, cwd="deep/er")
    assert result.stdout == f"{tmp_path}/workspace/deep/er None 2 True\n"


@only_landlock
async def test_capabilities_are_gone(session: Session) -> None:
    code = "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('CapEff')])"
    assert (await run(session, code)).stdout == "['0000000000000000']\n"


# ------------------------------------------------------------------------------ options of bwrap


def options(place: Place) -> list[str]:
    return bwrap._options(place)


def test_what_lies_deeper_is_mounted_later(tmp_path: Path) -> None:
    (tmp_path / "w" / "fixed").mkdir(parents=True)
    words = options(Place(str(tmp_path / "w"), (str(tmp_path), str(tmp_path / "w" / "fixed")), Limits()))
    at = {words[index + 2]: index for index, word in enumerate(words) if word in ("--ro-bind", "--bind")}
    scratch = words.index("/tmp") if str(tmp_path).startswith("/tmp/") else 0
    assert scratch < at[str(tmp_path)] < at[str(tmp_path / "w")] < at[str(tmp_path / "w" / "fixed")]
    assert words[at[str(tmp_path / "w")]] == "--bind"
    assert words[-4:] == ["--remount-ro", "/dev", "--remount-ro", "/"]


def test_what_is_seen_already_is_not_mounted_again(tmp_path: Path) -> None:
    words = options(Place(str(tmp_path), ("/usr/share", "/usr/lib"), Limits()))
    assert words.count("/usr") == 2 and "/usr/share" not in words and "/usr/lib" not in words


@pytest.mark.parametrize("ids", [("GPU-two",), ("1",)])
def test_only_the_leased_card_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids: Any) -> None:
    for bus, minor, uuid in (("0000:01:00.0", 0, "GPU-one"), ("0000:02:00.0", 3, "GPU-two")):
        (tmp_path / bus).mkdir()
        text = f"Model: \t\t Some\nGPU UUID: \t {uuid}\nDevice Minor: \t {minor}\n"
        (tmp_path / bus / "information").write_text(text)
    monkeypatch.setattr(os.path, "exists", lambda path: True)
    assert view.gpu_devices(ids, tmp_path) == [
        *("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset"),
        "/dev/nvidia3",
    ]
    assert view.gpu_devices((), tmp_path) == []


# -------------------------------------------------------------------------------- other accounts

AS_OTHER = """
import asyncio, json, sys
from corerun.interfaces import ExecRequest, Limits, Policy
import corerun_sandboxes
async def main(name, workspace):
    sandbox = getattr(corerun_sandboxes, name)()
    probe = sandbox.probe()
    session = await sandbox.open(Policy(), workspace)
    code = (
        "import os, threading\\nprint(os.getuid())\\nend = threading.Event()\\n"
        "for n in range(60):\\n"
        "    try: threading.Thread(target=end.wait).start()\\n"
        "    except RuntimeError: break\\n"
        "print(n)\\nend.set()\\n"
    )
    request = ExecRequest(code=code, limits=Limits(wall_s=60, pids=20))
    result = await session.run(request)
    print(json.dumps([sorted(probe.guarantees), probe.reason, result.to_json()]))
asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def public_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.mark.parametrize("name", ["BwrapSandbox", "LandlockSandbox"])
def test_an_ordinary_account(public_folder: Path, name: str) -> None:
    working(name.removesuffix("Sandbox").lower())
    with ordinary_account(public_folder) as account:
        words = account.command(sys.executable, "-c", AS_OTHER, name, str(account.home / "workspace"))
        done = subprocess.run(words, capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 0, done.stderr
    guarantees, reason, facts = json.loads(done.stdout)
    assert CONTAINED | {"file_size"} <= set(guarantees), reason
    result = ExecResult.from_json(facts)
    assert (result.status, result.stdout.splitlines()[0]) == ("ok", str(account.uid)), result
    if name == "BwrapSandbox":
        # The program's first thread is one of the 20.
        assert "pids" in guarantees
        assert result.stdout.splitlines()[1] == "19"


# ------------------------------------------------------------------------------------- the rest


def test_the_package_is_light_and_gives_its_classes() -> None:
    code = (
        "import sys, corerun_sandboxes\n"
        "assert len(corerun_sandboxes.corerun_sandboxes()) == 3\n"
        "assert not [m for m in sys.modules if m.startswith('corerun_sandboxes.')], sys.modules\n"
        "names = ('BwrapSandbox', 'LandlockSandbox', 'DockerSandbox')\n"
        "print([getattr(corerun_sandboxes, name).name for name in names])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['bwrap', 'landlock', 'docker']\n"


def test_rules_of_landlock_are_refused_loudly() -> None:
    with pytest.raises(OSError, match="landlock"):
        kernel.allow_path(0, "/", 1)


def test_a_file_takes_no_rights_of_folders(tmp_path: Path) -> None:
    working("landlock")
    ruleset = landlock_abi.new_ruleset(network=False)
    try:
        (tmp_path / "file").touch()
        landlock_abi.allow(ruleset, str(tmp_path / "file"), landlock_abi.READ | landlock_abi.WRITE)
        landlock_abi.allow(ruleset, str(tmp_path / "absent"), landlock_abi.READ)
        assert stat.S_ISREG((tmp_path / "file").stat().st_mode)
    finally:
        os.close(ruleset)


def test_no_path_is_taken_that_is_not_whole() -> None:
    assert view.readable(("relative", "/no/such/path")) == []
    with pytest.raises(InfrastructureError, match="keys may lie"):
        view.readable(("/",))
