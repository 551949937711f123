"""Values that constants alone decide, computed here as a runtime does while it loads a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.ops import FLOATS
from .._simplify.evaluate import NotFoldable, evaluate, foldable, result_elements

Array = NDArray[Any]

LARGEST = 1 << 29
"""Elements of the largest tensor that is computed on the way: a file may ask for any number.

Chosen by hand, above every weight that was seen.
"""

INEXACT_OPS = frozenset(
    {
        "Exp",
        "Log",
        "Sin",
        "Cos",
        "Tan",
        "Asin",
        "Acos",
        "Atan",
        "Sinh",
        "Cosh",
        "Asinh",
        "Acosh",
        "Atanh",
        "Erf",
        "Sigmoid",
        "Tanh",
        "Pow",
        "Sqrt",
        "Reciprocal",
        "Elu",
        "Selu",
        "Softplus",
        "Softsign",
        "HardSigmoid",
        "HardSwish",
        "Gelu",
        "Softmax",
        "LogSoftmax",
        "Mean",
        "ReduceMean",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
    }
)
"""Ops whose last bits depend on who computes them."""

SUMMING_OPS = frozenset(
    {
        "CumSum",
        "MatMul",
        "Gemm",
        "Sum",
        "ReduceSum",
        "ReduceProd",
        "ReduceL1",
        "ReduceSumSquare",
    }
)
"""Ops that add numbers up in any order: exact for whole numbers, not for floats."""


class Decoder:
    """Recipe of one value: the nodes that compute it, and the constants that they read.

    Holds on to constants, not to what is computed of them; stays valid once the nodes have left
    their graph. Errors: NotFoldable for a node that is not computed here.

    `pieces`: what decoders of one graph have computed for others, of a tensor that several share;
    each is there until a decoder for it is made.
    """

    def __init__(self, value: ir.Value, opset: int, pieces: Pieces) -> None:
        self._value = value
        self._opset = opset
        self._pieces = pieces
        self._steps = _steps_to(value, pieces)
        self._constants: dict[ir.Value, ir.TensorProtocol] = {}
        self._uses: Counter[ir.Value] = Counter()
        made: set[ir.Value] = set()
        for node, _ in self._steps:
            made.update(node.outputs)
        for _, sources in self._steps:
            for source in sources:
                if source is None:
                    continue
                self._uses[source] += 1
                if source in made or source in self._constants:
                    continue
                piece = pieces.pop(source, None)
                tensor = source.const_value if piece is None else ir.Tensor(piece)
                assert tensor is not None
                self._constants[source] = tensor

    def __call__(self) -> Array:
        """Compute the value. Errors: NotFoldable where that takes too much, or fails."""
        known: dict[ir.Value, Array] = {}
        left = self._uses.copy()
        for node, sources in self._steps:
            inputs = []
            for source in sources:
                array = self._array(source, known)
                inputs.append(array)
            outputs = _computed(node, inputs, self._opset)
            made = dict(zip(node.outputs, outputs, strict=True))
            known.update(made)
            if len(made) > 1:
                self._keep_pieces(made)
            # what no later node reads goes: one weight's parts are held at a time
            for source in sources:
                if source is None:
                    continue
                left[source] -= 1
                if not left[source]:
                    del known[source]
        return known[self._value]

    def _keep_pieces(self, made: dict[ir.Value, Array]) -> None:
        """Keep for other decoders what this one does not read."""
        for value, array in made.items():
            if not self._uses[value] and len(value.uses()) == 1:
                self._pieces[value] = array

    def _array(
        self, source: ir.Value | None, known: dict[ir.Value, Array]
    ) -> Array | None:
        """The array of an input, which is known from then on; None where there is no input."""
        if source is None:
            return None
        if source not in known:
            constant = self._constants[source]
            known[source] = constant.numpy()
        return known[source]


Step = tuple[ir.Node, tuple[ir.Value | None, ...]]

Pieces = dict[ir.Value, Array]
"""Outputs of nodes that have several, by value."""


def _steps_to(value: ir.Value, known: Container[ir.Value]) -> list[Step]:
    """Nodes that a value depends on, each after those that it reads, but for values known.

    Errors: NotFoldable.
    """
    order: dict[ir.Node, None] = {}
    producer = value.producer()
    waiting = [(producer, False)]
    # by a stack: chains of nodes may be longer than calls can nest
    while waiting:
        node, is_ready = waiting.pop()
        if node is None or node in order:
            continue
        if is_ready:
            order[node] = None
            continue
        _require_exact(node)
        waiting.append((node, True))
        for source in node.inputs:
            if source is not None and source not in known:
                producer = source.producer()
                waiting.append((producer, False))
    return [(node, tuple(node.inputs)) for node in order]


def _require_exact(node: ir.Node) -> None:
    op_type = node.op_type
    if not foldable(node):
        raise NotFoldable(f"{op_type} is not computed here")
    if op_type in INEXACT_OPS:
        raise NotFoldable(f"runtimes differ in the last bits of {op_type}")


def _computed(node: ir.Node, inputs: list[Array | None], opset: int) -> Sequence[Array]:
    op_type = node.op_type
    first = inputs[0]
    assert first is not None
    if op_type in SUMMING_OPS:
        dtype = ir.DataType.from_numpy(first.dtype)
        if dtype in FLOATS:
            raise NotFoldable(f"runtimes differ in the order in which {op_type} adds")
    elements = result_elements(node, inputs)
    if elements > LARGEST:
        raise NotFoldable(f"{op_type} makes more than {LARGEST:,} elements")
    if first.ndim == 1 and _is_plain_scatter(node):
        return [_scattered(inputs)]
    if op_type == "GatherElements":
        return [_gathered(inputs, node.attributes.get_int("axis", 0))]
    return evaluate(node, inputs, opset)


def _is_plain_scatter(node: ir.Node) -> bool:
    if node.op_type != "ScatterElements":
        return False
    reduction = node.attributes.get_string("reduction", "none")
    return reduction == "none"


def _scattered(inputs: list[Array | None]) -> Array:
    """ScatterElements of one axis: onnx's own takes a turn of a loop for each element."""
    data, places, updates = inputs
    assert data is not None
    assert places is not None
    filled = data.copy()
    filled[places] = updates
    return filled


def _gathered(inputs: list[Array | None], axis: int) -> Array:
    """GatherElements, which numpy has: onnx's own is slower."""
    data, index = inputs
    assert data is not None
    assert index is not None
    found: Array = np.take_along_axis(data, index.astype(np.intp), axis)
    return found
