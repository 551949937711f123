"""Layers of every kind that has integer kernels, drawn by seed: as float models and in QDQ form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
from integer_kernels import Array

Random = np.random.Generator
HEADER = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>\n'
EXTREMES = np.array([-128, -127, -90, -64, -9, 0, 5, 64, 65, 90, 127], np.int8)
"""Codes whose pairs saturate often."""


@dataclass(frozen=True)
class Layer:
    """An op with its attributes, the shape that it reads and that of its weight."""

    op: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def channel_axis(self) -> int:
        """The weight's axis of output channels."""
        return (
            0
            if self.op == "Conv" or self.attributes.get("transB")
            else len(self.weight) - 1
        )

    @property
    def channels(self) -> int:
        return self.weight[self.channel_axis]

    @property
    def attribute_text(self) -> str:
        return ", ".join(f"{name} = {value}" for name, value in self.attributes.items())

    @property
    def call(self) -> str:
        return (
            f"{self.op} <{self.attribute_text}> " if self.attributes else f"{self.op} "
        )

    @property
    def dims(self) -> str:
        return str(list(self.x))

    @property
    def dims_of_rank(self) -> str:
        """As many dimensions, unknown."""
        return str([f"d{i}" for i in range(len(self.x))]).replace("'", "")


def _conv(
    random: Random, group: int, channels: int, outputs: int, rank: int = 2
) -> Layer:
    """A Conv of so many channels and outputs in each group."""
    kernel, dilations = _each(random, 1, 3, rank), _each(random, 1, 2, rank)
    sizes = [
        d * (k - 1) + _some(random, 1, 5)
        for k, d in zip(kernel, dilations, strict=True)
    ]
    attributes = {
        "group": group,
        "dilations": dilations,
        "strides": _each(random, 1, 2, rank),
        "pads": _each(random, 0, 1, 2 * rank),
    }
    return Layer(
        "Conv",
        (2, group * channels, *sizes),
        (group * outputs, channels, *kernel),
        attributes,
    )


def _product(
    random: Random, op: str, transposed: bool = False, batch: tuple[int, ...] = ()
) -> Layer:
    rows, inner, outputs = (
        _some(random, 1, 9),
        _some(random, 1, 99),
        _some(random, 1, 33),
    )
    if transposed:
        return Layer(op, (rows, inner), (outputs, inner), {"transB": 1})
    return Layer(op, (*batch, rows, inner), (inner, outputs))


def _some(random: Random, low: int, high: int) -> int:
    return int(random.integers(low, high + 1))


def _each(random: Random, low: int, high: int, count: int) -> list[int]:
    return [_some(random, low, high) for _ in range(count)]


KINDS: dict[str, Callable[[Random], Layer]] = {
    "Conv": lambda r: _conv(r, 1, 4 * _some(r, 2, 4), _some(r, 1, 20)),
    "Conv of odd channels": lambda r: _conv(
        r, 1, 2 * _some(r, 3, 6) - 1, _some(r, 1, 20)
    ),
    "Conv of an image": lambda r: _conv(r, 1, _some(r, 1, 4), _some(r, 5, 20)),
    "Conv of one axis": lambda r: _conv(r, 1, _some(r, 5, 12), _some(r, 2, 20), rank=1),
    "Conv of three axes": lambda r: _conv(r, 1, _some(r, 5, 9), _some(r, 2, 9), rank=3),
    "grouped Conv": lambda r: _conv(r, _some(r, 2, 4), _some(r, 2, 7), _some(r, 1, 6)),
    "depthwise Conv": lambda r: _conv(r, _some(r, 5, 40), 1, 1),
    "depthwise Conv with a multiplier": lambda r: _conv(
        r, _some(r, 5, 9), 1, _some(r, 2, 3)
    ),
    "Gemm": lambda r: _product(r, "Gemm"),
    "transposed Gemm": lambda r: _product(r, "Gemm", transposed=True),
    "MatMul": lambda r: _product(r, "MatMul"),
    "MatMul of a batch": lambda r: _product(r, "MatMul", batch=(2,)),
}


def drawn(kind: str, seed: int) -> tuple[Layer, Random]:
    """A layer of that kind, and what to draw its numbers from."""
    random = np.random.default_rng(seed)
    return KINDS[kind](random), random


