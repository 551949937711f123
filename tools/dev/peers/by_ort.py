"""onnxruntime.quantization: its defaults, the settings its guide names for x64, and two recipes
made by hand.
"""

from __future__ import annotations

from pathlib import Path

from _driver import Feed, Reader, main
from _prepare import lifted_to_17
from onnxruntime.quantization import (
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process


def defaults(model: str, feeds: list[Feed], out: str) -> None:
    """quantize_static on the file as it is."""
    quantize_static(model, out, Reader(feeds))


def guide(model: str, feeds: list[Feed], out: str) -> None:
    """After quant_pre_process: u8 activations, s8 weights, per channel."""
    prepared = f"{out}.prepared.onnx"
    quant_pre_process(model, prepared)
    _static(prepared, feeds, out, None)


def matmul(model: str, feeds: list[Feed], out: str) -> None:
    """The guide's settings on MatMul and Gemm only, as is usual for transformers."""
    _static(_prepared(model, out), feeds, out, ["MatMul", "Gemm"])


def by_hand(model: str, feeds: list[Feed], out: str) -> None:
    """An expert's way: opset 17, weights lifted from Constant nodes, no symbolic shapes where
    they fail.
    """
    _static(_prepared(lifted_to_17(model, out), out), feeds, out, None)


def dynamic(model: str, feeds: list[Feed], out: str) -> None:
    """Weights in int8, activations quantized at run time."""
    quantize_dynamic(model, out, per_channel=True)


def _prepared(model: str, out: str) -> str:
    """quant_pre_process, without symbolic shapes where inferring them fails."""
    prepared = f"{out}.prepared.onnx"
    try:
        quant_pre_process(model, prepared)
    except (
        Exception
    ) as error:  # a bare Exception, or whatever the inference stumbles over
        print(f"symbolic shape inference failed: {error}")
        quant_pre_process(model, prepared, skip_symbolic_shape=True)
    return prepared


def _static(prepared: str, feeds: list[Feed], out: str, only: list[str] | None) -> None:
    quantize_static(
        prepared,
        out,
        Reader(feeds),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        op_types_to_quantize=only,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    Path(prepared).unlink()


if __name__ == "__main__":
    main(
        {
            "defaults": defaults,
            "guide": guide,
            "matmul": matmul,
            "by hand": by_hand,
            "dynamic": dynamic,
        }
    )
