"""Concrete shapes: the graph walked with a number in the place of every symbolic dim.

The numbers are primes that no model has as a width (times a power of two where strides ask for it),
so a product of dims can be taken apart again: the algebra of shapes is plain integer arithmetic,
dynamic dims included. A second walk with other numbers shows what depends on them.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.edit import is_constant
from .._core.graph import holds_graphs, input_of
from .._core.ops import MICROSOFT, VIEWS, WEIGHTED_OPS, is_standard, plain_op
from .._core.tabular import stand_in
from .._simplify.evaluate import NotFoldable, evaluate, foldable, result_elements
from .shapes import SHAPES, Shape

KNOWN = 4096
"""Elements of the largest tensor whose values are followed: shapes, axes, indices; never
weights. Chosen by hand; not measured.
"""

PRIMES = (
    101,
    103,
    107,
    109,
    113,
    127,
    131,
    137,
    139,
    149,
    151,
    157,
    163,
    167,
    173,
    179,
    181,
    191,
    193,
    197,
    199,
)

SCALES = ((1, 1), (1, 32), (32, 32), (1, 8))
"""Factors of the first symbol (the batch, mostly) and of the others, tried in turn: networks with
strides need dims that divide by them.
"""

SMALL = (1, 2, 16)
"""Tried last for every symbol at once: models that only accept one size."""

PINNED, SPELLED = 3, 6
"""Symbols, and sizes for each, that are tried one by one where primes do not fit; each is a walk.
Chosen by hand, not measured.
"""

FITTING = (
    VIEWS | frozenset(WEIGHTED_OPS) | {"Add", "Concat", "Div", "Mul", "Sub", "Where"}
)
"""Ops whose inputs must fit each other, and whose output's shape follows from theirs."""

FEW = 13
"""A prime that most tables of positions have room for."""

STRETCH = (1, 32)
"""Factors of the prime that a symbol is given alone, once a small size is known to fit."""

FAILURES = (
    onnx.defs.SchemaError,
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,
    RuntimeError,
    ValueError,
    TypeError,
)
"""Exceptions of onnx's inference for a node that it cannot follow."""

Sizes = dict[str, int]
"""The size that stands for each symbol, and for each dim that is a number."""


