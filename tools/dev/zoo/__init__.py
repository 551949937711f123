"""Small ONNX graphs of many architectures: what a structured pruner must survive.

Each is an architecture written compactly in plain torch, or by hand in ONNX text, with random
weights from a fixed seed. `graphs()` names them without building any; a builder writes one file
below 5 MB.
"""

from __future__ import annotations

import fnmatch
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

FAMILIES = (
    "vision_cnn",
    "vision_mobile",
    "vision_dense",
    "vision_transformers",
    "vision_mixers",
    "language",
    "decoders",
    "recurrent",
    "audio",
    "unusual",
    "hand_written",
    "hand_written_new",
)
Builder = Callable[[Path], Path]


def graphs(only: str = "*") -> Iterator[tuple[str, Builder]]:
    """Name and builder of every graph that matches a glob `only`; a builder reuses the file its
    folder already holds.

    Without torch only the hand-written graphs are there.
    """
    for family in FAMILIES:
        if family.startswith("hand_written") or importlib.util.find_spec("torch"):
            for name, write in importlib.import_module(f"{__name__}.{family}").graphs():
                if any(fnmatch.fnmatch(name, pattern) for pattern in only.split(",")):
                    yield name, _cached(name, write)


def _cached(name: str, write: Callable[[Path], None]) -> Builder:
    def build(folder: Path) -> Path:
        path = folder / f"{name}.onnx"
        if not path.exists():
            partial = path.with_suffix(".partial")
            write(partial)
            partial.rename(path)
        return path

    return build
