"""Weights and data that are pickles: no file that somebody hands over runs code in corerun's processes."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from corerun.errors import ModelError, ModelNotFound, ModelUnusable
from corerun.interfaces import CallContext, ChatRequest, Connection, Message
from corerun.llm.keys import is_tracked
from corerun_transformers import loading
from corerun_transformers.loading import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Source
from corerun_transformers.provider import TransformersProvider
from tests.support.tiny_model import build_adapter, build_tiny_model

ROOT = Path(__file__).parents[1]


class Bomb:
    """Unpickled, it writes a file."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> Any:
        return Path.write_text, (self._canary, "a pickle was run")


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), path.read_text()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    return build_adapter(tmp_path_factory.mktemp("models") / "lora", tiny)


def plain_bomb(path: Path, canary: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb(canary)))


def torch_bomb(path: Path, canary: Path) -> None:
    import torch

    torch.save({"model.embed_tokens.weight": Bomb(canary)}, path)


def numpy_bomb(path: Path, canary: Path) -> None:
    import numpy as np

    with path.open("wb") as file:
        np.save(file, np.array([Bomb(canary)], dtype=object), allow_pickle=True)


BOMBS = {"pickle": plain_bomb, "torch": torch_bomb, "numpy": numpy_bomb}


def ask(model: Path | str, **options: Any) -> ChatRequest:
    return ChatRequest(str(model), (Message("user", "hi"),), max_tokens=2, extra=options)


async def load_error(model: Path | str, **options: Any) -> ModelError | None:
    """What asking the model raises; None: it answered."""
    provider = TransformersProvider(Connection("transformers", {"CORERUN_OFFLINE": "1"}))
    try:
        await provider.complete(ask(model, **options), CallContext("test.ask"))
    except ModelError as error:
        return error
    finally:
        await provider.aclose()
    return None


def test_the_bombs_go_off_where_they_are_opened(tmp_path: Path) -> None:
    import numpy as np
    import torch

    def opened(name: str, open_it: Callable[[Path], Any]) -> bool:
        canary, path = tmp_path / f"{name}-canary", tmp_path / name
        BOMBS[name](path, canary)
        open_it(path)
        return canary.exists()

    assert opened("pickle", lambda path: pickle.loads(path.read_bytes()))
    assert opened("torch", lambda path: torch.load(path, weights_only=False))
    assert opened("numpy", lambda path: np.load(path, allow_pickle=True))


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "consolidated.00.pth"]
)
@pytest.mark.parametrize("bomb", ["pickle", "torch"])
async def test_pickled_weights_are_refused_with_a_way_out(
    name: str, bomb: str, tiny: Path, tmp_path: Path, canary: Path
) -> None:
    folder = shutil.copytree(tiny, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    BOMBS[bomb](folder / name, canary)
    error = await load_error(folder)
    assert isinstance(error, ModelNotFound) and name in error.message and "any code" in error.message
    assert error.hint.startswith("save them as safetensors")


@pytest.mark.parametrize("bomb", BOMBS)
async def test_pickles_beside_the_weights_are_not_opened(
    bomb: str, tiny: Path, tmp_path: Path, canary: Path
) -> None:
    folder = shutil.copytree(tiny, tmp_path / "model")
    names = (
        "pytorch_model.bin",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "training_args.bin",
        "scaler.pt",
    )
    for name in (*names, "tokenizer.pkl", "experiment_data.npy", "adapter_model.bin", "tokenizer.model"):
        BOMBS[bomb](folder / name, canary)
    assert await load_error(folder) is None


@pytest.mark.parametrize(
    "part", ["pytorch_model.bin", "../x.safetensors", "/tmp/x.safetensors", "d/x.safetensors"]
)
async def test_an_index_leads_to_safetensors_beside_it_alone(
    part: str, tiny: Path, tmp_path: Path, canary: Path
) -> None:
    from safetensors.torch import load_file

    folder = shutil.copytree(tiny, tmp_path / "model")
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    torch_bomb(folder / "pytorch_model.bin", canary)
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "other.safetensors")}
    place = folder / "model.safetensors.index.json"
    place.write_text(json.dumps(index))
    assert await load_error(folder) is None
    index["weight_map"][names[0]] = part
    place.write_text(json.dumps(index))
    error = await load_error(folder)
    assert isinstance(error, ModelUnusable) and f"{place} names {part!r}" in error.message


