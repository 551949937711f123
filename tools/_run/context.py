"""Context of a run's passes: runs models; differentiates and trains where torch is installed."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ... import RefusedError, UsageError
from ...frontends.onnx_file import load, save
from ...passes._core.context import Gradient
from ...passes._core.normalize import normalize
from ...passes._core.ops import FLOATS, is_standard
from ...passes._core.outcome import Declined, PassOutcome
from ...passes._core.scratch import scratch_folder
from ...passes._core.targets import target_named
from ...passes._core.training_recipe import TrainingRecipe
from ...passes.unpack import restore_packed
from ...runtime.context import MadeUp, RunContext
from ...runtime.session import open_session
from ...runtime.taps import with_taps
from ...runtime.worker import Worker
from .drift import NoFiniteOutputs, long_tokens, synthetic_batches
from .evidence import VerificationInputs
from .load import Original
from .run import Run
from .settings import ProgressBar

Arrays = dict[str, NDArray[Any]]
Floats = dict[str, NDArray[Any]]

BAR_STEPS = 1000
"""Steps of a progress bar over a training's whole budget."""


def context_of(
    run: Run, original: Original, inputs: VerificationInputs, model: ir.Model
) -> TrainingContext:
    """Context of a run's passes. Errors: RefusedError for the file of a teacher."""
    settings = run.settings
    # candidates are run and timed only where the model is made for, if the original runs there
    is_elsewhere = target_named(settings.target).is_elsewhere
    runs_on_target = inputs.reference is not None and not is_elsewhere
    return TrainingContext(
        run.worker,
        inputs.calibration,
        settings.target,
        settings.seed,
        functools.partial(save, durable=False),
        teacher=_teacher(settings.teacher, model),
        resume=settings.resume,
        warn=run.reporter.warn,
        progress=run.reporter,
        provider=inputs.provider if runs_on_target else None,
        threads=settings.threads,
        latency_feeds=inputs.latency_feeds if inputs.on_target else (),
        made_up=_made_up(run, inputs),
        runs=original.is_run,
    )


def _made_up(run: Run, inputs: VerificationInputs) -> MadeUp:
    """Feeds of a run without data, made when a pass asks for them: most never do.

    None of the user's data is among them: what judges the result must not be seen by a pass.
    """

    @functools.cache
    def make(has_tokens: bool) -> Sequence[Mapping[str, NDArray[Any]]]:
        reference = inputs.reference
        if reference is None:
            return ()
        is_made_up = inputs.drift_on == "synthetic feeds"
        if is_made_up and not has_tokens:
            return reference.batches
        seed = run.settings.seed
        with reference.opened(reference.path) as session:
            found = long_tokens(session, seed) if has_tokens else []
            if found:
                return found
            if is_made_up:
                return reference.batches
            try:
                batches, _ = synthetic_batches(session, seed)
            except (NoFiniteOutputs, RefusedError):
                return ()
            return batches

    return make


def _teacher(given: Path | ir.Model | None, model: ir.Model) -> ir.Model:
    """The model that training learns from: the one that was named, or the original."""
    # a clone: passes go on to change the model
    if given is None:
        return model.clone()
    teacher = load(given) if isinstance(given, Path) else given.clone()
    normalize(teacher)
    restore_packed(teacher)
    return teacher


