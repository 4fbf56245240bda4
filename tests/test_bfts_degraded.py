"""The experiment search on servers that take only parts of the protocol, and what their runs say of it."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.experimenter import Experimenter, all_parts, asked_for
from tests.support.fault_server import Vendor, images
from tests.support.killing import FAST, Ended, Experiment, check_journal
from tests.support.openai_server import Fault, OpenAIServer, Reply, fault, serve_in_thread, tool

ROOT = Path(__file__).parent.parent
KEY = "sk-nobody-may-ever-see-this-0123456789"
BRIEF = FAST | {
    "bfts.agent.stages.order": [1],
    "bfts.agent.stages.stage1_max_iters": 2,
    "bfts.agent.search.num_drafts": 1,
    "bfts.agent.multi_seed_eval.num_seeds": 0,
    "bfts.generate_report": False,
    "bfts.plot_agg_reflections": 0,
}
"""Two nodes of one stage: every question of a node is asked."""

Answer = Callable[[dict[str, Any]], Any]


@dataclass
class Story:
    """A run and what its server saw of it."""

    experiment: Experiment
    ended: Ended
    bodies: list[dict[str, Any]]
    usage: Mapping[str, Mapping[str, int]]

    @property
    def directory(self) -> Path:
        return self.experiment.directory

    @property
    def manifest(self) -> dict[str, Any]:
        return self.ended.manifest

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event["data"] for event in self.experiment.events() if event["type"] == kind]

    def succeeded(self) -> bool:
        """The run came to its end, every node's program worked, and nothing blew up."""
        assert self.ended.code == 0, self.ended.stderr[-3000:]
        assert "Traceback" not in self.ended.stderr
        check_journal(self.experiment.events())
        assert {node["status"] for node in self.of("node_done")} == {"good"}
        return self.manifest["status"] == "success"

    def has_no_key(self) -> bool:
        files = [path for path in self.directory.rglob("*") if path.is_file()]
        assert len(files) > 5
        return not any(KEY.encode() in path.read_bytes() for path in files)


def tell(
    root: Path,
    server: OpenAIServer,
    *more: str,
    models: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    **environ: str,
) -> Story:
    """A run against ``server``, whose requests and counts before it don't belong to it."""
    chosen = BRIEF | dict(settings or {})
    root.mkdir(parents=True, exist_ok=True)
    if models is not None:
        file = root / "models.yaml"
        file.write_text(yaml.safe_dump({"models": models}))
        chosen["models_file"] = str(file)
    before, counted = len(server.bodies), json.loads(json.dumps(server.usage))
    run = Experiment(root, {**server.environ(KEY), **environ}, chosen)
    ended = run.start(*more)
    usage = {
        model: {name: number - counted.get(model, {}).get(name, 0) for name, number in counts.items()}
        for model, counts in server.usage.items()
    }
    return Story(run, ended, server.bodies[before:], usage)


def error(message: str, status: int = 400, **fields: Any) -> Fault:
    """A refusal in OpenAI's form."""
    named = {"type": "invalid_request_error", "param": None, "code": None, **fields}
    return fault(status, {"error": {"message": message, **named}})


# ----------------------------------------------------------------------------- switched off by hand


@pytest.fixture(scope="module")
def switched_off(tmp_path_factory: pytest.TempPathFactory) -> Story:
    with serve_in_thread(Experimenter()) as server:
        switches = dict.fromkeys(("OAIC_DISABLE_TOOLS", "OAIC_DISABLE_VISION", "OAIC_DEBUG"), "1")
        return tell(tmp_path_factory.mktemp("off"), server, **switches)


def test_000_45_without_tools_and_images_answers_are_still_structured(switched_off: Story) -> None:
    assert switched_off.succeeded()
    for body in switched_off.bodies:
        assert body.keys().isdisjoint({"tools", "functions", "tool_choice", "function_call"})
        assert images(body) == 0
    structured = [body for body in switched_off.bodies if asked_for(body)[1] is not None]
    assert len(structured) >= 4
    calls = switched_off.of("call_answered")
    assert len(calls) == len(switched_off.bodies), "no answer was asked for again"
    assert {call["requests"] for call in calls if "requests" in call} <= {1}