class Trace:
    """Shapes of all values of the main graph, and the values of its small integer tensors.

    `shapes` lacks what is not known; `arrays` holds numpy arrays of at most `KNOWN` elements.
    `step` follows one node.
    """

    def __init__(self, model: ir.Model, sizes: Mapping[str, int]) -> None:
        self.sizes = dict(sizes)
        self.twin: Trace | None = None
        """The same walk with other sizes: what is equal in both does not depend on symbolic
        dims.
        """
        self.opset = model.opset_imports.get("", 1)
        self.opsets = dict(model.opset_imports)
        self.shapes: dict[ir.Value, Shape] = {}
        self.arrays: dict[ir.Value, NDArray[Any]] = {}
        self.contradicted = False
        """True once a node cannot run under these sizes: others must be meant."""
        for value in model.graph.inputs:
            if value.shape is not None:
                symbols = _symbols(value)
                self.shapes[value] = tuple(sizes[symbol] for symbol in symbols)
        for value in model.graph.initializers.values():
            self.know(value)

    def know(self, value: ir.Value) -> None:
        """Take the shape, and where small the values, of an initializer."""
        tensor = value.const_value
        if tensor is None:
            return
        self.shapes[value] = _shape_of(tensor)
        self.arrays.pop(value, None)
        small = tensor.size <= KNOWN and tensor.dtype != ir.DataType.STRING
        if is_constant(value) and small:
            self.arrays[value] = tensor.numpy()

    # --- facts ------------------------------------------------------------------

    def shape(self, value: ir.Value | None) -> Shape | None:
        """Shape of a value under the probe sizes; None if unknown or absent."""
        if value is None:
            return None
        return self.shapes.get(value)

    def ints(self, value: ir.Value | None) -> list[int] | None:
        """A known small integer tensor as a flat list."""
        if value is None:
            return None
        array = self.arrays.get(value)
        if array is None or array.dtype.kind not in "iu":
            return None
        flat = array.reshape(-1)
        return [int(number) for number in flat]

    def constants(self, value: ir.Value | None) -> list[int] | None:
        """As `ints`, for numbers that are the same whatever size the symbolic dims have."""
        mine = self.ints(value)
        if self.twin is None or self.twin.ints(value) == mine:
            return mine
        return None

    def varies(self, value: ir.Value, axis: int) -> bool:
        """Return whether the size of an axis depends on a symbolic dim, as far as can be seen."""
        if self.twin is None:
            return False
        other = self.twin.shape(value)
        if other is None:
            return True
        return other[axis] != self.shapes[value][axis]

    # --- one node ---------------------------------------------------------------

    def step(self, node: ir.Node) -> bool:
        """Follow one node; return whether every output's shape is known then.

        Never raises on what a node cannot do.
        """
        # surgery steps over a node twice: what the first step found may be wrong
        for value in node.outputs:
            self.shapes.pop(value, None)
            self.arrays.pop(value, None)
        if holds_graphs(node):
            self._declared(node)
        elif is_standard(node, "Shape"):
            self._shape(node)
        elif not self._evaluated(node):
            self._inferred(node)
            self._inferred_by_us(node)
            self._refuse_other_counts(node)
            self.contradicted |= self._contradicts(node)
        return self._is_complete(node)

    def _is_complete(self, node: ir.Node) -> bool:
        named = [value for value in node.outputs if value.name]
        return all(value in self.shapes for value in named)

    def _shape(self, node: ir.Node) -> None:
        shape = self.shape(node.inputs[0])
        if shape is not None:
            start = node.attributes.get_int("start", 0)
            end = node.attributes.get_int("end", len(shape))
            numbers = np.array(shape[start:end], np.int64)
            self._set(node.outputs[0], numbers)

    def _set(self, value: ir.Value, array: NDArray[Any]) -> None:
        self.shapes[value] = array.shape
        if array.size <= KNOWN:
            self.arrays[value] = array

    def _evaluated(self, node: ir.Node) -> bool:
        """Compute a node all of whose inputs are known; return whether that was possible."""
        arrays: list[NDArray[Any] | None] = []
        for value in node.inputs:
            array = None if value is None else self.arrays.get(value)
            if value is not None and array is None:
                return False
            arrays.append(array)
        if not foldable(node):
            return False
        try:
            # the size is computed first: a small input can make a tensor of any size
            if result_elements(node, arrays) > KNOWN:
                return False
            results = evaluate(node, arrays, self.opset)
        except NotFoldable:
            return False
        for output, result in zip(node.outputs, results, strict=True):
            self._set(output, result)
        return True

    def _declared(self, node: ir.Node) -> None:
        """Take the static shapes that a node with subgraphs declares; an If is followed inside."""
        for value in node.outputs:
            if value.shape is not None and value.shape.is_static():
                self.shapes[value] = _numbers(value.shape)
        if is_standard(node, "If"):
            self._branches(node)

    def _branches(self, node: ir.Node) -> None:
        """Take the shapes that the branches agree on, or those of the one that is taken."""
        yes = self._branch(node.attributes["then_branch"].as_graph())
        no = self._branch(node.attributes["else_branch"].as_graph())
        condition = None
        if node.inputs[0] is not None:
            condition = self.arrays.get(node.inputs[0])
        for value, if_true, if_false in zip(node.outputs, yes, no, strict=True):
            if condition is not None:
                shape = if_true if condition.all() else if_false
            else:
                shape = if_true if if_true == if_false else None
            if shape is not None and value.name:
                self.shapes[value] = shape

    def _branch(self, graph: ir.Graph) -> list[Shape | None]:
        """Follow a branch; return the shapes of its outputs."""
        for value in graph.initializers.values():
            self.know(value)
        for inner in graph:
            self.step(inner)
        return [self.shape(value) for value in graph.outputs]

    def _inferred(self, node: ir.Node) -> None:
        """Take the shapes that onnx infers from the shapes, and small values, of the inputs."""
        types: dict[str, onnx.TypeProto] = {}
        data: dict[str, onnx.TensorProto] = {}
        for value in node.inputs:
            if value is None or value.name is None:
                continue
            types[value.name] = _type_proto(value, self.shapes.get(value))
            # values of shape tensors matter to Reshape, Slice and their kind
            array = self.arrays.get(value)
            if array is not None and _feeds_inference(array):
                tensor = onnx.numpy_helper.from_array(array, value.name)
                data[value.name] = tensor
        try:
            found = self._infer(node, types, data)
        except FAILURES:
            return
        for value in node.outputs:
            if not value.name or value.name not in found:
                continue
            shape = _static_shape(found[value.name])
            if shape is not None:
                self.shapes[value] = shape

    def _infer(
        self,
        node: ir.Node,
        types: dict[str, onnx.TypeProto],
        data: dict[str, onnx.TensorProto],
    ) -> dict[str, onnx.TypeProto]:
        """Onnx's inference of one node: types of its outputs by name. Raises FAILURES."""
        proto = stand_in(ir.to_proto(node))
        # a fused MatMul may read its matrices transposed: it has a rule of its own
        if node.domain == MICROSOFT and plain_op(node) in ("Conv", "Gemm"):
            proto = _unfused(proto, plain_op(node))
        schema = onnx.defs.get_schema(
            proto.op_type,
            self.opsets.get(proto.domain, 1),
            proto.domain,
        )
        opsets = []
        for domain, number in self.opsets.items():
            opset = onnx.helper.make_opsetid(domain, number)
            opsets.append(opset)
        found: dict[str, onnx.TypeProto] = onnx.shape_inference.infer_node_outputs(
            schema,
            proto,
            types,
            data,
            opset_imports=opsets,
        )
        return found

    def _refuse_other_counts(self, node: ir.Node) -> None:
        """Forget the shape of a view that does not hold the elements of its input.

        Inference believes what a Reshape is told.
        """
        if not is_standard(node, *VIEWS):
            return
        before = self.shape(node.inputs[0])
        after = self.shape(node.outputs[0])
        if before is None or after is None:
            return
        if prod(before) != prod(after):
            del self.shapes[node.outputs[0]]

    def _contradicts(self, node: ir.Node) -> bool:
        """Return whether what a node reads is known, and cannot be read together."""
        if not is_standard(node, *FITTING) or self._is_complete(node):
            return False
        if node.op_type in VIEWS and self.ints(input_of(node, 1)) is None:
            return False
        present = [value for value in node.inputs if value is not None]
        return all(value in self.shapes for value in present)

    def _inferred_by_us(self, node: ir.Node) -> None:
        """Take shapes by this project's own rules, where onnx has none."""
        entry = SHAPES.get((node.domain, node.op_type))
        # onnx goes first: these stand in where it says nothing
        if entry is None or self._is_complete(node):
            return
        inputs = [self.shape(value) for value in node.inputs]
        try:
            shapes = entry(node, inputs)
        # an input of another rank than the op asks for
        except (IndexError, ValueError):
            return
        for value, shape in zip(node.outputs, shapes, strict=False):
            if shape is not None and value.name:
                self.shapes.setdefault(value, shape)


