"""One hostile input: files, words of the command line, and what may come of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from onnx import helper, parser

REFUSED = frozenset({3})
DONE = frozenset({0})
EITHER = REFUSED | DONE
USAGE = frozenset({2})

QUICK = ("--passes", "simplify", "--verify", "never", "--no-bench", "--quiet")
"""Options of a run that runs no model."""

CHECKED = ("--passes", "simplify", "--no-bench", "--quiet")
"""Options of a run that runs the model to check the result."""

SMALL = """
<ir_version: 10, opset_import: ["" : 21]>
small (float[N, 4] x) => (float[N, 4] y)
<float[4, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}, float[4] b = {1, 2, 3, 4}>
{
    h = MatMul (x, w)
    a = Add (h, b)
    y = Relu (a)
}
"""


@dataclass(frozen=True)
class Case:
    """A command in a folder of its own.

    `files`: contents by name. `prepare`: makes what bytes cannot, such as links. `codes`: exit
    codes that are right. `says`: text that the error must hold. `seconds`: CPU time allowed.
    """

    name: str
    files: Mapping[str, bytes] = field(default_factory=dict)
    arguments: tuple[str, ...] = ("m.onnx", *QUICK)
    codes: frozenset[int] = REFUSED
    says: str = ""
    prepare: Callable[[Path], None] | None = None
    seconds: float = 20


def model_case(
    name: str,
    model: onnx.ModelProto | bytes,
    codes: frozenset[int] = REFUSED,
    options: tuple[str, ...] = QUICK,
    says: str = "",
    seconds: float = 20,
) -> Case:
    """A case of one model file."""
    content = model if isinstance(model, bytes) else model.SerializeToString()
    return Case(
        name,
        {"m.onnx": content},
        ("m.onnx", *options),
        codes,
        says,
        seconds=seconds,
    )


def small() -> onnx.ModelProto:
    """A small sound model, to be spoiled."""
    return parser.parse_model(SMALL)


def spoiled(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    """A small model after a change to it."""
    model = small()
    change(model)
    return model


def around(node: onnx.NodeProto, **replaced: object) -> onnx.ModelProto:
    """A model of one node that reads x and makes y, both float vectors."""
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
    )
    opsets = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, **replaced)