async def test_safetensors_that_are_none_are_refused(tiny: Path, tmp_path: Path, canary: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "model")
    torch_bomb(folder / "model.safetensors", canary)
    assert isinstance(await load_error(folder), ModelUnusable)
    torch_bomb(tmp_path / "weights.bin", canary)
    config = json.loads((folder / "config.json").read_text())
    for name in ("adapter_model.bin", "pytorch_model.bin", "../weights.bin"):
        torch_bomb(folder / "adapter_model.bin", canary)
        (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": name}))
        assert isinstance(await load_error(folder), ModelUnusable)


# ---------------------------------------------------------------------------------------- adapters


def pickled_adapter(folder: Path, canary: Path) -> None:
    torch_bomb(folder / "adapter_model.bin", canary)
    (folder / ADAPTER_WEIGHTS).rename(folder / "other.safetensors")


def only_pickled(folder: Path, canary: Path) -> None:
    torch_bomb(folder / "adapter_model.bin", canary)
    (folder / ADAPTER_WEIGHTS).unlink()


def changed(folder: Path, change: Callable[[str, Any], Any]) -> None:
    from safetensors.torch import load_file, save_file

    weights = {name: change(name, value) for name, value in load_file(folder / ADAPTER_WEIGHTS).items()}
    kept = {name: value for name, value in weights.items() if value is not None}
    save_file(kept, folder / ADAPTER_WEIGHTS)


def other_shapes(folder: Path, canary: Path) -> None:
    changed(folder, lambda name, value: value[:, :-1].contiguous())


def incomplete(folder: Path, canary: Path) -> None:
    changed(folder, lambda name, value: None if "layers.1" in name else value)


def imports(folder: Path, canary: Path) -> None:
    (folder.parent / "planted.py").write_text(f"open({str(canary)!r}, 'w').write('imported')")
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    config |= {"megatron_config": {"x": 1}, "megatron_core": "planted"}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (pickled_adapter, f"holds no {ADAPTER_WEIGHTS}"),
        (only_pickled, r"only as adapter_model\.bin, which is never loaded"),
        (other_shapes, "size mismatch"),
        (incomplete, "missing adapter keys"),
        (imports, "wants a module of its choice imported"),
    ],
)
async def test_an_adapter_is_safetensors_that_fit(
    damage: Callable[[Path, Path], None],
    message: str,
    tiny: Path,
    lora: Path,
    tmp_path: Path,
    canary: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    folder = shutil.copytree(lora, tmp_path / "adapter")
    damage(folder, canary)
    for asked in (load_error(folder), load_error(tiny, adapter=str(folder))):
        with pytest.raises(ModelError, match=message):
            raise (await asked) or AssertionError("it was loaded")


# ------------------------------------------------------------------------------- a model's own code

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def own_code(tiny: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A model that comes with code, and the file that this code writes."""
    folder, trace = shutil.copytree(tiny, tmp_path / "coded"), tmp_path / "trace"
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    lines = [
        "from transformers import Qwen2Config, Qwen2ForCausalLM",
        f"open({str(trace)!r}, 'w').write('its code was run')",
        "class Config(Qwen2Config): model_type = 'mine'",
        "class Model(Qwen2ForCausalLM): config_class = Config",
    ]
    (folder / "mine.py").write_text("\n".join(lines))
    return folder, trace


async def test_code_of_a_model_runs_for_a_named_commit_alone(
    own_code: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    folder, trace = own_code
    asked: list[Any] = []

    def snapshot(name: str, **options: Any) -> str:
        asked.append((name, options["revision"], "*.py" in options["allow_patterns"]))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    error = await load_error(folder)
    assert error is not None and "trust_remote_code: REPO@COMMIT" in error.hint
    for vague in ("true", "org/model", "org/model@main", f"other/model@{COMMIT}", f"@{COMMIT}", COMMIT):
        error = await load_error("org/model", trust_remote_code=vague)
        assert isinstance(error, ModelUnusable) and "trust_remote_code is" in error.message
    assert asked == [] and not trace.exists()
    assert await load_error("org/model", trust_remote_code=f"org/model@{COMMIT}") is None
    assert asked == [("org/model", COMMIT, True)] and trace.read_text() == "its code was run"
    trace.unlink()
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"]["AutoConfig"] = "evil/other--mine.Config"
    (folder / "config.json").write_text(json.dumps(config))
    error = await load_error("org/model", trust_remote_code=f"org/model@{COMMIT}")
    assert error is not None and "code of another repository" in error.message


def test_a_trusted_commit_is_part_of_a_source() -> None:
    assert Source("org/model", trusted=f"org/model@{COMMIT}").revision == COMMIT
    assert Source("org/model").revision == ""
    with pytest.raises(ModelUnusable):
        loading.load(Source("org/model", trusted=f"org/model@{COMMIT[1:]}"), offline=True, token=None)


# ------------------------------------------------------------------ what no code of ours may call

UNPICKLES = {
    *("pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"),
    *("pandas.read_pickle", "torch.load", "numpy.load", "np.load", "yaml.load", "yaml.unsafe_load"),
}
ONLY_WRITES = {("core/corerun/execution/zygote.py", "marshal")}
"""It speaks to a process in a sandbox; what comes back is JSON."""
INSIDE_SANDBOXES = ("plugins/search/corerun_bfts/inside/", "core/corerun/execution/inside/")


def sources() -> Iterator[tuple[str, ast.AST]]:
    for folder in ("core", "plugins"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "templates" not in path.parts:
                yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def test_nothing_unpickles_outside_of_sandboxes() -> None:
    found = []
    for name, tree in sources():
        if name.startswith(INSIDE_SANDBOXES):
            continue
        assert "marshal.load" not in ast.unparse(tree), name
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found += [(name, alias.name) for alias in node.names if alias.name in UNPICKLES]
            elif isinstance(node, ast.ImportFrom) and node.module in UNPICKLES:
                found.append((name, node.module))
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in UNPICKLES:
                safe = "Loader" in ast.unparse(node) and "yaml" in ast.unparse(node.func)
                found += [] if safe else [(name, ast.unparse(node))]
    assert set(found) == ONLY_WRITES


def test_no_command_goes_through_a_shell() -> None:
    found = []
    for name, tree in sources():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            shell = any(word.arg == "shell" and ast.unparse(word.value) != "False" for word in node.keywords)
            if shell or called in (
                "os.system",
                "os.popen",
                "subprocess.getoutput",
                "subprocess.getstatusoutput",
            ):
                found.append((name, ast.unparse(node)))
            if (
                called.startswith("subprocess.")
                and node.args
                and isinstance(node.args[0], ast.Constant | ast.JoinedStr)
            ):
                found.append((name, ast.unparse(node)))
    assert found == []


def test_git_runs_nothing_that_a_repository_names(tmp_path: Path, canary: Path) -> None:
    for name in ("job.yaml", ":(top)job.yaml", "--upload-pack=x"):
        (tmp_path / name).write_text("x")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    add = ["git", "--literal-pathspecs", "-C", str(tmp_path), "add", "--", "job.yaml", "--upload-pack=x"]
    subprocess.run(add, check=True)
    script = tmp_path / "run.sh"
    script.write_text(f"#!/bin/sh\necho x > '{canary}'\n")
    script.chmod(0o755)
    for key in (
        "core.fsmonitor",
        "core.pager",
        "core.editor",
        "core.sshCommand",
        "diff.external",
        "alias.ls-files",
    ):
        subprocess.run(["git", "-C", str(tmp_path), "config", key, str(script)], check=True)
    for hook in (tmp_path / ".git" / "hooks").iterdir():
        shutil.copy(script, hook)
    assert is_tracked(tmp_path / "job.yaml") and is_tracked(tmp_path / "--upload-pack=x")
    assert not is_tracked(tmp_path / ":(top)job.yaml")
