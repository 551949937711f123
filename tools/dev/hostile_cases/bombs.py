"""Small files that ask for much: memory, nodes, time."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto, helper, parser

from .case import CHECKED, EITHER, QUICK, Case, model_case

HEADER = '<ir_version: 10, opset_import: ["" : 21]>'
BIG = 2**40

FOLDING = {
    "Expand": f"s = Constant <value = int64[1] {{{BIG}}}> () y = Expand (one, s)",
    "ConstantOfShape": (
        f"s = Constant <value = int64[1] {{{BIG}}}> () y = ConstantOfShape (s)"
    ),
    "ConstantOfShape of 2^62 twice": (
        f"s = Constant <value = int64[2] {{{2**62}, {2**62}}}> ()"
        " y = ConstantOfShape (s)"
    ),
    "ConstantOfShape of a negative size": (
        "s = Constant <value = int64[1] {-5}> () y = ConstantOfShape (s)"
    ),
    "Range": (
        "a = Constant <value = float {0}> () b = Constant <value = float {1e12}> ()"
        " c = Constant <value = float {1}> () y = Range (a, b, c)"
    ),
    "Range of step 0": (
        "a = Constant <value = float {0}> () b = Constant <value = float {1e12}> ()"
        " c = Constant <value = float {0}> () y = Range (a, b, c)"
    ),
    "Range to infinity": (
        "a = Constant <value = float {0}> () b = Constant <value = float {1e38}> ()"
        " d = Mul (b, b) c = Constant <value = float {1}> () y = Range (a, d, c)"
    ),
    "Tile": f"s = Constant <value = int64[1] {{{BIG}}}> () y = Tile (one, s)",
    "Pad": f"s = Constant <value = int64[2] {{0, {BIG}}}> () y = Pad (one, s)",
    "negative Pad": "s = Constant <value = int64[2] {-9, -9}> () y = Pad (one, s)",
    "OneHot": (
        f"i = Constant <value = int64[1] {{0}}> () d = Constant <value = int64 {{{BIG}}}> ()"
        " v = Constant <value = float[2] {0, 1}> () y = OneHot (i, d, v)"
    ),
    "Resize": (
        "e = Constant <value = float[0] {}> ()"
        " s = Constant <value = float[1] {1e12}> () y = Resize (one, e, s)"
    ),
    "Upsample by Resize to sizes": (
        f"s = Constant <value = int64[1] {{{BIG}}}> () y = Resize (one, , , s)"
    ),
    "EyeLike": (
        f"s = Constant <value = int64[2] {{{2**20}, {2**20}}}> ()"
        " z = ConstantOfShape (s) y = EyeLike (z)"
    ),
    "RandomUniform": f"y = RandomUniform <shape = [{BIG}]> ()",
    "an outer product": (
        f"s = Constant <value = int64[2] {{{2**20}, 1}}> () c = ConstantOfShape (s)"
        " t = Transpose (c) y = MatMul (c, t)"
    ),
    "a broadcast sum": (
        f"s = Constant <value = int64[2] {{{2**20}, 1}}> () c = ConstantOfShape (s)"
        " t = Transpose (c) y = Add (c, t)"
    ),
    "CumSum of an expansion": (
        f"s = Constant <value = int64[1] {{{2**31}}}> () e = Expand (one, s)"
        " z = Constant <value = int64 {0}> () y = CumSum (e, z)"
    ),
    "HannWindow": f"n = Constant <value = int64 {{{BIG}}}> () y = HannWindow (n)",
    "MelWeightMatrix": (
        f"a = Constant <value = int64 {{{2**30}}}> () r = Constant <value = int64 {{8000}}> ()"
        " l = Constant <value = float {0}> () h = Constant <value = float {4000}> ()"
        " y = MelWeightMatrix (a, a, r, l, h)"
    ),
}
"""Bodies that make y of constants alone; `one` is a vector of one element."""


def folding(body: str) -> onnx.ModelProto:
    """A model whose second output is y, of constants alone."""
    return parser.parse_model(
        f"{HEADER} bomb (float[4] x) => (float[4] z, float y)"
        f" <float[1] one = {{1}}> {{ z = Neg (x) {body} }}"
    )


def _untyped(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same, its second output without a shape."""
    for info in model.graph.output[1:]:
        info.type.tensor_type.ClearField("shape")
    return model


