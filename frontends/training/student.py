"""The graph that learns, as torch modules: one as it trains, one as it will run, over the same
parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import onnx_ir as ir
import torch
from numpy.typing import NDArray

from ... import RefusedError
from ..trainable import TrainableModule, to_torch, write_back
from .device import laid_out
from .normalize import Feeds, Normalized, normalized
from .recipe import Recipe
from .statistics import Statistics, with_batch_statistics

Tensor = Any
State = dict[str, Tensor]
QAT = {"none": "fixed", "weights": "weights", "all": "learned"}
"""How `to_torch` names which scales of quantization train."""
SETTLING_ROWS = 128
"""Of a batch whose statistics stand for those of the data: so many that they differ little."""
INSIDE = 0.49
"""How far a latent may start from its code, in steps of its grid: it rounds to the code that the
graph has.
"""


class Student:
    """A graph and its parameters. `names`: values that `values` returns.

    `originals`: floats by initializer name from which latents start, as near as their codes allow.
    `data`: feeds as they are, so many rows at a time, from which statistics of normalizations are
    taken (without: by steps alone). `teacher`: what `model` was once, whose channels normalizations
    that are put in go back to. Errors: RefusedError for a graph with nothing to train.
    """

    def __init__(
        self,
        model: ir.Model,
        names: Sequence[str],
        recipe: Recipe,
        originals: Mapping[str, NDArray[Any]] | None = None,
        data: Feeds | None = None,
        teacher: ir.Model | None = None,
    ) -> None:
        self.model, self.recipe, self.originals, self._data, self._teacher = (
            model,
            recipe,
            originals,
            data,
            teacher,
        )
        outputs = {value.name for value in model.graph.outputs}
        self._taps = [name for name in names if name not in outputs]
        self._chosen = self._choice(model)
        self.runs = self._module(model, self._taps)
        latents = [
            origin.latent
            for origin in self.runs.origins.values()
            if origin.latent is not None
        ]
        self.soft = recipe.softness(
            min((v.steps for v in latents if v.original is not None), default=math.inf)
        )
        self.statistics: Statistics | None = None
        self.normalized: Normalized | None = None
        if recipe.statistics == "batch":
            self._train_by_batches()
        self.trains = self._learning()
        self._bounds = _neighbours(self.runs) if recipe.preset == "block" else {}
        if not any(p.requires_grad for p in self.runs.parameters()):
            raise RefusedError(
                "finetune",
                "the graph has no weights that train",
                "train before weights are folded away; include and exclude say which",
            )

    def parameters(self) -> list[Tensor]:
        """What an optimizer changes."""
        return [p for p in self.runs.parameters() if p.requires_grad]

    @property
    def weights(self) -> int:
        """How many tensors of the graph that was given train."""
        added = set() if self.normalized is None else set(self.normalized.added)
        return sum(
            p.requires_grad and self.runs.origins[name].name not in added
            for name, p in self.runs.named_parameters()
        )

    def learn(self, feeds: Mapping[str, Any]) -> dict[str, Tensor]:
        """Values by name, with gradients; statistics of normalizations move where they are
        trained.
        """
        values: dict[str, Tensor] = self.trains.run(
            laid_out(feeds, self.runs.anchor.device)
        )
        if self.statistics is not None:
            self.statistics.move(self.runs, values)
        return values

    def settle(self) -> None:
        """Give normalizations the statistics of the data as it is: those of steps lag, and see
        changed images.
        """
        if self.statistics is None or self._data is None:
            return
        with torch.no_grad():
            for index, feeds in enumerate(self._data(SETTLING_ROWS)):
                values = self.trains.run(laid_out(feeds, self.runs.anchor.device))
                self.statistics.move(self.runs, values, stays=index / (index + 1))

    def values(self, feeds: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Values by name as the graph will give them."""
        with torch.no_grad():
            values = self.runs.run(laid_out(feeds, self.runs.anchor.device))
        return {
            name: value.float().cpu().numpy()
            for name, value in values.items()
            if isinstance(value, torch.Tensor) and value.is_floating_point()
        }

    def harden(self, progress: float) -> None:
        """Round weights as far as they are to be at a point of the run, 0 to 1: wholly from `soft`
        on.
        """
        if self.soft:
            with torch.no_grad():
                self.trains.rounding.fill_(1 - max(1 - progress / self.soft, 0.0) ** 3)

    def constrain(self) -> None:
        """After a step: masks hold, latents stay within their grid, and where blocks are trained
        beside their start.
        """
        self.runs.constrain(grids=not self.soft or float(self.trains.rounding) == 1.0)
        with torch.no_grad():
            for name, (low, high) in self._bounds.items():
                self.runs.get_parameter(name).clamp_(low, high)

    def state(self) -> State:
        """A copy of the parameters."""
        return {name: p.detach().clone() for name, p in self.runs.named_parameters()}

    def restore(self, state: State) -> None:
        """Put a copy back."""
        with torch.no_grad():
            for name, parameter in self.runs.named_parameters():
                parameter.copy_(state[name])

    def put(self, state: State, model: ir.Model) -> None:
        """Write a copy into a model with the same graph as the one that was given."""
        tensors = {
            self.runs.origins[name].name: tensor for name, tensor in state.items()
        }
        if self.normalized is not None:
            tensors = self.normalized.folded(tensors)
        module = self._module(
            model, (), chosen=list(tensors) if self.normalized is not None else None
        )
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(tensors[module.origins[name].name])
        write_back(module)

    def to(self, device: str) -> None:
        """Move to a device."""
        self.runs.to(device)
        self.trains.to(device)
        if self.trains is not self.runs:
            share_parameters(self.runs, self.trains)

    def _train_by_batches(self) -> None:
        """Let normalizations go by the statistics of each batch, and convolutions without one have
        one meanwhile.
        """
        names = self._names_of(self.runs)
        if self._data is not None:
            self.normalized = normalized(self.model, names, self._data, self._teacher)
        if self.normalized is not None:
            self.model = self.normalized.model
            names += self.normalized.added if self._chosen is True else []
        self.statistics = with_batch_statistics(self.model)
        if self.statistics is not None:
            self._chosen = [
                *names,
                *(running.name for running in self.statistics.running),
            ]
            self.runs = self._module(self.model, self._taps)

    def _learning(self) -> TrainableModule:
        """The module that learns: the one that runs, or another over its parameters, by batch
        statistics or softly.
        """
        if self.statistics is None and not self.soft:
            return self.runs
        by_batch = self.statistics
        model = self.model if by_batch is None else by_batch.model
        seen = (
            [] if by_batch is None else [running.batch for running in by_batch.running]
        )
        module = self._module(model, [*self._taps, *seen], bool(self.soft))
        share_parameters(self.runs, module)
        if by_batch is not None:
            by_batch.freeze(module)
        return module

    def _qat(self) -> Any:
        return QAT[self.recipe.scales] if self.recipe.qat else "off"

    def _choice(self, model: ir.Model) -> bool | list[str]:
        """All weights, or those that include and exclude leave."""
        include, exclude = self.recipe.include, self.recipe.exclude
        if not include and not exclude:
            return True
        return [
            name
            for name in self._names_of(to_torch(model, qat=self._qat()))
            if (not include or _matches(name, include)) and not _matches(name, exclude)
        ]

    @staticmethod
    def _names_of(module: TrainableModule) -> list[str]:
        return [origin.name for origin in module.origins.values()]

    def _module(
        self,
        model: ir.Model,
        taps: Sequence[str],
        soft: bool = False,
        chosen: list[str] | None = None,
    ) -> TrainableModule:
        train = self._chosen if chosen is None else chosen
        module = to_torch(
            model,
            train=train,
            taps=taps,
            qat=self._qat(),
            originals=self.originals,
            soft=soft,
        )
        if self.originals and not soft:
            _start_inside(module, to_torch(model, train=train, qat=self._qat()))
        return module


