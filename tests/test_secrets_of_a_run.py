"""Secrets are planted wherever one can get in, and looked for in every byte that a run leaves or shows."""

from __future__ import annotations

import base64
import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from corerun.redaction import HIDDEN
from corerun.testing.plugins import write_plugin
from tests.support.killing import FAST, IDEA, Ended, Experiment, check_journal, paid, tree_of
from tests.support.openai_server import OpenAIServer, Reply, fault, serve_in_thread
from tests.support.researcher import Researcher

ENVIRONMENT = {
    "OPENAI_API_KEY": "canary-openai-01",
    "ANTHROPIC_API_KEY": "canary-anthropic-02",
    "OAIC_GROQ_API_KEY": "canary-groq-03",
    "HF_TOKEN": "canary-hub-04",
    "AWS_SECRET_ACCESS_KEY": "canary/aws+secret/05==",
    "GITHUB_PAT": "canary-github-06",
    "DB_PASSWORD": 'canary"quoted\\07',
    "STORE_CREDENTIAL": "canary-ümlaut-08",
}
PROXY, LOGIN, OTHER_LOGIN = "canary-proxy-09", "canary-login-10", "canary-login-11"
WRITTEN, TYPED = "canary-written-12", "canary-typed-13"


def made_up(prefix: str, number: int) -> str:
    """A key that nobody but its shape gives away."""
    return f"{prefix}{number}a1B2c3D4e5F6g7H8i9J0k1L2m3"


IN_TEXT = made_up("sk-proj-", 14)
IN_CODE = made_up("gh" + "p_", 15)
IN_ARGUMENTS = made_up("gs" + "k_", 16)
IN_REASONING = made_up("h" + "f_", 17)
PRINTED = made_up("sk-ant-", 18)
RAISED = made_up("xai-", 19)
BEARER = made_up("", 20)
CANARIES = (
    *(*ENVIRONMENT.values(), PROXY, LOGIN, OTHER_LOGIN, WRITTEN, TYPED),
    *(IN_TEXT, IN_CODE, IN_ARGUMENTS, IN_REASONING, PRINTED, RAISED, BEARER),
)

SMALL = FAST | {
    "bfts.agent.stages.order": [1, 2],
    "bfts.agent.stages.stage1_max_iters": 2,
    "bfts.agent.stages.stage2_max_iters": 2,
    "bfts.keep_workspaces": True,
}
# A program that puts a key together only when it runs, and prints it to both streams.
PRINTS = f"import sys\nprint('sk-' + {PRINTED[3:]!r})\nprint('sk-' + {PRINTED[3:]!r}, file=sys.stderr)\n"


def forms(canary: str) -> set[bytes]:
    """How a secret may be written in a file."""
    body = canary.encode()
    return {
        body,
        quote(canary, safe="").encode(),
        json.dumps(canary)[1:-1].encode(),
        json.dumps(canary, ensure_ascii=False)[1:-1].encode(),
        base64.b64encode(body).rstrip(b"="),
        base64.b64encode(b"key:" + body)[6:-4],
    }


def leaks(*places: Path, **texts: str) -> list[str]:
    """Where secrets stand, in files and texts."""
    bodies = {name: text.encode() for name, text in texts.items()}
    for place in places:
        files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
        bodies |= {str(path): path.read_bytes() for path in files}
    wanted = {form: canary for canary in CANARIES for form in forms(canary)}
    return [f"{wanted[form]} in {name}" for name, body in bodies.items() for form in wanted if form in body]


class Leaky:
    """Answers as a researcher does, with secrets in everything it says; ``respond`` is for the server."""

    def __init__(self) -> None:
        self._inner = Researcher(faulty=0.2)

    def respond(self, body: dict[str, Any]) -> Any:
        reply = self._inner.respond(body)
        assert isinstance(reply, Reply)
        known = f"{ENVIRONMENT['AWS_SECRET_ACCESS_KEY']} {ENVIRONMENT['DB_PASSWORD']}"
        if reply.calls:
            ((name, arguments),) = reply.calls
            said = {key: self._spoil(value) for key, value in arguments.items()}
            return replace(reply, calls=((name, said),), message={"reasoning_content": IN_REASONING})
        text = str(reply.content).replace(
            "```python\n", f"The key is {IN_TEXT}, {known}.\n```python\n# {IN_CODE}\n{PRINTS}", 1
        )
        return replace(reply, content=text, message={"reasoning_content": f"I know {IN_REASONING}"})

    def _spoil(self, value: Any) -> Any:
        free = isinstance(value, str) and " " in value
        return f"{value} (Bearer {BEARER}, {IN_ARGUMENTS})" if free else value


@dataclass
class World:
    """A folder with planted inputs, a server, and the run that gets both."""

    experiment: Experiment
    server: OpenAIServer
    caps: Path

    def leaks(self, **texts: str) -> list[str]:
        return leaks(self.experiment.root / "experiments", self.caps.parent, **texts)

    def requests(self) -> set[str]:
        place = str(self.experiment.directory)
        return {json.dumps(body, sort_keys=True).replace(place, "RUN") for body in self.server.bodies}


