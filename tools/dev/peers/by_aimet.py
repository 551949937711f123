"""Qualcomm's aimet-onnx: quantization simulation exported as QDQ, as it is and placed for
onnxruntime.
"""

from __future__ import annotations

import onnx
from _driver import Feed, main
from aimet_onnx import QuantizationSimModel


def defaults(model: str, feeds: list[Feed], out: str) -> None:
    """int8 weights and activations, everything else as it comes."""
    _export(
        QuantizationSimModel(
            onnx.load(model), param_type="int8", activation_type="int8"
        ),
        feeds,
        out,
    )


def placed(model: str, feeds: list[Feed], out: str) -> None:
    """No quantizer between a layer and its activation, so that they fuse."""
    _export(_placed(model, "min_max"), feeds, out)


def searched(model: str, feeds: list[Feed], out: str) -> None:
    """The same with ranges by its search for the best signal-to-noise ratio."""
    _export(_placed(model, "tf_enhanced"), feeds, out)


def matmul(model: str, feeds: list[Feed], out: str) -> None:
    """Quantizers at the inputs of MatMul and Gemm only, ranges by search."""
    simulation = _placed(model, "tf_enhanced")
    inputs = _quantized_inputs(simulation, ("MatMul", "Gemm"))
    for name, quantizer in simulation.qc_quantize_op_dict.items():
        if name not in inputs:
            quantizer.enabled = False
    _export(simulation, feeds, out)


def _placed(model: str, scheme: str) -> QuantizationSimModel:
    simulation = QuantizationSimModel(
        onnx.load(model), param_type="int8", activation_type="int8", quant_scheme=scheme
    )
    simulation._export_data_movement_op_output_quantizers = (
        False  # else one in front of each activation
    )
    for name in _quantized_inputs(simulation, ("Clip", "Relu")):
        simulation.qc_quantize_op_dict[name].enabled = False
    return simulation


def _quantized_inputs(
    simulation: QuantizationSimModel, kinds: tuple[str, ...]
) -> set[str]:
    """Names of the quantizers that nodes of these types read."""
    nodes = list(simulation.model.model.graph.node)
    sources = {
        node.output[0]: node.input[0]
        for node in nodes
        if node.op_type == "QcQuantizeOp"
    }
    return {
        sources[name]
        for node in nodes
        if node.op_type in kinds
        for name in node.input
        if name in sources
    }


def _export(simulation: QuantizationSimModel, feeds: list[Feed], out: str) -> None:
    simulation.compute_encodings(feeds)
    onnx.save(
        simulation.to_onnx_qdq(export_int32_bias=True, prequantize_constants=True), out
    )


if __name__ == "__main__":
    main(
        {"defaults": defaults, "placed": placed, "searched": searched, "matmul": matmul}
    )
