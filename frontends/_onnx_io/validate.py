"""Is a parsed model well formed? Versions, names, operators, attributes, functions.

onnx.checker alone is not enough: it passes opset 9999, tensors of a wrong length and exponential
function calls, and being C++ it can take the process down.
"""

from __future__ import annotations

import functools
from typing import Any, NoReturn

import onnx

from ... import RefusedError
from .functions import check_calls
from .read import EXPORT_AGAIN
from .tensors import check_tensor, shown

A = onnx.AttributeProto
STANDARD = ("", "ai.onnx.ml")
"""Domains whose operators are all known; other domains are checked for structure only."""

RUNTIME_OPS = frozenset({"LayerNormalization", "SimplifiedLayerNormalization"})
"""Operators that ONNX Runtime adds to the standard domain at every opset; its own tools write
them.
"""

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
_SINGLE = ("f", "i", "s", "t", "g", "sparse_tensor", "tp")


def validate(proto: onnx.ModelProto, where: str) -> bool:
    """RefusedError unless `proto` is well formed; whether some nodes stand before what they read
    (unsorted).
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
    checker = _Bodies(where, _imports(proto.opset_import, where), frozenset(functions))
    checker.graph(proto.graph)
    for function in proto.functions:
        checker.function(function)
    check_calls(proto, functions, where)
    return checker.unsorted


def _check_versions(proto: onnx.ModelProto, where: str) -> None:
    if not 3 <= proto.ir_version <= onnx.IR_VERSION:
        old = proto.ir_version < 3
        fix = (
            "export the model again with a newer exporter"
            if old
            else "pip install --upgrade onnx onnx-ir"
        )
        raise RefusedError(
            where,
            f"has IR version {proto.ir_version}; versions 3 to {onnx.IR_VERSION} are known",
            fix,
        )
    if not proto.opset_import:
        raise RefusedError(where, "imports no operator set", EXPORT_AGAIN)


def _imports(opsets: Any, where: str) -> dict[str, int]:
    """Domain -> version, `ai.onnx` spelled as ONNX's own tools do (""), in the message too."""
    known = {
        "": onnx.defs.onnx_opset_version(),
        "ai.onnx.ml": int(onnx.helper.VERSION_TABLE[-1][3]),
    }
    found: dict[str, int] = {}
    for opset in opsets:
        if opset.domain == "ai.onnx":
            opset.domain = ""
        name = f"domain {shown(opset.domain)}"
        if found.setdefault(opset.domain, opset.version) != opset.version:
            raise RefusedError(
                where, f"imports {name} twice, in different versions", EXPORT_AGAIN
            )
        highest = known.get(opset.domain, opset.version)
        if not 1 <= opset.version <= highest:
            raise RefusedError(
                where,
                f"needs opset {opset.version} of {name}; 1 to {highest} are known",
                "export it for a lower opset, or pip install --upgrade onnx",
            )
    return found