@contextmanager
def world(root: Path, answer: Any, settings: Mapping[str, Any] = SMALL, **environ: str) -> Iterator[World]:
    """Keys in the environment, a configuration file, options, addresses and the idea."""
    with serve_in_thread(answer) as server:
        address = f"127.0.0.1:{server.port}/v1"
        home = root / "home"
        config = home / ".config" / "corerun" / "config.yaml"
        config.parent.mkdir(parents=True)
        models = {"main": {"base_url": f"http://me:{LOGIN}@{address}", "api_key": WRITTEN}}
        config.write_text(json.dumps({"models": models}))
        variables = {
            **ENVIRONMENT,
            "OPENAI_BASE_URL": f"http://you:{quote(OTHER_LOGIN)}@{address}",
            "HTTPS_PROXY": f"http://me:{PROXY}@127.0.0.1:9",
            "HOME": str(home),
            "CORERUN_CAPS_PATH": str(root / "caps" / "caps.sqlite"),
            **environ,
        }
        chosen = {
            "model": "main",
            "models.typed.api_key": TYPED,
            "models.typed.model": "typed-model",
            "models.typed.base_url": f"http://{address}",
            "bfts.agent.feedback.model": "typed",
        }
        arguments = ("--sandbox", "local", "--i-accept-no-isolation", "--workers", "1", "-o", "in_flight=1")
        experiment = Experiment(root, variables, dict(settings) | chosen, arguments)
        idea = IDEA | {"Abstract": f"Predict a constant. My token is {ENVIRONMENT['HF_TOKEN']}."}
        experiment.ideas.write_text(json.dumps([idea]))
        (root / "caps").mkdir()
        yield World(experiment, server, root / "caps" / "caps.sqlite")


