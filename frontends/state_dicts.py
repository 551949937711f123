"""State dicts (.safetensors, .pt, .pth) onto an ONNX graph that is there, or into a torch
module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from .. import RefusedError
from ._state_dicts.checkpoints import State, read_state
from ._state_dicts.match import Match, Plan, planned, targets_of

MOST = 8
"""Names that an error lists for each reason."""


@dataclass
class Loaded:
    """What went where. `loaded`: (constant, entry, how, transposed); `tied`: entries that equal a
    loaded one; `ignored`: counters and other entries that are no weights; `unused` and `kept`: what
    found no partner, and why.
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
        """One line."""
        turned = sum(transposed for *_, transposed in self.loaded)
        parts = [
            f"{len(self.loaded)} weights loaded"
            + (f" ({turned} transposed)" if turned else "")
        ]
        parts += [
            f"{len(names)} {word}"
            for names, word in (
                (self.tied, "tied"),
                (self.ignored, "ignored"),
                (self.unused, "unused"),
                (self.kept, "kept as they were"),
            )
            if names
        ]
        return ", ".join(parts)

    def lines(self, most: int | None = None) -> list[str]:
        """Everything that found no partner, by reason; at most `most` names for each."""
        found = []
        for word, names in (("unused", self.unused), ("kept", self.kept)):
            for reason in dict.fromkeys(names.values()):
                same = [name for name, why in names.items() if why == reason]
                found.append(f"{word}, {reason}: {_listed(same, most)}")
        return found

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        loaded = [
            dict(zip(("name", "from", "how", "transposed"), entry, strict=True))
            for entry in self.loaded
        ]
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
    targets = targets_of(model)
    names = {target.name for target in targets}
    _refuse_folded(entries, names, where)
    weights = {
        name: tensor for name, tensor in entries.items() if _is_weight(name, tensor)
    }
    plan = planned(
        targets, {name: tuple(tensor.shape.numpy()) for name, tensor in weights.items()}
    )
    loaded = Loaded(
        ignored=[name for name in entries if name not in weights],
        unused=plan.unused,
        kept=plan.kept,
    )
    loaded.loaded = [
        (m.target.name, m.source, m.how, m.transposed) for m in plan.matches
    ]
    _find_tied(loaded, plan, weights)
    if (loaded.incomplete and not partial) or not plan.matches:
        raise _incomplete(loaded, where, _is_quantized(model))
    for match in plan.matches:
        match.target.put(_fitted(weights[match.source], match))
    return loaded


def _is_weight(name: str, tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype.is_floating_point() and not name.endswith("num_batches_tracked")


def _refuse_folded(entries: State, names: set[str], where: str) -> None:
    """A graph whose BatchNormalization was folded holds other values than the state dict, by the
    same names.
    """
    means = [name for name in entries if name.endswith(".running_mean")]
    held = {
        name.rpartition(".running_mean")[0]
        for name in names
        if name.endswith(".running_mean")
    }
    folded = [
        prefix
        for prefix in (name.removesuffix(".running_mean") for name in means)
        if not any(
            prefix == h or prefix.endswith(f".{h}") or h.endswith(f".{prefix}")
            for h in held
        )
    ]
    if folded:
        raise RefusedError(
            where,
            f"BatchNormalization '{folded[0]}' is not in the graph"
            + (f" (nor are {len(folded) - 1} more)" if len(folded) > 1 else "")
            + ": it was folded into other weights when the graph was exported, so theirs cannot be replaced",
            "export again with these weights: onnx-opt export file.py:callable "
            "--state-dict FILE (which keeps "
            "BatchNormalization)",
        )


def _is_quantized(model: ir.Model) -> bool:
    return any(
        node.op_type == "DequantizeLinear" for graph in model.graphs() for node in graph
    )


def _find_tied(loaded: Loaded, plan: Plan, weights: State) -> None:
    """An unused entry with the values of a loaded one is the same parameter under a second name."""
    for name in list(loaded.unused):
        tensor = weights[name]
        for match in plan.matches:
            other = weights[match.source]
            if (
                other.dtype == tensor.dtype
                and other.shape == tensor.shape
                and np.array_equal(other.numpy(), tensor.numpy())
            ):
                del loaded.unused[name]
                loaded.tied.append(name)
                break


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
        f"does not fit the graph: {loaded.summary()}: {'; '.join(loaded.lines(MOST))}",
        fix,
    )


def _fitted(source: ir.TensorProtocol, match: Match) -> ir.TensorProtocol:
    """The entry as the graph keeps it; computed when it is written."""
    target = match.target.tensor
    if not match.transposed and source.dtype == target.dtype:
        if isinstance(source, ir.ExternalTensor):
            return ir.ExternalTensor(
                source.location,
                source.offset,
                source.length,
                source.dtype,
                shape=source.shape,
                name=match.target.name,
            )
        return ir.LazyTensor(
            lambda: source,
            source.dtype,
            shape=ir.Shape(source.shape.numpy()),
            name=match.target.name,
        )

    def computed() -> ir.Tensor[Any]:
        array = source.numpy()
        array = array.T if match.transposed else array
        return ir.Tensor(
            np.ascontiguousarray(array.astype(target.dtype.numpy())), dtype=target.dtype
        )

    return ir.LazyTensor(
        computed,
        target.dtype,
        shape=ir.Shape(target.shape.numpy()),
        name=match.target.name,
    )


def _listed(names: Sequence[str], most: int | None) -> str:
    more = len(names) - most if most is not None else 0
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def load_into_module(
    module: Any, state: str | Path | Mapping[str, Any], partial: bool = False
) -> list[str]:
    """A state dict into a torch module; what did not fit, in words, where `partial` lets it pass.

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
    lists = {"unused": unused, "missing": missing}
    problems = [
        f"{word}: {_listed(names, MOST)}" for word, names in lists.items() if names
    ]
    shapes = {
        name: tuple(entries[name].shape.numpy()) for name in entries if name in wanted
    }
    wrong = [
        name for name, shape in shapes.items() if shape != tuple(wanted[name].shape)
    ]
    problems += [
        f"{name}: shape {list(shapes[name])}, not {list(wanted[name].shape)}"
        for name in wrong
    ]
    if problems and not partial:
        raise RefusedError(
            where,
            f"does not fit the module: {'; '.join(problems[:MOST])}",
            "give the module's own state dict, or --partial",
        )
    with torch.no_grad():
        for name in shapes:
            if name not in wrong:
                wanted[name].copy_(_as_torch(entries[name]))
    return problems


def _without_prefix(entries: State, wanted: Mapping[str, Any]) -> State:
    """Wrappers (DataParallel, compile, Lightning) put a prefix before every name."""
    for prefix in ("module.", "_orig_mod.", "model."):
        if all(name.startswith(prefix) for name in entries) and not any(
            name.startswith(prefix) for name in wanted
        ):
            return _without_prefix(
                {name.removeprefix(prefix): tensor for name, tensor in entries.items()},
                wanted,
            )
    return entries


def _as_torch(tensor: ir.TensorProtocol) -> Any:
    import torch

    if hasattr(tensor, "raw") and isinstance(tensor.raw, torch.Tensor):
        return tensor.raw
    array = tensor.numpy()
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


__all__ = ["Loaded", "load_into_module", "load_state_dict", "read_state"]
