"""Servers that others wrote, run here: `transformers serve` with a small model, and the proxy of litellm."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

STARTUP_S = 180.0
"""The longest wait for a server; on an idle machine each of them takes some ten seconds."""

_POLL_S = 0.1
_TRIES = 3
_ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class RealServer:
    """A server that is up. ``model`` is the id that it knows its model by."""

    address: str
    model: str
    key: str = ""

    @property
    def base_url(self) -> str:
        return f"{self.address}/v1"

    def environ(self) -> dict[str, str]:
        """The variables that make this server the default provider."""
        key = {"OPENAI_API_KEY": self.key} if self.key else {}
        return {"OPENAI_BASE_URL": self.base_url, **key}


@contextmanager
def transformers_serve(folder: Path, model: Path) -> Iterator[RealServer]:
    """`transformers serve`, pinned to the model in ``model``; its log and caches go to ``folder``."""
    name = f"./{model.name}"

    def command(port: int) -> list[str]:
        program = str(Path(sys.executable).with_name("transformers"))
        return [program, "serve", name, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]

    more = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "OMP_NUM_THREADS": "1"}
    with _running(folder, command, more, directory=model.parent, health="/health") as address:
        yield RealServer(address, name)


def gateway_command() -> Path | None:
    """The program of the Python environment ``CORERUN_TEST_GATEWAY``, else of ``.gateway``, if there."""
    home = Path(os.environ.get("CORERUN_TEST_GATEWAY") or _ROOT / ".gateway")
    command = home / "bin" / "litellm"
    return command if command.exists() else None


@contextmanager
def litellm_gateway(
    folder: Path, upstreams: Mapping[str, tuple[str, str]], command: Path
) -> Iterator[RealServer]:
    """The proxy of litellm; its model is the first of ``upstreams``: name -> base URL and model there."""
    folder.mkdir(parents=True)
    routes = [
        {
            "model_name": name,
            "litellm_params": {"model": f"openai/{model}", "api_base": url, "api_key": "none"},
        }
        for name, (url, model) in upstreams.items()
    ]
    # Its retries and pauses would only hide what an upstream says.
    config = {
        "model_list": routes,
        "litellm_settings": {"num_retries": 0, "telemetry": False},
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), "utf-8")
    key = f"sk-{secrets.token_hex(24)}"

    def start(port: int) -> list[str]:
        return [str(command), "--config", str(path), "--host", "127.0.0.1", "--port", str(port)]

    more = {"LITELLM_MASTER_KEY": key, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with _running(folder, start, more, directory=folder, health="/health/liveliness") as address:
        yield RealServer(address, next(iter(upstreams)), key)


def free_port() -> int:
    """A port of 127.0.0.1 at which nobody listens; somebody may take it before it is used."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


# ------------------------------------------------------------------------------------ processes


@contextmanager
def _running(
    folder: Path,
    command: Callable[[int], Sequence[str]],
    more: Mapping[str, str],
    *,
    directory: Path,
    health: str,
) -> Iterator[str]:
    """A server's address, while it runs in a process group of its own and without our environment."""
    folder.mkdir(parents=True, exist_ok=True)
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder), **more}
    log = folder / "server.log"
    for attempt in range(_TRIES):
        port = free_port()
        with log.open("wb") as output:
            process = subprocess.Popen(
                command(port),
                cwd=directory,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            if _is_up(process, f"http://127.0.0.1:{port}{health}"):
                yield f"http://127.0.0.1:{port}"
                return
        finally:
            _stop(process)
        # The one failure that another try can mend is a port that was taken meanwhile.
        said = log.read_text("utf-8", "replace")
        if "address already in use" not in said.lower() or attempt == _TRIES - 1:
            raise AssertionError(f"the server didn't start: {said[-2000:]}")


def _is_up(process: subprocess.Popen[bytes], health: str) -> bool:
    """Wait until the server is healthy; False: it ended, or it took too long."""
    deadline = time.monotonic() + STARTUP_S
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(health, timeout=5) as answer:
            return bool(answer.status == 200)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_S)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
            return
