"""Python source in the making: its lines, the objects it refers to, and the values in it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import torch

from ._dtypes import carrier
from ._scalar_ops import TYPES, Operand

HOST_ELEMENTS = 1024
"""Elements of a constant that may become a literal in the source; longer lists are slow to
compile. Chosen by hand; not measured.
"""


@dataclass(eq=False)
class Known:
    """An ONNX value, as far as it is known while source is written.

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
        """True if it is, or can be written as, a Python number or flat list."""
        if self.host:
            return True
        if self.constant is None or self.dtype not in TYPES:
            return False
        if self.constant.ndim > 1:
            return False
        return bool(self.constant.numel() <= HOST_ELEMENTS)

    def literal(self) -> str:
        """Return a constant as Python source."""
        assert self.constant is not None
        return repr(self.constant.tolist())

    def operand(self) -> Operand:
        """Return the part of it that rank rules of host ops may use."""
        if self.constant is None:
            return Operand(self.rank, self.length)
        value = self.constant.tolist()
        length = len(value) if isinstance(value, list) else None
        return Operand(self.constant.ndim, length, value)


@dataclass
class Program:
    """Everything that generated source needs: `names` are its globals, `buffers` the module's."""

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
        """Write lines of a nested block.

        Tensors made of host values in it are forgotten at its end: the block may not run, and then
        their variables would not exist.
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
        """Return a variable name not used before."""
        self._count += 1
        return f"{stem}{self._count}"

    def bind(self, stem: str, thing: Any) -> str:
        """Make `thing` a global of the source, under a name of its own."""
        name = stem
        if name in self.names:
            name = self.fresh(f"{stem}_")
        self.names[name] = thing
        return name

    def shared(self, name: str, thing: Any) -> str:
        """Make `thing` a global that is the same object wherever it is named."""
        assert self.names.setdefault(name, thing) is thing, f"{name} means two things"
        return name

    def tensor_code(self, known: Known) -> str:
        """Return the code of a value as a tensor.

        Constants become buffers, host values are put on the device, once each.
        """
        if known.host:
            return self._device_code(known)
        if known.code is None:
            assert known.constant is not None
            name = f"constant_{len(self.buffers)}"
            self.buffers[name] = known.constant
            known.code = f"self.{name}"
        return known.code

    def _device_code(self, known: Known) -> str:
        if known.on_device is None:
            known.on_device = self.fresh("t")
            dtype = self.dtype_code(known.dtype)
            self.line(f"{known.on_device} = as_tensor({known.code}, {dtype}, device)")
            if self._scratch:
                self._scratch[-1].append(known)
        return known.on_device

    def host_code(self, known: Known) -> str:
        """Return the code of a value as a Python number or list; waits for computed tensors."""
        if known.host:
            assert known.code is not None
            return known.code
        constant = known.constant
        if constant is None or constant.numel() > HOST_ELEMENTS:
            return f"to_host({self.tensor_code(known)})"
        if _is_literal(constant):
            return known.literal()
        return self.bind("numbers", constant.tolist())

    def dtype_code(self, dtype: ir.DataType | None) -> str:
        """Return the code of the torch dtype that carries `dtype`."""
        assert dtype is not None
        return repr(carrier(dtype))

    def value_code(self, value: Any, stem: str) -> str:
        """Return the code of an attribute: a literal where one can be read back, else a global."""
        if isinstance(value, float):
            literal = math.isfinite(value)
        elif isinstance(value, list):
            literal = all(isinstance(item, (bool, int)) for item in value)
        else:
            literal = isinstance(value, (bool, int, str))
        if literal:
            return repr(value)
        return self.bind(f"{stem}_value", value)


def _is_literal(tensor: torch.Tensor) -> bool:
    """Return whether repr of a tensor's list can be read back as source."""
    # Python prints `inf` and `nan`, which are no literals
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
