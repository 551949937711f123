"""Softmax(scale * q @ k^T + mask) @ v of (N, heads, L, size), grouped queries too: Attention."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from .._core.edit import Dim, dims_of, is_constant, rank_of
from .._core.graph import producer_of
from .._core.ops import MICROSOFT
from .._simplify.symbols import axes_of
from .alike import is_same_shape
from .heads import leave_heads, merged_heads
from .masks import Mask, added, problem, written
from .operands import (
    beside_scalar,
    is_last,
    pair_of,
    scalar_of,
    scaled,
)
from .shared import Shared

SWAPPED = (0, 1, 3, 2)
"""Keys (N, k, T, d) as the product reads them, (N, k, d, T)."""


@dataclass(frozen=True)
class Scores:
    """A product q @ right, times `scale`, and the mask that was put on it."""

    query: ir.Value
    right: ir.Value
    scale: float
    mask: Mask | None


@dataclass(frozen=True)
class Found:
    """Queries (N, g*k, L, d), keys and values (N, k, T, d).

    `permutation` brings `key` into that order. `standard`: the operator of opset 23 is written,
    not the one of ONNX Runtime.
    """

    query: ir.Value
    key: ir.Value
    permutation: tuple[int, ...]
    value: ir.Value
    scale: float
    mask: Mask | None
    heads: int
    repeats: int
    standard: bool

    kind: ClassVar[str] = "attention"

    @property
    def opset(self) -> int:
        """Opset that the operator needs, or a Shape of one axis in front of its mask."""
        if self.standard:
            return 23
        return 15 if self.mask is not None else 0

    def write(self, node: ir.Node, shared: Shared) -> bool:
        """Put one operator in the place of the pattern that ends at a node."""
        key = self._ordered_key(node, shared)
        mask = None
        if self.mask is not None:
            mask = written(
                self.mask,
                node,
                (self.query, key),
                shared,
                self.standard,
            )
        if not self.standard:
            return self._write_runtime(
                node,
                shared,
                key,
                mask,
            )
        inputs: list[ir.Value | None] = [self.query, key, self.value]
        if mask is not None:
            inputs.append(mask)
        return shared.finish(
            node,
            "Attention",
            inputs,
            scale=self.scale,
        )

    def _ordered_key(self, node: ir.Node, shared: Shared) -> ir.Value:
        if self.permutation == (0, 1, 2, 3):
            return self.key
        axes = list(self.permutation)
        key = shared.result(
            node,
            "Transpose",
            [self.key],
            perm=axes,
        )
        dims = self.key.shape
        if dims is not None:
            key.shape = ir.Shape([dims[axis] for axis in axes])
        return key

    def _write_runtime(
        self,
        node: ir.Node,
        shared: Shared,
        key: ir.Value,
        mask: ir.Value | None,
    ) -> bool:
        """Write MultiHeadAttention, which has heads and sizes of queries on one axis."""
        query = merged_heads(
            self.query,
            node,
            shared,
        )
        keys = self._repeated(
            key,
            node,
            shared,
        )
        values = self._repeated(
            self.value,
            node,
            shared,
        )
        inputs: list[ir.Value | None] = [query, keys, values]
        if mask is not None:
            # a bias and a padding mask come before it
            inputs += [None, None, mask]
        result = shared.result(
            node,
            "MultiHeadAttention",
            inputs,
            num_heads=self.heads,
            scale=self.scale,
            domain=MICROSOFT,
        )
        return leave_heads(
            node,
            result,
            self.heads,
            _size(self.value, 3),
            shared,
        )

    def _repeated(self, value: ir.Value, node: ir.Node, shared: Shared) -> ir.Value:
        """Keys or values of every query head."""
        if self.repeats == 1:
            return value
        single = self.heads // self.repeats
        order = np.repeat(np.arange(single), self.repeats)
        indices = shared.integers(node, *order.tolist())
        return shared.result(
            node,
            "Gather",
            [value, indices],
            axis=1,
        )


def attention(node: ir.Node, opset: int, standard: bool) -> Found | str | None:
    """The pattern whose last node, a MatMul, this is; a reason where it is nearly one.

    `standard`: the form that is preferred; what only one has exactly is written in that.
    """
    pair = pair_of(node)
    if node.op_type != "MatMul" or pair is None:
        return None
    weights, guarded = _unguarded(pair[0])
    softmax = producer_of(weights, "Softmax")
    if softmax is None or is_constant(pair[1]):
        return None
    scores = _scores(softmax, opset)
    if isinstance(scores, str):
        return scores
    if scores.mask is not None:
        reason = problem(scores.mask, guarded)
        if reason is not None:
            return reason
        # a row of minus infinity gives zeros there, and no number in the other form
        standard |= guarded and scores.mask.is_infinite
    return _shaped(
        scores,
        pair[1],
        standard,
    )


def _unguarded(weights: ir.Value) -> tuple[ir.Value, bool]:
    """Weights behind Where(IsNaN(weights), 0, weights), and whether that stands there."""
    guard = producer_of(weights, "Where")
    if guard is None or scalar_of(guard.inputs[1]) != 0:
        return weights, False
    test = producer_of(guard.inputs[0], "IsNaN")
    inner = guard.inputs[2]
    if test is None or inner is None or test.inputs[0] is not inner:
        return weights, False
    return inner, True


def _scores(softmax: ir.Node, opset: int) -> Scores | str:
    """Scores that a Softmax is taken of, followed back to the product of queries and keys."""
    (value,) = softmax.inputs
    assert value is not None
    # before opset 13 the default was another
    axis = softmax.attributes.get_int("axis", -1 if opset >= 13 else 1)
    if rank_of(value) != 4 or not is_last(axis, 4):
        return "it is not over the last of four axes"
    summed, outer = scaled(value)
    mask = None
    masked = _masked(summed)
    if masked is not None:
        if outer != 1:
            return "it scales its mask too"
        summed, mask = masked
        if _masked(summed) is not None:
            return "it has two masks"
    product_value, inner = scaled(summed)
    product = producer_of(product_value, "MatMul")
    pair = pair_of(product) if product is not None else None
    if pair is None:
        return "its scores are no product of queries and keys"
    query, left = scaled(pair[0])
    right, factor = scaled(pair[1])
    return Scores(
        query,
        right,
        outer * inner * left * factor,
        mask,
    )


def _masked(value: ir.Value) -> tuple[ir.Value, Mask] | None:
    """Scores and the mask on them; None where none is."""
    node = producer_of(
        value,
        "Add",
        "Where",
    )
    if node is None:
        return None
    if node.op_type == "Add":
        pair = pair_of(node)
        if pair is None or beside_scalar(node) is not None:
            return None
        for scores, mask in (pair, pair[::-1]):
            if _is_product(scores):
                return scores, added(mask)
        return None
    return _replaced(node)


def _replaced(where: ir.Node) -> tuple[ir.Value, Mask] | None:
    """Scores that a Where writes a number over, and the mask that it stands for."""
    condition, if_true, if_false = where.inputs
    assert condition is not None
    # True: the fill stands where the condition holds
    choices = (
        (if_false, if_true, True),
        (if_true, if_false, False),
    )
    for source, fill, holds in choices:
        number = scalar_of(fill)
        if source is None or number is None:
            continue
        if _is_product(source):
            mask = Mask(
                condition,
                number,
                holds,
            )
            return source, mask
    return None


def _is_product(value: ir.Value) -> bool:
    """True if a value is a product of two activations, perhaps scaled or masked."""
    source, _ = scaled(value)
    node = producer_of(
        source,
        "MatMul",
        "Add",
        "Where",
    )
    if node is None:
        return False
    if node.op_type != "MatMul":
        return any(
            producer_of(scaled(operand)[0], "MatMul") is not None
            for operand in node.inputs
            if operand is not None
        )
    return not any(is_constant(operand) for operand in node.inputs)


def _shaped(scores: Scores, value: ir.Value, standard: bool) -> Found | str:
    """The pattern with its shapes checked."""
    key, factor, permutation = _keys(scores.right)
    scale = scores.scale * factor
    if scale <= 0:
        return "its scale is not positive"
    single_key, repeats = _unrepeated(key)
    single_value, same_repeats = _unrepeated(value)
    if permutation == (0, 1, 2, 3) and repeats == same_repeats:
        key, value = single_key, single_value
    operands = (scores.query, key, value)
    if any(rank_of(operand) != 4 for operand in operands):
        return "queries, keys or values are not known to have four axes"
    if any(operand.dtype != ir.DataType.FLOAT for operand in operands):
        return "it computes in another type than float32"
    queries = _heads(scores.query, 1)
    keys = _heads(key, permutation[1])
    if queries is None or keys is None:
        return "its numbers of heads are not known"
    if keys != _heads(value, 1) or queries % keys:
        return "queries are no multiple of keys and values"
    batches = {_size(scores.query, 0), _size(key, permutation[0]), _size(value, 0)}
    if None in batches or len(batches) > 1:
        return "queries, keys and values are not known to be of as many samples"
    if scores.mask is not None and not _is_within(scores, key, permutation, value):
        return "its mask is not known to have no other shape than its scores"
    # the runtime's own operator has one size of heads
    size = _size(value, 3)
    standard |= size is None or size != _size(scores.query, 3)
    return Found(
        query=scores.query,
        key=key,
        permutation=permutation,
        value=value,
        scale=scale,
        mask=scores.mask,
        heads=queries,
        repeats=queries // keys,
        standard=standard,
    )


def _is_within(
    scores: Scores,
    key: ir.Value,
    permutation: tuple[int, ...],
    value: ir.Value,
) -> bool:
    """True if a mask is known to leave the shape of the scores (N, h, L, T) as it is.

    One that is longer than the scores makes them longer when it is added.
    """
    assert scores.mask is not None
    masked = dims_of(scores.mask.source) or []
    length = _size(key, permutation[2])
    shape = [_size(scores.query, axis) for axis in range(3)] + [length]
    # the values are as many as the masked scores: with as many keys nothing became longer
    is_as_long = length is not None and length == _size(value, 2)
    if permutation == (0, 1, 2, 3):
        is_as_long |= is_same_shape(key, value)
    return all(
        dim == 1 or (dim is not None and dim == wanted) or (axis == 3 and is_as_long)
        for axis, (dim, wanted) in enumerate(
            zip(masked, shape[-len(masked) :], strict=True),
            start=4 - len(masked),
        )
    )


def _heads(value: ir.Value, axis: int) -> int | None:
    """Size of an axis of four that is known."""
    size = _size(value, axis)
    return size if isinstance(size, int) else None


def _size(value: ir.Value, axis: int) -> Dim:
    """Size of an axis of four: a number, a symbol, or None."""
    dims = dims_of(value)
    assert dims is not None
    return dims[axis]


def _keys(right: ir.Value) -> tuple[ir.Value, float, tuple[int, ...]]:
    """Keys behind a Transpose, a factor on them, and what brings them to (N, k, T, d)."""
    node = producer_of(right, "Transpose")
    if node is None or node.inputs[0] is None:
        return right, 1.0, SWAPPED
    axes = list(node.attributes.get_ints("perm", (3, 2, 1, 0)))
    if len(axes) != 4:
        return right, 1.0, SWAPPED
    source, factor = scaled(node.inputs[0])
    return source, factor, tuple(axes[axis] for axis in SWAPPED)


def _unrepeated(value: ir.Value) -> tuple[ir.Value, int]:
    """Heads (N, k, T, d) of which a value repeats each (N, k*g, T, d), and g; 1 where it does not.

    As exporters write it: Unsqueeze at axis 2, Expand, Reshape.
    """
    chain = []
    inner: ir.Value | None = value
    for op_type in ("Reshape", "Expand", "Unsqueeze"):
        node = producer_of(inner, op_type)
        if node is None:
            return value, 1
        chain.append(node)
        inner = node.inputs[0]
    _, expand, unsqueeze = chain
    single = dims_of(inner)
    repeated = dims_of(expand.outputs[0])
    merged = dims_of(value)
    if inner is None or single is None or repeated is None or merged is None:
        return value, 1
    if axes_of(unsqueeze) != [2] or len(single) != 4 or len(merged) != 4:
        return value, 1
    count = repeated[2]
    heads = single[1]
    if not isinstance(count, int) or not isinstance(heads, int) or None in single:
        return value, 1
    # nothing else may grow, or change its place
    if repeated != [*single[:2], count, *single[2:]]:
        return value, 1
    wanted = [single[0], heads * count, *single[2:]]
    same = sum(
        map(
            operator.eq,
            merged,
            wanted,
        )
    )
    # a view has as many elements as before: if three dims are as wanted, so is the fourth
    return (inner, count) if same >= 3 else (value, 1)
