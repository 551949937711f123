"""Structural checks, without running the model: the interface is unchanged, the graph is valid
ONNX.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from ...passes._core.graph import all_nodes, initializers
from .provenance import PREFIX

BIG = 1024
"""Bytes above which a weight's values are left out of the checked proto: no check reads them."""

CHECK_ERRORS = (
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    RuntimeError,
    ValueError,
    TypeError,
)
"""What onnx's checker and onnx_ir's serializer raise on a model that is not valid."""

Shape = tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class Port:
    """One input or output as a caller sees it."""

    name: str
    type: str
    shape: Shape
    has_default: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {self.type} {shape_text(self.shape)}" + (
            " with a default" if self.has_default else ""
        )


def shape_text(shape: Shape | list[int | str | None]) -> str:
    """`[batch, 3, ?]`; `unranked` where even the rank is unknown."""
    return (
        "unranked"
        if shape is None
        else "[" + ", ".join("?" if d is None else str(d) for d in shape) + "]"
    )


@dataclass(frozen=True)
class Interface:
    """What callers of a model rely on; `metadata` without our own record."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    metadata: tuple[tuple[str, str], ...]

    def difference(self, other: Interface) -> str | None:
        """In words, the first thing in which `other` differs; None if nothing does."""
        for kind in ("inputs", "outputs"):
            mine: tuple[Port, ...] = getattr(self, kind)
            theirs: tuple[Port, ...] = getattr(other, kind)
            if len(mine) != len(theirs):
                return f"{len(mine)} {kind} became {len(theirs)}"
            for before, after in zip(mine, theirs, strict=True):
                if before != after:
                    return f"{kind[:-1]} '{before}' became '{after}'"
        if self.metadata != other.metadata:
            keys = sorted({key for key, _ in set(self.metadata) ^ set(other.metadata)})
            return f"metadata changed: {', '.join(keys)}"
        return None


def interface_of(model: ir.Model) -> Interface:
    """Names, order, types, shapes with symbolic dims, and defaults of inputs and outputs, and the
    metadata.

    Before IR 4 every initializer is listed as an input without being one; those are left out.
    """
    listed = model.ir_version is not None and model.ir_version < 4
    return Interface(
        tuple(
            _ports(v for v in model.graph.inputs if not (listed and v.is_initializer()))
        ),
        tuple(_ports(model.graph.outputs)),
        tuple(
            sorted(
                (k, v)
                for k, v in model.metadata_props.items()
                if not k.startswith(PREFIX)
            )
        ),
    )


def _ports(values: Iterable[ir.Value]) -> Iterable[Port]:
    for value in values:
        shape = (
            None
            if value.shape is None
            else tuple(d if isinstance(d, int) else d.value for d in value.shape)
        )
        yield Port(
            value.name or "",
            str(value.type),
            shape,
            value.is_graph_input() and value.is_initializer(),
        )


@dataclass(frozen=True)
class Validity:
    """Why onnx's checker, and its strict shape inference, refuse a model; None where they accept
    it.
    """

    checker: str | None
    inference: str | None

    def worse_than(self, original: Validity) -> str | None:
        """What this model fails that the original passed."""
        if self.checker and not original.checker:
            return f"onnx.checker: {self.checker}"
        if self.inference and not original.inference:
            return f"strict shape inference: {self.inference}"
        return None

    def or_as(self, other: Validity) -> Validity:
        """What at least one of the two passes: the bar for models made from them."""
        return Validity(
            self.checker and other.checker, self.inference and other.inference
        )


def validity_of(model: ir.Model) -> Validity:
    """Run onnx.checker and strict shape inference on the graph without the values of its big
    weights.
    """
    try:
        proto = ir.to_proto(stripped(model))
    except CHECK_ERRORS as error:
        return Validity(first_line(error), first_line(error))
    return Validity(_complaint(proto, full=False), _complaint(proto, full=True))


def stripped(model: ir.Model) -> ir.Model:
    """A clone whose big weights are inputs of the main graph, without values; the model itself if
    it has none.
    """
    if not any(
        v.const_value is not None and v.const_value.nbytes > BIG
        for v in initializers(model)
    ):
        return model
    clone = model.clone()
    main = clone.graph
    defaults = {id(v) for v in main.inputs}
    for index, graph in enumerate(list(clone.graphs())):
        for name, value in list(graph.initializers.items()):
            tensor = value.const_value
            if (
                tensor is None
                or tensor.nbytes <= BIG
                or id(value) in defaults
                or value.is_graph_output()
            ):
                continue
            del graph.initializers[name]
            if graph is not main:
                value.name = f"subgraph {index}: {name}"
            main.inputs.append(value)
    return clone


def has_inner_shapes(model: ir.Model) -> bool:
    """Whether any value between inputs and outputs has a declared type."""
    return any(
        v.type is not None
        for node in all_nodes(model)
        for v in node.outputs
        if not v.is_graph_output()
    )


def forget_shapes(model: ir.Model) -> None:
    """Drop what was inferred for values between inputs and outputs: a file that came without it
    stays as small.
    """
    for node in all_nodes(model):
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape, value.type = None, None


def _complaint(proto: onnx.ModelProto, full: bool) -> str | None:
    try:
        onnx.checker.check_model(proto, full_check=full)
    except CHECK_ERRORS as error:
        return first_line(error)
    return None


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
