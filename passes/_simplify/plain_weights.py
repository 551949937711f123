"""Weights brought to where passes look for them: constants that a Conv, Gemm or MatMul reads.

    MatMul(x, Mul(v, gain))      ->  MatMul(x, w), where the file does not grow by it
    Einsum("nti,io->nto", x, w)  ->  MatMul(x, w)

Identity, Transpose and Cast nodes between a constant and its reader stay: passes look through.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

import onnx_ir as ir

from .._core.chains import chain_of, made_of_constants, tells_known_dims
from .._core.edit import Edit
from .._core.graph import all_nodes, input_of
from .._core.weights import weight_inputs
from ..fold_constants import fold_only
from .einsum import products_of, write_as_matmuls
from .rules.shape import shape_constant

Read = tuple[ir.Node, int, ir.Value]
"""A node, the input at which it may have a weight, and what it reads there."""


def plain_weights(model: ir.Model) -> ir.Model:
    """The model itself, or a copy of it in which more weights are constants of layers.

    The copy shares the tensors and computes the same.
    """
    made = made_of_constants(model)
    if not products_of(model, made) and not _hidden(model, made):
        return model
    copy = model.clone()
    edit = Edit(copy)
    products = products_of(copy, made_of_constants(copy))
    write_as_matmuls(products, edit)
    folded = _fold(copy, edit)
    return copy if products or folded else model


def hides_weights(model: ir.Model) -> bool:
    """True if nodes make weights of constants that passes do not look through."""
    return bool(_hidden(model, made_of_constants(model)))


def _fold(model: ir.Model, edit: Edit) -> int:
    """Make constants of weights that nodes make of constants; returns the nodes folded."""
    made = made_of_constants(model)
    hidden = _hidden(model, made)
    read = [value for _, _, value in hidden]
    for node in _makers(read, made):
        # torch cuts the weights of gates at lengths that it asks of the state
        if tells_known_dims(node):
            shape_constant(node, edit)
    folded = fold_only(_makers(read, made), model, edit)
    for reader, index, value in hidden:
        constant = reader.inputs[index]
        maker = value.producer()
        is_gone = maker is not None and maker.graph is None
        # a layer is known by the name of its weight
        if constant is not None and is_gone and constant.name != value.name:
            constant.name = value.name
    return folded


def _hidden(model: ir.Model, made: Mapping[ir.Value, bool]) -> list[Read]:
    """Reads of weights that nodes make of constants, but for chains that passes look through."""
    found: list[Read] = []
    for node in all_nodes(model):
        for index in weight_inputs(node):
            value = input_of(node, index)
            chain = chain_of(value)
            if value is None or chain is None:
                continue
            # codes of few bits stay what they are
            if made.get(chain.source) is False:
                found.append((node, index, value))
    return found


def _makers(values: list[ir.Value], made: Container[ir.Value]) -> set[ir.Node]:
    """Every node that a value is made by, back to the constants."""
    makers: set[ir.Node] = set()
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if node is None or node in makers or value not in made:
            continue
        makers.add(node)
        waiting.extend(each for each in node.inputs if each is not None)
    return makers
