"""If, Loop and Scan as Python's own `if`, `while` and `for`; their bodies see the values around
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
import torch

from ... import RefusedError
from ...passes._core.graph import label
from ._dtypes import carrier
from ._program import Known, Program
from ._scope import Scope


class BlockWriter(Protocol):
    """Writer of the nodes around a body, as control flow needs it; `Emitter` is one."""

    program: Program

    def block(
        self, nodes: Sequence[ir.Node], scope: Scope, kept: Sequence[ir.Value | None]
    ) -> None:
        """Write nodes in order."""

    def value(self, value: ir.Value | None, scope: Scope) -> Known | None:
        """Look a value up; None for one that is left out."""

    def constant(self, value: ir.Value, tensor: ir.TensorProtocol) -> Known:
        """Make a constant known."""

    def define(self, value: ir.Value, known: Known, scope: Scope) -> None:
        """Make an output known."""

    def hand_over(
        self,
        node: ir.Node,
        results: Sequence[ir.Value],
        made: Sequence[ir.Value],
        inner: Scope,
        scope: Scope,
    ) -> None:
        """Make the results of a body the outputs of its node."""


# --- constants ---------------------------------------------------------------------


def emit_constant(writer: BlockWriter, node: ir.Node, scope: Scope) -> None:
    """Make the value of a Constant node known; nothing runs."""
    value = node.outputs[0]
    attributes = scope.attributes_of(node)
    if not attributes:
        raise RefusedError(label(node), "has no value", "export the model again")
    ((name, content),) = attributes.items()
    if name in ("value_string", "value_strings"):
        array = np.array(content, dtype=object)
        code = writer.program.bind("text", array)
        scope.values[value] = Known(code, ir.DataType.STRING)
        return
    tensor = _constant_tensor(name, content)
    scope.values[value] = writer.constant(value, tensor)


def _constant_tensor(name: str, content: Any) -> ir.TensorProtocol:
    """Return the tensor that an attribute of a Constant node describes."""
    if name in ("value_int", "value_ints"):
        return ir.Tensor(np.array(content, np.int64))
    if name in ("value_float", "value_floats"):
        return ir.Tensor(np.array(content, np.float32))
    if name == "sparse_value":
        return _dense(content)
    tensor: ir.TensorProtocol = content
    return tensor


def _dense(sparse: Any) -> ir.TensorProtocol:
    """Return a sparse tensor with its zeros."""
    if hasattr(sparse, "to_dense"):
        dense: ir.TensorProtocol = sparse.to_dense()
        return dense
    dims = [int(size) for size in sparse.dims]
    values = sparse.values.numpy()
    array = np.zeros(dims, values.dtype)
    indices = sparse.indices.numpy()
    if indices.ndim == 1:
        array.reshape(-1)[indices] = values
    else:
        # one row of coordinates a value
        array[tuple(indices.T)] = values
    return ir.Tensor(array)


# --- If ----------------------------------------------------------------------------


def emit_if(writer: BlockWriter, node: ir.Node, scope: Scope) -> None:
    """Write both branches as blocks that assign the same variables.

    A condition known by now takes its branch at once.
    """
    program = writer.program
    condition = writer.value(node.inputs[0], scope)
    assert condition is not None
    then_branch = node.attributes["then_branch"].as_graph()
    else_branch = node.attributes["else_branch"].as_graph()
    if condition.constant is not None:
        holds = bool(condition.constant.reshape(-1)[0])
        branch = then_branch if holds else else_branch
        _emit_branch_alone(writer, node, branch, scope)
        return
    names = [program.fresh() for _ in node.outputs]
    code = condition.code if condition.host else f"bool({condition.code})"
    program.line(f"if {code}:")
    results = _branch(
        writer,
        then_branch,
        names,
        scope,
    )
    program.line("else:")
    others = _branch(
        writer,
        else_branch,
        names,
        scope,
    )
    for value, name, one, other in zip(
        node.outputs,
        names,
        results,
        others,
        strict=True,
    ):
        writer.define(value, _either(name, one, other), scope)


def _emit_branch_alone(
    writer: BlockWriter, node: ir.Node, branch: ir.Graph, scope: Scope
) -> None:
    """Write a branch in place of its If."""
    made = _made_in(branch)
    writer.block(list(branch), scope, branch.outputs)
    writer.hand_over(
        node,
        branch.outputs,
        made,
        scope,
        scope,
    )


def _made_in(graph: ir.Graph) -> list[ir.Value]:
    """List the values that the nodes of a graph make."""
    made: list[ir.Value] = []
    for node in graph:
        made.extend(node.outputs)
    return made


def _either(name: str, *choices: Known | None) -> Known:
    """Return a variable that holds one of several values."""
    dtype = None
    gradient = False
    cuts: set[Any] = set()
    for known in choices:
        if known is None:
            continue
        # the first that is known speaks for all: branches agree in their types
        if dtype is None:
            dtype = known.dtype
        gradient = gradient or known.gradient
        cuts.update(known.cuts)
    if gradient:
        return Known(name, dtype, gradient=True)
    return Known(name, dtype, cuts=frozenset(cuts))


def _branch(
    writer: BlockWriter, graph: ir.Graph, names: list[str], scope: Scope
) -> list[Known | None]:
    """Write a branch that assigns its outputs to `names`, and return them."""
    program = writer.program
    with program.indented():
        writer.block(list(graph), scope, graph.outputs)
        results = [writer.value(value, scope) for value in graph.outputs]
        for name, known in zip(names, results, strict=True):
            program.line(f"{name} = {_code(writer, known)}")
        # outputs were kept alive to the end of the block, and have other names by now
        dead = set()
        made_here = set(_made_in(graph))
        for value in made_here & set(graph.outputs):
            code = scope.values[value].code
            if code is not None and code.isidentifier():
                dead.add(code)
        if dead:
            variables = ", ".join(sorted(dead))
            program.line(f"del {variables}")
    return results


def _code(writer: BlockWriter, known: Known | None) -> str:
    """Return the code of a value as a tensor."""
    if known is None:
        return "None"
    return writer.program.tensor_code(known)


# --- Loop --------------------------------------------------------------------------


@dataclass
class LoopVariables:
    """Variables of a loop: `names` hold the values that it carries, `initial` what they start as.

    `scans`: lists that collect what each turn gives.
    """

    names: list[str]
    initial: list[Known | None]
    scans: list[str]

    def finals(self, results: Sequence[Known | None]) -> list[Known]:
        """Return what is carried after the last turn: as it began, if there was no turn."""
        # results hold the scanned values too, behind the carried ones
        found = []
        for name, first, last in zip(self.names, self.initial, results, strict=False):
            found.append(_either(name, first, last))
        return found


def _open_loop(
    writer: BlockWriter, carried: Sequence[ir.Value | None], scans: int, scope: Scope
) -> LoopVariables:
    """Assign the variables of a loop: what it carries in, and `scans` empty lists."""
    program = writer.program
    initial = [writer.value(value, scope) for value in carried]
    names = [program.fresh() for _ in initial]
    for name, known in zip(names, initial, strict=True):
        code = _code(writer, known)
        program.line(f"{name} = {code}")
    lists = [program.fresh("scan") for _ in range(scans)]
    for name in lists:
        program.line(f"{name} = []")
    return LoopVariables(names, initial, lists)


def emit_loop(writer: BlockWriter, node: ir.Node, scope: Scope) -> None:
    """Write a while loop: at most M turns, as long as the condition holds.

    Scan outputs are stacked.
    """
    program = writer.program
    body = node.attributes["body"].as_graph()
    limit, condition = _limit_and_condition(writer, node, scope)
    turn = program.fresh("turn")
    going = program.fresh("going")
    tests = [going]
    if limit is not None:
        most = program.fresh("most")
        code = program.host_code(limit) if limit.hostable else limit.code
        program.line(f"{most} = int({code})")
        tests.append(f"{turn} < {most}")
    program.line(f"{turn} = 0")
    start = "True" if condition is None else _truth(writer, condition)
    program.line(f"{going} = {start}")
    # the body gives its condition first, then what it carries, then what is scanned
    initial = node.inputs[2:]
    scans = len(body.outputs) - 1 - len(initial)
    # what is carried lives in variables that each turn assigns anew
    carried = _open_loop(
        writer,
        initial,
        scans,
        scope,
    )
    program.line(f"while {' and '.join(tests)}:")
    with program.indented():
        _enter_turn(
            body,
            turn,
            going,
            carried,
            scope,
        )
        writer.block(list(body), scope, body.outputs)
        results = [writer.value(value, scope) for value in body.outputs[1:]]
        again = writer.value(body.outputs[0], scope)
        assert again is not None
        # The condition is read before anything moves on: it may be one of the values
        # that are carried.
        stop = program.fresh("going")
        program.line(f"{stop} = {_truth(writer, again)}")
        _advance(writer, carried, results)
        program.line(f"{going} = {stop}")
        program.line(f"{turn} = {turn} + 1")
    axes = [0] * scans
    _finish(
        writer,
        node,
        body.outputs[1:],
        carried,
        results,
        axes,
        scope,
    )


def _limit_and_condition(
    writer: BlockWriter, node: ir.Node, scope: Scope
) -> tuple[Known | None, Known | None]:
    """Return the first two inputs of a Loop, either of which may be left out."""
    given: list[Known | None] = [None, None]
    for index, value in enumerate(node.inputs[:2]):
        given[index] = writer.value(value, scope)
    return given[0], given[1]


def _enter_turn(
    body: ir.Graph, turn: str, going: str, carried: LoopVariables, scope: Scope
) -> None:
    """Make the inputs of a Loop's body known: turn, condition, and what is carried."""
    number = Known(turn, ir.DataType.INT64, host=True)
    scope.values[body.inputs[0]] = number
    if len(body.inputs) > 1:
        condition = Known(going, ir.DataType.BOOL, host=True)
        scope.values[body.inputs[1]] = condition
    for value, name, known in zip(
        body.inputs[2:],
        carried.names,
        carried.initial,
        strict=True,
    ):
        # no shape: it may change from turn to turn
        variable = _either(name, known)
        scope.values[value] = replace(variable, type=value.type)


