"""Verification of models after a pass: structure, outputs, and what ONNX Runtime makes of them."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import onnx_ir as ir

from ... import OnnxOptError
from ...frontends.onnx_file import save
from ...passes._core.graph import all_nodes, graphs_of
from ...passes._core.ops import HALF_FLOATS
from ...passes._core.outcome import Effect
from ...runtime.compare import Drift
from ...runtime.held_outputs import HeldOutputs
from ...runtime.optimized import LEVELS, Level, optimized_counts
from ...runtime.session import LoadRefused, Session
from ...runtime.tolerance import COARSE, FLOAT32, Tolerance
from ...runtime.worker import LimitExceeded, RemoteError, WorkerDied
from .bisection import Problem
from .checks import interface_of, validity_of
from .drift import Reference, inexact
from .kernels import is_quantized
from .load import Original
from .run import Reporter

LARGE_GRAPH = 5_000
"""Nodes above which ONNX Runtime's graph is counted at its extended level alone.

It optimizes 20,000 nodes in about 1.5 s at each level. Chosen by hand.
"""

LARGE_FILE = 64 << 20
"""Bytes of a file above which it is not compared with the last. Chosen by hand; not measured."""

UNCOMPARED = "or do not compare: --verify never"
"""Way out where outputs cannot be compared."""

Counts = Mapping[Level, int]
"""Nodes of ONNX Runtime's optimized graph, by its level."""


@dataclass(frozen=True)
class Verification:
    """Verification of a model: a reason not to keep it, its drift, its outputs, its counts.

    Drift, outputs and counts are None where nothing is compared, and `counts` where none were
    needed. `fault`: words of the runtime that does not bear the model, which is then the `problem`;
    "" for every other problem.
    """

    problem: Problem | None = None
    drift: Drift | None = None
    outputs: HeldOutputs | None = None
    counts: Counts | None = None
    fault: str = ""


@dataclass(frozen=True, eq=False)
class Baseline:
    """The model that a pass starts from, and its runs: measured when first asked for.

    `outputs`: None where nothing is compared. `known_counts`: its counts, if known. `is_exact`: it
    equals the original up to float noise.
    """

    verifier: Verifier
    model: ir.Model
    outputs: HeldOutputs | None
    known_counts: Counts | None = None
    is_exact: bool = True

    @cached_property
    def noise(self) -> Mapping[str, Drift]:
        """Drift of this model from itself without ONNX Runtime's optimizations, per output."""
        reference = self.verifier.reference
        if reference is None or self.outputs is None:
            return {}
        with (
            self.verifier.reporter.progress("measure float noise"),
            self.verifier.file_of(self.model) as path,
        ):
            return reference.noise_of(path, self.outputs)

    @cached_property
    def counts(self) -> Counts | None:
        """Nodes of ONNX Runtime's optimized graph; None where it does not tell."""
        if self.known_counts is not None:
            return self.known_counts
        return self.verifier.counts_of(self.model)


@dataclass
class LastRuns:
    """The last file that ran, by its digest, and what came of it: equal files need no other run.

    A pass that finds nothing to do, and the steps of a pipeline after the last change, make such.
    """

    digest: bytes | None = None
    outputs: HeldOutputs | None = None
    counts: Counts | None = None

    def known(
        self, digest: bytes | None, is_counted: bool
    ) -> tuple[HeldOutputs, Counts | None] | None:
        """Outputs and counts of an equal file; None where they are not known."""
        if digest is None or digest != self.digest or self.outputs is None:
            return None
        if is_counted and self.counts is None:
            return None
        return self.outputs, self.counts if is_counted else None


