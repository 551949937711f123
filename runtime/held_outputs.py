"""Outputs of a few batches, to be compared with others: large ones lie in files, not in memory.

A language model gives 50 MB of logits for 256 tokens. Those of the original and of a candidate,
beside the model itself, were most of what a run took.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from ._worker import ipc

Arrays = Mapping[str, NDArray[Any]]

IN_MEMORY = 1 << 23
"""Bytes (8 MiB) of a batch's outputs up to which they stay in memory. Chosen by hand."""


class HeldOutputs:
    """Outputs by name, one mapping a batch, in the order in which they were added.

    Each iteration gives them anew, one batch at a time. Files go with the
    last object that has them.
    """

    def __init__(self, batches: Iterable[Arrays] = ()) -> None:
        self._held: list[Arrays | _Stored] = []
        for outputs in batches:
            self.append(outputs)

    def append(self, outputs: Arrays) -> None:
        """Hold the outputs of one more batch."""
        self._held.append(_held(outputs))

    def first(self, count: int) -> HeldOutputs:
        """Those of the first batches, without a copy."""
        part = HeldOutputs()
        part._held = self._held[:count]
        return part

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Arrays]:
        for outputs in self._held:
            yield outputs.read() if isinstance(outputs, _Stored) else outputs


class _Stored:
    """Outputs of one batch in a file without a name, which goes with this object or process.

    Errors: OSError where it does not fit on the disk.
    """

    def __init__(self, outputs: Arrays) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - as long as this object
        weakref.finalize(self, self._file.close)
        ipc.send(self._file, dict(outputs))

    def read(self) -> Arrays:
        self._file.seek(0)
        outputs: Arrays = ipc.receive(self._file)
        return outputs


def _held(outputs: Arrays) -> Arrays | _Stored:
    size = sum(array.nbytes for array in outputs.values())
    if size <= IN_MEMORY:
        return outputs
    try:
        return _Stored(outputs)
    except OSError:
        # no room on the disk
        return outputs