def _truth(writer: BlockWriter, known: Known) -> str:
    if known.hostable:
        return writer.program.host_code(known)
    return f"bool({writer.program.tensor_code(known)})"


def _advance(
    writer: BlockWriter, carried: LoopVariables, results: Sequence[Known | None]
) -> None:
    """End a turn: what is scanned is kept, what is carried moves on."""
    program = writer.program
    codes = [_code(writer, known) for known in results]
    count = len(carried.names)
    moving = codes[:count]
    scanned = codes[count:]
    for scan, code in zip(carried.scans, scanned, strict=True):
        program.line(f"{scan}.append({code})")
    if moving:
        # all at once, since outputs may swap inputs
        targets = ", ".join(carried.names)
        values = ", ".join(moving)
        program.line(f"{targets} = {values}")


def _finish(
    writer: BlockWriter,
    node: ir.Node,
    outputs: Sequence[ir.Value],
    carried: LoopVariables,
    results: Sequence[Known | None],
    axes: Sequence[int],
    scope: Scope,
) -> None:
    """Define the outputs of a loop: what it carried, then what it scanned, stacked along `axes`."""
    program = writer.program
    stack = program.shared("stack", stack_scan)
    finals = carried.finals(results)
    for value, final in zip(node.outputs, finals, strict=False):
        writer.define(value, final, scope)
    for place, scan in enumerate(carried.scans):
        index = place + len(finals)
        known = _either(scan, results[index])
        element_type = known.dtype or ir.DataType.FLOAT
        dtype = carrier(element_type)
        axis = axes[place]
        shape = _shape_of_no_turns(outputs[index])
        arguments = f"{scan}, {axis}, {shape}, {dtype}, device"
        program.line(f"{scan} = {stack}({arguments})")
        if index < len(node.outputs):
            output = node.outputs[index]
            writer.define(output, known, scope)


