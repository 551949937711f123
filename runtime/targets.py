"""What a graph is made for, and what ONNX Runtime runs it on: two tables."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from .. import UsageError
from .hardware import ARM, X86, Hardware


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


@dataclass(frozen=True)
class Target:
    """What a graph is made for; `provider` is where it is verified and measured by default.

    `cpus`: which CPUs alone it is made for, in words, where it is not for any; these are of that
    `architecture`, and their 8-bit products do not saturate.
    """

    name: str
    provider: str
    help: str
    options: Mapping[str, str] = field(default_factory=dict)
    cpus: str = ""
    architecture: str = ""

    def covers(self, hardware: Hardware) -> bool:
        """Whether it is made for that CPU: what is measured there is true of the target."""
        return not self.cpus or (
            self.architecture == hardware.architecture and not hardware.saturates
        )


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

TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        Target(
            "cpu",
            "cpu",
            "any x86-64 or arm64 CPU, ONNX Runtime's CPU provider: 8-bit weights "
            "that saturate on none",
        ),
        Target(
            "cpu-vnni",
            "cpu",
            "x86-64 CPUs with VNNI: the full range of 8-bit weights, exact there and on arm64; "
            "saturates on x86-64 without VNNI",
            cpus="x86-64 CPUs with VNNI",
            architecture=X86,
        ),
        Target(
            "arm64",
            "cpu",
            "arm64 CPUs: the full range of 8-bit weights, exact there and on x86-64 with VNNI; "
            "saturates on x86-64 without VNNI",
            cpus="arm64 CPUs",
            architecture=ARM,
        ),
        Target("cuda", "cuda", "NVIDIA GPUs, ONNX Runtime's CUDA provider"),
        Target("tensorrt", "tensorrt", "NVIDIA GPUs, TensorRT 10 through ONNX Runtime"),
        Target(
            "generic",
            "cpu",
            "any ONNX runtime: standard operators only, 8-bit weights that saturate on no CPU",
        ),
    )
}


def provider_named(name: str) -> Provider:
    """The provider of that name. Errors: UsageError with the nearest name."""
    if name not in PROVIDERS:
        raise UsageError(
            "provider",
            f"'{name}' is not one of {', '.join(PROVIDERS)}",
            _nearest(name, PROVIDERS),
        )
    return PROVIDERS[name]


def target_named(name: str) -> Target:
    """The target of that name. Errors: UsageError with the nearest name."""
    if name not in TARGETS:
        raise UsageError(
            "target",
            f"'{name}' is not one of {', '.join(TARGETS)}",
            _nearest(name, TARGETS),
        )
    return TARGETS[name]


def _nearest(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean '{near[0]}'?" if near else f"choose one of {', '.join(known)}"
