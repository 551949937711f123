"""Placement rules as data: what each target's runtime fuses, so what `quant` makes of each op
there.

Every line was measured (docs/quantization.md says how); a rule is changed here, not in code.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

Carry = Literal["own", "shared"]
"""How an op runs on int8 data: `own` output range, or `shared` with its inputs (it only moves
values).
"""


@dataclass(frozen=True)
class Heavy:
    """An op worth running in int8: where its weight, bias and output channels are.

    `channel_axis`: axis of the weight that indexes output channels (Gemm: of the untransposed
    weight). `needs_output`: the int8 kernel exists only with a quantized output (Conv), or can emit
    float (Gemm, MatMul).
    """

    weight: int
    bias: int | None
    channel_axis: int
    needs_output: bool


@dataclass(frozen=True)
class TargetRules:
    """How one target wants its graph.

    `why_not` declines integer kernels with a reason, `why_not_int16` those of 16-bit activations.
    """

    activation: Literal["uint8", "int8", "uint16"] = "uint8"
    symmetric: bool = False
    integer_bias: bool = True
    quantizes_bias: tuple[str, ...] = ()
    """Ops whose float bias the runtime itself makes int32 at load; with packed weights, whose point
    is the file's size, that saves a scale a channel and a node.
    """
    heavy: dict[str, Heavy] = field(default_factory=dict)
    carry: dict[str, Carry] = field(default_factory=dict)
    folded: tuple[str, ...] = ()
    """Activations that vanish into the quantization of their input's producer."""
    dynamic: tuple[str, ...] = ()
    """Ops for which activations quantized at run time are faster than float."""
    image_channels: int = 0
    """A 2-D Conv that reads at most so many channels, of a value that no int8 layer makes, reads it
    in two limbs of 8 bits: what an image loses by rounding no later layer gives back, and the Conv
    is as fast as with one. Another Conv on so few channels of a graph input stays float, where one
    node alone reads its result (behind a branch, the runtime would transpose the run to NHWC at
    every Add).
    """
    channel_multiple: int = 1
    """The runtime's fast integer Conv wants its input channels in multiples of this: limbs are
    padded to it.
    """
    limits_pairs: bool = False
    """Keep 8-bit weights where no CPU's kernels saturate (_core/saturation.py): the file may run on
    any of them.
    """
    guard_float: bool = False
    """Keep an excluded float layer between int8 neighbours from being quantized by the runtime
    itself.
    """
    why_not: str = ""
    why_not_int16: str = ""


HEAVY = {
    "Conv": Heavy(weight=1, bias=2, channel_axis=0, needs_output=True),
    "Gemm": Heavy(weight=1, bias=2, channel_axis=1, needs_output=False),
    "MatMul": Heavy(weight=1, bias=None, channel_axis=-1, needs_output=False),
}

MOVERS: dict[str, Carry] = {
    "MaxPool": "shared",
    "Reshape": "shared",
    "Flatten": "shared",
    "Transpose": "shared",
    "Squeeze": "shared",
    "Unsqueeze": "shared",
    "Slice": "shared",
    "Split": "shared",
    "Pad": "shared",
    "Concat": "shared",
    "Resize": "shared",
    "DepthToSpace": "shared",
}

# ONNX Runtime CPU: u8 activations, s8 per-channel weights, int32 bias; Softmax, LayerNormalization,
# Gelu, HardSwish,
# AveragePool, linear Resize have no good int8 kernel and stay float.
_KNOWN_CPU = TargetRules(
    quantizes_bias=("Conv",),
    heavy=HEAVY,
    carry={
        "Add": "own",
        "Mul": "own",
        "GlobalAveragePool": "own",
        "Sigmoid": "own",
        "LeakyRelu": "own",
        **MOVERS,
    },
    folded=("Relu", "Clip"),
    dynamic=("MatMul", "Gemm"),
    image_channels=4,
    channel_multiple=4,
    guard_float=True,
    why_not_int16="ONNX Runtime's CPU provider fuses no 16-bit activations: Conv runs at 0.74, MatMul at 0.79 of "
    "fp32's speed; use int8, and layers= to leave sensitive layers float",
)

TARGETS: dict[str, TargetRules] = {
    "cpu": dataclasses.replace(_KNOWN_CPU, limits_pairs=True),
    # Both add products in 32 bits: x86 with VNNI by its instruction, ARM because its kernels widen
    # first.
    "cpu-vnni": _KNOWN_CPU,
    "arm64": _KNOWN_CPU,
    # TensorRT explicit quantization: signed, zero point 0, float bias; residual skips quantized,
    # graph outputs not.
    "tensorrt": TargetRules(
        activation="int8",
        symmetric=True,
        integer_bias=False,
        heavy=HEAVY,
        carry={"Add": "own", "GlobalAveragePool": "own", **MOVERS},
        folded=("Relu", "Clip"),
        why_not_int16="TensorRT has no 16-bit integers: use fp16",
    ),
    # Plain QDQ that any runtime may read, on any CPU.
    "generic": TargetRules(
        heavy=HEAVY,
        carry={"Add": "own", "GlobalAveragePool": "own", **MOVERS},
        folded=("Relu", "Clip"),
        dynamic=("MatMul", "Gemm"),
        limits_pairs=True,
    ),
    "cuda": TargetRules(
        heavy=HEAVY,
        why_not="ONNX Runtime's CUDA provider has no int8 Conv or MatMul: a QDQ graph runs slower there than fp32",
    ),
}

MIN_DYNAMIC_WEIGHTS = 4096
"""A MatMul with fewer weights costs more in quantizing its input at run time than it gains."""
