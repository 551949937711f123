"""Nodes that stand in for others in onnx's inference, which then finds more than it would.

They have the same output names, types and shapes, and mean nothing else: operators of ONNX Runtime,
of which onnx knows nothing, and a Range that counts the slots of an axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx
import onnx_ir as ir

from .ops import MICROSOFT
from .tabular import ML, stand_in

Nodes = list[onnx.NodeProto]
StandIns = Callable[[ir.Node, onnx.NodeProto, int], Nodes | None]
"""(node, its form in protobuf, opset) -> nodes in its place; None where it stays."""

FOLLOWED = 13
"""Opset from which onnx follows the elements of a shape through Unsqueeze."""


def stand_ins(node: ir.Node, proto: onnx.NodeProto, opset: int) -> Nodes:
    """Nodes in whose place onnx infers the outputs of a node; mostly the node itself."""
    if node.domain == ML:
        return [stand_in(proto)]
    entry = TABLE.get((node.domain, node.op_type))
    return (
        entry(
            node,
            proto,
            opset,
        )
        if entry is not None
        else None
    ) or [proto]


def is_inferred(node: ir.Node) -> bool:
    """True for a node beyond ONNX's own domain of which shapes are inferred all the same."""
    return node.domain == ML or (node.domain, node.op_type) in TABLE


def _made(
    proto: onnx.NodeProto, op_type: str, inputs: Sequence[str], output: int = 0
) -> onnx.NodeProto:
    """A standard node that makes one output of another."""
    return onnx.helper.make_node(
        op_type,
        inputs,
        [proto.output[output]],
    )


def _as_first(node: ir.Node, proto: onnx.NodeProto, opset: int) -> Nodes:
    """One output like the first input."""
    return [
        _made(
            proto,
            "Identity",
            proto.input[:1],
        )
    ]


def _skip_norm(node: ir.Node, proto: onnx.NodeProto, opset: int) -> Nodes:
    """The normalised sum, and the sum as the fourth output."""
    made = _as_first(
        node,
        proto,
        opset,
    )
    if len(proto.output) > 3 and proto.output[3]:
        made.append(
            _made(
                proto,
                "Identity",
                proto.input[:1],
                3,
            )
        )
    return made


def _constant(name: str, numbers: list[int]) -> onnx.NodeProto:
    tensor = onnx.helper.make_tensor(
        name,
        onnx.TensorProto.INT64,
        [len(numbers)],
        numbers,
    )
    return onnx.helper.make_node(
        "Constant",
        [],
        [name],
        value=tensor,
    )


def _of_width(proto: onnx.NodeProto, source: str, width: int) -> Nodes:
    """An output like a tensor, but for its last axis."""
    stem = f"{proto.output[0]}.inferred"
    numbers = {"start": 0, "end": 1, "axis": -1, "width": width}
    constants = [_constant(f"{stem}.{name}", [n]) for name, n in numbers.items()]
    start, end, axis, wide = (each.output[0] for each in constants)
    column = onnx.helper.make_node(
        "Slice",
        [source, start, end, axis],
        [f"{stem}.column"],
    )
    return [
        *constants,
        column,
        _made(
            proto,
            "Expand",
            [column.output[0], wide],
        ),
    ]


def _blocked_product(node: ir.Node, proto: onnx.NodeProto, opset: int) -> Nodes:
    """(..., K) -> (..., N)."""
    width = node.attributes.get_int("N", 0)
    return _of_width(
        proto,
        proto.input[0],
        width,
    )


def _packed_attention(node: ir.Node, proto: onnx.NodeProto, opset: int) -> Nodes | None:
    """Input (N, L, C), weight (C, q + k + v) -> (N, L, v)."""
    weight = node.inputs[1]
    if weight is None or weight.const_value is None:
        return None
    columns = weight.const_value.shape.numpy()[-1]
    third = int(columns) // 3
    sizes = node.attributes.get_ints("qkv_hidden_sizes", [third] * 3)
    return _of_width(
        proto,
        proto.input[0],
        sizes[2],
    )


