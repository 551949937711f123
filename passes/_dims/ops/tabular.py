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
    kept = surgery.kept(node.outputs[0], -1)
    if kept is None:
        return
    for name in BY_FEATURE[node.op_type]:
        attribute = node.attributes.get(name)
        if attribute is None or len(attribute.value) == 1:
            continue
        numbers = [attribute.value[slot] for slot in kept]
        node.attributes[name] = ir.Attr(name, attribute.type, numbers)


@rule("Normalizer", domain=ML)
def normalizer(node: ir.Node, relations: Relations) -> None:
    """Each sample is divided by the norm of its features, which stay."""
    data = required_input(node, 0)
    elementwise(data, node.outputs[0], relations)
    relations.freeze(data, -1, "Normalizer runs along it")


@rule("OneHotEncoder", domain=ML)
def one_hot(node: ir.Node, relations: Relations) -> None:
    """A new last axis has a slot for each category."""
    data = required_input(node, 0)
    result = node.outputs[0]
    for axis in range(relations.rank(data)):
        relations.same(data, axis, result, axis)
    relations.freeze(result, -1, "categories of OneHotEncoder")


@rule("ArrayFeatureExtractor", domain=ML)
def extracted(node: ir.Node, relations: Relations) -> None:
    """Columns are picked out by indices: they stay, and so do the indices."""
    for value in (*node.inputs, *node.outputs):
        relations.freeze(value, -1, "picked out by ArrayFeatureExtractor")
    data = required_input(node, 0)
    result = node.outputs[0]
    # of a vector it makes a matrix of one row
    if relations.rank(data) == relations.rank(result):
        for axis in range(relations.rank(data) - 1):
            relations.same(data, axis, result, axis)


@rule("FeatureVectorizer", domain=ML)
def joined(node: ir.Node, relations: Relations) -> None:
    """Columns of the result are those of the parts, one after the other."""
    result = node.outputs[0]
    widths = node.attributes.get_ints("inputdimensions", [])
    borders = [0, *np.cumsum(widths).tolist()]
    for value, (first, last) in zip(node.inputs, pairwise(borders), strict=True):
        assert value is not None
        relations.same(value, 0, result, 0)
        slots = relations.slots(value, -1)
        # a part that is wider or narrower than stated is cut or filled up
        if len(slots) != last - first:
            relations.freeze_node(node, "its inputs are not as wide as it states")
            return
        relations.link(result, -1, first + slots, value, -1, slots)


@update("FeatureVectorizer", domain=ML)
def narrower_parts(node: ir.Node, surgery: Surgery) -> None:
    """State the widths that the parts have now."""
    widths = [surgery.after(value)[-1] for value in node.inputs if value is not None]
    node.attributes["inputdimensions"] = ir.AttrInt64s("inputdimensions", widths)


@rule(*MODELS, domain=ML)
def fitted(node: ir.Node, relations: Relations) -> None:
    """Samples go through; features and results stay, for attributes know them by number."""
    data = required_input(node, 0)
    for result in node.outputs:
        if relations.shape(result) is None:
            continue
        relations.same(data, 0, result, 0)
        if relations.rank(result) > 1:
            relations.freeze(result, -1, f"computed by {node.op_type}")
    relations.freeze(data, -1, f"read by {node.op_type}, which knows it by number")
