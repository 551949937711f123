"""Limits of the targets' runtimes: the files that each takes, whatever form the graph has.

`limits_of` gives a target's row; `misfits` finds what in a model is beyond it, with the node and
what to do. Rows follow what the makers publish (`source`) or what was tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from .graph import all_nodes, label
from .ops import STANDARD_DOMAINS

MICROSOFT = ("com.microsoft", "com.microsoft.nchwc", "ai.onnx.ml")
"""Domains that ONNX Runtime's CPU kernels know besides the standard one."""


@dataclass(frozen=True)
class RuntimeLimits:
    """A row: what a target's runtime takes.

    `opset`, `ir_version`: the highest; None: those that the oldest release named by the model's
    requirements takes. `fixed_shapes`: dims of inputs must be numbers. `domains`: those of which it
    has operators besides the standard one. `avoid`: operators that it does not run, with the
    reason. `precision`: what it computes in. `runtime`: the oldest release that this row is about.
    `source`: where it is published, or how it was tried.
    """

    precision: str
    runtime: str
    source: str
    opset: int | None = None
    ir_version: int | None = None
    fixed_shapes: bool = False
    domains: tuple[str, ...] = ()
    avoid: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Misfit:
    """Part of a model that a target's runtime does not take.

    `is_fatal`: the file is of no use there; else the part runs on the CPU beside it.
    """

    where: str
    problem: str
    fix: str
    is_fatal: bool


def _each(reason: str, *op_types: str) -> dict[str, str]:
    return dict.fromkeys(op_types, reason)


_NO_CUDA_INTEGERS = _each(
    "has no CUDA kernel, and runs on the CPU with copies to and fro",
    "ConvInteger",
    "QLinearConv",
    "QLinearMatMul",
    "DynamicQuantizeLSTM",
    "DynamicQuantizeMatMul",
)
_RUN_TIME_INTEGERS = _each(
    "integers whose ranges are found at run time are not taken",
    "ConvInteger",
    "MatMulInteger",
    "DynamicQuantizeLinear",
)
_OPERATORS_OF_INTEGERS = _each(
    "integers are taken as Q/DQ pairs alone", "QLinearConv", "QLinearMatMul"
)
_SHAPES_FROM_DATA = _each(
    "the shape of its result depends on the data",
    "NonZero",
    "Unique",
    "Compress",
)
_SEQUENCES = _each(
    "sequences are not taken",
    "SequenceConstruct",
    "SequenceInsert",
    "SequenceAt",
    "SequenceEmpty",
    "SplitToSequence",
    "ConcatFromSequence",
)
_CONTROL = _each("control flow is not taken", "Loop", "Scan")
_QUANTIZED = _each(
    "quantized operators are not taken",
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "ConvInteger",
    "QLinearConv",
    "QLinearMatMul",
)
_TEXTS = _each("texts are not taken", "StringNormalizer", "TfIdfVectorizer")

_ORT_CPU = RuntimeLimits(
    precision="float32, int8",
    runtime="ONNX Runtime 1.15",
    source="tried: tools/dev/bench_runtimes.py",
    domains=MICROSOFT,
)

