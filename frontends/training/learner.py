"""The graph that learns, as torch modules: one as it trains, one as it will run.

Both are over the same parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import onnx_ir as ir
import torch
from numpy.typing import NDArray

from ... import RefusedError
from ...passes._core.patterns import left_out
from ...passes._core.training_recipe import TrainingRecipe
from ..trainable import TrainableModule, to_torch, write_back
from .device import channels_last
from .normalize import Feeds, Normalized, normalized
from .presets import soft_part
from .statistics import BatchStatistics, with_batch_statistics

Tensor = Any
State = dict[str, Tensor]
"""Parameters by name, copied."""

TrainedScales = Literal["off", "fixed", "weights", "learned"]
QAT_MODES: dict[str, TrainedScales] = {
    "none": "fixed",
    "weights": "weights",
    "all": "learned",
}
"""Names by which `to_torch` knows the words of the option `scales`."""

RECALIBRATION_ROWS = 128
"""Rows of a batch when statistics are taken anew: its own come close to those of the data."""

INSIDE_CELL = 0.49
"""Distance from its code that a latent may start at, in steps of its grid.

Below one half, so that it rounds to the code that the graph has.
"""


class Learner:
    """A graph and its parameters while it is trained.

    `names`: values that `values` returns. `originals`: floats by initializer name from which
    latents start, as near as their codes allow. `data`: feeds as they are, so many rows at a time,
    from which statistics of normalizations are taken (without: by steps alone). `teacher`: what
    `model` was once, whose channels normalizations that are put in go back to. Errors: RefusedError
    for a graph with nothing to train.
    """

    def __init__(
        self,
        model: ir.Model,
        names: Sequence[str],
        recipe: TrainingRecipe,
        originals: Mapping[str, NDArray[Any]] | None = None,
        data: Feeds | None = None,
        teacher: ir.Model | None = None,
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.originals = originals
        self.statistics: BatchStatistics | None = None
        self.normalized: Normalized | None = None
        self._data = data
        outputs = {value.name for value in model.graph.outputs}
        self._taps = [name for name in names if name not in outputs]
        self._trained = self._chosen_weights(model)
        self.runs = self._module(model, self._taps)
        self.soft = soft_part(recipe, _fewest_levels(self.runs))
        if recipe.statistics == "batch":
            self._train_by_batches(teacher)
        self.trains = self._training_module()
        self._bounds = _code_bounds(self.runs) if recipe.preset == "block" else {}
        if not self.parameters():
            raise RefusedError(
                "finetune",
                "the graph has no weights that train",
                "train before weights are folded away; include and exclude say which",
            )

    def parameters(self) -> list[Tensor]:
        """Return the parameters that an optimizer changes."""
        return [p for p in self.runs.parameters() if p.requires_grad]

    @property
    def weights(self) -> int:
        """Number of tensors of the given graph that train."""
        added = set() if self.normalized is None else set(self.normalized.added)
        count = 0
        for name, parameter in self.runs.named_parameters():
            origin = self.runs.origins[name]
            if origin.is_palette or origin.name in added:
                continue
            if parameter.requires_grad:
                count += 1
        return count

    def learn(self, feeds: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return values by name, with gradients; running statistics move where they are trained."""
        placed = channels_last(feeds, self.runs.anchor.device)
        values: dict[str, Tensor] = self.trains.run(placed)
        if self.statistics is not None:
            self.statistics.move(self.runs, values)
        return values

    def recalibrate_batchnorm(self) -> None:
        """Give normalizations the statistics of the data as it is.

        Those that steps left lag behind the weights, and are of augmented images.
        """
        statistics = self.statistics
        if statistics is None or self._data is None:
            return
        device = self.runs.anchor.device
        with torch.no_grad():
            for index, feeds in enumerate(self._data(RECALIBRATION_ROWS)):
                placed = channels_last(feeds, device)
                values = self.trains.run(placed)
                # a running mean: all batches count alike, the state before not at all
                stays = index / (index + 1)
                statistics.move(self.runs, values, stays)

    def values(self, feeds: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Return float values by name as the graph will give them."""
        placed = channels_last(feeds, self.runs.anchor.device)
        with torch.no_grad():
            values = self.runs.run(placed)
        found = {}
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                # numpy has no bfloat16
                found[name] = value.float().cpu().numpy()
        return found

    def anneal_rounding(self, progress: float) -> None:
        """Round weights as far as they are to be at a point of the run, 0 to 1.

        They are computed with as w + r (code - w); r goes to 1, which it reaches at `soft`, and
        stays there.
        """
        if not self.soft:
            return
        left = max(1 - progress / self.soft, 0.0)
        with torch.no_grad():
            # cubed: most of the way is gone early, the last part slowly
            self.trains.rounding.fill_(1 - left**3)

    def constrain(self) -> None:
        """Put parameters back, after a step, to where they must be.

        Pruned zeros are zero, latents lie within their grid, and, where blocks are trained, between
        the two codes beside their start.
        """
        # while rounding sets in, latents beyond the grid still mean their float values
        hard = not self.soft or float(self.trains.rounding) == 1.0
        self.runs.constrain(grids=hard)
        with torch.no_grad():
            for name, (low, high) in self._bounds.items():
                parameter = self.runs.get_parameter(name)
                parameter.clamp_(low, high)

    def state(self) -> State:
        """Return a copy of the parameters."""
        copy = {}
        for name, parameter in self.runs.named_parameters():
            copy[name] = parameter.detach().clone()
        return copy

    def restore(self, state: State) -> None:
        """Put a copy back."""
        with torch.no_grad():
            for name, parameter in self.runs.named_parameters():
                parameter.copy_(state[name])
        if self.recipe.regrow:
            _hold_zeros(self.runs)

    def put(self, state: State, model: ir.Model) -> None:
        """Write a copy into a model with the same graph as the one that was given."""
        tensors: State = {}
        palettes: State = {}
        for name, tensor in state.items():
            origin = self.runs.origins[name]
            kept = palettes if origin.is_palette else tensors
            kept[origin.name] = tensor
        trained = self._trained
        if self.normalized is not None:
            tensors = self.normalized.folded(tensors)
            trained = list(tensors)
        tensors |= palettes
        module = self._module(
            model,
            taps=(),
            trained=trained,
        )
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                origin = module.origins[name]
                parameter.copy_(tensors[origin.name])
        if self.recipe.regrow:
            _hold_zeros(module)
        write_back(module)

    def to(self, device: str) -> None:
        """Move to a device."""
        self.runs.to(device)
        self.trains.to(device)
        if self.trains is not self.runs:
            share_parameters(self.trains, self.runs)

    def _chosen_weights(self, model: ir.Model) -> bool | list[str]:
        """Return True for all weights, or the names that include and exclude leave."""
        include = self.recipe.include
        exclude = self.recipe.exclude
        if not include and not exclude:
            return True
        everything = to_torch(model, qat=self._qat())
        return [
            name
            for name in _names_of(everything)
            if left_out([name], include, exclude) is None
        ]

    def _train_by_batches(self, teacher: ir.Model | None) -> None:
        """Let normalizations go by the statistics of each batch.

        Convolutions without a normalization get one for as long as they learn.
        """
        names = _names_of(self.runs)
        if self._data is not None:
            self.normalized = normalized(
                self.model,
                trained=names,
                data=self._data,
                original=teacher,
            )
        if self.normalized is not None:
            self.model = self.normalized.model
            # where weights were chosen by name, gains were not among them
            if self._trained is True:
                names += self.normalized.added
        statistics = with_batch_statistics(self.model)
        if statistics is None:
            return
        self.statistics = statistics
        # statistics are parameters as well: they are written back with the weights
        names += [statistic.name for statistic in statistics.running]
        self._trained = names
        self.runs = self._module(self.model, self._taps)

    def _training_module(self) -> TrainableModule:
        """Return the module that learns.

        It is the one that runs, or another over its parameters: by batch statistics, or softly.
        """
        by_batch = self.statistics
        if by_batch is None and not self.soft:
            return self.runs
        model = self.model
        taps = list(self._taps)
        if by_batch is not None:
            model = by_batch.model
            taps += [statistic.batch for statistic in by_batch.running]
        module = self._module(
            model,
            taps=taps,
            soft=bool(self.soft),
        )
        # soft latents start at their floats, not in the cells of their codes: those count
        share_parameters(module, self.runs)
        if by_batch is not None:
            by_batch.freeze(module)
        return module

    def _qat(self) -> TrainedScales:
        return QAT_MODES[self.recipe.scales] if self.recipe.qat else "off"

    def _module(
        self,
        model: ir.Model,
        taps: Sequence[str],
        soft: bool = False,
        trained: bool | list[str] | None = None,
    ) -> TrainableModule:
        """Return the graph as a module. `trained`: names, in place of those chosen."""
        names = self._trained if trained is None else trained
        module = to_torch(
            model,
            train=names,
            taps=taps,
            qat=self._qat(),
            originals=self.originals,
            soft=soft,
        )
        # soft ones start at the originals themselves, whatever their codes
        if self.originals and not soft:
            coded = to_torch(
                model,
                train=names,
                qat=self._qat(),
            )
            _start_inside_cells(module, coded)
        return module


def share_parameters(source: TrainableModule, target: TrainableModule) -> None:
    """Make the parameters of `source` those of `target` too, matched by where they came from."""
    shared = {}
    for name, parameter in source.named_parameters():
        shared[source.origins[name].name] = parameter
    for name, origin in target.origins.items():
        target.register_parameter(name, shared[origin.name])


def _names_of(module: TrainableModule) -> list[str]:
    return [origin.name for origin in module.origins.values() if not origin.is_palette]


def _hold_zeros(module: TrainableModule) -> None:
    """Hold the zeros that pruned weights have now, in place of those that they had at first."""
    for name in module.masks():
        module.mask(name, module.get_parameter(name) != 0)


def _fewest_levels(module: TrainableModule) -> float:
    """Return the steps of the coarsest grid whose floats are known, infinite if none are."""
    fewest = math.inf
    for origin in module.origins.values():
        if origin.latent is not None and origin.latent.original is not None:
            fewest = min(fewest, origin.latent.steps)
    return fewest


def _code_bounds(module: TrainableModule) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the codes below and above each latent."""
    bounds = {}
    for name, origin in module.origins.items():
        latent = origin.latent
        # a step of 0 is a float type, whose codes are not evenly spaced
        if latent is None or not latent.step or origin.is_palette:
            continue
        start = module.get_parameter(name).detach()
        if latent.palette is not None:
            below, above = latent.palette.beside(start.double().cpu().numpy())
            sides = torch.from_numpy(below), torch.from_numpy(above)
            bounds[name] = sides[0].to(start), sides[1].to(start)
            continue
        steps = (start - latent.low) / latent.step
        low = torch.floor(steps) * latent.step + latent.low
        bounds[name] = (low, low + latent.step)
    return bounds


def _start_inside_cells(module: TrainableModule, coded: TrainableModule) -> None:
    """Move latents to where they round to the codes that the graph has."""
    with torch.no_grad():
        for name, origin in module.origins.items():
            latent = origin.latent
            if latent is None or not latent.step or origin.is_palette:
                continue
            code = coded.get_parameter(name)
            reach = INSIDE_CELL * latent.step
            parameter = module.get_parameter(name)
            inside = torch.minimum(parameter, code + reach)
            inside = torch.maximum(inside, code - reach)
            parameter.copy_(inside)
