"""The graph of a model as a page shows it: nodes with their modules, what they read and give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from ...passes._core.graph import all_graphs, subgraphs
from ...passes._core.integer_layers import INTEGER_OPS
from ...passes._core.layer_names import layer_name, module_path
from ...passes._core.ops import WEIGHTED_OPS
from ...passes._core.stats import node_macs

Path = tuple[str, ...]
"""Names of modules, the outermost first."""

MOST_TEXT = 120
"""Characters of an attribute that are shown."""


def graph_of(
    model: ir.Model, known: Mapping[ir.Node, Path] | None = None
) -> dict[str, Any]:
    """Every node of a model, subgraphs and functions included, in graph order.

    `nodes`: each with `name`, `op`, `path` (modules, outermost first), `inputs` and `outputs`
    (`name`, `type`, and `from`: the number of the node that makes it), `attributes`, `bytes` (of
    the constants it reads) and `macs`. Inputs and outputs of the model are nodes, too. `known`:
    modules of nodes whose file does not tell.
    """
    numbers: dict[ir.Value, int] = {}
    nodes: list[dict[str, Any]] = []
    for value in fed_inputs(model):
        numbers[value] = len(nodes)
        nodes.append(_end(value, "Input"))
    paths = _paths(model, known or {})
    for graph in all_graphs(model):
        for node in graph:
            for value in node.outputs:
                numbers[value] = len(nodes)
            nodes.append(_node(node, paths[node], numbers))
    for value in model.graph.outputs:
        end = _end(value, "Output")
        end["inputs"] = [_input(value, numbers)]
        nodes.append(end)
    return {"nodes": nodes}


def fed_inputs(model: ir.Model) -> list[ir.Value]:
    """Inputs of a model but for weights, which older files list there."""
    return [value for value in model.graph.inputs if not value.is_initializer()]


def graph_nodes(model: ir.Model) -> list[ir.Node | None]:
    """The node of each entry of `graph_of`, in its order; None: an input or output."""
    found: list[ir.Node | None] = [None] * len(fed_inputs(model))
    for graph in all_graphs(model):
        found += graph
    found += [None] * len(model.graph.outputs)
    return found


def _end(value: ir.Value, op: str) -> dict[str, Any]:
    outputs = [{"name": value.name, "type": type_text(value)}]
    return {
        "name": value.name or "",
        "op": op,
        "path": [],
        "inputs": [],
        "outputs": outputs if op == "Input" else [],
        "attributes": {},
        "bytes": 0,
        "macs": None,
    }


def _node(node: ir.Node, path: Path, numbers: Mapping[ir.Value, int]) -> dict[str, Any]:
    inputs = [_input(value, numbers) for value in node.inputs if value is not None]
    op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return {
        "name": node.name or (node.outputs[0].name if node.outputs else "") or "",
        "op": op,
        "path": list(path),
        "inputs": inputs,
        "outputs": [
            {"name": value.name, "type": type_text(value)} for value in node.outputs
        ],
        "attributes": _attributes(node),
        "bytes": sum(each.get("bytes", 0) for each in inputs),
        "macs": node_macs(node) or None,
    }


def _input(value: ir.Value, numbers: Mapping[ir.Value, int]) -> dict[str, Any]:
    found: dict[str, Any] = {"name": value.name, "type": type_text(value)}
    tensor = value.const_value
    if value.producer() is None and tensor is not None:
        found["type"] = _tensor_type(tensor)
        found["bytes"] = int(tensor.nbytes)
    # values of an outer graph may come later in the order of graphs
    elif value in numbers:
        found["from"] = numbers[value]
    return found


def type_text(value: ir.Value) -> str:
    """`FLOAT 1 × 64 × N`; as much of it as is known."""
    words = []
    if value.dtype is not None:
        words.append(str(value.dtype))
    if value.shape is not None:
        words.append(_dims(value.shape))
    return " ".join(words)


def _dims(dims: Any) -> str:
    return " × ".join(str(dim) for dim in dims) or "scalar"


def _attributes(node: ir.Node) -> dict[str, str]:
    found = {}
    for name, attribute in node.attributes.items():
        text = _attribute_text(attribute)
        if len(text) > MOST_TEXT:
            text = f"{text[:MOST_TEXT]}…"
        found[name] = text
    return found


def _attribute_text(attribute: ir.Attr) -> str:
    if attribute.is_ref():
        return f"the caller's {attribute.ref_attr_name}"
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return "a graph"
    if attribute.type == ir.AttributeType.TENSOR:
        return _tensor_type(attribute.value)
    return str(attribute.value)


def _tensor_type(tensor: ir.TensorProtocol) -> str:
    dims = tensor.shape.numpy()
    return f"{tensor.dtype} {_dims(dims)}"


# modules


def _paths(model: ir.Model, known: Mapping[ir.Node, Path]) -> dict[ir.Node, Path]:
    """Modules of each node: `known`, noted by its exporter, told by names, or its neighbours'."""
    holders = _holders(model)
    paths: dict[ir.Node, Path] = {}
    for graph in all_graphs(model):
        holder = holders.get(graph)
        outer = _outer_path(graph, holder, paths)
        _add_paths(graph, known, outer, paths)
    return paths


