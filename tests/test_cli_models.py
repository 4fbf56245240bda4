"""``corerun models``: what it lists, what a test of a model tells, what was learned, prices."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from corerun.cli import main
from corerun.errors import ConfigError, UsageError
from corerun.llm.price_import import import_prices
from corerun.llm.prices import load_prices, price_of
from corerun.testing.plugins import write_plugin
from tests.support.openai_server import Fault, fault, serve_in_thread

TELLER = '''
from corerun import hookimpl
from corerun.errors import CorerunError
from corerun.interfaces import (
    ChatReply, Component, Degradation, Price, ProbeRow, ProviderInfo, Usage,
)


class Teller:
    """Knows one server that takes no seed."""

    facts = []

    def __init__(self, connection):
        self.info = ProviderInfo("teller", is_local=False, address="https://teller.example")
        self.facts[:] = [
            {"base_url": "https://teller.example", "model": model, "feature": feature, "state": "no",
             "evidence": f"HTTP 400: no {feature}", "last_seen": 0.0, "expires": 604800.0}
            for model, feature in (("m", "seed"), ("m", "tool_choice=required"), ("n", "colour"))
        ]

    async def complete(self, request, ctx):
        dropped = (Degradation("seed", "HTTP 400: no seed"),) if request.seed is not None else ()
        text = '{"word": "ready"}' if request.schema and request.model != "prose" else "ready"
        return ChatReply(text, model="m-2026", usage=Usage(1000, 500), degradations=dropped)

    async def list_models(self):
        return ["n", "m"]

    def price(self, model):
        return Price(2.0, 4.0) if model == "m" else None

    def learned(self, model):
        return [fact for fact in self.facts if model in (None, fact["model"])]

    def forget(self, model):
        return len(self.learned(model))

    async def probe(self, model):
        return [ProbeRow("seed", "refused", 400, "no seed"), ProbeRow("stop", "honoured", 200, "cut")]


@hookimpl
def corerun_providers():
    return [Component("teller", __name__ + ":Teller")]
'''

MAP = {
    "sample_spec": {"input_cost_per_token": "the price of a prompt token", "mode": "one of chat, ..."},
    "gpt-9": {"input_cost_per_token": 1.5e-07, "output_cost_per_token": 6e-07, "max_tokens": 16384},
    "groq/llama": {
        "input_cost_per_token": 1e-06,
        "output_cost_per_token": 2e-06,
        "cache_read_input_token_cost": 5e-07,
        "supports_vision": True,
    },
    "an-image-model": {"output_cost_per_image": 0.04},
    "words": {"input_cost_per_token": "free", "output_cost_per_token": "free"},
    "below-zero": {"input_cost_per_token": -1e-6, "output_cost_per_token": 1e-6},
    "no-number": {"input_cost_per_token": True, "output_cost_per_token": 1e-6},
    "half": {"input_cost_per_token": 1e-6},
    "no-entry": None,
}


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Done]


@pytest.fixture
def corerun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    """The command line in this process, in an empty folder with an empty home."""
    for variable in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_API_BASE", "CORERUN_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("CORERUN_LOAD_PLUGINS", "CORERUN_MODELS_FILE", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CORERUN_CAPS_PATH", str(tmp_path / "cache/caps.sqlite"))
    monkeypatch.setattr("corerun.redaction.remember_environment", lambda environ: None)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    write_plugin(tmp_path / "plugins", "teller", TELLER)
    monkeypatch.syspath_prepend(tmp_path / "plugins")

    def run(*arguments: str) -> Done:
        code = main(["models", *arguments])
        return Done(code, *capsys.readouterr())

    yield run
    sys.modules.pop("corerun_teller", None)


def models_file(text: str, name: str = "m.yaml") -> str:
    Path(name).write_text(text)
    return name


# --------------------------------------------------------------------------------------------- list


def test_aliases_and_providers_are_listed_with_what_is_missing(
    corerun: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OAIC_SILICON_FLOW_BASE_URL", "https://silicon.example/v1")
    file = models_file(
        "models:\n"
        "  fast: {api_type: teller, model: m}\n"
        "  bad: {model: 'p::'}\n"
        "  keyed: {model: 'fake::echo', api_key: 'env:NOT_THERE'}\n"
    )
    listed = corerun("list", "--models-file", file)
    assert listed.code == 0
    assert {row["name"]: row["status"] for row in listed.json["aliases"]} == {
        "fast": "ready",
        "bad": "m.yaml:3: models.bad: bad model string 'p::': "
        "expected <model>, <provider>::<model> or ollama/<model>".replace(
            "m.yaml", str(Path("m.yaml").resolve())
        ),
        "keyed": "models.keyed.api_key is read from the variable NOT_THERE, which isn't set",
    }
    providers = {row["name"]: row for row in listed.json["providers"]}
    assert providers["teller"] | {"variables": []} == {
        "name": "teller",
        "plugin": "teller",
        "address": "https://teller.example",
        "variables": [],
        "status": "ready",
    }
    assert providers["default"]["status"] == "Missing OPENAI_API_KEY for default provider."
    assert "OAIC_SILICON_FLOW_API_KEY" in providers["silicon_flow"]["status"]
    assert {"ollama", "fake", "recipes", "anthropic", "transformers"} <= providers.keys()
    assert "openai_router" not in providers


def test_the_list_is_a_table_for_people(corerun: Command) -> None:
    file = models_file("models: {fast: {api_type: teller, model: m}}\n")
    lines = corerun("list", "--models-file", file, "--format", "text").out.splitlines()
    assert lines[0].split() == ["ALIAS", "PROVIDER", "MODEL", "STATUS"]
    assert lines[1].split() == ["fast", "teller", "m", "ready"]
    assert ["teller", "teller", "https://teller.example", "ready"] in [line.split() for line in lines]


def test_what_a_provider_offers(corerun: Command) -> None:
    assert corerun("list", "teller").json == {"provider": "teller", "models": ["m", "n"]}
    file = models_file("models: {mine: {api_type: teller, model: m, base_url: 'http://h/v1'}}\n")
    assert corerun("list", "mine", "--models-file", file).json["models"] == ["m", "n"]
    assert corerun("list", "teller", "--format", "text").out == "MODEL\nm\nn\n"


def test_every_server_that_is_ready_is_asked(corerun: Command) -> None:
    rows = {row["name"]: row for row in corerun("list", "--remote").json["providers"]}
    assert rows["teller"]["models"] == ["m", "n"]
    assert "models" not in rows["fake"] and "models" not in rows["default"]


def test_no_server_is_asked_offline(corerun: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORERUN_OFFLINE", "1")
    for arguments in (("list", "teller"), ("test", "teller::m")):
        done = corerun(*arguments)
        assert (done.code, "CORERUN_OFFLINE is set" in done.err) == (3, True)


@pytest.mark.parametrize("name", ["fake", "a b"])
def test_a_provider_without_a_list_is_a_usage_error(corerun: Command, name: str) -> None:
    done = corerun("list", name)
    assert (done.code, done.out) == (2, "")


# --------------------------------------------------------------------------------------------- test


def test_a_model_is_asked_twice(corerun: Command) -> None:
    done = corerun("test", "teller::m")
    assert done.code == 0
    assert {key: done.json[key] for key in ("name", "provider", "model", "kind")} == {
        "name": "teller::m",
        "provider": "teller",
        "model": "m",
        "kind": "model",
    }
    text, structured = done.json["calls"]
    assert (text["call"], structured["call"]) == ("text", "structured")
    assert {key: text[key] for key in ("answered_by", "prompt_tokens", "completion_tokens", "cost_usd")} == {
        "answered_by": "m-2026",
        "prompt_tokens": 1000,
        "completion_tokens": 500,
        "cost_usd": 0.004,
    }
    assert (text["price_source"], text["problem"], structured["problem"]) == ("provider", "", "")


def test_an_answer_of_no_use_is_said_and_is_the_exit_code(corerun: Command) -> None:
    done = corerun("test", "teller::prose", "--format", "text")
    assert done.code == 1
    assert "structured: answer: no JSON was found in it" in done.out


def test_the_ladder_is_explained_in_its_order(corerun: Command) -> None:
    done = corerun("test", "teller::m", "--explain")
    rungs = {rung["feature"]: (rung["state"], rung["evidence"]) for rung in done.json["ladder"]}
    assert list(rungs)[:7] == [
        "seed",
        "reasoning_effort",
        "max_tokens",
        "response_format",
        "stop",
        "tools",
        "images",
    ]
    assert rungs["seed"] == ("left out", "HTTP 400: no seed")
    assert rungs["tools"] == ("known", "tool_choice=required no: HTTP 400: no tool_choice=required")
    assert rungs["stop"] == ("not refused", "")
    assert done.json["calls"][2]["degradations"] == [{"feature": "seed", "reason": "HTTP 400: no seed"}]
    assert "left out" in corerun("test", "teller::m", "--explain", "--format", "text").out


def test_what_has_no_place_in_the_ladder_comes_after_it(corerun: Command) -> None:
    rungs = corerun("test", "teller::n", "--explain").json["ladder"]
    assert rungs[7:] == [{"feature": "colour", "state": "known", "evidence": "no: HTTP 400: no colour"}]


def test_a_probe_is_a_table(corerun: Command) -> None:
    assert [row["verdict"] for row in corerun("test", "teller::m", "--probe").json["probe"]] == [
        "refused",
        "honoured",
    ]
    assert "stop     honoured" in corerun("test", "teller::m", "--probe", "--format", "text").out
    assert corerun("test", "fake::json", "--probe").json["probe"] is None
    assert "this provider has no probe" in corerun("test", "fake::json", "--probe", "--format", "text").out


@pytest.mark.parametrize(
    ("model", "code"),
    [("fake::fail:401", 2), ("fake::fail:quota", 5), ("fake::nothing", 2), ("p::", 2), ("fake::fail:429", 1)],
)
def test_an_error_is_the_exit_code(corerun: Command, model: str, code: int) -> None:
    done = corerun("test", model, "--format", "text")
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("corerun: ") and "Traceback" not in done.err


def test_rules_are_no_model_to_test(corerun: Command) -> None:
    done = corerun("test", "recipes::default")
    assert (done.code, done.json["kind"], done.json["calls"]) == (0, "rules", [])


def test_an_alias_is_tested_as_it_is_configured(corerun: Command) -> None:
    def answer(body: dict[str, Any]) -> Any:
        return {"word": "ready"} if "ready" in str(body) and body.get("tools") else "ready"

    with serve_in_thread(answer) as server:
        file = models_file(
            "models:\n"
            f"  mine: {{model: test-model, base_url: '{server.base_url}', api_key: '${{MINE}}',\n"
            "    temperature: 0.5, extra_body: {flavour: plain}, prices: {input: 10, output: 20}}\n"
        )
        Path(".env").write_text("OAIC_MINE=value\n")
        missing = corerun("test", "mine", "--models-file", file)
        assert (missing.code, "the variable MINE, which isn't set" in missing.err) == (2, True)
        models_file(Path(file).read_text().replace("MINE", "OAIC_MINE"))
        done = corerun("test", "mine", "--models-file", file)
        assert done.code == 0, done.err
        assert [call["price_source"] for call in done.json["calls"]] == ["config", "config"]
        assert server.requests[0].headers["authorization"] == "Bearer value"
        assert (server.bodies[0]["temperature"], server.bodies[0]["flavour"]) == (0.5, "plain")
        assert corerun("list", "mine", "--models-file", file).json["models"] == ["test-model"]


def test_oaic_debug_shows_what_was_refused_without_keys(
    corerun: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = {"error": {"message": "sk-canary-0123456789 may not use tools: model does not support tools"}}

    def answer(body: dict[str, Any]) -> Any:
        return fault(400, refusal) if "tools" in body else {"word": "ready"}

    with serve_in_thread(answer) as server:
        for name, value in {**server.environ("sk-canary-0123456789"), "OAIC_DEBUG": "1"}.items():
            monkeypatch.setenv(name, value)
        done = corerun("test", "test-model")
        assert (done.code, json.loads(done.out)["name"]) == (0, "test-model")
        assert "test-model: refused: tools (HTTP 400: " in done.err and "canary" not in done.err
        monkeypatch.delenv("OAIC_DEBUG")
        assert corerun("test", "test-model").err == ""


@pytest.mark.parametrize(
    ("model", "meant"),
    [
        ("antropic::claude-x", "anthropic::claude-x"),
        ("writter", "writer"),
        ("telller::m", "teller::m"),
        ("anthropic/claude-x", "anthropic::claude-x"),
        ("groq/llama/8b", "groq::llama/8b"),
        ("teller:m", "teller::m"),
    ],
)
def test_a_slip_in_a_name_is_told_apart_from_a_missing_key(corerun: Command, model: str, meant: str) -> None:
    file = models_file("models: {writer: {api_type: teller, model: m}}\n")
    done = corerun("test", model, "--models-file", file)
    assert done.code == 2
    assert f"hint: did you mean '{meant}'? Else set " in done.err


@pytest.mark.parametrize("model", ["mistral::small", "qwen3:8b", "deepseek-ai/DeepSeek-V3", "gpt-4o"])
def test_a_name_that_is_like_no_other_gets_no_guess(corerun: Command, model: str) -> None:
    done = corerun("test", model)
    assert (done.code, "did you mean" in done.err) == (2, False)


def test_a_slip_in_a_feature_of_caps_is_told(corerun: Command, caplog: pytest.LogCaptureFixture) -> None:
    file = models_file(
        "models:\n"
        "  mine: {api_type: vllm, base_url: 'http://127.0.0.1:1/v1', caps: {tool: false, top_k: false}}\n"
    )
    assert corerun("list", "--models-file", file).code == 0
    assert [record.getMessage() for record in caplog.records] == [
        "caps and wording: did you mean 'tools' instead of 'tool'?"
    ]


def test_002_23_the_models_file_of_a_workflow_trainer_is_read_unchanged(
    corerun: Command, caplog: pytest.LogCaptureFixture
) -> None:
    document = """\
