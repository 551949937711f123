"""Rarer searches for garbage: a graph is many long-lived objects, and none of them is any.

At CPython's own thresholds half the time of a large graph goes to walking it for cycles.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

THRESHOLDS = (100_000, 50, 100)
"""Allocations, and collections of each younger generation, before a collection.

Far above CPython's own. Chosen by hand: the gain was measured, not the best values.
"""


def collect_rarely() -> None:
    """Set the thresholds for the rest of the process."""
    gc.set_threshold(*THRESHOLDS)


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    """Collect rarely while the block runs: the process is the caller's."""
    before = gc.get_threshold()
    # who collects more rarely already, or never, goes on so
    if before[0] == 0 or before[0] >= THRESHOLDS[0]:
        yield
        return
    collect_rarely()
    try:
        yield
    finally:
        gc.set_threshold(*before)
