"""AMD Quark's ONNX quantizer with its preset for u8 activations and s8 weights."""

from __future__ import annotations

from _driver import Feed, Reader, main
from quark.onnx import ModelQuantizer
from quark.onnx.quantization.config import Config, get_default_config


def u8s8(model: str, feeds: list[Feed], out: str) -> None:
    """Preset U8S8_AAWS, calibration by minimum and maximum."""
    ModelQuantizer(Config(global_quant_config=get_default_config("U8S8_AAWS"))).quantize_model(
        model, out, Reader(feeds))


if __name__ == "__main__":
    main({"u8s8": u8s8})
