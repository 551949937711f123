"""Channel pruning over a zoo of architectures, or over any folder of .onnx files: how much goes,
and is it right.

    python tools/dev/bench_zoo.py [--ratio 0.5] [--only 'resnet*,text.*'] [--folder F] [--no-build]
                                  [--options TEXT] [--json]

Builds the graphs of `zoo` that match --only into --folder (a temporary one by default; files that
are there already are kept; those that torch exports need torch), or with --no-build takes the .onnx
files found there. Prunes each as a user would, through `optimize`, writes the result and examines
the file itself: onnx.checker, strict shape inference where the original passes it, ONNX Runtime at
two batch sizes where the batch is open.

Columns: nodes of the original; parameters before and after, counted in the files; fractions of
parameters and of MACs (as the pass counts them) removed; valid; error, relative, of the pruned
graph against the original with the removed channels shut off (as measured by the pass; `-` where it
ran neither); seconds of the pass; what is wrong, or what was left and why. A graph counts as pruned
where the file is valid and its parameters are more than 3 % fewer. Exits 1 when a file is invalid
or the pass failed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path

import onnx
import zoo
from onnx_opt import OnnxOptError, optimize
from onnx_opt.runtime.feeds import Batch, candidate_feeds
from onnx_opt.runtime.session import Session, open_session
from onnx_opt.runtime.worker import Worker

CUT = 0.03  # of the parameters: below it a graph counts as not pruned
EXACT = 1e-3  # relative error that is float noise


@dataclass
class Row:
    """One graph. `problem`: why the result is invalid or missing; `kept`: why little was pruned."""

    name: str
    nodes: int = 0
    params: int = 0
    params_after: int = 0
    macs: int | None = None
    macs_after: int | None = None
    error: float | None = None
    seconds: float = 0.0
    problem: str = ""
    kept: str = ""

    @property
    def cut(self) -> float:
        """Fraction of the parameters removed."""
        return 1 - self.params_after / self.params if self.params else 0.0

    @property
    def macs_cut(self) -> float | None:
        """Fraction of the MACs removed; None where unknown."""
        return (
            1 - self.macs_after / self.macs
            if self.macs and self.macs_after is not None
            else None
        )

    @property
    def ok(self) -> bool:
        return not self.problem and self.cut > CUT

    def __str__(self) -> str:
        macs = "     -" if self.macs_cut is None else f"{self.macs_cut:6.1%}"
        error = "      -" if self.error is None else f"{self.error:7.0e}"
        verdict = "no " if self.problem else "yes"
        return (
            f"{self.name:36s} {self.nodes:5d} {self.params:9,d} "
            f"{self.params_after:9,d} {self.cut:6.1%} {macs}  "
            f"{verdict}   {error} {self.seconds:6.2f}  {(self.problem or self.kept)[:160]}"
        ).rstrip()


def main() -> int:
    options = parsed()
    rows = []
    with tempfile.TemporaryDirectory() as temporary, Worker(timeout=120) as worker:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        more = f", {options.options}" if options.options else ""
        text = f"prune-channels(ratio={options.ratio}{more})"
        show(
            options,
            f"{'graph':36s} nodes    params     after    cut   MACs  valid   error      s",
        )
        for path in files(folder, options):
            rows.append(row_of(path, Path(temporary) / "pruned.onnx", text, worker))
            show(options, str(rows[-1]))
    show(options, summary(rows))
    if options.json:
        print(
            json.dumps(
                {
                    "graphs": [
                        asdict(r) | {"ok": r.ok, "cut": r.cut, "macs_cut": r.macs_cut}
                        for r in rows
                    ],
                    "summary": summary(rows),
                },
                indent=2,
            )
        )
    return int(any(r.problem for r in rows))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument(
        "--only", default="*", help="globs of graph names, separated by commas"
    )
    parser.add_argument(
        "--folder", type=Path, help="where the graphs are built and kept"
    )
    parser.add_argument(
        "--no-build", action="store_true", help="take the .onnx files of --folder"
    )
    parser.add_argument(
        "--options", default="", help="more options of the pass, as pipeline text"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="one JSON object on stdout, the table on stderr",
    )
    options = parser.parse_args()
    if options.no_build and options.folder is None:
        parser.error("--no-build needs --folder")
    return options


def show(options: argparse.Namespace, line: str) -> None:
    print(line, file=sys.stderr if options.json else sys.stdout, flush=True)


def files(folder: Path, options: argparse.Namespace) -> Iterator[Path]:
    """The graphs' files, each built when its turn comes."""
    if options.no_build:
        patterns = options.only.split(",")
        yield from (
            p
            for p in sorted(folder.rglob("*.onnx"))
            if any(fnmatch(p.stem, pattern) for pattern in patterns)
        )
        return
    for _, build in zoo.graphs(options.only):
        yield build(folder)


