"""NNCF on ONNX: its defaults, and the model type it has for transformers."""

from __future__ import annotations

import nncf
import onnx
from _driver import Feed, main


def defaults(model: str, feeds: list[Feed], out: str) -> None:
    """nncf.quantize as its readme shows it."""
    _quantize(model, feeds, out, None)


def transformer(model: str, feeds: list[Feed], out: str) -> None:
    """The same with model_type=TRANSFORMER."""
    _quantize(model, feeds, out, nncf.ModelType.TRANSFORMER)


def _quantize(
    model: str, feeds: list[Feed], out: str, kind: nncf.ModelType | None
) -> None:
    quantized = nncf.quantize(
        onnx.load(model), nncf.Dataset(feeds), model_type=kind, subset_size=len(feeds)
    )
    onnx.save(quantized, out)


if __name__ == "__main__":
    main({"defaults": defaults, "transformer": transformer})
