"""Graphs with integer layers, walked node by node in the arithmetic of either class of CPU.

A quantized Conv, Gemm or MatMul adds codes (`integer_kernels`); what follows its sums is float32
arithmetic in the order of ONNX Runtime's kernels, so that a single layer equals the fused kernel to
the last bit. Ops that the runtime runs on codes in one step (Add, Mul, Concat, pools, Sigmoid) are
computed in float between DequantizeLinear and QuantizeLinear, as written: there a code may differ
by one, where the runtime rounds once instead of twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from integer_kernels import (
    Arithmetic,
    Array,
    Geometry,
    conv,
    dynamic_range,
    is_depthwise,
    kernel_order,
    matmul,
    may_saturate,
    quantized,
    rounded,
)
from onnx.reference import ReferenceEvaluator

EIGHT_BITS = (np.uint8, np.int8)
NO_ZERO = np.zeros((), np.int64)


def along(numbers: Array, axis: int, rank: int) -> Array:
    """One number, or one for each index of an axis, to broadcast over an array of that rank."""
    flat = numbers.reshape(-1)
    return (
        flat.reshape(())
        if flat.size == 1
        else flat.reshape(-1, *(1,) * (rank - 1 - axis % rank))
    )


@dataclass(frozen=True)
class Sums:
    """Sum that an integer layer computes: int64 worth `scale` each, by channel on `axis`.

    `limits`: of the activation behind it, which cuts the values when they are read.
    """

    sums: Array
    scale: Array
    axis: int
    limits: tuple[float, float] = (-math.inf, math.inf)

    def floats(self) -> Array:
        values = self.sums.astype(np.float32) * along(
            self.scale, self.axis, self.sums.ndim
        )
        return np.clip(values, *np.float32(self.limits))

    def codes(self, scale: Array, zero: Array) -> Array:
        """Output of a kernel: one float32 factor made of all scales, halves to even."""
        factor = along(
            (self.scale / scale).astype(np.float32), self.axis, self.sums.ndim
        )
        low, high = (
            quantized(np.asarray(limit, np.float32), scale, zero)
            for limit in self.limits
        )
        return np.clip(rounded(self.sums.astype(np.float32) * factor, zero), low, high)

    def plus(self, bias: Array) -> Sums:
        return replace(
            self,
            sums=self.sums + along(bias.astype(np.int64), self.axis, self.sums.ndim),
        )

    def cut(self, low: float, high: float) -> Sums:
        return replace(
            self, limits=(max(low, self.limits[0]), min(high, self.limits[1]))
        )


@dataclass(frozen=True)
class Coded:
    """A dequantized value and the codes that it stands for."""

    codes: Array
    scale: Array
    zero: Array
    axis: int

    def floats(self) -> Array:
        scale, zero = (
            along(a, self.axis, self.codes.ndim) for a in (self.scale, self.zero)
        )
        return ((self.codes.astype(np.int64) - zero).astype(np.float32) * scale).astype(
            np.float32
        )


Value = Array | Coded | Sums


def array_of(value: Value) -> Array:
    return value.floats() if isinstance(value, Coded | Sums) else np.asarray(value)


@dataclass(frozen=True)
class Call:
    """A node and the values that it reads, None where one is left out."""

    node: onnx.NodeProto
    inputs: list[Value | None]
    arithmetic: Arithmetic
    opsets: dict[str, int]

    @property
    def attributes(self) -> dict[str, Any]:
        return {a.name: onnx.helper.get_attribute_value(a) for a in self.node.attribute}

    def value(self, index: int) -> Value | None:
        return self.inputs[index] if index < len(self.inputs) else None

    def array(self, index: int, default: Any = None) -> Array:
        value = self.value(index)
        return np.asarray(default) if value is None else array_of(value)

    def coded(self, *indices: int) -> list[Coded]:
        """Those inputs, if all are codes of 8 bits behind a DequantizeLinear; else none."""
        found = [self.value(i) for i in indices]
        if all(isinstance(v, Coded) and v.codes.dtype in EIGHT_BITS for v in found):
            return [v for v in found if isinstance(v, Coded)]
        return []


def _dequantize(call: Call) -> list[Value]:
    attributes, codes, scale = call.attributes, call.array(0), call.array(1)
    zero = call.array(2, np.zeros(scale.shape, np.int64))
    if attributes.get("block_size", 0):
        return _reference(call)
    return [
        Coded(
            codes,
            scale,
            zero.astype(np.int64),
            attributes.get("axis", 1) if scale.size > 1 else 0,
        )
    ]


def _quantize(call: Call) -> list[Value]:
    value, scale, zero = call.value(0), call.array(1), call.array(2)
    if scale.size > 1 or zero.dtype not in EIGHT_BITS:
        return _reference(call)
    return [
        value.codes(scale, zero)
        if isinstance(value, Sums)
        else quantized(call.array(0), scale, zero)
    ]


def _dynamic_quantize(call: Call) -> list[Value]:
    scale, zero = dynamic_range(call.array(0))
    return [quantized(call.array(0), scale, zero), scale, zero]


def _conv(call: Call) -> list[Value]:
    if not (both := call.coded(0, 1)):
        return _reference(call)
    return _biased(call, _layer_conv(call, *both), 2)


def _layer_conv(call: Call, x: Coded, w: Coded) -> Sums:
    geometry = Geometry.of(call.attributes, w.codes.ndim - 2)
    return Sums(
        conv(x.codes, w.codes, x.zero, w.zero, geometry, call.arithmetic),
        _product(x.scale, w.scale),
        1,
    )


def _gemm(call: Call) -> list[Value]:
    attributes, both = call.attributes, call.coded(0, 1)
    if not both or attributes.get("transA", 0) or attributes.get("beta", 1.0) != 1.0:
        return _reference(call)
    x, w = both
    codes = w.codes.T if attributes.get("transB", 0) else w.codes
    scale = _product(np.float32(attributes.get("alpha", 1.0)) * x.scale, w.scale)
    return _biased(
        call, Sums(matmul(x.codes, codes, x.zero, w.zero, call.arithmetic), scale, 1), 2
    )


def _matmul(call: Call) -> list[Value]:
    if not (both := call.coded(0, 1)):
        return _reference(call)
    x, w = both
    sums = matmul(x.codes, w.codes, x.zero, w.zero, call.arithmetic)
    return [Sums(sums, _product(x.scale, w.scale), sums.ndim - 1)]


def _product(x_scale: Array, w_scale: Array) -> Array:
    return (x_scale.astype(np.float32) * w_scale).astype(np.float32)


def _biased(call: Call, sums: Sums, index: int) -> list[Value]:
    """An int32 bias joins the sums; of a Conv's float bias the runtime makes one when it loads."""
    bias = call.value(index)
    if bias is None:
        return [sums]
    if isinstance(bias, Coded) and bias.codes.dtype == np.int32:
        return [sums.plus(bias.codes)]
    if call.node.op_type == "Conv":
        return [sums.plus(np.rint(call.array(index) / sums.scale))]
    return [(sums.floats() + call.array(index)).astype(np.float32)]


