"""Nodes to lines of source: a host op, a folded constant, a kernel, an inlined function, or the
reference's kernel.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import onnx_ir as ir
import torch

from ... import RefusedError
from . import _control
from ._dtypes import CARRIERS, to_carrier
from ._expand import function_of
from ._fold import fold
from ._gradient_flow import follow
from ._program import Known, Program
from ._reference import reference_kernel
from ._registry import Call, Entry, entry_of
from ._scalar_ops import HOST_OPS, as_tensor, length_of, to_host
from ._scope import Scope, last_uses
from ._types import output_dtypes
from ._weights import behind_identities, is_setting, stored_tensor

IGNORED = frozenset({"consumed_inputs", "is_test", "spatial"})
"""Attributes of old opsets that say nothing about inference."""

TEXT_OPS = frozenset(
    {
        "Cast",
        "CastLike",
        "Identity",
        "Shape",
        "Size",
        "SequenceConstruct",
        "SequenceAt",
        "SequenceInsert",
        "SequenceErase",
        "SequenceLength",
        "Optional",
        "OptionalGetElement",
        "OptionalHasElement",
    }
)
"""Ops whose kernels take strings too; the others leave them to the reference."""

ABSENT = Known("None", None)
"""An optional input of a function that its call leaves out."""


class Emitter:
    """Writes the source of one model's graph into `program`.

    `weights`: values that are parameters, with the source that gives them. `functions`: the model's
    own. `shared`: those of them that are settings elsewhere. `detached`: nodes that onnx's
    reference runs.
    """

    def __init__(
        self,
        program: Program,
        weights: dict[ir.Value, str],
        functions: dict[ir.OperatorIdentifier, ir.Function],
        qat: bool,
        shared: Collection[ir.Value] = (),
    ) -> None:
        self.program = program
        self.weights = weights
        self.functions = functions
        self.qat = qat
        self.detached: list[str] = []
        self.fixed = {value: self._as_stored(value) for value in shared}
        program.names.update(torch=torch, as_tensor=as_tensor, to_host=to_host)

    def block(
        self, nodes: Sequence[ir.Node], scope: Scope, kept: Sequence[ir.Value | None]
    ) -> None:
        """Nodes in order; what this block made and nothing after reads is freed, `kept` is not."""
        made: set[ir.Value] = set()
        for node, dying in zip(nodes, last_uses(nodes), strict=True):
            self.node(node, scope)
            made.update(node.outputs)
            dead = [
                v for v in dying if v in made and v not in kept and v in scope.values
            ]
            names = [name for v in dead for name in _variables(scope.values.pop(v))]
            if names:
                self.program.line(f"del {', '.join(names)}")

    def value(self, value: ir.Value | None, scope: Scope) -> Known | None:
        """What is known of a value; a constant becomes known when it is first asked for."""
        if value is None or (value.name == "" and value.producer() is None):
            return None
        if value not in scope.values:
            tensor = value.const_value
            if tensor is None:
                where = f"graph '{scope.graph}'"
                raise RefusedError(
                    where,
                    f"value '{value.name}' is read but never made",
                    "export the model again",
                )
            scope.values[value] = self.constant(value, tensor)
        known = scope.values[value]
        return None if known is ABSENT else known

    def read(self, node: ir.Node, index: int, scope: Scope) -> Known | None:
        """What a node reads; a weight that is a setting here, as it was stored."""
        value = node.inputs[index]
        if (
            self.fixed
            and is_setting(node, index)
            and (source := behind_identities(value)) in self.fixed
        ):
            return self.fixed[source]
        return self.value(value, scope)

    def constant(self, value: ir.Value, tensor: ir.TensorProtocol) -> Known:
        """A parameter, or a constant in its carrier; strings stay numpy arrays."""
        if value in self.weights:
            return self.parameter(value, tensor.dtype)
        if tensor.dtype not in CARRIERS:
            return Known(self.program.bind("text", tensor.numpy()), tensor.dtype)
        return Known(
            None, tensor.dtype, constant=to_carrier(tensor.numpy(), tensor.dtype)
        )

    def _as_stored(self, value: ir.Value) -> Known:
        tensor = stored_tensor(value)
        return Known(
            None, tensor.dtype, constant=to_carrier(tensor.numpy(), tensor.dtype)
        )

    def parameter(self, value: ir.Value, dtype: ir.DataType | None) -> Known:
        """A value that is trained."""
        return Known(
            self.weights[value],
            dtype,
            shape=value.shape,
            type=value.type,
            gradient=True,
        )

    def node(self, node: ir.Node, scope: Scope) -> None:
        """Write one node and make its outputs known."""
        if (
            node.op_type != "Constant"
            and node.outputs
            and node.outputs[0] in self.weights
        ):
            scope.values[node.outputs[0]] = self.parameter(
                node.outputs[0], node.outputs[0].dtype
            )
            return None
        domain = "" if node.domain == "ai.onnx" else node.domain
        if domain == "" and node.op_type == "Constant":
            return _control.emit_constant(self, node, scope)
        if domain == "" and node.op_type in _control.EMITTERS:
            return _control.EMITTERS[node.op_type](self, node, scope)
        inputs = [self.read(node, index, scope) for index in range(len(node.inputs))]
        attributes = scope.attributes_of(node)
        function = self.functions.get(node.op_identifier())
        if function is not None:
            return self.inline(function, node, inputs, attributes, scope)
        if domain == "" and self._host(node, inputs, attributes, scope):
            return None
        opset = scope.opset(domain)
        dtypes = [None if k is None else k.dtype for k in inputs]
        outputs = output_dtypes(
            domain, node.op_type, opset, attributes, dtypes, len(node.outputs)
        )
        fallback = dtypes[0] if dtypes else None
        outputs = [
            known or value.dtype or fallback
            for known, value in zip(outputs, node.outputs, strict=True)
        ]
        entry = entry_of(domain, node.op_type, opset)
        call = Call(tuple(dtypes), tuple(outputs), opset, self.qat)
        textual = ir.DataType.STRING in dtypes and node.op_type not in TEXT_OPS
        if entry is not None and not textual and _accepted(entry, attributes):
            return self._kernel(entry, node, inputs, attributes, call, scope)
        body = function_of(domain, node, opset, attributes, inputs)
        if body is not None:
            return self.inline(body, node, inputs, attributes, scope)
        return self._reference(node, inputs, attributes, call, scope)

    def _host(
        self,
        node: ir.Node,
        inputs: list[Known | None],
        attributes: dict[str, Any],
        scope: Scope,
    ) -> bool:
        """Write a node on Python numbers, if it can be."""
        if node.op_type in ("Shape", "Size"):
            return self._measure(node, inputs[0], attributes, scope)
        entry = HOST_OPS.get(node.op_type)
        present = [k for k in inputs if k is not None]
        if (
            entry is None
            or not any(k.host for k in present)
            or not all(k.hostable for k in present)
        ):
            return False
        dtypes = [None if k is None else k.dtype for k in inputs]
        (dtype,) = output_dtypes(
            "", node.op_type, scope.opset(""), attributes, dtypes, 1
        )
        operands = [None if k is None else k.operand() for k in inputs]
        rank = entry.rank(operands, attributes)
        if rank is None:
            return False
        codes = ["None" if k is None else self.program.host_code(k) for k in inputs]
        codes += [
            f"{name}={self.program.value_code(_number(value), name)}"
            for name, value in attributes.items()
        ]
        name = self.program.shared(f"host_{node.op_type}", entry.function)
        out = self.program.fresh("h")
        self.program.line(f"{out} = {name}({', '.join(codes)})")
        length = length_of(node.op_type, operands) if rank == 1 else None
        self.define(
            node.outputs[0],
            Known(out, dtype, host=True, rank=rank, length=length),
            scope,
        )
        return True

    def _measure(
        self,
        node: ir.Node,
        source: Known | None,
        attributes: dict[str, Any],
        scope: Scope,
    ) -> bool:
        """Shape and Size: of a weight and of a list of known length constants, of other tensors
        Python numbers.
        """
        if source is None or source.dtype not in CARRIERS:
            return False
        shape = _static_shape(source)
        if shape is not None:
            found = shape[attributes.get("start", 0) : attributes.get("end")]
            constant = torch.tensor(
                found if node.op_type == "Shape" else math.prod(shape),
                dtype=torch.int64,
            )
            self.define(
                node.outputs[0],
                Known(None, ir.DataType.INT64, constant=constant),
                scope,
            )
            return True
        if source.code is None or (source.host and source.rank != 1):
            return False
        out, rank = self.program.fresh("h"), int(node.op_type == "Shape")
        if source.host:
            self.program.line(
                f"{out} = [len({source.code})]"
                if rank
                else f"{out} = len({source.code})"
            )
        elif rank:
            start, end = attributes.get("start", 0), attributes.get("end")
            part = (
                ""
                if not start and end is None
                else f"[{start}:{'' if end is None else end}]"
            )
            self.program.line(f"{out} = list({source.code}.shape{part})")
        else:
            self.program.line(f"{out} = {source.code}.numel()")
        known = Known(out, ir.DataType.INT64, host=True, rank=rank)
        if source.host:
            known.length = 1
        elif rank and source.shape is not None:
            known.length = len(
                range(len(source.shape))[
                    attributes.get("start", 0) : attributes.get("end")
                ]
            )
        self.define(node.outputs[0], known, scope)
        return True

    def _kernel(
        self,
        entry: Entry,
        node: ir.Node,
        inputs: list[Known | None],
        attributes: dict[str, Any],
        call: Call,
        scope: Scope,
    ) -> None:
        kept = {
            name: _number(value)
            for name, value in attributes.items()
            if name in entry.accepts
        }
        folded = fold(entry, node, inputs, kept, call)
        if folded is not None:
            for value, dtype, tensor in zip(
                node.outputs, call.outputs, folded, strict=True
            ):
                self.define(value, Known(None, dtype, constant=tensor), scope)
            return
        codes = [
            self._operand(k, index in entry.host) for index, k in enumerate(inputs)
        ]
        codes += [
            f"{name}={self.program.value_code(value, name)}"
            for name, value in kept.items()
        ]
        codes += ["device=device"] if "device" in entry.extras else []
        codes += (
            [f"call={self.program.bind('call', call)}"]
            if "call" in entry.extras
            else []
        )
        prefix = (
            ""
            if node.domain in ("", "ai.onnx")
            else f"{node.domain.replace('.', '_')}_"
        )
        name = self.program.shared(
            f"{prefix}{entry.name}_{entry.since}", entry.function
        )
        obstacle = "" if entry.gradient else "it has no gradient"
        self._assign(
            f"{name}({', '.join(codes)})",
            entry.many,
            node,
            inputs,
            call,
            obstacle,
            scope,
        )

    def _operand(self, known: Known | None, host: bool) -> str:
        if known is None:
            return "None"
        return (
            self.program.host_code(known) if host else self.program.tensor_code(known)
        )

    def _assign(
        self,
        code: str,
        many: bool,
        node: ir.Node,
        inputs: Sequence[Known | None],
        call: Call,
        obstacle: str,
        scope: Scope,
    ) -> None:
        names = [self.program.fresh() for _ in node.outputs]
        picked = (
            code
            if not many
            else f"{code}[0]"
            if len(names) == 1
            else f"{code}[:{len(names)}]"
        )
        label = "".join(
            c if c.isprintable() else " " for c in node.name or node.op_type
        )
        self.program.line(f"{', '.join(names)} = {picked}  # {label}")
        for value, name, dtype in zip(node.outputs, names, call.outputs, strict=True):
            gradient, cuts = follow(node, inputs, dtype, obstacle, self.qat)
            self.define(value, Known(name, dtype, gradient=gradient, cuts=cuts), scope)

    def inline(
        self,
        function: ir.Function,
        node: ir.Node,
        inputs: Sequence[Known | None],
        attributes: dict[str, Any],
        scope: Scope,
    ) -> None:
        """Write a function's body in place of the node that calls it."""
        defaults = {
            name: a.value
            for name, a in function.attributes.items()
            if a.value is not None
        }
        inner = Scope(
            function.name,
            {**scope.opsets, **function.opset_imports},
            defaults | attributes,
        )
        for value, known in zip(function.inputs, inputs, strict=False):
            if known is not None:
                inner.values[value] = known
        inner.values.update(
            {v: ABSENT for v in function.inputs if v not in inner.values}
        )
        self.block(list(function), inner, function.outputs)
        self.hand_over(
            node,
            function.outputs,
            [o for n in function for o in n.outputs],
            inner,
            scope,
        )

    def hand_over(
        self,
        node: ir.Node,
        results: Sequence[ir.Value],
        made: Sequence[ir.Value],
        inner: Scope,
        scope: Scope,
    ) -> None:
        """Make what a body gave the outputs of its node; variables that the body made change
        hands.
        """
        own = set(made)
        for value, result in zip(node.outputs, results, strict=False):
            known = self.value(result, inner)
            assert known is not None, (
                f"the body of {node.op_type} gives an output that it was not given"
            )
            once = list(results).count(result) == 1 and result in own
            self.define(value, known if once else self.copy(known), scope)

    def copy(self, known: Known) -> Known:
        """The same value under a variable of its own, so that freeing one frees no other."""
        if known.code is None or known.code.startswith("self."):
            return known
        name = self.program.fresh("h" if known.host else "v")
        self.program.line(f"{name} = {known.code}")
        return replace(known, code=name, on_device=None)

    def _reference(
        self,
        node: ir.Node,
        inputs: list[Known | None],
        attributes: dict[str, Any],
        call: Call,
        scope: Scope,
    ) -> None:
        kernel = reference_kernel(node, attributes, call)
        obstacle = "onnx's reference computes it, without gradients"
        self.detached.append(f"{node.op_type} {node.name or node.outputs[0].name}")
        codes = [self._operand(k, False) for k in inputs]
        name = self.program.bind("reference", kernel)
        self._assign(
            f"{name}({', '.join(['device', *codes])})",
            True,
            node,
            inputs,
            call,
            obstacle,
            scope,
        )

    def define(self, value: ir.Value, known: Known, scope: Scope) -> None:
        """Make an output known; types and shapes that the graph declares are kept with it."""
        known.shape = known.shape or value.shape
        known.type = known.type or value.type
        scope.values[value] = known


def _variables(known: Known) -> list[str]:
    """Local variables that hold a value and can be freed."""
    codes = [known.code, known.on_device]
    return [
        code
        for code in codes
        if code is not None and code.isidentifier() and code not in ("None", "device")
    ]


def _number(value: Any) -> Any:
    """A tensor attribute of one element as a number."""
    return (
        value.numpy().reshape(-1)[0].item()
        if isinstance(value, ir.TensorProtocol)
        else value
    )


def _static_shape(known: Known) -> list[int] | None:
    """The shape of what cannot have another: parameters, and lists of known length."""
    if known.host and known.rank < 2:
        return (
            [] if not known.rank else None if known.length is None else [known.length]
        )
    fixed = (
        known.code is not None
        and known.code.startswith("self.")
        and known.shape is not None
    )
    dims = (
        [d for d in known.shape if isinstance(d, int)]
        if fixed and known.shape is not None
        else []
    )
    return (
        dims
        if fixed and known.shape is not None and len(dims) == len(known.shape)
        else None
    )


def _accepted(entry: Entry, attributes: dict[str, Any]) -> bool:
    return all(name in entry.accepts or name in IGNORED for name in attributes)
