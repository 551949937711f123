"""A workplace for the search: one model with its data, to which passes are applied on trial."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from ...passes._core.pipeline import parse
from .._run.context import TrainingContext, context_of
from .._run.evidence import VerificationInputs, gather_inputs
from .._run.load import Original, load_original
from .._run.pass_memory import PassMemory
from .._run.run import Run, open_run
from .._run.settings import RunSettings


@dataclass(frozen=True)
class Made:
    """A model after a lossy pass.

    `reference`: the float form that its layers started from; the model before where the pass tells
    of none.
    """

    reference: ir.Model
    result: ir.Model


@dataclass(frozen=True)
class Lab:
    """A model, loaded and simplified, and what its passes may ask for.

    `memory`: of passes on the data of this run.
    """

    run: Run
    original: Original
    inputs: VerificationInputs
    context: TrainingContext
    model: ir.Model
    memory: PassMemory = field(default_factory=PassMemory)

    def steps(self, passes: str) -> list[Made]:
        """Apply pipeline text to a copy of the model; what each lossy pass makes.

        Errors: those of the passes.
        """
        model = self.model.clone()
        found: list[Made] = []
        for pass_ in parse(passes).passes:
            is_lossy = pass_.effect == "lossy"
            before = model.clone() if is_lossy else model
            self.context.float_form = None
            pass_.run(model, self.context)
            if is_lossy:
                reference = self.context.float_form or before
                found.append(Made(reference, model.clone()))
        return found

    def made(self, passes: str) -> Made:
        """The model after pipeline text of one lossy pass. Errors: those of the pass."""
        (made,) = self.steps(passes)
        return made

    def behind(self, passes: str) -> Lab:
        """The same with the model as pipeline text leaves it. Errors: those of the passes."""
        model = self.model.clone()
        warnings = self.run.reporter.warnings
        for pass_ in parse(passes).passes:
            self.memory.run(pass_, model, self.context, warnings)
        return dataclasses.replace(self, model=model)


@contextlib.contextmanager
def open_lab(settings: RunSettings) -> Iterator[Lab]:
    """Load the model of a run, open its data and simplify it. Errors: as those of a run."""
    with open_run(settings) as run:
        original, model = load_original(run)
        inputs = gather_inputs(run, original, model)
        context = context_of(run, original, inputs, model)
        parse("simplify").passes[0].run(model, context)
        yield Lab(run, original, inputs, context, model)
