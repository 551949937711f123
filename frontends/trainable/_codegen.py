"""Python source for each node: scalar op, folded constant, torch kernel or onnx's reference."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir
import torch

from ... import RefusedError
from ...passes._core.graph import label
from ...passes._core.ops import is_standard
from . import _control
from ._constants import stored_tensor
from ._dtypes import CARRIERS, to_carrier
from ._expand import function_of
from ._fake_quantize import code_range, fake_quantize
from ._fold import fold
from ._gradient_flow import follow
from ._layout import laid_out
from ._program import Known, Program
from ._reference import reference_kernel
from ._registry import Call, Entry, entry_of
from ._scalar_ops import HOST_OPS, as_tensor, length_of, to_host
from ._scope import Scope, last_uses
from ._types import output_dtypes
from ._weights import behind_identities, is_setting

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


@dataclass(frozen=True)
class NodeInputs:
    """A node with what is known of its inputs and its attributes, where it stands."""

    node: ir.Node
    inputs: list[Known | None]
    attributes: dict[str, Any]
    scope: Scope

    @property
    def dtypes(self) -> list[ir.DataType | None]:
        """Element types of the inputs, None where unknown or left out."""
        return [None if known is None else known.dtype for known in self.inputs]

    @property
    def present(self) -> list[Known]:
        """Inputs that are not left out."""
        return [known for known in self.inputs if known is not None]


class Emitter:
    """Writes the source of one model's graph into `program`.

    `weights`: values that are parameters, with the source that gives them. `functions`: the model's
    own. `qat`: quantized values stay floats on their grid. `shared`: those of the weights that are
    settings elsewhere. `taps`: values that are asked for beside the outputs. `detached`: nodes that
    onnx's reference runs.
    """

    def __init__(
        self,
        program: Program,
        weights: dict[ir.Value, str],
        functions: dict[ir.OperatorIdentifier, ir.Function],
        qat: bool,
        shared: Collection[ir.Value] = (),
        taps: Collection[ir.Value] = (),
    ) -> None:
        self.program = program
        self.weights = weights
        self.functions = functions
        self.qat = qat
        self.detached: list[str] = []
        self.taps = taps
        self._read_back: set[ir.Value] = set()
        self.fixed = {value: _as_stored(stored_tensor(value)) for value in shared}
        program.names.update(torch=torch, as_tensor=as_tensor, to_host=to_host)

    def block(
        self, nodes: Sequence[ir.Node], scope: Scope, kept: Sequence[ir.Value | None]
    ) -> None:
        """Write nodes in order; what this block made and nothing after reads is freed.

        `kept`: values that stay.
        """
        made: set[ir.Value] = set()
        for node, dying in zip(nodes, last_uses(nodes), strict=True):
            self.node(node, scope)
            made.update(node.outputs)
            names: list[str] = []
            for value in dying:
                # outer values may be read again by what surrounds this block
                if value in made and value not in kept and value in scope.values:
                    names.extend(_variables(scope.values.pop(value)))
            if names:
                self.program.line(f"del {', '.join(names)}")

    def value(self, value: ir.Value | None, scope: Scope) -> Known | None:
        """Look a value up; a constant becomes known when it is first asked for.

        Returns None for one that is left out. Errors: RefusedError for one that nothing makes.
        """
        if value is None:
            return None
        # an empty name says that an input is left out
        if value.name == "" and value.producer() is None:
            return None
        if value not in scope.values:
            tensor = value.const_value
            if tensor is None:
                raise RefusedError(
                    f"graph '{scope.graph}'",
                    f"value '{value.name}' is read but never made",
                    "export the model again",
                )
            scope.values[value] = self.constant(value, tensor)
        known = scope.values[value]
        if known is ABSENT:
            return None
        return known

    def read(self, node: ir.Node, index: int, scope: Scope) -> Known | None:
        """Look up an input of a node; a weight that is a setting here, as it was stored."""
        value = node.inputs[index]
        if self.fixed and is_setting(node, index):
            source = behind_identities(value)
            if source in self.fixed:
                return self.fixed[source]
        return self.value(value, scope)

    def constant(self, value: ir.Value, tensor: ir.TensorProtocol) -> Known:
        """Return a parameter, or a constant in its carrier; strings stay numpy arrays."""
        if value in self.weights:
            return self.parameter(value, tensor.dtype)
        if tensor.dtype not in CARRIERS:
            return Known(self.program.bind("text", tensor.numpy()), tensor.dtype)
        known = _as_stored(tensor)
        assert known.constant is not None
        known.constant = laid_out(known.constant, value)
        return known

    def parameter(self, value: ir.Value, dtype: ir.DataType | None) -> Known:
        """Return a value that is trained."""
        return Known(
            self.weights[value],
            dtype,
            shape=value.shape,
            type=value.type,
            gradient=True,
        )

    def node(self, node: ir.Node, scope: Scope) -> None:
        """Write one node and make its outputs known."""
        if self._is_replaced(node):
            value = node.outputs[0]
            scope.values[value] = self.parameter(value, value.dtype)
            return
        if is_standard(node, "Constant"):
            _control.emit_constant(self, node, scope)
            return
        if is_standard(node, *_control.EMITTERS):
            _control.EMITTERS[node.op_type](self, node, scope)
            return
        count = len(node.inputs)
        inputs = [self.read(node, index, scope) for index in range(count)]
        attributes = scope.attributes_of(node)
        found = NodeInputs(
            node,
            inputs,
            attributes,
            scope,
        )
        function = self.functions.get(node.op_identifier())
        if function is not None:
            self.inline(function, found)
            return
        if is_standard(node) and self._on_host(found):
            return
        self._in_tensors(found)

    def _is_replaced(self, node: ir.Node) -> bool:
        """Return whether a parameter stands for what a node makes: codes, unpacked by nodes."""
        if node.op_type == "Constant" or not node.outputs:
            return False
        return node.outputs[0] in self.weights

    def _in_tensors(self, found: NodeInputs) -> None:
        """Write a node by its kernel, by the standard's function, or by the reference."""
        node = found.node
        domain = "" if is_standard(node) else node.domain
        opset = found.scope.opset(domain)
        dtypes = found.dtypes
        outputs = output_dtypes(
            domain,
            op=node.op_type,
            opset=opset,
            attributes=found.attributes,
            inputs=dtypes,
            count=len(node.outputs),
        )
        # ops that onnx does not define mostly give what they are given
        fallback = dtypes[0] if dtypes else None
        for index, value in enumerate(node.outputs):
            outputs[index] = outputs[index] or value.dtype or fallback
        entry = entry_of(domain, node.op_type, opset)
        call = Call(
            inputs=tuple(dtypes),
            outputs=tuple(outputs),
            opset=opset,
            qat=self.qat,
        )
        if self.qat and self._at_once(found, call):
            return
        textual = ir.DataType.STRING in dtypes and node.op_type not in TEXT_OPS
        if entry is not None and not textual and _accepted(entry, found.attributes):
            self._kernel(entry, found, call)
            return
        # only ops without a kernel of ours are expanded
        body = function_of(
            domain,
            node,
            opset,
            found.attributes,
            found.inputs,
        )
        if body is not None:
            self.inline(body, found)
            return
        self._reference(found, call)

    # --- Python numbers -------------------------------------------------------------

    def _on_host(self, found: NodeInputs) -> bool:
        """Write a node on Python numbers, if it can be."""
        node = found.node
        if node.op_type in ("Shape", "Size"):
            return self._measure(found)
        entry = HOST_OPS.get(node.op_type)
        present = found.present
        # at least one must be a Python number already: of constants alone tensors are folded
        if entry is None or not any(known.host for known in present):
            return False
        if not all(known.hostable for known in present):
            return False
        operands = [
            None if known is None else known.operand() for known in found.inputs
        ]
        rank = entry.rank(operands, found.attributes)
        if rank is None:
            return False
        (dtype,) = output_dtypes(
            domain="",
            op=node.op_type,
            opset=found.scope.opset(""),
            attributes=found.attributes,
            inputs=found.dtypes,
            count=1,
        )
        arguments = [self._operand(known, True) for known in found.inputs]
        for name, value in found.attributes.items():
            arguments.append(self._keyword(name, _number(value)))
        function = self.program.shared(f"host_{node.op_type}", entry.function)
        code = self.program.fresh("h")
        self.program.line(f"{code} = {function}({', '.join(arguments)})")
        length = length_of(node.op_type, operands) if rank == 1 else None
        known = Known(
            code,
            dtype,
            host=True,
            rank=rank,
            length=length,
        )
        self.define(node.outputs[0], known, found.scope)
        return True

    def _measure(self, found: NodeInputs) -> bool:
        """Write Shape or Size, if it can be outside of tensors.

        Of a weight and of a list of known length it is a constant, of other tensors Python numbers.
        """
        node = found.node
        source = found.inputs[0]
        # strings, and types that nothing is known of
        if source is None or source.dtype not in CARRIERS:
            return False
        start = found.attributes.get("start", 0)
        end = found.attributes.get("end")
        part = slice(start, end)
        shape = _static_shape(source)
        if shape is not None:
            size: Any = shape[part]
            if node.op_type == "Size":
                size = math.prod(shape)
            constant = torch.tensor(size, dtype=torch.int64)
            known = Known(None, ir.DataType.INT64, constant=constant)
            self.define(node.outputs[0], known, found.scope)
            return True
        if source.code is None or (source.host and source.rank != 1):
            return False
        rank = 1 if node.op_type == "Shape" else 0
        code = self.program.fresh("h")
        self.program.line(f"{code} = {_measured(source, rank, part)}")
        known = Known(
            code,
            ir.DataType.INT64,
            host=True,
            rank=rank,
        )
        if source.host:
            known.length = 1
        elif rank and source.shape is not None:
            dims = range(len(source.shape))
            known.length = len(dims[part])
        self.define(node.outputs[0], known, found.scope)
        return True

    # --- tensors --------------------------------------------------------------------

    def _kernel(self, entry: Entry, found: NodeInputs, call: Call) -> None:
        """Write a call of a kernel, or what it gives for constants."""
        node = found.node
        attributes = {}
        for name, value in found.attributes.items():
            if name in entry.accepts:
                attributes[name] = _number(value)
        folded = fold(
            entry,
            node,
            found.inputs,
            attributes,
            call,
        )
        if folded is not None:
            for value, dtype, tensor in zip(
                node.outputs,
                call.outputs,
                folded,
                strict=True,
            ):
                known = Known(None, dtype, constant=tensor)
                self.define(value, known, found.scope)
            return
        arguments = []
        for index, operand in enumerate(found.inputs):
            on_host = index in entry.host
            if index in entry.scalars:
                on_host = _is_scalar(operand)
            arguments.append(self._operand(operand, on_host))
        for name, value in attributes.items():
            arguments.append(self._keyword(name, value))
        if "device" in entry.extras:
            arguments.append("device=device")
        if "call" in entry.extras:
            arguments.append(f"call={self.program.bind('call', call)}")
        prefix = ""
        if not is_standard(node):
            # ops of other domains share names with standard ones
            prefix = node.domain.replace(".", "_") + "_"
        function = self.program.shared(
            f"{prefix}{entry.name}_{entry.since}",
            entry.function,
        )
        code = f"{function}({', '.join(arguments)})"
        obstacle = "" if entry.gradient else "it has no gradient"
        self._assign(
            code,
            entry.many,
            found,
            call,
            obstacle,
        )

    def _operand(self, known: Known | None, host: bool) -> str:
        """Return the code of an input, as a Python value or as a tensor."""
        if known is None:
            return "None"
        if host:
            return self.program.host_code(known)
        return self.program.tensor_code(known)

    def _keyword(self, name: str, value: Any) -> str:
        """Return the code of an attribute in a call."""
        return f"{name}={self.program.value_code(value, name)}"

    def _assign(
        self, code: str, many: bool, found: NodeInputs, call: Call, obstacle: str
    ) -> None:
        """Assign what a call gives to the outputs of a node.

        `many`: it gives a tuple, which may be longer than the node's outputs.
        """
        node = found.node
        names = [self.program.fresh() for _ in node.outputs]
        if many and len(names) == 1:
            code = f"{code}[0]"
        elif many:
            code = f"{code}[:{len(names)}]"
        comment = _printable(node.name or node.op_type)
        targets = ", ".join(names)
        self.program.line(f"{targets} = {code}  # {comment}")
        for value, name, dtype in zip(node.outputs, names, call.outputs, strict=True):
            gradient, cuts = follow(
                node,
                found.inputs,
                dtype,
                obstacle,
                self.qat,
            )
            known = Known(
                name,
                dtype,
                gradient=gradient,
                cuts=cuts,
            )
            self.define(value, known, found.scope)

    def _reference(self, found: NodeInputs, call: Call) -> None:
        """Write a call of onnx's own kernel."""
        kernel = reference_kernel(found.node, found.attributes, call)
        self.detached.append(label(found.node))
        arguments = [self._operand(known, False) for known in found.inputs]
        name = self.program.bind("reference", kernel)
        arguments.insert(0, "device")
        code = f"{name}({', '.join(arguments)})"
        obstacle = "onnx's reference computes it, without gradients"
        self._assign(
            code,
            True,
            found,
            call,
            obstacle,
        )

    # --- quantized and read back at once --------------------------------------------

    def _at_once(self, found: NodeInputs, call: Call) -> bool:
        """Write QuantizeLinear as what all its readers make of it, and these as that value."""
        node = found.node
        if node.inputs and node.inputs[0] in self._read_back:
            (known,) = found.present[:1]
            self.define(node.outputs[0], self.copy(known), found.scope)
            return True
        if len(node.outputs) != 1 or node.outputs[0] in self.taps:
            return False
        # the body of a function is written once for each call, perhaps with other grids
        self._read_back.discard(node.outputs[0])
        source = found.inputs[0] if found.inputs else None
        if source is None or source.dtype is None:
            return False
        if CARRIERS.get(source.dtype) != torch.float32:
            return False
        codes = code_range(
            node,
            call.outputs[0],
            lambda value: self._number_of(value, found.scope),
        )
        if codes is None:
            return False
        function = self.program.shared("fake_quantize", fake_quantize)
        x = self.program.tensor_code(source)
        code = f"{function}({x}, {codes.scale!r}, {codes.low!r}, {codes.high!r})"
        floats = replace(call, outputs=(source.dtype,))
        self._assign(
            code,
            False,
            found,
            floats,
            "",
        )
        self._read_back.add(node.outputs[0])
        return True

    def _number_of(self, value: ir.Value, scope: Scope) -> float | None:
        """Return a constant of one element as a number; None for all else."""
        if value in self.weights:
            return None
        known = scope.values.get(value)
        if known is None and value.const_value is not None:
            known = self.value(value, scope)
        if known is None or known.constant is None or known.constant.numel() != 1:
            return None
        return float(known.constant)

    # --- functions and bodies -------------------------------------------------------

    def inline(self, function: ir.Function, found: NodeInputs) -> None:
        """Write a function's body in place of the node that calls it."""
        scope = found.scope
        attributes = {}
        for name, attribute in function.attributes.items():
            if attribute.value is not None:
                attributes[name] = attribute.value
        attributes |= found.attributes
        opsets = {**scope.opsets, **function.opset_imports}
        # a scope of its own: the body sees nothing of where it is called
        inner = Scope(function.name, opsets, attributes)
        for value, known in zip(function.inputs, found.inputs, strict=False):
            if known is not None:
                inner.values[value] = known
        for value in function.inputs:
            inner.values.setdefault(value, ABSENT)
        self.block(list(function), inner, function.outputs)
        made: list[ir.Value] = []
        for node in function:
            made.extend(node.outputs)
        self.hand_over(
            node=found.node,
            results=function.outputs,
            made=made,
            inner=inner,
            scope=scope,
        )

    def hand_over(
        self,
        node: ir.Node,
        results: Sequence[ir.Value],
        made: Sequence[ir.Value],
        inner: Scope,
        scope: Scope,
    ) -> None:
        """Make what a body gave the outputs of its node.

        Variables that the body made change hands. What it gives twice, or was given itself, is
        copied, so that each output has a variable of its own.
        """
        own = set(made)
        given = list(results)
        for value, result in zip(node.outputs, results, strict=False):
            known = self.value(result, inner)
            assert known is not None, (
                f"the body of {node.op_type} gives an output that it was not given"
            )
            once = given.count(result) == 1 and result in own
            if not once:
                known = self.copy(known)
            self.define(value, known, scope)

    def copy(self, known: Known) -> Known:
        """Return the same value under a variable of its own, so that freeing one frees no other."""
        if known.code is None or known.code.startswith("self."):
            # constants and attributes of the module are never freed
            return known
        name = self.program.fresh("h" if known.host else "v")
        self.program.line(f"{name} = {known.code}")
        return replace(known, code=name, on_device=None)

    def define(self, value: ir.Value, known: Known, scope: Scope) -> None:
        """Make an output known; types and shapes that the graph declares are kept with it."""
        known.shape = known.shape or value.shape
        known.type = known.type or value.type
        scope.values[value] = known


