"""Audit of a quantized model: which layers the target's runtime really runs on integers, and why
others not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.context import Context, KernelNode
from .._core.graph import all_graphs, all_nodes, label
from .._core.ops import FLOATS
from .._core.outcome import Declined, PassOutcome

FLOAT_KERNELS = frozenset(
    {"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
)
"""Float forms of the ops that multiply by a weight, in whatever domain.

ONNX Runtime has blocked and channels-last ones.
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

LOOKED_THROUGH = frozenset(
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
"""Kernels that keep every number of a tensor: ONNX Runtime puts them between Q/DQ and layers."""

UNPACKING = LOOKED_THROUGH | {"DequantizeLinear", "Gather", "Slice", "Mul", "ReduceSum"}
"""Ops between integers in the file and the weight that a layer reads."""

ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "QuickGelu"})
"""Activations that a quantization may absorb."""

BIAS_TOLERANCE = 1e-5
"""Relative error up to which a bias has the right scale: scales are products of two float32."""


def audit_kernels(model: ir.Model, context: Context, outcome: PassOutcome) -> None:
    """Add to `outcome` what the runtime makes of the quantized model.

    Stats: `int8_kernels` and `missed` (counts), or `int8_kernels` = "unproven" where the runtime
    cannot be asked. Every miss is declined with its cause; what is run otherwise than it was
    written is warned of.
    """
    kernels = context.kernels(model)
    if kernels is None:
        outcome.stats["int8_kernels"] = "unproven"
        return
    layers = quantized_layers(model)
    optimized = _OptimizedGraph(kernels, model)
    integer = sum(operator(kernel) in INTEGER_KERNELS for kernel in kernels)
    missed = list(optimized.misses(layers))
    outcome.stats["int8_kernels"] = integer
    outcome.stats["missed"] = len(missed)
    outcome.declined += missed
    for node in misread_biases(layers):
        context.warn(
            label(node),
            "the runtime takes its bias for one of the scale of its products, which it is not: "
            "what it computes is wrong",
        )
    known = sum(len(nodes) for nodes in layers.values())
    # each quantized layer is run on integers or missed; more kernels than that are others
    surplus = integer + len(missed) - known
    if surplus > 0:
        context.warn(
            "quant",
            f"the runtime runs {surplus} layers on integers by itself that were to stay float",
        )


def operator(kernel: KernelNode) -> str:
    """The operator of a kernel without its domain."""
    return kernel.op.rpartition(".")[2]


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


def stored_integers(value: ir.Value | None) -> str | None:
    """Name of the integer initializer that a weight is dequantized or unpacked from.

    None for a float weight. It follows the graph, so that layers which another tool quantized count
    as well.
    """
    if value is None:
        return None
    is_quantized = value.dtype is not None and value.dtype not in FLOATS
    while value is not None:
        producer = value.producer()
        if producer is None:
            is_stored = is_quantized and value.const_value is not None
            return value.name if is_stored else None
        if producer.op_type not in UNPACKING:
            # an activation
            return None
        is_quantized |= producer.op_type == "DequantizeLinear"
        # a packed weight holds the indices of a table
        index = 1 if producer.op_type == "Gather" else 0
        value = producer.inputs[index] if index < len(producer.inputs) else None
    return None


def misread_biases(layers: dict[str, list[ir.Node]]) -> Iterator[ir.Node]:
    """Gemm layers whose integer bias has another scale than input times weight.

    ONNX Runtime's QGemm ignores it.
    """
    for nodes in layers.values():
        for node in nodes:
            if node.op_type != "Gemm":
                continue
            scales = [_scale_of(value) for value in node.inputs[:3]]
            if _is_misfit(scales):
                yield node


def _scale_of(value: ir.Value | None) -> NDArray[Any] | None:
    """The scale of a dequantized value, where it is constant."""
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    scale = producer.inputs[1]
    if scale is None or scale.const_value is None:
        return None
    return np.asarray(scale.const_value.numpy())


def _is_misfit(scales: list[NDArray[Any] | None]) -> bool:
    """True for scales of input, weight and bias, all known, where the last is no product."""
    known = [scale for scale in scales if scale is not None]
    if len(known) != 3:
        return False
    data, weight, bias = known
    return not np.allclose(
        bias,
        data * weight,
        rtol=BIAS_TOLERANCE,
        atol=0,
    )


