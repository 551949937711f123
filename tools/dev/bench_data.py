"""Feeds for benchmark models that come without labelled data, in the form `--data FILE.py:callable`
takes.

Realistic, not real: they show whether a result still computes what the original does, never how
good it is.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
Feeds = dict[str, Any]


def data_folder() -> Path:
    """Folder of the shared models and data: ONNX_OPT_DATA, or shared/data beside the repository."""
    return Path(os.environ.get("ONNX_OPT_DATA", ROOT.parent / "shared" / "data"))


def stsb_half() -> Iterator[Any]:
    """Every other batch of the shared STS-B pairs, left sentences then right ones, to learn from:
    no labels.
    """
    return (feeds for feeds, _ in _stsb(0))


def stsb_other_half() -> Iterator[Any]:
    """The batches that `stsb_half` leaves, with their human scores."""
    return _stsb(1)


def _stsb(which: int) -> Iterator[Any]:
    path = data_folder() / "loaders.py"
    found = importlib.util.spec_from_file_location("shared_loaders", path)
    assert found is not None
    assert found.loader is not None
    loaders = importlib.util.module_from_spec(found)
    found.loader.exec_module(loaders)
    return (
        batch
        for index, batch in enumerate(loaders.stsb_val())
        if index // 2 % 2 == which
    )


def detector_images() -> Iterator[Feeds]:
    """16 pages of 320 x 320: light paper with rows of dark strokes, `x` (2, 3, 320, 320) in [-1,
    1].
    """
    rng = np.random.default_rng(0)
    for _ in range(8):
        pages = np.full((2, 3, 320, 320), 0.85, np.float32) + rng.normal(
            0, 0.02, (2, 3, 320, 320)
        ).astype(np.float32)
        for page in pages:
            for top in range(20, 300, 36):
                height, left = int(rng.integers(10, 22)), int(rng.integers(10, 80))
                right = int(rng.integers(left + 60, 310))
                strokes = rng.random((height, right - left)) < 0.45
                page[:, top : top + height, left:right][:, strokes] = -0.8
        yield {"x": pages}


def speech_windows() -> Iterator[Feeds]:
    """32 windows of 576 samples at 16 kHz: harmonics with a moving pitch, and pauses with noise."""
    rng = np.random.default_rng(0)
    time = np.arange(576, dtype=np.float32) / 16_000
    for step in range(32):
        pitch = 110 + 60 * np.sin(step / 5)
        voice = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 9)) * (
            0.2 if step % 4 else 0.0
        )
        window = (voice + rng.normal(0, 0.01, 576)).astype(np.float32)
        yield {
            "input": window[None],
            "state": np.zeros((2, 1, 128), np.float32),
            "sr": np.array(16_000),
        }


def file_bytes() -> Iterator[Feeds]:
    """The first 2,048 bytes of this project's own text files, `bytes` (8, 2048) int32, padded with
    256.
    """
    names = sorted(
        p
        for p in ROOT.rglob("*")
        if p.suffix in {".py", ".md", ".toml"} and ".venv" not in p.parts
    )[:64]
    rows = np.full((len(names), 2048), 256, np.int32)
    for row, name in zip(rows, names, strict=True):
        head = np.frombuffer(name.read_bytes()[:2048], np.uint8)
        row[: len(head)] = head
    for start in range(0, len(rows) - 7, 8):
        yield {"bytes": rows[start : start + 8]}
