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
        if not is_standard(node, "Einsum"):
            continue
        # a function has no place for new constants
        if not isinstance(node.graph, ir.Graph):
            continue
        product = _product(node, made)
        if product is not None:
            found.append(product)
    return found


def _product(node: ir.Node, made: Container[ir.Value]) -> Product | None:
    equation = node.attributes.get_string("equation", "")
    equation = equation.replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    # without an arrow the result would be in alphabetical order
    if not arrow:
        return None
    if len(terms) != 2 or len(node.inputs) != 2:
        return None
    operands = list(zip(node.inputs, terms, strict=True))
    constant = [_is_constant(value, made) for value in node.inputs]
    if constant.count(True) != 1:
        return None
    of_constant = constant.index(True)
    weight, of_weight = operands[of_constant]
    data, of_data = operands[1 - of_constant]
    if weight is None or data is None:
        return None
    split = _split(of_data, of_weight, result)
    if split is None:
        return None
    sizes = static_dims(weight)
    # an ellipsis stands for any number of axes
    if sizes is None or len(sizes) != len(of_weight):
        return None
    kept, summed, added = split
    size_of = dict(zip(of_weight, sizes, strict=True))
    product = Product(
        node,
        data,
        weight,
        kept,
        summed=[size_of[label] for label in summed],
        made=[size_of[label] for label in added],
        made_first=of_weight.startswith(added),
    )
    # the axes of an ellipsis are not counted, so nothing is reshaped around them
    if ELLIPSIS in kept and not product.has_matrix:
        return None
    if not _fits(data, product.summed):
        return None
    return product


def _is_constant(value: ir.Value | None, made: Container[ir.Value]) -> bool:
    if value in made:
        return True
    chain = chain_of(value)
    if chain is None:
        return False
    return is_constant(chain.source)


def _split(of_data: str, of_weight: str, result: str) -> tuple[str, str, str] | None:
    """Labels kept, summed and added, where data, weight and result are B + S, {S, O} and B + O."""
    for labels in (of_data, of_weight, result):
        letters = labels.replace(ELLIPSIS, "")
        distinct = set(letters)
        # a label met twice takes a diagonal
        if len(distinct) != len(letters):
            return None
    summed = _labels_outside(result, of_weight)
    added = _labels_outside(of_data, of_weight)
    if not summed or not added:
        return None
    if not of_data.endswith(summed):
        return None
    kept = of_data.removesuffix(summed)
    if kept + added != result:
        return None
    # a label of all three would be a stack of matrices
    orders = (summed + added, added + summed)
    if of_weight not in orders:
        return None
    return kept, summed, added


def _labels_outside(others: str, labels: str) -> str:
    """Labels that are not among the others, in their order."""
    return "".join(label for label in labels if label not in others)


def _fits(data: ir.Value, summed: list[int]) -> bool:
    """True unless an axis of length 1 is broadcast against the weight."""
    dims = dims_of(data) or []
    last = dims[-len(summed) :]
    # of an unknown rank nothing is compared
    for dim, size in zip(last, summed, strict=False):
        if isinstance(dim, int) and dim != size:
            return False
    return True


def write_as_matmuls(products: list[Product], edit: Edit) -> None:
    """Write products as MatMuls, each under the name of its Einsum."""
    for product in products:
        node = product.node
        # 0 in a Reshape keeps the length of an axis
        kept = [0] * len(product.kept)
        rows = product.data
        if len(product.summed) > 1:
            width = math.prod(product.summed)
            dims = [*kept, width]
            rows = _reshaped(rows, dims, node, edit)
        matrix = _matrix(product, edit)
        matmul = edit.node_before(node, "MatMul", [rows, matrix])
        result = matmul.outputs[0]
        if len(product.made) > 1:
            dims = [*kept, *product.made]
            result = _reshaped(result, dims, node, edit)
        output = node.outputs[0]
        result.type = output.type
        result.shape = output.shape
        last = result.producer()
        assert last is not None
        # read before the Einsum hands its name on to the last node
        name = node.name
        take_over(node, last)
        matmul.name = name


def _matrix(product: Product, edit: Edit) -> ir.Value:
    """The weight as (inputs, outputs)."""
    matrix = product.weight
    node = product.node
    if not product.has_matrix:
        inputs = math.prod(product.summed)
        outputs = math.prod(product.made)
        dims = [inputs, outputs]
        if product.made_first:
            dims = [outputs, inputs]
        matrix = _reshaped(matrix, dims, node, edit)
    if not product.made_first:
        return matrix
    transpose = edit.node_before(
        node,
        "Transpose",
        [matrix],
        perm=[1, 0],
    )
    return transpose.outputs[0]


def _reshaped(
    value: ir.Value, dims: list[int], before: ir.Node, edit: Edit
) -> ir.Value:
    """`value` in another shape, in front of a node; 0 keeps the length of an axis."""
    assert isinstance(before.graph, ir.Graph)
    lengths = np.array(dims, np.int64)
    shape = edit.constant(before.graph, lengths, "shape")
    reshape = edit.node_before(before, "Reshape", [value, shape])
    made = reshape.outputs[0]
    made.type = value.type
    return made
