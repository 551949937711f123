"""Names of one letter or two for what nobody addresses by name."""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable, Iterator

import onnx_ir as ir

from .graph import graphs_of
from .rewrites import permit

FIRST = string.ascii_letters
FURTHER = string.ascii_letters + string.digits


def shorten_names(model: ir.Model, stays: Callable[[str], bool]) -> int:
    """Give values the shortest names, those that are read most the very shortest, and nodes none.

    Inputs and outputs of the model keep theirs, and so do values whose name `stays`, and all that
    is in functions. Returns how many names became shorter.
    """
    leave = permit("strip", "names", "the model")
    if leave is None:
        return 0
    graphs = list(graphs_of(model))
    values = dict.fromkeys(_named(graphs))
    taken = {value.name for value in values}
    kept = {*model.graph.inputs, *model.graph.outputs}
    # one set of names for all graphs: those inside see what is around them
    free = (name for name in short_names() if name not in taken)
    name = next(free)
    count = 0
    for value in sorted(values, key=lambda each: -len(each.uses())):
        old = value.name or ""
        if value in kept or len(name) >= len(old) or stays(old):
            continue
        value.name = name
        name = next(free)
        count += 1
    for graph in graphs:
        for node in graph:
            count += bool(node.name)
            node.name = ""
    if count:
        leave.used()
    return count


def short_names() -> Iterator[str]:
    """Yield names of one character, then of two, and so on; all begin with a letter."""
    for length in itertools.count():
        for first, *rest in itertools.product(FIRST, *[FURTHER] * length):
            yield "".join((first, *rest))


def _named(graphs: list[ir.Graph]) -> Iterator[ir.Value]:
    """Yield every value that has a name: what graphs are given, hold and compute."""
    for graph in graphs:
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from (value for value in node.outputs if value.name)