@dataclass(frozen=True)
class Verifier:
    """Verification of models against the original; `reference` None: in structure only."""

    scratch: Path
    original: Original
    reference: Reference | None
    reporter: Reporter = field(default_factory=Reporter)
    last: LastRuns = field(default_factory=LastRuns, repr=False)

    def verify(
        self,
        model: ir.Model,
        effect: Effect,
        baseline: Baseline,
        is_counted: bool = True,
    ) -> Verification:
        """Check a model after a pass that started from `baseline`.

        An exact one must give the same outputs and, where `is_counted`, not cost ONNX Runtime a
        fusion.
        """
        problem = self.original.interface.difference(interface_of(model))
        if problem is None:
            # the costly check second
            with self.reporter.progress("check structure"):
                validity = validity_of(model)
            problem = validity.worse_than(self.original.validity)
        if problem:
            return Verification(Problem(problem))
        if self.reference is None:
            return Verification()
        is_exact = effect != "lossy"
        try:
            outputs, counts = self.runs_of(model, is_exact and is_counted)
            drift = self.reference.from_original(
                outputs, is_exact and baseline.is_exact
            )
        except (LoadRefused, RemoteError, WorkerDied) as error:
            # the original ran on the same feeds: neither they nor a limit are new
            is_limit = isinstance(error, LimitExceeded)
            fault = "" if is_limit else error.problem
            return Verification(Problem(error.problem), fault=fault)
        except OnnxOptError as error:
            text = f"{error.where}: {error.problem}"
            return Verification(Problem(text, fix=f"{error.fix}; {UNCOMPARED}"))
        fault = ""
        if is_exact:
            problem = self.inexact(model, baseline, outputs)
        elif drift.nonfinite:
            problem = f"{drift.nonfinite} output values are no longer finite"
            fault = problem
        if problem:
            return Verification(Problem(problem), drift, outputs, fault=fault)
        if not is_exact:
            return Verification(None, drift, outputs)
        if not is_counted:
            return Verification(None, drift, outputs, baseline.known_counts)
        return Verification(_lost_fusions(baseline, counts), drift, outputs, counts)

    @contextlib.contextmanager
    def file_of(self, model: ir.Model) -> Iterator[Path]:
        """Provide a file of a model while the block runs: only one takes room on the disk."""
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            path = Path(folder, "candidate.onnx")
            save(model, path, durable=False)
            yield path

    def counts_of(self, model: ir.Model) -> Counts | None:
        """Nodes of ONNX Runtime's optimized graph; None where nothing is run, or it cannot say."""
        if self.reference is None:
            return None
        try:
            with (
                self.reporter.progress("count optimized nodes"),
                self.file_of(model) as path,
                self.reference.opened(path) as session,
            ):
                return _counts(session, model, path.parent)
        except OnnxOptError:
            return None

    def runs_of(
        self, model: ir.Model, is_counted: bool
    ) -> tuple[HeldOutputs, Counts | None]:
        """Outputs and counts of a model, of one file and one session.

        Errors: as `Reference.outputs`.
        """
        assert self.reference is not None
        step = self.reporter.progress
        with (
            step("compare outputs"),
            self.file_of(model) as path,
        ):
            digest = _digest(path)
            known = self.last.known(digest, is_counted)
            if known is not None:
                return known
            with self.reference.opened(path) as session:
                outputs = self.reference.outputs_of(session)
                counts = None
                if is_counted:
                    with step("count optimized nodes"):
                        counts = _counts(session, model, path.parent)
            self.last.digest = digest
            self.last.outputs = outputs
            self.last.counts = counts
            return outputs, counts

    def inexact(
        self, model: ir.Model, baseline: Baseline, outputs: HeldOutputs
    ) -> str | None:
        """Say why a model's outputs are not the baseline's up to float noise; None if they are."""
        assert baseline.outputs is not None
        tolerance = _tolerance(model)
        problem = inexact(baseline.outputs, outputs, tolerance)
        if problem is None:
            return None
        # the model's own noise takes another run: measured only where it matters
        return inexact(baseline.outputs, outputs, tolerance, baseline.noise)


def _digest(path: Path) -> bytes | None:
    """Digest of a file that holds a whole model; None for one with weights beside it, or a large
    one, which takes as long to read as to run.
    """
    is_whole = len(list(path.parent.iterdir())) == 1
    if not is_whole or path.stat().st_size > LARGE_FILE:
        return None
    return hashlib.sha256(path.read_bytes()).digest()


def _counts(session: Session, model: ir.Model, folder: Path) -> Counts | None:
    nodes = sum(len(graph) for graph in graphs_of(model))
    levels: Sequence[Level] = ("extended",) if nodes > LARGE_GRAPH else LEVELS
    try:
        return optimized_counts(session, levels, folder)
    except OnnxOptError:
        # some optimized graphs cannot be written, of models that run all the same
        return None


def _lost_fusions(baseline: Baseline, counts: Counts | None) -> Problem | None:
    """Level at which ONNX Runtime has more nodes left than of the baseline; None if at none."""
    if counts is None or baseline.counts is None:
        return None
    for level, count in counts.items():
        before = baseline.counts.get(level, count)
        if count > before:
            text = (
                f"it costs a fusion of ONNX Runtime: {count} nodes are left instead of "
                f"{before} (level {level})"
            )
            return Problem(text, is_fault=False)
    return None


def _tolerance(model: ir.Model) -> Tolerance:
    # judged by the model as it is now: an exact pass may follow quant
    if is_quantized(model):
        return COARSE
    for node in all_nodes(model):
        if any(output.dtype in HALF_FLOATS for output in node.outputs):
            return COARSE
    return FLOAT32
