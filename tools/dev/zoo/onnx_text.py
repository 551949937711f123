"""Graphs from ONNX text, with their weights filled in.

A tensor that is declared in <...> without a value becomes an initializer with random values:
one-dimensional ones in [0.5, 1.5], `*_scale` in [0.005, 0.015], the others normal with a deviation
of 1 / sqrt(inputs).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Texts = dict[str, str]


def text_graphs(
    texts: Texts, opset: int, ir_version: int, in_nodes: bool = False
) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """`text.NAME` and its writer."""
    header = f'<ir_version: {ir_version}, opset_import: ["" : {opset}, "local" : 1]>'
    for name, text in texts.items():
        yield (
            f"text.{name}",
            lambda path, name=name, text=text: write(
                f"{header} {name} {text}", path, in_nodes
            ),
        )


def write(text: str, path: Path, in_nodes: bool = False) -> None:
    """Parse, fill in the weights (`in_nodes`: as Constant nodes) and save."""
    model = onnx.parser.parse_model(text)
    graph, random = model.graph, np.random.default_rng(0)
    made = {name for node in graph.node for name in node.output}
    weights = [
        numpy_helper.from_array(_values(info, random), info.name)
        for info in graph.value_info
        if info.name not in made
    ]
    if in_nodes:
        for position, tensor in enumerate(weights):
            graph.node.insert(
                position, helper.make_node("Constant", [], [tensor.name], value=tensor)
            )
    else:
        graph.initializer.extend(weights)
    del graph.value_info[:]
    onnx.save(model, path)


def _values(info: onnx.ValueInfoProto, random: np.random.Generator) -> np.ndarray:
    kind = info.type.tensor_type
    shape = tuple(d.dim_value for d in kind.shape.dim)
    if kind.elem_type == TensorProto.INT8:
        return random.integers(-100, 100, shape).astype(np.int8)
    if info.name.endswith("_scale"):
        values = random.uniform(0.005, 0.015, shape)
    elif len(shape) < 2:
        values = random.uniform(0.5, 1.5, shape)
    else:
        inputs = np.prod(shape[1:]) if len(shape) == 4 else shape[-2]
        values = random.normal(0, float(inputs) ** -0.5, shape)
    return np.asarray(values, helper.tensor_dtype_to_np_dtype(kind.elem_type))