def share_parameters(to: TrainableModule, source: TrainableModule) -> None:
    """Make the parameters of `source` those of `to`, by where they came from."""
    theirs = {
        source.origins[name].name: parameter
        for name, parameter in source.named_parameters()
    }
    for name, origin in to.origins.items():
        to.register_parameter(name, theirs[origin.name])


def _neighbours(module: TrainableModule) -> dict[str, tuple[Tensor, Tensor]]:
    """The codes below and above each latent."""
    bounds = {}
    for name, origin in module.origins.items():
        if origin.latent is not None and origin.latent.step:
            step, base = origin.latent.step, origin.latent.low
            low = (
                torch.floor((module.get_parameter(name).detach() - base) / step) * step
                + base
            )
            bounds[name] = (low, low + step)
    return bounds


def _start_inside(module: TrainableModule, coded: TrainableModule) -> None:
    """Move latents to where they round to the codes that the graph has."""
    with torch.no_grad():
        for name, origin in module.origins.items():
            if origin.latent is not None and origin.latent.step:
                code, reach = coded.get_parameter(name), INSIDE * origin.latent.step
                parameter = module.get_parameter(name)
                parameter.copy_(
                    torch.maximum(torch.minimum(parameter, code + reach), code - reach)
                )


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(name == p or fnmatchcase(name, p) for p in patterns)
