"""Outputs of a torch module: a name for each tensor, and their values as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx_ir.tensor_adapters import TorchTensor
from torch.utils import _pytree as pytree

from ... import RefusedError


def default_output_names(outputs: Any) -> list[str]:
    """`output` for a bare tensor, keys and fields by their names, `output_0` … for tuples."""
    paths = []
    for path, leaf in pytree.tree_flatten_with_path(outputs)[0]:
        if isinstance(leaf, torch.Tensor):
            paths.append(path)
    if len(paths) == 1 and all(_key(step) is None for step in paths[0]):
        return ["output"]
    names: list[str] = []
    for path in paths:
        name = "_".join(_word(step) for step in path)
        if not name or name[0].isdigit():
            name = f"output_{name}"
        # keys "a_b" and "a", "b" give the same words
        while name in names:
            name += "_"
        names.append(name)
    return names


def _word(step: Any) -> str:
    """Key, field or index of one step into nested outputs."""
    key = _key(step)
    if key is not None:
        return str(key)
    return str(getattr(step, "idx", ""))


def _key(step: Any) -> Any:
    """Key of a dict or name of a field; None for an index."""
    name = getattr(step, "name", None)
    return getattr(step, "key", name)


def refuse_numbers(outputs: Any, where: str) -> None:
    """Refuse a number or a text among the outputs: ONNX has tensors only. Errors: RefusedError."""
    for path, leaf in pytree.tree_flatten_with_path(outputs)[0]:
        if leaf is None or isinstance(leaf, torch.Tensor):
            continue
        place = f"outputs{pytree.keystr(path)}"
        raise RefusedError(
            where,
            f"forward returns {type(leaf).__name__} {leaf!r:.40} (at {place})",
            "return tensors only: leave it out, or torch.tensor(…)",
        )


def arrays(tensors: Sequence[Any]) -> list[NDArray[Any]]:
    """Tensors as numpy arrays."""
    found = []
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        # torch's own .numpy() refuses bfloat16, the adapter does not
        adapted = TorchTensor(plain)
        found.append(np.asarray(adapted.numpy()))
    return found
