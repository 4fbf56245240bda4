"""All escapes, and the programs that only work."""

from __future__ import annotations

from tests.escapes import (
    artifacts,
    harmless,
    kernel,
    leftovers,
    network,
    processes,
    reading,
    resources,
    writing,
)
from tests.support.containment import Escape

TABLES = (reading, writing, network, processes, resources, kernel, artifacts, leftovers)
ESCAPES: list[Escape] = [escape for table in TABLES for escape in table.ESCAPES]
HARMLESS: list[Escape] = harmless.ESCAPES
