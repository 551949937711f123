"""Facts about ai.onnx.ml, the operators of tabular models: the shapes they give, what they hold.

onnx infers nothing for most of them. One for which it does stands in for them in inference alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx
import onnx_ir as ir

ML = "ai.onnx.ml"
"""Domain of operators for features, trees and support vectors."""

WIDEST = 1 << 16
"""Columns up to which a matrix is inferred: the operator that stands in lists one number each."""

Attributes = Mapping[str, Any]


def _classes(attributes: Attributes) -> int:
    """Class labels: integers or texts, under one of four names."""
    for name in ("classlabels_int64s", "classlabels_ints", "classlabels_strings"):
        labels = attributes.get(name)
        if labels:
            return len(labels)
    return 0


def _svm_scores(attributes: Attributes) -> int:
    """A column for each class; of support vectors without probabilities, for each pair of them."""
    classes = _classes(attributes)
    if attributes.get("prob_a") or not attributes.get("vectors_per_class"):
        return classes
    pairs = classes * (classes - 1) // 2
    # of two classes both have a score
    return max(pairs, 2)


COLUMNS: dict[str, Callable[[Attributes], int]] = {
    "FeatureVectorizer": lambda attributes: sum(attributes.get("inputdimensions", [])),
    "LinearRegressor": lambda attributes: attributes.get("targets", 1),
    "SVMClassifier": _svm_scores,
    "SVMRegressor": lambda attributes: 1,
    "TreeEnsembleClassifier": _classes,
    "TreeEnsembleRegressor": lambda attributes: attributes.get("n_targets", 1),
}
"""Columns of the float matrix that is an operator's last output; its rows are the samples."""

STAND_INS = {
    "Scaler": ("Cast", {"to": onnx.TensorProto.FLOAT}),
    "Normalizer": ("Cast", {"to": onnx.TensorProto.FLOAT}),
    "Imputer": ("Identity", {}),
}
"""Standard operators, with attributes, whose output has the type and shape of another's."""


def stand_in(node: onnx.NodeProto) -> onnx.NodeProto:
    """A node of the same output types and shapes for which onnx infers them; else the node."""
    if node.domain != ML:
        return node
    if node.op_type in STAND_INS:
        op, fixed = STAND_INS[node.op_type]
        return onnx.helper.make_node(op, node.input, node.output, **fixed)
    if node.op_type not in COLUMNS:
        return node
    attributes = {
        each.name: onnx.helper.get_attribute_value(each) for each in node.attribute
    }
    columns = COLUMNS[node.op_type](attributes)
    if not 0 < columns <= WIDEST:
        return node
    outputs = list(node.output)
    # a classifier gives the labels first, which the others lack
    if len(outputs) == 1:
        outputs.insert(0, f"{outputs[0]}.labels")
    # three: of two classes a single score would count twice
    labels: dict[str, list[int] | list[str]] = {"classlabels_ints": [0, 1, 2]}
    if attributes.get("classlabels_strings"):
        labels = {"classlabels_strings": ["0", "1", "2"]}
    return onnx.helper.make_node(
        "LinearClassifier",
        node.input[:1],
        outputs,
        domain=ML,
        coefficients=[0.0],
        intercepts=[0.0] * columns,
        **labels,
    )


# --- what the operators hold ----------------------------------------------------


MODELS = {
    "LinearClassifier": "linear model",
    "LinearRegressor": "linear model",
    "SVMClassifier": "support vector machine",
    "SVMRegressor": "support vector machine",
    "TreeEnsemble": "tree ensemble",
    "TreeEnsembleClassifier": "tree ensemble",
    "TreeEnsembleRegressor": "tree ensemble",
}
"""Operators that hold a whole model in their attributes, and the kind of model."""

UNREAD = frozenset({"nodes_hitrates", "nodes_hitrates_as_tensor"})
"""Attributes that no runtime computes with: how often a branch was taken in training."""


def held_numbers(node: ir.Node) -> list[ir.TensorProtocol]:
    """Float numbers in the attributes of an operator of ai.onnx.ml: its parameters."""
    if node.domain != ML:
        return []
    found: list[ir.TensorProtocol] = []
    for name, attribute in node.attributes.items():
        if attribute.is_ref() or name in UNREAD:
            continue
        if attribute.type == ir.AttributeType.FLOATS:
            found.append(ir.tensor(list(attribute.as_floats()), ir.DataType.FLOAT))
        elif attribute.type == ir.AttributeType.TENSOR:
            found.append(attribute.as_tensor())
    return found


def held_bytes(node: ir.Node) -> int:
    """Bytes that a node takes in the file, attributes included."""
    return int(ir.to_proto(node).ByteSize())
