"""Concrete shapes: the graph walked with a number in the place of every symbolic dim.

The numbers are primes that no model has as a width (times a power of two where strides ask for it),
so a product of dims can be taken apart again: the algebra of shapes is plain integer arithmetic,
dynamic dims included. A second walk with other numbers shows what depends on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.edit import is_constant
from .._core.graph import holds_graphs
from .._simplify.evaluate import NotFoldable, evaluate, foldable, result_elements
from .shapes import SHAPES, Shape

KNOWN = 4096
"""Elements of the largest tensor whose values are followed: shapes, axes, indices; never
weights.
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


class Trace:
    """Shapes of all values of the main graph, and the values of its small integer tensors.

    `shapes` lacks what is not known; `arrays` holds numpy arrays of at most `KNOWN` elements.
    `step` follows one node.
    """

    def __init__(self, model: ir.Model, sizes: Mapping[str, int]) -> None:
        self.sizes = sizes
        self.twin: Trace | None = None
        """The same walk with other sizes: what is equal in both does not depend on symbolic
        dims.
        """
        self.opset = model.opset_imports.get("", 1)
        self.opsets = dict(model.opset_imports)
        self.shapes: dict[ir.Value, Shape] = {}
        self.arrays: dict[ir.Value, NDArray[Any]] = {}
        for value in model.graph.inputs:
            if value.shape is not None:
                self.shapes[value] = tuple(
                    sizes[_symbol(value, i, d)] for i, d in enumerate(value.shape)
                )
        for value in model.graph.initializers.values():
            self.know(value)

    def know(self, value: ir.Value) -> None:
        """Take the shape, and where small the values, of an initializer."""
        if value.const_value is None:
            return
        self.shapes[value] = tuple(int(d) for d in value.const_value.shape.numpy())
        self.arrays.pop(value, None)
        tensor = value.const_value
        if (
            is_constant(value)
            and tensor.size <= KNOWN
            and tensor.dtype != ir.DataType.STRING
        ):
            self.arrays[value] = tensor.numpy()

    def shape(self, value: ir.Value | None) -> Shape | None:
        """The shape of a value under the probe sizes; None if unknown or absent."""
        return None if value is None else self.shapes.get(value)

    def ints(self, value: ir.Value | None) -> list[int] | None:
        """A known small integer tensor as a flat list."""
        array = None if value is None else self.arrays.get(value)
        return (
            None
            if array is None or array.dtype.kind not in "iu"
            else [int(v) for v in array.reshape(-1)]
        )

    def constants(self, value: ir.Value | None) -> list[int] | None:
        """As `ints`, for numbers that are the same whatever size the symbolic dims have."""
        mine = self.ints(value)
        return mine if self.twin is None or self.twin.ints(value) == mine else None

    def varies(self, value: ir.Value, axis: int) -> bool:
        """Whether the size of an axis depends on a symbolic dim, as far as can be seen."""
        if self.twin is None:
            return False
        other = self.twin.shape(value)
        return other is None or other[axis] != self.shapes[value][axis]

    def step(self, node: ir.Node) -> bool:
        """Follow one node; whether every output's shape is known then. Never raises on what a node
        cannot do.
        """
        for value in node.outputs:
            self.shapes.pop(value, None)
            self.arrays.pop(value, None)
        if holds_graphs(node):
            self._declared(node)
        elif node.op_type == "Shape" and node.domain == "":
            self._shape(node)
        elif not self._evaluated(node):
            self._inferred(node)
            self._told(node)
        return all(value in self.shapes for value in node.outputs if value.name)

    def _shape(self, node: ir.Node) -> None:
        shape = self.shape(node.inputs[0])
        if shape is not None:
            end = node.attributes.get_int("end", len(shape))
            self._set(
                node.outputs[0],
                np.array(
                    shape[slice(node.attributes.get_int("start", 0), end)], np.int64
                ),
            )

    def _set(self, value: ir.Value, array: NDArray[Any]) -> None:
        self.shapes[value] = array.shape
        if array.size <= KNOWN:
            self.arrays[value] = array

    def _evaluated(self, node: ir.Node) -> bool:
        arrays = [None if v is None else self.arrays.get(v) for v in node.inputs]
        if any(
            v is not None and a is None
            for v, a in zip(node.inputs, arrays, strict=True)
        ) or not foldable(node):
            return False
        try:
            if result_elements(node, arrays) > KNOWN:
                return False
            results = evaluate(node, arrays, self.opset)
        except NotFoldable:
            return False
        for value, array in zip(node.outputs, results, strict=True):
            self._set(value, array)
        return True

    def _declared(self, node: ir.Node) -> None:
        """What a node with subgraphs says of its outputs, where it is static; an If is followed
        into its branches.
        """
        for value in node.outputs:
            if value.shape is not None and value.shape.is_static():
                self.shapes[value] = tuple(int(d) for d in value.shape.numpy())
        if node.op_type == "If" and node.domain == "":
            self._branches(node)

    def _branches(self, node: ir.Node) -> None:
        """The shapes that the branches agree on, or those of the one that is taken."""
        condition = None if node.inputs[0] is None else self.arrays.get(node.inputs[0])
        ends = []
        for name in ("then_branch", "else_branch"):
            graph = node.attributes[name].as_graph()
            for value in graph.initializers.values():
                self.know(value)
            for inner in graph:
                self.step(inner)
            ends.append([self.shape(value) for value in graph.outputs])
        for value, yes, no in zip(node.outputs, *ends, strict=True):
            shape = (
                (yes if yes == no else None)
                if condition is None
                else yes
                if condition.all()
                else no
            )
            if shape is not None and value.name:
                self.shapes[value] = shape

    def _told(self, node: ir.Node) -> None:
        """Shapes by this project's own rules, where onnx has none."""
        entry = SHAPES.get((node.domain, node.op_type))
        if entry is None or all(
            value in self.shapes for value in node.outputs if value.name
        ):
            return
        inputs = [self.shape(value) for value in node.inputs]
        for value, shape in zip(node.outputs, entry(node, inputs), strict=False):
            if shape is not None and value.name:
                self.shapes.setdefault(value, shape)

    def _inferred(self, node: ir.Node) -> None:
        types: dict[str, onnx.TypeProto] = {}
        data: dict[str, onnx.TensorProto] = {}
        for value in node.inputs:
            if value is None or value.name is None:
                continue
            types[value.name] = _type_proto(value, self.shapes.get(value))
            array = self.arrays.get(value)
            if (
                array is not None
                and array.dtype.kind in "iuf"
                and array.dtype.itemsize > 1
            ):
                data[value.name] = onnx.numpy_helper.from_array(array, value.name)
        try:
            schema = onnx.defs.get_schema(
                node.op_type, self.opsets.get(node.domain, 1), node.domain
            )
            opsets = [onnx.helper.make_opsetid(d, v) for d, v in self.opsets.items()]
            proto = ir.to_proto(node)
            found = onnx.shape_inference.infer_node_outputs(
                schema, proto, types, data, opset_imports=opsets
            )
        except FAILURES:
            return
        for value in node.outputs:
            if (
                value.name
                and value.name in found
                and (shape := _static_shape(found[value.name])) is not None
            ):
                self.shapes[value] = shape


