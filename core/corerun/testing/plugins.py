"""Writes installable-looking plugins for tests, so that real discovery finds them in a child process."""

from __future__ import annotations

from pathlib import Path


def write_plugin(
    folder: Path, name: str, source: str, *, distribution: str | None = None, version: str = "0.1"
) -> Path:
    """Write a module and the metadata of a distribution that offers it as the plugin ``name``.

    Put ``folder`` on the child's ``PYTHONPATH``. The module is named as the distribution
    (``corerun-<name>`` unless told otherwise), with underscores. Returns the module's path.
    """
    distribution = distribution or f"corerun-{name}"
    module = distribution.replace("-", "_")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{module}.py"
    path.write_text(source, encoding="utf-8")
    metadata = folder / f"{module}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n", encoding="utf-8"
    )
    (metadata / "entry_points.txt").write_text(f"[corerun.plugins]\n{name} = {module}\n", encoding="utf-8")
    return path
