"""Proof after the fact: which quantized layers the target's runtime really runs on integers, and
why others not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._base import Context, Declined, PassOutcome
from .._core.graph import all_graphs, all_nodes
from .layers import label

FLOAT_KERNELS = frozenset(
    {"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
)
"""Float forms of the heavy ops, in whatever domain (ONNX Runtime has blocked and channels-last
ones).
"""

INTEGER_KERNELS = frozenset(
    {
        "QLinearConv",
        "ConvInteger",
        "QLinearConvTranspose",
        "QGemm",
        "QLinearMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "MatMulNBits",
        "DynamicQuantizeLSTM",
        "QAttention",
    }
)
MOVES = frozenset(
    {
        "Transpose",
        "Reshape",
        "Identity",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Cast",
        "ReorderInput",
    }
)
BOUNDED = frozenset({"Relu", "Clip", "LeakyRelu", "QuickGelu"})
BIAS_TOLERANCE = 1e-5  # relative; the scales are products of two float32


class Kernel(NamedTuple):
    """A node of the runtime's optimized graph. `full_op`: with its domain where that is not the
    standard one.
    """

    full_op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def op(self) -> str:
        return self.full_op.rpartition(".")[2]


def prove(model: ir.Model, context: Context, outcome: PassOutcome) -> None:
    """Add to `outcome` what the runtime makes of the quantized model.

    Stats: `int8_kernels` and `missed` (counts), or `int8_kernels` = "unproven" where the runtime
    cannot be asked. Every miss is declined with its cause; what is run otherwise than it was
    written is warned of.
    """
    fields = context.kernels(model)
    if fields is None:
        outcome.stats["int8_kernels"] = "unproven"
        return
    layers = quantized_layers(model)
    graph = _Optimized([Kernel(*f) for f in fields], model)
    integer = sum(kernel.op in INTEGER_KERNELS for kernel in graph.kernels)
    missed = list(graph.misses(layers))
    outcome.stats["int8_kernels"], outcome.stats["missed"] = integer, len(missed)
    outcome.declined += missed
    for node in misread_biases(layers):
        context.warn(
            label(node),
            "the runtime takes its bias for one of the scale of its products, which it is not: "
            "what it computes is wrong",
        )
    surplus = integer + len(missed) - sum(len(nodes) for nodes in layers.values())
    if surplus > 0:
        context.warn(
            "quant",
            f"the runtime runs {surplus} layers on integers by itself that were to stay float",
        )


def quantized_layers(model: ir.Model) -> dict[str, list[ir.Node]]:
    """The layers whose weight is stored as integers, by the name of the stored tensor."""
    found: dict[str, list[ir.Node]] = {}
    for node in all_nodes(model):
        if node.op_type not in FLOAT_KERNELS and node.op_type not in INTEGER_KERNELS:
            continue
        for value in node.inputs[1:]:
            stored = stored_integers(value)
            if stored is not None:
                found.setdefault(stored, []).append(node)
                break
    return found


def misread_biases(layers: dict[str, list[ir.Node]]) -> Iterator[ir.Node]:
    """Gemm layers whose integer bias has another scale than input times weight: ONNX Runtime's
    QGemm ignores it.
    """
    for node in (
        node for nodes in layers.values() for node in nodes if node.op_type == "Gemm"
    ):
        scales = [_scale_of(value) for value in node.inputs[:3]]
        known = [s for s in scales if s is not None]
        if len(known) == 3 and not _fits(*known):
            yield node


def _scale_of(value: ir.Value | None) -> NDArray[Any] | None:
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    scale = producer.inputs[1]
    return (
        None
        if scale is None or scale.const_value is None
        else np.asarray(scale.const_value.numpy())
    )


def _fits(data: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any]) -> bool:
    return bool(np.allclose(bias, data * weight, rtol=BIAS_TOLERANCE, atol=0))


def stored_integers(value: ir.Value | None) -> str | None:
    """Name of the integer initializer that a weight is dequantized or unpacked from; None for a
    float weight.
    """
    quantized = (
        value is not None
        and value.dtype is not None
        and value.dtype not in _FLOAT_TYPES
    )
    for _ in range(16):  # longer than any unpacking
        if value is None:
            return None
        producer = value.producer()
        if producer is None:
            return value.name if quantized and value.const_value is not None else None
        if any(
            v is not None and v.producer() is None and v.const_value is None
            for v in producer.inputs[:1]
        ):
            return None
        quantized |= producer.op_type in ("DequantizeLinear", "DynamicQuantizeLinear")
        index = (
            1 if producer.op_type == "Gather" else 0
        )  # a packed weight holds the indices of a table
        value = producer.inputs[index] if index < len(producer.inputs) else None
    return None


_FLOAT_TYPES = {
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.DOUBLE,
    ir.DataType.BFLOAT16,
}


class _Optimized:
    """The optimized graph with its edges. Constants are looked up in the model it was made from, by
    name.
    """

    def __init__(self, kernels: list[Kernel], model: ir.Model) -> None:
        self.kernels = kernels
        self.made = {
            name: kernel for kernel in kernels for name in kernel.outputs if name
        }
        self.readers: dict[str, list[Kernel]] = {}
        for kernel in kernels:
            for name in kernel.inputs:
                self.readers.setdefault(name, []).append(kernel)
        graphs = [graph for graph in all_graphs(model) if isinstance(graph, ir.Graph)]
        self.outputs = {value.name for graph in graphs for value in graph.outputs}
        self.computed = {
            v.name for graph in graphs for v in graph.inputs if v.const_value is None
        }
        self.constants = {
            name: v.const_value
            for graph in graphs
            for name, v in graph.initializers.items()
        }

    def misses(self, layers: dict[str, list[ir.Node]]) -> Iterator[Declined]:
        """Float kernels that multiply by a dequantized weight, each with the cause."""
        for kernel in self.kernels:
            if kernel.op not in FLOAT_KERNELS or len(kernel.inputs) < 2:
                continue
            stored = self._dequantized_constant(kernel.inputs[1])
            if stored is not None:
                nodes = layers.get(stored, [])
                where = (
                    label(nodes[0])
                    if len(nodes) == 1
                    else f"{kernel.op} {kernel.name or kernel.outputs[0]}"
                )
                yield Declined(
                    where, f"stored in int8 but run in float: {self.cause(kernel)}"
                )

    def cause(self, kernel: Kernel) -> str:
        """Which part of the pattern of an integer kernel is missing around a float one."""
        data = self._source(kernel.inputs[0])
        if data is None or data.op != "DequantizeLinear":
            return (
                "no Q/DQ pair in front of it, so its weight is dequantized at every run"
            )
        problem = self._bias_problem(kernel, data)
        if problem is None and "Conv" in kernel.op:
            problem = self._output_problem(kernel)
        return problem or "the runtime has no integer kernel for these types and shapes"

    def _bias_problem(self, kernel: Kernel, data: Kernel) -> str | None:
        if len(kernel.inputs) < 3 or not kernel.inputs[2]:
            return None
        bias, weight = self._source(kernel.inputs[2]), self._source(kernel.inputs[1])
        if bias is None or bias.op != "DequantizeLinear":
            return "its bias is float; the integer kernel wants int32"
        scales = [
            self._constant(k.inputs[1]) for k in (data, weight, bias) if k is not None
        ]
        known = [s for s in scales if s is not None]
        if len(known) == 3 and not _fits(*known):
            return "the scale of its bias is not the input's scale times the weight's"
        return None

    def _output_problem(self, kernel: Kernel) -> str | None:
        name = kernel.outputs[0]
        readers = self.readers.get(name, [])
        if name in self.outputs:
            return "its output is an output of the graph, which stays float"
        if len(readers) != 1:
            return f"its float output is read by {len(readers)} nodes"
        after, between = readers[0], "an activation" if kernel.op == "FusedConv" else ""
        if after.op in BOUNDED and after.outputs[0] in self.readers:
            between, after = after.op, self.readers[after.outputs[0]][0]
        if after.op != "QuantizeLinear":
            return (
                f"no QuantizeLinear after it{' and its ' + between if between else ''}, "
                f"but {after.op}"
            )
        zero = (
            self._constant(after.inputs[2])
            if between and len(after.inputs) > 2
            else None
        )
        if zero is not None and np.any(zero != 0):
            return (
                f"the quantization after it does not absorb {between}: its zero point is "
                f"{int(zero.flat[0])}, not 0"
            )
        return f"{between} stands between it and its quantization" if between else None

    def _source(self, name: str) -> Kernel | None:
        """What makes a value, seen through ops that only move it."""
        kernel = self.made.get(name)
        while kernel is not None and kernel.op in MOVES:
            kernel = self.made.get(kernel.inputs[0])
        return kernel

    def _dequantized_constant(self, name: str) -> str | None:
        """The stored tensor, where the value is a dequantized constant."""
        kernel = self._source(name)
        if kernel is None or kernel.op != "DequantizeLinear":
            return None
        stored = kernel.inputs[0]
        while stored in self.made and self.made[stored].op in MOVES:
            stored = self.made[stored].inputs[0]
        return None if stored in self.made or stored in self.computed else stored

    def _constant(self, name: str) -> NDArray[Any] | None:
        tensor = self.constants.get(name)
        return None if tensor is None else np.asarray(tensor.numpy())
