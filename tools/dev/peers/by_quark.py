"""AMD Quark's ONNX quantizer: u8 activations, s8 weights per channel, ranges by minimum and
maximum.

Its presets (U8S8_AAWS and others) have one scale a tensor and its percentiles measured worse, so
neither is used.
"""

from __future__ import annotations

from typing import Any

import onnx
from _driver import Feed, Reader, main
from _prepare import lifted_to_17
from quark.onnx import ModelQuantizer
from quark.onnx.quantization.config.algorithm import (
    AlgoConfig,
    BiasCorrectionConfig,
    SmoothQuantConfig,
)
from quark.onnx.quantization.config.config import QConfig
from quark.onnx.quantization.config.spec import (
    CalibMethod,
    Int8Spec,
    QLayerConfig,
    QuantGranularity,
    UInt8Spec,
)


def corrected(model: str, feeds: list[Feed], out: str) -> None:
    """With its bias correction, which leaves what it observed behind as outputs: they are taken
    off.
    """
    _quantize(model, feeds, out, [BiasCorrectionConfig()])
    quantized, own = (
        onnx.load(out),
        {output.name for output in onnx.load(model).graph.output},
    )
    kept = [output for output in quantized.graph.output if output.name in own]
    del quantized.graph.output[:]
    quantized.graph.output.extend(kept)
    onnx.save(quantized, out)


def by_hand(model: str, feeds: list[Feed], out: str) -> None:
    """The same after what an expert does to the model first."""
    corrected(lifted_to_17(model, out), feeds, out)


def everything(model: str, feeds: list[Feed], out: str) -> None:
    """Without algorithms, all operators that it knows."""
    _quantize(model, feeds, out, [])


def matmul(model: str, feeds: list[Feed], out: str) -> None:
    """MatMul and Gemm only, after its SmoothQuant."""
    _quantize(
        model, feeds, out, [SmoothQuantConfig()], OpTypesToQuantize=["MatMul", "Gemm"]
    )


def _quantize(
    model: str,
    feeds: list[Feed],
    out: str,
    algorithms: list[AlgoConfig],
    **options: Any,
) -> None:
    layers = QLayerConfig(
        activation=UInt8Spec(calibration_method=CalibMethod.MinMax),
        weight=Int8Spec(
            calibration_method=CalibMethod.MinMax,
            quant_granularity=QuantGranularity.Channel,
        ),
    )
    config = QConfig(global_config=layers, algo_config=algorithms, **options)
    ModelQuantizer(config).quantize_model(model, out, Reader(feeds))


if __name__ == "__main__":
    main(
        {
            "corrected": corrected,
            "by hand": by_hand,
            "everything": everything,
            "matmul": matmul,
        }
    )
