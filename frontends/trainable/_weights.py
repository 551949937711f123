"""Which constants of a graph are weights: float tensors that an op learns by, not its settings."""

from __future__ import annotations

import keyword
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ._dtypes import RANGES, WEIGHT_TYPES

if TYPE_CHECKING:
    from ._latents import Latent

LEARNED: dict[str, tuple[int, ...] | None] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "RMSNormalization": (1,),
    "PRelu": (1,),
    "LSTM": (1, 2, 3, 7),
    "GRU": (1, 2, 3),
    "RNN": (1, 2, 3),
    "DeformConv": (1, 3),
    "Gather": (0,),
    "Einsum": None,
}
"""Inputs that are weights whatever their size; None: all."""

SETTINGS: dict[str, tuple[int, ...] | None] = {
    "BatchNormalization": (3, 4),
    "Clip": (1, 2),
    "Pad": (1, 2, 3),
    "Resize": (1, 2, 3),
    "Upsample": (1,),
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "Pow": (1,),
    "Dropout": (1, 2),
    "OneHot": None,
    "Range": None,
    "Mod": None,
    "Equal": None,
    "Less": None,
    "Greater": None,
    "LessOrEqual": None,
    "GreaterOrEqual": None,
    "NonMaxSuppression": None,
    "RoiAlign": (1, 2),
    "MaxRoiPool": (1,),
    "GridSample": (1,),
    "Shape": None,
    "Size": None,
    "Loop": None,
    "Scan": None,
    "If": None,
    "Where": (0,),
    "RotaryEmbedding": (1, 2),
    "STFT": (2,),
    "ConstantOfShape": None,
    "LSTM": (4, 5, 6),
    "GRU": (4, 5),
    "RNN": (4, 5),
    "QLinearConv": None,
    "QLinearMatMul": None,
    "QLinearAdd": None,
}
"""Inputs that set how an op works and are never trained; None: all."""

PASSING = (
    "Identity",
    "Transpose",
    "Reshape",
    "Cast",
    "Unsqueeze",
    "Squeeze",
    "Flatten",
    "Slice",
    "Concat",
    "Expand",
)
"""Ops whose result is still the same weight: who uses it decides."""


@dataclass(frozen=True, eq=False)
class Origin:
    """Where a trained tensor came from: a value that is an initializer, or the output of a Constant
    node.

    `latent`: set for stored codes; the parameter is then in units of their grid. `shared`: it is a
    weight here and a setting there (exporters store equal tensors once: a scale of ones, a variance
    of ones); there it is not trained. `reach`: how far a step of one moves what is computed with
    it, the largest code for a scale, else 1.
    """

    graph: str
    value: ir.Value
    dtype: ir.DataType
    latent: Latent | None = None
    shared: bool = False
    reach: float = 1.0

    @property
    def name(self) -> str:
        return self.value.name or ""


def trainable_values(
    model: ir.Model, train: bool | Collection[str], scales: bool
) -> dict[ir.Value, Origin]:
    """Float constants to train, in graph order: `True` all weights, `False` none, names exactly
    those (scalars too).

    `scales`: with the weights those of quantization.
    """
    found: dict[ir.Value, Origin] = {}
    for graph, value, tensor in constants_of(model):
        if tensor.dtype not in WEIGHT_TYPES or tensor.size == 0:
            continue
        weight = is_weight(value, tensor)
        reach = _largest_code(value)
        chosen = (
            weight or (scales and reach > 1)
            if isinstance(train, bool)
            else value.name in train
        )
        if chosen and train is not False:
            shared = weight and bool(setting_uses(value))
            found[value] = Origin(
                graph, value, tensor.dtype, shared=shared, reach=max(reach, 1.0)
            )
    return found


