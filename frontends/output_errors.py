"""Estimates of what changes of layers cost at a model's outputs, from gradients: one run for all.

A layer's change dY in its own output moves the outputs by J dY to first order. For v of random
signs E (v^T J dY)^2 = |J dY|^2, and v^T J is one backward pass, which serves every layer and every
form: <v^T J, dY>. dY is computed as it is, by running the layer in both forms.

Source: Hutchinson, A stochastic estimator of the trace (1990); as the expected square over v, it is
the Gauss-Newton form of the outputs' mean square error.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .. import RefusedError
from ..passes._core.output_drift import float_outputs
from ..passes._core.output_errors import Change, OutputErrors
from .side_by_side import side_by_side
from .trainable import TrainableModule, to_torch

DRAWS = 4
"""Random signs for each run, unless their gradients take more than `MEMORY`."""

MEMORY = 1 << 30
"""Bytes of gradients that are held at once, unless those of one draw take more."""

Array = NDArray[Any]
Tensor = Any


@dataclass(frozen=True)
class LayerChange:
    """A layer that computes something else.

    `change`: the weight and form that its error counts for. `layer`: the layer in its new form; its
    inputs and outputs are values of the whole model, by name.
    """

    change: Change
    layer: ir.Model


def estimated_errors(
    model: ir.Model,
    layers: Sequence[LayerChange],
    runs: Iterable[Mapping[str, Array]],
    seed: int,
    draws: int = DRAWS,
) -> OutputErrors:
    """Return sums of the errors that changes cause at the float outputs, over runs on feeds.

    One run is one sample: of a batch only the sum over its rows is seen, which is right on average,
    too, but less certain. The signs of a run depend on `seed` and its feeds alone, so that shards
    of data add up to the whole. Errors: UsageError without torch, RefusedError for a graph that
    gradients do not pass, and those of `to_torch`.
    """
    return _Estimator(model, layers, seed, draws).sums(runs)


class _Estimator:
    """A model and layers of it in other forms, as torch modules."""

    def __init__(
        self,
        model: ir.Model,
        layers: Sequence[LayerChange],
        seed: int,
        draws: int,
    ) -> None:
        self.seed = seed
        self.draws = draws
        self.held = 0
        self.outputs = list(float_outputs(model))
        self.changes = list(dict.fromkeys(each.change for each in layers))
        self.changed = [each.change for each in layers]
        self.layers = [_frozen(each.layer) for each in layers]
        read: list[str] = []
        made: list[str] = []
        for layer in self.layers:
            read += layer.provenance.inputs
            made += layer.provenance.outputs
        self.made = list(dict.fromkeys(made))
        taps = list(dict.fromkeys(made + read))
        self.whole = to_torch(model, taps=taps, qat="off")
        self._check_gradients()

    def _check_gradients(self) -> None:
        wanted = set(self.outputs)
        for cut in self.whole.provenance.cuts:
            behind = wanted.intersection(cut.outputs)
            if not behind:
                continue
            raise RefusedError(
                cut.node,
                f"gradients end there: {cut.reason}",
                "measure instead: --sensitivity measured",
            )

    def sums(self, runs: Iterable[Mapping[str, Array]]) -> OutputErrors:
        """Sums over runs on feeds."""
        total = OutputErrors.none(self.outputs, self.changes)
        waiting = iter(runs)
        # the first one tells how many fit in memory beside each other
        for feeds in itertools.islice(waiting, 1):
            found = self._sums_of_run(feeds)
            total = total.merged(found)
        held = max(self.held, 1)
        most = MEMORY // held
        for found in side_by_side(self._sums_of_run, waiting, most):
            total = total.merged(found)
        return total

    def _sums_of_run(self, feeds: Mapping[str, Array]) -> OutputErrors:
        import torch

        # callers may have gradients switched off
        with torch.enable_grad():
            values = _run(self.whole, feeds)
        found = OutputErrors.none(self.outputs, self.changes)
        for index, name in enumerate(self.outputs):
            found.powers[index] = _power(values[name])
        digest = _digest(feeds)
        random = np.random.default_rng([self.seed, digest])
        projections: list[_Projection] = []
        for index in self._drawn_outputs(values, random):
            found.draws[index] += 1
            name = self.outputs[index]
            output = values[name]
            # nothing that is trained reaches others
            if not output.requires_grad:
                continue
            gradients = self._gradients(values, output, random)
            projection = _Projection(index, output.numel(), gradients)
            projections.append(projection)
        if projections:
            self._add_squares(found, values, projections)
        return replace(found, runs=1)

    def _drawn_outputs(
        self, values: Mapping[str, Tensor], random: np.random.Generator
    ) -> list[int]:
        """Choose the output of each draw of a run, by index, and note the memory that it takes."""
        count = len(self.outputs)
        # outputs take turns: with more of them than draws each is seen in some runs
        first = int(random.integers(max(count, 1)))
        of_one_draw = sum(values[name].nbytes for name in self.made)
        fitting = MEMORY // max(of_one_draw, 1)
        draws = min(self.draws, fitting)
        draws = max(draws, 1)
        # values that gradients need are about as many as one draw's gradients
        held = (draws + 1) * of_one_draw
        self.held = max(self.held, held)
        if not self.outputs:
            return []
        return [(first + draw) % count for draw in range(draws)]

    def _add_squares(
        self,
        found: OutputErrors,
        values: Mapping[str, Tensor],
        projections: Sequence[_Projection],
    ) -> None:
        """Add the squares by which each change moves the projections of a run."""
        moved = self._moved(values, projections)
        squares = np.square(moved)
        for projection, row in zip(projections, squares, strict=True):
            mean = row / projection.elements
            found.squares[projection.output] += mean

    def _gradients(
        self,
        values: Mapping[str, Tensor],
        output: Tensor,
        random: np.random.Generator,
    ) -> dict[str, Tensor]:
        """Gradients of one random projection of an output, by the names of layers' outputs."""
        import torch

        bits = random.integers(0, 2, output.shape, dtype=np.int8)
        plus_or_minus = 2 * bits - 1
        signs = torch.from_numpy(plus_or_minus).to(output)
        # as in measuring, elements that are not finite count as 0
        is_finite = torch.isfinite(output.detach())
        signs = signs * is_finite
        reached = [name for name in self.made if values[name].requires_grad]
        found = torch.autograd.grad(
            output,
            [values[name] for name in reached],
            grad_outputs=signs,
            retain_graph=True,
            allow_unused=True,
        )
        pairs = zip(reached, found, strict=True)
        return {name: gradient for name, gradient in pairs if gradient is not None}

    def _moved(
        self, values: Mapping[str, Tensor], projections: Sequence[_Projection]
    ) -> NDArray[np.float64]:
        """Distances by which each change moves each projection, (projections, changes)."""
        import torch

        columns = {change: index for index, change in enumerate(self.changes)}
        shape = (len(projections), len(self.changes))
        moved = np.zeros(shape)
        stacked = {}
        with torch.no_grad():
            for name in self.made:
                like = values[name]
                stacked[name] = _stacked(name, projections, like)
            for change, layer in zip(self.changed, self.layers, strict=True):
                column = columns[change]
                read = {name: values[name] for name in layer.provenance.inputs}
                for name, changed in _run(layer, read).items():
                    difference = changed - values[name]
                    error = difference.reshape(-1)
                    products = stacked[name] @ error
                    exact = products.cpu().double()
                    moved[:, column] += exact.numpy()
        return moved