def test_000_45_the_run_says_that_nobody_looked_at_the_plots(switched_off: Story) -> None:
    assert any("vision" in warning for warning in switched_off.manifest["warnings"])
    dropped = {row["feature"]: row["reason"] for row in switched_off.manifest["degradations"]}
    assert dropped["tools"] == "OAIC_DISABLE_TOOLS is set"
    assert dropped["vision"] == "its model takes no images"
    good = switched_off.of("node_done")
    assert {node["data"]["vision"] for node in good} == {"off"}


def test_000_45_the_log_holds_what_was_learned_and_no_key(switched_off: Story) -> None:
    log = (switched_off.directory / "run.log").read_text()
    assert "gpt-4o-mini: learned channel.json_object: yes" in log
    assert switched_off.has_no_key()


# ------------------------------------------------------------------------------- refused one by one

STINGY = Vendor(
    {
        "seed": error("property 'seed' is unsupported, did you mean 'stop'?"),
        "reasoning_effort": fault(
            400,
            {
                "code": "Client specified an invalid argument",
                "error": "Model test-model does not support parameter reasoningEffort.",
            },
        ),
        "max_tokens": error(
            "Unsupported parameter: 'max_tokens' is not supported with this model. "
            "Use 'max_completion_tokens' instead.",
            param="max_tokens",
            code="unsupported_parameter",
        ),
        "max_completion_tokens": fault(
            422,
            {
                "detail": [
                    {
                        "type": "extra_forbidden",
                        "loc": ["body", "max_completion_tokens"],
                        "msg": "Extra inputs are not permitted",
                    }
                ]
            },
        ),
        "tools": error("registry.ollama.ai/library/test-model does not support tools", type="api_error"),
        "functions": error("Unrecognized request argument supplied: functions"),
        "response_format": error("This response_format type is unavailable now"),
        "images": error("test-model is not a multimodal model"),
    }
)
"""Refuses everything that can be given up, each thing in the words of another vendor."""

SAID = {
    "seed": "property 'seed' is unsupported",
    "reasoning_effort": "does not support parameter reasoningEffort",
    "max_tokens": "'max_tokens' is not supported with this model",
    "max_completion_tokens": "Extra inputs are not permitted",
    "tools": "does not support tools",
    "functions": "Unrecognized request argument supplied: functions",
    "response_format": "This response_format type is unavailable now",
    "images": "not a multimodal model",
}
FULL = {"model": "test-model", "reasoning_effort": "low", "max_tokens": 4000, "extra_body": {"seed": 7}}


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> tuple[Story, Story]:
    """Two runs, one after the other, that share what is learned."""
    researcher = Experimenter()
    with serve_in_thread(lambda body: STINGY.judge(body) or researcher(body)) as server:
        first, second = (
            tell(tmp_path_factory.mktemp(name), server, "--model", "full", models={"full": FULL})
            for name in ("cold", "warm")
        )
    return first, second


def test_a_run_gets_by_without_everything_that_can_be_given_up(refused: tuple[Story, Story]) -> None:
    cold, _ = refused
    assert cold.succeeded()
    told = {row["feature"]: row["reason"] for row in cold.manifest["degradations"]}
    assert {feature: words for feature, words in SAID.items() if words not in told.get(feature, "")} == {}
    assert told["vision"] == "the images were left out on their way to the model"
    assert cold.manifest["reproducible"] is False
    seen = Counter(feature for body in cold.bodies for feature in STINGY.refused(body)[:1])
    # Calls that are under way at once may each hear the same refusal.
    assert set(seen) == set(SAID) and sum(seen.values()) <= 3 * len(SAID)


def test_a_second_run_sends_nothing_that_was_refused(refused: tuple[Story, Story]) -> None:
    _, warm = refused
    assert warm.succeeded()
    assert [STINGY.refused(body) for body in warm.bodies if STINGY.refused(body)] == []
    assert len(warm.bodies) == len(warm.of("call_answered"))
    told = {row["feature"]: row["reason"] for row in warm.manifest["degradations"]}
    assert {feature: words for feature, words in SAID.items() if words not in told.get(feature, "")} == {}


# ------------------------------------------------------------------------------------- Qwen's pair