def command(made: World, *more: str, debug: bool = False) -> subprocess.CompletedProcess[str]:
    """The run as one process; ``--debug`` is an option of the program, not of the verb."""
    typed = made.experiment.command(*more)
    if debug:
        typed.insert(typed.index("corerun") + 1, "--debug")
    environ = {"PATH": "/usr/bin:/bin", **made.experiment.environ}
    return subprocess.run(
        typed, env=environ, cwd=made.experiment.root, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def core(made: World, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Another command in the same world."""
    typed = [sys.executable, "-P", "-m", "corerun", *arguments]
    environ = {"PATH": "/usr/bin:/bin", **made.experiment.environ}
    return subprocess.run(typed, env=environ, cwd=made.experiment.root, capture_output=True, text=True)


# -------------------------------------------------------------------------------------- success


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Ended]]:
    """A run of which everything goes well, although its model tells secrets in every answer."""
    with world(tmp_path_factory.mktemp("whole"), Leaky().respond) as made:
        yield made, made.experiment.start()


def test_the_canaries_were_let_loose(whole: tuple[World, Ended]) -> None:
    made, _ = whole
    keys = {request.headers.get("authorization") for request in made.server.requests}
    assert keys == {f"Bearer {WRITTEN}", f"Bearer {TYPED}"}
    assert {body["model"] for body in made.server.bodies} == {"main", "typed-model"}


def test_a_run_that_goes_well_leaves_no_secret(whole: tuple[World, Ended]) -> None:
    made, ended = whole
    assert ended.code == 0, ended.stderr[-3000:]
    assert ended.manifest["status"] == "success"
    check_journal(made.experiment.events())
    assert made.leaks(stdout=ended.stdout, stderr=ended.stderr) == []


def test_what_was_hidden_is_said_to_be(whole: tuple[World, Ended]) -> None:
    made, ended = whole
    assert f'-o models.typed.api_key="{HIDDEN}"' in " ".join(ended.manifest["argv"])
    events = made.experiment.events()
    settings = events[0]["data"]["settings"]["models"]
    assert settings["main"]["api_key"] == settings["typed"]["api_key"] == HIDDEN
    idea = json.loads((made.experiment.directory / "idea.json").read_text())
    assert idea["Abstract"].endswith(f"My token is {HIDDEN}.")
    printed = [event["data"] for event in events if event["type"] == "execution_done"]
    assert any(HIDDEN in str(data["stdout"]) for data in printed)
    assert all(body["messages"][1]["content"] for body in made.server.bodies)
    assert leaks(requests=json.dumps(made.server.bodies)) == []


def test_whoever_looks_at_the_run_sees_no_secret(whole: tuple[World, Ended]) -> None:
    made, _ = whole
    run, page = str(made.experiment.directory), made.experiment.root / "page.html"
    for arguments in (
        ["report", run, "-f", str(page)],
        ["runs", "show", run, "--json"],
        ["runs", "rebuild", run],
        ["config", "show", "bfts", "-o", f"models.typed.api_key={TYPED}", "-o", "models.typed.model=x"],
        ["config", "show", "bfts", "--origin", "-o", f"models.typed.api_key={TYPED}"],
    ):
        done = core(made, *arguments)
        assert done.returncode == 0, done.stderr
        shown = {"stdout": done.stdout, "stderr": done.stderr, "page": page.read_text()}
        assert made.leaks(**shown) == [], arguments


def test_a_killed_run_goes_on_with_the_same_questions_and_pays_nothing_twice(
    tmp_path: Path, whole: tuple[World, Ended]
) -> None:
    with world(tmp_path, Leaky().respond) as made:
        for go, records in ((made.experiment.start, 30), (made.experiment.resume, 25)):
            killed = go(stop_after=records)
            assert killed.code == -signal.SIGKILL
            assert made.leaks(stdout=killed.stdout, stderr=killed.stderr) == []
        ended = made.experiment.resume()
        assert ended.code == 0, ended.stderr[-3000:]
        assert made.leaks(stdout=ended.stdout, stderr=ended.stderr) == []
        check_journal(made.experiment.events())
        assert made.requests() == whole[0].requests()
        assert tree_of(made.experiment.events()) == tree_of(whole[0].experiment.events())
        answered, lost = paid(made.experiment.events())
        assert answered <= made.server.calls <= answered + lost
        assert len(ended.manifest["possibly_double_paid"]) == lost <= 2


# -------------------------------------------------------------------------------------- failure


@pytest.mark.parametrize("debug", [False, True])
def test_a_server_that_repeats_the_key_in_its_refusal_gets_it_nowhere(tmp_path: Path, debug: bool) -> None:
    def refuse(body: dict[str, Any]) -> Any:
        key = made.server.requests[-1].headers["authorization"]
        message = f"Incorrect API key provided: {key}. At {made.server.base_url}?key={WRITTEN}"
        return fault(401, {"error": {"message": message, "code": "invalid_api_key"}}, {"x-key": key})

    with world(tmp_path, refuse) as made:
        done = command(made, debug=debug)
        assert done.returncode == 2, done.stderr
        assert "AuthFailed" in done.stderr and HIDDEN in done.stdout
        assert made.leaks(stdout=done.stdout, stderr=done.stderr) == []


def test_faults_on_the_way_tell_no_secret(tmp_path: Path) -> None:
    turns = itertools.count()
    sound = Leaky()
    refused: list[int] = []

    def answer(body: dict[str, Any]) -> Any:
        echo = json.dumps(dict(made.server.requests[-1].headers) | {"known": CANARIES})
        number = next(turns)
        if number % 3 == 0:
            return fault(503, echo, {"retry-after": "0"})
        # A review is what a node can do without, so that the run has its end whichever node comes first.
        if not refused and '"submit_review"' in json.dumps(body):
            refused.append(number)
            return fault(400, {"error": {"message": f"seed is not supported, {echo}"}})
        return sound.respond(body)

    with world(tmp_path, answer, SMALL | {"bfts.agent.stages.order": [1]}) as made:
        done = command(made, debug=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert refused
        assert made.leaks(stdout=done.stdout, stderr=done.stderr) == []


LEAKY_PROVIDER = """
from corerun import hookimpl
from corerun.interfaces import Component, ProviderInfo

@hookimpl
def corerun_providers():
    return [Component("leaky", __name__ + ":Provider")]

class Provider:
    def __init__(self, connection):
        self.info = ProviderInfo("leaky", needs_key=False, is_local=True)

    async def complete(self, request, ctx):
        raise RuntimeError("Authorization: Bearer {bearer}, key {raised}, {known}")
"""


@pytest.mark.parametrize("debug", [False, True])
def test_a_third_partys_provider_that_fails_tells_no_secret(tmp_path: Path, debug: bool) -> None:
    source = LEAKY_PROVIDER.format(bearer=BEARER, raised=RAISED, known=ENVIRONMENT["HF_TOKEN"])
    write_plugin(tmp_path / "plugins", "leaky", source)
    settings = SMALL | {"bfts.agent.stages.order": [1]}
    with world(tmp_path, Leaky().respond, settings, PYTHONPATH=str(tmp_path / "plugins")) as made:
        done = command(made, "-o", "model=leaky::x", debug=debug)
        assert "RuntimeError" in done.stdout
        assert HIDDEN in done.stdout
        assert made.leaks(stdout=done.stdout, stderr=done.stderr) == []


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (["-o", f"models.typed.api_kee={TYPED}"], 2),
        (["-o", f"api_key={TYPED}"], 2),
        ([f"--api_key={TYPED}"], 2),
        (["-o", f"model=unknown::{ENVIRONMENT['HF_TOKEN']}"], 2),
        (["--out_root", f"/proc/{ENVIRONMENT['HF_TOKEN']}"], 3),
        (["--dry-run"], 0),
    ],
)
def test_a_run_that_never_starts_repeats_no_secret(tmp_path: Path, more: list[str], code: int) -> None:
    with world(tmp_path, Leaky().respond) as made:
        done = command(made, *more, debug=True)
        assert done.returncode == code, done.stderr
        assert leaks(stdout=done.stdout, stderr=done.stderr) == []
