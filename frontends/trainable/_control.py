"""If, Loop and Scan as Python's own `if`, `while` and `for`; their bodies see the values around
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from ... import RefusedError
from ._dtypes import carrier
from ._program import Known
from ._scope import Scope

if TYPE_CHECKING:
    from ._codegen import Emitter


def emit_constant(emitter: Emitter, node: ir.Node, scope: Scope) -> None:
    """A Constant node: nothing runs, its value becomes known."""
    value = node.outputs[0]
    attributes = scope.attributes_of(node)
    if not attributes:
        raise RefusedError(
            f"Constant {node.name}", "has no value", "export the model again"
        )
    ((name, content),) = attributes.items()
    tensor = (
        content.to_dense()
        if name == "sparse_value" and hasattr(content, "to_dense")
        else content
    )
    if name == "sparse_value" and not hasattr(content, "to_dense"):
        tensor = _dense(content)
    elif name in ("value_int", "value_ints"):
        tensor = ir.Tensor(np.array(content, np.int64))
    elif name in ("value_float", "value_floats"):
        tensor = ir.Tensor(np.array(content, np.float32))
    elif name in ("value_string", "value_strings"):
        array = np.array(content, dtype=object)
        scope.values[value] = Known(
            emitter.program.bind("text", array), ir.DataType.STRING
        )
        return
    scope.values[value] = emitter.constant(value, tensor)


def _dense(sparse: Any) -> ir.TensorProtocol:
    dims = [int(d) for d in sparse.dims]
    dense = np.zeros(dims, sparse.values.numpy().dtype)
    indices = sparse.indices.numpy()
    where = np.unravel_index(indices, dims) if indices.ndim == 1 else tuple(indices.T)
    dense[where] = sparse.values.numpy()
    return ir.Tensor(dense)


def emit_if(emitter: Emitter, node: ir.Node, scope: Scope) -> None:
    """Both branches as blocks that assign the same variables; a condition known by now takes its
    branch at once.
    """
    program = emitter.program
    condition = emitter.value(node.inputs[0], scope)
    assert condition is not None
    branches = [
        node.attributes[name].as_graph() for name in ("then_branch", "else_branch")
    ]
    if condition.constant is not None:
        graph = branches[0] if bool(condition.constant.reshape(-1)[0]) else branches[1]
        emitter.block(list(graph), scope, graph.outputs)
        emitter.hand_over(
            node, graph.outputs, [o for n in graph for o in n.outputs], scope, scope
        )
        return
    names = [program.fresh() for _ in node.outputs]
    program.line(
        f"if {condition.code if condition.host else f'bool({condition.code})'}:"
    )
    results = _branch(emitter, branches[0], names, scope)
    program.line("else:")
    others = _branch(emitter, branches[1], names, scope)
    for value, name, one, other in zip(
        node.outputs, names, results, others, strict=True
    ):
        emitter.define(value, _either(name, one, other), scope)


def _either(name: str, *choices: Known | None) -> Known:
    """A variable that holds one of several values."""
    present = [k for k in choices if k is not None]
    dtype = next((k.dtype for k in present if k.dtype is not None), None)
    gradient = any(k.gradient for k in present)
    cuts = (
        frozenset() if gradient else frozenset[Any]().union(*(k.cuts for k in present))
    )
    return Known(name, dtype, gradient=gradient, cuts=cuts)


def _branch(
    emitter: Emitter, graph: ir.Graph, names: list[str], scope: Scope
) -> list[Known | None]:
    program = emitter.program
    with program.indented():
        emitter.block(list(graph), scope, graph.outputs)
        results = [emitter.value(value, scope) for value in graph.outputs]
        for name, known in zip(names, results, strict=True):
            program.line(f"{name} = {_code(emitter, known)}")
        made = {o for node in graph for o in node.outputs} & set(graph.outputs)
        dead = {
            code
            for v in made
            if (code := scope.values[v].code) is not None and code.isidentifier()
        }
        if dead:
            program.line(f"del {', '.join(sorted(dead))}")
    return results


def _code(emitter: Emitter, known: Known | None) -> str:
    """A value as a tensor."""
    return "None" if known is None else emitter.program.tensor_code(known)


def emit_loop(emitter: Emitter, node: ir.Node, scope: Scope) -> None:
    """A while loop: at most M turns, as long as the condition holds; scan outputs are stacked."""
    program, body = emitter.program, node.attributes["body"].as_graph()
    limit, condition = (emitter.value(v, scope) for v in (*node.inputs, None, None)[:2])
    turn, going = program.fresh("turn"), program.fresh("going")
    tests = [going]
    if limit is not None:
        most = program.fresh("most")
        program.line(
            f"{most} = int({program.host_code(limit) if limit.hostable else limit.code})"
        )
        tests.append(f"{turn} < {most}")
    program.line(f"{turn} = 0")
    program.line(
        f"{going} = {'True' if condition is None else _truth(emitter, condition)}"
    )
    carried = [emitter.value(v, scope) for v in node.inputs[2:]]
    names = [program.fresh() for _ in carried]
    for name, known in zip(names, carried, strict=True):
        program.line(f"{name} = {_code(emitter, known)}")
    scans = [program.fresh("scan") for _ in body.outputs[1 + len(names) :]]
    for scan in scans:
        program.line(f"{scan} = []")
    program.line(f"while {' and '.join(tests)}:")
    with program.indented():
        scope.values[body.inputs[0]] = Known(turn, ir.DataType.INT64, host=True)
        if len(body.inputs) > 1:
            scope.values[body.inputs[1]] = Known(going, ir.DataType.BOOL, host=True)
        for value, name, known in zip(body.inputs[2:], names, carried, strict=True):
            scope.values[value] = replace(_either(name, known), type=value.type)
        emitter.block(list(body), scope, body.outputs)
        results = [emitter.value(v, scope) for v in body.outputs[1:]]
        again = emitter.value(body.outputs[0], scope)
        assert again is not None
        stop = program.fresh("going")
        program.line(f"{stop} = {_truth(emitter, again)}")
        _advance(emitter, names, scans, results)
        program.line(f"{going} = {stop}")
        program.line(f"{turn} = {turn} + 1")
    finals = [
        _either(name, *pair)
        for name, *pair in zip(names, carried, results, strict=False)
    ]
    _finish(
        emitter, node, body.outputs[1:], finals, scans, results, [0] * len(scans), scope
    )


def _truth(emitter: Emitter, known: Known) -> str:
    if known.hostable:
        return emitter.program.host_code(known)
    return f"bool({emitter.program.tensor_code(known)})"


def _advance(
    emitter: Emitter, names: list[str], scans: list[str], results: list[Known | None]
) -> None:
    """End of a turn: what is scanned is kept, what is carried moves on (all at once: outputs may
    swap inputs).
    """
    codes = [_code(emitter, known) for known in results]
    for scan, code in zip(scans, codes[len(names) :], strict=True):
        emitter.program.line(f"{scan}.append({code})")
    if names:
        emitter.program.line(f"{', '.join(names)} = {', '.join(codes[: len(names)])}")


def _finish(
    emitter: Emitter,
    node: ir.Node,
    outputs: Sequence[ir.Value],
    finals: list[Known],
    scans: list[str],
    results: list[Known | None],
    axes: list[int],
    scope: Scope,
) -> None:
    """What a loop gives: what it carried, then what it scanned, stacked."""
    stack = emitter.program.shared("stack", stack_scan)
    for value, final in zip(node.outputs, finals, strict=False):
        emitter.define(value, final, scope)
    for index, scan in enumerate(scans, len(finals)):
        known = _either(scan, results[index])
        dtype = carrier(known.dtype or ir.DataType.FLOAT)
        shape = _static_shape(outputs[index])
        emitter.program.line(
            f"{scan} = {stack}({scan}, {axes[index - len(finals)]}, {shape}, {dtype}, device)"
        )
        if index < len(node.outputs):
            emitter.define(node.outputs[index], known, scope)


def _static_shape(value: ir.Value) -> list[int]:
    return (
        [d if isinstance(d, int) else 0 for d in value.shape]
        if value.shape is not None
        else []
    )


def stack_scan(
    items: list[torch.Tensor],
    axis: int,
    shape: list[int],
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor:
    """What each turn gave, along a new axis; of no turns an empty tensor."""
    return (
        torch.stack(items, axis)
        if items
        else torch.empty([0, *shape], dtype=dtype, device=device)
    )


def emit_scan(emitter: Emitter, node: ir.Node, scope: Scope) -> None:
    """A for loop over slices of the scanned inputs. Opset 8's form has a batch axis in front of
    everything.
    """
    if scope.opset("") < 9:
        return _emit_batched_scan(emitter, node, scope)
    return _emit_scan(emitter, node, list(node.inputs), scope)


def _emit_scan(
    emitter: Emitter, node: ir.Node, inputs: list[ir.Value | None], scope: Scope
) -> None:
    program, body = emitter.program, node.attributes["body"].as_graph()
    attributes = scope.attributes_of(node)
    scanned = attributes["num_scan_inputs"]
    states = len(inputs) - scanned
    outputs = len(body.outputs) - states
    axes = attributes.get("scan_input_axes") or [0] * scanned
    backwards = attributes.get("scan_input_directions") or [0] * scanned
    carried = [emitter.value(v, scope) for v in inputs[:states]]
    sources = [
        (_code(emitter, known), known)
        for known in (emitter.value(v, scope) for v in inputs[states:])
    ]
    names = [program.fresh() for _ in carried]
    for name, known in zip(names, carried, strict=True):
        program.line(f"{name} = {_code(emitter, known)}")
    scans = [program.fresh("scan") for _ in range(outputs)]
    for scan in scans:
        program.line(f"{scan} = []")
    turn, count = program.fresh("turn"), f"{sources[0][0]}.shape[{axes[0]}]"
    program.line(f"for {turn} in range({count}):")
    with program.indented():
        for value, name, known in zip(body.inputs, names, carried, strict=False):
            scope.values[value] = _either(name, known)
        for value, (code, known), axis, back in zip(
            body.inputs[states:], sources, axes, backwards, strict=True
        ):
            part = program.fresh()
            place = f"{code}.shape[{axis}] - 1 - {turn}" if back else turn
            program.line(f"{part} = {code}.select({axis}, {place})")
            scope.values[value] = _either(part, known)
        emitter.block(list(body), scope, body.outputs)
        results = [emitter.value(v, scope) for v in body.outputs]
        _advance(emitter, names, scans, results)
    for scan, back in zip(
        scans, attributes.get("scan_output_directions") or [0] * outputs, strict=True
    ):
        if back:
            program.line(f"{scan}.reverse()")
    out_axes = attributes.get("scan_output_axes") or [0] * outputs
    finals = [
        _either(name, *pair)
        for name, *pair in zip(names, carried, results, strict=False)
    ]
    _finish(emitter, node, body.outputs, finals, scans, results, out_axes, scope)


def _emit_batched_scan(emitter: Emitter, node: ir.Node, scope: Scope) -> None:
    raise RefusedError(
        f"Scan {node.name}",
        "the batched Scan of opset 8 is not supported",
        "convert the model to opset 9 or later",
    )


EMITTERS: dict[str, Callable[[Emitter, ir.Node, Scope], None]] = {
    "If": emit_if,
    "Loop": emit_loop,
    "Scan": emit_scan,
}
