"""The module that runs an ONNX graph: its float weights are Parameters, its graph is straight-line
source.
"""

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
    """What a module was made from and what was found on the way. Copies of the module share it.

    `origins`: parameter name -> where it came from. `cuts`: where gradients end. `detached`: nodes
    that onnx's own numpy kernels run. `source`: the Python that runs. `inputs`, `outputs`: names
    and element types.
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
        self.register_buffer("anchor", torch.empty(0), persistent=False)
        self.register_buffer("rounding", torch.ones(()), persistent=False)
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor)

    @property
    def model(self) -> ir.Model:
        """The graph that `write_back` changes."""
        return self.provenance.model

    @property
    def origins(self) -> dict[str, Origin]:
        """Parameter name -> where it came from."""
        return self.provenance.origins

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Outputs and taps of the graph; see the class."""
        dtypes = self.provenance.inputs
        given = [
            *inputs,
            *(named[name] for name in list(dtypes)[len(inputs) :] if name in named),
        ]
        values = [
            self._accept(value, dtype)
            for value, dtype in zip(given, dtypes.values(), strict=False)
        ]
        results = self._run(self, *values)
        return results[0] if len(results) == 1 else results

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Named inputs to named outputs and taps.

        Errors: UsageError for an input that is missing or unknown.
        """
        inputs = self.provenance.inputs
        for name in sorted({*feeds} ^ {*inputs}):
            if name not in inputs or name not in self.provenance.optional:
                problem = (
                    f"input '{name}' is not given"
                    if name in inputs
                    else f"no input '{name}'"
                )
                raise UsageError(
                    "feeds", problem, f"the model's inputs are {', '.join(inputs)}"
                )
        values = [
            self._accept(feeds.get(name), dtype) for name, dtype in inputs.items()
        ]
        return dict(zip(self.provenance.outputs, self._run(self, *values), strict=True))

    def mask(self, parameter: str, kept: torch.Tensor) -> None:
        """From now on `constrain` holds a parameter at zero where `kept` is false."""
        self._kept[parameter] = f"{parameter}_kept"
        self.register_buffer(f"{parameter}_kept", kept, persistent=False)

    def constrain(self, grids: bool = True) -> None:
        """To be called after every step of an optimizer: pruned zeros are zero again, latents
        within their `grids`.
        """
        with torch.no_grad():
            for name, kept in self._kept.items():
                self.get_parameter(name).mul_(self.get_buffer(kept))
            for name, origin in self.origins.items():
                if grids and origin.latent is not None and origin.latent.step:
                    self.get_parameter(name).clamp_(
                        origin.latent.low, origin.latent.high
                    )

    def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        """Groups for an optimizer in which one step moves weights equally far, whatever their grid:
        the rate of latents is in grid units (`rate` over floats per unit, the mean over channels),
        that of a scale over its largest code.
        """
        groups = []
        for name, parameter in self.named_parameters():
            origin = self.origins[name]
            scale = None if origin.latent is None else origin.latent.scale
            unit = 1.0 if scale is None else float(np.abs(scale).mean()) or 1.0
            groups.append(
                {
                    "params": [parameter],
                    "lr": rate / (unit * origin.reach),
                    "name": name,
                }
            )
        return groups

    def _accept(self, value: Any, dtype: ir.DataType | None) -> Any:
        if isinstance(value, torch.Tensor):
            wanted = CARRIERS.get(dtype) if dtype is not None else None
            return (
                value if wanted is None or value.dtype == wanted else value.to(wanted)
            )
        if isinstance(value, list):
            return [self._accept(item, dtype) for item in value]
        if isinstance(value, (np.ndarray, np.generic)) and dtype in CARRIERS:
            assert dtype is not None
            return to_carrier(np.asarray(value), dtype).to(self.anchor.device)
        return value


ATTRIBUTES = (
    frozenset(dir(TrainableModule))
    | frozenset(vars(torch.nn.Module()))
    | {"provenance", "anchor", "rounding"}
)
"""Names that no parameter may have."""
