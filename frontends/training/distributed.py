"""Several processes under torch's launcher: who they are, sums over all of them, one that decides.

`torchrun --nproc-per-node N -m onnx_opt …` sets WORLD_SIZE, RANK and where to meet; without it
there is one process.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

Tensor = Any


@dataclass(frozen=True)
class Team:
    """`rank` of `size` processes. Alone all of it costs nothing."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, units: Any) -> Any:
        """This process's part of a step's rows."""
        return units[self.rank :: self.size]

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Sum gradients over all processes."""
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)

    def total(self, value: float) -> float:
        """The sum over all processes."""
        return self._reduced(value, dist.ReduceOp.SUM) if self.size > 1 else value

    def of_leader(self, *values: float) -> tuple[float, ...]:
        """The leader's numbers, for all: so that all decide alike."""
        if self.size == 1:
            return values
        sent = torch.tensor(values, dtype=torch.float64, device=_device())
        dist.broadcast(sent, 0)
        return tuple(sent.tolist())

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """The leader's tensors, for all."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

    def _reduced(self, value: float, how: Any) -> float:
        sent = torch.tensor([value], dtype=torch.float64, device=_device())
        dist.all_reduce(sent, op=how)
        return float(sent.item())


@contextlib.contextmanager
def team() -> Iterator[Team]:
    """The team of this process, met by the environment (env://) where the launcher started
    several.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size < 2:
        yield Team()
        return
    mine = not dist.is_initialized()
    if mine:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Team(dist.get_rank(), dist.get_world_size())
    finally:
        if mine:
            dist.destroy_process_group()


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
