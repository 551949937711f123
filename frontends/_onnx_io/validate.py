"""Checks of a parsed model: versions, names, operators, attributes, functions.

onnx.checker alone is not enough: it passes opset 9999, tensors of a wrong length and exponential
function calls, and being C++ it can take the process down.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NoReturn

import onnx

from ... import RefusedError
from .functions import check_calls
from .protos import standard_domain
from .read import EXPORT_AGAIN
from .tensors import check_tensor, shown

A = onnx.AttributeProto
RUNTIME_OPS = frozenset({"LayerNormalization", "SimplifiedLayerNormalization"})
"""Operators that ONNX Runtime adds to the standard domain at every opset, as its tools do."""

_FIELD_OF = {
    A.FLOAT: "f",
    A.INT: "i",
    A.STRING: "s",
    A.TENSOR: "t",
    A.GRAPH: "g",
    A.SPARSE_TENSOR: "sparse_tensor",
    A.TYPE_PROTO: "tp",
    A.FLOATS: "floats",
    A.INTS: "ints",
    A.STRINGS: "strings",
    A.TENSORS: "tensors",
    A.GRAPHS: "graphs",
    A.SPARSE_TENSORS: "sparse_tensors",
    A.TYPE_PROTOS: "type_protos",
}
"""Attribute type -> field of the message that holds the value."""

_SINGLE = ("f", "i", "s", "t", "g", "sparse_tensor", "tp")
"""Fields of one value, for which presence is known; the others are lists."""

_NUMBERS = ("f", "i", "s")
"""Fields whose value writers in other languages leave out where it is 0, 0.0 or ""."""

_NEWEST = {
    "": onnx.defs.onnx_opset_version(),
    "ai.onnx.ml": int(onnx.helper.VERSION_TABLE[-1][3]),
}
"""Newest versions of domains whose operators are all known; others are checked for structure only.
"""

_UNIMPORTED = {**_NEWEST, "com.microsoft": 1}
"""Version that ONNX Runtime takes of a domain which a model uses and does not import."""


@dataclass(frozen=True)
class Findings:
    """Faults that reading can mend.

    `unsorted`: some nodes stand before what they read. `imports`: versions of domains that the
    graph uses and does not import.
    """

    unsorted: bool
    imports: dict[str, int]


def validate(proto: onnx.ModelProto, where: str) -> Findings:
    """Check that `proto` is well formed; the faults that are none to refuse it for.

    Errors: RefusedError.
    """
    _check_versions(proto, where)
    if proto.training_info:
        raise RefusedError(
            where,
            "holds training_info, which would be lost",
            "drop it: del model.training_info[:], then onnx.save",
        )
    functions = {(f.domain, f.name, f.overload): f for f in proto.functions}
    if len(functions) != len(proto.functions):
        raise RefusedError(where, "defines a function twice", EXPORT_AGAIN)
    imports = _imports(proto.opset_import, where)
    checker = _Bodies(where, imports, frozenset(functions))
    checker.graph(proto.graph)
    for function in proto.functions:
        checker.function(function)
    check_calls(proto, functions, where)
    return Findings(checker.unsorted, checker.missing_imports)


def _check_versions(proto: onnx.ModelProto, where: str) -> None:
    if not 3 <= proto.ir_version <= onnx.IR_VERSION:
        fix = "pip install --upgrade onnx onnx-ir"
        if proto.ir_version < 3:
            fix = "export the model again with a newer exporter"
        raise RefusedError(
            where,
            f"has IR version {proto.ir_version}; versions 3 to {onnx.IR_VERSION} are known",
            fix,
        )
    if not proto.opset_import:
        raise RefusedError(where, "imports no operator set", EXPORT_AGAIN)


def _imports(opsets: Any, where: str) -> dict[str, int]:
    """Domain -> version, `ai.onnx` spelled as ONNX's own tools do (""), in the message too."""
    found: dict[str, int] = {}
    for opset in opsets:
        if opset.domain == "ai.onnx":
            opset.domain = ""
        name = f"domain {shown(opset.domain)}"
        if found.setdefault(opset.domain, opset.version) != opset.version:
            raise RefusedError(
                where, f"imports {name} twice, in different versions", EXPORT_AGAIN
            )
        highest = _NEWEST.get(opset.domain, opset.version)
        if not 1 <= opset.version <= highest:
            raise RefusedError(
                where,
                f"needs opset {opset.version} of {name}; 1 to {highest} are known",
                "export it for a lower opset, or pip install --upgrade onnx",
            )
    return found


