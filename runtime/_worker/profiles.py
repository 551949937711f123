"""Time of each node of a session, by ONNX Runtime's own profiler."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import light_load, ort_values
from .ipc import Providers
from .sessions import optimized_options

NODE_EVENT = "_kernel_time"
"""End of the name of an event that is of one run of one node."""


def profile(
    path: str,
    providers: Providers,
    feeds: Sequence[Mapping[str, Any]],
    runs: int,
    threads: int,
    out: str,
) -> dict[str, float]:
    """Run a model so often: the time of each node in ms, by the node's name.

    It is the lower quartile: other programs only ever add time.

    Writes the optimized graph of the very session that was timed to `out`: names of its nodes may
    differ from those of another session.
    """
    settings = optimized_options(threads, out)
    settings.enable_profiling = True
    settings.profile_file_prefix = str(Path(out).with_suffix(".profile"))
    session = light_load.load(path, settings, providers)
    for number in range(runs):
        ort_values.run(session, None, feeds[number % len(feeds)])
    events = Path(session.end_profiling())
    times: dict[str, list[float]] = defaultdict(list)
    for event in json.loads(events.read_text()):
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(NODE_EVENT):
            times[name.removesuffix(NODE_EVENT)].append(event["dur"] / 1e3)
    return {name: sorted(own)[len(own) // 4] for name, own in times.items()}
