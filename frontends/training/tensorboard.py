"""Curves of a training for TensorBoard, where that is installed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from ... import UsageError

Log = Callable[[int, Mapping[str, float]], None]
"""Takes a step and figures by name."""


def no_log(step: int, figures: Mapping[str, float]) -> None:
    """Drop figures: the log of a training that nobody watches."""


@contextlib.contextmanager
def logging_to(folder: str) -> Iterator[Log]:
    """Write figures as event files into `folder`, nowhere if it is "".

    Errors: UsageError where tensorboard is not installed.
    """
    if not folder:
        yield no_log
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(
            "finetune.tensorboard",
            "TensorBoard is not installed",
            "pip install tensorboard",
        ) from error
    with SummaryWriter(folder) as writer:

        def log(step: int, figures: Mapping[str, float]) -> None:
            for name, figure in figures.items():
                writer.add_scalar(name, figure, step)

        yield log
