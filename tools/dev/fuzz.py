"""Random valid models and the official test models, through every pass, judged by ONNX Runtime.

    python tools/dev/fuzz.py [--models 200] [--seed 0] [--minutes M] [--suites exact,lossy,driven]
                             [--timeout 120] [--out FOLDER]
    python tools/dev/fuzz.py --official [--only TEXT]
    python tools/dev/fuzz.py --still MODEL --subject TEXT [--feeds NPZ]

Of each model: every exact pass and `simplify` must give the outputs of the original up to its own
noise (suite `exact`); lossy pipelines a valid model with the same interface that runs where the
original did (`lossy`, every 4th model); whole runs, from file to file, the same and no pass rolled
back (`driven`, every 20th). Models come from seeds S, S + 1 …; `--minutes` ends the run early.
`--official` instead takes the test models of the installed onnx package through `simplify`: where
ONNX Runtime gives the expected outputs, it must give them of the result.

Prints verdicts by subject. Models that show a fault stay in FOLDER (default: fuzz_found), as .onnx
and as text, with feeds, and with what is wrong in `failures.jsonl`. Exits with 1 if there are any.

To make one small: `onnx-opt reduce MODEL --check 'python tools/dev/fuzz.py --subject TEXT
--still'`, which exits with 0 as long as a pass or pipeline, as the table names it, is at fault.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import onnx.printer
from fuzzing import crew

EVERY = {"exact": 1, "lossy": 4, "driven": 20}
"""A suite takes each model whose seed is a multiple of its number."""

REPORT_SECONDS = 60
"""Seconds between lines that tell how far it is."""


def main() -> int:
    options = arguments()
    if options.judge:
        serve()
        return 0
    if options.still is not None:
        return still(options.still, options.subject, options.feeds)
    tally = Tally(options.out)
    with crew.Judge([__file__, "--judge"], options.timeout) as judge:
        for job, path in jobs(options, judge):
            tally.take(job, path, judge.ask(job))
    tally.show()
    return 1 if tally.failures else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the first model")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--suites", default="exact,lossy,driven")
    parser.add_argument("--all", action="store_true", help="every model in every suite")
    parser.add_argument(
        "--timeout", type=float, default=120, help="seconds a pass may take"
    )
    parser.add_argument("--out", type=Path, default=Path("fuzz_found"))
    parser.add_argument("--official", action="store_true")
    parser.add_argument(
        "--only", default="", help="official cases with this text in their name"
    )
    parser.add_argument(
        "--still", type=Path, metavar="MODEL", help="judge this model alone"
    )
    parser.add_argument("--subject", default="simplify", help="of --still")
    parser.add_argument("--feeds", type=Path, metavar="NPZ", help="of --still")
    parser.add_argument("--judge", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


Job = dict[str, Any]


def jobs(
    options: argparse.Namespace, judge: crew.Judge
) -> Iterator[tuple[Job, Path | None]]:
    """Jobs, and the file where the process leaves the model of each."""
    end = time.monotonic() + 60 * options.minutes
    options.out.mkdir(parents=True, exist_ok=True)
    for job in official_jobs(options, judge) if options.official else seeds(options):
        if time.monotonic() > end:
            return
        yield job, None if options.official else Path(job["path"])


def official_jobs(options: argparse.Namespace, judge: crew.Judge) -> Iterable[Job]:
    answer = judge.ask({"list": True}).answer
    if answer is None:
        sys.exit("error: onnx.backend.test: cannot be loaded\n  fix: install onnx anew")
    return [{"case": name} for name in answer["names"] if options.only in name]


def seeds(options: argparse.Namespace) -> Iterator[Job]:
    asked = options.suites.split(",")
    for seed in range(options.seed, options.seed + options.models):
        suites = [s for s in asked if options.all or seed % EVERY[s] == 0]
        if suites:
            path = options.out / f"{seed}.onnx"
            yield {"seed": seed, "suites": suites, "path": str(path.absolute())}


class Tally:
    """Counts of verdicts, and a record of the faults."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.refusals: Counter[str] = Counter()
        self.ops: set[str] = set()
        self.models = 0
        self.failures = 0
        self._start = self._told = time.monotonic()

    def take(self, job: Job, path: Path | None, reply: crew.Reply) -> None:
        from fuzzing.judge import GOOD

        self.models += 1
        verdicts = self._verdicts(job, reply)
        faults = [v for v in verdicts if v["kind"] not in GOOD]
        for verdict in verdicts:
            # official cases are subjects of their own: one line for all of a kind
            subject = verdict["subject"].split("/")[0]
            self.counts[subject][verdict["kind"]] += 1
            if verdict["kind"] == "refused":
                self.refusals[f"{subject}: {verdict['detail']}"] += 1
        for verdict in faults:
            self._keep(job, verdict)
        if path is not None and path.exists():
            if faults:
                text = onnx.printer.to_text(onnx.load(path))
                path.with_suffix(".txt").write_text(text)
            else:
                path.unlink()
                path.with_suffix(".npz").unlink(missing_ok=True)
        if time.monotonic() > self._told + REPORT_SECONDS:
            self._told = time.monotonic()
            print(f"{self.models} models, {self.failures} faults", file=sys.stderr)

    def _verdicts(self, job: Job, reply: crew.Reply) -> list[dict[str, Any]]:
        if reply.answer is not None:
            self.ops.update(reply.answer.get("ops", ()))
            return list(reply.answer["verdicts"])
        subject = job.get("case") or reply.phase
        kind = reply.end
        if reply.phase in crew.NOT_OURS:
            subject, kind = job.get("case") or "load", "unrunnable"
        return [{"subject": subject, "kind": kind, "detail": f"in {reply.phase}"}]

    def _keep(self, job: Job, verdict: dict[str, Any]) -> None:
        self.failures += 1
        name = job.get("case", job.get("seed"))
        print(
            f"{name}: {verdict['subject']}: {verdict['kind']}: {verdict['detail']}",
            flush=True,
        )
        with (self.out / "failures.jsonl").open("a") as file:
            print(json.dumps({"model": name, **verdict}), file=file)

    def show(self) -> None:
        kinds = sorted({kind for counts in self.counts.values() for kind in counts})
        width = max((len(subject) for subject in self.counts), default=0) + 2
        print("subject".ljust(width), *[kind.rjust(11) for kind in kinds])
        for subject, counts in self.counts.items():
            print(
                subject.ljust(width), *[str(counts[kind]).rjust(11) for kind in kinds]
            )
        for reason, count in self.refusals.most_common(12):
            print(f"refused {count}: {reason}")
        seconds = time.monotonic() - self._start
        ops = f" of {len(self.ops)} ops" if self.ops else ""
        print(f"{self.models} models{ops}, {self.failures} faults, {seconds:.0f} s")


