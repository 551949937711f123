"""Constant folding: nodes whose inputs are all constants are run once, while the source is
written.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from ._program import Known
from ._registry import Call, Entry

LIMIT = 1 << 22
"""Elements that a folded result may have: 16 MiB of float32. Chosen by hand; not measured."""

COUNTED_ELEMENTS = 64
"""Elements of an integer operand that is taken for sizes; longer ones are data.

A shape has no more dims than that. Chosen by hand; not measured.
"""

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
"""Ops that may give something else every time that they run."""

REFUSALS = (
    ArithmeticError,
    AssertionError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors of torch and of kernels that are given what their op does not accept.

Sizes that do not fit, indices out of range, a type without arithmetic, an attribute's word that no
table holds. Anything else is a defect of a kernel and is not caught.
"""


def fold(
    entry: Entry,
    node: ir.Node,
    inputs: list[Known | None],
    attributes: dict[str, Any],
    call: Call,
) -> list[torch.Tensor] | None:
    """Return the outputs of a node whose inputs are all constants; None where it is to be run.

    That is where an input is computed, where results differ from run to run, or are too large to
    keep.
    """
    present = [known for known in inputs if known is not None]
    if not present or entry.name in RANDOM:
        return None
    if any(known.constant is None for known in present):
        return None
    if entry.name in GROWING and _bound(present) > LIMIT:
        return None
    try:
        with torch.no_grad():
            returned = _run(entry, inputs, attributes, call)
    except REFUSALS:
        # The node is written as it is and raises the same when it runs, if it ever does:
        # the branch that it stands in may never be taken.
        return None
    # a kernel may give more than the node has outputs
    wanted = len(node.outputs)
    results = list(returned[:wanted]) if entry.many else [returned]
    if len(results) < wanted:
        return None
    # sequences and optionals are no constants that a buffer could hold
    if not all(isinstance(result, torch.Tensor) for result in results):
        return None
    if any(result.numel() > LIMIT for result in results):
        return None
    return results


def _run(
    entry: Entry, inputs: list[Known | None], attributes: dict[str, Any], call: Call
) -> Any:
    """Call a kernel on constants, as the generated source would."""
    arguments: list[Any] = []
    for index, known in enumerate(inputs):
        argument: Any = None if known is None else known.constant
        if argument is not None and index in entry.host:
            argument = argument.tolist()
        arguments.append(argument)
    available = {"call": call, "device": torch.device("cpu")}
    extras = {name: available[name] for name in entry.extras}
    return entry.function(*arguments, **attributes, **extras)


def _bound(present: list[Known]) -> float:
    """Return an upper bound of the elements that integer operands can ask for."""
    bound = 1.0
    for known in present:
        constant = known.constant
        assert constant is not None
        bound *= max(constant.numel(), 1)
        if constant.is_floating_point() or constant.numel() > COUNTED_ELEMENTS:
            continue
        # any of these may be a size or a repeat, so that all are multiplied
        for size in constant.reshape(-1).tolist():
            bound *= max(abs(int(size)), 1)
    return bound
