"""Settings from many places: what wins, where it came from, and what is said about a mistake."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from corerun import config
from corerun.config import Entry, Layer
from corerun.errors import ConfigError, CorerunError, UsageError
from corerun.redaction import redact


class Inner(config.Section):
    depth: int = Field(3, ge=0)
    place: Path | None = None


class Own(config.Section):
    rate: float = Field(0.1, gt=0)
    names: config.Names = Field(default_factory=list)
    inner: Inner = Inner()
    table: dict[str, int] = Field(default_factory=dict)
    folder: Path = Path("here")


MODEL = config.settings_model("own", Own)


def layer(**values: Any) -> Layer:
    return config.layer_of(values, "test")


def settings(*layers: Layer) -> Any:
    spelled = [config.spell_out(one) for one in layers]
    config.check_unset(MODEL, spelled)
    return config.validate(MODEL, config.merge(spelled))


def of_file(folder: Path, text: str) -> Any:
    path = folder / "job.yaml"
    path.write_text(text)
    return settings(config.read_yaml(path))


# --------------------------------------------------------------------------------------- YAML files


def test_every_value_knows_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("model: m\n\nbudget:\n  usd: 3\n  tokens: 5\nobservers: [a, b]\nmodels: {}\n")
    assert config.read_yaml(path) == {
        ("model",): Entry("m", f"{path}:1"),
        ("budget", "usd"): Entry(3, f"{path}:4"),
        ("budget", "tokens"): Entry(5, f"{path}:5"),
        ("observers",): Entry(["a", "b"], f"{path}:6"),
        ("models",): Entry({}, f"{path}:7"),
    }


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n"])
def test_an_empty_file_sets_nothing(tmp_path: Path, text: str) -> None:
    assert of_file(tmp_path, text) == settings()


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("model: a\nmodel: b\n", 2, "key 'model' is given twice"),
        ("own:\n  inner:\n    depth: 1\n    depth: 2\n", 4, "key 'own.inner.depth' is given twice"),
        ("model: [a\nworkers: 3\n", 2, "not YAML"),
        ("model: a\n\tworkers: 3\n", 2, "not YAML"),
        ("- a\n- b\n", 1, "expected a mapping"),
        ("just text\n", 1, "expected a mapping"),
        ("model: a\n---\nmodel: b\n", 2, "not YAML"),
        ("workers: 2\n[a, b]: 3\n", 2, "a key must be one word"),
        ("a: &x {b: 1}\n<<: *x\n", 2, "a key must be one word"),
        ("own: &x\n  inner: *x\n", 2, "&x contains itself"),
        ("observers: &x [*x]\n", 1, "&x contains itself"),
        ("workers: 2\nmodel: !!python/object:os.system x\n", 2, "the tag !!python/object:os.system isn't"),
        ("seed: 2024-13-45\n", 1, "seed: input should be a valid integer"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, text: str, where: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        of_file(tmp_path, text)
    assert caught.value.where == f"{tmp_path / 'job.yaml'}:{where}"
    assert caught.value.message.startswith(message)
    assert (caught.value.exit_code, "\n" in caught.value.message) == (2, False)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name, message in (
        ("absent.yaml", f"no such file: {tmp_path}/absent.yaml"),
        ("binary.yaml", f"{tmp_path}/binary.yaml:1: not UTF-8 but UTF-16"),
        ("", f"can't read {tmp_path}: it is a folder"),
    ):
        with pytest.raises(UsageError) as caught:
            config.read_yaml(tmp_path / name)
        assert str(caught.value) == message


@given(st.text(max_size=60))
def test_any_text_is_settings_or_one_error(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.yaml"
        path.write_text(text, encoding="utf-8", errors="replace")
        try:
            settings(config.read_yaml(path))
        except CorerunError as error:
            assert error.exit_code == 2


# ----------------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model=a", {("model",): "a"}),
        ("budget.usd=2.5", {("budget", "usd"): 2.5}),
        ("model=openai::gpt=4", {("model",): "openai::gpt=4"}),
        ("observers=[a, b]", {("observers",): ["a", "b"]}),
        ("budget={usd: 1, tokens: 2}", {("budget", "usd"): 1, ("budget", "tokens"): 2}),
        ("models={}", {("models",): {}}),
        ("own.inner={depth: 1}", {("own", "inner", "depth"): 1}),
        ("model!", {("model",): None}),
        ("model=", {("model",): None}),
        ("model=null", {("model",): None}),
        ("model=a!", {("model",): "a!"}),
        ("model=[a", {("model",): "[a"}),
        ("model=2024-13-45", {("model",): "2024-13-45"}),
    ],
)
def test_overrides(text: str, expected: dict[config.Key, Any]) -> None:
    parsed = config.parse_override(text)
    assert {key: entry.value for key, entry in parsed.items()} == expected
    assert {entry.where for entry in parsed.values()} == {f"-o {text}"}


@pytest.mark.parametrize("text", ["model", "", "!", "=3", "a..b=1", ".a=1", "a.=1", "a..b!", ".!"])
def test_what_is_no_override_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="-o wants KEY=VALUE"):
        config.parse_override(text)


@given(st.text(max_size=40))
def test_any_override_is_a_layer_or_a_usage_error(text: str) -> None:
    try:
        parsed = config.parse_override(text)
    except UsageError:
        return
    assert parsed


# ------------------------------------------------------------------------------------------- merging

values = st.none() | st.integers(0, 3) | st.text("ab", max_size=2) | st.lists(st.integers(0, 1), max_size=2)
flat_layers = st.lists(
    st.dictionaries(
        st.sampled_from([("a",), ("b",), ("c", "x"), ("c", "y"), ("d", "e", "f")]),
        values.map(lambda value: Entry(value, "file:1")),
    ),
    max_size=4,
)


@given(flat_layers)
def test_the_strongest_value_that_is_not_null_wins(layers: list[Layer]) -> None:
    merged = config.merge(layers)
    for key in {key for one in layers for key in one}:
        expected = [one[key] for one in layers if key in one and one[key].value is not None]
        assert merged.get(key) == (expected[0] if expected else None)


nested_layers = st.lists(
    st.dictionaries(
        st.sampled_from([("a",), ("a", "b"), ("a", "b", "c"), ("a", "d")]),
        st.integers(0, 3).map(lambda value: Entry(value, "file:1")),
        max_size=1,
    ),
    max_size=4,
)


@given(nested_layers)
def test_a_scalar_and_a_mapping_never_both_remain(layers: list[Layer]) -> None:
    merged = config.merge(layers)
    keys = list(merged)
    assert not any(one != other and other[: len(one)] == one for one in keys for other in keys)
    strongest = next((one for one in layers if one), {})
    assert strongest.items() <= merged.items()
    config.nested(merged)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 3)), max_size=4))
def test_merging_is_associative(dicts: list[dict[str, int]]) -> None:
    layers = [config.layer_of(one, "x") for one in dicts]
    for cut in range(len(layers)):
        assert config.merge([config.merge(layers[:cut]), *layers[cut:]]) == config.merge(layers)


@given(
    st.recursive(
        st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
        lambda inner: st.dictionaries(st.text(min_size=1, max_size=3), inner, min_size=1, max_size=3),
        max_leaves=8,
    ).filter(lambda value: isinstance(value, dict))
)
def test_a_layer_is_the_nested_mapping_leaf_by_leaf(data: dict[str, Any]) -> None:
    assert config.nested(config.layer_of(data, "x")) == data


def test_null_means_not_set_but_a_flag_can_clear() -> None:
    weak = layer(model="m", budget={"usd": 3})
    assert settings(layer(model=None, budget={"usd": None}), weak).model == "m"
    assert settings(config.parse_override("model!"), weak).model is None
    assert settings(config.parse_override("budget.usd!"), weak).budget.usd is None
    # An emptied section is not set either.
    assert settings(layer(budget=None), weak).budget.usd == 3


def test_a_flag_that_clears_what_needs_a_value_is_an_error() -> None:
    with pytest.raises(ConfigError, match="workers: input should be a valid integer"):
        settings(config.parse_override("workers!"))


def test_a_sandboxs_name_merges_with_its_other_keys() -> None:
    merged = settings(config.parse_override("sandbox.pass_env=LANG"), layer(sandbox="bwrap"))
    assert (merged.sandbox.name, merged.sandbox.pass_env) == ("bwrap", ["LANG"])
    assert settings(layer(sandbox="local"), layer(sandbox={"name": "bwrap"})).sandbox.name == "local"


# ---------------------------------------------------------------------------------------- validation


@pytest.mark.parametrize(
    ("text", "where", "message", "hint"),
    [
        ("modle: a\n", 1, "unknown key 'modle'", "did you mean 'model'?"),
        ("budget:\n  usdd: 3\n", 2, "unknown key 'budget.usdd'", "did you mean 'usd'?"),
        ("workers: 2\n\nown:\n  inner:\n    dept: 3\n", 5, "unknown key 'own.inner.dept'", "'depth'?"),
        ("sandbox:\n  nmae: local\n", 2, "unknown key 'sandbox.nmae'", "did you mean 'name'?"),
        (
            "models:\n  a:\n    modl: x\n    model: y\n",
            3,
            "unknown key 'models.a.modl'",
            "did you mean 'model'?",
        ),
        ("models:\n  a:\n    base_ur: null\n", 3, "unknown key 'models.a.base_ur'", "mean 'base_url'?"),
        (
            "models:\n  a:\n    prices: {input: 1, output: 2, cach: 1}\n",
            3,
            "unknown key 'models.a.prices.cach'",
            "'cached'?",
        ),
        ("zzz: 1\n", 1, "unknown key 'zzz'", ""),
        ("modle:\n", 1, "unknown key 'modle'", "did you mean 'model'?"),
        ("model: a\nown:\n  inner:\n    dept: null\n", 4, "unknown key 'own.inner.dept'", "'depth'?"),
        ("own:\n  iner:\n    depth: null\n", 3, "unknown key 'own.iner'", "did you mean 'inner'?"),
        ("workers: -1\n", 1, "workers: input should be greater than or equal to 1 (got -1)", ""),
        ("workers: many\n", 1, "workers: input should be a valid integer", ""),
        ("workers: 1.5\n", 1, "workers: input should be a valid integer", ""),
        ("workers: 99999\n", 1, "workers: input should be less than or equal to 1024", ""),
        ("budget: 3\n", 1, "budget: input should be a valid dictionary", ""),
        ("budget:\n  usd: -1\n", 2, "budget.usd: input should be greater than or equal to 0 (got -1)", ""),
        ("budget:\n  usd: nan\n", 2, "budget.usd: input should be a finite number", ""),
        ("budget:\n  seconds: inf\n", 2, "budget.seconds: input should be a finite number", ""),
        ("budget:\n  tokens: 1.5\n", 2, "budget.tokens: input should be a valid integer", ""),
        ("llm:\n  concurrency: 0\n", 2, "llm.concurrency: input should be greater than or equal to 1", ""),
        ("llm:\n  retries: -1\n", 2, "llm.retries: input should be greater", ""),
        ("min_free_mb: -1\n", 1, "min_free_mb: input should be greater", ""),
        ("infra_retries: -1\n", 1, "infra_retries: input should be greater", ""),
        ("in_flight: 0\n", 1, "in_flight: input should be greater", ""),
        ("scheduler: sync\n", 1, "scheduler: input should be 'async' or 'batch' (got 'sync')", ""),
        ("durability: none\n", 1, "durability: input should be 'kill' or 'power'", ""),
        ("model: 3\n", 1, "model: input should be a valid string (got 3)", ""),
        ("observers: 3\n", 1, "observers: input should be a valid list", ""),
        ("observers: [a, 3]\n", 1, "observers.1: input should be a valid string", ""),
        ("models:\n  a:\n    model: ''\n", 3, "models.a.model: string should have at least 1 character", ""),
        ("models:\n  a:\n    prices: {input: 1}\n", 3, "models.a.prices.output: field required", ""),
        ("models:\n  a:\n    rpm: 0\n", 3, "models.a.rpm: input should be greater than 0 (got 0)", ""),
        ("models:\n  a:\n    wording: {seed: '('}\n", 3, "models.a.wording: value error, seed: '('", ""),
        ("llm:\n  cache: on\n", 2, "llm.cache: input should be 'off', 'read' or 'write' (got 'on')", ""),
        ("llm:\n  tpm: 0\n", 2, "llm.tpm: input should be greater than 0", ""),
        ("models:\n  a: text\n", 2, "models.a: input should be a valid dictionary", ""),
        ("seed: 1\nworkers: 0\nin_flight: 0\n", 2, "workers: input should be greater", ""),
    ],
)
def test_mistakes_are_named_with_place_and_nearest_name(
    tmp_path: Path, text: str, where: int, message: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        of_file(tmp_path, text)
    assert caught.value.where == f"{tmp_path / 'job.yaml'}:{where}"
    assert caught.value.message.startswith(message)
    assert caught.value.hint.endswith(hint)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 200


def test_more_mistakes_are_counted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="and 1 more problem"):
        of_file(tmp_path, "workers: 0\nin_flight: 0\n")


@pytest.mark.parametrize("text", ["1e-5", "'1e-5'", "1.0e-5", "0.00001"])
def test_a_number_without_a_dot_is_a_number(tmp_path: Path, text: str) -> None:
    assert of_file(tmp_path, f"own:\n  rate: {text}\n").own.rate == 1e-5
    assert settings(config.parse_override(f"own.rate={text}")).own.rate == 1e-5


@pytest.mark.parametrize("given", ["a, b", ["a", "b"], "a,b,", " a ,, b "])
def test_lists_of_names_may_be_written_with_commas(given: Any) -> None:
    assert settings(layer(observers=given, plugins={"disable": given})).observers == ["a", "b"]
    assert settings(layer(observers="")).observers == []


def test_free_tables_take_any_name(tmp_path: Path) -> None:
    text = "own:\n  table:\n    anything: 3\n    unset:\nmodels:\n  fast:\n    model: a::b\n    top_p: null\n"
    found = of_file(tmp_path, text)
    assert found.own.table == {"anything": 3}
    assert found.models["fast"].model == "a::b"


def test_off_needs_no_quotes(tmp_path: Path) -> None:
    assert of_file(tmp_path, "llm:\n  cache: off\n").llm.cache == "off"


def test_saved_settings_come_back(tmp_path: Path) -> None:
    first = settings(layer(model="é", workers=3, own={"rate": 2, "folder": "/x"}, sandbox="local"))
    assert of_file(tmp_path, config.to_yaml(first)) == first
    assert yaml.safe_load(config.to_yaml(first))["own"]["folder"] == "/x"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"workers": 4}, 7),
        ({"workers": 8}, 13),
        ({"workers": 2}, 4),
        ({"workers": 1}, 1),
        ({"workers": 8, "scheduler": "batch"}, 8),
        ({"workers": 1, "in_flight": 5}, 5),
    ],
)
def test_expansions_under_way(given: dict[str, Any], expected: int) -> None:
    assert settings(layer(**given)).expansions == expected


# ---------------------------------------------------------------------------------- environment, paths


def test_the_environment_sets_scalar_keys_of_the_common_shape() -> None:
    environ = {
        "CORERUN_MODEL": "a::b",
        "CORERUN_WORKERS": "7",
        "CORERUN_SEED": "",
        "CORERUN_STRATEGY": "[not yaml",
        "CORERUN_OFFLINE": "1",
        "CORERUN_UNKNOWN": "x",
    }
    found = config.environment_layer(environ, ("model", "workers", "seed", "strategy"))
    assert found == {
        ("model",): Entry("a::b", "CORERUN_MODEL"),
        ("workers",): Entry(7, "CORERUN_WORKERS"),
        ("strategy",): Entry("[not yaml", "CORERUN_STRATEGY"),
    }


def test_a_bad_variable_is_named() -> None:
    bad = config.environment_layer({"CORERUN_WORKERS": "none"}, ("workers",))
    with pytest.raises(ConfigError, match="CORERUN_WORKERS: workers: input should be a valid integer"):
        settings(bad)


def test_paths_are_relative_to_where_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = config.path_keys(MODEL)
    assert set(keys) == {("models_file",), ("out_root",), ("own", "inner", "place"), ("own", "folder")}
    monkeypatch.setenv("HOME", "/home/someone")
    file = config.resolve_paths(
        layer(own={"inner": {"place": "data"}, "folder": "~/x"}), keys, Path("/files")
    )
    flag = config.resolve_paths(layer(out_root="out", own={"folder": "/abs"}), keys, tmp_path)
    found = settings(flag, file)
    assert found.out_root == tmp_path / "out"
    assert found.own.inner.place == Path("/files/data")
    assert found.own.folder == Path("/abs")
    assert settings(file).own.folder == Path("/home/someone/x")


def test_an_unknown_home_is_named() -> None:
    with pytest.raises(ConfigError, match="test: out_root: ~nobody-has-this-home/x: no such home"):
        config.resolve_paths(layer(out_root="~nobody-has-this-home/x"), [("out_root",)], Path("/"))


# -------------------------------------------------------------------------------------- keys of models

KEY = "sk-canary-0123456789"


@pytest.mark.parametrize("text", [KEY, f"  {KEY}", "plain-words-of-a-key"])
def test_a_literal_key_is_in_no_dump(tmp_path: Path, text: str) -> None:
    found = settings(layer(models={"fast": {"model": "a::b", "api_key": text}}))
    assert found.models["fast"].api_key == text
    for dump in (found.model_dump(), found.model_dump(mode="json"), yaml.safe_load(config.to_yaml(found))):
        assert dump["models"]["fast"]["api_key"] == "[redacted]"
    assert text not in repr(found) and text.strip() not in redact(f"where it says {text}.")
    assert settings(layer(**found.model_dump(mode="json"))).models["fast"].api_key == "[redacted]"


@pytest.mark.parametrize("text", ["env:MY_KEY", "${MY_KEY}", "none", ""])
def test_what_is_no_key_is_dumped_as_it_is(text: str) -> None:
    found = settings(layer(models={"fast": {"api_key": text}}))
    assert found.model_dump()["models"]["fast"]["api_key"] == text


@pytest.mark.parametrize("value", [[KEY], {KEY: 1}, 12345678901])
def test_a_wrong_kind_of_key_is_not_shown(value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(layer(models={"fast": {"api_key": value}}))
    assert caught.value.message.startswith("models.fast.api_key")
    assert str(value)[:8] not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("env:A_B", "A_B"),
        ("${A_B}", "A_B"),
        (" env:x ", "x"),
        ("env:", None),
        ("$A", None),
        ("env:a b", None),
        ("${1}", None),
        ("", None),
    ],
)
def test_references_to_variables(text: str, name: str | None) -> None:
    assert config.variable_of(text) == name
