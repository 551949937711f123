"""Einsums that multiply an activation by one matrix, written as the MatMul that they are.

    Einsum("nti,io->nto", x, w)      ->  MatMul(x, w)
    Einsum("nti,oi->nto", x, w)      ->  MatMul(x, Transpose(w))
    Einsum("btc,chd->bthd", x, w)    ->  Reshape(MatMul(x, Reshape(w)))

Labels are B + S of the activation, S + O or O + S of the weight and B + O of the result.
"""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .._core.chains import chain_of
from .._core.edit import Edit, dims_of, is_constant, static_dims
from .._core.graph import all_nodes
from .._core.ops import is_standard
from .._quant.inserter import take_over

ELLIPSIS = "..."


@dataclass(frozen=True)
class Product:
    """An Einsum as the product of an activation and a matrix.

    `kept`: labels of the axes before those that are summed over. `summed`, `made`: sizes of the
    axes that the weight sums over and of those that it adds; `made_first`: the latter come first.
    """

    node: ir.Node
    data: ir.Value
    weight: ir.Value
    kept: str
    summed: list[int]
    made: list[int]
    made_first: bool

    @property
    def has_matrix(self) -> bool:
        """True if the weight has two axes, so that nothing is to be reshaped."""
        return len(self.summed) == 1 and len(self.made) == 1


def products_of(model: ir.Model, made: Container[ir.Value]) -> list[Product]:
    """Einsums of a model that are products with a matrix; `made`: values made of constants."""
    found: list[Product] = []
    for node in all_nodes(model):
        # a function has no place for new constants
        is_einsum = is_standard(node, "Einsum") and isinstance(node.graph, ir.Graph)
        product = _product(node, made) if is_einsum else None
        if product is not None:
            found.append(product)
    return found


def _product(node: ir.Node, made: Container[ir.Value]) -> Product | None:
    equation = node.attributes.get_string("equation", "")
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    # without an arrow the result would be in alphabetical order
    if not arrow or len(terms) != 2 or len(node.inputs) != 2:
        return None
    operands = list(zip(node.inputs, terms, strict=True))
    constant = [_is_constant(value, made) for value in node.inputs]
    if constant.count(True) != 1:
        return None
    weight, of_weight = operands[constant.index(True)]
    data, of_data = operands[constant.index(False)]
    if weight is None or data is None:
        return None
    split = _split(of_data, of_weight, result)
    sizes = static_dims(weight)
    if split is None or sizes is None or len(sizes) != len(of_weight):
        return None
    kept, summed, added = split
    size_of = dict(zip(of_weight, sizes, strict=True))
    product = Product(
        node,
        data,
        weight,
        kept,
        [size_of[label] for label in summed],
        [size_of[label] for label in added],
        of_weight.startswith(added),
    )
    # the axes of an ellipsis are not counted, so nothing is reshaped around them
    if ELLIPSIS in kept and not product.has_matrix:
        return None
    return product if _fits(data, product.summed) else None


def _is_constant(value: ir.Value | None, made: Container[ir.Value]) -> bool:
    chain = chain_of(value)
    return value in made or (chain is not None and is_constant(chain.source))


def _split(of_data: str, of_weight: str, result: str) -> tuple[str, str, str] | None:
    """Labels kept, summed and added, where data, weight and result are B + S, {S, O} and B + O."""
    for labels in (of_data, of_weight, result):
        letters = labels.replace(ELLIPSIS, "")
        if len(set(letters)) != len(letters):
            return None
    summed = "".join(label for label in of_weight if label not in result)
    added = "".join(label for label in of_weight if label not in of_data)
    if not summed or not added or not of_data.endswith(summed):
        return None
    kept = of_data.removesuffix(summed)
    orders = (summed + added, added + summed)
    if of_weight not in orders or kept + added != result:
        return None
    return kept, summed, added


def _fits(data: ir.Value, summed: list[int]) -> bool:
    """True unless an axis of length 1 is broadcast against the weight."""
    dims = dims_of(data) or []
    # of an unknown rank nothing is compared
    pairs = zip(dims[-len(summed) :], summed, strict=False)
    return all(dim == size for dim, size in pairs if isinstance(dim, int))


def write_as_matmuls(products: list[Product], edit: Edit) -> None:
    """Write products as MatMuls, each under the name of its Einsum."""
    for product in products:
        node = product.node
        kept = [0] * len(product.kept)
        rows = product.data
        if len(product.summed) > 1:
            rows = _reshaped(rows, [*kept, math.prod(product.summed)], node, edit)
        matmul = edit.node_before(node, "MatMul", [rows, _matrix(product, edit)])
        result = matmul.outputs[0]
        if len(product.made) > 1:
            result = _reshaped(result, [*kept, *product.made], node, edit)
        result.type = node.outputs[0].type
        result.shape = node.outputs[0].shape
        last = result.producer()
        assert last is not None
        name = node.name
        take_over(node, last)
        matmul.name = name


def _matrix(product: Product, edit: Edit) -> ir.Value:
    """The weight as (inputs, outputs)."""
    matrix = product.weight
    if not product.has_matrix:
        sizes = [math.prod(product.summed), math.prod(product.made)]
        dims = sizes[::-1] if product.made_first else sizes
        matrix = _reshaped(matrix, dims, product.node, edit)
    if not product.made_first:
        return matrix
    return edit.node_before(product.node, "Transpose", [matrix], perm=[1, 0]).outputs[0]


def _reshaped(
    value: ir.Value, dims: list[int], before: ir.Node, edit: Edit
) -> ir.Value:
    """`value` in another shape, in front of a node; 0 keeps the length of an axis."""
    assert isinstance(before.graph, ir.Graph)
    shape = edit.constant(before.graph, np.array(dims, np.int64), "shape")
    made = edit.node_before(before, "Reshape", [value, shape]).outputs[0]
    made.type = value.type
    return made
