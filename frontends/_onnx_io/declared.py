"""Declarations of a file, noted when it is read and written again beside what was inferred."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx
import onnx_ir as ir

from ...passes._core.declared import declarations_of, declare, declared_outputs
from ...passes._core.infer import is_invented


def note_declarations(model: ir.Model, proto: onnx.ModelProto) -> None:
    """Keep the declarations of every graph; a value that is input and output has the input's."""
    for graph, message in _pairs(model, proto):
        declare(graph, message)
        outputs = {id(value) for value in graph.outputs}
        for value, info in zip(graph.inputs, message.input, strict=True):
            if id(value) in outputs:
                ir.serde.deserialize_value_info_proto(info, value)


def write_declarations(model: ir.Model, proto: onnx.ModelProto) -> None:
    """Give the message of a model the declarations of the file that it came from.

    Inner values of the main graph: dims that are not inferred. Subgraphs: everything but numbers
    that inference knows better, since a runtime may take an empty result's shape from there.
    """
    for graph, message in _pairs(model, proto):
        declared = declarations_of(graph)
        if declared is None:
            continue
        if graph is model.graph:
            for index, info in declared_outputs(graph).items():
                message.output[index].CopyFrom(info)
            _fill(graph, message, declared)
        else:
            _restore(message, declared)


def _pairs(
    model: ir.Model, proto: onnx.ModelProto
) -> Iterator[tuple[ir.Graph, onnx.GraphProto]]:
    """The main graph and every subgraph under it, each with its message; no recursion."""
    waiting = [(model.graph, proto.graph)]
    while waiting:
        graph, message = waiting.pop()
        yield graph, message
        for node, node_message in zip(graph, message.node, strict=True):
            for attribute in node_message.attribute:
                own = node.attributes[attribute.name]
                if attribute.type == onnx.AttributeProto.GRAPH:
                    waiting.append((own.as_graph(), attribute.g))
                elif attribute.type == onnx.AttributeProto.GRAPHS:
                    graphs = own.as_graphs()
                    waiting += zip(graphs, attribute.graphs, strict=True)


def _fill(graph: ir.Graph, message: onnx.GraphProto, declared: onnx.GraphProto) -> None:
    """Give dims of inner values that inference left open what the file says of them."""
    # few, if any: messages are slow to visit
    names = _open_values(graph)
    if not names:
        return
    types = {info.name: info.type for info in declared.value_info if info.name in names}
    for info in message.value_info:
        own = _shape_to_merge(info.type, types.get(info.name))
        if own is None:
            continue
        if not info.type.tensor_type.HasField("shape"):
            info.type.tensor_type.shape.CopyFrom(own)
            continue
        dims = info.type.tensor_type.shape.dim
        for dim, own_dim in zip(dims, own.dim, strict=True):
            if not _is_known(dim) and _is_known(own_dim):
                dim.CopyFrom(own_dim)


def _open_values(graph: ir.Graph) -> set[str]:
    """Names of the values that nodes make and of whose shape something is not known."""
    found = set()
    for node in graph:
        for value in node.outputs:
            if value.name and _is_open(value.shape):
                found.add(value.name)
    return found


def _is_open(shape: ir.Shape | None) -> bool:
    if shape is None:
        return True
    for dim in shape:
        if not isinstance(dim, int) and (dim.value is None or is_invented(dim.value)):
            return True
    return False


def _restore(message: onnx.GraphProto, declared: onnx.GraphProto) -> None:
    """Make the declarations of a subgraph those of the file again."""
    own_values = {info.name for info in declared.value_info}
    kept = [info for info in message.value_info if info.name in own_values]
    # a copy: deleting the field deletes its messages
    copies = onnx.GraphProto(value_info=kept).value_info
    del message.value_info[:]
    message.value_info.extend(copies)
    _restore_all(message.input, declared.input)
    _restore_all(message.output, declared.output)
    _restore_all(message.value_info, declared.value_info)


def _restore_all(
    infos: Sequence[onnx.ValueInfoProto], declared: Sequence[onnx.ValueInfoProto]
) -> None:
    names = [info.name for info in infos]
    if names == [info.name for info in declared]:
        # by position: an output may stand there twice, with two shapes
        for info, own in zip(infos, declared, strict=True):
            _restore_dims(info.type, own.type)
        return
    types = {info.name: info.type for info in declared}
    for info in infos:
        if info.name in types:
            _restore_dims(info.type, types[info.name])


def _restore_dims(kind: onnx.TypeProto, declared: onnx.TypeProto) -> None:
    """Make a type's dims the declared ones, but for numbers, which inference corrects."""
    if not kind.HasField("tensor_type"):
        return
    if not declared.tensor_type.HasField("shape"):
        kind.tensor_type.ClearField("shape")
        return
    own = _shape_to_merge(kind, declared)
    if own is None:
        return
    inferred = list(kind.tensor_type.shape.dim) or list(own.dim)
    merged = onnx.TensorShapeProto()
    for dim, known in zip(own.dim, inferred, strict=True):
        are_numbers = dim.HasField("dim_value") and known.HasField("dim_value")
        merged.dim.append(known if are_numbers else dim)
    kind.tensor_type.shape.CopyFrom(merged)


def _shape_to_merge(
    kind: onnx.TypeProto, declared: onnx.TypeProto | None
) -> onnx.TensorShapeProto | None:
    """Declared shape of a value; None where there is none, or it has another rank than inferred."""
    if declared is None or not kind.HasField("tensor_type"):
        return None
    shape = declared.tensor_type.shape
    if not declared.tensor_type.HasField("shape"):
        return None
    inferred = kind.tensor_type
    if inferred.HasField("shape") and len(inferred.shape.dim) != len(shape.dim):
        return None
    return shape


def _is_known(dim: onnx.TensorShapeProto.Dimension) -> bool:
    if dim.HasField("dim_value"):
        return True
    return bool(dim.dim_param) and not is_invented(dim.dim_param)