def model_of(text: str, arrays: dict[str, Array]) -> onnx.ModelProto:
    """The model of a text, which reads `arrays` as initializers."""
    proto = onnx.parser.parse_model(HEADER + text)
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(array), name)
        for name, array in arrays.items()
        if name in used
    )
    return proto


WEIGHTS: dict[str, Callable[[Random, tuple[int, ...]], Array]] = {
    "normal": lambda r, shape: r.normal(size=shape),
    "a few far from the others": lambda r, shape: r.standard_t(3, shape),
    "all large and of one sign": lambda r, shape: r.uniform(0.9, 1.0, shape),
    "an outlier": lambda r, shape: np.where(
        r.random(shape) < 1 / 9, 1e6, r.normal(size=shape)
    ),
    "mostly zero": lambda r, shape: np.where(
        r.random(shape) < 0.7, 0, r.normal(size=shape)
    ),
}


def float_model(
    layer: Layer, random: Random, weights: str = "normal"
) -> onnx.ModelProto:
    """X -> the layer with its bias -> Neg -> y: Neg is exact and stays float, so y shows it all."""
    bias = "" if layer.op == "MatMul" else ", b"
    arrays = {
        "w": WEIGHTS[weights](random, layer.weight).astype(np.float32),
        "b": random.normal(size=layer.channels).astype(np.float32),
    }
    head = f"layer (float{layer.dims} x) => (float{layer.dims_of_rank} y)"
    return model_of(f"{head} {{ h = {layer.call}(x, w{bias})  y = Neg (h) }}", arrays)


def integer_arrays(layer: Layer, random: Random) -> dict[str, Array]:
    """Content of the integer forms of a layer: many pairs of its weight saturate."""
    w_scale = random.uniform(1e-3, 2e-2, layer.channels).astype(np.float32)
    x_scale = np.float32(random.uniform(0.01, 0.03))
    return {
        "x_scale": np.asarray(x_scale),
        "x_zero": np.asarray(random.integers(0, 256), np.uint8),
        "w": random.choice(EXTREMES, layer.weight),
        "w_scale": w_scale,
        "w_zero": np.zeros(layer.channels, np.int8),
        "b": random.integers(-20_000, 20_000, layer.channels).astype(np.int32),
        "b_scale": x_scale * w_scale,
        "zero": np.zeros((), np.float32),
        "six": np.full((), 6, np.float32),
    }


def extreme_codes(layer: Layer, random: Random) -> Array:
    """Codes mostly from the ends of their range, of which pairs saturate."""
    return random.choice(np.array([0, 1, 77, 128, 200, 254, 255], np.uint8), layer.x)


def qdq_model(
    layer: Layer, arrays: dict[str, Array], activation: str = "", codes: bool = True
) -> onnx.ModelProto:
    """X -> Q -> DQ -> the layer and its bias (-> Relu or Clip) (-> Q -> DQ where `codes`) -> y."""
    bias = "" if layer.op == "MatMul" else ", c"
    limits = ", zero, six" if activation == "Clip" else ""
    cut = f"a = {activation or 'Identity'} (h{limits})"
    coded = "e = QuantizeLinear (a, y_scale, y_zero)  y = DequantizeLinear (e, y_scale, y_zero)"
    end = coded if codes else "y = Identity (a)"
    return model_of(
        f"""
    layer (float{layer.dims} x) => (float{layer.dims_of_rank} y)
    {{ q = QuantizeLinear (x, x_scale, x_zero)  d = DequantizeLinear (q, x_scale, x_zero)
       v = DequantizeLinear <axis = {layer.channel_axis}> (w, w_scale, w_zero)
       c = DequantizeLinear <axis = 0> (b, b_scale)
       h = {layer.call}(d, v{bias})  {cut}  {end} }}""",
        arrays,
    )


def output_grid(values: Array, random: Random) -> dict[str, Array]:
    """A scale and a zero point that hold nearly all of the values; of those >= 0 it is 0."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    scale = max(high - low, 1e-3) / 255 * random.uniform(0.9, 1.0)
    return {
        "y_scale": np.asarray(scale, np.float32),
        "y_zero": np.asarray(min(round(-low / scale), 255), np.uint8),
    }
