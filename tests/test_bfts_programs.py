"""Programs that do everything wrong: each costs its node, never the run, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from corerun.interfaces import Node
from corerun.testing.fake import FakeProvider
from corerun_bfts.record import RunRecord
from corerun_bfts.sdk import load_run, run_job
from tests.support.killing import IDEA, processes_of
from tests.support.researcher import Question, Researcher, experiment, fenced

SAVE = experiment(0.5, ["synth_a"])
BEGIN = "import os, sys\nos.makedirs('working', exist_ok=True)\n"
SLEEPER = """
import subprocess, sys
args = [sys.executable, '-c', 'import time; time.sleep(900)', os.getcwd()]
"""
NOTE_PID = "import os\nwith open('LOADERS', 'a') as file: file.write(str(os.getpid()) + ' ')"


def bomb(code: str) -> str:
    """A program whose data run ``code`` when they are loaded."""
    return f"""
import os
import numpy as np

class Bomb:
    def __reduce__(self):
        return (exec, ({code!r},))

os.makedirs('working', exist_ok=True)
np.save('working/experiment_data.npy', np.array(Bomb(), dtype=object), allow_pickle=True)
"""


def forged(reading: str) -> str:
    """A program whose data write what the reader should have written."""
    return bomb(f"import os\nopen('reading.json', 'w').write({reading!r})\nos.sync()\nos._exit(0)")


def validation(value: str) -> str:
    """A program that saves one validation value, given as source."""
    return SAVE.replace('"metrics": {"train": curve, "val": curve}', f'"metrics": {{"val": [{value}]}}')


CASES: Mapping[str, tuple[str, str]] = {
    "loops": ("while True:\n    pass\n", "TimeoutError"),
    "ignores every signal": (
        """
