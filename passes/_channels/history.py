"""History of a model's channel prunings: later ones count from the widths before the first."""

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
"""Key of the model's metadata that holds the history as JSON."""

Widths = dict[str, int]
"""Channels that an axis has, by `weight:axis×slots of a channel`: heads and dimensions of heads are
told apart.
"""


@dataclass
class PruningHistory:
    """Facts of a model's prunings, in the form in which files hold them.

    `widths`, `cost`: of the unpruned model. `last`: text of the pass that pruned last. `now`:
    shapes of weights after it.
    """

    widths: Widths = field(default_factory=dict)
    cost: Cost | None = None
    last: str = ""
    now: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ir.Model) -> PruningHistory:
        """History that a model carries; an empty one where it carries none that can be read."""
        try:
            found = json.loads(model.metadata_props[KEY])
            costs = {}
            for key, value in found["cost"].items():
                costs[key] = int(value)
            cost = Cost(**costs)
            widths = {}
            for place, width in found["widths"].items():
                widths[str(place)] = int(width)
            now = {}
            for name, shape in found["now"].items():
                now[str(name)] = [int(size) for size in shape]
            last = str(found["last"])
            return cls(
                widths=widths,
                cost=cost,
                last=last,
                now=now,
            )
        # anyone may have written the metadata: whatever does not read as a history is none
        except (AttributeError, KeyError, TypeError, ValueError):
            return cls()

    def store(self, model: ir.Model) -> None:
        """Write the history into a model's metadata."""
        compact = (",", ":")
        text = json.dumps(asdict(self), separators=compact)
        model.metadata_props[KEY] = text

    def original(self, places: Sequence[str], width: int) -> int:
        """Width that a group of these places had at first; `width` where nothing is known of it."""
        widest = width
        for place in places:
            known = self.widths.get(place, 0)
            widest = max(widest, known)
        return widest

    def unchanged(self, weights: Iterable[ir.Value]) -> bool:
        """Return whether weights have the shapes that the last pruning left.

        Judged by those that it knew, at least one.
        """
        known = 0
        for value in weights:
            shape = self.now.get(value.name or "")
            if shape is None:
                continue
            known += 1
            if shape != shape_of(value):
                return False
        return known > 0


def shape_of(value: ir.Value) -> list[int]:
    """Shape of an initializer."""
    tensor = value.const_value
    assert tensor is not None
    return [int(size) for size in tensor.shape.numpy()]


def places_of(groups: Sequence[Group], solution: Solution) -> list[list[str]]:
    """Keys under which a history knows each group.

    They are the axes of weights that a group has to itself, else its name.
    """
    named: list[dict[str, int]] = []
    owners: Counter[str] = Counter()
    for group in groups:
        slots = dict(group.places)
        own = {}
        for value, axis in group.weights:
            root = solution.classes[value, axis]
            place = f"{value.name}:{axis}"
            own[place] = slots[root]
        named.append(own)
        owners.update(own.keys())
    found = []
    for group, own in zip(groups, named, strict=True):
        alone = []
        for name, count in own.items():
            # several groups side by side on one axis: its width tells nothing of either
            if owners[name] == 1:
                alone.append(f"{name}×{count}")
        found.append(alone or [group.name])
    return found
