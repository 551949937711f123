"""Python source in the making: its lines, the objects it refers to, and what is known of every ONNX
value in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import torch

from ._dtypes import RANGES
from ._scalar_ops import TYPES, Operand

HOST_ELEMENTS = 1024
"""Constants of more elements never become literals in the source."""


@dataclass(eq=False)
class Known:
    """What is known of an ONNX value while source is written.

    `code`: the variable that holds it, None for a constant nobody asked for yet. `host`: it is a
    Python number or list; `rank`, `length` are then its own. `constant`: its value, in its carrier.
    `on_device`: code of a host value as a tensor. `type`, `shape`: as the graph declares them.
    `gradient`: gradients reach a weight through it; `cuts`: where they would, but for a node that
    gives none.
    """

    code: str | None
    dtype: ir.DataType | None
    host: bool = False
    rank: int = 0
    length: int | None = None
    constant: torch.Tensor | None = None
    on_device: str | None = None
    type: ir.TypeProtocol | None = None
    shape: ir.Shape | None = None
    gradient: bool = False
    cuts: frozenset[Any] = frozenset()

    @property
    def hostable(self) -> bool:
        """Whether it is, or can be written as, a Python number or flat list."""
        if self.host:
            return True
        small = (
            self.constant is not None
            and self.constant.ndim <= 1
            and self.constant.numel() <= HOST_ELEMENTS
        )
        return small and self.dtype in TYPES

    def literal(self) -> str:
        """A constant as Python source."""
        assert self.constant is not None
        return repr(self.constant.tolist())

    def operand(self) -> Operand:
        """What rank rules of host ops may know of it."""
        if self.constant is None:
            return Operand(self.rank, self.length)
        value = self.constant.tolist()
        return Operand(
            self.constant.ndim, len(value) if isinstance(value, list) else None, value
        )


@dataclass
class Program:
    """Everything that generated source needs: `names` are its globals, `buffers` and `parameters`
    the module's.
    """

    lines: list[str] = field(default_factory=list)
    names: dict[str, Any] = field(default_factory=dict)
    buffers: dict[str, torch.Tensor] = field(default_factory=dict)
    depth: int = 1
    _count: int = 0
    _scratch: list[list[Known]] = field(default_factory=list)

    def line(self, text: str) -> None:
        """Append one line at the present depth."""
        self.lines.append("    " * self.depth + text)

    @contextmanager
    def indented(self) -> Iterator[None]:
        """Lines of a nested block; tensors made of host values in it are forgotten at its end (it
        may not run).
        """
        self.depth += 1
        self._scratch.append([])
        start = len(self.lines)
        yield
        if len(self.lines) == start:
            self.line("pass")
        for known in self._scratch.pop():
            known.on_device = None
        self.depth -= 1

    def fresh(self, stem: str = "v") -> str:
        """A variable name not used before."""
        self._count += 1
        return f"{stem}{self._count}"

    def bind(self, stem: str, thing: Any) -> str:
        """Make `thing` a global of the source."""
        name = stem if stem not in self.names else self.fresh(f"{stem}_")
        self.names[name] = thing
        return name

    def shared(self, name: str, thing: Any) -> str:
        """A global that is the same object wherever it is named."""
        assert self.names.setdefault(name, thing) is thing, f"{name} means two things"
        return name

    def tensor_code(self, known: Known) -> str:
        """Code of a value as a tensor: constants become buffers, host values are put on the device,
        once each.
        """
        if known.host:
            if known.on_device is None:
                known.on_device = self.fresh("t")
                dtype = self.dtype_code(known.dtype)
                self.line(
                    f"{known.on_device} = as_tensor({known.code}, {dtype}, device)"
                )
                if self._scratch:
                    self._scratch[-1].append(known)
            return known.on_device
        if known.code is None:
            assert known.constant is not None
            name = f"constant_{len(self.buffers)}"
            self.buffers[name] = known.constant
            known.code = f"self.{name}"
        return known.code

    def host_code(self, known: Known) -> str:
        """Code of a value as a Python number or list; a computed tensor is waited for."""
        if known.host:
            assert known.code is not None
            return known.code
        if known.constant is not None and known.constant.numel() <= HOST_ELEMENTS:
            return (
                known.literal()
                if _written(known.constant)
                else self.bind("numbers", known.constant.tolist())
            )
        return f"to_host({self.tensor_code(known)})"

    def dtype_code(self, dtype: ir.DataType | None) -> str:
        """Code of the torch dtype that carries `dtype`."""
        from ._dtypes import carrier

        assert dtype is not None
        return repr(carrier(dtype))

    def value_code(self, value: Any, stem: str) -> str:
        """Code of an attribute: a literal where one can be read back, else a global."""
        plain = isinstance(value, (bool, int, str)) or (
            isinstance(value, float) and math.isfinite(value)
        )
        listed = isinstance(value, list) and all(
            isinstance(v, (bool, int)) for v in value
        )
        return repr(value) if plain or listed else self.bind(f"{stem}_value", value)


def _written(tensor: torch.Tensor) -> bool:
    """Whether repr of its list can be read back as source."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def is_integer(dtype: ir.DataType | None) -> bool:
    """Whether values of `dtype` are integers."""
    return dtype in RANGES
