"""Rows for servers that refuse without a word, which show the order in which features are left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tests.support.fault_server import Vendor
from tests.support.faults.rows import FULL, SAMPLED, STRUCTURED, Row, lacks
from tests.support.openai_server import fault

BARE = fault(400)
PROMPTED = {"OAIC_DISABLE_TOOLS": "1"}


def rows() -> Iterator[Row]:
    """``requests``: one more than the rungs up to the refused feature, as nothing is named."""
    for name, request, feature, requests in (
        ("seed", FULL, "seed", 2),
        ("effort", FULL, "reasoning_effort", 3),
        ("token-limit", FULL, "max_tokens", 4),
        ("tools", FULL, "tools", 5),
        ("effort-without-seed", replace(FULL, seed=None), "reasoning_effort", 2),
        (
            "tools-without-parameters",
            replace(STRUCTURED, seed=None, reasoning_effort=None, max_tokens=None),
            "tools",
            2,
        ),
    ):
        yield Row(f"blind-{name}", request, Vendor({feature: BARE}), requests=requests, blind=True)
    yield Row(
        "blind-response-format",
        STRUCTURED,
        Vendor({"response_format": BARE}),
        requests=(5, 6),
        blind=True,
        environ=PROMPTED,
        last=[lacks("response_format")],
    )
    both = Vendor({"tools": BARE, "functions": BARE})
    yield Row("blind-tools-and-functions", FULL, both, requests=6, again=2, blind=True)
    yield Row("blind-images", FULL, Vendor({"images": BARE}), requests=(7, 9), blind=True)
    yield Row(
        "blind-images-of-plain-text",
        replace(SAMPLED, messages=FULL.messages),
        Vendor({"images": BARE}),
        requests=5,
        blind=True,
    )
    empty = Vendor({"seed": fault(500, "Internal Server Error")})
    yield Row("blind-after-two-internal-errors", FULL, empty, requests=3, blind=True)
    far = Vendor({"seed": BARE, "images": BARE})
    yield Row("blind-seed-and-images", FULL, far, requests=(7, 9), again=2, blind=True)
