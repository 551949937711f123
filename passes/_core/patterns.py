"""Choice of layers by name: what `include` and `exclude` mean, the same in every pass.

A pattern matches a name that it equals, or by the rules of the shell: `*`, `?` and `[...]`. A layer
is known by the names of its node, its weight and its output.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import onnx_ir as ir

from ... import UsageError

NEAREST = 3
"""Names that an error shows for a pattern that matches none."""

SIMILARITY = 0.3
"""Similarity from which a name is shown (difflib's ratio, 0-1): patterns are parts of names."""


def matches(names: Iterable[str], patterns: Sequence[str]) -> bool:
    """Whether any of the patterns matches any of the names."""
    for name in names:
        for pattern in patterns:
            # equality first: names such as `w[0]` read as a pattern match something else
            if name == pattern or fnmatchcase(name, pattern):
                return True
    return False


def left_out(
    names: Iterable[str], include: Sequence[str], exclude: Sequence[str]
) -> str | None:
    """Reason why a layer known by these names is not to be touched; None if it is."""
    known = list(names)
    if include and not matches(known, include):
        return "not matched by include"
    if matches(known, exclude):
        return "matched by exclude"
    return None


def require_matches(where: str, patterns: Sequence[str], names: Iterable[str]) -> None:
    """Raise UsageError for a pattern that matches none of the names, with the nearest of them.

    `where`: the pass and its option, as `prune.include`. `names`: those of all layers that the pass
    could touch, and of those that it declines. A model without such layers is not an error of the
    pattern.
    """
    known = sorted(set(names))
    for pattern in patterns:
        if known and not matches(known, [pattern]):
            near = difflib.get_close_matches(
                pattern.strip("*"), known, NEAREST, SIMILARITY
            )
            shown = near or known[:NEAREST]
            raise UsageError(
                where,
                f"'{pattern}' matches no layer",
                f"the nearest names are {', '.join(shown)}",
            )


def layer_names(node: ir.Node, weight: ir.Value | None = None) -> list[str]:
    """Names that a pattern may call a layer by: its node's, its weight's and its output's.

    `weight`: the initializer; by default what the node's second input leads to.
    """
    names = [node.name]
    if weight is None and len(node.inputs) > 1:
        weight = node.inputs[1]
    if weight is not None:
        names.append(weight.name)
    names.append(node.outputs[0].name)
    return [name for name in names if name]
