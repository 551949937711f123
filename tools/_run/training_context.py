"""A run's context that can also train, where torch is installed; its teacher is the run's original
model.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ... import UsageError
from ...frontends.onnx_file import save
from ...passes._core.outcome import Declined, PassOutcome
from ...passes._core.training_recipe import TrainingRecipe
from ...runtime.session import open_session
from ...runtime.taps import with_taps
from ...runtime.worker import Worker
from .gradient_context import DifferentiatingContext
from .result import ProgressBar

Arrays = dict[str, NDArray[Any]]
FLOATS = (
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.DOUBLE,
)
PARTS = 1000
"""Of a progress bar, whose whole is the budget of a training."""


class TrainingContext(DifferentiatingContext):
    """Adds `passes._base.Trains` to a run: torch is loaded when training is first asked for.

    `teacher`: the model that says what is right. `resume`: where the state of training is kept.
    `floats`: what the last quantization of the run started from.
    """

    teacher: ir.Model | None = None
    resume: Path | None = None
    floats: ir.Model | None = None

    def train(self, model: ir.Model, recipe: TrainingRecipe) -> PassOutcome:
        """Train on the calibration feeds. Errors: UsageError without data or without torch."""
        if self.teacher is None or (self.feeds is None and not recipe.synthesize):
            raise UsageError(
                "finetune",
                "no data to train on",
                "pass --data (command line) or data= (Python)",
            )
        from ...frontends.training import Environment, train

        batches: Iterable[tuple[Arrays, NDArray[Any] | None]]
        if self.feeds is None:
            batches = self._made_up(recipe.synthesize)
        else:
            batches = ((batch.feeds, batch.labels) for batch in self.feeds)
        with telling("finetune", self._progress) as tell:
            environment = Environment(
                runtime=Sessions(self.worker, self._threads),
                seed=self.seed,
                originals=self._originals(),
                checkpoints=self.resume,
                progress=tell,
            )
            result = train(model, self.teacher, batches, recipe, environment)
        for warning in result.warnings:
            self.warn("finetune", warning)
        declined = []
        if result.reason:
            declined.append(Declined(model.graph.name or "graph", result.reason))
        return PassOutcome(result.weights, result.stats, declined)

    def _made_up(self, rows: int) -> Iterator[tuple[Arrays, None]]:
        """Inputs from the teacher's own statistics, where there are no data."""
        from ...frontends.training.synthesize import synthesize

        assert self.teacher is not None
        self.warn(
            "finetune",
            "trained on made-up inputs, which is weak: a few hundred real ones do better (--data)",
        )
        for feeds in synthesize(self.teacher, rows, self.seed):
            yield feeds, None

    def remember_float(self, model: ir.Model) -> None:
        """Kept beyond the pass that says it: latents of later passes start from these weights."""
        super().remember_float(model)
        self.floats = self.float_form

    def _originals(self) -> dict[str, NDArray[Any]] | None:
        """Float weights by name, from before they were quantized in this run."""
        return None if self.floats is None else float_constants(self.floats)


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
        with tempfile.TemporaryDirectory(prefix="onnx-opt-") as folder:
            path = Path(folder, "runner.onnx")
            save(with_taps(model, names), path)
            session = open_session(
                self._worker, path, threads=self._threads, spin=False
            )
            try:
                yield session.run
            finally:
                session.close()


def float_constants(model: ir.Model) -> dict[str, NDArray[Any]]:
    """Float initializers and outputs of Constant nodes by name, of the main graph."""
    found = {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.dtype in FLOATS
    }
    for node in model.graph:
        attribute = node.attributes.get("value") if node.op_type == "Constant" else None
        tensor = None if attribute is None else attribute.as_tensor()
        if tensor is not None and tensor.dtype in FLOATS:
            found[node.outputs[0].name or ""] = tensor.numpy()
    return {name: np.asarray(array) for name, array in found.items()}


@contextlib.contextmanager
def telling(
    label: str, progress: ProgressBar
) -> Iterator[Callable[[float, str], None]]:
    """A bar over a training's budget; the yielded function takes how far it is, and words that the
    bar shows.
    """
    note: Callable[[str], None] = getattr(progress, "note", lambda words: None)
    done = 0
    with progress(label, PARTS) as advance:

        def tell(part: float, words: str) -> None:
            nonlocal done
            advance(round(part * PARTS) - done)
            done = round(part * PARTS)
            note(words)

        yield tell


def follows() -> bool:
    """Whether another process of torchrun does the writing."""
    return (
        int(os.environ.get("WORLD_SIZE", "1")) > 1
        and os.environ.get("RANK", "0") != "0"
    )