class TrainingContext(RunContext):
    """Adds gradients and training to a run; torch is loaded when one is first asked for.

    Implements `Differentiates` and `Trains` of `passes._core.context`. `teacher`: the model that
    says what is right. `resume`: folder where the state of training is kept. The other arguments
    are those of `RunContext`.
    """

    def __init__(
        self,
        *arguments: Any,
        teacher: ir.Model | None = None,
        resume: Path | None = None,
        **services: Any,
    ) -> None:
        super().__init__(*arguments, **services)
        self._teacher = teacher
        self._resume = resume
        self._last_float: ir.Model | None = None

    def gradients(
        self, model: ir.Model, weights: Sequence[str], samples: int
    ) -> Mapping[str, Gradient]:
        """Gradients over the calibration feeds. Errors: UsageError without data or torch."""
        if self.feeds is None:
            raise UsageError(
                "calibration",
                "no calibration data",
                "pass --data (command line) or data= (Python)",
            )
        # here, not above: torch takes seconds to load, and may not be installed
        from ...frontends.gradients import loss_gradients

        # a generator: the data is never held whole
        batches = ((batch.feeds, batch.labels) for batch in self.feeds)
        with self.progress("differentiate", 1):
            return loss_gradients(model, batches, weights, samples)

    def train(self, model: ir.Model, recipe: TrainingRecipe) -> PassOutcome:
        """Train on the calibration feeds. Errors: UsageError without data or torch."""
        has_batches = self.feeds is not None or recipe.synthesize > 0
        if self._teacher is None or not has_batches:
            raise UsageError(
                "finetune",
                "no data to train on",
                "pass --data (command line) or data= (Python)",
            )
        from ...frontends.training import Environment, train

        with training_progress("finetune", self._progress) as tell:
            environment = Environment(
                runtime=Sessions(self.worker, self._threads),
                seed=self.seed,
                originals=self._original_floats(),
                checkpoints=self._resume,
                progress=tell,
            )
            batches = self._training_batches(recipe.synthesize)
            result = train(model, self._teacher, batches, recipe, environment)
        for warning in result.warnings:
            self.warn("finetune", warning)
        # a reason is given where no state was better than the start
        outcome = PassOutcome(result.weights, result.stats, chosen=result.chosen)
        if result.reason:
            where = model.graph.name or "graph"
            outcome.declined.append(Declined(where, result.reason))
        return outcome

    def _training_batches(
        self, synthetic_rows: int
    ) -> Iterable[tuple[Arrays, NDArray[Any] | None]]:
        """Feeds and labels of the data, or feeds from the teacher's own statistics without any."""
        if self.feeds is not None:
            return ((batch.feeds, batch.labels) for batch in self.feeds)
        return self._synthetic_batches(synthetic_rows)

    def _synthetic_batches(self, rows: int) -> Iterator[tuple[Arrays, None]]:
        from ...frontends.training.synthesize import synthesize

        assert self._teacher is not None
        self.warn(
            "finetune",
            "trained on made-up inputs, which is weak: a few hundred real ones do better (--data)",
        )
        for feeds in synthesize(self._teacher, rows, self.seed):
            yield feeds, None

    def remember_float(self, model: ir.Model) -> None:
        """Keep the model beyond the pass that says it.

        The run clears `float_form` before each pass; latent weights of later passes still start
        from these floats.
        """
        super().remember_float(model)
        self._last_float = self.float_form

    def _original_floats(self) -> Floats | None:
        """Float weights by name, from before they were quantized in this run."""
        if self._last_float is None:
            return None
        return float_constants(self._last_float)


class Sessions:
    """`frontends.training.Runtime` by ONNX Runtime in the run's worker, on the CPU."""

    def __init__(self, worker: Worker, threads: int) -> None:
        self._worker = worker
        self._threads = threads

    @contextlib.contextmanager
    def runner(
        self, model: ir.Model, names: Sequence[str]
    ) -> Iterator[Callable[[Arrays], Arrays]]:
        """Outputs and the named values of the model on feeds."""
        with scratch_folder() as folder:
            path = Path(folder, "runner.onnx")
            save(with_taps(model, names), path, durable=False)
            # threads that spin between runs would take torch's cores
            session = open_session(
                self._worker, path, threads=self._threads, spin=False
            )
            try:
                yield session.run
            finally:
                session.close()


def float_constants(model: ir.Model) -> Floats:
    """Float initializers and outputs of Constant nodes by name, of the main graph."""
    tensors = {
        name: value.const_value for name, value in model.graph.initializers.items()
    }
    # some exporters keep weights in Constant nodes
    for node in model.graph:
        if is_standard(node, "Constant") and "value" in node.attributes:
            name = node.outputs[0].name or ""
            tensors[name] = node.attributes["value"].as_tensor()
    found = {}
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.dtype in FLOATS:
            found[name] = np.asarray(tensor.numpy())
    return found


@contextlib.contextmanager
def training_progress(
    label: str, progress: ProgressBar
) -> Iterator[Callable[[float, str], None]]:
    """A bar over a training's budget.

    The yielded function takes the share that is done (0-1), and words that the bar shows.
    """
    # bars of other callers may show a label only
    note: Callable[[str], None] = getattr(progress, "note", lambda words: None)
    done = 0
    with progress(label, BAR_STEPS) as advance:

        def tell(share: float, words: str) -> None:
            nonlocal done
            reached = round(share * BAR_STEPS)
            advance(reached - done)
            done = reached
            note(words)

        yield tell


def is_main_process() -> bool:
    """True for the process that writes: the only one, or the first of those of torchrun."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    rank = os.environ.get("RANK", "0")
    # a rank alone says nothing: torchrun sets both
    return processes <= 1 or rank == "0"
