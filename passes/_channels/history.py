"""What a model remembers of its first channel pruning: later ones count from the widths that it had
then.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

import onnx_ir as ir

from .._dims.groups import Group
from .._dims.solve import Solution
from .costs import Cost

KEY = "onnx_opt.channels"

Widths = dict[str, int]
"""How many channels an axis has, by `weight:axis×slots of a channel`: heads and dimensions of heads
are told apart.
"""


@dataclass
class Memory:
    """`widths`, `cost`: of the unpruned model. `last`, `now`: the pass's text, and shapes of
    weights behind it.
    """

    widths: Widths = field(default_factory=dict)
    cost: Cost | None = None
    last: str = ""
    now: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ir.Model) -> Memory:
        """What the model carries; nothing where it carries none that can be read."""
        try:
            found = json.loads(model.metadata_props[KEY])
            cost = Cost(**{key: int(value) for key, value in found["cost"].items()})
            widths = {
                str(place): int(width) for place, width in found["widths"].items()
            }
            now = {
                str(name): [int(size) for size in shape]
                for name, shape in found["now"].items()
            }
            return cls(widths, cost, str(found["last"]), now)
        except (AttributeError, KeyError, TypeError, ValueError):
            return cls()

    def store(self, model: ir.Model) -> None:
        """Write it into the model's metadata."""
        model.metadata_props[KEY] = json.dumps(asdict(self), separators=(",", ":"))

    def original(self, places: Sequence[str], width: int) -> int:
        """The width that a group of these places had at first: now, where the model remembers
        nothing of it.
        """
        return max(
            [width, *(self.widths[place] for place in places if place in self.widths)]
        )

    def unchanged(self, weights: Iterable[ir.Value]) -> bool:
        """Whether weights have the shapes that the last pruning left: those it knew, at least
        one.
        """
        known = [value for value in weights if value.name in self.now]
        return bool(known) and all(
            shape_of(value) == self.now[value.name or ""] for value in known
        )


def shape_of(value: ir.Value) -> list[int]:
    """The shape of an initializer."""
    assert value.const_value is not None
    return [int(size) for size in value.const_value.shape.numpy()]


def places_of(groups: Sequence[Group], solution: Solution) -> list[list[str]]:
    """How a model's memory knows each group: by the axes of weights that it has to itself, else by
    its name.
    """
    named: list[dict[str, int]] = []
    for group in groups:
        slots = dict(group.places)
        named.append(
            {
                f"{value.name}:{axis}": slots[solution.classes[value, axis]]
                for value, axis in group.weights
            }
        )
    owners = Counter(name for each in named for name in each)
    found = []
    for group, each in zip(groups, named, strict=True):
        own = [f"{name}×{count}" for name, count in each.items() if owners[name] == 1]
        found.append(own or [group.name])
    return found
