"""What a model's name means, which provider answers for it, and where its key comes from."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corerun.config import Entry, ModelAlias
from corerun.errors import ConfigError, UsageError
from corerun.interfaces import (
    CallContext,
    ChatReply,
    ChatRequest,
    Component,
    Connection,
    Price,
    ProviderInfo,
    Role,
)
from corerun.job.models import model_facts, only_rules, read_models_file
from corerun.job.plan import Plan, describe, read_models
from corerun.job.start import run_plan
from corerun.llm.directory import ModelDirectory, Pace
from corerun.llm.keys import is_tracked
from corerun.plugins import PluginManager
from corerun.redaction import redact
from corerun.report.results import disclosure
from tests.support import probe

KEY = "literal-canary-key-1"


class Made:
    """A provider that remembers what it was made from."""

    def __init__(self, component: str, connection: Connection) -> None:
        self.component = component
        self.connection = connection
        self.info = ProviderInfo(connection.provider, kind="rules" if component == "recipes" else "model")
        self.closed = 0

    async def complete(self, request: ChatRequest, ctx: CallContext) -> ChatReply:
        raise NotImplementedError

    async def aclose(self) -> None:
        self.closed += 1


class Found:
    def __init__(self, name: str) -> None:
        self.component = Component(name, "")


class Manager:
    """A plugin manager whose providers are all of `Made`."""

    def __init__(self) -> None:
        self.made: list[Made] = []

    def components(self, kind: str) -> list[Found]:
        return [Found(name) for name in ("openai_router", "anthropic", "fake", "recipes", "transformers")]

    def get(self, kind: str, name: str) -> Any:
        def make(connection: Connection) -> Made:
            self.made.append(Made(name, connection))
            return self.made[-1]

        return make


def directory(
    aliases: Mapping[str, Mapping[str, Any]] | None = None,
    environ: Mapping[str, str] | None = None,
    **options: Any,
) -> ModelDirectory:
    typed = {name: ModelAlias.model_validate(entry) for name, entry in (aliases or {}).items()}
    manager: Any = Manager()
    return ModelDirectory(manager, environ or {}, typed, **options)


def made(models: ModelDirectory, name: str) -> Made:
    found = models.provider(name)
    assert isinstance(found, Made)
    return found


def connection(
    entry: Mapping[str, Any], environ: Mapping[str, str] | None = None, **places: str
) -> Connection:
    where = {("fast", field): place for field, place in places.items()}
    return made(directory({"fast": entry}, environ, places=where), "fast").connection


# ----------------------------------------------------------------------------------------- meanings


@pytest.mark.parametrize(
    ("name", "entry", "meaning", "component"),
    [
        ("gpt-4o-mini", {}, "default::gpt-4o-mini", "openai_router"),
        ("gpt-4o-mini", {"api_type": "openai"}, "openai::gpt-4o-mini", "openai_router"),
        ("fast", {"model": "qwen::qwen-plus"}, "qwen::qwen-plus", "openai_router"),
        ("fast", {"model": "ollama/qwen3:8b"}, "ollama::qwen3:8b", "openai_router"),
        ("fast", {"model": "org/name"}, "default::org/name", "openai_router"),
        ("qwen::qwen-plus", {"temperature": 0}, "qwen::qwen-plus", "openai_router"),
        ("fast", {"api_type": "ollama", "model": "qwen3:8b"}, "ollama::qwen3:8b", "openai_router"),
        ("fast", {"api_type": "ollama", "model": "ollama/qwen3:8b"}, "ollama::qwen3:8b", "openai_router"),
        ("fast", {"api_type": "openai", "model": "ollama/x"}, "openai::ollama/x", "openai_router"),
        ("fast", {"api_type": "openai", "model": "qwen::x"}, "qwen::x", "openai_router"),
        ("fast", {"api_type": "Azure", "model": "gpt-5"}, "azure::gpt-5", "openai_router"),
        ("fast", {"api_type": "groq", "model": "org/llama"}, "groq::org/llama", "openai_router"),
        ("fast", {"api_type": "anthropic", "model": "claude-x"}, "anthropic::claude-x", "anthropic"),
        ("fast", {"api_type": "transformers", "model": "./tiny"}, "transformers::./tiny", "transformers"),
        ("fast", {"api_type": "fake", "model": "echo"}, "fake::echo", "fake"),
        ("fast", {"model": "recipes::default"}, "recipes::default", "recipes"),
    ],
)
def test_what_an_alias_means(name: str, entry: dict[str, Any], meaning: str, component: str) -> None:
    models = directory({name: entry})
    target = models.target(name)
    assert (target.name, f"{target.provider}::{target.model}") == (name, meaning)
    assert (made(models, name).component, made(models, name).connection.provider) == (
        component,
        target.provider,
    )


def test_an_alias_wins_over_every_form_and_is_found_by_its_exact_name() -> None:
    models = directory({"ollama/x": {"model": "a::b"}, "c::d": {"model": "e"}, "m": {"model": "a::big"}})
    assert [models.target(name).provider for name in ("ollama/x", "c::d", "m", "M", " m ")] == [
        "a",
        "default",
        "a",
        "default",
        "default",
    ]


def test_an_alias_is_not_followed_twice() -> None:
    models = directory({"a": {"model": "b"}, "b": {"model": "a"}})
    assert models.target("a").model == "b"


def test_an_alias_lends_options_pace_price_and_the_rest() -> None:
    entry = {
        "model": "a::b",
        "temperature": 0,
        "top_p": 0.5,
        "max_tokens": 9,
        "reasoning_effort": "low",
        "rpm": 60,
        "concurrency": 3,
        "timeout": 30,
        "prices": {"input": 1, "output": 2},
        "extra_body": {"enable_thinking": False},
        "fallbacks": ["ollama/x"],
    }
    target = directory({"fast": entry}, pace=Pace(8, 100, 9000)).target("fast")
    assert target.options == Role(None, 0.0, 9, 0.5, "low")
    assert target.pace == Pace(3, 60, 9000)
    assert (target.timeout_s, target.price, target.fallbacks) == (30, Price(1, 2, None), ("ollama/x",))
    assert target.extra == {"enable_thinking": False}


def test_without_an_alias_the_pace_is_the_common_one() -> None:
    target = directory(pace=Pace(8, 100, 9000)).target("a::b")
    assert (target.options, target.pace, target.price) == (Role(), Pace(8, 100, 9000), None)


@pytest.mark.parametrize("entry", [{"model": "::x"}, {"api_type": "a b"}, {"model": "p::"}])
def test_a_bad_alias_is_named_with_its_place(entry: dict[str, str]) -> None:
    models = directory({"fast": entry}, places={("fast", "rpm"): "models.yaml:2"})
    with pytest.raises(UsageError, match=r"^models.yaml:2: models.fast: bad model string"):
        models.target("fast")


@given(st.text(max_size=20), st.none() | st.text(min_size=1, max_size=8))
def test_any_alias_has_a_meaning_or_is_a_usage_error(model: str, api_type: str | None) -> None:
    models = directory({"fast": {"model": model or None, "api_type": api_type}})
    try:
        target = models.target("fast")
    except UsageError:
        return
    assert target.provider and target.model


# ------------------------------------------------------------------------------------ connections


def test_everything_of_a_connection_is_handed_on() -> None:
    entry = {
        "api_type": "azure",
        "base_url": " https://host.example/v1 ",
        "api_key": "${MY_KEY}",
        "api_version": "2026-01-01",
        "caps": {"tools": False, "seed": True},
        "wording": {"tools": ["no tools"], "seed": "no seeds?"},
    }
    found = connection(entry, {"MY_KEY": "value-of-the-key", "OTHER": "x"})
    assert found == Connection(
        "azure",
        {"MY_KEY": "value-of-the-key", "OTHER": "x"},
        "https://host.example/v1",
        "value-of-the-key",
        "2026-01-01",
        {"tools": False, "seed": True},
        {"tools": ("no tools",), "seed": ("no seeds?",)},
    )
    assert "value-of-the-key" not in redact("the key is value-of-the-key")


def test_names_with_the_same_connection_share_a_provider() -> None:
    own = {"base_url": "http://127.0.0.1:9/v1"}
    models = directory(
        {
            "a": {"model": "q::x"},
            "b": {"model": "q::y", "temperature": 1},
            "c": {"model": "q::x", **own},
            "d": {"model": "q::y", **own},
            "e": {"model": "q::x", "caps": {"tools": False}},
        }
    )
    names = ("q::z", "a", "b", "c", "d", "e")
    kinds = {name: id(models.provider(name)) for name in names}
    assert kinds["q::z"] == kinds["a"] == kinds["b"]
    assert kinds["c"] == kinds["d"]
    assert len(set(kinds.values())) == 3
    assert models.named("Q") is models.provider("a")


def test_a_swapped_provider_wins_over_every_connection() -> None:
    aliases = {"own": {"model": "q::x", "base_url": "http://h/v1", "api_key": "sk-..."}}
    models = directory(aliases)
    first = models.provider("q::y")
    fake = Made("mine", Connection())
    models.use("q", fake)
    assert models.provider("own") is models.provider("q::y") is models.named("q") is fake
    assert fake is not first


async def test_all_providers_are_closed_once_and_made_anew() -> None:
    models = directory({"a": {"model": "q::x", "base_url": "http://h/v1"}})
    fake = Made("mine", Connection())
    models.use("other", fake)
    found = [made(models, name) for name in ("a", "q::x", "other::y")]
    await models.aclose()
    assert [one.closed for one in found] == [1, 1, 1]
    assert made(models, "a") is not found[0]


def test_an_unknown_api_type_is_taken_as_compatible_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    models = directory(
        {
            "a": {"api_type": "acme", "model": "x"},
            "b": {"api_type": "ACME", "model": "y"},
            "c": {"api_type": "groq", "model": "z"},
            "d": {"api_type": "anthropic", "model": "z"},
        }
    )
    assert {made(models, name).component for name in "abc"} == {"openai_router"}
    models.provider("d")
    assert [record.getMessage() for record in caplog.records] == [
        "models.a: api_type 'acme' is unknown: taken as OpenAI-compatible"
    ]


# --------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize("text", ["env:MY_KEY", "${MY_KEY}"])
@pytest.mark.parametrize("environ", [{}, {"MY_KEY": ""}, {"MY_KEY": " "}])
def test_a_variable_that_is_not_set_is_named(text: str, environ: dict[str, str]) -> None:
    with pytest.raises(UsageError) as caught:
        connection({"api_key": text}, environ, api_key="job.yaml:7")
    assert str(caught.value) == (
        "job.yaml:7: models.fast.api_key is read from the variable MY_KEY, which isn't set"
    )
    assert (caught.value.hint, caught.value.exit_code) == ("set MY_KEY", 2)


def test_an_address_may_be_read_from_a_variable() -> None:
    assert connection({"base_url": "${URL}"}, {"URL": "http://h/v1"}).base_url == "http://h/v1"


def test_a_literal_key_is_used_with_one_warning(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    models = directory({"fast": {"api_key": KEY}}, {"OPENAI_API_KEY": "other"})
    assert made(models, "fast").connection.api_key == KEY
    models.provider("fast")
    assert len(caplog.records) == 1
    assert "models.fast.api_key is written out" in caplog.text
    assert KEY not in caplog.text


def test_a_key_on_the_command_line_is_hidden_in_the_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert connection({"api_key": KEY}, api_key=f"-o models.fast.api_key={KEY}").api_key == KEY
    assert "-o models.fast.api_key=[redacted]" in caplog.text and KEY not in caplog.text


def test_a_short_word_is_no_key_to_warn_of(caplog: pytest.LogCaptureFixture) -> None:
    assert connection({"api_key": "none"}).api_key == "none"
    assert caplog.records == []


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ({"api_key": "sk-..."}, "api_key"),
        ({"api_key": "sk-proj-..."}, "api_key"),
        ({"api_key": "<your-api-key>"}, "api_key"),
        ({"model": "<model_name>"}, "model"),
        ({"base_url": "https://<resource>.example.com"}, "base_url"),
    ],
)
def test_placeholders_are_refused(entry: dict[str, str], field: str) -> None:
    environ = {"OPENAI_API_KEY": "a key that was set"}
    with pytest.raises(UsageError) as caught:
        connection(entry, environ, **{field: "models.yaml:3"})
    assert caught.value.where == "models.yaml:3"
    assert caught.value.message.startswith(f"models.fast.{field}")
    assert "is a placeholder" in caught.value.message
    assert "sk-" not in caught.value.message


def test_an_alias_that_is_a_placeholder_is_refused_and_others_work() -> None:
    models = directory({"<model_name>": {"api_type": "openai"}, "fast": {"model": "a::b"}})
    models.provider("fast")
    with pytest.raises(UsageError, match=r"models.<model_name>.model \('<model_name>'\) is a placeholder"):
        models.provider("<model_name>")


def test_a_key_that_a_run_left_out_counts_as_missing() -> None:
    with pytest.raises(UsageError) as caught:
        connection({"model": "q::x", "api_key": "[redacted]"}, api_key="events.jsonl")
    assert caught.value.message == "models.fast.api_key is missing: a run keeps no key"
    assert caught.value.hint == "give --config again, or set OAIC_Q_API_KEY"
    found = connection({"model": "q::x", "api_key": "[redacted]"}, {"OAIC_Q_API_KEY": "in-the-environment"})
    assert found.api_key == "in-the-environment"


def test_a_login_that_a_run_left_out_is_missed() -> None:
    with pytest.raises(UsageError, match=r"models.fast.base_url is incomplete: a run keeps no login"):
        connection({"base_url": "https://[redacted]@host.example/v1"})


@pytest.mark.parametrize(
    ("provider", "variable"),
    [
        ("default", "OPENAI_API_KEY"),
        ("openai", "OPENAI_API_KEY"),
        ("openai", "OAIC_OPENAI_API_KEY"),
        ("x.ai", "OAIC_X_AI_API_KEY"),
        ("ollama", "OLLAMA_API_KEY"),
        ("anthropic", "ANTHROPIC_API_KEY"),
    ],
)
def test_a_key_in_the_environment_beats_one_in_a_file_under_git(
    tmp_path: Path, provider: str, variable: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("models: {}\n")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    entry = {"model": f"{provider}::x", "api_key": KEY}
    environ = {variable: "of-the-environment"}
    assert connection(entry, environ, api_key=f"{file}:3").api_key == KEY
    subprocess.run(["git", "-C", str(tmp_path), "add", "job.yaml"], check=True)
    caplog.clear()
    assert connection(entry, environ, api_key=f"{file}:3").api_key == "of-the-environment"
    assert caplog.messages == [
        f"{file}:3: models.fast.api_key stands in a file under git: the environment's key is used"
    ]
    assert connection(entry, {"OAIC_Z_API_KEY": "other"}, api_key=f"{file}:3").api_key == KEY
    reference = entry | {"api_key": "env:MINE"}
    assert connection(reference, environ | {"MINE": "my-own"}, api_key=f"{file}:3").api_key == "my-own"


def test_without_git_nothing_is_tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_tracked(tmp_path / "job.yaml")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not is_tracked(Path(__file__))


# ----------------------------------------------------------------------------- sets of names, checks


def test_everything_that_is_fallen_back_to_is_found_once() -> None:
    models = directory(
        {
            "a": {"model": "p::a", "fallbacks": ["b", "q::c"]},
            "b": {"model": "p::b", "fallbacks": ["a", "b"]},
        }
    )
    assert models.reachable(["a", "q::c"]) == ("a", "q::c", "b")


@pytest.mark.parametrize(
    ("aliases", "names"),
    [
        ({}, ["x.ai::a", "x-ai::b"]),
        ({"fast": {"model": "x.ai::a"}}, ["x-ai::b"]),
        ({"fast": {"api_type": "x.ai"}, "slow": {"api_type": "x_ai"}}, []),
    ],
)
def test_two_providers_that_share_a_variable_are_refused(
    aliases: dict[str, dict[str, str]], names: list[str]
) -> None:
    with pytest.raises(UsageError, match="both read OAIC_X_AI_API_KEY"):
        directory(aliases).check_variables(names)


# ------------------------------------------------------------------------------------- models files

DOCUMENT = """\
llm:
  something: else