models:
  "gpt-4o-mini":
    api_type: "openai"
    base_url: "https://api.openai.com/v1"
    api_key: "sk-proj-..."  # your API key
"""
    file = models_file(document, "aflow_llm.yaml")
    refused = corerun("test", "gpt-4o-mini", "--models-file", file)
    assert refused.code == 2
    assert "aflow_llm.yaml:5: models.gpt-4o-mini.api_key is a placeholder, not a value" in refused.err
    assert caplog.records == []
    models_file(document.replace("sk-proj-...", "sk-proj-canary0123456789"), file)
    (alias,) = corerun("list", "--models-file", file).json["aliases"]
    assert alias == {
        "name": "gpt-4o-mini",
        "provider": "openai",
        "model": "gpt-4o-mini",
        "status": "ready",
    }
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.endswith(
        "aflow_llm.yaml:5: models.gpt-4o-mini.api_key is written out: better name a variable, as env:NAME"
    )
    assert "canary" not in warning
    with serve_in_thread(lambda body: {"word": "ready"}) as server:
        models_file(
            document.replace("https://api.openai.com/v1", server.base_url).replace(
                "sk-proj-...", "sk-proj-canary0123456789"
            ),
            file,
        )
        done = corerun("test", "gpt-4o-mini", "--models-file", file)
        assert done.code == 0
        assert {body["model"] for body in server.bodies} == {"gpt-4o-mini"}
        assert server.requests[0].headers["authorization"] == "Bearer sk-proj-canary0123456789"


# --------------------------------------------------------------------------------------------- caps


def test_what_was_learned_is_shown_and_forgotten(corerun: Command) -> None:
    rows = corerun("caps", "teller::m").json
    assert [(row["feature"], row["last_seen"]) for row in rows] == [
        ("seed", "1970-01-01T00:00:00Z"),
        ("tool_choice=required", "1970-01-01T00:00:00Z"),
    ]
    assert "colour" in [row["feature"] for row in corerun("caps").json]
    heads, first, *_ = corerun("caps", "teller::m", "--format", "text").out.splitlines()
    assert heads.split()[:3] == ["BASE_URL", "MODEL", "FEATURE"] and "HTTP 400: no seed" in first
    assert corerun("caps", "teller::m", "--forget").json == {"forgotten": 2}


def test_what_a_real_server_refused_is_kept_from_one_command_to_the_next(
    corerun: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "Unsupported parameter: 'seed' is not supported with this model."
    refusal = {"error": {"message": said, "param": "seed", "code": "unsupported_parameter"}}

    def answer(body: dict[str, Any]) -> Any:
        if "seed" in body:
            return Fault(400, json.dumps(refusal).encode(), {"content-type": "application/json"})
        return {"word": "ready"} if body.get("tools") else "ready"

    with serve_in_thread(answer) as server:
        for name, value in server.environ().items():
            monkeypatch.setenv(name, value)
        first, second = (corerun("test", "test-model", "--explain").json for _ in range(2))
        assert [call["requests"] for call in first["calls"]] == [1, 1, 2]
        assert [call["requests"] for call in second["calls"]] == [1, 1, 1]
        for ladder in (first["ladder"], second["ladder"]):
            assert (ladder[0]["state"], said in ladder[0]["evidence"]) == ("left out", True)
        facts = {row["feature"]: row for row in corerun("caps").json if row["model"] == "test-model"}
        assert facts["seed"]["state"] == "no"
        assert said in facts["seed"]["evidence"]
        assert corerun("caps", "test-model", "--forget").json["forgotten"] >= 1
        assert "test-model" not in [row["model"] for row in corerun("caps").json]


def test_what_was_learned_of_all_servers_is_shown_and_forgotten(
    corerun: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_in_thread(lambda body: {"word": "ready"}) as server:
        monkeypatch.setenv("OAIC_NEARBY_BASE_URL", server.base_url)
        assert corerun("test", "nearby::test-model").code == 0
        file = models_file(
            f"models: {{mine: {{api_type: vllm, model: big, base_url: '{server.base_url}'}}}}\n"
        )
        assert corerun("test", "mine", "--models-file", file).code == 0
    monkeypatch.delenv("OAIC_NEARBY_BASE_URL")
    learned = [row["model"] for row in corerun("caps").json if row["base_url"] == server.base_url]
    assert sorted(set(learned)) == ["big", "test-model"]
    assert corerun("caps", "--forget").json["forgotten"] >= len(learned)
    assert [row for row in corerun("caps").json if row["base_url"] == server.base_url] == []


def test_a_provider_that_learns_nothing_is_a_usage_error(corerun: Command) -> None:
    assert corerun("caps", "fake::echo").code == 2


# ------------------------------------------------------------------------------------------- prices


def test_prices_of_one_model_and_of_all(corerun: Command) -> None:
    assert corerun("prices", "gpt-4o-mini").json == [
        {"model": "gpt-4o-mini", "input": 0.15, "output": 0.6, "cached": 0.075, "source": "table:gpt-4o-mini"}
    ]
    file = models_file("models: {mine: {model: gpt-4o-mini, prices: {input: 1, output: 2}}}\n")
    assert corerun("prices", "mine", "--models-file", file).json[0]["source"] == "config"
    assert corerun("prices", "teller::m").json[0]["source"] == "provider"
    assert len(corerun("prices").json) == len(load_prices())
    assert corerun("prices", "--format", "text").out.startswith("MODEL ")


def test_an_unknown_price_is_told_where_to_give_it(corerun: Command) -> None:
    done = corerun("prices", "gpt-4o-mini-x")
    assert (done.code, "prices.yaml" in done.err) == (2, True)


def test_prices_are_taken_over_from_a_map(corerun: Command, tmp_path: Path) -> None:
    Path("map.json").write_text(json.dumps(MAP))
    done = corerun("prices", "import", "map.json")
    target = tmp_path / "home/.config/corerun/prices.yaml"
    assert done.json == {"taken": 2, "changed": 0, "left_out": 6, "kept": None, "file": str(target)}
    assert yaml.safe_load(target.read_text()) == {
        "models": {"gpt-9": {"in": 0.15, "out": 0.6}, "groq/llama": {"in": 1.0, "cached": 0.5, "out": 2.0}}
    }
    assert corerun("prices", "gpt-9").json[0]["output"] == 0.6
    table = load_prices(target)
    assert price_of("llama", table, "groq") == (table["groq/llama"], "groq/llama")
    assert price_of("llama", table, "other") is None


def test_an_import_leaves_other_entries_and_keeps_the_file_as_it_was(
    corerun: Command, tmp_path: Path
) -> None:
    Path("map.json").write_text(json.dumps(MAP))
    target = tmp_path / "home/.config/corerun/prices.yaml"
    target.parent.mkdir(parents=True)
    before = "# mine\nnote: kept\nmodels:\n  own: {in: 1, out: 2}\n  gpt-9: {in: 9, out: 9}\n"
    target.write_text(before)
    done = corerun("prices", "import", "map.json", "--format", "text")
    assert "2 prices written" in done.out and "1 of them changed" in done.out
    assert target.with_name("prices.yaml.before-import").read_text() == before
    document = yaml.safe_load(target.read_text())
    assert (document["note"], set(document["models"])) == ("kept", {"own", "gpt-9", "groq/llama"})


@pytest.mark.parametrize("text", ["", "[]", "{", '{"sample_spec": {}}', '{"a": {"mode": "chat"}}', "\xff"])
def test_what_is_no_map_is_refused_and_nothing_is_written(
    corerun: Command, tmp_path: Path, text: str
) -> None:
    Path("map.json").write_bytes(text.encode("latin-1"))
    done = corerun("prices", "import", "map.json")
    assert (done.code, "map.json" in done.err) == (2, True)
    assert not (tmp_path / "home/.config").exists()


@pytest.mark.parametrize("words", [["import"], ["import", "a", "b"], ["a", "b"], ["import", "absent.json"]])
def test_other_words_after_prices(corerun: Command, words: list[str]) -> None:
    assert corerun("prices", *words).code == 2


def test_a_broken_file_of_prices_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(json.dumps(MAP))
    for text in ("models: [a]\n", "- a\n", "models: {a: {in: x, out: 1}}\n", "a: [\n"):
        (tmp_path / "prices.yaml").write_text(text)
        with pytest.raises(ConfigError, match="prices"):
            import_prices(tmp_path / "map.json", tmp_path / "prices.yaml")
        assert (tmp_path / "prices.yaml").read_text() == text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=5,
)
ENTRY = JSON | st.fixed_dictionaries({"input_cost_per_token": JSON, "output_cost_per_token": JSON})


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(max_size=8), ENTRY, max_size=4))
def test_any_map_gives_prices_that_can_be_read_back(tmp_path: Path, document: dict[str, Any]) -> None:
    source, target = tmp_path / "map.json", tmp_path / "prices.yaml"
    target.unlink(missing_ok=True)
    source.write_text(json.dumps(document))
    try:
        done = import_prices(source, target)
    except UsageError:
        return
    assert done.taken >= 1
    read = load_prices(target)
    assert all(price.input >= 0 and price.output >= 0 for price in read.values())
