"""Stored sizes of sparse weights elsewhere, by the formats that others document.

`sparsified`: what onnxruntime's tools/python/sparsify_initializers.py makes of a model (the script
is not in the wheel; written anew from what it says it does). `core_ml_bits`: what a weight takes in
Core ML's `constexpr_sparse_to_dense`, `constexpr_lut_to_dense` and `constexpr_lut_to_sparse`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

LEAST_SPARSITY = 0.5
"""Sparsity from which on the script makes an initializer sparse, by default."""

PALETTE_BITS = (1, 2, 3, 4, 6, 8)
"""Bits that an index of Core ML's tables may have."""


def sparsified(model: Any) -> Any:
    """The model with flat COO initializers wherever they take fewer bytes than dense ones.

    Indices have the narrowest of int8, int16, int32 and int64 that holds the last of them.
    """
    found = onnx.ModelProto()
    found.CopyFrom(model)
    dense, sparse = [], []
    for tensor in model.graph.initializer:
        made = _sparse(tensor)
        if made is None:
            dense.append(tensor)
        else:
            sparse.append(made)
    del found.graph.initializer[:]
    found.graph.initializer.extend(dense)
    found.graph.sparse_initializer.extend(sparse)
    return found


def _sparse(tensor: Any) -> Any:
    """A sparse initializer; None where the dense one stays."""
    if tensor.data_type == TensorProto.BOOL:
        return None
    array = numpy_helper.to_array(tensor).reshape(-1)
    places = np.flatnonzero(array)
    if not array.size or 1 - len(places) / array.size < LEAST_SPARSITY:
        return None
    last = int(places[-1]) if len(places) else 0
    kind = next(
        each
        for each in (np.int8, np.int16, np.int32, np.int64)
        if last <= np.iinfo(each).max
    )
    indices, values = places.astype(kind), array[places]
    if indices.nbytes + values.nbytes >= array.nbytes:
        return None
    return helper.make_sparse_tensor(
        numpy_helper.from_array(values, tensor.name),
        numpy_helper.from_array(indices, f"{tensor.name}_indicies"),
        tensor.dims,
    )


def core_ml_bits(weight: NDArray[Any]) -> int:
    """Bits of a weight in the smallest of Core ML's forms, names and graph left out.

    Dense; a mask of one bit an element and the nonzeros; a table and an index an element; a mask
    and an index for each nonzero.
    """
    width = int(weight.dtype.itemsize) * 8
    nonzero = weight[weight != 0]
    mask = weight.size
    forms: list[int] = [weight.size * width, mask + nonzero.size * width]
    for values, counted, extra in (
        (weight, weight.size, 0),
        (nonzero, nonzero.size, mask),
    ):
        distinct = len(np.unique(values))
        for bits in PALETTE_BITS:
            if distinct <= 2**bits:
                forms.append(extra + counted * bits + 2**bits * width)
                break
    return min(forms)