@dataclass(frozen=True)
class _Projection:
    """One draw: the output's index, its number of elements, and gradients by value."""

    output: int
    elements: int
    gradients: dict[str, Tensor]


def _stacked(name: str, projections: Sequence[_Projection], like: Tensor) -> Tensor:
    """Gradients of all projections by one value, (projections, elements); 0 where none came."""
    import torch

    rows = []
    for projection in projections:
        # each is held once
        gradient = projection.gradients.pop(name, None)
        if gradient is None:
            gradient = torch.zeros_like(like)
        rows.append(gradient.reshape(-1))
    return torch.stack(rows)


def _frozen(layer: ir.Model) -> TrainableModule:
    """A layer as a module without anything to train."""
    return to_torch(layer, train=False, qat="off")


def _run(module: TrainableModule, feeds: Mapping[str, Any]) -> dict[str, Tensor]:
    """Outputs and taps by name. Errors: RefusedError for what torch cannot compute."""
    try:
        return module.run(feeds)
    except RuntimeError as error:
        first_line = str(error).partition("\n")[0]
        raise RefusedError(
            f"graph '{module.model.graph.name}'",
            f"torch cannot run it: {first_line}",
            "measure instead: --sensitivity measured",
        ) from error


def _power(output: Tensor) -> float:
    """Mean square of an output's elements, 0 for those that are not finite."""
    elements = _finite(output.detach())
    power = elements.square().mean()
    return float(power)


def _finite(tensor: Tensor) -> Tensor:
    """Elements in double precision, 0 for those that are not finite."""
    exact = tensor.double()
    return exact.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _digest(feeds: Mapping[str, Array]) -> int:
    """Return a number that depends on the values of feeds."""
    digest = 0
    for name in sorted(feeds):
        array = np.asarray(feeds[name])
        content = array.tobytes()
        if array.dtype == object:
            # of texts the words: their bytes are addresses
            words = array.tolist()
            content = repr(words).encode()
        digest = zlib.crc32(content, digest)
    return digest
