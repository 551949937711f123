"""Arguments of a torch module by name, and their dynamic axes, however those were written."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ... import RefusedError, UsageError
from ...passes._core.nearest import did_you_mean

Axes = dict[tuple[int, int], str | None]
"""(index among the tensor inputs, axis) -> the dim's name; None where it was not named."""


@dataclass(frozen=True)
class Leaf:
    """A value inside the arguments.

    `path`: keys and indices that lead to it, the argument's name first. `index`: its place among
    the tensors of the call, None for a value that is no tensor.
    """

    path: tuple[Any, ...]
    name: str
    value: Any
    index: int | None


@dataclass(frozen=True)
class Dynamic:
    """Dynamic axes in two forms.

    `tree`: as torch.export takes them. `axes`: by input, with their names.
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
        # **kwargs lie below the parameter's name, which the caller never wrote
        gathered = [
            parameter.name
            for parameter in signature.parameters.values()
            if parameter.kind is inspect.Parameter.VAR_KEYWORD
        ]
        # torch.export orders inputs as they are given, `bound` as the signature names them
        order: list[Any] = tensors_in(tuple(args), dict(kwargs))
        flat, self._spec = pytree.tree_flatten_with_path(self.bound)
        self.leaves: list[Leaf] = []
        for path, value in flat:
            leaf = _leaf(
                path,
                value,
                order,
                gathered,
            )
            self.leaves.append(leaf)

    def dynamic(
        self,
        shapes: Any,
        input_names: Sequence[str],
        output_names: Sequence[str],
        older_form: bool,
    ) -> Dynamic:
        """Read the dynamic axes from `shapes`.

        `older_form`: it is `dynamic_axes`, where a list of numbers names axes.

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
            read = _axes_of(spec, leaf, older_form)
            hints.append({axis: _hint(dim) for axis, dim in read.items()})
            for axis, dim in read.items():
                found[leaf.index, axis] = _dim_name(dim)
        return Dynamic(pytree.tree_unflatten(hints, self._spec), found)

    def _by_leaf(
        self, shapes: Any, input_names: Sequence[str], output_names: set[str]
    ) -> list[Any]:
        """Find the spec of each leaf; None for a leaf without one."""
        shapes = self._by_argument(shapes)
        named: dict[Any, Leaf] = {}
        renamed: dict[Any, Leaf] = {}
        for leaf in self.leaves:
            if leaf.index is None:
                continue
            named[leaf.name] = leaf
            if leaf.index < len(input_names):
                renamed[input_names[leaf.index]] = leaf
        specs: list[Any] = [None] * len(self.leaves)
        for key, spec in shapes.items():
            leaf_of_key = renamed.get(key) or named.get(key)
            if leaf_of_key is not None and leaf_of_key.path[0] != key:
                specs[self.leaves.index(leaf_of_key)] = spec
            elif key in self.bound:
                # an argument: its spec may mirror what is nested in it
                for position, leaf in enumerate(self.leaves):
                    if leaf.path[0] == key:
                        specs[position] = _descend(spec, leaf)
            elif key not in output_names:
                # dynamic_axes name outputs too; those follow from the inputs and are passed over
                known = {**named, **renamed, **self.bound}
                raise _unknown(str(key), known, bool(output_names))
        return specs

    def _by_argument(self, shapes: Any) -> Mapping[Any, Any]:
        """Specs by name; those of a tuple or list belong to the arguments in order."""
        if isinstance(shapes, Mapping):
            return shapes
        if not isinstance(shapes, (tuple, list)):
            raise UsageError(
                "dynamic_shapes",
                f"is a {type(shapes).__name__}",
                "write {'x': {0: 'batch'}}",
            )
        if len(shapes) != len(self.bound):
            raise UsageError(
                "dynamic_shapes",
                f"has {len(shapes)} entries for {len(self.bound)} arguments",
                f"give one entry for each of {', '.join(self.bound)}, or name them in a dict",
            )
        return dict(zip(self.bound, shapes, strict=True))


