"""Parts of a run to blame for what its result lost: the pass, and its worst layers."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ... import OnnxOptError
from ...passes._core.drift_budget import BROKEN
from ...passes._core.pipeline import Pipeline
from .evidence import VerificationInputs
from .explain_loss import Effort, as_rows, explain, next_pipeline
from .result import Step
from .run import Run
from .step import Checked

MOST_LAYERS = 3
"""Layers that are named."""

MOST_BYTES = 200_000_000
"""Size of an original above which no layer is looked for: it takes more than a few seconds.

Chosen by hand; not measured.
"""

SAMPLES = 4
SECONDS = 5.0
"""Samples, and seconds after which no further one is run. Chosen by hand; not measured."""


@dataclass(frozen=True)
class Blame:
    """Pass and layers that lost most, as far as they are known.

    `pass_`: the first pass after which the outputs keep less than `BROKEN` dB. `layers`: its worst
    ones. `instead`: the pipeline that spares them, or takes the pass in its milder form where they
    are not known; None where no pass can. `spares`: the former.
    """

    pass_: str | None
    layers: tuple[str, ...] = ()
    instead: Pipeline | None = None
    spares: bool = True

    @property
    def words(self) -> str:
        """Words that follow what was lost; "" where nothing is known."""
        if self.pass_ is None:
            return ""
        words = f"; most was lost by {self.pass_}"
        if self.layers:
            words += f", at {', '.join(self.layers)}"
        return words

    @property
    def remedy(self) -> str:
        """Something to do or to paste."""
        remedy = "choose gentler passes, or win it back by finetune"
        if self.instead is not None:
            text = shlex.quote(str(self.instead))
            gain = "spares the worst layers" if self.spares else "takes less"
            remedy += f"; --passes {text} {gain}"
        return remedy


def blame(
    run: Run,
    inputs: VerificationInputs,
    checked: Checked,
    size: int | None,
    losses: Sequence[dict[str, Any]] | None,
) -> Blame:
    """Find what lost most. `size`: bytes of the original; `losses`: of all layers, if known."""
    guilty = _first_below(checked.steps, BROKEN)
    if losses is None:
        losses = few_losses(run, inputs, checked, size)
    own = [loss for loss in losses if guilty is None or loss["pass"] == guilty]
    worst = own[:MOST_LAYERS]
    if guilty is None and worst:
        guilty = worst[0]["pass"]
    layers = tuple(loss["layer"] for loss in worst)
    instead: Pipeline | None = None
    for loss in worst:
        spared = next_pipeline(instead or run.settings.pipeline, [loss])
        instead = spared or instead
    if instead is not None or guilty is None:
        return Blame(guilty, layers, instead)
    milder = _with_milder(run.settings.pipeline, guilty)
    return Blame(guilty, layers, milder, spares=False)


def _with_milder(pipeline: Pipeline, name: str) -> Pipeline | None:
    """The pipeline with a pass of that name in its milder form; None where it has none."""
    passes = list(pipeline.passes)
    for index, pass_ in enumerate(passes):
        milder = pass_.milder() if pass_.name == name else None
        if milder is not None:
            passes[index] = milder
            return Pipeline(tuple(passes))
    return None


def few_losses(
    run: Run, inputs: VerificationInputs, checked: Checked, size: int | None
) -> list[dict[str, Any]]:
    """Losses of the layers on a few samples; none where they cost too much or are unknown."""
    if inputs.reference is None or size is None or size > MOST_BYTES:
        return []
    try:
        with run.reporter.progress("looking for the layers that lost most"):
            stages = explain(
                run.worker,
                checked.stages,
                inputs.reference.batches,
                Effort(SAMPLES, SECONDS),
            )
            return as_rows(stages)
    except OnnxOptError:
        # the pass alone is named: layers of other shapes than before cannot be compared
        return []


def _first_below(steps: Sequence[Step], sqnr_db: float) -> str | None:
    """The first pass after which the outputs keep less than so many dB."""
    for step in steps:
        if step.drift is not None and step.drift["sqnr_db"] < sqnr_db:
            return step.name
    return None