def constants_of(model: ir.Model) -> Iterator[tuple[str, ir.Value, ir.TensorProtocol]]:
    """(graph name, value, tensor) of every constant that callers cannot override: initializers and
    Constant nodes.
    """
    stack: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    while stack:
        graph = stack.pop(0)
        for value in graph.initializers.values() if isinstance(graph, ir.Graph) else ():
            if value.const_value is not None and not (
                value.is_graph_input() and _overridable(model)
            ):
                yield graph.name or "", value, value.const_value
        for node in graph:
            if node.op_type == "Constant" and (tensor := tensor_of(node)) is not None:
                yield graph.name or "", node.outputs[0], tensor
            stack.extend(held_graphs(node))


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node, those of bodies, branches and functions included."""
    stack: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    while stack:
        for node in stack.pop(0):
            yield node
            stack.extend(held_graphs(node))


def _overridable(model: ir.Model) -> bool:
    """Before IR 4 every initializer was listed as an input, and no runtime let callers override
    it.
    """
    return model.ir_version is None or model.ir_version >= 4


def held_graphs(node: ir.Node) -> list[ir.Graph]:
    """Bodies and branches of a node."""
    held: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
            held.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS and not attribute.is_ref():
            held.extend(attribute.as_graphs())
    return held


def tensor_of(node: ir.Node) -> ir.TensorProtocol | None:
    """The dense numeric tensor of a Constant node; None for the rest."""
    attribute = node.attributes.get("value")
    if (
        attribute is not None
        and not attribute.is_ref()
        and attribute.type == ir.AttributeType.TENSOR
    ):
        return attribute.as_tensor()
    floats = node.attributes.get("value_floats")
    if floats is not None and not floats.is_ref():
        return ir.Tensor(np.array(floats.as_floats(), np.float32))
    return None


def stored_tensor(value: ir.Value) -> ir.TensorProtocol:
    """The tensor of an initializer or of a Constant node's output."""
    producer = value.producer()
    tensor = value.const_value if producer is None else tensor_of(producer)
    assert tensor is not None, f"{value.name} is not constant"
    return tensor


def is_weight(value: ir.Value, tensor: ir.TensorProtocol) -> bool:
    """Whether some op learns by `value`: a weight or bias position at any size, elsewhere two
    elements or more.

    Infinite entries make it a mask.
    """
    learned, plain, settings = 0, 0, 0
    waiting, seen = [value], {value}
    while waiting:
        for node, index in waiting.pop().uses():
            if node.domain not in ("", "ai.onnx"):
                plain += 1
            elif _within(LEARNED, node, index):
                learned += 1
            elif node.op_type in PASSING and index == 0:
                waiting.extend(o for o in node.outputs if o not in seen)
                seen.update(node.outputs)
            elif _within(SETTINGS, node, index):
                settings += 1
            else:
                plain += 1
    if not learned and (not plain or tensor.size < 2):
        return False
    return bool(np.isfinite(tensor.numpy().astype(np.float32)).all())


def _largest_code(value: ir.Value) -> float:
    """Of what a value scales; 0 if it is no scale. Those of 32-bit biases are none: they follow
    from others.
    """
    largest = 0.0
    for node, index in value.uses():
        if index == 1 and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            codes = (
                node.inputs[0]
                if node.op_type == "DequantizeLinear"
                else node.outputs[0]
            )
            known = None if codes is None else codes.dtype
            zero = node.inputs[2] if len(node.inputs) > 2 else None
            dtype = (
                known or (zero.dtype if zero is not None else None) or ir.DataType.UINT8
            )
            if dtype != ir.DataType.INT32 and dtype in RANGES:
                largest = max(largest, float(RANGES[dtype][1]))
    return largest


def setting_uses(value: ir.Value) -> list[tuple[ir.Node, int]]:
    """Who reads a value as a setting, through Identities too."""
    found: list[tuple[ir.Node, int]] = []
    waiting = [value]
    while waiting:
        for node, index in waiting.pop().uses():
            if node.op_type == "Identity":
                waiting.extend(node.outputs)
            elif is_setting(node, index):
                found.append((node, index))
    return found


def behind_identities(value: ir.Value | None) -> ir.Value | None:
    """What a value is, but for Identities."""
    while (
        value is not None
        and (node := value.producer()) is not None
        and node.op_type == "Identity"
    ):
        value = node.inputs[0]
    return value


def is_setting(node: ir.Node, index: int) -> bool:
    """Whether an op reads the input as a setting."""
    standard = node.domain in ("", "ai.onnx")
    return (
        standard
        and not _within(LEARNED, node, index)
        and _within(SETTINGS, node, index)
    )


def _within(
    table: dict[str, tuple[int, ...] | None], node: ir.Node, index: int
) -> bool:
    if node.op_type not in table:
        return False
    indexes = table[node.op_type]
    return indexes is None or index in indexes


def attribute_name(name: str, taken: Collection[str]) -> str:
    """`name` as an identifier that is not `taken`, nor reads like a keyword, a buffer of a constant
    or of a mask.
    """
    stem = re.sub(r"\W", "_", name) or "weight"
    stem = stem if stem[0].isalpha() else f"w{stem}"
    if keyword.iskeyword(stem) or re.fullmatch(r"constant_\d+|.*_kept", stem):
        stem = f"{stem}_"
    candidate, number = stem, 0
    while candidate in taken:
        number += 1
        candidate = f"{stem}_{number}"
    return candidate
