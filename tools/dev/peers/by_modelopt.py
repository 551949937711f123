"""NVIDIA ModelOpt's ONNX quantization, calibrated on the CPU."""

from __future__ import annotations

import modelopt.onnx.quantization
import numpy as np
from _driver import Feed, main


def int8(model: str, feeds: list[Feed], out: str) -> None:
    """int8 with its default calibration (entropy)."""
    modelopt.onnx.quantization.quantize(
        onnx_path=model, quantize_mode="int8", output_path=out, calibration_eps=["cpu"],
        calibration_data={name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]})


if __name__ == "__main__":
    main({"int8": int8})