def _shape_of_no_turns(value: ir.Value) -> list[int]:
    """Return the declared shape, with 0 for what is not known: nothing is there to ask."""
    if value.shape is None:
        return []
    return [size if isinstance(size, int) else 0 for size in value.shape]


def stack_scan(
    items: list[torch.Tensor],
    axis: int,
    shape: list[int],
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor:
    """Stack what each turn gave along a new axis; no turns give an empty tensor (0, *shape)."""
    if items:
        return torch.stack(items, axis)
    return torch.empty([0, *shape], dtype=dtype, device=device)


# --- Scan --------------------------------------------------------------------------


def emit_scan(writer: BlockWriter, node: ir.Node, scope: Scope) -> None:
    """Write a for loop over slices of the scanned inputs.

    Errors: RefusedError for opset 8's form, which has a batch axis in front of everything.
    """
    if scope.opset("") < 9:
        raise RefusedError(
            f"Scan {node.name}",
            "the batched Scan of opset 8 is not supported",
            "convert the model to opset 9 or later",
        )
    program = writer.program
    body = node.attributes["body"].as_graph()
    attributes = scope.attributes_of(node)
    scanned = attributes["num_scan_inputs"]
    states = len(node.inputs) - scanned
    outputs = len(body.outputs) - states
    initial = node.inputs[:states]
    sources = []
    for value in node.inputs[states:]:
        known = writer.value(value, scope)
        sources.append((_code(writer, known), known))
    carried = _open_loop(
        writer,
        initial,
        outputs,
        scope,
    )
    axes = attributes.get("scan_input_axes") or [0] * scanned
    backwards = attributes.get("scan_input_directions") or [0] * scanned
    turn = program.fresh("turn")
    first_source, _ = sources[0]
    turns = f"{first_source}.shape[{axes[0]}]"
    program.line(f"for {turn} in range({turns}):")
    with program.indented():
        for value, name, known in zip(
            body.inputs,
            carried.names,
            carried.initial,
            strict=False,
        ):
            scope.values[value] = _either(name, known)
        for value, (code, known), axis, back in zip(
            body.inputs[states:],
            sources,
            axes,
            backwards,
            strict=True,
        ):
            part = program.fresh()
            place = f"{code}.shape[{axis}] - 1 - {turn}" if back else turn
            program.line(f"{part} = {code}.select({axis}, {place})")
            scope.values[value] = _either(part, known)
        writer.block(list(body), scope, body.outputs)
        results = [writer.value(value, scope) for value in body.outputs]
        _advance(writer, carried, results)
    reverse = attributes.get("scan_output_directions") or [0] * outputs
    for scan, back in zip(carried.scans, reverse, strict=True):
        if back:
            program.line(f"{scan}.reverse()")
    out_axes = attributes.get("scan_output_axes") or [0] * outputs
    _finish(
        writer,
        node,
        body.outputs,
        carried,
        results,
        out_axes,
        scope,
    )


EMITTERS: dict[str, Callable[[BlockWriter, ir.Node, Scope], None]] = {
    "If": emit_if,
    "Loop": emit_loop,
    "Scan": emit_scan,
}