class _Bodies:
    """Checks graphs and functions; `unsorted` says whether a node stood before what it reads."""

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
        self._scopes: list[
            dict[str, bool]
        ] = []  # name -> has it been computed yet, innermost graph last

    def graph(self, graph: onnx.GraphProto) -> None:
        """Check one graph and, through its nodes, its subgraphs (protobuf itself limits their
        depth).
        """
        scope: dict[str, bool] = {}
        for info in graph.input:
            if not info.name or info.name in scope:
                self._refuse(
                    f"declares graph input {shown(info.name)} twice"
                    if info.name
                    else "has a nameless input"
                )
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
        outer, self.imports = self.imports, _imports(function.opset_import, self.where)
        self._nodes(function.node, scope)
        self.imports = outer
        for name in function.output:
            if name not in scope:
                self._refuse(
                    f"output {shown(name)} of function {shown(function.name)} is "
                    "produced by no node"
                )

    def _initializers(self, graph: onnx.GraphProto, scope: dict[str, bool]) -> None:
        seen: set[str] = set()
        for tensor in (
            *graph.initializer,
            *(s.values for s in graph.sparse_initializer),
        ):
            if not tensor.name or tensor.name in seen:
                self._refuse(
                    f"initializer {shown(tensor.name)} stands there twice"
                    if tensor.name
                    else "has a nameless initializer"
                )
            seen.add(tensor.name)
            scope[tensor.name] = True
            check_tensor(tensor, self.where)
        for sparse in graph.sparse_initializer:
            check_tensor(sparse.indices, self.where)

    def _nodes(self, nodes: Any, scope: dict[str, bool]) -> None:
        for node in nodes:
            for name in node.output:
                if (name and name in scope) or any(
                    outer.get(name) for outer in self._scopes
                ):
                    self._refuse(f"value {shown(name)} is defined twice")
                if name:
                    scope[name] = False
        self._scopes.append(scope)
        for node in nodes:
            self._node(node)
            scope.update((name, True) for name in node.output if name)
        self._scopes.pop()

    def _node(self, node: onnx.NodeProto) -> None:
        for name in node.input:
            if name:
                ready = next(
                    (s[name] for s in reversed(self._scopes) if name in s), None
                )
                if ready is None:
                    self._refuse(
                        f"{_label(node)} reads {shown(name)}, which nothing defines"
                    )
                self.unsorted |= not ready
        if not node.op_type:
            self._refuse(f"node {shown(node.name)} has no operator")
        self._attributes(node)
        self._operator(node)

    def _operator(self, node: onnx.NodeProto) -> None:
        domain = "" if node.domain == "ai.onnx" else node.domain
        if (domain, node.op_type, node.overload) in self.functions:
            return
        if domain not in self.imports:
            self._refuse(
                f"{_label(node)} is of domain {shown(domain)}, which the model does not import"
            )
        if domain not in STANDARD or node.op_type in RUNTIME_OPS:
            return
        version = self.imports[domain]
        schema = _schema(node.op_type, version, domain)
        if schema is None or schema.deprecated:
            self._refuse(
                f"{_label(node)}: no such operator in opset {version}"
                + (f" of {domain}" if domain else "")
            )
        for kind, count, low, high in (
            ("inputs", len(node.input), schema.min_input, schema.max_input),
            ("outputs", len(node.output), schema.min_output, schema.max_output),
        ):
            if not low <= count <= high:
                self._refuse(
                    f"{_label(node)} has {count} {kind}; {low} to {high} are allowed"
                )
        kinds, required = _attributes_of(node.op_type, version, domain)
        for attribute in node.attribute:
            if attribute.name not in kinds or kinds[attribute.name] != attribute.type:
                self._refuse(
                    f"{_label(node)} has an unknown or wrongly typed attribute "
                    f"{shown(attribute.name)}"
                )
        for name in required - {a.name for a in node.attribute}:
            self._refuse(f"{_label(node)} lacks attribute '{name}'")

    def _attributes(self, node: onnx.NodeProto) -> None:
        if len({a.name for a in node.attribute}) != len(node.attribute):
            self._refuse(f"{_label(node)} has an attribute twice")
        for attribute in node.attribute:
            field = _FIELD_OF.get(attribute.type)
            if field is None:
                self._refuse(
                    f"{_label(node)}: attribute {shown(attribute.name)} has no known type"
                )
            if not attribute.ref_attr_name:
                self._content(node, attribute, field)

    def _content(
        self, node: onnx.NodeProto, attribute: onnx.AttributeProto, field: str
    ) -> None:
        held = {
            f
            for f in _FIELD_OF.values()
            if (attribute.HasField(f) if f in _SINGLE else len(getattr(attribute, f)))
        }
        if held != {field} and not (not held and field not in _SINGLE):
            self._refuse(
                f"{_label(node)}: attribute {shown(attribute.name)} does not hold "
                "what its type says"
            )
        if field.startswith("sparse_tensor") and (
            node.op_type != "Constant" or node.domain not in ("", "ai.onnx")
        ):
            self._refuse(
                f"{_label(node)} has a sparse attribute, which only Constant may have here"
            )
        tensors = [*([attribute.t] if field == "t" else []), *attribute.tensors]
        if field == "sparse_tensor":
            tensors += [attribute.sparse_tensor.values, attribute.sparse_tensor.indices]
        for tensor in tensors:
            check_tensor(tensor, self.where)
        for kind in (
            *([attribute.tp] if field == "tp" else []),
            *attribute.type_protos,
        ):
            self._type(kind, attribute.name)
        for graph in (*([attribute.g] if field == "g" else []), *attribute.graphs):
            self.graph(graph)

    def _type(self, kind: onnx.TypeProto, name: str) -> None:
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
        if (
            which is not None
            and getattr(kind, which).elem_type not in onnx.TensorProto.DataType.values()
        ):
            self._refuse(
                f"value {shown(name)} has unknown type {getattr(kind, which).elem_type}"
            )

    def _refuse(self, problem: str, fix: str = EXPORT_AGAIN) -> NoReturn:
        raise RefusedError(self.where, problem, fix)


def _has_type(kind: onnx.TypeProto) -> bool:
    which = kind.WhichOneof("value")
    if which in ("tensor_type", "sparse_tensor_type"):
        return bool(getattr(kind, which).elem_type)
    return which is not None


def _label(node: onnx.NodeProto) -> str:
    return (
        f"{shown(node.op_type)[1:-1]} {shown(node.name or next(iter(node.output), ''))}"
    )


@functools.cache
def _schema(op_type: str, version: int, domain: str) -> Any:
    return (
        onnx.defs.get_schema(op_type, version, domain)
        if _exists(op_type, version, domain)
        else None
    )


def _exists(op_type: str, version: int, domain: str) -> bool:
    return bool(onnx.defs.has(op_type, version, domain))


@functools.cache
def _attributes_of(
    op_type: str, version: int, domain: str
) -> tuple[dict[str, int], frozenset[str]]:
    """An operator's attributes: name -> AttributeProto type, and the names of the required ones."""
    attributes = _schema(op_type, version, domain).attributes
    kinds = {name: A.AttributeType.Value(a.type.name) for name, a in attributes.items()}
    return kinds, frozenset(name for name, a in attributes.items() if a.required)
