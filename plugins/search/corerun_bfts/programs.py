"""Experiment programs as text: taking them out of answers, seeding them, reading what they saved."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_OPENING = re.compile(r"^[ \t]*```[ \t]*(?:python3?|py)?[ \t]*\n", re.MULTILINE | re.I)
_CLOSING = re.compile(r"^[ \t]*```[ \t]*$", re.MULTILINE)
READER = (Path(__file__).parent / "inside" / "reader.py").read_text(encoding="utf-8")
KEPT_CHARS = 2500


def extract_script(text: str) -> str:
    """The first fence of an answer that compiles. Raises ``ValueError`` as `extract_program` does."""
    return _programs(text)[1][0]


def extract_program(text: str) -> tuple[str, str]:
    """Plan and program of an answer: the prose before the first fence, and all fences that compile.

    Raises ``ValueError`` with the problem, for the model to read.
    """
    plan, programs = _programs(text)
    return plan, "\n".join(programs)


def _programs(text: str) -> tuple[str, list[str]]:
    blocks = list(_fenced(text))
    if not blocks:
        raise ValueError("no ```python block was found; answer with exactly one, closed by ```")
    good: list[str] = []
    problem = ""
    for _, block in blocks:
        try:
            compile(block, "program", "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            problem = problem or f"the program doesn't compile: {error}"
        except (RecursionError, MemoryError):
            problem = problem or "the program doesn't compile: nested too deeply"
        else:
            if block.strip():
                good.append(block.rstrip() + "\n")
    if not good:
        raise ValueError(problem or "the ```python block is empty")
    return text[: blocks[0][0]].strip(), good


def _fenced(text: str) -> Iterator[tuple[int, str]]:
    """Where each closed fence of Python begins, and what stands in it."""
    # Two searches in turn, not one expression for both: on openings without end that one is quadratic.
    opening = _OPENING.search(text)
    while opening is not None and (closing := _CLOSING.search(text, opening.end())) is not None:
        yield opening.start(), text[opening.end() : closing.start()]
        opening = _OPENING.search(text, closing.end())


SEED_HEADER = """\
# Seed of this run
import os
import random

os.environ["CORERUN_SEED"] = "{seed}"
random.seed({seed})
try:
    import numpy

    numpy.random.seed({seed})
except ImportError:
    pass
"""
TORCH_HEADER = """\
try:
    import torch

    torch.manual_seed({seed})
    torch.cuda.manual_seed_all({seed})
except ImportError:
    pass
"""


def seeded(code: str, seed: int) -> str:
    """The program with a header that seeds the global generators it may draw from."""
    header = SEED_HEADER + (TORCH_HEADER if "torch" in code else "")
    return header.format(seed=seed) + "# Program\n" + code


def trimmed(output: str) -> str:
    """Output for a prompt: beyond 5,100 characters the first and last 2,500."""
    if len(output) <= 2 * KEPT_CHARS + 100:
        return output
    cut = len(output) - 2 * KEPT_CHARS
    return f"{output[:KEPT_CHARS]}\n ... [{cut} characters cut] ... \n{output[-KEPT_CHARS:]}"


def head(code: str) -> str:
    """The first line of a program, by which built-in recipes know their own configuration."""
    first = code.split("\n", 1)[0]
    return first if first.startswith("# recipe:") else ""