class _OptimizedGraph:
    """The runtime's optimized graph with its edges.

    Constants are looked up in the model it was made from, by name.
    """

    def __init__(self, kernels: list[KernelNode], model: ir.Model) -> None:
        self.kernels = kernels
        self.made: dict[str, KernelNode] = {}
        self.readers: dict[str, list[KernelNode]] = {}
        for kernel in kernels:
            for name in kernel.outputs:
                if name:
                    self.made[name] = kernel
            for name in kernel.inputs:
                self.readers.setdefault(name, []).append(kernel)
        self.outputs: set[str | None] = set()
        self.computed: set[str | None] = set()
        self.constants: dict[str, ir.TensorProtocol | None] = {}
        for graph in all_graphs(model):
            if not isinstance(graph, ir.Graph):
                continue
            self.outputs.update(value.name for value in graph.outputs)
            for value in graph.inputs:
                if value.const_value is None:
                    self.computed.add(value.name)
            for name, value in graph.initializers.items():
                self.constants[name] = value.const_value

    def misses(self, layers: dict[str, list[ir.Node]]) -> Iterator[Declined]:
        """Float kernels that multiply by a dequantized weight, each with the cause."""
        for kernel in self.kernels:
            if operator(kernel) not in FLOAT_KERNELS or len(kernel.inputs) < 2:
                continue
            stored = self._dequantized_constant(kernel.inputs[1])
            if stored is None:
                continue
            nodes = layers.get(stored, [])
            if len(nodes) == 1:
                where = label(nodes[0])
            else:
                # layers that share a weight: the runtime's own name has to do
                where = f"{operator(kernel)} {kernel.name or kernel.outputs[0]}"
            reason = f"stored in int8 but run in float: {self.cause(kernel)}"
            yield Declined(where, reason)

    def cause(self, kernel: KernelNode) -> str:
        """The part of the pattern of an integer kernel that is missing around a float one."""
        data = self._source(kernel.inputs[0])
        if data is None or operator(data) != "DequantizeLinear":
            return (
                "no Q/DQ pair in front of it, so its weight is dequantized at every run"
            )
        problem = self._bias_problem(kernel, data)
        # a product may emit float, a convolution must not
        if problem is None and "Conv" in operator(kernel):
            problem = self._output_problem(kernel)
        return problem or "the runtime has no integer kernel for these types and shapes"

    def _bias_problem(self, kernel: KernelNode, data: KernelNode) -> str | None:
        if len(kernel.inputs) < 3 or not kernel.inputs[2]:
            return None
        weight = self._source(kernel.inputs[1])
        bias = self._source(kernel.inputs[2])
        if bias is None or operator(bias) != "DequantizeLinear":
            return "its bias is float; the integer kernel wants int32"
        dequantizers = [kernel for kernel in (data, weight, bias) if kernel is not None]
        if _is_misfit([self._constant(found.inputs[1]) for found in dequantizers]):
            return "the scale of its bias is not the input's scale times the weight's"
        return None

    def _output_problem(self, kernel: KernelNode) -> str | None:
        name = kernel.outputs[0]
        if name in self.outputs:
            return "it gives an output of its graph, which stays float"
        readers = self.readers.get(name, [])
        if len(readers) != 1:
            return f"its float output is read by {len(readers)} nodes"
        after = readers[0]
        # what a FusedConv has fused is no node any more
        activation = "an activation" if operator(kernel) == "FusedConv" else ""
        # the runtime may absorb an activation, so that the one behind it counts
        if operator(after) in ACTIVATIONS and after.outputs[0] in self.readers:
            activation = operator(after)
            after = self.readers[after.outputs[0]][0]
        if operator(after) != "QuantizeLinear":
            both = f" and its {activation}" if activation else ""
            return f"no QuantizeLinear after it{both}, but {operator(after)}"
        if not activation:
            return None
        zero = self._constant(after.inputs[2]) if len(after.inputs) > 2 else None
        if zero is not None and np.any(zero != 0):
            return (
                f"the quantization after it does not absorb {activation}: its zero point is "
                f"{int(zero.flat[0])}, not 0"
            )
        return f"{activation} stands between it and its quantization"

    def _source(self, name: str) -> KernelNode | None:
        """The kernel that makes a value, seen through ops that only move it."""
        kernel = self.made.get(name)
        while kernel is not None and operator(kernel) in LOOKED_THROUGH:
            kernel = self.made.get(kernel.inputs[0])
        return kernel

    def _dequantized_constant(self, name: str) -> str | None:
        """The stored tensor, where the value is a dequantized constant."""
        kernel = self._source(name)
        if kernel is None or operator(kernel) != "DequantizeLinear":
            return None
        stored = kernel.inputs[0]
        while stored in self.made and operator(self.made[stored]) in LOOKED_THROUGH:
            stored = self.made[stored].inputs[0]
        return None if stored in self.made or stored in self.computed else stored

    def _constant(self, name: str) -> NDArray[Any] | None:
        tensor = self.constants.get(name)
        return None if tensor is None else np.asarray(tensor.numpy())
