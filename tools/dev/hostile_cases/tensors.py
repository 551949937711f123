"""Tensors whose data does not fit what they declare."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx
from onnx import TensorProto, helper

from .case import CHECKED, EITHER, REFUSED, Case, model_case, small, spoiled

HUGE = (2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -1, -2, -(2**63))
"""Sizes of one dim that no tensor here has."""

FIELDS = (
    "float_data",
    "int32_data",
    "int64_data",
    "double_data",
    "uint64_data",
)

FOUR_BITS = ("INT4", "UINT4", "FLOAT4E2M1")
"""Types of which five take three bytes."""

PLACES = ("initializer", "constant", "subgraph", "function", "sparse")


def cases() -> Iterator[Case]:
    """Tensors in initializers, attributes, subgraphs, functions and sparse values."""
    for name, kind in sorted(TensorProto.DataType.items()):
        if name not in ("UNDEFINED", "STRING"):
            yield from _of_type(name, kind)
    for place in PLACES:
        yield from _in_place(place)
    for size in HUGE:
        yield from _of_size(size)
    yield from _sparse()


def _of_type(name: str, kind: int) -> Iterator[Case]:
    """Every type with bytes that are too few, too many, or held twice."""
    for length in (0, 1, 3, 1000):
        tensor = TensorProto(name="t", data_type=kind, dims=[5], raw_data=bytes(length))
        codes = EITHER if length == 3 and name in FOUR_BITS else REFUSED
        yield _case(f"{name} of 5 in {length} raw bytes", tensor, codes)
    for field in FIELDS:
        tensor = TensorProto(name="t", data_type=kind, dims=[2], raw_data=bytes(8))
        getattr(tensor, field).extend([1, 2])
        yield _case(f"{name} in raw_data and {field}", tensor)


def _case(what: str, tensor: TensorProto, codes: frozenset[int] = REFUSED) -> Case:
    model = small()
    model.graph.initializer.append(tensor)
    return model_case(f"tensors: {what}", model, codes)


def _in_place(place: str) -> Iterator[Case]:
    changes: dict[str, Callable[[TensorProto], object]] = {
        "short": lambda t: setattr(t, "raw_data", bytes(3)),
        "long": lambda t: setattr(t, "raw_data", bytes(300)),
        "held twice": lambda t: t.float_data.extend([1, 2]),
        "of an unknown type": lambda t: setattr(t, "data_type", 99),
        "of no type": lambda t: setattr(t, "data_type", 0),
        "of negative dims": lambda t: t.dims.extend([-1, -2]),
        "of dims of 2^62": lambda t: t.dims.extend([2**62, 4]),
        "in segments": lambda t: setattr(t.segment, "end", 1),
        "text in bytes": lambda t: setattr(t, "data_type", TensorProto.STRING),
    }
    for what, change in changes.items():
        tensor = TensorProto(
            name="t", data_type=TensorProto.FLOAT, dims=[2], raw_data=bytes(8)
        )
        change(tensor)
        yield model_case(f"tensors: {place} {what}", _holding(place, tensor))


def _holding(place: str, tensor: TensorProto) -> onnx.ModelProto:
    """A model that holds a tensor in one of the places that may hold one."""
    model = small()
    constant = helper.make_node("Constant", [], ["k"])
    constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(
        tensor
    )
    output = helper.make_tensor_value_info("k", TensorProto.FLOAT, None)
    if place == "initializer":
        model.graph.initializer.append(tensor)
    elif place == "constant":
        model.graph.node.append(constant)
    elif place == "subgraph":
        body = helper.make_graph([constant], "b", [], [output])
        choice = helper.make_tensor("c", TensorProto.BOOL, [], [1])
        model.graph.initializer.append(choice)
        branch = helper.make_node(
            "If", ["c"], ["z"], then_branch=body, else_branch=body
        )
        model.graph.node.append(branch)
    elif place == "function":
        opsets = [helper.make_opsetid("", 21)]
        function = helper.make_function("f", "hold", [], ["k"], [constant], opsets)
        model.functions.append(function)
        model.opset_import.add(domain="f", version=1)
        model.graph.node.append(helper.make_node("hold", [], ["z"], domain="f"))
    else:
        indices = helper.make_tensor("i", TensorProto.INT64, [2], [0, 1])
        model.graph.sparse_initializer.add(values=tensor, indices=indices, dims=[4])
    return model


def _of_size(size: int) -> Iterator[Case]:
    """Dims that no memory holds, in tensors and in declared shapes."""
    for dims in ([size], [size, size], [2, size], [0, size], [size, 0]):
        tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=dims)
        # no elements, whatever the other dim
        empty = 0 in dims and min(dims) == 0
        codes = EITHER if empty else frozenset({3})
        model = small()
        model.graph.initializer.append(tensor)
        yield model_case(f"tensors: dims {dims}", model, codes)

    def declared(model: onnx.ModelProto) -> None:
        for info in (model.graph.input[0], model.graph.output[0]):
            info.type.tensor_type.shape.dim[0].dim_value = size

    # a declared dim may be any number, and feeds of that size must not be tried
    yield model_case(
        f"tensors: input of {size} rows", spoiled(declared), EITHER, CHECKED
    )


def _sparse() -> Iterator[Case]:
    dims_of = {
        "out of range": ([1, 6], [2, 3]),
        "negative": ([-1, 5], [2, 3]),
        "repeated": ([1, 1], [2, 3]),
        "too few": ([1], [2, 3]),
        "of 2^62": ([1, 2**62], [2**62, 4]),
        "in negative dims": ([0, 1], [-2, -3]),
        "in dims of 2^62": ([0, 1], [2**62]),
        "in a tensor of 2^40": ([0, 1], [2**40]),
        "in an overflowing product": ([0, 1], [2**32, 2**32]),
        "in no dims": ([0, 1], []),
    }
    for what, (indices, dims) in dims_of.items():
        model = small()
        model.graph.sparse_initializer.add(
            values=helper.make_tensor("s", TensorProto.FLOAT, [2], [1, 2]),
            indices=helper.make_tensor("i", TensorProto.INT64, [len(indices)], indices),
            dims=dims,
        )
        yield model_case(f"tensors: sparse indices {what}", model)
    for kind in (TensorProto.INT32, TensorProto.FLOAT):
        model = small()
        model.graph.sparse_initializer.add(
            values=helper.make_tensor("s", TensorProto.FLOAT, [2], [1, 2]),
            indices=helper.make_tensor("i", kind, [2], [0, 1]),
            dims=[4],
        )
        yield model_case(f"tensors: sparse indices of type {kind}", model)
