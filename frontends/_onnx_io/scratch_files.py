"""Files of a model in a folder that goes with the run, which no other writer knows of.

They are written under their own names: without locks, notes and renames, which take longer than a
small model itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType


class ScratchFiles:
    """The files of a model that is new in its folder, made in the steps of `OwnFiles`.

    A context: what was made goes where writing fails.
    """

    durable = False

    def __init__(self, target: Path) -> None:
        self.target = target
        self._made: list[Path] = []

    @classmethod
    def fit(cls, target: Path) -> bool:
        """Return whether no file is in the way: a session may still read that of a former model."""
        return not target.exists() and not _data_of(target).exists()

    def __enter__(self) -> ScratchFiles:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            return
        for path in self._made:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def temporary(self) -> Path:
        """The model's own name."""
        self._made.append(self.target)
        return self.target

    def data_file(self) -> Path:
        """The name of the data file."""
        path = _data_of(self.target)
        self._made.append(path)
        return path

    def switch(self, temporary: Path, still_read: Iterable[Path]) -> None:
        """Leave the new model where it is: there is no former."""


def _data_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.data")