THINKING = "<400> InternalError.Algo.InvalidParameter: "
FORCED = (
    f"{THINKING}The tool_choice parameter does not support being set to required or object in thinking mode"
)
NO_JSON = f"{THINKING}Json mode response is not supported when enable_thinking is true"
QWEN = {
    "qwen-plus": Vendor(
        {
            feature: error(FORCED, code="invalid_parameter_error")
            for feature in ("tool_choice.object", "tool_choice.required")
        }
    ),
    "qwen3-vl-plus": Vendor(
        {
            "tools": error("qwen3-vl-plus does not support tools"),
            "functions": error("Unknown parameter: 'functions'."),
            "response_format": error(NO_JSON, code="invalid_parameter_error"),
        }
    ),
}


class OddCaller:
    """Calls functions the way weak models do: every answer is right, few of them are in order."""

    def __init__(self) -> None:
        self._researcher = Experimenter()
        self._turns = itertools.count()
        self.odd: Counter[str] = Counter()

    def __call__(self, body: dict[str, Any]) -> Any:
        refusal = QWEN[body["model"]].judge(body)
        if refusal is not None:
            return refusal
        reply = self._researcher(body)
        if not reply.calls:
            return reply
        ((name, arguments),) = reply.calls
        document = json.dumps(arguments)
        odd = {
            "cut": tool(name, document[: len(document) // 2], finish="length"),
            "twice": tool(name, json.dumps(document)),
            "fenced": tool(name, f"```json\n{document}\n```"),
            "wrong keys": tool(name, {f"the_{key}": value for key, value in arguments.items()}),
            "wrapped": tool(name, {"name": name, "arguments": arguments}),
            "in words": Reply(content=f"<think>Should I call it?</think>Sure!\n```json\n{document}\n```"),
            "another name": tool("submit", arguments),
            "in order": reply,
        }
        kinds = list(odd)
        # A question that is asked again is answered well: what is odd is the model, not the question.
        kind = "in order" if self._is_again(body) else kinds[next(self._turns) % len(kinds)]
        self.odd[kind] += 1
        return odd[kind]

    @staticmethod
    def _is_again(body: dict[str, Any]) -> bool:
        return any(message["role"] == "assistant" for message in body["messages"])


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Story, OddCaller]:
    caller = OddCaller()
    with serve_in_thread(caller, models=tuple(QWEN)) as server:
        search_file = ROOT / "examples/configs/qwen.yaml"
        story = tell(
            tmp_path_factory.mktemp("qwen"),
            server,
            *("--bfts_config", str(search_file)),
            settings={"bfts.agent.stages.stage1_max_iters": 3, "bfts.agent.multi_seed_eval.num_seeds": 1},
            OAIC_QWEN_BASE_URL=server.base_url,
            OAIC_QWEN_API_KEY=KEY,
        )
    return story, caller


def test_000_52_odd_answers_of_weak_models_dont_end_a_run(qwen: tuple[Story, OddCaller]) -> None:
    story, caller = qwen
    assert story.succeeded()
    assert caller.odd.keys() >= {"cut", "twice", "fenced", "wrong keys"}


def test_000_52_each_model_is_spoken_to_in_the_way_that_it_takes(qwen: tuple[Story, OddCaller]) -> None:
    story, _ = qwen
    shown = [body for body in story.bodies if images(body)]
    assert shown and {body["model"] for body in shown} == {"qwen3-vl-plus"}
    looked = {node["data"]["vision"] for node in story.of("node_done") if node["data"]["op"] != "seed"}
    assert looked == {"ok"}
    for model, vendor in QWEN.items():
        refusals = [vendor.refused(body) for body in story.bodies if body["model"] == model]
        assert sum(map(bool, refusals)) <= 2 * len(vendor.refuses), model
    told = {(row["model"], row["feature"]): row["reason"] for row in story.manifest["degradations"]}
    assert FORCED in told["qwen::qwen-plus", "tool_choice"]
    assert NO_JSON in told["qwen::qwen3-vl-plus", "response_format"]
    assert story.has_no_key()


# ------------------------------------------------------------------------------------------ bursts


def test_bursts_of_429_and_503_cost_nothing_but_time(tmp_path: Path) -> None:
    turns = itertools.count(1)
    researcher = Experimenter()
    limited = fault(
        429,
        {
            "error": {
                "message": "Rate limit reached. Please try again in 20ms.",
                "code": "rate_limit_exceeded",
            }
        },
        {"retry-after-ms": "20"},
    )
    overloaded = fault(503, {"error": {"message": "The engine is overloaded"}}, {"retry-after": "0"})

    def answer(body: dict[str, Any]) -> Any:
        number = next(turns)
        return limited if 2 <= number <= 4 else overloaded if 8 <= number <= 10 else researcher(body)

    with serve_in_thread(answer) as server:
        story = tell(tmp_path, server)
    assert story.succeeded()
    assert story.manifest["degradations"] == []
    answered = story.of("call_answered")
    assert sum(call["attempts"] for call in answered) == len(story.bodies) == len(answered) + 6
    log = (story.directory / "run.log").read_text()
    assert log.count("HTTP 429") == log.count("HTTP 503") == 3


# --------------------------------------------------------------------------------------- accounts


@pytest.fixture(scope="module")
def accounts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Story, Story]:
    """Two runs that share a cache of answers; their models are aliases, one of which is gone."""
    researcher = Experimenter()
    blind = Vendor({"images": error("this model does not support image input")})

    def answer(body: dict[str, Any]) -> Any:
        if body["model"] == "retired":
            return error("The model `retired` does not exist", 404, code="model_not_found")
        return blind.judge(body) or researcher(body)

    caches = {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}
    with serve_in_thread(answer) as server:
        here = {"base_url": server.base_url, "api_type": "gateway", "api_key": "env:OPENAI_API_KEY"}
        models = {
            "thinker": {**here, "model": "retired", "fallbacks": ["writer"]},
            "writer": {**here, "model": "big", "prices": {"input": 2.0, "output": 8.0}},
            "looker": {**here, "model": "small", "fallbacks": ["writer"]},
        }
        settings = {
            "llm.cache": "write",
            "bfts.agent.code.model": "thinker",
            "bfts.agent.feedback.model": "writer",
            "bfts.agent.vlm_feedback.model": "looker",
        }
        first, second = (
            tell(
                tmp_path_factory.mktemp(name),
                server,
                *("--model", "writer"),
                models=models,
                settings=settings,
                **caches,
            )
            for name in ("paid", "kept")
        )
    return first, second