def traced(model: ir.Model) -> Trace:
    """A trace of the whole main graph under the first probe sizes that fit all its nodes, else the
    one that fits most.

    `model` is normalized. Linear in nodes.
    """
    known, symbols = _dims(model)
    best: tuple[int, Trace, dict[str, int]] | None = None
    for sizes, others in _probes(known, symbols):
        trace, unknown = _walk(model, sizes)
        if best is None or unknown < best[0]:
            best = (unknown, trace, others)
        if not unknown:
            break
    assert best is not None
    unknown, trace, others = best
    if symbols and trace.sizes == others:
        sizes = _loosened(model, others, symbols, unknown)
        trace, others = (
            _walk(model, sizes)[0],
            _loosened(model, sizes, symbols, unknown, twin=True),
        )
    if trace.sizes != others:
        trace.twin = _walk(model, others)[0]
    return trace


def _walk(model: ir.Model, sizes: Mapping[str, int]) -> tuple[Trace, int]:
    """A trace of every node, and of how many the shapes stayed unknown."""
    trace = Trace(model, sizes)
    return trace, sum(not trace.step(node) for node in model.graph)


def _dims(model: ir.Model) -> tuple[dict[str, int], list[str]]:
    """The sizes that the inputs state, and the symbols that they leave open."""
    known, symbols = {}, dict[str, None]()
    for value in model.graph.inputs:
        for index, dim in enumerate(value.shape or ()):
            name = _symbol(value, index, dim)
            if isinstance(dim, int):
                known[name] = dim
            else:
                symbols[name] = None
    return known, list(symbols)


def _probes(
    known: dict[str, int], symbols: list[str]
) -> Iterator[tuple[dict[str, int], dict[str, int]]]:
    """Two sizes for every symbol: primes, multiples of them, small numbers; one probe where nothing
    is symbolic.
    """
    if not symbols:
        yield known, known
        return
    for first, scale in SCALES:
        pair = []
        for start in (0, len(symbols)):
            primes = (
                _prime(start + i) * (scale if i else first) for i in range(len(symbols))
            )
            pair.append(known | dict(zip(symbols, primes, strict=True)))
        yield pair[0], pair[1]
    for size in SMALL:
        sizes = known | dict.fromkeys(symbols, size)
        yield sizes, sizes


def _loosened(
    model: ir.Model,
    sizes: dict[str, int],
    symbols: list[str],
    unknown: int,
    *,
    twin: bool = False,
) -> dict[str, int]:
    """Sizes that fit as well as the given ones, with a prime (or a multiple) for every symbol that
    takes one by itself.

    A `twin` differs from `sizes` in every symbol that takes more than one size.
    """
    for index, symbol in enumerate(symbols):
        prime = _prime(index + twin * len(symbols))
        for size in (*(prime * factor for factor in STRETCH), *(SMALL if twin else ())):
            trial = sizes | {symbol: size}
            if size != sizes[symbol] and _walk(model, trial)[1] <= unknown:
                sizes = trial
                break
    return sizes


def _prime(index: int) -> int:
    return PRIMES[index] if index < len(PRIMES) else 2 * index * (index + 1) + 211


def _symbol(value: ir.Value, index: int, dim: int | ir.SymbolicDim) -> str:
    """What stands for a dim: its own name where it has one, else its place."""
    if isinstance(dim, int):
        return f"={dim}"
    return dim.value or f"{value.name}[{index}]"


def _type_proto(value: ir.Value, shape: Iterable[int] | None) -> onnx.TypeProto:
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        return ir.serde.serialize_type(value.type)
    return onnx.helper.make_tensor_type_proto(
        int(value.dtype or ir.DataType.FLOAT), shape
    )


def _static_shape(found: onnx.TypeProto) -> Shape | None:
    if not found.HasField("tensor_type") or not found.tensor_type.HasField("shape"):
        return None
    dims = found.tensor_type.shape.dim
    return (
        tuple(d.dim_value for d in dims)
        if all(d.HasField("dim_value") for d in dims)
        else None
    )
