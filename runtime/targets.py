"""Execution providers of ONNX Runtime, and which hardware a target is made for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .. import UsageError
from ..passes._core.targets import TARGETS, Target, nearest, target_named
from .hardware import Hardware


@dataclass(frozen=True)
class Provider:
    """An execution provider: ONNX Runtime's name, the options we set, and how to install it."""

    name: str
    ort_name: str
    install: str
    options: Mapping[str, str] = field(default_factory=dict)
    partner: str = ""
    """ONNX Runtime's provider for the nodes that this one does not take; the CPU takes the rest in
    any case.
    """


__all__ = [
    "PROVIDERS",
    "TARGETS",
    "Provider",
    "Target",
    "covers",
    "provider_named",
    "target_named",
]

_GPU_WHEEL = 'pip uninstall -y onnxruntime && pip install "onnxruntime-gpu[cuda,cudnn]" (CUDA 13, an NVIDIA GPU and its driver)'

PROVIDERS: dict[str, Provider] = {
    p.name: p
    for p in (
        Provider("cpu", "CPUExecutionProvider", "pip install onnxruntime"),
        Provider("cuda", "CUDAExecutionProvider", _GPU_WHEEL, {"device_id": "0"}),
        Provider(
            "tensorrt",
            "TensorrtExecutionProvider",
            f'{_GPU_WHEEL}; pip install "tensorrt<11"',
            {
                "device_id": "0",
                "trt_fp16_enable": "1",
                "trt_int8_enable": "1",  # TensorRT 10 refuses Q/DQ graphs without it
            },
            partner="CUDAExecutionProvider",
        ),
    )
}


def covers(target: Target, hardware: Hardware) -> bool:
    """Whether the target is made for that CPU: what is measured there is true of the target."""
    if not target.cpus:
        return True
    return target.architecture == hardware.architecture and not hardware.saturates


def provider_named(name: str) -> Provider:
    """The provider of that name. Errors: UsageError with the nearest name."""
    if name not in PROVIDERS:
        raise UsageError(
            "provider",
            f"'{name}' is not one of {', '.join(PROVIDERS)}",
            nearest(name, PROVIDERS),
        )
    return PROVIDERS[name]
