"""Inputs of fixed dims: what a caller fixes, everywhere in the model that it holds.

Text of one input: `NAME=1,3,224,224`, where `?` leaves a dim as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ... import RefusedError, UsageError
from .declared import declare_as_is, forget_inner_declarations
from .graph import graphs_of
from .infer import infer_types
from .nearest import did_you_mean

WHERE = "--shape"
OPEN = "?"

_DIMS = re.compile(r"(\d+|\?)(,(\d+|\?))*")

Dim = int | None


@dataclass(frozen=True)
class InputShape:
    """Dims that an input is to have; None: as it is."""

    name: str
    dims: tuple[Dim, ...]

    def __str__(self) -> str:
        words = [OPEN if dim is None else str(dim) for dim in self.dims]
        return f"{self.name}={','.join(words)}"


def parse_shape(text: str) -> InputShape:
    """Read `NAME=1,3,224,224`. Errors: UsageError."""
    # names may hold a "=" themselves
    name, _, dims = text.rpartition("=")
    dims = dims.replace(" ", "")
    if not name or not _DIMS.fullmatch(dims):
        raise UsageError(
            f"{WHERE} {text}",
            "is not of the form NAME=DIM,DIM,…",
            "write --shape x=1,3,224,224; ? leaves a dim as it is",
        )
    words = dims.split(",")
    return InputShape(
        name, tuple(None if word == OPEN else int(word) for word in words)
    )


def as_shape_texts(
    shapes: Mapping[str, Sequence[Dim]] | Sequence[str] | None,
) -> tuple[str, ...]:
    """Shapes as callers of Python give them, as texts. Errors: UsageError."""
    if shapes is None:
        return ()
    if isinstance(shapes, Mapping):
        found = []
        for name, dims in shapes.items():
            shape = InputShape(name, tuple(dims))
            found.append(str(shape))
        return tuple(found)
    # one text alone would be read letter by letter
    texts = [shapes] if isinstance(shapes, str) else shapes
    parsed = map(parse_shape, texts)
    return tuple(map(str, parsed))


def fix_input_shapes(model: ir.Model, texts: Sequence[str]) -> list[str]:
    """Fix dims of inputs in place; returns what changed, in words.

    A symbolic dim that is fixed is fixed wherever it stands; open dims of outputs become what
    inference finds. Errors: UsageError for an unknown input, another rank, or a dim that the model
    has fixed to another number; RefusedError where no shape goes with the model.
    """
    inputs = {value.name or "": value for value in model.graph.inputs}
    symbols: dict[str, int] = {}
    changes = []
    for text in texts:
        asked = parse_shape(text)
        if asked.name not in inputs:
            raise UsageError(
                f"{WHERE} {text}",
                f"the model has no input '{asked.name}'",
                did_you_mean(asked.name, inputs),
            )
        value = inputs[asked.name]
        before = _dims_text(value)
        _fix(value, asked, symbols)
        if _dims_text(value) != before:
            changes.append(f"input {value.name}: {before} became {_dims_text(value)}")
    if not changes:
        return []
    _replace_symbols(model, symbols)
    _close_outputs(model)
    declare_as_is(model)
    # dims of inner values were those of other inputs
    forget_inner_declarations(model)
    return changes


def _fix(value: ir.Value, asked: InputShape, symbols: dict[str, int]) -> None:
    """Give an input its dims; `symbols` gets what its symbolic dims are from now on."""
    where = f"{WHERE} {asked}"
    old: list[int | ir.SymbolicDim | None] = [None] * len(asked.dims)
    if value.shape is not None:
        old = list(value.shape)
    if len(old) != len(asked.dims):
        raise UsageError(
            where,
            f"{len(asked.dims)} dims, but the input has {len(old)}: {_dims_text(value)}",
            f"write {len(old)} dims",
        )
    new: list[int | ir.SymbolicDim | None] = []
    for before, dim in zip(old, asked.dims, strict=True):
        if dim is None:
            new.append(before)
            continue
        if isinstance(before, int) and before != dim:
            raise UsageError(
                where,
                f"the model fixes a dim to {before}, not {dim}: {_dims_text(value)}",
                f"write {before} there, or export the model with an open dim",
            )
        if not isinstance(before, int):
            _bind(
                _symbol(before),
                dim,
                symbols,
                where,
            )
        new.append(dim)
    value.shape = ir.Shape(new)


def _bind(name: str | None, dim: int, symbols: dict[str, int], where: str) -> None:
    """Give a symbolic dim its number. Errors: UsageError where it has another one already."""
    if name is None:
        return
    known = symbols.setdefault(name, dim)
    if known == dim:
        return
    raise UsageError(
        where,
        f"the dim '{name}' is {known} in another place",
        "give it one number everywhere",
    )


def _symbol(dim: ir.SymbolicDim | None) -> str | None:
    return None if dim is None else dim.value


def _dims_text(value: ir.Value) -> str:
    if value.shape is None:
        return "of unknown rank"
    words = []
    for dim in value.shape:
        known = dim if isinstance(dim, int) else dim.value
        words.append(OPEN if known is None else str(known))
    return f"({', '.join(words)})"


def _replace_symbols(model: ir.Model, symbols: Mapping[str, int]) -> None:
    for graph in graphs_of(model):
        values = [*graph.inputs, *graph.outputs]
        for node in graph:
            values.extend(node.outputs)
        for value in values:
            if value.shape is None:
                continue
            dims = []
            for dim in value.shape:
                name = None if isinstance(dim, int) else dim.value
                # None is no key, and stays
                dims.append(dim if name is None else symbols.get(name, dim))
            value.shape = ir.Shape(dims)


def _close_outputs(model: ir.Model) -> None:
    """Give open dims of outputs the numbers that inference finds."""
    trial = model.clone()
    for graph in graphs_of(trial):
        for node in graph:
            for value in node.outputs:
                value.shape = None
    if not infer_types(trial, data_prop=True):
        return
    for value, inferred in zip(model.graph.outputs, trial.graph.outputs, strict=True):
        if inferred.shape is None:
            continue
        if value.shape is None:
            value.shape = inferred.shape
            continue
        if len(value.shape) != len(inferred.shape):
            raise RefusedError(
                WHERE,
                f"output '{value.name}' is declared with {len(value.shape)} dims, but has "
                f"{len(inferred.shape)} for these inputs",
                "give the shapes that the model was made for",
            )
        dims: list[int | ir.SymbolicDim] = []
        for declared, found in zip(
            value.shape,
            inferred.shape,
            strict=True,
        ):
            is_open = not isinstance(declared, int)
            if is_open and isinstance(found, int):
                dims.append(found)
            else:
                dims.append(declared)
        value.shape = ir.Shape(dims)
