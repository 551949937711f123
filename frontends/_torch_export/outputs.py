"""What a torch module returned: its tensors in order, a name for each, and how far ONNX's are from
them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx_ir.tensor_adapters import TorchTensor
from torch.utils import _pytree as pytree

from ... import RefusedError

Arrays = dict[str, NDArray[Any]]

_DEFAULTS = {"float16": (1e-2, 1e-2), "bfloat16": (5e-2, 5e-2)}
_DEFAULT = (1e-4, 1e-3)


@dataclass(frozen=True)
class Difference:
    """One output against torch's: largest |y - y'| and |y - y'| / |y|; `outside`: how many values
    are too far.
    """

    max_abs: float
    max_rel: float
    outside: int
    problem: str | None = None


@dataclass
class Case:
    """One call: `sizes` of the dynamic dims, what goes in, what torch gave, and how far ONNX's
    outputs were from it.
    """

    sizes: dict[str, int]
    feeds: Arrays
    expected: Arrays
    tensors: list[Any] = field(default_factory=list, repr=False)
    differences: dict[str, Difference] = field(default_factory=dict)

    def compare(
        self, got: Mapping[str, Any], atol: float | None, rtol: float | None
    ) -> str | None:
        """Fill `differences`; what is wrong, or None."""
        for name, expected in self.expected.items():
            self.differences[name] = difference(
                expected, np.asarray(got[name]), atol, rtol
            )
        worst = [
            (name, d) for name, d in self.differences.items() if d.problem or d.outside
        ]
        if not worst:
            return None
        name, found = max(
            worst, key=lambda item: (item[1].problem is not None, item[1].max_abs)
        )
        where = "".join(f" at {dim} {size}" for dim, size in self.sizes.items())
        if found.problem:
            return f"output '{name}'{where}: {found.problem}"
        return (
            f"output '{name}'{where} is off in {found.outside} of "
            f"{self.expected[name].size} values: "
            f"max abs error {found.max_abs:.3g}, max rel {found.max_rel:.3g}"
        )


def difference(
    expected: NDArray[Any], got: NDArray[Any], atol: float | None, rtol: float | None
) -> Difference:
    """|y - y'| <= atol + rtol |y|; the default atol is relative to the largest |y| where that is
    above 1.
    """
    if expected.shape != got.shape:
        return Difference(
            math.inf,
            math.inf,
            0,
            f"shape {list(got.shape)} where torch gives {list(expected.shape)}",
        )
    default_atol, default_rtol = _DEFAULTS.get(expected.dtype.name, _DEFAULT)
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    y, z = expected.astype(wide), got.astype(wide)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        same = (y == z) | (np.isnan(y) & np.isnan(z))
        error = np.where(same, 0.0, np.abs(y - z))
        error = np.where(np.isnan(error), math.inf, error)
        size = np.where(np.isfinite(y), np.abs(y), 0.0)
        if atol is None and rtol is None:
            atol, rtol = (
                default_atol * max(1.0, float(size.max(initial=0.0))),
                default_rtol,
            )
        outside = int(np.count_nonzero(error > (atol or 0.0) + (rtol or 0.0) * size))
        relative = np.where(size > 0, error / size, 0.0)
    return Difference(
        float(error.max(initial=0.0)), float(relative.max(initial=0.0)), outside
    )


def output_names(outputs: Any) -> list[str]:
    """`output` for a bare tensor, keys and fields by their names, `output_0` and so on for
    tuples.
    """
    leaves = [
        (path, leaf)
        for path, leaf in pytree.tree_flatten_with_path(outputs)[0]
        if isinstance(leaf, torch.Tensor)
    ]
    if len(leaves) == 1 and all(_key(step) is None for step in leaves[0][0]):
        return ["output"]
    names: list[str] = []
    for path, _ in leaves:
        words = [
            str(_key(step)) if _key(step) is not None else str(getattr(step, "idx", ""))
            for step in path
        ]
        name = "_".join(words)
        name = name if name and not name[0].isdigit() else f"output_{name}"
        while name in names:
            name += "_"
        names.append(name)
    return names


def refuse_numbers(outputs: Any, where: str) -> None:
    """ONNX outputs are tensors. Errors: RefusedError for a number or a text among them."""
    for path, leaf in pytree.tree_flatten_with_path(outputs)[0]:
        if leaf is not None and not isinstance(leaf, torch.Tensor):
            place = f"outputs{pytree.keystr(path)}"
            raise RefusedError(
                where,
                f"forward returns {type(leaf).__name__} {leaf!r:.40} (at {place})",
                "return tensors only: leave it out, or torch.tensor(…)",
            )


def _key(step: Any) -> Any:
    return getattr(step, "key", getattr(step, "name", None))


def arrays(tensors: Sequence[Any]) -> list[NDArray[Any]]:
    """Tensors as numpy, bfloat16 included."""
    return [
        np.asarray(TorchTensor(tensor.detach().cpu().contiguous()).numpy())
        for tensor in tensors
    ]
