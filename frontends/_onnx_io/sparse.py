"""Sparse initializers and constants become dense: onnx_ir does not hold them, and drops the former
without a word.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from ... import RefusedError
from .read import EXPORT_AGAIN
from .tensors import shown

DENSE_LIMIT = 1 << 30
"""Bytes that one sparse tensor may take when dense: a few bytes of a file can claim any number."""

T = onnx.TensorProto


def densify(proto: onnx.ModelProto, where: str) -> None:
    """Replace sparse initializers and `sparse_value` constants by dense tensors, in place,
    subgraphs included.

    Errors: RefusedError for indices out of range or repeated, for more than 1 GiB, and for sparse
    attributes of ops other than Constant.
    """
    for body in _bodies(proto):
        if isinstance(body, onnx.GraphProto) and body.sparse_initializer:
            names = {sparse.values.name for sparse in body.sparse_initializer}
            body.initializer.extend(
                _dense(sparse, where) for sparse in body.sparse_initializer
            )
            del body.sparse_initializer[:]
            kept = [v for v in body.value_info if v.name not in names]
            del body.value_info[:]
            body.value_info.extend(kept)
        for node in body.node:
            for attribute in node.attribute:
                if (
                    attribute.type == onnx.AttributeProto.SPARSE_TENSOR
                    and node.op_type == "Constant"
                ):
                    tensor = _dense(attribute.sparse_tensor, where)
                    attribute.Clear()
                    attribute.CopyFrom(
                        onnx.AttributeProto(
                            name="value", type=onnx.AttributeProto.TENSOR, t=tensor
                        )
                    )


def _bodies(proto: onnx.ModelProto) -> Iterator[Any]:
    """The graph, every function and every subgraph."""
    waiting: list[Any] = [proto.graph, *proto.functions]
    while waiting:
        body = waiting.pop()
        yield body
        for node in body.node:
            for attribute in node.attribute:
                waiting += [attribute.g] if attribute.HasField("g") else []
                waiting += attribute.graphs


def _dense(sparse: onnx.SparseTensorProto, where: str) -> onnx.TensorProto:
    """One sparse tensor, dense; its indices are linear (NNZ,) or coordinates (NNZ, rank)."""
    values, dims = sparse.values, list(sparse.dims)
    name = f"sparse tensor {shown(values.name)}"
    if (
        T.EXTERNAL in (values.data_location, sparse.indices.data_location)
        or values.data_type == T.STRING
    ):
        raise RefusedError(
            where, f"{name} is external or text", "store it as a dense initializer"
        )
    size = math.prod(dims)
    nbytes = size * ir.DataType(values.data_type).bitwidth // 8
    if any(d < 0 for d in dims) or nbytes > DENSE_LIMIT:
        raise RefusedError(
            where,
            f"{name} would take {nbytes:,} bytes dense (dims {dims})",
            "store it densely",
        )
    linear = _linear_indices(sparse, dims)
    if linear is None or len(values.dims) != 1 or linear.size != values.dims[0]:
        raise RefusedError(
            where,
            f"{name} has indices that do not fit its dims {dims} and values",
            EXPORT_AGAIN,
        )
    if linear.size and (
        linear.min() < 0
        or linear.max() >= size
        or np.unique(linear).size != linear.size
    ):
        raise RefusedError(
            where, f"{name} has indices out of range or repeated", EXPORT_AGAIN
        )
    array = ir.serde.TensorProtoTensor(values).numpy()
    dense = np.zeros(size, array.dtype)
    dense[linear] = array
    tensor = ir.Tensor(dense.reshape(dims), dtype=ir.DataType(values.data_type))
    return onnx.TensorProto(
        name=values.name,
        dims=dims,
        data_type=values.data_type,
        raw_data=tensor.tobytes(),
    )


def _linear_indices(
    sparse: onnx.SparseTensorProto, dims: list[int]
) -> NDArray[np.int64] | None:
    """Indices into the flat tensor; None where their type or shape is not one that ONNX knows. Out
    of range: -1.
    """
    if sparse.indices.data_type != T.INT64:
        return None
    indices: NDArray[np.int64] = ir.serde.TensorProtoTensor(sparse.indices).numpy()
    if indices.ndim == 1:
        return indices
    if indices.ndim != 2 or indices.shape[1] != len(dims):
        return None
    bad = ((indices < 0) | (indices >= np.array(dims, np.int64))).any(axis=1)
    strides = np.array([math.prod(dims[i + 1 :]) for i in range(len(dims))], np.int64)
    linear: NDArray[np.int64] = np.where(bad, -1, indices @ strides)
    return linear