def tracked(story: Story) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((story.directory / "token_tracker.json").read_text())
    return found


@pytest.mark.parametrize("which", [0, 1], ids=["paid", "kept"])
def test_000_30_token_files_hold_what_the_server_counted(accounts: tuple[Story, Story], which: int) -> None:
    story = accounts[which]
    assert story.succeeded()
    files = tracked(story)
    assert files.keys() == {"big", "small"}
    for model, row in files.items():
        counted = story.usage[model]
        assert row["tokens"]["prompt"] == counted["prompt_tokens"], model
        assert row["tokens"]["completion"] == counted["completion_tokens"], model
        assert not row["estimated_tokens"] and not row["unpriced"]
    tokens = files["big"]["tokens"]
    cost = (2.0 * tokens["prompt"] + 8.0 * tokens["completion"]) / 1e6
    assert files["big"]["cost (USD)"] == pytest.approx(cost)
    answered = story.of("call_answered")
    assert sum(row["calls"] for row in files.values()) == len(answered) == story.manifest["cost"]["calls"]
    told = json.loads((story.directory / "token_tracker_interactions.json").read_text())
    assert {model: len(rows) for model, rows in told.items()} == {
        model: row["calls"] for model, row in files.items()
    }


def test_000_30_fallbacks_degradations_and_kept_answers_were_in_play(
    accounts: tuple[Story, Story],
) -> None:
    paid, kept = accounts
    assert {call["model"] for call in paid.of("call_failed")} == {"thinker"}
    assert any(row["feature"] == "images" for row in paid.manifest["degradations"])
    assert any(all_parts(body)[-1]["type"] == "image_url" for body in paid.bodies)
    assert not any(call.get("cache_hit") for call in paid.of("call_answered"))
    hits = [call for call in kept.of("call_answered") if call.get("cache_hit")]
    assert hits and all(call["cost_usd"] == 0 for call in hits)
