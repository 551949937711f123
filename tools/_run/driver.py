"""One run, step by step: load, prepare the checks, run each pass and believe it or not, measure,
write.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import onnx_ir as ir

from ... import CheckError, OnnxOptError, RefusedError, UsageError
from ...frontends.onnx_file import check_output, load, save
from ...passes._core.contract import Pass
from ...passes._core.graph import all_nodes
from ...passes._core.normalize import normalize
from ...passes._core.ops import QUANT_OPS
from ...passes._core.outcome import PassOutcome
from ...passes._core.requirements import requirements_of
from ...passes._core.stats import model_macs
from ...passes._core.versions import LeastVersions
from ...runtime.compare import Drift
from ...runtime.hardware import hardware
from ...runtime.session import Session, open_session
from ...runtime.targets import covers, target_named
from ...runtime.worker import Worker
from .bench import compare_latency
from .checks import (
    Interface,
    Validity,
    first_line,
    forget_shapes,
    has_inner_shapes,
    interface_of,
    validity_of,
)
from .drift import COARSE, FLOAT32, Outputs, Referee, Tolerance, inexact, meter
from .evidence import Evidence, gather_evidence
from .explain_loss import Stage, explain
from .figures import expected_bytes, figures_of, weight_bytes
from .kernels import compare_kernels, is_quantized, remedy
from .metric import measure_metric
from .provenance import sha256_of, stamp
from .result import LARGE, Result, Settings, Step
from .training_context import TrainingContext

HALF = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


class Run:
    """The state of one run. Use as a context manager: leaving it ends the worker and removes
    temporary files.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.warnings: list[str] = []
        self.worker = Worker()
        self.steps: list[Step] = []
        self.applied: list[str] = []
        self.stages: list[Stage] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Run:
        self._stack.enter_context(self.worker)
        self.scratch = Path(
            self._stack.enter_context(tempfile.TemporaryDirectory(prefix="onnx-opt-"))
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._stack.close()

    def result(self) -> Result:
        """Do everything, in order."""
        self._load()
        self._gather()
        for pass_ in self.settings.pipeline.passes:
            self._step(pass_)
        self._say_if_nothing_changed()
        result = self._finish()
        result.loss = self._losses()
        for feeds in (self.evidence.calibration, self.evidence.labelled):
            for message in feeds.warnings if feeds else ():
                self._warn("data", message)
        return result

    # load

    def _load(self) -> None:
        settings = self.settings
        target_named(settings.target)
        source = settings.model if isinstance(settings.model, Path) else None
        if settings.out is not None:
            check_output(settings.out, source, settings.force)
        loaded = (
            load(settings.model)
            if isinstance(settings.model, Path)
            else settings.model.clone()
        )
        self.interface: Interface = interface_of(loaded)
        self.validity: Validity = validity_of(loaded)
        self.large = weight_bytes(loaded) > LARGE
        self.runs = settings.verify == "always" or (
            settings.verify == "auto" and not self.large
        )
        if not self.runs:
            self._say_not_run()
        self.sha256 = sha256_of(source) if source else None
        self.original = (
            source.absolute() if source else self._saved(loaded, "input.onnx")
        )
        self.about = self._described(loaded)
        self.input = figures_of(loaded, self.original, count_nonzero=not self.large)
        self.had_shapes = has_inner_shapes(loaded)
        self.model = loaded
        self.quantized_before = is_quantized(loaded)
        normalize(self.model)
        self.input.macs = model_macs(self.model)
        problem = self.interface.difference(interface_of(self.model))
        if problem:
            raise _our_fault(f"loading changes the model: {problem}")
        if self.validity != Validity(None, None):
            self.validity = self.validity.or_as(validity_of(self.model))

    def _say_not_run(self) -> None:
        why = (
            "--verify never"
            if self.settings.verify == "never"
            else "its weights are above 1 GiB"
        )
        for option, asked in (
            ("--strict", self.settings.strict),
            ("--min-sqnr", self.settings.min_sqnr is not None),
        ):
            if asked:
                raise RefusedError(
                    option,
                    f"cannot be checked: the model is not run ({why})",
                    "pass --verify always",
                )
        self._warn(
            "verify",
            f"checked in structure only, not run, not timed ({why}); --verify always runs it",
        )

    def _saved(self, model: ir.Model, name: str) -> Path | None:
        """A file of the model for the child to run; None where this run never runs it."""
        if not self.runs and self.settings.metric is None:
            return None
        path = self.scratch / name
        save(model, path)
        return path

    def _described(self, model: ir.Model) -> dict[str, object]:
        return {
            "path": str(self.settings.model)
            if isinstance(self.settings.model, Path)
            else None,
            "name": model.graph.name,
            "sha256": self.sha256,
            "producer": " ".join(
                filter(None, (model.producer_name, model.producer_version))
            )
            or None,
            "ir_version": model.ir_version,
            "opset": {
                domain or "ai.onnx": version
                for domain, version in model.opset_imports.items()
            },
            "passes": str(self.settings.pipeline),
            "target": self.settings.target,
            "seed": self.settings.seed,
        }

    # evidence

    def _gather(self) -> None:
        """Open the data; run the original; decide what can be proved about the passes."""
        self.evidence: Evidence = gather_evidence(
            self.settings,
            self.worker,
            self.model,
            self.original if self.runs else None,
            self._warn,
        )
        runs_any = self.runs or self.settings.metric is not None
        self.hardware = hardware(
            self.worker if runs_any else None, self.evidence.provider or "cpu"
        )
        self._say_if_another_cpu()
        self.context = TrainingContext(
            self.worker,
            self.evidence.calibration,
            self.settings.target,
            self.settings.seed,
            save,
            warn=self._warn,
            progress=self.settings.progress,
            provider=self._provider(),
            threads=self.settings.threads,
            latency_feeds=self.evidence.latency_feeds if self._on_target() else (),
            runs=self.runs,
        )
        self.context.teacher, self.context.resume = (
            self._teacher(),
            self.settings.resume,
        )
        self.referee: Referee | None = self.evidence.referee
        if self.referee is None:
            return
        outputs = self._candidate_outputs()
        problem = self._inexact(self.referee.original, outputs)
        if problem:
            raise _our_fault(f"the model as loaded computes something else: {problem}")
        self.outputs: Outputs = outputs

    def _on_target(self) -> bool:
        """Whether this CPU is one that the result is made for, so that its timings decide
        anything.
        """
        return covers(target_named(self.settings.target), self.hardware)

    def _say_if_another_cpu(self) -> None:
        if self._on_target() or self.hardware.saturates is None:
            return
        target = target_named(self.settings.target)
        figures = (
            "drift, metric and latency are" if self.hardware.saturates else "latency is"
        )
        self._warn(
            f"target {target.name}",
            f"made for {target.cpus}, but this is {self.hardware.label}: {figures} "
            "this CPU's, and no layer stays float for being slow here",
        )

    def _teacher(self) -> ir.Model:
        """What training learns from: the original, or the model that was named."""
        given = self.settings.teacher
        if given is None:
            return self.model.clone()
        teacher = load(given) if isinstance(given, Path) else given.clone()
        normalize(teacher)
        return teacher

    def _provider(self) -> str | None:
        """Where passes may run and time what they make: where the model is made for, if the
        original runs there.
        """
        made_for_it = self.settings.target != "generic"
        return (
            self.evidence.provider
            if self.evidence.referee is not None and made_for_it
            else None
        )

    def _candidate_outputs(self) -> Outputs:
        assert self.referee is not None
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            path = Path(folder, "candidate.onnx")
            save(self.model, path)
            return self.referee.outputs(path)

    def _inexact(self, reference: Outputs, outputs: Outputs) -> str | None:
        """Why the outputs are not equal up to float noise; the model's own noise is measured only
        where it matters.
        """
        assert self.referee is not None
        tolerance = self._tolerance()
        if inexact(reference, outputs, tolerance) is None:
            return None
        return inexact(reference, outputs, tolerance, self.referee.noise())

    def _tolerance(self) -> Tolerance:
        coarse = any(
            n.op_type in QUANT_OPS or any(o.dtype in HALF for o in n.outputs)
            for n in all_nodes(self.model)
        )
        return COARSE if coarse else FLOAT32

    # passes

    def _step(self, pass_: Pass) -> None:
        step = Step(pass_.name, str(pass_))
        before = self.model.clone()
        self.context.float_form = None
        with self._progress(str(pass_)):
            start = time.perf_counter()
            problem, outcome = self._attempt(pass_)
            step.seconds = time.perf_counter() - start
            drift = None
            if problem is None:
                problem, drift = self._doubt(pass_)
        step.declined = [dataclasses.asdict(d) for d in outcome.declined]
        step.stats = dict(outcome.stats)
        self.steps.append(step)
        if problem is None:
            step.changed, step.drift = (
                outcome.changed,
                None if drift is None else as_figures(drift),
            )
            self.applied.append(str(pass_))
            if (
                self.settings.explain_loss
                and pass_.effect == "lossy"
                and outcome.changed
            ):
                self._note_stage(pass_, before)
            return
        if pass_.effect == "lossy" or self.settings.strict:
            raise CheckError(
                str(pass_),
                problem,
                "leave this pass out, or exclude the part of the model that it names",
            )
        self.model, step.rolled_back = before, True
        self._warn(str(pass_), f"rolled back: {problem}")

    def _note_stage(self, pass_: Pass, before: ir.Model) -> None:
        """Keep what a lossy pass started from; one that refines quantized layers belongs to the
        pass before it.
        """
        if (
            self.stages
            and self.context.float_form is None
            and any(n.op_type in QUANT_OPS for n in all_nodes(before))
        ):
            self.stages[-1].result = self.model.clone()
        else:
            self.stages.append(
                Stage(pass_, self.context.float_form or before, self.model.clone())
            )

    def _losses(self) -> list[dict[str, object]] | None:
        """What each layer lost, where that was asked for; empty with a warning where models are not
        run.
        """
        if not self.settings.explain_loss:
            return None
        if self.referee is None:
            self._warn("--explain-loss", "nothing to explain: the model was not run")
            return []
        with self._progress("explaining the loss"):
            return explain(self.worker, self.stages, self.referee.batches)

    def _attempt(self, pass_: Pass) -> tuple[str | None, PassOutcome]:
        """Run the pass; (what went wrong, its account)."""
        try:
            return None, pass_.run(self.model, self.context)
        except UsageError:
            raise
        except OnnxOptError as error:
            if pass_.effect == "lossy" or self.settings.strict:
                raise
            return f"{error.where}: {error.problem}", PassOutcome()
        except Exception as error:
            problem = f"{type(error).__name__}: {first_line(error)}"
            if pass_.effect == "lossy":
                raise OnnxOptError(
                    str(pass_),
                    f"failed: {problem}",
                    "run without this pass; --debug shows the traceback to report",
                ) from error
            return problem, PassOutcome()

    def _doubt(self, pass_: Pass) -> tuple[str | None, Drift | None]:
        """Check the model as it is after a pass: (why not to believe the pass, drift from the
        original).
        """
        problem = self.interface.difference(interface_of(self.model))
        problem = problem or validity_of(self.model).worse_than(self.validity)
        if problem or self.referee is None:
            return problem, None
        try:
            outputs = self._candidate_outputs()
            drift = self.referee.from_original(outputs)
        except OnnxOptError as error:
            return f"{error.where}: {error.problem}", None
        if pass_.effect != "lossy":
            problem = self._inexact(self.outputs, outputs)
        elif drift.nonfinite:
            problem = f"{drift.nonfinite} output values are no longer finite"
        if problem is None:
            self.outputs = outputs
        return problem, drift

    def _say_if_nothing_changed(self) -> None:
        if any(step.changed for step in self.steps):
            return
        reasons = Counter(d["reason"] for step in self.steps for d in step.declined)
        why = "; ".join(
            f"{reason} ({count})" for reason, count in reasons.most_common(3)
        )
        self._warn("nothing changed", why or "no pass found anything to do")

    # measure and write

    def _finish(self) -> Result:
        settings = self.settings
        self.macs = model_macs(self.model)
        self._lower_versions()
        if not self.had_shapes:
            forget_shapes(self.model)
        requires = requirements_of(self.model)
        stamp(
            self.model,
            ", ".join(self.applied),
            self.sha256,
            settings.seed,
            settings.target,
            cpu=self.hardware.label,
            min_runtime=requires.onnxruntime,
        )
        out = (
            settings.out if settings.out is not None and not settings.dry_run else None
        )
        result = Result(
            self.model,
            self.about,
            self.input,
            dataclasses.replace(self.input),
            self.steps,
            None,
            self.warnings,
            str(out) if out else None,
            requires=requires.as_dict(),
            drift_on=self.evidence.drift_on,
            hardware=self.hardware,
        )
        if out is not None:
            result.files = save(
                self.model, out, check=lambda path: self._judge(path, result)
            )
            result.model = self.written
        elif self.runs or settings.metric is not None:
            path = self.scratch / "output.onnx"
            save(self.model, path)
            self._judge(path, result)
        else:
            result.output = figures_of(self.model, None, count_nonzero=not self.large)
            result.output.macs = self.macs
            result.output.bytes = expected_bytes(self.model)
        return result

    def _lower_versions(self) -> None:
        """Ask for no newer opset and IR version than the content needs; proved like an exact pass,
        or left alone.
        """
        before, lowering = self.model.clone(), LeastVersions()
        problem, outcome = self._attempt(lowering)
        if problem is None and outcome.changed:
            problem, _ = self._doubt(lowering)
        if problem is not None:
            self.model = before
            self._warn("opset", f"not lowered: {problem}")

    def _judge(self, path: Path, result: Result) -> None:
        """Check and measure the very file that is about to be the result. Errors: CheckError where
        it fails.
        """
        self.written = load(path)
        problem = self.interface.difference(interface_of(self.written))
        if problem:
            raise _our_fault(
                f"the written file differs from what was checked: {problem}"
            )
        result.output = figures_of(self.written, path, count_nonzero=not self.large)
        result.output.macs = self.macs
        before, after = result.input.bytes, result.output.bytes
        if before and after and after > 1.01 * before:
            self._warn(
                "size", f"the result is larger: {after:,} bytes, {before:,} before"
            )
        if self.referee is not None:
            self._judge_drift(path)
        elif self.settings.min_sqnr is not None:
            raise CheckError(
                "--min-sqnr",
                "cannot be checked: there is nothing to compare with",
                "drop --min-sqnr; the warnings say why the original cannot be compared",
            )
        if self.original is not None:
            result.metric = measure_metric(
                self.settings, self.evidence, self.original, path
            )
            self._measure_latency(path, result)

    def _judge_drift(self, path: Path) -> None:
        assert self.referee is not None
        outputs = self.referee.outputs(path)
        drift = meter(self.referee.original, outputs).overall()
        self._say_if_kernels_disagree(path, outputs)
        limit = self.settings.min_sqnr
        if limit is not None and drift.sqnr_db < limit:
            raise CheckError(
                "--min-sqnr",
                f"the result has {drift.sqnr_db:.1f} dB, below the {limit:g} dB asked for",
                "lower --min-sqnr, choose gentler passes, or calibrate on more --data",
            )
        for step in reversed(self.steps):
            if step.drift is not None:
                step.drift = as_figures(drift)
                break

    def _say_if_kernels_disagree(self, path: Path, outputs: Outputs) -> None:
        """Warn where this CPU's integer kernels lose what the graph as written does not."""
        assert self.referee is not None
        if self.hardware.provider != "cpu" or not is_quantized(self.written):
            return
        with self._progress("comparing kernels with the graph"):
            kernels = compare_kernels(
                self._open_on_cpu,
                path,
                self.written,
                self.hardware,
                self.referee.batches,
                outputs,
                None if self.quantized_before else self.referee.original,
            )
        if kernels is not None and kernels.disagree:
            what_helps = remedy(self.written, self.hardware, self.settings.target)
            self._warn("kernels", f"{kernels.words(self.hardware)}; {what_helps}")

    def _open_on_cpu(
        self, path: Path, optimize: bool = True, exact: bool = False
    ) -> Session:
        return open_session(
            self.worker,
            path,
            threads=self.settings.threads,
            optimize=optimize,
            exact=exact,
        )

    def _measure_latency(self, path: Path, result: Result) -> None:
        if (
            not self.settings.bench
            or not self.evidence.latency_feeds
            or self.original is None
        ):
            return
        try:
            with self._progress("measuring latency"):
                before, after = compare_latency(
                    self.evidence.open,
                    [self.original, path],
                    self.evidence.latency_feeds,
                )
        except RefusedError as error:
            self._warn("bench", f"latency was not measured: {error.problem}")
            return
        result.input.latency_ms, result.output.latency_ms = (
            before.median_ms,
            after.median_ms,
        )
        if after.ratio_to_first > 1.05 and after.min_ms > 1.05 * before.min_ms:
            where = (
                ""
                if self._on_target()
                else f" on this CPU, which is not one of {self.settings.target}'s"
            )
            self._warn(
                "latency",
                f"the result is slower{where}: {after.median_ms:.3g} ms, {before.median_ms:.3g} ms "
                f"before (ratio {after.ratio_to_first:.2f})",
            )

    def _warn(self, where: str, message: str) -> None:
        text = f"{where}: {message}"
        if text not in self.warnings:
            self.warnings.append(text)

    @contextlib.contextmanager
    def _progress(self, label: str) -> Iterator[None]:
        if self.settings.progress is None:
            yield
            return
        with self.settings.progress(label, 1) as advance:
            yield
            advance(1)


def _our_fault(problem: str) -> CheckError:
    return CheckError(
        "check", problem, "this is a fault in onnx-opt: please report it with the model"
    )


def as_figures(drift: Drift) -> dict[str, float]:
    """The three figures of the JSON form."""
    return {"sqnr_db": drift.sqnr_db, "cosine": drift.cosine, "max_abs": drift.max_abs}
