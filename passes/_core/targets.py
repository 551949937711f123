"""Facts about targets, one row each: what a graph is made for, and what suits its runtime there.

Numbers were measured (docs/quantization.md and docs/channels.md say how) where no comment says
otherwise; a fact is changed here, not in code. What a runtime takes of a file, whichever form it
has, is in `target_limits.py`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from ... import UsageError
from .nearest import did_you_mean

X86, ARM = "x86-64", "arm64"

Carry = Literal["own", "shared"]
"""Output range of an op on int8 data: its `own`, or `shared` with the inputs that it moves."""


@dataclass(frozen=True)
class QuantRules:
    """Layout of integer layers by `quant` for one target's runtime.

    `why_not` declines integer kernels with a reason, `why_not_int16` those of 16-bit activations,
    `why_not_tables` tables of 8-bit rows.
    """

    activation: Literal["uint8", "int8", "uint16"] = "uint8"
    symmetric: bool = False
    integer_bias: bool = True
    quantizes_bias: tuple[str, ...] = ()
    """Ops whose float bias the runtime itself makes int32 at load.

    With packed weights, whose point is the file's size, that saves a scale a channel and a node.
    """
    integer_ops: tuple[str, ...] = ("Conv", "Gemm", "MatMul")
    """Ops that multiply by a weight and have integer kernels."""
    quantized_output: tuple[str, ...] = ("Conv",)
    """Those of them whose integer kernel writes integers only; the others can write float."""
    carry: dict[str, Carry] = field(default_factory=dict)
    folded: tuple[str, ...] = ()
    """Activations that vanish into the quantization of their input's producer."""
    dynamic: tuple[str, ...] = ()
    """Ops for which activations quantized at run time are faster than float."""
    image_channels: int = 0
    """Most channels of what counts as an image, which a 2-D Conv reads in two terms of 8 bits.

    No int8 layer makes an image. What it loses by rounding no later layer gives back, and the Conv
    is as fast as with one term. Another Conv on so few channels of a graph input stays float, where
    one node alone reads its result (behind a branch, the runtime would transpose the run to NHWC at
    every Add).
    """
    channel_multiple: int = 1
    """Multiple to which the terms of an image are padded: the fast integer Conv wants it."""
    limits_pairs: bool = False
    """Keep 8-bit weights where no CPU's kernels saturate (saturation.py): any may run the file."""
    guard_float: bool = False
    """Keep the runtime itself from quantizing an excluded layer between int8 neighbours."""
    why_not: str = ""
    instead: Literal["", "fp16"] = ""
    """Form of `quant` that plain int8 becomes where `why_not` declines it; "": none."""
    why_not_int16: str = ""
    why_not_tables: str = ""


@dataclass(frozen=True)
class Target:
    """One target: where its graphs run, and what suits them.

    `provider`: the execution provider that a graph is verified and measured on by default.
    `cpus`: the only CPUs it is made for, in words; "" for any. They have that `architecture`, and
    their 8-bit products do not saturate.
    """

    name: str
    provider: str
    help: str
    quant: QuantRules
    conv_width: int
    """Channels that a convolution kernel handles at once.

    CPU: AVX-512 in ONNX Runtime's blocked layout, where 33 to 47 channels take the time of 48 and
    63 more than 64 (measured).
    """
    width_step: int
    """Multiple of channels that convolutions keep: 15 take a CPU longer than 16 (measured)."""
    computes_half: bool = True
    """True if float16 is computed as such: ONNX Runtime's CPU provider casts it to float32."""
    folds_constants: bool = True
    """True if its runtime computes what depends on constants alone once, while it loads a model.

    ONNX Runtime does, for every provider that runs nodes one by one. Providers that compile a graph
    are handed it before; OpenVINO keeps such nodes, and runs them each time (measured).
    """
    cpus: str = ""
    architecture: str = ""
    is_elsewhere: bool = False
    """True if its runtime is another than the one here: nothing that is timed here tells of it."""


# a table of its own beside `ops.MOVES`: MaxPool, Pad and Resize keep their input's range too
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