LIMITS: dict[str, RuntimeLimits] = {
    "cpu": _ORT_CPU,
    "cpu-vnni": _ORT_CPU,
    "arm64": replace(
        _ORT_CPU,
        source="tried: tools/dev/bench_runtimes.py; on emulated CPUs: tools/dev/bench_forms.py",
    ),
    "cuda": RuntimeLimits(
        precision="float32, float16",
        runtime="ONNX Runtime 1.15",
        source="names of kernels in the wheel onnxruntime-gpu 1.31.1",
        domains=MICROSOFT,
        avoid=_NO_CUDA_INTEGERS,
    ),
    "tensorrt": RuntimeLimits(
        precision="float32, float16, int8",
        runtime="TensorRT 10",
        # its highest opset differs by release, and the runtime refuses what is above it
        source="github.com/onnx/onnx-tensorrt, docs/operators.md as of TensorRT 8.4",
        domains=MICROSOFT,
        avoid={**_RUN_TIME_INTEGERS, **_OPERATORS_OF_INTEGERS, **_SEQUENCES, **_TEXTS},
    ),
    "generic": RuntimeLimits(
        precision="float32, int8",
        runtime="any",
        source="the standard itself: operators of ai.onnx alone",
    ),
    "openvino": RuntimeLimits(
        precision="float32, bfloat16, float16, int8, int4",
        runtime="OpenVINO 2026.4",
        source="tried: opsets 13 to 28, IR versions 8 to 14, tools/dev/bench_forms.py",
        opset=28,
        ir_version=14,
        avoid={**_SEQUENCES, **_TEXTS},
    ),
    "web": RuntimeLimits(
        precision="float32, int8",
        runtime="onnxruntime-web 1.30",
        source="tried: opset 27 and IR version 14 are refused; tools/dev/bench_forms.py",
        opset=26,
        ir_version=13,
        domains=MICROSOFT,
    ),
    "qnn": RuntimeLimits(
        precision="int8, int16, float16",
        runtime="ONNX Runtime 1.24 with onnxruntime-qnn 2.5",
        source="onnxruntime.ai, QNN Execution Provider; notes of onnxruntime-qnn 2.4 and 2.5",
        opset=26,
        fixed_shapes=True,
        avoid={
            **_RUN_TIME_INTEGERS,
            **_SHAPES_FROM_DATA,
            **_SEQUENCES,
            **_TEXTS,
            **_CONTROL,
        },
    ),
    "coreml": RuntimeLimits(
        precision="float32, float16",
        runtime="ONNX Runtime 1.20, iOS 15, macOS 12 (ML programs)",
        source="onnxruntime.ai, CoreML Execution Provider",
        fixed_shapes=True,
        avoid={**_QUANTIZED, **_SHAPES_FROM_DATA, **_SEQUENCES, **_TEXTS, **_CONTROL},
    ),
}
"""Limits by the name of a target."""


def misfits(model: ir.Model, target: str) -> list[Misfit]:
    """All that the target's runtime does not take: of the file first, then by node, in order."""
    limits = LIMITS[target]
    found = [*_of_versions(model, limits), *_of_shapes(model, limits)]
    defined = {function.identifier() for function in model.functions.values()}
    for node in all_nodes(model):
        if node.op_identifier() in defined:
            continue
        misfit = _of_node(node, limits)
        if misfit is not None:
            found.append(misfit)
    return found


def _of_versions(model: ir.Model, limits: RuntimeLimits) -> Iterator[Misfit]:
    opset = model.opset_imports.get("")
    if limits.opset is not None and opset is not None and opset > limits.opset:
        yield Misfit(
            "opset",
            f"{opset} is above {limits.opset}, the highest that {limits.runtime} takes",
            f"export the model with opset {limits.opset} or a lower one",
            is_fatal=True,
        )
    version = model.ir_version
    if limits.ir_version is not None and (version or 0) > limits.ir_version:
        yield Misfit(
            "IR version",
            f"{version} is above {limits.ir_version}, the highest that {limits.runtime} takes",
            "run onnx-opt on it, which writes the lowest that its content needs",
            is_fatal=True,
        )


def _of_shapes(model: ir.Model, limits: RuntimeLimits) -> Iterator[Misfit]:
    if not limits.fixed_shapes:
        return
    defaults = model.graph.initializers
    for value in model.graph.inputs:
        if value.name in defaults:
            continue
        dims = ["?"]
        if value.shape is not None:
            dims = [str(dim) if isinstance(dim, int) else "?" for dim in value.shape]
        if "?" not in dims:
            continue
        shape = ",".join(dims)
        yield Misfit(
            f"input {value.name}",
            f"has open dims ({', '.join(dims)}), and nodes of open dims run on the CPU",
            f"fix them: --shape {value.name}={shape}, with a number for each ?",
            is_fatal=True,
        )


def _of_node(node: ir.Node, limits: RuntimeLimits) -> Misfit | None:
    where = label(node)
    is_standard = node.domain in STANDARD_DOMAINS
    if not is_standard and node.domain not in limits.domains:
        return Misfit(
            where,
            f"{limits.runtime} has no operators of {node.domain}",
            "export the model with standard operators, or choose another target",
            is_fatal=True,
        )
    reason = limits.avoid.get(node.op_type)
    if reason is None:
        return None
    return Misfit(
        where,
        reason,
        _fix_of(node.op_type, limits),
        is_fatal=False,
    )


def _fix_of(op_type: str, limits: RuntimeLimits) -> str:
    """Advice on an operator that a runtime does not take."""
    if op_type in _OPERATORS_OF_INTEGERS or op_type in _QUANTIZED:
        forms = "quant(fp16)" if "int8" not in limits.precision else "quant with --data"
        return f"begin from the float model, by {forms}"
    return "take it out of the model before the export, into the program around it"
