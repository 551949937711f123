"""Structural checks, without running the model: same interface, and valid ONNX."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from ...passes._core.declared import declarations_of, declared_outputs
from ...passes._core.graph import all_nodes, initializers
from ...passes._core.structure import deprecated_set_aside
from .provenance import PREFIX

BIG = 1024
"""Bytes above which a weight's values are left out of the checked proto.

The values that inference reads (shapes, axes, repeats) are smaller. Chosen by hand; not measured.
"""

CHECK_ERRORS = (
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    RuntimeError,
    ValueError,
    TypeError,
)
"""Exceptions of onnx's checker and onnx_ir's serializer for a model that is not valid."""

Shape = tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class Port:
    """One input or output as a caller sees it."""

    name: str
    type: str | None
    shape: Shape
    has_default: bool = False

    def admits(self, other: Port) -> bool:
        """True for the same port; one without a type may be given one."""
        if self.type is None:
            return other.name == self.name and other.has_default == self.has_default
        return self == other

    def __str__(self) -> str:
        default = " with a default" if self.has_default else ""
        return f"{self.name}: {self.type} {shape_text(self.shape)}{default}"


def shape_text(shape: Shape | list[int | str | None]) -> str:
    """`[batch, 3, ?]`; `unranked` where even the rank is unknown."""
    if shape is None:
        return "unranked"
    dims = ["?" if dim is None else str(dim) for dim in shape]
    return f"[{', '.join(dims)}]"


def dims_of(value: ir.Value) -> Shape:
    """Dimensions of a value: lengths, names, None where unknown; None where unranked."""
    if value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)


@dataclass(frozen=True)
class Interface:
    """Parts of a model that its callers rely on; `metadata` without the record of onnx-opt."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    metadata: tuple[tuple[str, str], ...]

    def difference(self, other: Interface) -> str | None:
        """Say the first thing in which `other` differs; None if nothing does."""
        return (
            _ports_differ("input", self.inputs, other.inputs)
            or _ports_differ("output", self.outputs, other.outputs)
            or self._metadata_differs(other)
        )

    def _metadata_differs(self, other: Interface) -> str | None:
        entries = set(self.metadata) ^ set(other.metadata)
        if not entries:
            return None
        keys = sorted({key for key, _ in entries})
        return f"metadata changed: {', '.join(keys)}"


def _ports_differ(
    kind: str, mine: tuple[Port, ...], theirs: tuple[Port, ...]
) -> str | None:
    # matched by position, as callers may do: one more or less would misname all behind it
    if len(mine) != len(theirs):
        return f"{len(mine)} {kind}s became {len(theirs)}"
    for before, after in zip(mine, theirs, strict=True):
        if not before.admits(after):
            return f"{kind} '{before}' became '{after}'"
    return None


def interface_of(model: ir.Model) -> Interface:
    """Interface of a model, as its callers see it.

    Names, order, types, shapes with symbolic dims, and defaults of inputs and outputs, and the
    metadata.
    """
    outputs: list[ir.Value] = list(model.graph.outputs)
    for index, info in declared_outputs(model.graph).items():
        outputs[index] = _declared_value(info)
    return _interface(model, model.graph.inputs, outputs)


def interface_of_file(model: ir.Model) -> Interface:
    """Interface that the file of a model declares, whatever reading it and inference made of it."""
    declared = declarations_of(model.graph)
    assert declared is not None, "the model was not read from a file"
    inputs = [_declared_value(info) for info in declared.input]
    outputs = [_declared_value(info) for info in declared.output]
    return _interface(model, inputs, outputs)


def _declared_value(info: onnx.ValueInfoProto) -> ir.Value:
    return ir.serde.deserialize_value_info_proto(info, None)