_CPU_INTEGERS = QuantRules(
    # u8 activations, s8 weights per channel, int32 bias. Softmax, LayerNormalization, Gelu,
    # HardSwish, AveragePool and linear Resize have no good int8 kernel and stay float.
    quantizes_bias=("Conv",),
    carry={
        "Add": "own",
        "Mul": "own",
        "GlobalAveragePool": "own",
        "Sigmoid": "own",
        "LeakyRelu": "own",
        **MOVERS,
    },
    folded=("Relu", "Clip"),
    dynamic=("MatMul", "Gemm", "LSTM"),
    image_channels=4,
    channel_multiple=4,
    guard_float=True,
    why_not_int16="ONNX Runtime's CPU provider fuses no 16-bit activations: Conv runs at 0.74, "
    "MatMul at 0.79 of fp32's speed; use int8, and layers= to leave sensitive layers float",
)
_TENSORRT_INTEGERS = QuantRules(
    # explicit quantization: signed, zero point 0, float bias; residual skips are quantized, graph
    # outputs are not
    activation="int8",
    symmetric=True,
    integer_bias=False,
    carry={"Add": "own", "GlobalAveragePool": "own", **MOVERS},
    folded=("Relu", "Clip"),
    why_not_int16="TensorRT has no 16-bit integers: use fp16",
    # not measured: its builder takes 8-bit tensors between Q/DQ pairs alone
    why_not_tables="TensorRT takes 8-bit tensors between Q/DQ pairs alone",
)
_GENERIC_INTEGERS = QuantRules(
    # plain QDQ that any runtime may read, on any CPU
    carry={"Add": "own", "GlobalAveragePool": "own", **MOVERS},
    folded=("Relu", "Clip"),
    dynamic=("MatMul", "Gemm"),
    limits_pairs=True,
)
_NO_INTEGERS = QuantRules(
    why_not="ONNX Runtime's CUDA provider has no int8 Conv or MatMul: a QDQ graph runs slower "
    "there than fp32",
    instead="fp16",
)
_OPENVINO_INTEGERS = dataclasses.replace(
    # OpenVINO makes its own low-precision kernels of standard Q/DQ pairs
    _GENERIC_INTEGERS,
    quantizes_bias=(),
)
_QNN_INTEGERS = dataclasses.replace(
    # units of Q/DQ pairs and an operator between them, as its page asks; 16-bit activations too
    _GENERIC_INTEGERS,
    dynamic=(),
    why_not_tables="no table of 8-bit rows was tried on a Qualcomm NPU",
)
_COREML_INTEGERS = QuantRules(
    why_not="ONNX Runtime's Core ML provider takes no quantized operators: they run on the CPU",
    instead="fp16",
    why_not_int16="Core ML's provider takes no quantized operators: use fp16",
    why_not_tables="Core ML's provider takes no quantized operators",
)

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            "cpu",
            "cpu",
            "any x86-64 or arm64 CPU, ONNX Runtime's CPU provider: 8-bit weights "
            "that saturate on none",
            quant=dataclasses.replace(_CPU_INTEGERS, limits_pairs=True),
            conv_width=16,
            width_step=4,
            computes_half=False,
        ),
        # the next two add products in 32 bits: VNNI by its instruction, ARM because its kernels
        # widen first
        Target(
            "cpu-vnni",
            "cpu",
            "x86-64 CPUs with VNNI: the full range of 8-bit weights, exact there and on arm64; "
            "saturates on x86-64 without VNNI",
            quant=_CPU_INTEGERS,
            conv_width=16,
            width_step=4,
            computes_half=False,
            cpus="x86-64 CPUs with VNNI",
            architecture=X86,
        ),
        Target(
            "arm64",
            "cpu",
            "arm64 CPUs: the full range of 8-bit weights, exact there and on x86-64 with VNNI; "
            "saturates on x86-64 without VNNI",
            quant=_CPU_INTEGERS,
            conv_width=16,
            width_step=4,
            cpus="arm64 CPUs",
            architecture=ARM,
        ),
        Target(
            "cuda",
            "cuda",
            "NVIDIA GPUs, ONNX Runtime's CUDA provider",
            quant=_NO_INTEGERS,
            conv_width=8,
            width_step=8,
        ),
        Target(
            "tensorrt",
            "tensorrt",
            "NVIDIA GPUs, TensorRT 10 through ONNX Runtime",
            quant=_TENSORRT_INTEGERS,
            conv_width=8,
            width_step=8,
            folds_constants=False,
        ),
        Target(
            "generic",
            "cpu",
            "any ONNX runtime: standard operators only, 8-bit weights that saturate on no CPU",
            quant=_GENERIC_INTEGERS,
            conv_width=8,
            width_step=4,
            folds_constants=False,
            is_elsewhere=True,
        ),
        # widths of the next four were not measured
        Target(
            "openvino",
            "cpu",
            "Intel CPUs, GPUs and NPUs, OpenVINO: standard operators, integers as Q/DQ pairs",
            quant=_OPENVINO_INTEGERS,
            conv_width=8,
            width_step=4,
            folds_constants=False,
            is_elsewhere=True,
        ),
        Target(
            "web",
            "cpu",
            "browsers and node, onnxruntime-web on WebAssembly: 8-bit weights that saturate on no "
            "CPU",
            quant=dataclasses.replace(_CPU_INTEGERS, limits_pairs=True),
            conv_width=8,
            width_step=4,
            computes_half=False,
            is_elsewhere=True,
        ),
        Target(
            "qnn",
            "cpu",
            "Qualcomm NPUs, ONNX Runtime's QNN provider: integers, fixed shapes (--shape)",
            quant=_QNN_INTEGERS,
            conv_width=8,
            width_step=4,
            folds_constants=False,
            is_elsewhere=True,
        ),
        Target(
            "coreml",
            "cpu",
            "Apple devices, ONNX Runtime's Core ML provider: float16, fixed shapes (--shape)",
            quant=_COREML_INTEGERS,
            conv_width=8,
            width_step=4,
            folds_constants=False,
            is_elsewhere=True,
        ),
    )
}


def target_named(name: str) -> Target:
    """Return the target of that name. Errors: UsageError with the nearest name."""
    if name not in TARGETS:
        raise UsageError(
            "target",
            f"'{name}' is not one of {', '.join(TARGETS)}",
            did_you_mean(name, TARGETS),
        )
    return TARGETS[name]
