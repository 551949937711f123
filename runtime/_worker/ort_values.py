"""Values between numpy and ONNX Runtime: bfloat16 (which numpy lacks), sequences and maps."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]

_BFLOAT16 = "tensor(bfloat16)"


def run(
    session: Any, names: Sequence[str] | None, feeds: Mapping[str, Any]
) -> list[Any]:
    """Run a session as `session.run` does, with bfloat16 inputs and outputs too."""
    if not _has_bfloat16(session):
        outputs: list[Any] = session.run(names, feeds)
        return outputs
    # session.run takes and gives numpy arrays alone, and fails on bfloat16 either way
    ort_feeds = {}
    for name, array in feeds.items():
        ort_feeds[name] = _to_ort(np.asarray(array))
    if not names:
        names = [output.name for output in session.get_outputs()]
    values = session.run_with_ort_values(names, ort_feeds)
    return [_from_ort(value) for value in values]


def _has_bfloat16(session: Any) -> bool:
    values = (*session.get_inputs(), *session.get_outputs())
    return any(value.type == _BFLOAT16 for value in values)


def _to_ort(array: NDArray[Any]) -> Any:
    import onnxruntime as ort
    from onnx import TensorProto

    if array.dtype.name != "bfloat16":
        return ort.OrtValue.ortvalue_from_numpy(array)
    array = np.ascontiguousarray(array)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
        array.view(np.uint16),
        TensorProto.BFLOAT16,
    )


def _from_ort(value: Any) -> NDArray[Any]:
    if value.data_type() != _BFLOAT16:
        plain: NDArray[Any] = value.numpy()
        return plain
    import ml_dtypes

    # `numpy()` refuses bfloat16: its two bytes an element are read where they lie
    shape = value.shape()
    size = 2 * math.prod(shape)
    data = ctypes.string_at(value.data_ptr(), size)
    bits = np.frombuffer(data, np.uint16)
    array: NDArray[Any] = bits.view(ml_dtypes.bfloat16)
    return array.reshape(shape)


def flattened(names: Sequence[str], outputs: Sequence[Any]) -> Arrays:
    """Flatten outputs into arrays by name.

    An item of a sequence is `name[0]`, …; a map is the array of its values by sorted key. An
    optional output without a value is left out.
    """
    arrays: Arrays = {}
    for name, value in zip(names, outputs, strict=True):
        arrays.update(_flat(name, value))
    return arrays


def _flat(name: str, value: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    if isinstance(value, dict):
        values = [value[key] for key in sorted(value)]
        yield name, np.asarray(values)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _flat(f"{name}[{index}]", item)
    elif value is not None:
        yield name, np.asarray(value)
