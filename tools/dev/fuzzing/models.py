"""A random valid model from a seed, with the feeds that it was grown on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, shape_inference

from .builder import Builder, Scope, Value, value_info
from .recipes import RECIPES  # noqa: F401 - filling the table
from .recipes.registry import grow

OPSETS = (13, 14, 15, 16, 17, 18, 19, 20, 21, 21, 21, 22, 23)
"""Opsets of models; the exporters' favourite more often."""

SIZES = ((1, 4), (3, 12), (10, 30))
"""Recipes of a model: least and most, of small, middle and larger ones."""

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Generated:
    """A model and feeds.

    `feeds`: those it was grown on, others of the same shapes, and where it has symbolic dims
    some of other sizes. It runs on the first; on the others it may be refused.
    """

    model: onnx.ModelProto
    feeds: list[Feeds]
    ops: frozenset[str]


def random_model(seed: int) -> Generated:
    """The model of a seed: the same on every machine with the same onnx and ONNX Runtime."""
    random = np.random.default_rng([seed, 1])
    opset = int(random.choice(OPSETS))
    is_static = bool(random.random() < 0.5)
    # runs compare nothing where outputs are not finite: most models have to be
    is_wild = bool(random.random() < 0.2)
    b = Builder(seed, opset, is_static, is_wild)
    low, high = SIZES[int(random.integers(len(SIZES)))]
    grow(b, b.number(low, high))
    while not b.scope.nodes:
        grow(b, 1)
    model = _finished(b)
    return Generated(model, _feeds(b), frozenset(b.ops))


def _finished(b: Builder) -> onnx.ModelProto:
    main = b.scope
    outputs = _outputs(b, main)
    symbols = _symbols(b)
    inputs = []
    for name, array in b.inputs.items():
        shape = [symbols.get(length, length) for length in array.shape]
        inputs.append(value_info(name, array, shape))
    inputs += [value_info(name, b.table[name].array) for name in sorted(b.defaults)]
    graph = helper.make_graph(
        main.nodes,
        "fuzzed",
        inputs,
        [_without_dims(value) for value in outputs],
        initializer=main.initializers,
    )
    model = b.model(graph)
    inferred = shape_inference.infer_shapes(model, data_prop=bool(b.chance(0.5)))
    _declare_outputs(b, model, inferred, not symbols)
    if b.chance(0.4):
        model.graph.value_info.extend(inferred.graph.value_info)
    if b.chance(0.3):
        model.metadata_props.add(key="author", value="fuzz")
    return model


def _outputs(b: Builder, main: Scope) -> list[Value]:
    """Ends, mostly, and a few values that have other users too."""
    used = {name for node in main.nodes for name in node.input}
    made = {name for node in main.nodes for name in node.output}
    values = [value for value in main.values if value.name in made]
    # no value of a sequence has a place here
    ends = [value for value in values if value.name not in used]
    chosen = [value for value in ends if b.chance(0.8)]
    chosen += [value for value in values if b.chance(0.06) and value not in chosen]
    if b.chance(0.06) and b.inputs:
        chosen.append(b.table[b.one_of(list(b.inputs))])
    if b.chance(0.04) and main.initializers:
        chosen.append(b.table[b.one_of(main.initializers).name])
    chosen = list({value.name: value for value in chosen}.values())
    return chosen or [ends[-1] if ends else values[-1]]


def _symbols(b: Builder) -> dict[int, str | None]:
    """Lengths that stand as symbols in the declared inputs: the same symbol for the same length."""
    if b.is_static:
        return {}
    lengths = sorted({length for array in b.inputs.values() for length in array.shape})
    # a symbolic dim is taken as at least 1: no empty batch is ever fed
    chosen = [length for length in lengths if length and b.chance(0.5)]
    return {length: None if b.chance(0.1) else f"n{length}" for length in chosen}


def _without_dims(value: Value) -> onnx.ValueInfoProto:
    return value_info(value.name, value.array, [None] * value.rank)


def _declare_outputs(
    b: Builder, model: onnx.ModelProto, inferred: onnx.ModelProto, is_static: bool
) -> None:
    """Declare shapes of outputs: those inferred, sometimes more or less than is inferred."""
    declared = {value.name: value for value in model.graph.input}
    for output, found in zip(model.graph.output, inferred.graph.output, strict=True):
        kind = b.random.random()
        if output.name in declared:
            output.CopyFrom(declared[output.name])
        elif is_static and kind < 0.3:
            output.CopyFrom(value_info(output.name, b.table[output.name].array))
        elif kind < 0.9:
            output.type.CopyFrom(found.type)


def _feeds(b: Builder) -> list[Feeds]:
    grown = dict(b.inputs)
    others = {name: _another(b, array) for name, array in grown.items()}
    overrides = {
        name: _another(b, b.table[name].array)
        for name in sorted(b.defaults)
        if b.table[name].array.dtype.kind == "f"
    }
    feeds = [grown, others]
    if overrides:
        feeds.append({**grown, **overrides})
    if not b.is_static:
        # symbols stand for lengths: those that are 2, say, become 3
        feeds.append({name: _longer(b, array) for name, array in grown.items()})
    return feeds


def _another(b: Builder, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "f":
        return b.array(array.dtype.name, array.shape)
    return b.random.permutation(array.reshape(-1)).reshape(array.shape)


def _longer(b: Builder, array: np.ndarray) -> np.ndarray:
    # a length that stayed a number makes the runtime refuse the feed, which is as well
    shape = [length + 1 if length in (2, 3) else length for length in array.shape]
    if array.dtype.kind == "f":
        return b.array(array.dtype.name, shape)
    return np.resize(array, shape)
