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
        return self.zeros / self.weights if self.weights else 0.0


def count_zeros(path: Path) -> Zeros:
    """Zeros of the weights of a model file.

    Errors: whatever ONNX Runtime raises for a file that it cannot load.
    """
    found = weights_of_file(path).values()
    return Zeros(
        zeros=sum(zeros for _, zeros in found),
        weights=sum(array.size for array, _ in found),
    )


def weights_of_file(path: Path) -> dict[str, tuple[NDArray[Any], int]]:
    """Weights of a model file by name, as integers where they are, and the count of zeros in each.

    Errors: whatever ONNX Runtime raises for a file that it cannot load.
    """
    model = _folded(path)
    found: dict[str, tuple[NDArray[Any], int]] = {}
    for scope, node in _nodes(model.graph, {}, {}):
        for index in WEIGHT_INPUTS.get(node.op_type, ()):
            if index >= len(node.input):
                continue
            code = None
            zero_point = ZERO_POINTS.get((node.op_type, index))
            if zero_point is not None and zero_point < len(node.input):
                code = scope.constant(node.input[zero_point])
            axis = 0 if node.op_type in CONVOLUTIONS else -1
            scope.note(node.input[index], code, axis, found)
    return found


def _folded(path: Path) -> Any:
    """The model after ONNX Runtime folded its constants, and did nothing that fuses operators."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder, "folded.onnx"))
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


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
        if node is not None and node.op_type == "Constant":
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
            if node.op_type == "DequantizeLinear":
                if len(node.input) > 2 and node.input[2]:
                    code = self.constant(node.input[2])
                axis = _axis_of(node)
            elif node.op_type not in PASSING:
                return
            name = node.input[0]
            node = self.producers.get(name)
        array = self.constant(name)
        # scalars and vectors scale or shift; they multiply nothing
        if array is None or array.ndim < 2:
            return
        found[name] = (array, _zeros_in(array, code, axis))


def _axis_of(node: Any) -> int:
    for attribute in node.attribute:
        if attribute.name == "axis":
            return int(attribute.i)
    return 1


def _zeros_in(array: Any, code: Any, axis: int) -> int:

    if code is None or not np.any(code):
        return int(np.sum(array == 0))
    if code.ndim == 1 and code.size > 1:
        shape = [1] * array.ndim
        shape[axis] = code.size
        code = code.reshape(shape)
    elif code.ndim == array.ndim and code.shape != array.shape:
        block = [-(-n // m) for n, m in zip(array.shape, code.shape, strict=True)]
        for each, times in enumerate(block):
            code = np.repeat(code, times, axis=each)
        code = code[tuple(slice(n) for n in array.shape)]
    return int(np.sum(array == code))


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