models:
  "gpt-4o-mini":
    api_type: "openai"
    base_url: "http://127.0.0.1:9/v1"
    api_key: "none"
    temperature: 0
    top_p: 1
  "fake-one":
    api_type: fake
    model: echo
"""


def read(folder: Path, config: str = "", environ: Mapping[str, str] | None = None, **files: Path) -> Any:
    (folder / "job.yaml").write_text(config)
    variables = {"HOME": str(folder / "home"), **(environ or {})}
    return read_models(PluginManager(), variables, folder, config_file=folder / "job.yaml", **files)


def test_a_models_file_is_read_unchanged(tmp_path: Path) -> None:
    (tmp_path / "aflow_llm.yaml").write_text(DOCUMENT)
    _, models = read(tmp_path, "models_file: aflow_llm.yaml\n")
    target = models.target("gpt-4o-mini")
    assert (target.provider, target.model) == ("openai", "gpt-4o-mini")
    assert (target.options.temperature, target.options.top_p) == (0, 1)
    assert models.check("fake-one").name == "fake"


def test_where_a_models_file_may_be_named(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "m.yaml").write_text("models: {fast: {model: 'fake::inner'}}\n")
    (tmp_path / "m.yaml").write_text("models: {fast: {model: 'fake::outer'}}\n")
    (inner / "job.yaml").write_text("models_file: m.yaml\n")

    def meaning(environ: Mapping[str, str] = {}, **files: Path | None) -> str:
        variables = {"HOME": str(tmp_path / "home"), **environ}
        return read_models(PluginManager(), variables, tmp_path, **files)[1].target("fast").model

    assert meaning(config_file=inner / "job.yaml") == "inner"
    assert meaning(config_file=inner / "job.yaml", models_file=Path("m.yaml")) == "outer"
    assert meaning({"CORERUN_MODELS_FILE": "inner/m.yaml"}) == "inner"
    assert meaning({"CORERUN_MODELS_FILE": "m.yaml"}, config_file=inner / "job.yaml") == "inner"


def test_entries_of_the_configuration_win_field_by_field(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("models: {fast: {model: 'fake::a', rpm: 5}, slow: {model: 'fake::s'}}\n")
    settings, models = read(tmp_path, "models_file: m.yaml\nmodels: {fast: {model: 'fake::b'}}\n")
    assert (models.target("fast").model, settings.models["fast"].rpm) == ("b", 5)
    assert models.target("slow").model == "s"


def test_only_what_is_about_models_is_read_of_a_job_file(tmp_path: Path) -> None:
    text = "job: {anything: 1}\nworkers: 0\nllm: {rpm: 7}\nmodels: {fast: {model: 'fake::x'}}\n"
    settings, models = read(tmp_path, text)
    assert (settings.llm.rpm, models.target("fast").pace.requests_per_minute) == (7, 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [a\n", r"m.yaml:\d: not YAML"),
        ("other: 1\n", r"m.yaml: no models: at the top level"),
        ("- a\n", r"m.yaml:1: expected a mapping"),
        ("models:\n  fast:\n    modle: x\n", r"m.yaml:3: unknown key 'models.fast.modle'"),
        ("models:\n  fast:\n    rpm: none\n", r"m.yaml:3: models.fast.rpm: input should be a valid number"),
        ("models: [fast]\n", r"m.yaml:1: models: input should be a valid dictionary"),
        ("models:\n  fast: !!python/object:os.system x\n", r"m.yaml:2: the tag !!python/object"),
        ("models:\n  a: {model: x}\n  a: {model: y}\n", r"m.yaml:3: key 'models.a' is given twice"),
    ],
)
def test_a_bad_models_file_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        read(tmp_path, "models_file: m.yaml\n")


def test_a_models_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"job.yaml:2: models_file: no such file: .*/absent.yaml"):
        read(tmp_path, "\nmodels_file: absent.yaml\n")


@given(st.text(max_size=60))
def test_any_models_file_is_models_or_one_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("any") / "m.yaml"
    path.write_text(text, encoding="utf-8", errors="replace")
    try:
        layer = read_models_file(Entry(str(path), "here"))
    except UsageError:
        return
    assert {key[0] for key in layer} == {"models"}


# ------------------------------------------------------------------------------------------- plans


@pytest.fixture
def module(tmp_path: Path) -> Iterator[ModuleType]:
    with probe.imported(tmp_path / "plugins") as module:
        yield module


def planned(folder: Path, settings: dict[str, Any], **environ: str) -> Plan:
    return probe.planned(folder, settings, environ={"HOME": str(folder), **environ})[0]


def test_a_role_keeps_the_name_of_its_alias(module: ModuleType, tmp_path: Path) -> None:
    plan = planned(tmp_path, {"models.fast.model": "fake::echo", "models.fast.rpm": 9, "model": "fast"})
    assert plan.roles["code"].model == "fast"
    assert plan.models.target("fast").pace == Pace(4, 9, None)
    assert describe(plan)["models"] == {"fast": "fake::echo"}


def test_keys_of_fallbacks_are_checked_before_a_run_starts(module: ModuleType, tmp_path: Path) -> None:
    settings = {
        "model": "fast",
        "models.fast.model": "fake::echo",
        "models.fast.fallbacks": ["slow"],
        "models.slow.model": "fake::json",
        "models.slow.api_key": "env:NOT_THERE",
    }
    with pytest.raises(UsageError, match=r"models.slow.api_key is read from the variable NOT_THERE"):
        planned(tmp_path, settings)


def test_a_plan_refuses_two_providers_of_one_variable(module: ModuleType, tmp_path: Path) -> None:
    settings = {"models.a.api_type": "x.ai", "models.b.api_type": "x-ai", "model": "fake::echo"}
    with pytest.raises(UsageError, match="both read OAIC_X_AI_API_KEY"):
        planned(tmp_path, settings)


async def test_a_run_keeps_no_key_and_takes_it_from_where_it_came(module: ModuleType, tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    file = tmp_path / "m.yaml"
    file.write_text(f"models: {{filed: {{model: 'fake::echo', api_key: {KEY}}}}}\n")
    typed = {"models.typed.model": "fake::echo", "models.typed.api_key": KEY}
    settings = {"models_file": str(file), "run_id": "one"} | typed

    def plan(model: str, resume: str | None = None, **more: str) -> tuple[Plan, PluginManager]:
        chosen = {"model": model} | (more if resume else settings)
        return probe.planned(tmp_path, chosen, environ=home, resume=resume)

    finished = await run_plan(*plan("typed"), accept_weak=True)
    assert finished.exit_code == 0, finished.manifest
    place = finished.directory
    for path in [path for path in place.rglob("*") if path.is_file()]:
        assert KEY.encode() not in path.read_bytes(), path
    assert plan("filed", str(place))[0].models.provider("filed")
    with pytest.raises(UsageError, match=r"models.typed.api_key is missing: a run keeps no key"):
        plan("typed", str(place))
    assert plan("typed", str(place), **{"models.typed.api_key": KEY})[0].models.provider("typed")


def test_programs_of_rules_with_a_language_model_behind_them_are_a_models_programs() -> None:
    models = directory(
        {
            "safe": {"model": "recipes::default", "fallbacks": ["recipes::other"]},
            "mixed": {"model": "recipes::default", "fallbacks": ["writer"]},
            "writer": {"model": "a::b"},
        }
    )
    assert [only_rules(models, name) for name in ("safe", "mixed", "writer", "recipes::x")] == [
        True,
        False,
        False,
        True,
    ]
    assert model_facts(models, ["mixed", "c::d"]) == {
        "mixed": {"kind": "rules", "model": "recipes::default"},
        "c::d": {"kind": "model"},
        "writer": {"kind": "model", "model": "a::b"},
    }
    said = disclosure(model_facts(models, ["writer", "safe"]))
    assert "AI-generated, by writer (a::b)," in said
    assert "safe (recipes::default), recipes::other is a book of built-in rules" in said
