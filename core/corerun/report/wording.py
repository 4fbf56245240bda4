"""The lines of a terminal as pure functions: one node, the state so far, the result."""

from __future__ import annotations

from collections.abc import Mapping

from corerun.interfaces import Json
from corerun.redaction.terminal import one_line

_SUMMARY_WIDTH = 1000


def clean(text: str, width: int = 240) -> str:
    """One line, at most ``width`` long, without control characters, escapes or direction overrides."""
    line = one_line(text).strip()
    return line if len(line) <= width else line[: width - 3] + "..."


def short(value: float | None, signed: bool = False) -> str:
    """Four significant decimals, or ``-`` when there is no value."""
    if value is None:
        return "-"
    sign = "+" if signed else ""
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        return f"{value:{sign}.2e}"
    return f"{value:{sign}.4f}" if abs(value) < 100 else f"{value:{sign}.1f}"


def amount(tokens: int) -> str:
    """Tokens as ``950``, ``12.3k`` or ``1.2M``."""
    if tokens < 1000:
        return str(tokens)
    return f"{tokens / 1000:.1f}k" if tokens < 999_950 else f"{tokens / 1e6:.2f}M"


def dollars(usd: float | None) -> str:
    """US dollars; ``$?`` when no price is known."""
    if usd is None:
        return "$?"
    return "$0" if usd == 0 else f"${usd:.4f}" if usd < 0.1 else f"${usd:.2f}"


def elapsed(seconds: float) -> str:
    """``12.3s``, ``4m05s`` or ``2h03m``."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def node_line(
    *, stage: str, node: str, parent: str | None, op: str, status: str, score: float | None,
    delta: float | None, tokens: int, usd: float | None, seconds: float, reason: str = "",
) -> str:  # fmt: skip
    """One finished node: ``s2 1a2b3c4d < 9f8e7d6c improve good 0.9431 +0.0121 3.2kt $0.0040 12.3s``."""
    line = f"{stage} {node[:8]} < {parent[:8] if parent else 'root':<8} {op:<8} {status:<7} "
    line += f"{short(score):>7} {short(delta, signed=True):>8} "
    line += f"{amount(tokens):>6}t {dollars(usd):>8} {elapsed(seconds)}"
    return clean(f"{line}  {reason}" if reason else line)


def status_line(
    *, stage: str, good: int, failed: int, running: int, limit: int | None, metric: str,
    best: float | None, tokens: int, usd: float, seconds: float,
) -> str:  # fmt: skip
    """Where the run stands: stage, nodes, best, what it used up so far."""
    of_limit = f" of {limit}" if limit else ""
    nodes = f"{good + failed}{of_limit} nodes ({good} good, {failed} failed, {running} running)"
    used = f"{amount(tokens)} tokens  {dollars(usd)}  {elapsed(seconds)}"
    return clean(f"{stage or 'starting'}  {nodes}  best {metric} {short(best)}  {used}")


def summary_line(
    *, status: str, metric: str, maximize: bool, best: float | None, result: Mapping[str, Json],
    nodes: int, failed: int, planted: int,
) -> str:  # fmt: skip
    """What the run came to, honestly: the seed mean with its spread, and the gain over the first good.

    ``result`` is what `corerun.report.results.outcome` returns. A gain within the spread of the
    seeds is called that.
    """
    parts = [f"{status or 'done'}: best {metric} {short(best)} on validation"]
    rows = {"val": "seed mean", "test": "test"}
    for name, label in rows.items():
        side = result["best"][name]
        if side is not None:
            parts.append(f"{label} {_mean(side)}")
    gains = [_gain(name, result, maximize) for name in rows if result["gain"][name] is not None]
    if gains:
        parts.append("against the first good node, same sets and seeds: " + ", ".join(gains))
    return clean("; ".join([*parts, counts(nodes, failed, planted)]), _SUMMARY_WIDTH)


def counts(nodes: int, failed: int, planted: int) -> str:
    """``34 nodes, 4 failed, 3 of them planted``."""
    text = f"{nodes} nodes, {failed} failed"
    return f"{text}, {planted} of them planted" if planted else text


def _mean(side: Mapping[str, Json]) -> str:
    text = short(side["mean"])
    text += f" +- {short(side['sd'])}" if side["sd"] is not None else ""
    return f"{text} ({side['n']} seeds)" if side["n"] is not None else text


def _gain(name: str, result: Mapping[str, Json], maximize: bool) -> str:
    gain = result["gain"][name]
    change = gain["value"] if maximize else -gain["value"]
    label = "validation" if name == "val" else "test"
    text = f"{label} {short(result['first_good'][name]['mean'])} {short(change, signed=True)}"
    if gain["spread"] is None or gain["beyond"]:
        return text
    return f"{text} ({'no gain' if gain['value'] <= 0 else 'within the seed spread'})"
