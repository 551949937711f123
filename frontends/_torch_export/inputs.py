"""The arguments of a torch module by name, and which of their axes are dynamic, however that was
written.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ... import RefusedError, UsageError

Axes = dict[tuple[int, int], str | None]
"""(index among the tensor inputs, axis) -> the dim's name; None where it was not named."""


@dataclass(frozen=True)
class Leaf:
    """A value inside the arguments: where it lies, what it is called, its place among the tensors
    of the call.
    """

    path: tuple[Any, ...]
    name: str
    value: Any
    index: int | None


@dataclass(frozen=True)
class Dynamic:
    """`tree`: the dynamic shapes as torch.export takes them; `axes`: the same axes by input, with
    their names.
    """

    tree: Any
    axes: Axes


class Arguments:
    """The arguments of one call of a module."""

    def __init__(
        self, module: Any, args: Sequence[Any], kwargs: Mapping[str, Any], where: str
    ) -> None:
        signature = inspect.signature(module.forward)
        try:
            self.bound = dict(signature.bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise RefusedError(
                where,
                f"forward does not take these arguments: {error}",
                f"its signature is forward{signature}",
            ) from error
        gathered = [
            p.name
            for p in signature.parameters.values()
            if p.kind is inspect.Parameter.VAR_KEYWORD
        ]
        order = [
            leaf
            for leaf in pytree.tree_leaves((tuple(args), dict(kwargs)))
            if isinstance(leaf, torch.Tensor)
        ]
        flat, self._spec = pytree.tree_flatten_with_path(self.bound)
        self.leaves = [_leaf(path, value, order, gathered) for path, value in flat]

    def dynamic(
        self,
        shapes: Any,
        input_names: Sequence[str],
        output_names: Sequence[str],
        axes: bool,
    ) -> Dynamic:
        """Which axes are dynamic. `axes`: read as `dynamic_axes`, where a list of numbers names
        axes.

        Errors: UsageError for a name or an axis that is not there, or a form that means two things.
        """
        if shapes is None:
            return Dynamic(None, {})
        specs = self._by_leaf(shapes, input_names, set(output_names))
        found: Axes = {}
        hints: list[Any] = []
        for leaf, spec in zip(self.leaves, specs, strict=True):
            if leaf.index is None:
                hints.append(None)
                continue
            read = _axes_of(spec, leaf, axes)
            found.update(
                {(leaf.index, axis): _dim_name(dim) for axis, dim in read.items()}
            )
            hints.append({axis: _hint(dim) for axis, dim in read.items()})
        return Dynamic(pytree.tree_unflatten(hints, self._spec), found)

    def _by_leaf(
        self, shapes: Any, input_names: Sequence[str], output_names: set[str]
    ) -> list[Any]:
        """What was said of each leaf; None where nothing was."""
        if isinstance(shapes, (tuple, list)):
            if len(shapes) != len(self.bound):
                raise UsageError(
                    "dynamic_shapes",
                    f"has {len(shapes)} entries for {len(self.bound)} arguments",
                    f"give one entry for each of {', '.join(self.bound)}, or name them in a dict",
                )
            shapes = dict(zip(self.bound, shapes, strict=True))
        if not isinstance(shapes, Mapping):
            raise UsageError(
                "dynamic_shapes",
                f"is a {type(shapes).__name__}",
                "write {'x': {0: 'batch'}}",
            )
        named = {leaf.name: leaf for leaf in self.leaves if leaf.index is not None}
        renamed = {
            name: leaf
            for leaf in named.values()
            if leaf.index is not None
            for name in input_names[leaf.index : leaf.index + 1]
        }
        specs: list[Any] = [None] * len(self.leaves)
        for key, spec in shapes.items():
            leaf = renamed.get(key) or named.get(key)
            if leaf is not None and leaf.path[0] != key:
                specs[self.leaves.index(leaf)] = spec
            elif key in self.bound:
                for position, inner in enumerate(self.leaves):
                    if inner.path[0] == key:
                        specs[position] = _descend(spec, inner)
            elif (
                key not in output_names
            ):  # dynamic_axes speak of outputs too: theirs follow from the inputs'
                raise _unknown(
                    str(key), {**named, **renamed, **self.bound}, bool(output_names)
                )
        return specs


def _leaf(
    path: Sequence[Any], value: Any, order: list[Any], gathered: Iterable[Any]
) -> Leaf:
    keys = tuple(
        getattr(step, "key", getattr(step, "idx", getattr(step, "name", None)))
        for step in path
    )
    shown = keys[1:] if keys[0] in gathered else keys
    index = next((i for i, tensor in enumerate(order) if tensor is value), None)
    if index is not None:
        order[index] = None  # the same tensor may be given twice
    return Leaf(keys, "_".join(map(str, shown)), value, index)


def _descend(spec: Any, leaf: Leaf) -> Any:
    """What is said of a leaf inside a spec that mirrors the argument."""
    for key in leaf.path[1:]:
        if spec is None:
            return None
        try:
            spec = spec[key]
        except (KeyError, IndexError, TypeError):
            if isinstance(spec, Mapping):
                return None
            raise UsageError(
                "dynamic_shapes",
                f"does not have the structure of argument '{leaf.path[0]}'",
                f"name the tensor itself: {{'{leaf.name}': {{0: 'batch'}}}}",
            ) from None
    return spec


def _unknown(key: str, known: Mapping[str, Any], has_outputs: bool) -> UsageError:
    near = difflib.get_close_matches(key, known, 1)
    hint = (
        f"did you mean '{near[0]}'?" if near else f"the inputs are {', '.join(known)}"
    )
    if not near and not has_outputs:
        hint += "; dims of outputs follow from them and are not named here"
    return UsageError("dynamic_shapes", f"there is no input '{key}'", hint)


def _axes_of(spec: Any, leaf: Leaf, axes: bool) -> dict[int, Any]:
    """Axis -> what was said of it, without those that stay as they are."""
    rank = leaf.value.dim()
    if spec is None:
        return {}
    if isinstance(spec, Mapping):
        read = {_axis(axis, leaf): dim for axis, dim in spec.items()}
    elif (
        isinstance(spec, (list, tuple))
        and spec
        and all(type(item) is int for item in spec)
    ):
        if not axes:
            raise UsageError(
                f"dynamic_shapes of '{leaf.name}'",
                f"{list(spec)} may be sizes or, as in dynamic_axes, axes",
                "write "
                + "{"
                + ", ".join(f"{axis}: 'name'" for axis in spec if abs(axis) <= rank)
                + "}",
            )
        read = {_axis(axis, leaf): torch.export.Dim.DYNAMIC for axis in spec}
    elif isinstance(spec, (list, tuple)):
        if len(spec) != rank:
            raise UsageError(
                f"dynamic_shapes of '{leaf.name}'",
                f"has {len(spec)} entries for {rank} axes",
                "write {0: 'batch'}",
            )
        read = dict(enumerate(spec))
    else:
        raise UsageError(
            f"dynamic_shapes of '{leaf.name}'",
            f"is a {type(spec).__name__}",
            "write {0: 'batch'}",
        )
    return {axis: dim for axis, dim in read.items() if not _is_static(dim)}


def _axis(axis: Any, leaf: Leaf) -> int:
    rank: int = leaf.value.dim()
    if not isinstance(axis, int) or not -rank <= axis < rank:
        raise UsageError(
            f"dynamic_shapes of '{leaf.name}'",
            f"has no axis {axis!r}: it has {rank} axes",
            f"choose from 0 to {rank - 1}" if rank else "leave it out",
        )
    return axis % rank


def _is_static(dim: Any) -> bool:
    return dim is None or type(dim) is int or dim is torch.export.Dim.STATIC


def _dim_name(dim: Any) -> str | None:
    return dim if isinstance(dim, str) else getattr(dim, "__name__", None)


def _hint(dim: Any) -> Any:
    return torch.export.Dim.DYNAMIC if isinstance(dim, str) else dim


def tensors_in(*parts: Any) -> list[Any]:
    """The tensors among nested values, in torch's order."""
    return [
        leaf for leaf in pytree.tree_leaves(parts) if isinstance(leaf, torch.Tensor)
    ]


def resized(
    args: Any, kwargs: Any, sizes: Sequence[Mapping[int, int]]
) -> tuple[Any, Any]:
    """The same call at other sizes: axis -> size for each tensor; rows repeat, so that values stay
    sensible.
    """
    waiting = iter(sizes)

    def at_its_size(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        for axis, size in next(waiting).items():
            old = max(value.shape[axis], 1)
            value = value.index_select(
                axis, torch.arange(size, device=value.device) % old
            )
        return value

    return tuple(pytree.tree_map(at_its_size, (tuple(args), dict(kwargs))))