class _Bodies:
    """Checks graphs and functions.

    `unsorted` becomes true where a node precedes what it reads; `missing_imports` collects what
    the graph should have imported.
    """

    def __init__(
        self,
        where: str,
        imports: dict[str, int],
        functions: frozenset[tuple[str, str, str]],
    ) -> None:
        self.where = where
        self.imports = imports
        self.functions = functions
        self.unsorted = False
        self.missing_imports: dict[str, int] = {}
        self._in_function = False
        # name -> has it been computed yet, innermost graph last
        self._scopes: list[dict[str, bool]] = []

    def graph(self, graph: onnx.GraphProto) -> None:
        """Check one graph and, through its nodes, its subgraphs.

        It recurses: protobuf itself limits the depth of subgraphs.
        """
        scope: dict[str, bool] = {}
        for info in graph.input:
            if not info.name:
                self._refuse("has a nameless input")
            if info.name in scope:
                self._refuse(f"declares graph input {shown(info.name)} twice")
            # a subgraph's inputs have the types that its node gives them
            if not self._scopes and not _has_type(info.type):
                self._refuse(f"graph input {shown(info.name)} has no type")
            scope[info.name] = True
        for info in (*graph.input, *graph.output, *graph.value_info):
            self._type(info.type, info.name)
        self._initializers(graph, scope)
        self._nodes(graph.node, scope)
        for info in graph.output:
            if info.name not in scope:
                self._refuse(f"graph output {shown(info.name)} is produced by no node")

    def function(self, function: onnx.FunctionProto) -> None:
        """Check one function's body against its own opset imports."""
        if len(set(function.input)) != len(function.input):
            self._refuse(f"function {shown(function.name)} names an input twice")
        for info in function.value_info:
            self._type(info.type, info.name)
        scope = dict.fromkeys(function.input, True)
        models_imports = self.imports
        self.imports = _imports(function.opset_import, self.where)
        self._in_function = True
        self._nodes(function.node, scope)
        self._in_function = False
        self.imports = models_imports
        for name in function.output:
            if name not in scope:
                self._refuse(
                    f"output {shown(name)} of function {shown(function.name)} is "
                    "produced by no node"
                )

    def _initializers(self, graph: onnx.GraphProto, scope: dict[str, bool]) -> None:
        seen: set[str] = set()
        sparse_values = [sparse.values for sparse in graph.sparse_initializer]
        for tensor in (*graph.initializer, *sparse_values):
            if not tensor.name:
                self._refuse("has a nameless initializer")
            if tensor.name in seen:
                self._refuse(f"initializer {shown(tensor.name)} stands there twice")
            seen.add(tensor.name)
            scope[tensor.name] = True
            check_tensor(tensor, self.where)
        for sparse in graph.sparse_initializer:
            check_tensor(sparse.indices, self.where)

    def _nodes(self, nodes: Any, scope: dict[str, bool]) -> None:
        for node in nodes:
            for name in node.output:
                # an empty name is an output that is left out
                if not name:
                    continue
                computed_outside = any(outer.get(name) for outer in self._scopes)
                if name in scope or computed_outside:
                    self._refuse(f"value {shown(name)} is defined twice")
                scope[name] = False
        self._scopes.append(scope)
        for node in nodes:
            self._node(node)
            scope.update((name, True) for name in node.output if name)
        self._scopes.pop()

    def _node(self, node: onnx.NodeProto) -> None:
        for name in node.input:
            if not name:
                continue
            ready = self._is_computed(name)
            if ready is None:
                self._refuse(
                    f"{_label(node)} reads {shown(name)}, which nothing defines"
                )
            self.unsorted |= not ready
        if not node.op_type:
            self._refuse(f"node {shown(node.name)} has no operator")
        self._attributes(node)
        self._operator(node)

    def _is_computed(self, name: str) -> bool | None:
        """True if a value is computed by now, False if later; None if nothing defines it."""
        for scope in reversed(self._scopes):
            if name in scope:
                return scope[name]
        return None

    def _operator(self, node: onnx.NodeProto) -> None:
        domain = standard_domain(node.domain)
        is_call = (domain, node.op_type, node.overload) in self.functions
        if domain not in self.imports and not self._in_function:
            version = 1 if is_call else _UNIMPORTED.get(domain)
            if version is not None:
                self.imports[domain] = self.missing_imports[domain] = version
        if is_call:
            return
        if domain not in self.imports:
            self._refuse(
                f"{_label(node)} is of domain {shown(domain)}, which the model does not import"
            )
        if domain not in _NEWEST or node.op_type in RUNTIME_OPS:
            return
        version = self.imports[domain]
        schema = _schema(node.op_type, version, domain)
        if schema is None or _is_gone(schema):
            problem = f"{_label(node)}: no such operator in opset {version}"
            if domain:
                problem += f" of {domain}"
            self._refuse(problem)
        self._count(
            node,
            "inputs",
            node.input,
            (schema.min_input, schema.max_input),
        )
        self._count(
            node,
            "outputs",
            node.output,
            (schema.min_output, schema.max_output),
        )
        for formal, name in zip(schema.inputs, node.input, strict=False):
            if (
                not name
                and formal.option == onnx.defs.OpSchema.FormalParameterOption.Single
            ):
                self._refuse(f"{_label(node)} lacks its input '{formal.name}'")
        kinds, required = _attributes_of(node.op_type, version, domain)
        for attribute in node.attribute:
            if kinds.get(attribute.name) != attribute.type:
                self._refuse(
                    f"{_label(node)} has an unknown or wrongly typed attribute "
                    f"{shown(attribute.name)}"
                )
        given = {attribute.name for attribute in node.attribute}
        for name in required - given:
            self._refuse(f"{_label(node)} lacks attribute '{name}'")

    def _count(
        self, node: onnx.NodeProto, kind: str, names: Any, allowed: tuple[int, int]
    ) -> None:
        low, high = allowed
        if not low <= len(names) <= high:
            self._refuse(
                f"{_label(node)} has {len(names)} {kind}; {low} to {high} are allowed"
            )

    def _attributes(self, node: onnx.NodeProto) -> None:
        names = {attribute.name for attribute in node.attribute}
        if len(names) != len(node.attribute):
            self._refuse(f"{_label(node)} has an attribute twice")
        for attribute in node.attribute:
            field = _FIELD_OF.get(attribute.type)
            if field is None:
                self._refuse(
                    f"{_label(node)}: attribute {shown(attribute.name)} has no known type"
                )
            # one that refers to the caller's attribute holds nothing itself
            if not attribute.ref_attr_name:
                self._content(node, attribute, field)

    def _content(
        self, node: onnx.NodeProto, attribute: onnx.AttributeProto, field: str
    ) -> None:
        held = {name for name in _FIELD_OF.values() if _is_held(attribute, name)}
        # an empty list and a missing one look the same, and so do 0 and a missing number
        may_be_left_out = field not in _SINGLE or field in _NUMBERS
        if held != {field} and (held or not may_be_left_out):
            self._refuse(
                f"{_label(node)}: attribute {shown(attribute.name)} does not hold "
                "what its type says"
            )
        is_constant = node.op_type == "Constant" and not standard_domain(node.domain)
        if field.startswith("sparse_tensor") and not is_constant:
            self._refuse(
                f"{_label(node)} has a sparse attribute, which only Constant may have here"
            )
        # exactly one field is held by now, so all of them may be visited
        for tensor in attribute.tensors:
            check_tensor(tensor, self.where)
        for kind in attribute.type_protos:
            self._type(kind, attribute.name)
        for graph in attribute.graphs:
            self.graph(graph)
        if field == "t":
            check_tensor(attribute.t, self.where)
        elif field == "sparse_tensor":
            check_tensor(attribute.sparse_tensor.values, self.where)
            check_tensor(attribute.sparse_tensor.indices, self.where)
        elif field == "tp":
            self._type(attribute.tp, attribute.name)
        elif field == "g":
            self.graph(attribute.g)

    def _type(self, kind: onnx.TypeProto, name: str) -> None:
        """Check the type of a value; `kind` becomes what a sequence or an optional holds."""
        while True:
            which = kind.WhichOneof("value")
            if which == "map_type" or which == "opaque_type":
                self._refuse(
                    f"value {shown(name)} is a {which.removesuffix('_type')}, which "
                    "this tool cannot hold",
                    "export without it (scikit-learn: convert_sklearn(..., "
                    "options={'zipmap': False}))",
                )
            if which not in ("sequence_type", "optional_type"):
                break
            kind = getattr(kind, which).elem_type
            if kind.WhichOneof("value") is None:
                self._refuse(
                    f"value {shown(name)} is a {which.removesuffix('_type')} of nothing"
                )
        # no type at all is left to shape inference
        if which is None:
            return
        element_type = getattr(kind, which).elem_type
        known_types = onnx.TensorProto.DataType.values()
        if element_type not in known_types:
            self._refuse(f"value {shown(name)} has unknown type {element_type}")

    def _refuse(self, problem: str, fix: str = EXPORT_AGAIN) -> NoReturn:
        raise RefusedError(self.where, problem, fix)


