"""Operators of ai.onnx.ml: features scaled, filled in, encoded and joined; models in attributes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx_ir as ir

from ..._core.tabular import ML, MODELS
from ..relations import Relations, required_input
from ..surgery import Surgery
from ..table import rule, update
from .elementwise import elementwise, first_input

rule("Binarizer", "CategoryMapper", "LabelEncoder", domain=ML)(first_input)

BY_FEATURE = {
    "Imputer": ("imputed_value_floats", "imputed_value_int64s"),
    "Scaler": ("offset", "scale"),
}
"""Attributes that hold one number for all features, or one for each."""


@rule(*BY_FEATURE, domain=ML)
def by_feature(node: ir.Node, relations: Relations) -> None:
    """Elementwise; the numbers in the attributes go with the features, the last axis."""
    first_input(node, relations)


@update(*BY_FEATURE, domain=ML)
def fewer_features(node: ir.Node, surgery: Surgery) -> None:
    """Leave out the numbers of features that went."""
    result = node.outputs[0]
    kept = surgery.kept(result, -1)
    if kept is None:
        return
    for name in BY_FEATURE[node.op_type]:
        attribute = node.attributes.get(name)
        if attribute is None:
            continue
        numbers = attribute.value
        if len(numbers) == 1:
            continue
        left = [numbers[slot] for slot in kept]
        node.attributes[name] = ir.Attr(name, attribute.type, left)


@rule("Normalizer", domain=ML)
def normalizer(node: ir.Node, relations: Relations) -> None:
    """Each sample is divided by the norm of its features, which stay."""
    data = required_input(node, 0)
    result = node.outputs[0]
    elementwise(data, result, relations)
    relations.freeze(data, -1, "Normalizer runs along it")


@rule("OneHotEncoder", domain=ML)
def one_hot(node: ir.Node, relations: Relations) -> None:
    """A new last axis has a slot for each category."""
    data = required_input(node, 0)
    result = node.outputs[0]
    rank = relations.rank(data)
    for axis in range(rank):
        relations.same(data, axis, result, axis)
    relations.freeze(result, -1, "categories of OneHotEncoder")


@rule("ArrayFeatureExtractor", domain=ML)
def extracted(node: ir.Node, relations: Relations) -> None:
    """Columns are picked out by indices: they stay, and so do the indices."""
    values = (*node.inputs, *node.outputs)
    for value in values:
        relations.freeze(value, -1, "picked out by ArrayFeatureExtractor")
    data = required_input(node, 0)
    result = node.outputs[0]
    rank = relations.rank(data)
    # of a vector it makes a matrix of one row
    if relations.rank(result) != rank:
        return
    for axis in range(rank - 1):
        relations.same(data, axis, result, axis)


@rule("FeatureVectorizer", domain=ML)
def joined(node: ir.Node, relations: Relations) -> None:
    """Columns of the result are those of the parts, one after the other."""
    result = node.outputs[0]
    widths = node.attributes.get_ints("inputdimensions", [])
    ends = np.cumsum(widths)
    borders = [0, *ends.tolist()]
    parts = zip(node.inputs, pairwise(borders), strict=True)
    for value, (first, last) in parts:
        assert value is not None
        relations.same(value, 0, result, 0)
        slots = relations.slots(value, -1)
        width = last - first
        # a part that is wider or narrower than stated is cut or filled up
        if len(slots) != width:
            relations.freeze_node(node, "its inputs are not as wide as it states")
            return
        columns = first + slots
        relations.link(result, -1, columns, value, -1, slots)


@update("FeatureVectorizer", domain=ML)
def narrower_parts(node: ir.Node, surgery: Surgery) -> None:
    """State the widths that the parts have now."""
    widths = []
    for value in node.inputs:
        if value is None:
            continue
        shape = surgery.after(value)
        widths.append(shape[-1])
    stated = ir.AttrInt64s("inputdimensions", widths)
    node.attributes["inputdimensions"] = stated


@rule(*MODELS, domain=ML)
def fitted(node: ir.Node, relations: Relations) -> None:
    """Samples go through; features and results stay, for attributes know them by number."""
    data = required_input(node, 0)
    op = node.op_type
    for result in node.outputs:
        if relations.shape(result) is None:
            continue
        relations.same(data, 0, result, 0)
        rank = relations.rank(result)
        if rank > 1:
            relations.freeze(result, -1, f"computed by {op}")
    relations.freeze(data, -1, f"read by {op}, which knows it by number")
