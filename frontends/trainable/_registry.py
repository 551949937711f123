"""The torch function that computes each ONNX op, from which opset on."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import onnx_ir as ir

from . import _ops

Kernel = Callable[..., Any]


@dataclass(frozen=True)
class Call:
    """One node before it runs, as kernels see it that have a parameter `call`.

    `inputs`, `outputs`: ONNX element types, None where unknown or absent. `opset`: version of the
    node's domain. `qat`: quantized values stay floats on their grid, with gradients.
    """

    inputs: tuple[ir.DataType | None, ...]
    outputs: tuple[ir.DataType | None, ...]
    opset: int
    qat: bool = False

    @property
    def wanted(self) -> int:
        """Number of outputs that the node has."""
        return len(self.outputs)


@dataclass(frozen=True)
class Entry:
    """A kernel: ONNX inputs are its positional parameters, attributes its keywords with ONNX's
    defaults.

    `since`: first opset for which it holds. `host`: inputs that it takes as Python numbers and
    lists; `scalars`: those that it takes as Python numbers where they are constants without axes.
    `many`: it returns a tuple. `gradient`: gradients pass through it. `accepts`: its attributes;
    `extras`: what else it wants (`call`, `device`).
    """

    name: str
    since: int
    function: Kernel
    host: frozenset[int]
    many: bool
    gradient: bool
    accepts: frozenset[str]
    extras: frozenset[str]
    scalars: frozenset[int] = frozenset()


_EXTRAS = frozenset({"call", "device"})
"""Keywords that are no attributes of ONNX."""

_ENTRIES: dict[tuple[str, str], list[Entry]] = {}
"""Entries of each (domain, op), by opset."""


def op(
    name: str,
    since: int = 1,
    *,
    domain: str = "",
    host: tuple[int, ...] = (),
    scalars: tuple[int, ...] = (),
    many: bool = False,
    gradient: bool = True,
) -> Callable[[Kernel], Kernel]:
    """Declare the kernel of an op for every opset from `since` up to the next declared one."""

    def declare(function: Kernel) -> Kernel:
        keywords = _keywords(function)
        entry = Entry(
            name,
            since,
            function,
            frozenset(host),
            many,
            gradient,
            accepts=keywords - _EXTRAS,
            extras=keywords & _EXTRAS,
            scalars=frozenset(scalars),
        )
        entries = _ENTRIES.setdefault((domain, name), [])
        versions = [known.since for known in entries]
        assert since not in versions, f"{name} since {since} is declared twice"
        entries.append(entry)
        entries.sort(key=lambda known: known.since)
        return function

    return declare


def _keywords(function: Kernel) -> frozenset[str]:
    """Names of keyword-only parameters; torch's builtins have none of interest."""
    if inspect.isbuiltin(function):
        return frozenset()
    parameters = inspect.signature(function).parameters.values()
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    return frozenset(p.name for p in parameters if p.kind is keyword_only)


def entry_of(domain: str, name: str, opset: int) -> Entry | None:
    """Return the latest entry that is not newer than the model's opset; None if there is none.

    Exact versions would fail on every new opset, most of whose ops are what they were.
    """
    # lazily: kernels import this module
    _declare_all()
    entries = _ENTRIES.get((domain, name), [])
    fitting = [entry for entry in entries if entry.since <= opset]
    if fitting:
        return fitting[-1]
    return None


@cache
def _declare_all() -> None:
    """Import every file of kernels, which declares what is in it."""
    for family in pkgutil.iter_modules(_ops.__path__):
        import_module(f"{_ops.__name__}.{family.name}")