def _add_paths(
    graph: ir.Graph | ir.Function,
    known: Mapping[ir.Node, Path],
    outer: Path,
    paths: dict[ir.Node, Path],
) -> None:
    """Add the modules of a graph's nodes, which lie inside of `outer`."""
    places: dict[ir.Node, int] = {}
    for place, node in enumerate(graph):
        places[node] = place
        own = known.get(node) or path_of(node)
        if not own:
            own = _path_before(node, paths, places, outer)
        paths[node] = outer + own
    # what nothing comes before, such as the scaling of a weight, goes with its reader
    for node in reversed(graph):
        if paths[node] == outer:
            own = _path_behind(node, paths, outer)
            paths[node] = outer + own


def _holders(model: ir.Model) -> dict[Any, ir.Node]:
    """The node that holds each subgraph."""
    found: dict[Any, ir.Node] = {}
    for graph in all_graphs(model):
        for node in graph:
            for inner in subgraphs(node):
                found[inner] = node
    return found


def _outer_path(
    graph: ir.Graph | ir.Function,
    holder: ir.Node | None,
    paths: Mapping[ir.Node, Path],
) -> Path:
    if isinstance(graph, ir.Function):
        return (f"function {graph.name}",)
    if holder is None:
        return ()
    return (*paths.get(holder, ()), f"body of {holder.name or holder.op_type}")


def path_of(node: ir.Node) -> Path:
    """Modules that a node's metadata or names tell, outermost first; none where neither does."""
    noted = module_path(node)
    if noted:
        return tuple(noted.split("."))
    own = node.name or ""
    for separator in "/.":
        if separator in own:
            *modules, _ = own.split(separator)
            return _path_in(modules)
    # a number of an exporter: the weight of a layer may have a name
    if node.op_type not in (*WEIGHTED_OPS, *INTEGER_OPS):
        return ()
    name = layer_name(node)
    outputs = [value.name for value in node.outputs]
    if name in (own, *outputs):
        return ()
    return _path_in(name.split("/"))


def _path_in(parts: Sequence[str]) -> Path:
    """Modules of a name's parts; exporters say /layer1/layer1.0/conv1."""
    found: list[str] = []
    before = ""
    for part in parts:
        own = part.removeprefix(f"{before}.") if before else part
        found += own.split(".")
        before = part
    return tuple(each for each in found if each)


def _path_before(
    node: ir.Node,
    paths: Mapping[ir.Node, Path],
    places: Mapping[ir.Node, int],
    outer: Path,
) -> Path:
    """The module of what a node reads, within the graph that holds both.

    Of several inputs the one that was computed last: a branch joins what it left later.
    """
    producers = []
    for value in node.inputs:
        producer = None if value is None else value.producer()
        if producer is not None and producer in places:
            producers.append(producer)
    if not producers:
        return ()
    latest = max(producers, key=lambda producer: places[producer])
    return _inside(paths[latest], outer)


def _path_behind(node: ir.Node, paths: Mapping[ir.Node, Path], outer: Path) -> Path:
    """The module of what reads a node first."""
    for value in node.outputs:
        for use in value.uses():
            return _inside(paths.get(use.node, ()), outer)
    return ()


def _inside(path: Path, outer: Path) -> Path:
    """The part of a path that lies within another; none of one that lies elsewhere."""
    length = len(outer)
    if path[:length] != outer:
        return ()
    return path[length:]