def _unfused(proto: onnx.NodeProto, op: str) -> onnx.NodeProto:
    """A fused operator as the standard one whose output has the same shape."""
    schema = onnx.defs.get_schema(op)
    known = [each for each in proto.attribute if each.name in schema.attributes]
    return onnx.helper.make_node(
        op,
        # what is added to a convolution's output comes last
        proto.input[: schema.max_input],
        proto.output,
        **{each.name: onnx.helper.get_attribute_value(each) for each in known},
    )


def _shape_of(tensor: ir.TensorProtocol) -> Shape:
    return _numbers(tensor.shape)


def _numbers(shape: ir.Shape | ir.ShapeProtocol) -> Shape:
    """A static shape as plain numbers."""
    return tuple(int(size) for size in shape.numpy())


def _feeds_inference(array: NDArray[Any]) -> bool:
    """Return whether onnx's inference reads such values: neither booleans nor single bytes."""
    dtype = array.dtype
    return dtype.kind in "iuf" and dtype.itemsize > 1


def _type_proto(value: ir.Value, shape: Iterable[int] | None) -> onnx.TypeProto:
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        return ir.serde.serialize_type(value.type)
    # the type does not matter to a shape; inference asks for one
    dtype = value.dtype or ir.DataType.FLOAT
    return onnx.helper.make_tensor_type_proto(int(dtype), shape)


def _static_shape(found: onnx.TypeProto) -> Shape | None:
    if not found.HasField("tensor_type") or not found.tensor_type.HasField("shape"):
        return None
    dims = found.tensor_type.shape.dim
    if not all(dim.HasField("dim_value") for dim in dims):
        return None
    return tuple(dim.dim_value for dim in dims)


# --- the whole graph ------------------------------------------------------------


def traced(model: ir.Model) -> Trace:
    """A trace of the main graph under the first probe sizes that fit all its nodes.

    Where none fit all, those that fit most. `model` is normalized. Linear in nodes.
    """
    known, symbols = _dims(model)
    best = _best(model, _large_probes(known, symbols))
    if best.unknown and symbols:
        best = _pinned(model, best, symbols)
    if best.unknown and symbols:
        best = _best(model, _small_probes(known, symbols), best)
    trace = best.trace
    others = best.others
    held = [symbol for symbol in symbols if trace.sizes[symbol] == others[symbol]]
    if held:
        # one size fits: most symbols take another by themselves, and show what varies
        loosened = _loosened(
            model,
            trace.sizes,
            held,
            best.unknown,
        )
        trace, _ = _walk(model, loosened)
        others = _loosened(
            model,
            {**others, **{symbol: loosened[symbol] for symbol in held}},
            held,
            best.unknown,
            twin=True,
        )
    # where nothing is symbolic one walk says it all
    if trace.sizes != others:
        trace.twin, _ = _walk(model, others)
    return trace


@dataclass(frozen=True)
class Walked:
    """A trace, the number of nodes that stayed unknown, and other sizes that should fit as well."""

    trace: Trace
    unknown: int
    others: Sizes


