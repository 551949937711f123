"""Which torch function computes which ONNX op, from which opset on."""

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
    """What is known of one node before it runs; given to kernels that have a parameter `call`.

    `inputs`, `outputs`: ONNX element types, None where unknown or absent. `wanted`: how many
    outputs the node has. `qat`: quantized values stay floats on their grid, with gradients.
    """

    inputs: tuple[ir.DataType | None, ...]
    outputs: tuple[ir.DataType | None, ...]
    opset: int
    qat: bool = False

    @property
    def wanted(self) -> int:
        return len(self.outputs)


@dataclass(frozen=True)
class Entry:
    """A kernel: ONNX inputs are its positional parameters, attributes its keywords with ONNX's
    defaults.

    `host`: inputs that it takes as Python numbers and lists. `many`: it returns a tuple. `accepts`:
    its attributes, `extras` what else it wants (`call`, `device`). `gradient`: whether gradients
    pass through it.
    """

    name: str
    since: int
    function: Kernel
    host: frozenset[int]
    many: bool
    gradient: bool
    accepts: frozenset[str]
    extras: frozenset[str]


_EXTRAS = frozenset({"call", "device"})
_ENTRIES: dict[tuple[str, str], list[Entry]] = {}


def op(
    name: str,
    since: int = 1,
    *,
    domain: str = "",
    host: tuple[int, ...] = (),
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
            keywords - _EXTRAS,
            keywords & _EXTRAS,
        )
        entries = _ENTRIES.setdefault((domain, name), [])
        assert all(known.since != since for known in entries), (
            f"{name} since {since} is declared twice"
        )
        entries.append(entry)
        entries.sort(key=lambda known: known.since)
        return function

    return declare


def _keywords(function: Kernel) -> frozenset[str]:
    """Names of keyword-only parameters; torch's builtins have none of interest."""
    if inspect.isbuiltin(function):
        return frozenset()
    parameters = inspect.signature(function).parameters.values()
    return frozenset(
        p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY
    )


def entry_of(domain: str, name: str, opset: int) -> Entry | None:
    """The latest entry that is not newer than the model's opset."""
    _declare_all()
    found = [
        entry for entry in _ENTRIES.get((domain, name), ()) if entry.since <= opset
    ]
    return found[-1] if found else None


@cache
def _declare_all() -> None:
    for family in pkgutil.iter_modules(_ops.__path__):
        import_module(f"{_ops.__name__}.{family.name}")


def known_ops() -> set[tuple[str, str]]:
    """(domain, name) of every op that has a kernel."""
    _declare_all()
    return set(_ENTRIES)
