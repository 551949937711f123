"""Graphs grown a node at a time: each node is run on concrete values as it is added.

A model is valid and runnable by construction, whatever recipes propose: what ONNX Runtime refuses,
or what gives values of no use, is never added.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

LOCAL = "local"
"""Domain of the functions of a model."""

MICROSOFT = "com.microsoft"

MAX_ELEMENTS = 3000
"""Elements of a tensor, at most."""

MAX_MAGNITUDE = 1e4
"""Largest finite number of a tensor: beyond it sums lose what is compared."""

MAX_INPUTS = 5

MARGIN = 1e-3
"""Least distance of inexact values from where a result jumps, as a fraction of the larger."""

FLOATS = ("float32", "float64", "float16")
INTEGERS = ("int64", "int32", "uint8")
NUMBERS = (*FLOATS, *INTEGERS)
ANY = (*NUMBERS, "bool")

# ops that copy elements of their inputs, or choose among them: no rounding
_MOVES = frozenset(
    [
        "Abs",
        "Compress",
        "Concat",
        "DepthToSpace",
        "Dropout",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "Max",
        "MaxPool",
        "Min",
        "Neg",
        "Not",
        "Pad",
        "ReduceMax",
        "ReduceMin",
        "Relu",
        "Reshape",
        "ReverseSequence",
        "ScatterElements",
        "ScatterND",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "TopK",
        "Transpose",
        "Trilu",
        "Unsqueeze",
        "Where",
        "Cast",
        "CastLike",
        "SequenceAt",
        "ConcatFromSequence",
    ]
)


class Rejected(Exception):
    """A node that ONNX Runtime does not run here, or whose values are of no use."""


@dataclass(frozen=True)
class Value:
    """A named tensor with the numbers that it holds in the first run.

    `exact`: no rounding went into it. `fixed`: known without running the model.
    """

    name: str
    array: np.ndarray
    exact: bool = True
    fixed: bool = False

    @property
    def dtype(self) -> str:
        return self.array.dtype.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def rank(self) -> int:
        return self.array.ndim

    @property
    def finite(self) -> bool:
        return self.array.dtype.kind != "f" or bool(np.isfinite(self.array).all())


@dataclass
class Scope:
    """A graph under construction; `kind`: main, body or function."""

    kind: str
    values: list[Value] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)


class Builder:
    """A model under construction. All that is random comes from `random`.

    `is_static`: no dim of an input will be a symbol, so that inner shapes may be declared.
    `is_wild`: values may be infinite or NaN.
    """

    def __init__(
        self, seed: int, opset: int, is_static: bool = True, is_wild: bool = True
    ) -> None:
        self.random = np.random.default_rng(seed)
        self.opset = opset
        self.is_static = is_static
        self.is_wild = is_wild
        self.scopes = [Scope("main")]
        self.inputs: dict[str, np.ndarray] = {}
        self.defaults: set[str] = set()
        self.functions: list[onnx.FunctionProto] = []
        self.table: dict[str, Value] = {}
        self.ops: set[str] = set()
        self.only_finite = True
        self._counter = 0

    # what is there to choose from

    @property
    def scope(self) -> Scope:
        return self.scopes[-1]

    def visible(self) -> list[Value]:
        """Values that a node of the innermost graph may use, oldest first."""
        kinds = [scope.kind for scope in self.scopes]
        # a function sees nothing of its callers
        first = max(
            (at for at, kind in enumerate(kinds) if kind == "function"), default=0
        )
        return [value for scope in self.scopes[first:] for value in scope.values]

    def chance(self, probability: float) -> bool:
        return bool(self.random.random() < probability)

    def one_of(self, choices: Sequence[Any]) -> Any:
        return choices[int(self.random.integers(len(choices)))]

    def number(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return int(self.random.integers(low, high + 1))

    def pick(
        self,
        dtypes: Sequence[str] = FLOATS,
        rank: Sequence[int] = (0, 1, 2, 3, 4),
        test: Callable[[Value], bool] = lambda value: True,
        fresh: float = 0.08,
    ) -> Value:
        """A value there is, newer ones likelier, or a new leaf."""
        fitting = [
            value
            for value in self.visible()
            if value.dtype in dtypes
            and value.rank in rank
            and (value.array.size or self.chance(0.1))
            and (value.finite or self.chance(0.1))
            and test(value)
        ]
        if fitting and not self.chance(fresh):
            back = min(int(self.random.geometric(0.3)), len(fitting))
            return fitting[-back]
        for _ in range(4):
            # most models are of one type, and most of those of float
            dtype = dtypes[0] if self.chance(0.7) else self.one_of(dtypes)
            array = self.array(dtype, self.shape(self.one_of(rank)))
            if test(Value("", array)):
                return self.leaf(array)
        raise Rejected("no leaf passes the test")

    def shape(self, rank: int) -> tuple[int, ...]:
        if self.chance(0.02):
            return tuple(self.number(0, 2) for _ in range(rank))
        return tuple(self.number(1, 5) for _ in range(rank))

    def array(self, dtype: str, shape: Sequence[int]) -> np.ndarray:
        """Numbers of a type: floats around 0, small integers."""
        kind = np.dtype(dtype)
        if kind.kind == "f":
            return np.asarray(self.random.normal(0, 1, shape)).astype(kind)
        if kind.kind == "b":
            return np.asarray(self.random.random(shape) < 0.5)
        low = 0 if kind.kind == "u" else -4
        return np.asarray(self.random.integers(low, 6, shape)).astype(kind)

    # leaves

    def leaf(self, array: np.ndarray) -> Value:
        """An input of the model where that is possible, else a constant."""
        is_main = self.scope.kind == "main"
        if is_main and len(self.inputs) < MAX_INPUTS and self.chance(0.5):
            return self.input(array)
        return self.constant(array)

    def input(self, array: np.ndarray) -> Value:
        assert self.scope.kind == "main"
        name = self.name("x")
        self.inputs[name] = array
        return self._add(Value(name, array))

    def constant(
        self, array: Any, dtype: str | None = None, plain: bool = False
    ) -> Value:
        """A tensor known without running, in one of the places where models keep them.

        `plain`: never a default of an input, which a caller may override.
        """
        array = np.asarray(array, dtype)
        shared = self._equal_constant(array)
        if shared is not None and self.chance(0.3):
            return shared
        kind = self.random.random()
        if self.scope.kind == "function" or kind < 0.25:
            return self._constant_node(array)
        if kind < 0.3 and self.scope.kind == "main":
            return self.node("Identity", [self._initializer(array)])
        # an outer graph may hold it, whose bodies all see it
        scope = self.scope
        if self.chance(0.3) and all(each.kind != "function" for each in self.scopes):
            scope = self.one_of(self.scopes)
        value = self._initializer(array, scope)
        if kind > 0.93 and scope.kind == "main" and not plain:
            self.defaults.add(value.name)
        return value

    def ints(self, *numbers: int) -> Value:
        """A vector of int64: a shape, axes, pads."""
        return self.constant(np.array(numbers, np.int64), plain=True)

    def _equal_constant(self, array: np.ndarray) -> Value | None:
        for value in self.visible():
            if not value.fixed or value.name in self.defaults:
                continue
            is_alike = value.dtype == array.dtype.name and value.shape == array.shape
            # by their bytes: -0.0 is another constant than 0.0
            if is_alike and value.array.tobytes() == array.tobytes():
                return value
        return None

    def _initializer(self, array: np.ndarray, scope: Scope | None = None) -> Value:
        scope = scope or self.scope
        name = self.name("w")
        scope.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return self._add(Value(name, array, fixed=True), scope)

    def _constant_node(self, array: np.ndarray) -> Value:
        name = self.name("k")
        attributes: dict[str, Any] = {"value": numpy_helper.from_array(array, name)}
        form = f"{array.dtype.name}/{array.ndim}"
        if self.chance(0.5) and array.size:
            short = {
                "float32/0": ("value_float", float),
                "int64/0": ("value_int", int),
                "float32/1": ("value_floats", np.ndarray.tolist),
                "int64/1": ("value_ints", np.ndarray.tolist),
            }
            if form in short:
                key, convert = short[form]
                attributes = {key: convert(array)}
        node = helper.make_node("Constant", [], [name], **attributes)
        self.scope.nodes.append(node)
        self.ops.add("Constant")
        return self._add(Value(name, array, fixed=True))

    # nodes

    def node(self, op: str, inputs: Sequence[Value | None], **attributes: Any) -> Value:
        """A node of one output; `domain` may be among the attributes. Raises Rejected."""
        return self.nodes(op, inputs, 1, **attributes)[0]

    def nodes(
        self, op: str, inputs: Sequence[Value | None], count: int, **attributes: Any
    ) -> list[Value]:
        """A node of several outputs. Raises Rejected."""
        names = [self.name("h") for _ in range(count)]
        node = helper.make_node(
            op,
            ["" if value is None else value.name for value in inputs],
            names,
            **attributes,
        )
        return self.add([node])

    def add(
        self, nodes: list[onnx.NodeProto], wanted: Sequence[str] = ()
    ) -> list[Value]:
        """Nodes that only run together, and their outputs (those of the last by default)."""
        wanted = list(wanted or [name for name in nodes[-1].output if name])
        for node in nodes:
            self._require_schema(node)
        sources = [self.table[name] for name in captured(nodes)]
        arrays = self.run(nodes, wanted)
        exact = all(source.exact for source in sources) and all(
            node.op_type in _MOVES for node in nodes
        )
        fixed = all(source.fixed for source in sources) and not any(
            source.name in self.defaults for source in sources
        )
        self.scope.nodes.extend(nodes)
        self.ops.update(node.op_type for node in nodes if node.domain != LOCAL)
        added = []
        for name, array in zip(wanted, arrays, strict=True):
            is_exact = exact or array.dtype.kind not in "fc"
            added.append(self._add(Value(name, array, is_exact, fixed)))
        return added

    def _require_schema(self, node: onnx.NodeProto) -> None:
        """Reject what onnx.checker refuses and the runtime takes: ops ahead of their opset."""
        if node.domain:
            return
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opset, "")
        except onnx.defs.SchemaError:
            raise Rejected(f"no {node.op_type} in opset {self.opset}") from None
        if schema.deprecated:
            raise Rejected(f"{node.op_type} is deprecated")

    def run(
        self, nodes: list[onnx.NodeProto], wanted: Sequence[str]
    ) -> list[np.ndarray]:
        """Outputs of a few nodes on the values they take. Raises Rejected."""
        feeds = {name: self.table[name].array for name in captured(nodes)}
        graph = helper.make_graph(
            nodes,
            "nodes",
            [value_info(name, array) for name, array in feeds.items()],
            [helper.make_empty_tensor_value_info(name) for name in wanted],
        )
        # the wording of the runtime's many refusals is of no interest
        try:
            session = onnxruntime.InferenceSession(
                self.model(graph).SerializeToString(),
                session_options(),
                providers=["CPUExecutionProvider"],
            )
            arrays = session.run(list(wanted), feeds)
        except Exception as error:
            raise Rejected(str(error)) from None
        for array in arrays:
            if not _useful(array, self.only_finite):
                raise Rejected("values of no use")
        return arrays

    def model(self, graph: onnx.GraphProto) -> onnx.ModelProto:
        opsets = [helper.make_opsetid("", self.opset)]
        used = {node.domain for node in all_nodes(graph.node)}
        for function in self.functions:
            used.update(node.domain for node in function.node)
        opsets += [helper.make_opsetid(domain, 1) for domain in sorted(used - {""})]
        return helper.make_model(
            graph,
            opset_imports=opsets,
            functions=self.functions,
            ir_version=10,
            producer_name="fuzz",
        )

    @contextlib.contextmanager
    def body(self, kind: str = "body") -> Iterator[Scope]:
        """A graph inside the innermost one; it is dropped with what is in it where it fails."""
        self.scopes.append(Scope(kind))
        try:
            yield self.scope
        finally:
            self.scopes.pop()

    @contextlib.contextmanager
    def nonfinite(self) -> Iterator[None]:
        """Let values be infinite or NaN, where the model may have such."""
        if not self.is_wild:
            raise Rejected("all finite")
        before, self.only_finite = self.only_finite, False
        try:
            yield
        finally:
            self.only_finite = before

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Undo what the block added if it raises Rejected, so that no dead nodes are left."""
        depth = len(self.scopes)
        marks = [
            (len(s.values), len(s.nodes), len(s.initializers)) for s in self.scopes
        ]
        inputs = dict(self.inputs)
        defaults = set(self.defaults)
        functions = len(self.functions)
        try:
            yield
        except Rejected:
            del self.scopes[depth:]
            for scope, (values, nodes, initializers) in zip(
                self.scopes, marks, strict=True
            ):
                del scope.values[values:]
                del scope.nodes[nodes:]
                del scope.initializers[initializers:]
            self.inputs = inputs
            self.defaults = defaults
            del self.functions[functions:]
            raise

    def name(self, stem: str) -> str:
        self._counter += 1
        return f"{stem}{self._counter}"

    def declare(self, array: np.ndarray, exact: bool = True) -> Value:
        """An input of the innermost body or function."""
        return self._add(Value(self.name("p"), array, exact))

    def _add(self, value: Value, scope: Scope | None = None) -> Value:
        (scope or self.scope).values.append(value)
        self.table[value.name] = value
        return value

    # where results jump

    def distinct(self, value: Value, other: np.ndarray) -> None:
        """Reject inexact values that nearly equal those of another array."""
        if value.exact or value.array.dtype.kind != "f":
            return
        first = value.array.astype(np.float64)
        second = other.astype(np.float64)
        scale = np.maximum(np.maximum(np.abs(first), np.abs(second)), 1)
        if np.any(np.abs(first - second) < MARGIN * scale):
            raise Rejected("a result would jump with float noise")


