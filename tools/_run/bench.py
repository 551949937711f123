"""Latency of models side by side, in one child process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...runtime.bench import Latency, interleaved
from ...runtime.session import Session

SECONDS = 2.0
"""How long a comparison runs by default."""


def compare_latency(
    open_session: Callable[[Path], Session],
    paths: Sequence[Path],
    feeds: Sequence[Mapping[str, Any]],
    seconds: float = SECONDS,
) -> list[Latency]:
    """Interleaved latency of the models at `paths` on the same feeds; ratios are to the first."""
    sessions: list[Session] = []
    try:
        sessions.extend(open_session(path) for path in paths)
        return interleaved(sessions, [list(feeds)] * len(sessions), seconds=seconds)
    finally:
        for session in sessions:
            session.close()
