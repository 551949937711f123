"""Freed memory, given back to the system: glibc keeps most of it, for allocations to come."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

LARGE = 256 << 20
"""Bytes (256 MiB) of a process from which its freed memory is worth the time.

Chosen by hand: a run over a small model stays below. What is given back takes time again once it is
needed, about 0.1 ms a MiB.
"""

GROWN = 64 << 20
"""Bytes (64 MiB) by which it must have grown until cycles are collected again: that takes as long
as there are objects, a second where they are millions. Chosen by hand.
"""


def give_back() -> None:
    """Give freed memory back where the process is large and its allocator is glibc's.

    After a session of a language model of 538 MB was closed, glibc kept 285 MB. In a run over it 30
    clones of its graph, 250 MB, waited for the collector of cycles.
    """
    trim = _trim()
    if trim is None:
        return
    resident = _resident()
    if resident <= LARGE:
        return
    _Kept.bytes = min(_Kept.bytes, resident)
    has_grown = resident > _Kept.bytes + GROWN
    if has_grown:
        gc.collect()
    trim(0)
    if has_grown:
        _Kept.bytes = _resident()


class _Kept:
    """Bytes of this process after cycles were collected last, or the fewest since."""

    bytes = 0


@functools.cache
def _trim() -> Callable[[int], int] | None:
    """The function `malloc_trim` of glibc; None where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    with contextlib.suppress(OSError, AttributeError):
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
        return trim
    return None


def _resident() -> int:
    """Bytes of this process that are in memory."""
    # pages: of the address space, then of what is in memory
    pages = Path("/proc/self/statm").read_text().split()
    return int(pages[1]) * os.sysconf("SC_PAGE_SIZE")
