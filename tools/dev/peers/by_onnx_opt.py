"""This project, as a user runs it; `RECIPE` is the pipeline text."""

from __future__ import annotations

import sys

from _driver import Feed, main
from onnx_opt import optimize


def pipeline(model: str, feeds: list[Feed], out: str) -> None:
    """`onnx-opt MODEL --passes RECIPE --data CALIBRATION`, without its closing benchmark."""
    del feeds  # it reads the file itself, as the command line does
    optimize(model, sys.argv[1], out=out, data=sys.argv[3], bench=False, force=True)


if __name__ == "__main__":
    main({sys.argv[1]: pipeline})
