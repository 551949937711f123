"""Zeros of a model's weights as a runtime has them: behind whatever decodes and dequantizes them.

The count is ONNX Runtime's word, not this project's: it folds constants, and what is left is read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper

WEIGHT_INPUTS = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
    "ConvInteger": (1,),
    "MatMulInteger": (1,),
    "QLinearConv": (3,),
    "QLinearMatMul": (3,),
}
"""Inputs of each operator that may be a weight."""

ZERO_POINTS = {
    ("ConvInteger", 1): 3,
    ("MatMulInteger", 1): 3,
    ("QLinearConv", 3): 5,
    ("QLinearMatMul", 3): 5,
}
"""Input that holds the code of zero of an operator's integer weight."""

CONVOLUTIONS = frozenset({"ConvInteger", "QLinearConv"})
"""Integer operators whose output channels are the first axis of the weight; of others, the last."""

PASSING = frozenset(
    {"Transpose", "Reshape", "Identity", "Cast", "Squeeze", "Unsqueeze"}
)
"""Operators behind which a weight has the same elements."""


@dataclass(frozen=True)
class Zeros:
    """Zeros among the elements of all weights, each weight counted once."""

    zeros: int
    weights: int

    @property
    def fraction(self) -> float:
        """Fraction of zeros; 0 without weights."""
        if not self.weights:
            return 0.0
        return self.zeros / self.weights


def count_zeros(path: Path) -> Zeros:
    """Zeros of the weights of a model file.

    Errors: whatever ONNX Runtime raises for a file that it cannot load.
    """
    zeros = 0
    weights = 0
    for array, zeros_of_weight in weights_of_file(path).values():
        zeros += zeros_of_weight
        weights += array.size
    return Zeros(zeros, weights)


def weights_of_file(path: Path) -> dict[str, tuple[NDArray[Any], int]]:
    """Weights of a model file by name, as integers where they are, and the count of zeros in each.

    Errors: whatever ONNX Runtime raises for a file that it cannot load.
    """
    model = _folded(path)
    found: dict[str, tuple[NDArray[Any], int]] = {}
    graph = model.graph
    for scope, node in _nodes(graph, {}, {}):
        op_type = node.op_type
        axis = 0 if op_type in CONVOLUTIONS else -1
        for index in WEIGHT_INPUTS.get(op_type, ()):
            if index >= len(node.input):
                continue
            name = node.input[index]
            code = _code_of_zero(scope, node, index)
            scope.note(name, code, axis, found)
    return found


def _code_of_zero(scope: _Scope, node: Any, index: int) -> Any:
    """Integer that stands for zero in an operator's weight; None for 0."""
    key = (node.op_type, index)
    zero_point = ZERO_POINTS.get(key)
    if zero_point is None:
        return None
    if zero_point >= len(node.input):
        return None
    name = node.input[zero_point]
    return scope.constant(name)


def _folded(path: Path) -> Any:
    """The model after ONNX Runtime folded its constants, and did nothing that fuses operators."""
    with tempfile.TemporaryDirectory() as folder:
        folded = Path(folder, "folded.onnx")
        options = ort.SessionOptions()
        options.log_severity_level = 4
        levels = ort.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folded)
        file = str(path)
        ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return onnx.load(str(folded))


@dataclass(frozen=True)
class _Scope:
    """Initializers and producers that a node sees, by the names of values."""

    initializers: Mapping[str, Any]
    producers: Mapping[str, Any]

    def constant(self, name: str) -> Any:
        """Array of a constant; None where the value is computed."""
        tensor = self.initializers.get(name)
        if tensor is not None:
            return numpy_helper.to_array(tensor)
        node = self.producers.get(name)
        if node is None or node.op_type != "Constant":
            return None
        for attribute in node.attribute:
            if attribute.name == "value":
                return numpy_helper.to_array(attribute.t)
        return None

    def note(
        self,
        name: str,
        code: Any,
        axis: int,
        found: dict[str, tuple[NDArray[Any], int]],
    ) -> None:
        """Note the weight that a value is made of, if it is one, and its zeros.

        `code`: what stands for zero, None for 0, or an array along `axis`.
        """
        node = self.producers.get(name)
        while node is not None and node.op_type != "Constant":
            inputs = node.input
            if node.op_type == "DequantizeLinear":
                axis = _axis_of(node)
                if len(inputs) > 2 and inputs[2]:
                    code = self.constant(inputs[2])
            elif node.op_type not in PASSING:
                return
            name = inputs[0]
            node = self.producers.get(name)
        array = self.constant(name)
        if array is None:
            return
        # scalars and vectors scale or shift; they multiply nothing
        if array.ndim < 2:
            return
        zeros = _zeros_in(array, code, axis)
        found[name] = (array, zeros)


def _axis_of(node: Any) -> int:
    for attribute in node.attribute:
        if attribute.name == "axis":
            return int(attribute.i)
    return 1


def _zeros_in(array: Any, code: Any, axis: int) -> int:
    if code is None or not np.any(code):
        is_zero = array == 0
    else:
        code = _broadcast(code, array.shape, axis)
        is_zero = array == code
    total = np.sum(is_zero)
    return int(total)


def _broadcast(code: Any, shape: tuple[int, ...], axis: int) -> Any:
    """A code for all, for each channel along the axis, or for each block, as an array of `shape`
    compares with it.
    """
    rank = len(shape)
    if code.ndim == 1 and code.size > 1:
        by_channel = [1] * rank
        by_channel[axis] = code.size
        return code.reshape(by_channel)
    if code.ndim != rank:
        return code
    if code.shape == shape:
        return code
    blocks = code.shape
    for each, size in enumerate(shape):
        # rounded up: the last block may be cut
        times = -(-size // blocks[each])
        code = np.repeat(code, times, axis=each)
    inside = tuple(slice(size) for size in shape)
    return code[inside]


def _nodes(
    graph: Any, initializers: dict[str, Any], producers: dict[str, Any]
) -> Iterator[tuple[_Scope, Any]]:
    """Nodes of a graph and of all graphs in it, each with what it sees."""
    own = {tensor.name: tensor for tensor in graph.initializer}
    initializers = {**initializers, **own}
    producers = dict(producers)
    for node in graph.node:
        for name in node.output:
            producers[name] = node
    scope = _Scope(initializers, producers)
    for node in graph.node:
        yield scope, node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g, initializers, producers)
