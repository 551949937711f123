"""Search for what breaks a property of a model: the pass, then its rewrite or its layer."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from .. import CheckError, OnnxOptError, UsageError
from ..passes._core.contract import Pass
from ..passes._core.outcome import PassOutcome
from ..passes._core.pipeline import Pipeline, as_pipeline
from ..passes._core.weights import weights_of
from ._compare import Closeness
from ._run.attempt import PassAttempt
from ._run.bisection import Bisection, GaveUp, Problem, first_bad
from ._run.context import TrainingContext, context_of
from ._run.evidence import gather_inputs
from ._run.load import load_original
from ._run.run import Run, open_run
from ._run.settings import ProgressBar, RunSettings
from ._run.step import Checked, check_loaded, tried
from ._run.verify import Verification, Verifier

TRIES = 200
"""Runs of a pass, at most; halving 2^64 rewrites takes 64."""

SECONDS = 3600.0
"""Seconds of one run of a check command, and of a whole search. Chosen by hand; not measured."""


@dataclass(frozen=True)
class Bisected:
    """Finding of a bisection.

    `number`: of the first pass after which the property no longer holds, from 1; None: it holds to
    the end. `problem`: in words. `rewrite`: of an exact pass, its JSON form. `layer`: of a lossy
    pass, its weight. `runs` of passes that the search took.
    """

    passes: str
    property: str
    number: int | None = None
    text: str | None = None
    problem: str | None = None
    rewrite: dict[str, Any] | None = None
    layer: str | None = None
    runs: int = 0
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """The pass, its problem, and the rewrite or layer, a line each."""
        if self.number is None:
            return [f"good to the end: {self.property}"]
        lines = [f"pass {self.number}: {self.text}: {self.problem}"]
        if self.rewrite is not None:
            number = "rewrite {number} of {count}: {pass}, {rule} at {where}"
            lines.append(number.format(**self.rewrite))
        if self.layer is not None:
            lines.append(f"layer: {self.layer}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        culprit = None
        if self.number is not None:
            culprit = {"number": self.number, "text": self.text}
        return {
            "passes": self.passes,
            "property": self.property,
            "pass": culprit,
            "problem": self.problem,
            "rewrite": self.rewrite,
            "layer": self.layer,
            "runs": self.runs,
            "warnings": list(self.warnings),
        }


def bisect(
    model: str | Path | ir.Model,
    passes: str | Pipeline | Iterable[str | Pass | ir.passes.PassBase],
    *,
    data: Any = None,
    check: str | None = None,
    min_sqnr: float | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    target: str = "cpu",
    seed: int = 0,
    threads: int = 0,
    progress: ProgressBar | None = None,
) -> Bisected:
    """Find the pass of a pipeline that breaks a property, and the rewrite or layer by which.

    The property: after each pass the model is valid, runs and keeps its interface, after an exact
    one with the same outputs up to float noise. In its place, if given: `check`, a command that
    gets the path of a model and exits with 0 where that is good; `min_sqnr` (dB), `atol` and
    `rtol`, limits of the outputs against the original's.

    Errors: UsageError (options), RefusedError (model, data), CheckError where the model breaks the
    property before any pass.
    """
    settings = RunSettings(
        model=model if isinstance(model, ir.Model) else Path(model),
        pipeline=as_pipeline(passes),
        target=target,
        data=data,
        seed=seed,
        bench=False,
        progress=progress,
        threads=threads,
    )
    with open_run(settings) as run:
        original, loaded = load_original(run)
        inputs = gather_inputs(run, original, loaded)
        context = context_of(run, original, inputs, loaded)
        verifier = Verifier(run.scratch, original, inputs.reference)
        properties = _Properties(verifier, check, atol, rtol, min_sqnr)
        checked = check_loaded(verifier, loaded)
        problem = properties.problem_of(loaded)
        if problem is not None:
            raise CheckError(
                "bisect",
                f"the model is not good before any pass: {problem.text}",
                "give a check that the model passes as it is",
            )
        search = _PassSearch(run, verifier, context, properties)
        found = search.through(checked)
        return dataclasses.replace(found, warnings=tuple(run.reporter.warnings))


@dataclass(frozen=True)
class _Properties:
    """The property that is asked for; the three limits are against the original's outputs."""

    verifier: Verifier
    check: str | None
    atol: float | None
    rtol: float | None
    min_sqnr: float | None

    def __post_init__(self) -> None:
        if self._compares and self.verifier.reference is None:
            raise UsageError(
                "--min-sqnr, --atol, --rtol",
                "cannot be checked: the model is not run, or not comparable",
                "give --check with a command of your own",
            )

    @property
    def _compares(self) -> bool:
        limits = (self.atol, self.rtol, self.min_sqnr)
        return any(limit is not None for limit in limits)

    @property
    def words(self) -> str:
        """The property in words."""
        parts = []
        if self.check is not None:
            parts.append(f"{self.check} exits with 0")
        if self.min_sqnr is not None:
            parts.append(f"SQNR of at least {self.min_sqnr:g} dB")
        if self.atol is not None or self.rtol is not None:
            limits = f"atol {self.atol or 0:g} + rtol {self.rtol or 0:g} |y|"
            parts.append(f"outputs within {limits}")
        return "; ".join(parts) or "valid, runs, same interface; exact passes are exact"

    def is_default(self) -> bool:
        """True where none was asked for."""
        return self.check is None and not self._compares

    def problem_of(self, model: ir.Model) -> Problem | None:
        """Say why a model is not good by what was asked for; None if it is, or nothing was."""
        if self.is_default():
            return None
        with self.verifier.file_of(model) as path:
            text = self._refusal(path)
        return None if text is None else Problem(text)

    def _refusal(self, path: Path) -> str | None:
        if self.check is not None:
            code = _exit_code(self.check, path)
            if code != 0:
                return f"the check exits with {code}"
        reference = self.verifier.reference
        if reference is None or not self._compares:
            return None
        try:
            outputs = reference.outputs(path)
            limits = Closeness(self.atol, self.rtol)
            for expected, got in zip(reference.original, outputs, strict=True):
                limits.update(dict(expected), dict(got))
        except OnnxOptError as error:
            return f"{error.where}: {error.problem}"
        return limits.problem(self.min_sqnr)


