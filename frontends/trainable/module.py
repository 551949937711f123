"""The module that runs an ONNX graph: its float weights are Parameters, its graph is source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from ... import UsageError
from ._dtypes import CARRIERS, to_carrier
from ._gradient_flow import Cut
from ._weights import Origin


@dataclass(frozen=True)
class Provenance:
    """The model behind a module and all that was found on the way; copies of the module share it.

    `origins`: parameter name -> constant that it came from. `cuts`: where gradients end.
    `detached`: nodes that onnx's own numpy kernels run. `source`: the Python that runs. `inputs`,
    `outputs`: names and element types. `optional`: inputs that have a default.
    """

    model: ir.Model
    origins: dict[str, Origin]
    cuts: list[Cut]
    detached: list[str]
    source: str
    inputs: dict[str, ir.DataType | None]
    optional: frozenset[str]
    outputs: dict[str, ir.DataType | None]

    def __deepcopy__(self, memo: dict[int, Any]) -> Provenance:
        # copies of a module write back into the same graph
        return self


class TrainableModule(torch.nn.Module):  # type: ignore[misc]  # torch comes without types here
    """Runs an ONNX graph in torch, with gradients. Made by `to_torch`.

    Inputs in the order of the graph or by name; numpy arrays are taken too. One output comes bare,
    several as a tuple, taps last; `run` takes and gives them by name. Half precision is computed in
    float32, integers of odd widths in wider ones.
    """

    def __init__(
        self,
        provenance: Provenance,
        run: Callable[..., Any],
        buffers: Mapping[str, torch.Tensor],
    ) -> None:
        super().__init__()
        self.provenance = provenance
        self._run = run
        self._kept: dict[str, str] = {}
        # empty, but it moves with the module: its device is where inputs go
        self.register_buffer("anchor", torch.empty(0), persistent=False)
        # 1: codes are rounded all the way; training sets it from 0 on
        self.register_buffer("rounding", torch.ones(()), persistent=False)
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor)

    @property
    def model(self) -> ir.Model:
        """The graph that `write_back` changes."""
        return self.provenance.model

    @property
    def origins(self) -> dict[str, Origin]:
        """Parameter name -> constant that it came from."""
        return self.provenance.origins

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Compute outputs and taps of the graph; see the class."""
        dtypes = self.provenance.inputs
        given = list(inputs)
        rest = list(dtypes)[len(inputs) :]
        given.extend(named[name] for name in rest if name in named)
        values = []
        for value, dtype in zip(given, dtypes.values(), strict=False):
            values.append(self._accept(value, dtype))
        results = self._run(self, *values)
        if len(results) == 1:
            return results[0]
        return results

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Compute named outputs and taps from named inputs.

        Errors: UsageError for an input that is missing or unknown.
        """
        inputs = self.provenance.inputs
        self._check_names(feeds)
        values = []
        for name, dtype in inputs.items():
            fed = feeds.get(name)
            values.append(self._accept(fed, dtype))
        results = self._run(self, *values)
        return dict(zip(self.provenance.outputs, results, strict=True))

    def _check_names(self, feeds: Mapping[str, Any]) -> None:
        inputs = self.provenance.inputs
        for name in sorted({*feeds} ^ {*inputs}):
            if name not in inputs:
                problem = f"no input '{name}'"
            elif name not in self.provenance.optional:
                problem = f"input '{name}' is not given"
            else:
                continue
            fix = f"the model's inputs are {', '.join(inputs)}"
            raise UsageError("feeds", problem, fix)

    def mask(self, parameter: str, kept: torch.Tensor) -> None:
        """Make `constrain` hold a parameter at zero where `kept` is false, from now on."""
        name = f"{parameter}_kept"
        self._kept[parameter] = name
        # a product of floats, in one layout, is three times as fast as one with a boolean
        factors = torch.empty_like(self.get_parameter(parameter), requires_grad=False)
        factors.copy_(kept)
        self.register_buffer(name, factors, persistent=False)

    def masks(self) -> dict[str, torch.Tensor]:
        """Return the masks of weights that have held zeros: 0 where they are, else 1."""
        found = {}
        for name, kept in self._kept.items():
            if not self.origins[name].is_palette:
                found[name] = self.get_buffer(kept)
        return found

    def constrain(self, grids: bool = True) -> None:
        """Set pruned weights to zero and clamp latents to their grids; call it after every step.

        `grids`: False leaves latents where they are, while they are still blended with floats.
        """
        with torch.no_grad():
            for name, kept in self._kept.items():
                zeroing = self.get_buffer(kept)
                self.get_parameter(name).mul_(zeroing)
            if not grids:
                return
            # outside of its grid a latent gets no gradient, and would never come back
            for name, origin in self.origins.items():
                if origin.limits is not None:
                    self.get_parameter(name).clamp_(*origin.limits)

    def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        """Make optimizer groups in which one step moves weights equally far, whatever their grid.

        `rate`: floats a step. The rate of latents is in grid units (`rate` over floats per unit,
        the mean over channels), that of a scale over its largest code.
        """
        groups = []
        for name, parameter in self.named_parameters():
            origin = self.origins[name]
            unit = _floats_per_unit(origin)
            # a step of one moves a latent by its scale, and a scale moves its largest code
            own_rate = rate / (unit * origin.reach)
            groups.append({"params": [parameter], "lr": own_rate, "name": name})
        return groups

    def _accept(self, value: Any, dtype: ir.DataType | None) -> Any:
        """Return an input in its carrier, on the module's device."""
        if isinstance(value, torch.Tensor):
            if dtype is None:
                return value
            wanted = CARRIERS.get(dtype)
            if wanted is None or value.dtype == wanted:
                return value
            return value.to(wanted)
        if isinstance(value, list):
            return [self._accept(item, dtype) for item in value]
        if isinstance(value, (np.ndarray, np.generic)) and dtype in CARRIERS:
            assert dtype is not None
            array = np.asarray(value)
            tensor = to_carrier(array, dtype)
            return tensor.to(self.anchor.device)
        # strings and absent optional inputs
        return value


def palette_names(origins: Mapping[str, Origin]) -> dict[str, str]:
    """Name of the parameter with the values that codes may have, by that of the codes.

    Weights that have them in common share one, which is called after the first.
    """
    owners: dict[int, str] = {}
    found = {}
    for name, origin in origins.items():
        latent = origin.latent
        if latent is None or latent.palette is None or origin.is_palette:
            continue
        owner = owners.setdefault(id(latent.palette.values), name)
        found[name] = f"{owner}_palette"
    return found


def _floats_per_unit(origin: Origin) -> float:
    """Return the mean scale of a latent's grid; 1 without one, or where it is zero."""
    if origin.latent is None or origin.latent.scale is None:
        return 1.0
    magnitudes = np.abs(origin.latent.scale)
    mean = float(magnitudes.mean())
    return mean or 1.0


ATTRIBUTES = (
    frozenset(dir(TrainableModule))
    | frozenset(vars(torch.nn.Module()))
    | {"provenance", "anchor", "rounding"}
)
"""Names that no parameter may have."""
