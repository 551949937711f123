"""Neural Compressor's ONNX half: static quantization with its CPU defaults."""

from __future__ import annotations

from _driver import Feed, Reader, main
from onnx_neural_compressor.quantization import QuantType, config, quantize


def static(model: str, feeds: list[Feed], out: str) -> None:
    """Static int8: u8 activations, s8 weights, per channel."""
    settings = config.StaticQuantConfig(
        calibration_data_reader=Reader(feeds),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        execution_provider="CPUExecutionProvider",
    )
    quantize(model, out, settings)


if __name__ == "__main__":
    main({"static": static})
