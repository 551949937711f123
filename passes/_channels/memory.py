"""What a model remembers of its first channel pruning: later ones count from the widths that it had then."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import onnx_ir as ir

from .costs import Cost

KEY = "onnx_opt.channels"


@dataclass
class Memory:
    """`widths`, `cost`: of the unpruned model. `last`, `now`: the pass's text and the widths that it left."""

    widths: dict[str, int] = field(default_factory=dict)
    cost: Cost | None = None
    last: str = ""
    now: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ir.Model) -> Memory:
        """What the model carries; nothing where it carries none that can be read."""
        try:
            found = json.loads(model.metadata_props[KEY])
            return cls(dict(found["widths"]), Cost(**found["cost"]), str(found["last"]), dict(found["now"]))
        except (KeyError, TypeError, ValueError):
            return cls()

    def store(self, model: ir.Model) -> None:
        """Write it into the model's metadata."""
        model.metadata_props[KEY] = json.dumps(asdict(self), separators=(",", ":"))

    def original(self, widths: Mapping[str, int]) -> dict[str, int]:
        """The width that each group had at first: now, where the model remembers nothing of it."""
        return {name: max(self.widths.get(name, size), size) for name, size in widths.items()}
