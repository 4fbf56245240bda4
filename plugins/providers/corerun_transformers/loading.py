"""Finds a model by folder or hub id and loads it with its tokenizer, and with an adapter if it is one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from corerun.errors import AuthFailed, EnvironmentRefused, ModelError, ModelNotFound, ModelUnusable, Transient
from corerun.inputs.documents import read_json
from corerun.redaction import redact

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_EXTRA = "pip install 'corerun[train]'"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja"]
_TRUST = "a model on the hub whose code you have read: extra_body: {trust_remote_code: REPO@COMMIT}"
_WITH_CODE = ("config.json", "tokenizer_config.json", "generation_config.json")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHARD = re.compile(r"[\w-][\w.-]*\.safetensors")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True, slots=True)
class Source:
    """Which weights, and where they are to run; what is empty is chosen by `load`.

    ``trusted`` is ``REPO@COMMIT`` of a model on the hub whose own Python code may run; else none may.
    """

    model: str
    adapter: str = ""
    device: str = ""
    dtype: str = ""
    trusted: str = ""

    @property
    def revision(self) -> str:
        """The commit whose code is trusted; empty: none is. Raises `ModelUnusable` for anything vague."""
        repository, _, commit = self.trusted.rpartition("@")
        if self.trusted and (repository != self.model or not _COMMIT.fullmatch(commit)):
            raise ModelUnusable(
                f"trust_remote_code is {self.trusted!r}, not {self.model}@COMMIT",
                hint="COMMIT is all 40 digits of the one whose code you have read",
            )
        return commit


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to run. ``context`` is its window in tokens, ``ends`` the tokens that stop it.

    ``exact``: its arithmetic is fine enough for rows of one batch not to change each other's tokens.
    """

    model: Any
    tokenizer: Any
    device: Any
    context: int | None
    ends: frozenset[int]
    exact: bool


