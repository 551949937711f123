"""Guards: nodes that change nothing, and keep the runtime from what it would do without them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .inserter import Inserter

FLOAT_LOWEST = np.float32(-3.4e38)
"""Number that no float is below: Max with it changes nothing, and the runtime cannot know."""


def insert_guard(inserter: Inserter, value: ir.Value) -> None:
    """Put a Max that changes nothing between a float value and what reads it."""
    lowest = inserter.constant("lowest", np.array(FLOAT_LOWEST))
    guard = inserter.node(
        "Max",
        [value, lowest],
        "guarded",
        ir.DataType.FLOAT,
        value.shape,
    )
    for use in list(value.uses()):
        if use.node is not guard:
            use.node.replace_input_with(use.idx, guard.outputs[0])
    inserter.place_after(value, [guard])
