"""Qualcomm's aimet-onnx: quantization simulation exported as QDQ, with and without cross-layer equalization."""

from __future__ import annotations

import onnx
from _driver import Feed, main
from aimet_onnx import QuantizationSimModel
from aimet_onnx.cross_layer_equalization import equalize_model


def defaults(model: str, feeds: list[Feed], out: str) -> None:
    """int8 weights and activations."""
    _simulated(onnx.load(model), feeds, out)


def equalized(model: str, feeds: list[Feed], out: str) -> None:
    """The same after cross-layer equalization."""
    loaded = onnx.load(model)
    equalize_model(loaded)
    _simulated(loaded, feeds, out)


def _simulated(model: onnx.ModelProto, feeds: list[Feed], out: str) -> None:
    simulation = QuantizationSimModel(model, param_type="int8", activation_type="int8")
    simulation.compute_encodings(feeds)
    onnx.save(simulation.to_onnx_qdq(export_int32_bias=True, prequantize_constants=True), out)


if __name__ == "__main__":
    main({"defaults": defaults, "equalized": equalized})