def _heads_attention(node: ir.Node, proto: onnx.NodeProto, opset: int) -> Nodes | None:
    """Queries (N, L, h*d), values (N, T, h*v) or (N, h, T, v) -> (N, L, h*v).

    Nothing is known with packed inputs, or of values whose rank is unknown.
    """
    if len(proto.input) < 3 or not proto.input[1] or not proto.input[2]:
        return None
    values = node.inputs[2]
    shape = values.shape if values is not None else None
    if shape is None or len(shape) not in (3, 4):
        return None
    if len(shape) == 4:
        heads, size = shape[1], shape[3]
        if not isinstance(heads, int) or not isinstance(size, int):
            return None
        return _of_width(
            proto,
            proto.input[0],
            heads * size,
        )
    # a column of the queries by a row of the values: lengths of one, widths of the other
    stem = f"{proto.output[0]}.inferred"
    numbers = {"start": 0, "end": 1, "last": 2, "middle": 1}
    constants = [_constant(f"{stem}.{name}", [n]) for name, n in numbers.items()]
    start, end, last, middle = (each.output[0] for each in constants)
    column = onnx.helper.make_node(
        "Slice",
        [proto.input[0], start, end, last],
        [f"{stem}.column"],
    )
    row = onnx.helper.make_node(
        "Slice",
        [proto.input[2], start, end, middle],
        [f"{stem}.row"],
    )
    product = _made(
        proto,
        "MatMul",
        [column.output[0], row.output[0]],
    )
    return [*constants, column, row, product]


def _grouped_attention(
    node: ir.Node, proto: onnx.NodeProto, opset: int
) -> Nodes | None:
    """Queries (N, L, g*k*d) as they are, or with keys and values on one axis.

    Caches may be buffers that are longer than what they hold: nothing is inferred of them.
    """
    if len(proto.input) > 1 and proto.input[1]:
        return _as_first(
            node,
            proto,
            opset,
        )
    past = node.inputs[3] if len(node.inputs) > 3 else None
    packed = node.inputs[0]
    queries = node.attributes.get_int("num_heads", 1)
    heads = queries + 2 * node.attributes.get_int("kv_num_heads", 1)
    for value, count in ((packed, heads), (past, 1)):
        size = value.shape[-1] if value is not None and value.shape else None
        if isinstance(size, int):
            return _of_width(
                proto,
                proto.input[0],
                size // count * queries,
            )
    return None


def _range(node: ir.Node, proto: onnx.NodeProto, opset: int) -> Nodes | None:
    """Range(0, n, 1) has n elements, which may be a symbol."""
    if opset < FOLLOWED:
        return None
    start, _, step = node.inputs
    numbers = []
    for value in (start, step):
        tensor = value.const_value if value is not None else None
        numbers.append(None if tensor is None else tensor.numpy().reshape(-1).tolist())
    if numbers != [[0], [1]] or start is None or start.dtype is None:
        return None
    name = f"{proto.output[0]}.inferred"
    count = f"{name}.count"
    axis = _constant(f"{name}.axis", [0])
    inputs = [proto.input[1], axis.output[0]]
    length = onnx.helper.make_node("Unsqueeze", inputs, [count])
    filling = onnx.helper.make_tensor(
        name,
        int(start.dtype),
        [1],
        [0],
    )
    filled = onnx.helper.make_node(
        "ConstantOfShape",
        [count],
        proto.output,
        value=filling,
    )
    return [axis, length, filled]


TABLE: dict[tuple[str, str], StandIns] = {
    ("", "Range"): _range,
    # which ONNX Runtime keeps among the operators of ONNX
    ("", "SimplifiedLayerNormalization"): _as_first,
    **dict.fromkeys(
        (
            (MICROSOFT, op)
            for op in (
                "BiasAdd",
                "BiasGelu",
                "FastGelu",
                "Gelu",
                "QuickGelu",
                "RotaryEmbedding",
            )
        ),
        _as_first,
    ),
    (MICROSOFT, "SkipLayerNormalization"): _skip_norm,
    (MICROSOFT, "SkipSimplifiedLayerNormalization"): _skip_norm,
    (MICROSOFT, "MatMulNBits"): _blocked_product,
    (MICROSOFT, "Attention"): _packed_attention,
    (MICROSOFT, "MultiHeadAttention"): _heads_attention,
    (MICROSOFT, "GroupQueryAttention"): _grouped_attention,
}