def _best(
    model: ir.Model, probes: Iterable[tuple[Sizes, Sizes]], best: Walked | None = None
) -> Walked:
    """Walk with each probe until one fits all nodes; the one that fits most, the earlier of two."""
    for sizes, others in probes:
        trace, unknown = _walk(model, sizes)
        if best is None or unknown < best.unknown:
            best = Walked(trace, unknown, others)
        if not best.unknown:
            break
    assert best is not None
    return best


def _pinned(model: ir.Model, best: Walked, symbols: Sequence[str]) -> Walked:
    """Hold symbols at other sizes, as long as more nodes fit then.

    A table of positions has room for few; an exporter that traced one input leaves its sizes in the
    targets of reshapes, and no other can run.
    """
    candidates = [FEW, *_spelled_out(model)]
    for _ in range(PINNED):
        # where an operator has no rule, no other size helps
        if not best.trace.contradicted:
            break
        probes = []
        for symbol, size in itertools.product(symbols[:PINNED], candidates):
            pin = {symbol: size}
            probes.append((best.trace.sizes | pin, best.others | pin))
        pinned = _best(model, probes, best)
        if pinned is best:
            break
        best = pinned
    return best


def _spelled_out(model: ir.Model) -> list[int]:
    """Sizes in constant targets of reshapes, the most frequent first."""
    found: Counter[int] = Counter()
    for node in model.graph:
        if not is_standard(node, "Reshape"):
            continue
        target = node.inputs[1]
        if target is not None and is_constant(target):
            assert target.const_value is not None
            numbers = target.const_value.numpy().reshape(-1).tolist()
            found.update(size for size in numbers if size > 0)
    return [size for size, _ in found.most_common(SPELLED)]


def _walk(model: ir.Model, sizes: Mapping[str, int]) -> tuple[Trace, int]:
    """A trace of every node, and the number of nodes whose shapes stayed unknown."""
    trace = Trace(model, sizes)
    unknown = 0
    for node in model.graph:
        unknown += not trace.step(node)
    return trace, unknown


def _dims(model: ir.Model) -> tuple[Sizes, list[str]]:
    """Sizes that the inputs state, and the symbols that they leave open."""
    known: Sizes = {}
    symbols = dict[str, None]()
    for value in model.graph.inputs:
        names = _symbols(value)
        for name, dim in zip(names, value.shape or (), strict=True):
            if isinstance(dim, int):
                known[name] = dim
            else:
                symbols[name] = None
    return known, list(symbols)


def _large_probes(known: Sizes, symbols: list[str]) -> Iterator[tuple[Sizes, Sizes]]:
    """Two sizes for every symbol, primes and multiples of them; one where nothing is symbolic."""
    if not symbols:
        yield known, known
        return
    for first, scale in SCALES:
        pair = []
        for start in (0, len(symbols)):
            sizes = dict(known)
            for index, symbol in enumerate(symbols):
                factor = scale if index else first
                prime = _prime(start + index)
                sizes[symbol] = prime * factor
            pair.append(sizes)
        yield pair[0], pair[1]


def _small_probes(known: Sizes, symbols: list[str]) -> Iterator[tuple[Sizes, Sizes]]:
    """One small size for every symbol."""
    for size in SMALL:
        sizes = known | dict.fromkeys(symbols, size)
        yield sizes, sizes


def _loosened(
    model: ir.Model,
    sizes: Sizes,
    symbols: list[str],
    unknown: int,
    *,
    twin: bool = False,
) -> Sizes:
    """Sizes that fit as well, with a prime for every symbol that takes one by itself.

    Or a multiple of a prime. A `twin` differs from `sizes` in every symbol that takes more than one
    size.
    """
    start = len(symbols) if twin else 0
    for index, symbol in enumerate(symbols):
        prime = _prime(start + index)
        held = sizes[symbol]
        # a reshape may ask for a multiple of what it was made for
        candidates = [prime * factor for factor in (*STRETCH, held)]
        if twin:
            candidates += [*SMALL, 2 * held]
        for size in candidates:
            if size == sizes[symbol]:
                continue
            trial = sizes | {symbol: size}
            _, still_unknown = _walk(model, trial)
            if still_unknown <= unknown:
                sizes = trial
                break
    return sizes


def _prime(index: int) -> int:
    if index < len(PRIMES):
        return PRIMES[index]
    # models with so many symbols: numbers that differ must do
    return 2 * index * (index + 1) + 211


def _symbols(value: ir.Value) -> list[str]:
    """A name for each dim of a value: of a symbol its own where it has one, else its place."""
    names = []
    for index, dim in enumerate(value.shape or ()):
        if isinstance(dim, int):
            names.append(f"={dim}")
        else:
            names.append(dim.value or f"{value.name}[{index}]")
    return names