def _interface(
    model: ir.Model, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]
) -> Interface:
    defaults = model.graph.initializers
    # before IR 4 every initializer had to be listed as an input without being one
    if model.ir_version is not None and model.ir_version < 4:
        inputs = [value for value in inputs if value.name not in defaults]
    # passes and runs keep their own records there; those may come and go
    metadata = [
        (key, text)
        for key, text in model.metadata_props.items()
        if not key.startswith(PREFIX)
    ]
    return Interface(
        inputs=tuple(_port(value, value.name in defaults) for value in inputs),
        outputs=tuple(_port(value, has_default=False) for value in outputs),
        metadata=tuple(sorted(metadata)),
    )


def _port(value: ir.Value, has_default: bool) -> Port:
    type_ = None if value.type is None else str(value.type)
    return Port(value.name or "", type_, dims_of(value), has_default)


@dataclass(frozen=True)
class Validity:
    """Refusals of a model by onnx's checker and by strict shape inference; None: accepted."""

    checker: str | None
    inference: str | None

    def worse_than(self, original: Validity) -> str | None:
        """Check that this model fails and the original passed; None if there is none."""
        if self.checker and not original.checker:
            return f"onnx.checker: {self.checker}"
        if self.inference and not original.inference:
            return f"strict shape inference: {self.inference}"
        return None

    def either(self, other: Validity) -> Validity:
        """Checks that at least one of two models passes: the bar for models made from them."""
        # a refusal stands only where both models have one
        checker = self.checker and other.checker
        inference = self.inference and other.inference
        return Validity(checker, inference)


def validity_of(model: ir.Model) -> Validity:
    """Run onnx.checker and strict shape inference, without the values of big weights."""
    try:
        proto = ir.to_proto(deprecated_set_aside(stripped(model)))
    except CHECK_ERRORS as error:
        # a graph that cannot be serialized passes neither check
        problem = first_line(error)
        return Validity(problem, problem)
    inference = _complaint(proto, full=True)
    # inference checks the same first, and more
    if inference is None:
        return Validity(None, None)
    return Validity(_complaint(proto, full=False), inference)


def stripped(model: ir.Model) -> ir.Model:
    """A clone whose big weights are inputs of the main graph, without values.

    The model itself if it has none.
    """
    if not any(_is_big(value) for value in initializers(model)):
        return model
    clone = model.clone()
    main = clone.graph
    defaults = {id(value) for value in main.inputs}
    for index, graph in enumerate(list(clone.graphs())):
        big = [value for value in graph.initializers.values() if _is_big(value)]
        for value in big:
            # a default is an input already, and an output must stay a value of its graph
            if id(value) in defaults or value.is_graph_output():
                continue
            name = value.name or ""
            del graph.initializers[name]
            if graph is not main:
                # names of subgraphs may hide those of the main graph
                value.name = f"subgraph {index}: {name}"
            main.inputs.append(value)
    return clone


def _is_big(initializer: ir.Value) -> bool:
    tensor = initializer.const_value
    return tensor is not None and tensor.nbytes > BIG


def has_inner_shapes(model: ir.Model) -> bool:
    """True if any value between inputs and outputs has a declared type."""
    return any(value.type is not None for value in _inner_values(model))


def forget_shapes(model: ir.Model) -> None:
    """Drop the inferred shapes of values between inputs and outputs.

    A file that came without them stays as small.
    """
    for value in _inner_values(model):
        value.shape = None
        value.type = None


def _inner_values(model: ir.Model) -> Iterator[ir.Value]:
    for node in all_nodes(model):
        for value in node.outputs:
            if not value.is_graph_output():
                yield value


def _complaint(proto: onnx.ModelProto, full: bool) -> str | None:
    try:
        onnx.checker.check_model(proto, full_check=full)
    except CHECK_ERRORS as error:
        return first_line(error)
    return None


def first_line(error: BaseException) -> str:
    """First line of an exception's text, or its type where it has none."""
    for line in str(error).splitlines():
        if line.strip():
            return line.strip()
    return type(error).__name__