def still(path: Path, subject: str, feeds_path: Path | None) -> int:
    """0 while a subject shows a fault of the model at `path`."""
    from fuzzing import judge
    from onnx_opt.runtime.worker import Worker

    model = onnx.load(path)
    original = judge.Original.of(model, made_up_feeds(model, feeds_path))
    if original is None:
        print("ONNX Runtime does not run it")
        return 1
    with Worker(timeout=60) as worker:
        verdict = judge.verdict_of(subject, original, judge.Phases(), worker)
    print(f"{verdict.subject}: {verdict.kind}: {verdict.detail}")
    return 1 if verdict.kind in judge.GOOD else 0


def made_up_feeds(model: onnx.ModelProto, path: Path | None) -> list[dict[str, Any]]:
    """Feeds for a model: those in the file at `path` as far as they fit, the others made up."""
    import numpy as np
    import onnx_ir as ir
    from onnx_opt.runtime.feeds import candidate_feeds
    from onnx_opt.tools._run.figures import input_infos

    infos = input_infos(ir.from_proto(model))
    known = {} if path is None else dict(np.load(path))
    random = np.random.default_rng(0)
    feeds = []
    for batches in candidate_feeds(infos, 0, batches=1):
        for batch in batches:
            feed = dict(batch.feeds)
            for name, array in feed.items():
                # of both signs: what is made up may be positive throughout
                if array.dtype.kind == "f":
                    feed[name] = array * random.choice([-1, 1], array.shape).astype(
                        array.dtype
                    )
            feeds += [{**feed, **{n: known[n] for n in feed if n in known}}, feed]
    return feeds


# in the process that judges


def serve() -> None:
    """Take jobs until the other side closes."""
    import warnings

    from fuzzing import judge, official
    from onnx_opt.runtime.worker import Worker

    # numpy warns of the NaN that models are made to give
    warnings.simplefilter("ignore")
    pipe = crew.Pipe()
    with Worker(timeout=100) as worker, tempfile.TemporaryDirectory() as scratch:
        for job in pipe.jobs():
            if "list" in job:
                pipe.answer({"names": list(official.cases())})
            elif "case" in job:
                phases = judge.Phases(pipe.phase)
                found = official.official_verdict(job["case"], phases, Path(scratch))
                pipe.answer({"verdicts": [asdict(found)]})
            else:
                pipe.answer(judge_seed(job, worker, judge.Phases(pipe.phase)))


def judge_seed(job: Job, worker: Any, phases: Any) -> dict[str, Any]:
    """Verdicts of the suites on the model of a seed, and its ops."""
    import numpy as np
    from fuzzing import judge
    from fuzzing.models import random_model

    phases.say("generate")
    generated = random_model(job["seed"])
    onnx.save(generated.model, job["path"])
    np.savez(Path(job["path"]).with_suffix(".npz"), **generated.feeds[0])
    phases.say("original")
    original = judge.Original.of(generated.model, generated.feeds)
    if original is None:
        return {"verdicts": [asdict(judge.Verdict("load", "unrunnable"))]}
    phases.say("load")
    verdicts = []
    for suite in job["suites"]:
        verdicts += judge.SUITES[suite](original, phases, worker)
    return {"verdicts": [asdict(v) for v in verdicts], "ops": sorted(generated.ops)}


if __name__ == "__main__":
    sys.exit(main())
