"""Nodes that ONNX Runtime has left of models, before and after an exact pipeline: never more.

    python tools/dev/count_fusions.py [--passes simplify] [--only 'resnet*,text.*'] [--zoo FOLDER]
                                      [FOLDER …]

Counts its optimized graph of each .onnx file under the FOLDERs (default: $ONNX_OPT_DATA/models,
else ../shared/data/models beside the repository) and, with --zoo, of every graph of `zoo`, built
there. Prints nodes as written, then those left at each level, before -> after; rewrites that were
left out; and what is wrong. Exits 1 when a file has more nodes left than its original.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

import onnx
import zoo
from onnx_opt import OnnxOptError, optimize
from onnx_opt.runtime.optimized import LEVELS, optimized_counts
from onnx_opt.runtime.session import open_session
from onnx_opt.runtime.worker import Worker

LEFT_OUT = " left out: "


def main() -> int:
    options = parsed()
    print(f"{'model':36s} {'nodes':>12s} " + " ".join(f"{x:>12s}" for x in LEVELS))
    counted = worse = unrun = 0
    with tempfile.TemporaryDirectory() as temporary, Worker(timeout=300) as worker:
        out = Path(temporary, "out.onnx")
        for path in files(options):
            line, is_worse = compared(path, out, options.passes, worker)
            counted += is_worse is not None
            unrun += is_worse is None
            worse += bool(is_worse)
            print(f"{path.stem:36s} {line}", flush=True)
    print(f"{counted} models counted, {worse} with more nodes, {unrun} not run")
    return int(worse > 0)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = Path(__file__).resolve().parents[2]
    data = os.environ.get("ONNX_OPT_DATA", root / "../shared/data")
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--passes", default="simplify")
    parser.add_argument("--only", default="*", help="globs of names, by commas")
    parser.add_argument("--zoo", type=Path, help="where graphs are built and kept")
    options = parser.parse_args()
    if not options.folders and not options.zoo:
        options.folders = [Path(data, "models")]
    return options


def files(options: argparse.Namespace) -> Iterator[Path]:
    patterns = options.only.split(",")
    for folder in options.folders:
        for path in sorted(folder.rglob("*.onnx")):
            if any(fnmatch(path.stem, pattern) for pattern in patterns):
                yield path
    if options.zoo:
        options.zoo.mkdir(parents=True, exist_ok=True)
        for _, build in zoo.graphs(options.only):
            yield build(options.zoo)


def compared(
    path: Path, out: Path, passes: str, worker: Worker
) -> tuple[str, bool | None]:
    """One line of the table, and whether nodes are more; None where the model does not run."""
    try:
        before = counts(path, worker)
    except OnnxOptError as error:
        return f"does not run: {error.problem}"[:100], None
    try:
        result = optimize(path, passes, out=out, bench=False, force=True)
        after = counts(out, worker)
    except OnnxOptError as error:
        return f"{error.where}: {error.problem}"[:100], True
    left_out = sum(
        LEFT_OUT in each["reason"] for step in result.passes for each in step.declined
    )
    worse = [level for level in LEVELS if after[level] > before[level]]
    note = f" {left_out} left out" if left_out else ""
    note += "".join(f"  {w}" for w in result.warnings if "rolled back" in w)
    note += f"  MORE NODES: {', '.join(worse)}" if worse else ""
    pairs = [f"{before[level]} -> {after[level]}" for level in before]
    return " ".join(f"{pair:>12s}" for pair in pairs) + note, bool(worse)


def counts(path: Path, worker: Worker) -> Mapping[str, int]:
    """Nodes as written, and those that ONNX Runtime has left at each level."""
    session = open_session(worker, path)
    try:
        written = len(onnx.load(path, load_external_data=False).graph.node)
        return {"written": written, **optimized_counts(session)}
    finally:
        session.close()


if __name__ == "__main__":
    sys.exit(main())
