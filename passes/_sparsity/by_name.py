"""Sparsity of single layers, as the option `layers` of `prune` names them."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ... import UsageError
from .._core.layer_entries import read_entries
from .._core.options import Auto
from .._core.patterns import matches, require_matches, weight_names, weighted_names
from .._core.weights import Weight
from .allocation import share

OPTION = "prune.layers"

EXAMPLE = "0.5"

MOST = 0.99
"""Largest sparsity of a layer, as of the option `sparsity`."""


def check_layers(texts: tuple[str, ...]) -> None:
    """Raise UsageError for an entry that cannot be read."""
    for pattern, value in read_entries(OPTION, texts, "SPARSITY", EXAMPLE):
        _sparsity(pattern, value)


def counts_by_name(
    texts: tuple[str, ...],
    default: float | Auto,
    weights: Sequence[Weight],
    model: ir.Model,
) -> dict[str, int]:
    """Zeros of each weight, by its name.

    `default`: sparsity of weights that no entry names; auto: none of theirs go. Errors: UsageError
    for an entry that cannot be read, or matches no layer.
    """
    entries = read_entries(OPTION, texts, "SPARSITY", EXAMPLE)
    patterns = [pattern for pattern, _ in entries]
    require_matches(OPTION, patterns, weighted_names(model))
    counts = {}
    for weight in weights:
        sparsity = 0.0 if default == "auto" else default
        names = weight_names(weight)
        for pattern, value in entries:
            if matches(names, [pattern]):
                sparsity = _sparsity(pattern, value)
                break
        counts[weight.name] = share(sparsity, weight.size)
    return counts


def _sparsity(pattern: str, value: str) -> float:
    """Sparsity that an entry gives. Errors: UsageError."""
    try:
        sparsity = float(value)
    except ValueError:
        sparsity = -1.0
    # negated, so that NaN is refused too
    if not 0.0 <= sparsity <= MOST:
        raise UsageError(
            OPTION,
            f"'{value}' of '{pattern}' is no sparsity",
            f"give a number in [0, {MOST}], for example {pattern}={EXAMPLE}",
        )
    return sparsity
