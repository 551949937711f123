"""Sparse initializers and constants made dense.

onnx_ir does not hold them, and drops sparse initializers without a word.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from ... import RefusedError
from ...passes._core.limits import limit
from .protos import bodies
from .read import EXPORT_AGAIN
from .tensors import shown

T = onnx.TensorProto


def densify(proto: onnx.ModelProto, where: str) -> int:
    """Replace sparse initializers and `sparse_value` constants by dense tensors; their number.

    Errors: RefusedError for indices out of range or repeated, for more bytes than allowed, and for
    sparse attributes of ops other than Constant.
    """
    count = 0
    for body in bodies(proto):
        if isinstance(body, onnx.GraphProto) and body.sparse_initializer:
            count += len(body.sparse_initializer)
            _densify_initializers(body, where)
        for node in body.node:
            if node.op_type == "Constant":
                count += _densify_constant(node, where)
    return count


def _densify_initializers(graph: onnx.GraphProto, where: str) -> None:
    names = {sparse.values.name for sparse in graph.sparse_initializer}
    dense = [_dense(sparse, where) for sparse in graph.sparse_initializer]
    graph.initializer.extend(dense)
    del graph.sparse_initializer[:]
    # these may declare a sparse type
    kept = [info for info in graph.value_info if info.name not in names]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def _densify_constant(node: onnx.NodeProto, where: str) -> int:
    count = 0
    for attribute in node.attribute:
        if attribute.type != onnx.AttributeProto.SPARSE_TENSOR:
            continue
        tensor = _dense(attribute.sparse_tensor, where)
        # the name changes with the type: `sparse_value` becomes `value`
        attribute.Clear()
        attribute.name = "value"
        attribute.type = onnx.AttributeProto.TENSOR
        attribute.t.CopyFrom(tensor)
        count += 1
    return count


def _dense(sparse: onnx.SparseTensorProto, where: str) -> onnx.TensorProto:
    """One sparse tensor, dense; its indices are linear (NNZ,) or coordinates (NNZ, rank)."""
    values = sparse.values
    dims = list(sparse.dims)
    name = f"sparse tensor {shown(values.name)}"
    locations = (values.data_location, sparse.indices.data_location)
    if T.EXTERNAL in locations or values.data_type == T.STRING:
        raise RefusedError(
            where, f"{name} is external or text", "store it as a dense initializer"
        )
    size = math.prod(dims)
    dtype = ir.DataType(values.data_type)
    nbytes = size * dtype.bitwidth // 8
    # asked before anything is allocated: a few bytes of a file can claim any number
    if any(d < 0 for d in dims) or nbytes > limit("SPARSE_BYTES"):
        raise RefusedError(
            where,
            f"{name} would take {nbytes:,} bytes dense (dims {dims})",
            "store it densely",
        )
    linear = _linear_indices(sparse, dims)
    if linear is None or list(values.dims) != [linear.size]:
        raise RefusedError(
            where,
            f"{name} has indices that do not fit its dims {dims} and values",
            EXPORT_AGAIN,
        )
    if not _valid_and_distinct(linear, size):
        raise RefusedError(
            where, f"{name} has indices out of range or repeated", EXPORT_AGAIN
        )
    array = ir.serde.TensorProtoTensor(values).numpy()
    dense = np.zeros(size, array.dtype)
    dense[linear] = array
    tensor = ir.Tensor(dense.reshape(dims), dtype=dtype)
    return onnx.TensorProto(
        name=values.name,
        dims=dims,
        data_type=values.data_type,
        raw_data=tensor.tobytes(),
    )


def _valid_and_distinct(linear: NDArray[np.int64], size: int) -> bool:
    if linear.size == 0:
        return True
    if linear.min() < 0 or linear.max() >= size:
        return False
    distinct = np.unique(linear)
    return distinct.size == linear.size


def _linear_indices(
    sparse: onnx.SparseTensorProto, dims: list[int]
) -> NDArray[np.int64] | None:
    """Indices into the flat tensor, -1 for coordinates out of range.

    None where their type or shape is not one that ONNX knows.
    """
    if sparse.indices.data_type != T.INT64:
        return None
    indices: NDArray[np.int64] = ir.serde.TensorProtoTensor(sparse.indices).numpy()
    if indices.ndim == 1:
        return indices
    if indices.ndim != 2 or indices.shape[1] != len(dims):
        return None
    # a coordinate out of range could still give a linear index within it
    sizes = np.array(dims, np.int64)
    out_of_range = (indices < 0) | (indices >= sizes)
    bad = out_of_range.any(axis=1)
    strides = []
    for axis in range(len(dims)):
        inner = dims[axis + 1 :]
        strides.append(math.prod(inner))
    positions = indices @ np.array(strides, np.int64)
    linear: NDArray[np.int64] = np.where(bad, -1, positions)
    return linear
