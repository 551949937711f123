"""Values between numpy and ONNX Runtime: bfloat16 (which numpy lacks), sequences and maps."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BFLOAT16 = "tensor(bfloat16)"


def run(
    session: Any, names: Sequence[str] | None, feeds: Mapping[str, Any]
) -> list[Any]:
    """`session.run`, for bfloat16 inputs and outputs too."""
    types = {value.type for value in (*session.get_inputs(), *session.get_outputs())}
    if _BFLOAT16 not in types:
        outputs: list[Any] = session.run(names, feeds)
        return outputs
    names = names or [o.name for o in session.get_outputs()]
    values = session.run_with_ort_values(
        names, {name: _to_ort(np.asarray(array)) for name, array in feeds.items()}
    )
    return [_from_ort(value) for value in values]


def _to_ort(array: NDArray[Any]) -> Any:
    import onnxruntime as ort
    from onnx import TensorProto

    if array.dtype.name == "bfloat16":
        bits = np.ascontiguousarray(array).view(np.uint16)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
            bits, TensorProto.BFLOAT16
        )
    return ort.OrtValue.ortvalue_from_numpy(array)


def _from_ort(value: Any) -> NDArray[Any]:
    if value.data_type() != _BFLOAT16:
        plain: NDArray[Any] = value.numpy()
        return plain
    import ml_dtypes

    shape = tuple(value.shape())
    data = ctypes.string_at(value.data_ptr(), 2 * int(np.prod(shape)))
    array: NDArray[Any] = (
        np.frombuffer(data, np.uint16).view(ml_dtypes.bfloat16).reshape(shape)
    )
    return array


def flattened(names: Sequence[str], outputs: Sequence[Any]) -> dict[str, NDArray[Any]]:
    """Outputs as arrays by name; an item of a sequence is `name[0]`, …; a map is its values by
    sorted key.
    """
    return dict(
        pair
        for name, value in zip(names, outputs, strict=True)
        for pair in _flat(name, value)
    )


def _flat(name: str, value: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    if isinstance(value, dict):
        yield name, np.asarray([value[key] for key in sorted(value)])
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _flat(f"{name}[{index}]", item)
    elif value is not None:
        yield name, np.asarray(value)