def _leaf(
    path: Sequence[Any], value: Any, order: list[Any], gathered: Iterable[Any]
) -> Leaf:
    keys = tuple(_key(step) for step in path)
    shown = keys[1:] if keys[0] in gathered else keys
    index = None
    for position, tensor in enumerate(order):
        if tensor is value:
            index = position
            # the same tensor may be given twice
            order[position] = None
            break
    return Leaf(
        path=keys,
        name="_".join(map(str, shown)),
        value=value,
        index=index,
    )


def _key(step: Any) -> Any:
    """Key of a dict, index of a sequence or name of a field."""
    for attribute in ("key", "idx", "name"):
        if hasattr(step, attribute):
            return getattr(step, attribute)
    return None


def _descend(spec: Any, leaf: Leaf) -> Any:
    """Follow the leaf's path inside a spec that mirrors the argument."""
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
    names = f"the inputs are {', '.join(known)}"
    if not has_outputs:
        names += "; dims of outputs follow from them and are not named here"
    fix = did_you_mean(key, known, names)
    return UsageError("dynamic_shapes", f"there is no input '{key}'", fix)


def _axes_of(spec: Any, leaf: Leaf, older_form: bool) -> dict[int, Any]:
    """Axis -> spec of its dim, without the axes that stay fixed."""
    if spec is None:
        return {}
    read: dict[int, Any]
    if isinstance(spec, Mapping):
        read = {_axis(axis, leaf): dim for axis, dim in spec.items()}
    elif isinstance(spec, (list, tuple)) and _all_integers(spec):
        if not older_form:
            raise _sizes_or_axes(spec, leaf)
        read = {_axis(axis, leaf): torch.export.Dim.DYNAMIC for axis in spec}
    elif isinstance(spec, (list, tuple)):
        rank = leaf.value.dim()
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


def _all_integers(spec: Sequence[Any]) -> bool:
    return bool(spec) and all(type(item) is int for item in spec)


def _sizes_or_axes(spec: Sequence[int], leaf: Leaf) -> UsageError:
    rank = leaf.value.dim()
    entries = [f"{axis}: 'name'" for axis in spec if abs(axis) <= rank]
    return UsageError(
        f"dynamic_shapes of '{leaf.name}'",
        f"{list(spec)} may be sizes or, as in dynamic_axes, axes",
        "write {" + ", ".join(entries) + "}",
    )


def _axis(axis: Any, leaf: Leaf) -> int:
    rank: int = leaf.value.dim()
    if not isinstance(axis, int) or not -rank <= axis < rank:
        fix = "leave it out"
        if rank:
            fix = f"choose from 0 to {rank - 1}"
        raise UsageError(
            f"dynamic_shapes of '{leaf.name}'",
            f"has no axis {axis!r}: it has {rank} axes",
            fix,
        )
    return axis % rank


def _is_static(dim: Any) -> bool:
    if dim is None or dim is torch.export.Dim.STATIC:
        return True
    return type(dim) is int


def _dim_name(dim: Any) -> str | None:
    if isinstance(dim, str):
        return dim
    return getattr(dim, "__name__", None)


def _hint(dim: Any) -> Any:
    return torch.export.Dim.DYNAMIC if isinstance(dim, str) else dim


def tensors_in(*parts: Any) -> list[Any]:
    """Tensors among nested values, in torch's order."""
    leaves = pytree.tree_leaves(parts)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def resized(
    args: Any, kwargs: Any, sizes: Sequence[Mapping[int, int]]
) -> tuple[Any, Any]:
    """The same call at other sizes: axis -> size for each tensor, in torch's order."""
    waiting = iter(sizes)

    def at_its_size(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        for axis, size in next(waiting).items():
            # rows repeat, so that indices and masks stay sensible
            old_size = max(value.shape[axis], 1)
            rows = torch.arange(size, device=value.device) % old_size
            value = value.index_select(axis, rows)
        return value

    call = (tuple(args), dict(kwargs))
    new_args, new_kwargs = pytree.tree_map(at_its_size, call)
    return new_args, new_kwargs