def _as_stored(tensor: ir.TensorProtocol) -> Known:
    """Return a constant in its carrier."""
    constant = to_carrier(tensor.numpy(), tensor.dtype)
    return Known(None, tensor.dtype, constant=constant)


def _is_scalar(known: Known | None) -> bool:
    """Return whether a value is a constant without axes."""
    if known is None or known.constant is None:
        return False
    return bool(known.constant.ndim == 0)


def _variables(known: Known) -> Iterable[str]:
    """Yield the local variables that hold a value and can be freed."""
    for code in (known.code, known.on_device):
        # literals and attributes of the module are no identifiers
        if code is None or not code.isidentifier():
            continue
        if code not in ("None", "device"):
            yield code


def _number(value: Any) -> Any:
    """Return a tensor attribute of one element as a number, the rest as it is."""
    if isinstance(value, ir.TensorProtocol):
        return value.numpy().reshape(-1)[0].item()
    return value


def _printable(text: str) -> str:
    """Return a text that fits a comment: a line break in it would end the comment."""
    return "".join(c if c.isprintable() else " " for c in text)


def _measured(source: Known, rank: int, part: slice) -> str:
    """Return the code of the shape (rank 1) or size (rank 0) of a list or tensor."""
    if source.host:
        length = f"len({source.code})"
        if rank:
            return f"[{length}]"
        return length
    if not rank:
        return f"{source.code}.numel()"
    code = f"{source.code}.shape"
    if part.start or part.stop is not None:
        end = "" if part.stop is None else part.stop
        code += f"[{part.start}:{end}]"
    return f"list({code})"


def _static_shape(known: Known) -> list[int] | None:
    """Return the shape of what cannot have another; None for the rest.

    That is what parameters have, and lists of known length.
    """
    if known.host and known.rank < 2:
        if not known.rank:
            return []
        if known.length is None:
            return None
        return [known.length]
    if known.shape is None or known.code is None:
        return None
    if not known.code.startswith("self."):
        return None
    sizes = [size for size in known.shape if isinstance(size, int)]
    if len(sizes) == len(known.shape):
        return sizes
    return None


def _accepted(entry: Entry, attributes: dict[str, Any]) -> bool:
    """Return whether a kernel knows every attribute of a node that means something."""
    return all(name in entry.accepts or name in IGNORED for name in attributes)
