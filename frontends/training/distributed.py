"""Processes under torch's launcher: ranks, sums over all of them, and one leader that decides.

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
class ProcessGroup:
    """The process `rank` of `size`. In a group of one every method returns at once."""

    rank: int = 0
    size: int = 1

    @property
    def is_leader(self) -> bool:
        return self.rank == 0

    def shard(self, units: Any) -> Any:
        """Return this process's part of a step's units."""
        return units[self.rank :: self.size]

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace gradients by their sums over all processes."""
        if self.size == 1:
            return
        for parameter in parameters:
            # all processes must reduce the same tensors, or they wait for each other forever
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)

    def sum(self, value: float) -> float:
        """Return the sum over all processes."""
        if self.size == 1:
            return value
        sent = torch.tensor([value], dtype=torch.float64, device=_device())
        dist.all_reduce(sent, op=dist.ReduceOp.SUM)
        return float(sent.item())

    def from_leader(self, *values: float) -> tuple[float, ...]:
        """Return the leader's numbers in every process, so that all decide alike."""
        if self.size == 1:
            return values
        sent = torch.tensor(values, dtype=torch.float64, device=_device())
        dist.broadcast(sent, 0)
        return tuple(sent.tolist())

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors by those of the leader."""
        if self.size == 1:
            return
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)


@contextlib.contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """Join the group that the environment names (env://), or a group of one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size < 2:
        yield ProcessGroup()
        return
    # a caller that has a group already keeps it afterwards
    joins = not dist.is_initialized()
    if joins:
        _join()
    try:
        yield ProcessGroup(dist.get_rank(), dist.get_world_size())
    finally:
        if joins:
            dist.destroy_process_group()


def _join() -> None:
    if not torch.cuda.is_available():
        dist.init_process_group("gloo")
        return
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl")


def _device() -> str:
    # nccl sends tensors of a GPU only, gloo those of a CPU
    return "cuda" if torch.cuda.is_available() else "cpu"