def _exit_code(command: str, path: Path) -> int:
    """Run a user's command on a model. Errors: UsageError where there is no such command."""
    try:
        done = subprocess.run(
            [*shlex.split(command), str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
            check=False,
        )
    except (OSError, ValueError) as error:
        raise UsageError(
            "--check", f"cannot be run: {error}", "give a command, as 'python check.py'"
        ) from None
    except subprocess.TimeoutExpired:
        return 124
    return done.returncode


@dataclass
class _PassSearch:
    """The passes one after the other, up to the first that breaks the property."""

    run: Run
    verifier: Verifier
    context: TrainingContext
    properties: _Properties
    runs: int = 0

    def through(self, checked: Checked) -> Bisected:
        """Run the pipeline from a model that is good."""
        pipeline = self.run.settings.pipeline
        found = Bisected(str(pipeline), self.properties.words)
        for number, pass_ in enumerate(pipeline.passes, 1):
            with self.run.reporter.progress(str(pass_)):
                trial = self._attempt(checked, pass_)
                if trial.problem is not None:
                    found = dataclasses.replace(
                        found,
                        number=number,
                        text=str(pass_),
                        problem=trial.problem.text,
                    )
                    found = self._closer(found, checked, pass_, trial.problem)
                    break
            is_lossy = pass_.effect == "lossy" and trial.outcome.changed > 0
            checked = Checked(
                trial.model,
                trial.verification.outputs,
                is_exact=checked.is_exact and not is_lossy,
            )
        return dataclasses.replace(found, runs=self.runs)

    def _attempt(self, checked: Checked, pass_: Pass) -> PassAttempt:
        """Apply a pass to a clone of the model before it, and judge the result."""
        self.runs += 1
        baseline = checked.baseline(self.verifier, checked.model)

        def judge(model: ir.Model, outcome: PassOutcome) -> Verification:
            if not self.properties.is_default():
                return Verification(self.properties.problem_of(model))
            return self.verifier.verify(model, pass_.effect, baseline, False)

        try:
            trial = tried(self.run, self.context, pass_, checked.model.clone(), judge)
        except UsageError:
            raise
        except OnnxOptError as error:
            # a lossy pass that fails
            problem = Problem(f"{error.where}: {error.problem}")
            return PassAttempt(checked.model, PassOutcome(), Verification(problem), 0.0)
        assert trial is not None
        return trial

    def _closer(
        self, found: Bisected, checked: Checked, pass_: Pass, problem: Problem
    ) -> Bisected:
        """Add the rewrite of an exact pass, or the layer of a lossy one, if either is to blame."""
        if pass_.effect == "lossy":
            return self._with_layer(found, checked, pass_, problem)
        search: Bisection[PassAttempt] = Bisection(
            lambda: self._attempt(checked, pass_), TRIES
        )
        search.deadline += SECONDS
        try:
            _, gate = search.run()
            culprit = search.culprit(frozenset(), problem, gate)
        except GaveUp:
            return found
        if culprit is None:
            return found
        rewrite = {
            "number": culprit.number,
            "count": culprit.count,
            "pass": culprit.rewrite.pass_name,
            "rule": culprit.rewrite.rule,
            "where": culprit.rewrite.where,
        }
        return dataclasses.replace(found, rewrite=rewrite, problem=culprit.problem.text)

    def _with_layer(
        self, found: Bisected, checked: Checked, pass_: Pass, problem: Problem
    ) -> Bisected:
        lossy: Any = pass_
        excluded = getattr(lossy, "exclude", None)
        if not isinstance(excluded, tuple):
            return found
        weights, _ = weights_of(checked.model)
        names = [weight.name for weight in weights]

        def problem_after(count: int) -> Problem | None:
            left = (*excluded, *names[count:])
            narrowed = dataclasses.replace(lossy, exclude=left)
            return self._attempt(checked, narrowed).problem

        try:
            first = first_bad(0, len(names), problem_after, problem)
        except UsageError:
            # not every weight is one that the pass knows
            return found
        if first is None:
            return found
        number, why = first
        return dataclasses.replace(found, layer=names[number - 1], problem=why.text)
