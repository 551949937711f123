"""Graphs that are none: cycles, undefined and repeated names, functions that never end."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx
from onnx import TensorProto, helper

from .case import EITHER, QUICK, Case, model_case, small, spoiled

Change = Callable[[onnx.ModelProto], object]


def cases() -> Iterator[Case]:
    """Models whose parts do not fit together."""
    for what, change in (*_NAMES.items(), *_VERSIONS.items(), *_ATTRIBUTES.items()):
        yield model_case(f"structure: {what}", spoiled(change))
    twice = spoiled(lambda m: m.graph.output.append(m.graph.output[0]))
    # the checker and the runtime take it
    yield model_case("structure: an output twice", twice, EITHER)
    yield from _functions()
    yield from _deep()


def _replace_input(node: int, index: int, name: str) -> Change:
    return lambda m: m.graph.node[node].input.__setitem__(index, name)


_NAMES: dict[str, Change] = {
    "a node reads its own output": _replace_input(2, 0, "y"),
    "two nodes read each other": _replace_input(0, 0, "a"),
    "a cycle through all nodes": _replace_input(0, 0, "y"),
    "an undefined value": _replace_input(0, 1, "ghost"),
    "a required input is empty": _replace_input(2, 0, ""),
    "an output that nothing makes": lambda m: setattr(m.graph.output[0], "name", "no"),
    "an input twice": lambda m: m.graph.input.append(m.graph.input[0]),
    "a nameless input": lambda m: setattr(m.graph.input[0], "name", ""),
    "an input without a type": lambda m: m.graph.input[0].ClearField("type"),
    "an initializer twice": lambda m: m.graph.initializer.append(
        m.graph.initializer[0]
    ),
    "a nameless initializer": lambda m: setattr(m.graph.initializer[0], "name", ""),
    "an initializer named as a node's output": lambda m: setattr(
        m.graph.initializer[0], "name", "h"
    ),
    "a node's output named as an input": lambda m: m.graph.node[0].output.__setitem__(
        0, "x"
    ),
    "a node twice": lambda m: m.graph.node.append(m.graph.node[0]),
    "a node without an operator": lambda m: setattr(m.graph.node[0], "op_type", ""),
    "an unknown operator": lambda m: setattr(m.graph.node[0], "op_type", "Frobnicate"),
    "too many inputs": lambda m: m.graph.node[2].input.append("x"),
    "too few inputs": lambda m: m.graph.node[0].input.pop(),
    "too many outputs": lambda m: m.graph.node[0].output.append("more"),
    "no outputs": lambda m: m.graph.node[2].ClearField("output"),
    "an input of unknown type": lambda m: setattr(
        m.graph.input[0].type.tensor_type, "elem_type", 99
    ),
    "an input that is a map": lambda m: setattr(
        m.graph.input[0].type.map_type, "key_type", 7
    ),
    "an input that is a sequence of nothing": lambda m: m.graph.input[
        0
    ].type.sequence_type.SetInParent(),
    "no graph": lambda m: m.ClearField("graph"),
    "training info": lambda m: m.training_info.add(),
}

_VERSIONS: dict[str, Change] = {
    **{
        f"IR version {version}": lambda m, v=version: setattr(m, "ir_version", v)
        for version in (-1, 0, 1, 2, 99, 2**62)
    },
    **{
        f"opset {version}": lambda m, v=version: setattr(
            m.opset_import[0], "version", v
        )
        for version in (-1, 0, onnx.defs.onnx_opset_version() + 1, 9999, 2**31, 2**62)
    },
    "no opset": lambda m: m.ClearField("opset_import"),
    "an opset twice, differently": lambda m: m.opset_import.add(domain="", version=7),
    "an opset twice, in two spellings": lambda m: m.opset_import.add(
        domain="ai.onnx", version=7
    ),
}

A = onnx.AttributeProto
_ATTRIBUTES: dict[str, Change] = {
    "an attribute twice": lambda m: m.graph.node[0].attribute.extend(
        [A(name="a", type=A.INT, i=1), A(name="a", type=A.INT, i=2)]
    ),
    "an unknown attribute": lambda m: m.graph.node[0].attribute.add(
        name="axis", type=A.INT, i=1
    ),
    "an attribute of no type": lambda m: m.graph.node[0].attribute.add(name="axis"),
    "an attribute that holds another type": lambda m: m.graph.node[0].attribute.add(
        name="axis", type=A.INT, f=1.0
    ),
    "an attribute that holds two": lambda m: m.graph.node[0].attribute.add(
        name="axis", type=A.INT, i=1, f=1.0
    ),
    "an operator that lacks an attribute": lambda m: m.graph.node[2].CopyFrom(
        helper.make_node("Cast", ["a"], ["y"])
    ),
}


def calling(calls: dict[str, list[str]], depth: int = 0) -> onnx.ModelProto:
    """A model with functions by name, each calling others one after another; it calls the first.

    `depth`: Ifs around each call.
    """
    model = small()
    model.opset_import.add(domain="f", version=1)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("f", 1)]
    for name, callees in calls.items():
        nodes = []
        for index, callee in enumerate(callees):
            nodes.append(
                helper.make_node(callee, [f"v{index}"], [f"v{index + 1}"], domain="f")
            )
        if not nodes:
            nodes.append(helper.make_node("Neg", ["v0"], ["v1"]))
        last = nodes[-1].output[0]
        for level in range(depth):
            nodes = _in_if(nodes, last, level)
        function = helper.make_function("f", name, ["v0"], [last], nodes, opsets)
        model.functions.append(function)
    model.graph.node.append(
        helper.make_node(next(iter(calls)), ["x"], ["z"], domain="f")
    )
    return model


def _in_if(nodes: list[onnx.NodeProto], last: str, level: int) -> list[onnx.NodeProto]:
    """Nodes that compute `last` in both branches of an If."""
    output = helper.make_tensor_value_info(last, TensorProto.FLOAT, None)
    body = helper.make_graph(nodes, f"b{level}", [], [output])
    for node in body.node:
        for index, name in enumerate(node.output):
            node.output[index] = f"{name}_{level}"
    body.output[0].name = f"{last}_{level}"
    yes = helper.make_tensor("c", TensorProto.BOOL, [], [1])
    return [
        helper.make_node("Constant", [], [f"c{level}"], value=yes),
        helper.make_node(
            "If", [f"c{level}"], [last], then_branch=body, else_branch=body
        ),
    ]


def _functions() -> Iterator[Case]:
    chain = {f"f{i}": [f"f{i + 1}"] for i in range(3000)} | {"f3000": []}
    twice = {f"f{i}": [f"f{i + 1}"] * 2 for i in range(40)} | {"f40": []}
    hidden = {"unused": []} | twice
    shapes = {
        "calls itself": {"f": ["f"]},
        "two call each other": {"f": ["g"], "g": ["f"]},
        "three call each other": {"f": ["g"], "g": ["h"], "h": ["f"]},
        "a cycle behind a chain": {"f": ["g"], "g": ["h"], "h": ["h"]},
        "a chain of 3,000": chain,
        "doubling 40 times": twice,
        "doubling in functions that nothing calls": hidden,
    }
    for what, calls in shapes.items():
        yield model_case(f"structure: function {what}", calling(calls))
    for length in (10, 100, 199):
        short = {f"f{i}": [f"f{i + 1}"] for i in range(length)} | {f"f{length}": []}
        model = calling(short)
        yield model_case(f"structure: a chain of {length} functions", model, EITHER)
    ten = {f"f{i}": [f"f{i + 1}"] * 2 for i in range(10)} | {"f10": []}
    yield model_case("structure: functions that double 10 times", calling(ten), EITHER)
    wide = {"f": ["g"] * 1000, "g": ["h"] * 1000, "h": ["k"] * 1000, "k": []}
    yield model_case("structure: functions of 10^9 nodes", calling(wide))
    model = calling({"f": []})
    model.functions.append(model.functions[0])
    yield model_case("structure: a function twice", model)
    model = calling({"f": []})
    model.functions[0].output[0] = "ghost"
    yield model_case("structure: a function without its output", model)
    model = calling({"f": []})
    model.functions[0].input.append("v0")
    yield model_case("structure: a function with an input twice", model)
    model = calling({"f": []})
    model.functions[0].node[0].op_type = "Frobnicate"
    yield model_case("structure: a function of an unknown operator", model)
    yield model_case("structure: a recursion through Ifs", calling({"f": ["f"]}, 2))


def _field(number: int, content: bytes) -> bytes:
    """A protobuf field of bytes: protobuf itself refuses to write what nests too deep."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def nested_ifs(depth: int) -> bytes:
    """A model of Ifs inside Ifs, each of whose branches holds the next."""
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    node = helper.make_node("Identity", ["x"], ["y"])
    body = helper.make_graph([node], "b", [], [output]).SerializeToString()
    for level in range(depth):
        branches = b""
        for name in ("then_branch", "else_branch"):
            # AttributeProto: name 1, g 6, type 20 (varint)
            attribute = _field(1, name.encode()) + _field(6, body)
            attribute += _varint(20 << 3) + _varint(onnx.AttributeProto.GRAPH)
            branches += _field(5, attribute)
            # the other branch stays small: otherwise the file doubles at every level
            inner = helper.make_graph([node], "b", [], [output])
            inner.node[0].output[0] = inner.output[0].name = f"e{level}"
            body, kept = inner.SerializeToString(), body
        name = f"y{level}".encode()
        call = _field(1, b"c") + _field(2, name) + _field(4, b"If") + branches
        graph = _field(1, call) + _field(2, b"b")
        result = helper.make_tensor_value_info(f"y{level}", TensorProto.FLOAT, [4])
        body = graph + _field(12, result.SerializeToString())
        del kept
    model = small()
    model.graph.node.append(helper.make_node("Not", ["c0"], ["c"]))
    encoded = model.graph.SerializeToString()
    encoded += _field(
        5, helper.make_tensor("c0", TensorProto.BOOL, [], [0]).SerializeToString()
    )
    call = _field(1, b"c") + _field(2, b"z") + _field(4, b"If") + branches
    model.ClearField("graph")
    return model.SerializeToString() + _field(7, encoded + _field(1, call))


def _deep() -> Iterator[Case]:
    for depth in (2, 10, 24):
        yield model_case(f"structure: {depth} nested Ifs", nested_ifs(depth), EITHER)
    for depth in (33, 40, 100, 1000, 5000):
        yield model_case(f"structure: {depth} nested Ifs", nested_ifs(depth))
    for depth in (10, 40, 2000):
        for field, kind in ((4, "sequences"), (9, "optionals")):
            # TypeProto: tensor_type 1, sequence_type 4, optional_type 9; elem_type 1
            kind_bytes = _field(1, b"\x08\x01")
            for _ in range(depth):
                kind_bytes = _field(field, _field(1, kind_bytes))
            model = small()
            encoded = model.graph.SerializeToString()
            encoded += _field(11, _field(1, b"deep") + _field(2, kind_bytes))
            model.ClearField("graph")
            content = model.SerializeToString() + _field(7, encoded)
            name = f"structure: {depth} nested {kind}"
            yield model_case(name, content, EITHER, QUICK)
