"""The classes of onnxruntime.quantization that its callers name: types, formats, readers."""

from __future__ import annotations

from typing import Any


def quantization_class(name: str) -> Any:
    """The class of that name, such as `QuantType`."""
    # here, not above: it loads ONNX Runtime into this process
    import onnxruntime.quantization

    return getattr(onnxruntime.quantization, name)
