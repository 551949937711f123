"""What the tests of importance share: models as text, solved, and their groups."""

import numpy as np
import onnx
import onnx_ir as ir
from onnx_opt.passes._channels.importance.scores import ScoreOptions
from onnx_opt.passes._dims.groups import channel_groups
from onnx_opt.passes._dims.rules import relate
from onnx_opt.passes._dims.solve import solve
from onnx_opt.passes._dims.trace import traced

RAW = ScoreOptions(normalise="none", aggregate="sum")


def solved(model):
    """(model, solution, groups) of a model or of text without its header."""
    if isinstance(model, str):
        model = ir.from_proto(
            onnx.parser.parse_model(
                f'<ir_version: 10, opset_import: ["" : 21]>\n{model}'
            )
        )
    solution = solve(relate(model, traced(model)))
    return model, solution, channel_groups(solution)


def mlp(w, v, middle="r = Relu (h)"):
    """X -> MatMul w -> middle -> MatMul v -> y; w (I, C) and v (C, O)."""
    w, v = np.asarray(w), np.asarray(v)
    return solved(f"""
        mlp (float[N, {w.shape[0]}] x) => (float[N, {v.shape[1]}] y)
        <float[{w.shape[0]}, {w.shape[1]}] w = {literal(w)}, float[{v.shape[0]},
            {v.shape[1]}] v = {literal(v)}>
        {{
            h = MatMul (x, w)
            {middle}
            y = MatMul (r, v)
        }}
        """)


def literal(array):
    """An array as the values of a tensor in ONNX text."""
    return (
        "{"
        + ", ".join(f"{float(value):.9g}" for value in np.asarray(array).reshape(-1))
        + "}"
    )