def _add(call: Call) -> list[Value]:
    """A MatMul's integer bias joins its sums, whichever side it stands on."""
    for sums, bias in (call.inputs, call.inputs[::-1]):
        if (
            isinstance(sums, Sums)
            and isinstance(bias, Coded)
            and bias.codes.dtype == np.int32
        ):
            return [sums.plus(bias.codes)]
    return _reference(call)


def _relu(call: Call) -> list[Value]:
    value = call.value(0)
    return [value.cut(0.0, math.inf)] if isinstance(value, Sums) else _reference(call)


def _clip(call: Call) -> list[Value]:
    value = call.value(0)
    if not isinstance(value, Sums):
        return _reference(call)
    return [value.cut(float(call.array(1, -math.inf)), float(call.array(2, math.inf)))]


def _matmul_integer(call: Call) -> list[Value]:
    sums = matmul(
        call.array(0),
        call.array(1),
        call.array(2, NO_ZERO),
        call.array(3, NO_ZERO),
        call.arithmetic,
    )
    return [sums.astype(np.int32)]


def _conv_integer(call: Call) -> list[Value]:
    x, w = call.array(0), call.array(1)
    geometry = Geometry.of(call.attributes, w.ndim - 2)
    return [
        conv(
            x, w, call.array(2, NO_ZERO), call.array(3, NO_ZERO), geometry, "exact"
        ).astype(np.int32)
    ]


def _input(call: Call, first: int, axis: int = 0) -> Coded:
    """The inputs `codes, scale, zero point` of a QLinear op."""
    return Coded(
        call.array(first),
        call.array(first + 1),
        call.array(first + 2).astype(np.int64),
        axis,
    )


def _qlinear_conv(call: Call) -> list[Value]:
    sums = _layer_conv(call, _input(call, 0), _input(call, 3))
    bias = call.value(8)
    return [
        (sums if bias is None else sums.plus(call.array(8))).codes(
            call.array(6), call.array(7)
        )
    ]


def _qlinear_matmul(call: Call) -> list[Value]:
    x, w = _input(call, 0), _input(call, 3)
    sums = matmul(x.codes, w.codes, x.zero, w.zero, call.arithmetic)
    return [
        Sums(sums, _product(x.scale, w.scale), sums.ndim - 1).codes(
            call.array(6), call.array(7)
        )
    ]


def _qgemm(call: Call) -> list[Value]:
    x, w, attributes = _input(call, 0), _input(call, 3), call.attributes
    codes = w.codes.T if attributes.get("transB", 0) else w.codes
    scale = _product(np.float32(attributes.get("alpha", 1.0)) * x.scale, w.scale)
    sums = Sums(matmul(x.codes, codes, x.zero, w.zero, call.arithmetic), scale, 1)
    if call.value(6) is not None:
        sums = sums.plus(call.array(6))
    return [
        sums.codes(call.array(7), call.array(8))
        if call.value(7) is not None
        else sums.floats()
    ]