def require(*packages: str) -> None:
    """Raise `EnvironmentRefused` naming those of ``packages`` that aren't installed; imports none."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise EnvironmentRefused(
            f"models in this process need {', '.join(missing)}, not installed here", hint=_EXTRA
        )


def load(source: Source, *, offline: bool, token: str | None) -> LoadedModel:
    """The model of ``source``, ready to answer; ``offline``: the hub isn't asked, only its cache.

    Raises `ModelNotFound`, `ModelUnusable`, `AuthFailed`, `EnvironmentRefused`, or `Transient` when
    the hub can't be reached.
    """
    require("torch", "transformers", "safetensors")
    folder = _find(source.model, None, offline, token, source.revision)
    adapter = _find(source.adapter, None, offline, token) if source.adapter else None
    if (folder / ADAPTER_CONFIG).is_file():
        adapter = adapter or folder
        folder = _find(_base_name(folder), folder, offline, token)
    _check_weights(folder)
    if adapter is not None:
        _check_adapter(adapter)
    try:
        with _no_bars():
            return _load(folder, adapter, source)
    except ModelError:
        raise
    except Exception as error:
        said = redact(" ".join(str(error).split()))[:500]
        hint = _TRUST if "trust_remote_code" in said else ""
        raise ModelUnusable(
            f"{source.model} can't be loaded: {type(error).__name__}: {said}", hint=hint
        ) from error


def _load(folder: Path, adapter: Path | None, source: Source) -> LoadedModel:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    device = torch.device(source.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if source.revision:
        _check_code(folder)
    local = {"local_files_only": True, "trust_remote_code": bool(source.revision)}
    config = AutoConfig.from_pretrained(folder, **local)
    dtype = _dtype(source.dtype, config.dtype, device)
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **local
    )
    absent = sorted({*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])})
    if absent:
        raise ModelUnusable(
            f"{source.model} lacks {len(absent)} of its weights, such as {absent[0]}",
            hint="copy the checkpoint again, all of its files",
        )
    model = model.to(device)
    spoken = folder
    if adapter is not None:
        model = _adapted(model, adapter, device)
        spoken = adapter if (adapter / "tokenizer_config.json").is_file() else folder
    tokenizer = AutoTokenizer.from_pretrained(spoken, **local)
    ends = model.generation_config.eos_token_id
    found = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    exact = dtype in (torch.float32, torch.float64)
    return LoadedModel(model.eval(), tokenizer, device, context, frozenset(found), exact)


def _dtype(wanted: str, stored: Any, device: Any) -> Any:
    """What is asked for, else bfloat16 on a GPU; a CPU is slow with halves and gets float32."""
    import torch

    if wanted:
        named = getattr(torch, wanted, None)
        if not isinstance(named, torch.dtype) or not named.is_floating_point:
            raise ModelUnusable(f"{wanted!r} is no dtype of weights", hint="float32, bfloat16 or float16")
        return named
    if device.type == "cuda":
        return torch.bfloat16
    return torch.float64 if stored == torch.float64 else torch.float32


def _adapted(model: Any, adapter: Path, device: Any) -> Any:
    import warnings

    require("peft")
    from peft import PeftModel

    with warnings.catch_warnings():
        # Its use of names that transformers is about to retire is nothing that a user could change.
        warnings.simplefilter("ignore", FutureWarning)
        # Weights that aren't there would be random ones.
        warnings.filterwarnings("error", "Found missing adapter keys")
        wrapped = PeftModel.from_pretrained(model, str(adapter), torch_device=str(device))
    if wrapped.active_peft_config.is_prompt_learning:
        raise ModelUnusable(f"{adapter} holds a tuned prompt, not weights such as LoRA's")
    return wrapped.get_base_model()


def _find(name: str, beside: Path | None, offline: bool, token: str | None, revision: str = "") -> Path:
    """The folder of ``name``, from the hub if there is none here; ``beside``: looked in first.

    With a ``revision`` it is that commit of the hub, with its code.
    """
    if revision:
        return _from_hub(name, offline, token, revision)
    path = Path(name).expanduser()
    for candidate in ([beside / path] if beside is not None else []) + [path]:
        if candidate.is_dir():
            return candidate
    if path.exists():
        raise ModelNotFound(f"{name} is no folder", hint="give the folder that holds config.json")
    if not _HUB_ID.fullmatch(name):
        raise ModelNotFound(f"there is no folder {name}", hint=f"relative paths start at {Path.cwd()}")
    return _from_hub(name, offline, token)


def _from_hub(name: str, offline: bool, token: str | None, revision: str = "") -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        # Only the files at the top: folders hold other formats and checkpoints of the training.
        return Path(
            snapshot_download(
                name,
                revision=revision or None,
                local_files_only=offline,
                token=token,
                allow_patterns=[*_FILES, "*.py"] if revision else _FILES,
                ignore_patterns=["*/*"],
            )
        )
    except errors.GatedRepoError:
        raise AuthFailed(
            f"the hub lets only approved accounts load {name}", hint="ask for access there and set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelNotFound(
            f"{name} is neither a folder here nor a model on the hub",
            hint=f"relative paths start at {Path.cwd()}; a private model needs HF_TOKEN",
        ) from None
    except errors.LocalEntryNotFoundError as error:
        if offline:
            raise ModelNotFound(
                f"{name} is neither a folder here nor in the cache of the hub",
                hint=f"relative paths start at {Path.cwd()}; unset CORERUN_OFFLINE to load it from the hub",
            ) from None
        raise _unreachable(name, error) from None
    except Exception as error:
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> Transient:
    said = redact(" ".join(str(error).split()))[:200]
    return Transient(f"{name} is no folder here and couldn't be loaded from the hub: {said}")


def _base_name(adapter: Path) -> str:
    path = adapter / ADAPTER_CONFIG
    config = read_json(path, error=ModelUnusable)
    name = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(name, str) or not name:
        raise ModelUnusable(f"{path} doesn't name a base model (base_model_name_or_path)")
    return name


def _check_weights(folder: Path) -> None:
    for path in sorted(folder.glob("*.safetensors.index.json")):
        index = read_json(path, error=ModelUnusable)
        parts = index.get("weight_map") if isinstance(index, dict) else None
        for part in parts.values() if isinstance(parts, dict) else ():
            if not _SHARD.fullmatch(str(part)):
                raise ModelUnusable(f"{path} names {str(part)[:200]!r}, which is no *.safetensors beside it")
    if any(folder.glob("*.safetensors")):
        return
    pickled = next((path.name for pattern in _PICKLED for path in sorted(folder.glob(pattern))), None)
    if pickled is not None:
        raise ModelNotFound(
            f"{folder} holds weights only as {pickled}, which is never loaded: a pickle can run any code",
            hint="save them as safetensors where you trust them: model.save_pretrained(FOLDER)",
        )
    raise ModelNotFound(f"{folder} holds no weights (*.safetensors)")


def _check_code(folder: Path) -> None:
    """Refuse code of other repositories than the one that is trusted."""
    for name in _WITH_CODE:
        if (folder / name).is_file():
            config = read_json(folder / name, error=ModelUnusable)
            if isinstance(config, dict) and "--" in str(config.get("auto_map")):
                raise ModelUnusable(f"{folder / name} names Python code of another repository")


def _check_adapter(folder: Path) -> None:
    """Of what peft would load or import from an adapter's folder, only its safetensors are taken."""
    _check_weights(folder)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ModelNotFound(f"{folder} holds no {ADAPTER_WEIGHTS}")
    config = read_json(folder / ADAPTER_CONFIG, error=ModelUnusable)
    if isinstance(config, dict) and config.get("megatron_config"):
        raise ModelUnusable(
            f"{folder / ADAPTER_CONFIG} wants a module of its choice imported (megatron_core)"
        )


@contextmanager
def _no_bars() -> Iterator[None]:
    """A bar per load would be drawn through the progress of the run."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
