"""State dicts (.safetensors, .pt, .pth) put onto an ONNX graph or into a torch module."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from .. import RefusedError
from ..passes._core.graph import all_nodes
from ._state_dicts.checkpoints import State, read_state
from ._state_dicts.match import Match, Plan, constants_of, plan_matches

NAMES_LISTED = 8
"""Names that an error lists for each reason. Chosen by hand; not measured."""

_WRAPPERS = ("module.", "_orig_mod.", "model.")
"""Prefixes that DataParallel, torch.compile and Lightning put before every name."""


@dataclass
class Loaded:
    """Report of a state dict put onto a graph.

    `loaded`: (constant, entry, how, transposed). `tied`: entries that equal a loaded one.
    `ignored`: counters and other entries that are no weights. `unused`, `kept`: entries and
    constants without a partner, and why.
    """

    loaded: list[tuple[str, str, str, bool]] = field(default_factory=list)
    tied: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    unused: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)

    @property
    def incomplete(self) -> bool:
        return bool(self.unused or self.kept)

    def summary(self) -> str:
        """Counts of everything, on one line."""
        transposed_count = sum(transposed for *_, transposed in self.loaded)
        transposed = f" ({transposed_count} transposed)" if transposed_count else ""
        parts = [f"{len(self.loaded)} weights loaded{transposed}"]
        others: dict[str, Collection[str]] = {
            "tied": self.tied,
            "ignored": self.ignored,
            "unused": self.unused,
            "kept as they were": self.kept,
        }
        for word, names in others.items():
            if names:
                parts.append(f"{len(names)} {word}")
        return ", ".join(parts)

    def lines(self, most: int | None = None) -> list[str]:
        """One line per reason for everything that found no partner, at most `most` names each."""
        found = []
        for word, names in (("unused", self.unused), ("kept", self.kept)):
            for reason in dict.fromkeys(names.values()):
                same = [name for name, why in names.items() if why == reason]
                found.append(f"{word}, {reason}: {_listed(same, most)}")
        return found

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        keys = ("name", "from", "how", "transposed")
        loaded = [dict(zip(keys, entry, strict=True)) for entry in self.loaded]
        return {
            "loaded": loaded,
            "tied": self.tied,
            "ignored": self.ignored,
            "unused": self.unused,
            "kept": self.kept,
        }


def load_state_dict(
    model: ir.Model, state: str | Path | Mapping[str, Any], *, partial: bool = False
) -> Loaded:
    """Put the weights of a state dict into `model`, in its own types; nothing is read before it is
    written.

    An entry finds its constant by name; by the end of a name that fits no other
    (`module.conv.weight`); a nameless MatMul weight by the bias beside it, by its node's name or by
    a shape that occurs once; it is transposed then. Errors: RefusedError where anything finds no
    partner (unless `partial`), for a graph into whose weights BatchNormalization was folded, for a
    quantized graph. `model` is unchanged then.
    """
    where = "state dict" if isinstance(state, Mapping) else str(state)
    entries = read_state(state)
    constants = constants_of(model)
    names = {constant.name for constant in constants}
    _refuse_folded(entries, names, where)
    weights: State = {}
    ignored: list[str] = []
    for name, tensor in entries.items():
        if _is_weight(name, tensor):
            weights[name] = tensor
        else:
            ignored.append(name)
    shapes = {name: tuple(tensor.shape.numpy()) for name, tensor in weights.items()}
    plan = plan_matches(constants, shapes)
    loaded = Loaded(ignored=ignored, unused=plan.unused, kept=plan.kept)
    for match in plan.matches:
        row = (match.constant.name, match.entry, match.how, match.transposed)
        loaded.loaded.append(row)
    _find_tied(loaded, plan, weights)
    if (loaded.incomplete and not partial) or not plan.matches:
        raise _incomplete(loaded, where, _is_quantized(model))
    for match in plan.matches:
        match.constant.put(_fitted(weights[match.entry], match))
    return loaded


def _is_weight(name: str, tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype.is_floating_point() and not name.endswith("num_batches_tracked")


def _refuse_folded(entries: State, names: set[str], where: str) -> None:
    """Refuse a graph whose BatchNormalization was folded.

    Its weights have the same names as the state dict's, but other values.
    """
    suffix = ".running_mean"
    held = [name.removesuffix(suffix) for name in names if name.endswith(suffix)]
    folded = []
    for name in entries:
        if not name.endswith(suffix):
            continue
        prefix = name.removesuffix(suffix)
        if not any(_is_same_module(prefix, other) for other in held):
            folded.append(prefix)
    if not folded:
        return
    more = f" (nor are {len(folded) - 1} more)" if len(folded) > 1 else ""
    raise RefusedError(
        where,
        f"BatchNormalization '{folded[0]}' is not in the graph{more}: it was folded into other "
        "weights when the graph was exported, so theirs cannot be replaced",
        "export again with these weights: onnx-opt export file.py:callable "
        "--state-dict FILE (which keeps "
        "BatchNormalization)",
    )


def _is_same_module(first: str, second: str) -> bool:
    """True for equal names, or where a wrapper put a prefix before one of them."""
    if first == second:
        return True
    return first.endswith(f".{second}") or second.endswith(f".{first}")


def _is_quantized(model: ir.Model) -> bool:
    return any(node.op_type == "DequantizeLinear" for node in all_nodes(model))


def _find_tied(loaded: Loaded, plan: Plan, weights: State) -> None:
    """Move unused entries with the values of a loaded one to `tied`: one parameter, two names."""
    for name in list(loaded.unused):
        for match in plan.matches:
            if _equal(weights[match.entry], weights[name]):
                del loaded.unused[name]
                loaded.tied.append(name)
                break


def _equal(first: ir.TensorProtocol, second: ir.TensorProtocol) -> bool:
    # types and shapes first: the values may have to be read from a file
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return np.array_equal(first.numpy(), second.numpy())


def _incomplete(loaded: Loaded, where: str, quantized: bool) -> RefusedError:
    count = len(loaded.loaded)
    if quantized:
        fix = "put the weights onto the float graph, then quantize it again"
    elif not count:
        fix = "give the state dict of the model that was exported"
    else:
        fix = (
            f"--partial loads the {count} that fit; or export again with these weights"
        )
    return RefusedError(
        where,
        f"does not fit the graph: {loaded.summary()}: {'; '.join(loaded.lines(NAMES_LISTED))}",
        fix,
    )


def _fitted(source: ir.TensorProtocol, match: Match) -> ir.TensorProtocol:
    """The entry as the graph keeps it; computed when it is written."""
    name = match.constant.name
    held = match.constant.tensor
    if not match.transposed and source.dtype == held.dtype:
        return _renamed(source, name)

    def computed() -> ir.Tensor[Any]:
        array = source.numpy()
        if match.transposed:
            array = array.T
        converted = array.astype(held.dtype.numpy())
        return ir.Tensor(np.ascontiguousarray(converted), dtype=held.dtype)

    shape = ir.Shape(held.shape.numpy())
    return ir.LazyTensor(computed, held.dtype, shape=shape, name=name)


def _renamed(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """The same tensor by another name; one in a file stays there."""
    if isinstance(tensor, ir.ExternalTensor):
        return ir.ExternalTensor(
            tensor.location,
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=tensor.shape,
            name=name,
        )
    shape = ir.Shape(tensor.shape.numpy())
    return ir.LazyTensor(lambda: tensor, tensor.dtype, shape=shape, name=name)


def _listed(names: Sequence[str], most: int | None) -> str:
    more = len(names) - most if most is not None else 0
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def load_into_module(
    module: Any, state: str | Path | Mapping[str, Any], partial: bool = False
) -> list[str]:
    """Load a state dict into a torch module.

    Returns what did not fit, in words, where `partial` lets it pass.

    Errors: RefusedError for a module that is none, and for what does not fit.
    """
    if not hasattr(module, "load_state_dict"):
        raise RefusedError(
            "--state-dict",
            "needs a module: a .pt2 file and a folder have their weights",
            "export file.py:callable, or put the weights --onto an exported graph",
        )
    import torch

    where = "state dict" if isinstance(state, Mapping) else str(state)
    wanted = module.state_dict()
    entries = _without_prefix(read_state(state), wanted)
    unused = [name for name in entries if name not in wanted]
    missing = [name for name in wanted if name not in entries]
    problems = []
    if unused:
        problems.append(f"unused: {_listed(unused, NAMES_LISTED)}")
    if missing:
        problems.append(f"missing: {_listed(missing, NAMES_LISTED)}")
    fitting = []
    for name, tensor in entries.items():
        if name not in wanted:
            continue
        shape = list(tensor.shape.numpy())
        wanted_shape = list(wanted[name].shape)
        if shape == wanted_shape:
            fitting.append(name)
        else:
            problems.append(f"{name}: shape {shape}, not {wanted_shape}")
    if problems and not partial:
        raise RefusedError(
            where,
            f"does not fit the module: {'; '.join(problems[:NAMES_LISTED])}",
            "give the module's own state dict, or --partial",
        )
    with torch.no_grad():
        for name in fitting:
            # state_dict() shares storage with the module
            wanted[name].copy_(_as_torch(entries[name]))
    return problems


def _without_prefix(entries: State, wanted: Mapping[str, Any]) -> State:
    """Entries without the prefixes of wrappers, several deep at times."""
    for prefix in _WRAPPERS:
        if any(name.startswith(prefix) for name in wanted):
            continue
        if all(name.startswith(prefix) for name in entries):
            shorter = {
                name.removeprefix(prefix): tensor for name, tensor in entries.items()
            }
            return _without_prefix(shorter, wanted)
    return entries


def _as_torch(tensor: ir.TensorProtocol) -> Any:
    import torch

    if hasattr(tensor, "raw") and isinstance(tensor.raw, torch.Tensor):
        return tensor.raw
    array = tensor.numpy()
    # torch does not know numpy's bfloat16, which is a type of ml_dtypes
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


__all__ = ["Loaded", "load_into_module", "load_state_dict", "read_state"]