def _useful(array: Any, only_finite: bool) -> bool:
    if not isinstance(array, np.ndarray):
        return False
    if array.size > MAX_ELEMENTS or array.ndim > 6:
        return False
    if array.dtype.name not in (*ANY, "int8", "uint32", "uint64", "int16"):
        return False
    if array.dtype.kind != "f":
        return array.dtype.kind == "b" or not np.any(
            np.abs(array.astype(float)) > 2**30
        )
    finite = array[np.isfinite(array)]
    if only_finite and finite.size != array.size:
        return False
    return not np.any(np.abs(finite) > MAX_MAGNITUDE)


def captured(nodes: Sequence[onnx.NodeProto]) -> list[str]:
    """Names that nodes take and do not make, those of their bodies included, each once."""
    made: set[str] = set()
    taken: dict[str, None] = {}
    for node in nodes:
        for name in node.input:
            if name and name not in made:
                taken[name] = None
        for graph in graphs_of(node):
            own = {value.name for value in graph.input}
            own.update(tensor.name for tensor in graph.initializer)
            inner = captured(graph.node)
            # a body may return what an outer graph made
            produced = {name for each in graph.node for name in each.output}
            ends = [v.name for v in graph.output if v.name not in produced]
            for name in [*inner, *ends]:
                if name not in own and name not in made:
                    taken[name] = None
        made.update(node.output)
    return list(taken)


def graphs_of(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]


def all_nodes(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes and those of their bodies."""
    for node in nodes:
        yield node
        for graph in graphs_of(node):
            yield from all_nodes(graph.node)


def value_info(
    name: str, array: np.ndarray, shape: Sequence[Any] | None = None
) -> onnx.ValueInfoProto:
    dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(
        name, dtype, array.shape if shape is None else shape
    )


def session_options(optimize: bool = False) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    )
    return options
