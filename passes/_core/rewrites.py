"""One gate that every rewrite of an exact pass goes through: named, counted, and closed on demand.

As LLVM's debug counters and `-opt-bisect-limit`: a run that allows the first n rewrites makes the
same n as any other, so that halving n finds the one that does harm.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

import onnx_ir as ir

from .graph import label


@dataclass(frozen=True)
class Rewrite:
    """A change at one place: the pass and the rule that make it, and the node or value it is at.

    `where` None: the rule at every place.
    """

    pass_name: str
    rule: str
    where: str | None = None

    @property
    def everywhere(self) -> Rewrite:
        """The rule of this rewrite at every place."""
        return dataclasses.replace(self, where=None)

    def __str__(self) -> str:
        named = f"{self.pass_name}, {self.rule}"
        return named if self.where is None else f"{named} at {self.where}"


@dataclass
class Gate:
    """Rewrites that may be made: the first `limit` of those that are not left out; None: all.

    `made`: those that were, in order. `asked`: the last one that was allowed, if it was not made:
    where a pass fails, it did so there.
    """

    limit: int | None = None
    left_out: frozenset[Rewrite] = frozenset()
    made: list[Rewrite] = field(default_factory=list)
    asked: list[Rewrite] = field(default_factory=list)

    def allows(self, rewrite: Rewrite) -> bool:
        """True if this rewrite may be made now."""
        if self.limit is not None and len(self.made) >= self.limit:
            return False
        if not self.left_out:
            return True
        return self.left_out.isdisjoint((rewrite, rewrite.everywhere))


@dataclass(frozen=True)
class Permit:
    """Leave to make one rewrite; `gate` None: nobody counts."""

    gate: Gate | None = None
    rewrite: Rewrite | None = None

    def used(self) -> None:
        """Count the rewrite, which was made."""
        if self.gate is not None and self.rewrite is not None:
            self.gate.made.append(self.rewrite)
            self.gate.asked.clear()


_GATE: ContextVar[Gate | None] = ContextVar("gate", default=None)
_FREE = Permit()


@contextlib.contextmanager
def through(gate: Gate) -> Iterator[None]:
    """Send the rewrites of the block through a gate."""
    token = _GATE.set(gate)
    try:
        yield
    finally:
        _GATE.reset(token)


@contextlib.contextmanager
def tried() -> Iterator[Callable[[], None]]:
    """Count the rewrites of the block only where the function that it is given is called then.

    For changes to a copy that may be thrown away. A failure counts up to where it was.
    """
    gate = _GATE.get()
    if gate is None:
        yield lambda: None
        return
    left = None if gate.limit is None else gate.limit - len(gate.made)
    trial = Gate(left, gate.left_out)
    try:
        with through(trial):
            yield lambda: gate.made.extend(trial.made)
    except BaseException:
        gate.made.extend(trial.made)
        gate.asked[:] = trial.asked
        raise


def permit(pass_name: str, rule: str, where: ir.Node | ir.Value | str) -> Permit | None:
    """Leave to make a rewrite, asked for before anything is changed; None: it must not be made.

    `where`: the node or value that it is at.
    """
    gate = _GATE.get()
    # names are spared where nobody counts
    if gate is None:
        return _FREE
    rewrite = Rewrite(pass_name, rule, _place(where))
    if not gate.allows(rewrite):
        return None
    gate.asked[:] = [rewrite]
    return Permit(gate, rewrite)


def _place(where: ir.Node | ir.Value | str) -> str:
    if isinstance(where, ir.Node):
        return label(where)
    if isinstance(where, ir.Value):
        return where.name or ""
    return where