def _matmul_integer_to_float(call: Call) -> list[Value]:
    """Inputs x, w, x scale, w scale, x zero, w zero, bias."""
    zeros = call.array(4, NO_ZERO), call.array(5, NO_ZERO)
    sums = matmul(call.array(0), call.array(1), *zeros, call.arithmetic)
    values = Sums(sums, _product(call.array(2), call.array(3)), sums.ndim - 1).floats()
    return [values if call.value(6) is None else values + call.array(6)]


def _dynamic_quantize_matmul(call: Call) -> list[Value]:
    """Inputs x in float, w, w scale, w zero, bias."""
    scale, zero = dynamic_range(call.array(0))
    codes = quantized(call.array(0), scale, zero)
    return _matmul_integer_to_float(
        replace(
            call,
            inputs=[
                codes,
                call.array(1),
                scale,
                call.array(2),
                zero,
                call.value(3),
                call.value(4),
            ],
        )
    )


def _reference(call: Call) -> list[Value]:
    """Any other op, in float: onnx's own definition."""
    opsets = [
        onnx.helper.make_opsetid(domain, version)
        for domain, version in call.opsets.items()
    ]
    inputs = [name for name in call.node.input if name]
    alone = onnx.helper.make_function(
        "test", "alone", inputs, list(call.node.output), [call.node], opsets
    )
    given = {name: call.array(i) for i, name in enumerate(call.node.input) if name}
    return list(ReferenceEvaluator(alone).run(None, given, attributes={}))


OPS: dict[str, Callable[[Call], list[Value]]] = {
    "Identity": lambda call: [call.inputs[0]],
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "DynamicQuantizeLinear": _dynamic_quantize,
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Add": _add,
    "Relu": _relu,
    "Clip": _clip,
    "MatMulInteger": _matmul_integer,
    "ConvInteger": _conv_integer,
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "QGemm": _qgemm,
    "MatMulIntegerToFloat": _matmul_integer_to_float,
    "DynamicQuantizeMatMul": _dynamic_quantize_matmul,
}


def run_integers(
    model: ir.Model | onnx.ModelProto, feeds: dict[str, Array], arithmetic: Arithmetic
) -> list[Array]:
    """The outputs of a graph without subgraphs, every integer layer added in that arithmetic."""
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    values: dict[str, Value] = stored_arrays(proto) | feeds
    for node in proto.graph.node:
        values.update(_results(proto, node, values, arithmetic))
    return [array_of(values[output.name]) for output in proto.graph.output]


def stored_arrays(proto: onnx.ModelProto) -> dict[str, Value]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}


def _results(
    proto: onnx.ModelProto,
    node: onnx.NodeProto,
    values: dict[str, Value],
    arithmetic: Arithmetic,
) -> dict[str, Value]:
    opsets = {o.domain: o.version for o in proto.opset_import}
    call = Call(
        node,
        [values[name] if name else None for name in node.input],
        arithmetic,
        opsets,
    )
    found = OPS.get(node.op_type, _reference)(call)
    return {
        name: value for name, value in zip(node.output, found, strict=False) if name
    }


def offending_pairs(model: ir.Model | onnx.ModelProto) -> dict[str, int]:
    """Count of pairs of each constant s8 weight that may saturate, by its layer's output."""
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    constants = stored_arrays(proto)
    found = {}
    for node in proto.graph.node:
        if node.input and all(not name or name in constants for name in node.input):
            constants.update(_results(proto, node, constants, "exact"))
        else:
            weights = _paired_weights(node, constants)
            found.update(
                {node.output[0]: sum(int(may_saturate(w).sum()) for w in weights)}
                if weights
                else {}
            )
    return found


WEIGHT_AT = {
    "Conv": 1,
    "Gemm": 1,
    "MatMul": 1,
    "MatMulInteger": 1,
    "MatMulIntegerToFloat": 1,
    "DynamicQuantizeMatMul": 1,
    "QLinearConv": 3,
    "QLinearMatMul": 3,
    "QGemm": 3,
}


def _paired_weights(node: onnx.NodeProto, constants: dict[str, Value]) -> list[Array]:
    """The (K, N) matrices of s8 codes that a layer's kernel reads pair by pair, if it does."""
    index = WEIGHT_AT.get(node.op_type)
    value = constants.get(node.input[index]) if index is not None else None
    codes = value.codes if isinstance(value, Coded) else value
    if not isinstance(codes, np.ndarray) or codes.dtype != np.int8:
        return []
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if "Conv" in node.op_type:
        group = attributes.get("group", 1)
        return [] if is_depthwise(codes, group) else list(kernel_order(codes, group))
    matrix = codes.T if attributes.get("transB", 0) else codes
    return list(matrix.reshape(-1, *matrix.shape[-2:]))
