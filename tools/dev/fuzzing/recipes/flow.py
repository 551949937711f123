"""Control flow, local functions, sequences and optional values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper

from ..builder import ANY, FLOATS, LOCAL, Builder, Rejected, Scope, Value, value_info
from .elementwise import _broadcasts
from .registry import MAX_DEPTH, grow, recipe


def _enter(b: Builder) -> None:
    if len(b.scopes) >= MAX_DEPTH:
        raise Rejected("deep enough")


def _declared(b: Builder, value: Value) -> onnx.ValueInfoProto:
    """Type of a value of a body, with its shape where that never changes and luck has it."""
    info = value_info(value.name, value.array)
    if not (b.is_static and b.chance(0.6)):
        info.type.tensor_type.ClearField("shape")
    return info


def _result(b: Builder, scope: Scope, dtype: str | None = None) -> Value:
    """A value that a node of the scope made."""
    made = {name for node in scope.nodes for name in node.output}
    fits = [v for v in scope.values if v.name in made and dtype in (None, v.dtype)]
    if fits and b.chance(0.85):
        return fits[-1] if b.chance(0.6) else b.one_of(fits)
    return b.node("Identity", [b.pick((dtype,) if dtype else ANY)])


def _graph(
    b: Builder,
    scope: Scope,
    name: str,
    inputs: Sequence[Value],
    outputs: Sequence[Value],
) -> onnx.GraphProto:
    if len({value.name for value in outputs}) < len(outputs):
        raise Rejected("an output twice")
    return helper.make_graph(
        scope.nodes,
        name,
        [_declared(b, value) for value in inputs],
        [_declared(b, value) for value in outputs],
        initializer=scope.initializers,
    )


@recipe(2.5)
def if_(b: Builder) -> None:
    _enter(b)
    condition = b.pick(("bool",), rank=(0,), fresh=0.3)
    dtype = b.one_of(["float32", "float32", "int64", "float64"])
    counter = b._counter
    graphs = []
    for name in ("then_branch", "else_branch"):
        # both may use the same names: they never see each other
        if b.chance(0.3):
            b._counter = counter if name == "else_branch" and not graphs else b._counter
        with b.body() as scope:
            grow(b, b.number(0, 3))
            graphs.append(_graph(b, scope, name, [], [_result(b, scope, dtype)]))
    b.node("If", [condition], then_branch=graphs[0], else_branch=graphs[1])


def _fitting(b: Builder, like: Value) -> Value:
    """A value that broadcasts to the shape of another without widening it."""
    fits = [
        v
        for v in b.visible()
        if v.dtype == like.dtype
        and v.rank <= like.rank
        and v.finite
        and _broadcasts(v.shape, like.shape)
        and np.broadcast_shapes(v.shape, like.shape) == like.shape
    ]
    return fits[-1] if b.chance(0.5) else b.one_of(fits)


@recipe(1.5)
def loop(b: Builder) -> None:
    _enter(b)
    start = b.pick(("float32", "float64", "int64"), rank=(0, 1, 2, 3))
    trips = np.asarray(b.number(0, 3), np.int64)
    count: Value = b.leaf(trips) if b.chance(0.4) else b.constant(trips)
    condition = b.pick(("bool",), rank=(0,)) if b.chance(0.3) else None
    with b.body() as scope:
        iteration = b.declare(np.asarray(0, np.int64))
        keep = b.declare(np.asarray(True))
        carried = b.declare(start.array, exact=False)
        grow(b, b.number(0, 3))
        total = b.node("Add", [carried, _fitting(b, carried)])
        following = total if total.dtype == "int64" else b.node("Tanh", [total])
        again = b.node("Identity", [keep])
        if b.chance(0.3):
            again = b.node("Less", [iteration, b.constant(np.asarray(1, np.int64))])
        outputs = [again, following]
        if b.chance(0.5):
            outputs.append(_result(b, scope))
        body = _graph(b, scope, "body", [iteration, keep, carried], outputs)
    b.nodes("Loop", [count, condition, start], len(outputs) - 1, body=body)


@recipe(1)
def scan(b: Builder) -> None:
    _enter(b)
    x = b.pick(("float32",), rank=(2, 3), test=lambda v: v.array.size > 0)
    start = b.leaf(b.array(x.dtype, x.shape[1:]))
    with b.body() as scope:
        carried = b.declare(start.array, exact=False)
        row = b.declare(x.array[0], exact=x.exact)
        grow(b, b.number(0, 2))
        following = b.node("Tanh", [b.node("Add", [carried, row])])
        outputs = [following, _result(b, scope)]
        body = _graph(b, scope, "body", [carried, row], outputs)
    b.nodes("Scan", [start, x], 2, body=body, num_scan_inputs=1)


@recipe(1.8)
def function(b: Builder) -> None:
    """A local function, new or known, and a call of it."""
    if any(scope.kind == "function" for scope in b.scopes) or len(b.scopes) > 2:
        raise Rejected("functions call no functions, to be inlined within bounds")
    if b.functions and b.chance(0.4):
        known = b.one_of(b.functions)
        arguments = [b.pick() for _ in known.input]
        extra = {"alpha": 0.3} if known.attribute else {}
        b.nodes(known.name, arguments, len(known.output), domain=LOCAL, **extra)
        return
    arguments = [b.pick() for _ in range(b.number(1, 2))]
    attributes = []
    with b.body("function") as scope:
        inputs = [b.declare(each.array, each.exact) for each in arguments]
        grow(b, b.number(1, 4))
        ends = [_result(b, scope, arguments[0].dtype)]
        nodes = list(scope.nodes)
        ends = [next(v for v in scope.values if v.name == end.name) for end in ends]
        if b.chance(0.4):
            slope = helper.make_node("LeakyRelu", [ends[0].name], [b.name("h")])
            # the value of the attribute comes from the call
            slope.attribute.add(
                name="alpha",
                ref_attr_name="alpha",
                type=onnx.AttributeProto.FLOAT,
            )
            nodes.append(slope)
            attributes = ["alpha"]
    output = nodes[-1].output[0] if attributes else ends[0].name
    domains = {node.domain for node in nodes}
    opsets = [helper.make_opsetid("", b.opset)]
    opsets += [helper.make_opsetid(domain, 1) for domain in sorted(domains - {""})]
    names = [value.name for value in inputs]
    made = helper.make_function(
        LOCAL, b.name("f"), names, [output], nodes, opsets, attributes
    )
    b.functions.append(made)
    extra = {"alpha": 0.25} if attributes else {}
    b.nodes(made.name, arguments, 1, domain=LOCAL, **extra)


@recipe(1.2)
def sequence(b: Builder) -> None:
    x = b.pick(FLOATS, rank=(1, 2, 3), test=lambda v: v.array.size > 0)
    made, out = b.name("s"), b.name("h")
    kind = b.random.random()
    if kind < 0.4:
        others = [v for v in b.visible() if v.dtype == x.dtype and v.shape == x.shape]
        parts = [x, *[b.one_of(others) for _ in range(b.number(1, 2))]]
        at = b.constant(np.asarray(b.number(-1, 1), np.int64))
        first = helper.make_node("SequenceConstruct", [v.name for v in parts], [made])
        if b.chance(0.5):
            second = helper.make_node("SequenceAt", [made, at.name], [out])
        else:
            extra = {"new_axis": b.number(0, 1)}
            second = helper.make_node(
                "ConcatFromSequence", [made], [out], axis=0, **extra
            )
        b.add([first, second])
    elif kind < 0.7:
        first = helper.make_node("SplitToSequence", [x.name], [made], axis=0)
        op = b.one_of(["SequenceLength", "ConcatFromSequence"])
        extra = {"axis": 0} if op == "ConcatFromSequence" else {}
        b.add([first, helper.make_node(op, [made], [out], **extra)])
    else:
        empty = b.name("s")
        dtype = helper.np_dtype_to_tensor_dtype(x.array.dtype)
        b.add(
            [
                helper.make_node("SequenceEmpty", [], [empty], dtype=dtype),
                helper.make_node("SequenceInsert", [empty, x.name], [made]),
                helper.make_node("ConcatFromSequence", [made], [out], axis=0),
            ]
        )


@recipe(0.6)
def optional(b: Builder) -> None:
    x = b.pick(FLOATS)
    made, out = b.name("o"), b.name("h")
    op = b.one_of(["OptionalGetElement", "OptionalHasElement"])
    b.add(
        [
            helper.make_node("Optional", [x.name], [made]),
            helper.make_node(op, [made], [out]),
        ]
    )