import os, signal
for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(one, signal.SIG_IGN)
"""
        + SLEEPER
        + "subprocess.Popen(args, start_new_session=True)\nwhile True:\n    pass\n",
        "TimeoutError",
    ),
    "leaves grandchildren": (
        SAVE
        + SLEEPER
        + "args[2] = f'import subprocess; subprocess.Popen({args!r}, start_new_session=True)'\n"
        + "subprocess.run(args)\n",
        "good",
    ),
    "forks sixty": (
        SAVE + "import time\nfor _ in range(60):\n    if os.fork() == 0:\n        time.sleep(900)\n",
        "good",
    ),
    "a grandchild holds its output": (SAVE + SLEEPER + "subprocess.Popen(args)\n", "good"),
    "prints 200 MB": (
        "import sys\nfor _ in range(200):\n    sys.stdout.write('x' * 999_999 + '\\n')\n" + SAVE,
        "good",
    ),
    "eats memory": ("held = []\nwhile True:\n    held.append(b'x' * 10_000_000)\n", "Memory"),
    "huge array": ("import numpy as np\nnp.ones(500_000_000)\n", "Memory"),
    "huge file": (
        BEGIN + "with open('working/experiment_data.npy', 'wb') as file:\n    file.truncate(60_000_000)\n",
        "FAILS",
    ),
    "NaN": (validation("float('nan')"), "not finite"),
    "infinity": (validation("float('-inf')"), "not finite"),
    "a number as text": (validation("'high'"), "no valid metric"),
    "no data": ("print('validation_error 0.01')\n", "no data"),
    "data of another form": (
        BEGIN + "import numpy as np\nnp.save('working/experiment_data.npy', np.arange(5.0))\n",
        "no valid metric",
    ),
    "no numpy file": (
        BEGIN + "with open('working/experiment_data.npy', 'w') as file:\n    file.write('0.5')\n",
        "not finite",
    ),
    "pickle bomb": (bomb(NOTE_PID), "FAILS"),
    "forged reading": (forged('{"sets": {"a": 5}, "structure": [], "finite": 1}'), "FAILS"),
    "forged reading with text": (
        forged('{"sets": {"a": {"metrics.val": ["x"]}}, "structure": {}, "finite": true}'),
        "FAILS",
    ),
    "forged reading with NaN": (
        forged('{"sets": {"a": {"metrics.val": [NaN, 1e999]}}, "structure": NaN, "finite": true}'),
        "FAILS",
    ),
    "forged reading without end": (forged("[" * 100_000), "FAILS"),
    "leaves with 3": ("import sys\nsys.exit(3)\n", r"Exit\(3\)|SystemExit"),
    "leaves with words": ("import sys\nsys.exit('no\\nreason')\n", "Exit"),
    "leaves well": (SAVE + "import sys\nsys.exit(0)\n", "good"),
    "segfault": ("import ctypes\nctypes.string_at(0)\n", r"Killed\(11\)"),
    "recursion": ("def again():\n    again()\n\nagain()\n", "RecursionError"),
    "an exception that can't be shown": (
        "class Odd(Exception):\n    def __str__(self):\n        raise ValueError('no words')\n\nraise Odd\n",
        "Odd",
    ),
    "a message without end": ("raise ValueError('\\x1b[31m' + 'long ' * 1_000_000)\n", "ValueError"),
    "deletes its folder": (SAVE + "import shutil\nshutil.rmtree(os.getcwd())\n", "no data"),
    "link as data": (BEGIN + "os.symlink('SECRET', 'working/experiment_data.npy')\n", "no data"),
    "pipe as data": (BEGIN + "os.mkfifo('working/experiment_data.npy')\n", "no data"),
    "links beside its data": (
        SAVE + "os.symlink('SECRET', 'working/secret.png')\nos.link('SECRET', 'working/hard.npy')\n",
        "good",
    ),
    "working is a link": ("import os\nos.symlink('ELSEWHERE', 'working')\n", "no data"),
    "working becomes a link": (
        SAVE + "os.rename('working', 'other')\nos.symlink('ELSEWHERE', 'working')\n",
        "no data",
    ),
    "working becomes a link afterwards": (
        SAVE
        + "if os.fork() == 0:\n    os.setsid()\n    import time\n    while True:\n"
        + "        os.rename('working', 'other'); os.symlink('ELSEWHERE', 'working'); time.sleep(900)\n",
        "no data",
    ),
    "3,000 files": (
        SAVE
        + "for number in range(3000):\n    open(f'working/{number}.txt', 'w').close()\n"
        + "for number in range(30):\n    open(f'working/{number}.png', 'w').close()\n",
        "good",
    ),
    "odd names": (
        SAVE
        + "for name in (b'a\\nb.png', b'\\xff\\xfe.png', b'-rf.png', b'\\x1b[2J.npy'):\n"
        + "    open(b'working/' + name, 'w').close()\n",
        "good",
    ),
    "deep folders": (
        SAVE + "os.chdir('working')\nfor _ in range(300):\n    os.mkdir('d')\n    os.chdir('d')\n",
        "good",
    ),
    "no text": (SAVE + "os.write(1, bytes(range(256)) * 50)\nprint('[red]x[/red] \\x1b[2J')\n", "good"),
    "closes everything": (SAVE + "os.closerange(0, 64)\n", "good"),
    "writes into foreign descriptors": (
        SAVE
        + "for number in range(3, 64):\n    try:\n"
        + '        os.write(number, b\'{"exc_trace": 5, "exc_type": []}\\n\')\n'
        + "    except OSError:\n        pass\nraise ValueError\n",
        "FAILS",
    ),
}
"""Programs by name, each with what its node comes to: ``good``, or a failure whose reason matches.
``FAILS``: for whatever reason."""


@dataclass
class Story:
    """What the run came to."""

    manifest: Mapping[str, Any]
    record: RunRecord
    directory: Path
    places: Mapping[str, str]
    grown_mb: float
    """By how much the largest memory of this process, which owned the run, has grown."""

    def node(self, name: str) -> Node:
        nodes = [node for node in self.record.stages[0].nodes if node.data.get("plan") == name]
        assert len(nodes) == 1, f"{name}: {len(nodes)} nodes"
        return nodes[0]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    root = tmp_path_factory.mktemp("bad")
    elsewhere = root / "elsewhere"
    elsewhere.mkdir()
    for name in ("experiment_data.npy", "secret.png"):
        (elsewhere / name).write_text("a secret of the host")
    places = {
        "SECRET": str(elsewhere / "secret.png"),
        "ELSEWHERE": str(elsewhere),
        "LOADERS": str(root / "loaders"),
    }
    names = [*CASES, "sound"]
    programs = [program for program, _ in CASES.values()] + [SAVE]
    for word, path in places.items():
        programs = [program.replace(word, path) for program in programs]

    def answer(question: Question) -> str | None:
        if question.draft is None:
            return None
        return fenced(names[question.draft], programs[question.draft])

    (root / "ideas.json").write_text(json.dumps([IDEA]))
    settings = {
        "bfts.load_ideas": str(root / "ideas.json"),
        "bfts.idea_idx": 0,
        "out_root": str(root),
        "model": "fake::any",
        "workers": 2,
        "sandbox.name": "local",
        "bfts.agent.stages.order": [1],
        "bfts.agent.stages.stage1_max_iters": len(names),
        "bfts.agent.search.num_drafts": len(names),
        "bfts.agent.search.debug_prob": 0,
        "bfts.agent.multi_seed_eval.num_seeds": 0,
        "bfts.agent.memory_max_chars": 200,
        "bfts.plot_agg_reflections": 0,
        "bfts.generate_report": False,
        "bfts.exec.timeout": 6,
        "bfts.exec.limits.grace_s": 0.3,
        "bfts.exec.limits.mem_mb": 400,
        "bfts.exec.limits.file_mb": 50,
        "bfts.exec.limits.stdout_store_mb": 4,
        "bfts.exec.limits.pids": 200,
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    manifest = asyncio.run(
        run_job(
            settings=settings,
            cwd=root,
            environ={"PATH": os.environ["PATH"], "HOME": str(root)},
            providers={"fake": FakeProvider(Researcher(answer).complete)},
            accept_weak=True,
        )
    )
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    directory = Path(manifest["paths"]["run_dir"])
    return Story(manifest, load_run(directory), directory, places, grown)


@pytest.mark.parametrize("name", CASES)
def test_a_bad_program_costs_its_node_and_no_more(story: Story, name: str) -> None:
    node, expected = story.node(name), CASES[name][1]
    if expected == "good":
        assert (node.status, node.reason) == ("good", "")
    else:
        assert node.status == "failed" and node.reason
        assert expected == "FAILS" or re.search(expected, node.reason), node.reason
    assert node.reason.isprintable() and len(node.reason) <= 500


def test_the_run_ends_well_and_every_node_is_in_its_journal(story: Story) -> None:
    assert story.manifest["status"] == "success", story.manifest["error"]
    assert story.node("sound").status == "good"
    (stage,) = story.manifest["stages"]
    assert stage["nodes"] == len(CASES) + 1
    assert "Traceback" not in json.dumps(story.manifest)


def test_no_process_is_left(story: Story) -> None:
    assert processes_of(story.directory) == []


def test_no_saved_pickle_is_opened_by_the_process_that_owns_the_run(story: Story) -> None:
    loaders = {int(line) for line in Path(story.places["LOADERS"]).read_text().split()}
    assert loaders and os.getpid() not in loaders


def test_nothing_from_outside_comes_in_through_links(story: Story) -> None:
    for path in (story.directory / "logs").rglob("*"):
        assert not path.is_symlink()
        if path.is_file():
            assert b"a secret of the host" not in path.read_bytes(), path


def test_links_leave_what_they_point_to_alone(story: Story) -> None:
    for name in ("experiment_data.npy", "secret.png"):
        assert Path(story.places["ELSEWHERE"], name).read_text() == "a secret of the host"


def test_output_is_cut_for_prompts_and_memory_stays_small(story: Story) -> None:
    output = story.node("prints 200 MB").data["output"]
    assert len(output) < 5200 and "characters cut" in output
    assert story.grown_mb < 150


def test_output_in_the_journal_is_printable_data(story: Story) -> None:
    document = (story.directory / "events.jsonl").read_text("ascii")
    for line in document.splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_no_workspace_is_left(story: Story) -> None:
    assert [path.name for path in (story.directory / "nodes").iterdir() if path.name[0] != "."] == []
