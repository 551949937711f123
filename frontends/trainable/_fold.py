"""What depends on constants alone is computed once, while the source is written."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
import torch

from ._program import Known
from ._registry import Call, Entry

LIMIT = 1 << 22
"""Elements that a folded result may have."""

GROWING = frozenset(
    {
        "ConstantOfShape",
        "Expand",
        "Tile",
        "Range",
        "Pad",
        "Resize",
        "Upsample",
        "OneHot",
        "EyeLike",
    }
)
"""Ops whose result may be far larger than their inputs: folded only where the numbers they are
given are small.
"""

RANDOM = frozenset(
    {
        "RandomNormal",
        "RandomUniform",
        "RandomNormalLike",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
        "Dropout",
    }
)


def fold(
    entry: Entry,
    node: ir.Node,
    inputs: list[Known | None],
    attributes: dict[str, Any],
    call: Call,
) -> list[torch.Tensor] | None:
    """Outputs of a node whose inputs are all constants; None where they are not, or where it had
    better be run.

    A kernel that fails here is left to fail when it runs, if it ever does: its branch may never be
    taken.
    """
    present = [k for k in inputs if k is not None]
    if not present or entry.name in RANDOM or any(k.constant is None for k in present):
        return None
    if entry.name in GROWING and _bound(present) > LIMIT:
        return None
    try:
        with torch.no_grad():
            results = _run(entry, inputs, attributes, call)
    except Exception:
        return None
    results = list(results[: len(node.outputs)]) if entry.many else [results]
    if len(results) < len(node.outputs) or not all(
        isinstance(r, torch.Tensor) for r in results
    ):
        return None
    return results if all(r.numel() <= LIMIT for r in results) else None


def _run(
    entry: Entry, inputs: list[Known | None], attributes: dict[str, Any], call: Call
) -> Any:
    arguments = []
    for index, known in enumerate(inputs):
        constant = None if known is None else known.constant
        arguments.append(
            constant.tolist()
            if constant is not None and index in entry.host
            else constant
        )
    extras: dict[str, Any] = {"call": call, "device": torch.device("cpu")}
    return entry.function(
        *arguments, **attributes, **{name: extras[name] for name in entry.extras}
    )


def _bound(present: list[Known]) -> float:
    """An upper bound of the elements that integer operands can ask for."""
    bound = 1.0
    for known in present:
        assert known.constant is not None
        bound *= max(known.constant.numel(), 1)
        if not known.constant.is_floating_point() and known.constant.numel() <= 64:
            bound *= math.prod(
                max(abs(int(v)), 1) for v in known.constant.reshape(-1).tolist()
            )
    return bound