def _has_type(kind: onnx.TypeProto) -> bool:
    which = kind.WhichOneof("value")
    if which in ("tensor_type", "sparse_tensor_type"):
        return bool(getattr(kind, which).elem_type)
    return which is not None


def _is_held(attribute: onnx.AttributeProto, field: str) -> bool:
    if field in _SINGLE:
        return bool(attribute.HasField(field))
    return len(getattr(attribute, field)) > 0


def _label(node: onnx.NodeProto) -> str:
    """Name of a node in messages: its op and its name, or its first output's."""
    name = node.name or next(iter(node.output), "")
    op_type = shown(node.op_type)[1:-1]
    return f"{op_type} {shown(name)}"


def _is_gone(schema: Any) -> bool:
    """True for a deprecated operator without a body by which runtimes still run it."""
    has_body = schema.has_function or schema.has_context_dependent_function
    return bool(schema.deprecated and not has_body)


@functools.cache
def _schema(op_type: str, version: int, domain: str) -> Any:
    """Schema of an operator; None if there is none."""
    if not _exists(op_type, version, domain):
        return None
    return onnx.defs.get_schema(op_type, version, domain)


def _exists(op_type: str, version: int, domain: str) -> bool:
    return bool(onnx.defs.has(op_type, version, domain))


@functools.cache
def _attributes_of(
    op_type: str, version: int, domain: str
) -> tuple[dict[str, int], frozenset[str]]:
    """Attributes of an operator: name -> AttributeProto type, and names of the required ones."""
    attributes = _schema(op_type, version, domain).attributes
    kinds = {name: A.AttributeType.Value(a.type.name) for name, a in attributes.items()}
    required = [name for name, a in attributes.items() if a.required]
    return kinds, frozenset(required)
