"""Execution providers of ONNX Runtime; targets are described in passes/_core/targets.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .. import UsageError
from ..passes._core.nearest import did_you_mean


@dataclass(frozen=True)
class Provider:
    """An execution provider: ONNX Runtime's name, the options we set, and how to install it."""

    name: str
    ort_name: str
    install: str
    options: Mapping[str, str] = field(default_factory=dict)
    partner: str = ""
    """ONNX Runtime's provider for the nodes that this one does not take.

    The CPU takes the rest in any case.
    """


# both wheels have the module `onnxruntime`: the plain one must go first
_GPU_WHEEL = (
    'pip uninstall -y onnxruntime && pip install "onnxruntime-gpu[cuda,cudnn]" '
    "(CUDA 13, an NVIDIA GPU and its driver)"
)

_CPU = Provider(
    name="cpu",
    ort_name="CPUExecutionProvider",
    install="pip install onnxruntime",
)
_CUDA = Provider(
    name="cuda",
    ort_name="CUDAExecutionProvider",
    install=_GPU_WHEEL,
    options={"device_id": "0"},
)
_TENSORRT = Provider(
    name="tensorrt",
    ort_name="TensorrtExecutionProvider",
    install=f'{_GPU_WHEEL}; pip install "tensorrt<11"',
    options={
        "device_id": "0",
        "trt_fp16_enable": "1",
        # TensorRT 10 refuses Q/DQ graphs without it
        "trt_int8_enable": "1",
        # it then uses sparse tensor cores for weights of which 2 of every 4 are zero, where faster
        "trt_sparsity_enable": "1",
    },
    partner="CUDAExecutionProvider",
)

PROVIDERS: dict[str, Provider] = {
    "cpu": _CPU,
    "cuda": _CUDA,
    "tensorrt": _TENSORRT,
}
"""Execution providers by name."""


def provider_named(name: str) -> Provider:
    """Get the provider of that name. Errors: UsageError with the nearest name."""
    if name not in PROVIDERS:
        raise UsageError(
            "provider",
            f"'{name}' is not one of {', '.join(PROVIDERS)}",
            did_you_mean(name, PROVIDERS),
        )
    return PROVIDERS[name]