def doubling(operator: str, times: int, last: str = "") -> onnx.ModelProto:
    """A constant that is joined with itself again and again."""
    lines = []
    for step in range(times):
        if operator == "Concat":
            lines.append(f"d{step + 1} = Concat <axis = 0> (d{step}, d{step})")
        else:
            lines.append(f"d{step + 1} = {operator} (d{step}, d{step})")
    end = last or f"y = Identity (d{times})"
    start = "d0 = Constant <value = float[2] {1, 2}> ()"
    return _untyped(folding(" ".join([start, *lines, end.format(f"d{times}")])))


def loop(trips: str, body: str = "keep = Identity (going)") -> onnx.ModelProto:
    """A Loop of so many trips that doubles its state."""
    return parser.parse_model(
        f"""{HEADER} endless (float[4] x) => (float[4] z, float[N] y)
        <int64 trips = {{{trips}}}, bool go = {{1}}, float[1] one = {{1}}>
        {{
            z = Neg (x)
            y = Loop (trips, go, one) <body = b (int64 i, bool going, float[M] s)
                => (bool keep, float[K] t) {{ {body} t = Concat <axis = 0> (s, s) }}>
        }}"""
    )


def chain(length: int, operators: tuple[str, ...]) -> onnx.ModelProto:
    """Nodes in a row."""
    nodes = []
    for index in range(length):
        operator = operators[index % len(operators)]
        inputs = [f"v{index}"]
        if operator in ("Add", "Mul", "MatMul"):
            inputs.append("c" if operator != "MatMul" else "m")
        nodes.append(helper.make_node(operator, inputs, [f"v{index + 1}"]))
    constants = [
        helper.make_tensor("c", TensorProto.FLOAT, [8], [0.5] * 8),
        helper.make_tensor("m", TensorProto.FLOAT, [8, 8], [0.1] * 64),
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("v0", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info(f"v{length}", TensorProto.FLOAT, [1, 8])],
        constants,
    )
    opsets = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def equal_nodes(count: int) -> onnx.ModelProto:
    """Many nodes that compute the same, all of them summed."""
    nodes = [helper.make_node("Sigmoid", ["x"], [f"s{i}"]) for i in range(count)]
    nodes.append(helper.make_node("Sum", [f"s{i}" for i in range(count)], ["y"]))
    graph = helper.make_graph(
        nodes,
        "equal",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    )
    opsets = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def cases() -> Iterator[Case]:
    """Bombs of folding, endless loops, and long chains with and without checks."""
    for what, body in FOLDING.items():
        model = _untyped(folding(body))
        for how, options in (("quick", QUICK), ("checked", CHECKED)):
            name = f"bombs: {what}, {how}"
            yield model_case(name, model, EITHER, options, seconds=60)
        yield model_case(f"bombs: {what}, inspected", model, EITHER, (), seconds=30)
    for operator in ("Concat", "Add", "Mul"):
        for times in (30, 62, 1000):
            model = doubling(operator, times)
            name = f"bombs: {operator} doubled {times} times"
            yield model_case(name, model, EITHER, QUICK, seconds=60)
    for trips in ("9223372036854775807", "4294967296", "-1", "0"):
        name = f"bombs: a loop of {trips} trips"
        yield model_case(name, loop(trips), EITHER, QUICK, seconds=60)
    for length in (1_000, 5_000):
        for kind in (("Relu",), ("Neg",), ("Identity",), ("Add", "Mul"), ("MatMul",)):
            name = f"bombs: a chain of {length} {'+'.join(kind)}"
            yield model_case(name, chain(length, kind), EITHER, QUICK, seconds=60)
    # what the runtime runs: checked as by default
    kinds = ("Relu", "Neg", "Abs", "Sigmoid", "Tanh")
    long = chain(20_000, kinds)
    yield model_case("bombs: a chain of 20,000, checked", long, EITHER, CHECKED, "", 60)
    yield model_case(
        "bombs: 5,000 equal nodes", equal_nodes(5000), EITHER, CHECKED, "", 60
    )