def row_of(path: Path, out: Path, text: str, worker: Worker) -> Row:
    """Prune one file and examine what came out."""
    row = Row(path.stem)
    out.unlink(missing_ok=True)
    try:
        result = optimize(path, text, out=out, bench=False, threads=1, force=True)
    except OnnxOptError as error:
        row.problem = str(error).splitlines()[0]
        return row
    except Exception as error:  # a bug of the pass is a figure of this table
        row.problem = f"crash: {type(error).__name__}: {error}".splitlines()[0]
        return row
    before, after, step = result.input, result.output, result.passes[0]
    row.nodes, row.params, row.params_after = (
        before.nodes or 0,
        before.params or 0,
        after.params or 0,
    )
    row.macs, row.macs_after = (
        step.stats.get("macs_before"),
        step.stats.get("macs_after"),
    )
    row.seconds, row.error = step.seconds, step.stats.get("error")
    if step.rolled_back:
        row.problem = "rolled back: " + "; ".join(result.warnings)
    else:
        row.problem = problem_of(path, out, worker)
    if not row.ok and step.declined:
        row.kept = "; ".join(f"{d['where']}: {d['reason']}" for d in step.declined[:2])
    return row


def problem_of(original: Path, pruned: Path, worker: Worker) -> str:
    """Say what is wrong with the pruned file; empty when it is sound."""
    try:
        onnx.checker.check_model(str(pruned), full_check=infers(original))
        return running_problem(
            open_session(worker, original, threads=1),
            open_session(worker, pruned, threads=1),
        )
    except (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        OnnxOptError,
    ) as error:
        return str(error).splitlines()[0]


def infers(path: Path) -> bool:
    """True if it passes strict inference, without data propagation: onnx 1.23 loses the axis that
    Unsqueeze adds to a Range there, and refuses valid files.
    """
    try:
        onnx.shape_inference.infer_shapes(
            onnx.load(path), check_type=True, strict_mode=True
        )
    except onnx.shape_inference.InferenceError:
        return False
    return True


def running_problem(original: Session, pruned: Session) -> str:
    """Run both on made-up feeds of two batch sizes that the original accepts; the shapes must
    agree.
    """
    sizes: set[int] = set()
    for batch in accepted(original):
        ours, theirs = pruned.run(batch.feeds), original.run(batch.feeds)
        shapes = {name: (ours[name].shape, theirs[name].shape) for name in theirs}
        different = [
            f"{name} is {a} instead of {b}" for name, (a, b) in shapes.items() if a != b
        ]
        if different:
            return "; ".join(different)
        sizes.add(next((a.shape[0] for a in batch.feeds.values() if a.ndim), 1))
        if len(sizes) == 2:
            break
    original.close()
    pruned.close()
    return "" if sizes else "the original accepts no made-up feed"


def accepted(session: Session) -> Iterator[Batch]:
    for feeds in candidate_feeds(session.inputs, 0, batches=1):
        for batch in feeds:
            try:
                session.run(batch.feeds)
            except OnnxOptError:
                continue  # a size that the original was not made for
            yield batch


def summary(rows: Sequence[Row]) -> str:
    """The figures of the whole table in one line."""
    if not rows:
        return "no graphs"
    invalid = sum(bool(r.problem) for r in rows)
    cuts = [r.cut for r in rows if not r.problem]
    measured = [r.error for r in rows if r.error is not None]
    exact = sum(error <= EXACT for error in measured)
    return (
        f"{len(rows)} graphs: {sum(r.ok for r in rows)} pruned "
        f"({sum(r.ok for r in rows) / len(rows):.1%}), "
        f"median cut {statistics.median(cuts) if cuts else 0:.1%} of the parameters, "
        f"{invalid} invalid or failed, "
        f"{exact} of {len(measured)} exact (largest error {max(measured, default=0):.1e}), "
        f"{sum(r.seconds for r in rows):.0f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
