"""Fails if a test was skipped for another reason than hardware or a kernel that the machine lacks."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ALLOWED = ("needs a GPU", "needs the kernel's")
"""How the reason of a skip that counts as passed begins."""


def skips(results: Path) -> list[tuple[str, str]]:
    """Test and reason of every skip in a JUnit file."""
    cases = ElementTree.parse(results).iter("testcase")
    return [
        (f"{case.get('classname')}.{case.get('name')}", skip.get("message") or "no reason")
        for case in cases
        for skip in case.iter("skipped")
    ]


def main(results: str) -> int:
    """Print the skips; 1 if one of them isn't allowed."""
    found = skips(Path(results))
    for test, reason in found:
        verdict = "allowed" if reason.startswith(ALLOWED) else "NOT ALLOWED"
        sys.stdout.write(f"skipped ({verdict}): {test}: {reason}\n")
    return int(any(not reason.startswith(ALLOWED) for _, reason in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
