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
    """Run a session as `session.run` does, with bfloat16 inputs and outputs too."""
    types = {value.type for value in session.get_inputs()}
    types.update(value.type for value in session.get_outputs())
    if _BFLOAT16 not in types:
        outputs: list[Any] = session.run(names, feeds)
        return outputs
    # session.run takes and gives numpy arrays alone, and fails on bfloat16 either way
    names = names or [output.name for output in session.get_outputs()]
    ort_feeds = {name: _to_ort(np.asarray(array)) for name, array in feeds.items()}
    values = session.run_with_ort_values(names, ort_feeds)
    return [_from_ort(value) for value in values]


def _to_ort(array: NDArray[Any]) -> Any:
    import onnxruntime as ort
    from onnx import TensorProto

    if array.dtype.name != "bfloat16":
        return ort.OrtValue.ortvalue_from_numpy(array)
    bits = np.ascontiguousarray(array).view(np.uint16)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, TensorProto.BFLOAT16)


def _from_ort(value: Any) -> NDArray[Any]:
    if value.data_type() != _BFLOAT16:
        plain: NDArray[Any] = value.numpy()
        return plain
    import ml_dtypes

    # `numpy()` refuses bfloat16: its two bytes an element are read where they lie
    shape = tuple(value.shape())
    size = 2 * int(np.prod(shape))
    data = ctypes.string_at(value.data_ptr(), size)
    bits = np.frombuffer(data, np.uint16)
    array: NDArray[Any] = bits.view(ml_dtypes.bfloat16).reshape(shape)
    return array


def flattened(names: Sequence[str], outputs: Sequence[Any]) -> dict[str, NDArray[Any]]:
    """Flatten outputs into arrays by name.

    An item of a sequence is `name[0]`, …; a map is the array of its values by sorted key. An
    optional output without a value is left out.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name, value in zip(names, outputs, strict=True):
        arrays.update(_flat(name, value))
    return arrays


def _flat(name: str, value: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    if isinstance(value, dict):
        yield name, np.asarray([value[key] for key in sorted(value)])
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _flat(f"{name}[{index}]", item)
    elif value is not None:
        yield name, np.asarray(value)
