"""One training as a value: everything that its parts need, made once and handed on whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from ...passes._core.outcome import Chosen
from ...passes._core.training_recipe import TrainingRecipe
from .acceptance import AcceptanceTest
from .checkpoint import Checkpoint
from .data import Samples, Split
from .device import Device
from .distributed import ProcessGroup
from .learner import Learner
from .objective import Objective
from .teacher import Runtime, TeacherFunction
from .tensorboard import Log

ProgressCallback = Callable[[float, str], None]
"""Takes the part of the run that is done, 0 to 1, and a few words on it."""


def no_progress(part: float, words: str) -> None:
    """Drop a progress report: the callback of a training that nobody watches."""


@dataclass(frozen=True)
class Environment:
    """Surroundings of a training: what is neither a model, nor data, nor in the recipe.

    `originals`: float weights by initializer name, from before the student was quantized.
    `checkpoints`: the folder where states are kept; None keeps none.
    """

    runtime: Runtime
    seed: int = 0
    originals: Mapping[str, NDArray[Any]] | None = None
    checkpoints: Path | None = None
    progress: ProgressCallback = no_progress


@dataclass(frozen=True)
class TrainingSession:
    """A training that is ready to start.

    `student`: the graph whose weights are to become better. `recipe`: with nothing left open.
    `live_teacher`: asked at every step; None where the cached outputs are enough. `folder`: for
    temporary files. `mixed_input`: an input of which half the elements, drawn anew for each step,
    are the teacher's; "": none. `chosen`: what the recipe had left open, with reasons.
    `warnings`: of the data, for people.
    """

    student: ir.Model
    teacher: ir.Model
    learner: Learner
    objective: Objective
    samples: Samples
    split: Split
    recipe: TrainingRecipe
    environment: Environment
    acceptance: AcceptanceTest
    group: ProcessGroup
    device: Device
    folder: Path
    log: Log
    progress: ProgressCallback
    # what a part of a session, such as a block, may leave out
    live_teacher: TeacherFunction | None = None
    checkpoint: Checkpoint | None = None
    mixed_input: str = ""
    chosen: tuple[Chosen, ...] = ()
    warnings: tuple[str, ...] = ()
