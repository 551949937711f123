"""What a graph is made for, and what ONNX Runtime runs it on: two tables."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from .. import UsageError


@dataclass(frozen=True)
class Provider:
    """An execution provider: ONNX Runtime's name, the options we set, and how to install it."""

    name: str
    ort_name: str
    install: str
    options: Mapping[str, str] = field(default_factory=dict)
    partner: str = ""
    """ONNX Runtime's provider for the nodes that this one does not take; the CPU takes the rest in any case."""


@dataclass(frozen=True)
class Target:
    """What a graph is made for; `provider` is where it is verified and measured by default."""

    name: str
    provider: str
    help: str
    options: Mapping[str, str] = field(default_factory=dict)


_GPU_WHEEL = (
    'pip uninstall -y onnxruntime && pip install "onnxruntime-gpu[cuda,cudnn]" (CUDA 13, an NVIDIA GPU and its driver)'
)

PROVIDERS: dict[str, Provider] = {p.name: p for p in (
    Provider("cpu", "CPUExecutionProvider", "pip install onnxruntime"),
    Provider("cuda", "CUDAExecutionProvider", _GPU_WHEEL, {"device_id": "0"}),
    Provider("tensorrt", "TensorrtExecutionProvider", f'{_GPU_WHEEL}; pip install "tensorrt<11"', {
        "device_id": "0",
        "trt_fp16_enable": "1",
        "trt_int8_enable": "1",  # TensorRT 10 refuses Q/DQ graphs without it
    }, partner="CUDAExecutionProvider"),
)}

TARGETS: dict[str, Target] = {t.name: t for t in (
    Target("cpu", "cpu", "x86-64 and arm64 processors, ONNX Runtime's CPU provider"),
    Target("cuda", "cuda", "NVIDIA GPUs, ONNX Runtime's CUDA provider"),
    Target("tensorrt", "tensorrt", "NVIDIA GPUs, TensorRT 10 through ONNX Runtime"),
    Target("generic", "cpu", "any ONNX runtime: standard operators only"),
)}


def provider_named(name: str) -> Provider:
    """The provider of that name. Errors: UsageError with the nearest name."""
    if name not in PROVIDERS:
        raise UsageError("provider", f"'{name}' is not one of {', '.join(PROVIDERS)}", _nearest(name, PROVIDERS))
    return PROVIDERS[name]


def target_named(name: str) -> Target:
    """The target of that name. Errors: UsageError with the nearest name."""
    if name not in TARGETS:
        raise UsageError("target", f"'{name}' is not one of {', '.join(TARGETS)}", _nearest(name, TARGETS))
    return TARGETS[name]


def _nearest(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean '{near[0]}'?" if near else f"choose one of {', '.join(known)}"
