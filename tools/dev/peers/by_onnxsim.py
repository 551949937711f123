"""onnxsim's static quantization."""

from __future__ import annotations

import onnx
import onnxsim
from _driver import Feed, main


def static(model: str, feeds: list[Feed], out: str) -> None:
    """quantize_static with its defaults."""
    simplified, _ = onnxsim.simplify(onnx.load(model))
    onnx.save(onnxsim.quantize_static(simplified, feeds), out)


if __name__ == "__main__":
    main({"static": static})
