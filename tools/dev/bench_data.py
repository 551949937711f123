"""Models that benchmarks run on, and their data: samples for passes, and others to judge by.

Models without labelled data get feeds made here, in the form `--data FILE.py:callable` takes.
Realistic, not real: they show whether a result still computes what the original does, never how
good it is.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
Feeds = dict[str, Any]
Array = NDArray[Any]


def data_folder() -> Path:
    """Folder of the shared models and data: ONNX_OPT_DATA, or shared/data beside the repository."""
    chosen = os.environ.get("ONNX_OPT_DATA")
    if chosen is not None:
        return Path(chosen)
    return ROOT.parent / "shared" / "data"


@dataclass(frozen=True)
class BenchModel:
    """A model of the shared data.

    `calibration`, `evaluation`: loaders, of the shared data or of this file, that have no sample in
    common. `metric`: of the evaluation's labels, built in or of the shared loaders; None without
    labels. `rows`: samples of the evaluation that tell enough in little time. `few`: so many that
    a table of hundreds of results can be made. `timed`: rows of a batch whose latency is measured.
    `path`: where the file is, if not with the shared models.
    """

    name: str
    calibration: str
    evaluation: str
    metric: str | None = None
    rows: int = 2000
    few: int = 1000
    timed: int = 8
    path: Path | None = None

    @property
    def file(self) -> Path:
        """The model file."""
        if self.path is not None:
            return self.path
        folder = data_folder() / "models"
        return folder / f"{self.name}.onnx"


_IMAGES = ("cifar10_calib", "cifar10_val", "top1")
_SPEECH = ("speech_windows", "other_speech_windows")

MODELS = [
    BenchModel("cifar10_resnet20", *_IMAGES, timed=32),
    BenchModel("cifar10_resnet20_bn", *_IMAGES, timed=32),
    BenchModel("cifar10_resnet56", *_IMAGES, timed=32),
    BenchModel("efficientnet_lite0", "imagenet_calib", "imagenet_unseen", "top1"),
    BenchModel(
        "minilm_l6_v2", "stsb_calib", "stsb_unseen", "stsb_spearman", rows=1024, few=512
    ),
    BenchModel("ch_PP-OCRv4_rec_infer", "ocr_calib", "ocr_val", "ocr_exact", few=100),
    BenchModel("ch_PP-OCRv4_det_infer", "detector_images", "other_detector_images"),
    BenchModel("silero_vad", *_SPEECH),
    BenchModel("silero_vad_16k_op15", *_SPEECH),
    BenchModel("magika_v3_3", "file_bytes", "other_file_bytes"),
]
"""The models of the shared data, in the order of its README."""


TEXT = "ONNX_OPT_TEXT"
"""Environment variable: an .npz of token ids, `calib` and `val`, in place of the shared text."""


def language_model(path: Path, text: Path | None = None) -> BenchModel:
    """The language model that `onnx-opt export` makes of what the shared script builds.

    `text`: see `TEXT`, which processes started later find, too.
    """
    loaders = ("lm_calib_mask", "lm_val_mask")
    if text is not None:
        os.environ[TEXT] = str(text.resolve())
        loaders = ("text_windows", "other_text_windows")
    return BenchModel("smollm2", *loaders, "perplexity", path=path)


def text_windows() -> Iterator[Any]:
    """16 windows of 256 tokens of a text of one's own, to learn from."""
    for feeds, _ in _token_windows("calib", 16):
        yield feeds


def other_text_windows() -> Iterator[Any]:
    """8 windows of its other part, with the next tokens as labels."""
    return _token_windows("val", 8)


def _token_windows(part: str, count: int) -> Iterator[tuple[Feeds, Array]]:
    tokens = np.load(os.environ[TEXT])[part].astype(np.int64)
    for start in range(0, count * 256, 256):
        window = tokens[start : start + 257]
        ids = window[None, :-1]
        yield {"input_ids": ids, "attention_mask": np.ones_like(ids)}, window[None, 1:]


def source(loader: str) -> str:
    """`file.py:callable` of a loader, or of a metric: of this file, or else of the shared data."""
    if loader in globals():
        own = Path(__file__)
        return f"{own}:{loader}"
    shared = _loaders_file()
    return f"{shared}:{loader}"


def _loaders_file() -> Path:
    return data_folder() / "loaders.py"


def calibration(model: BenchModel, samples: int) -> Iterator[Feeds]:
    """The first samples for passes to learn from, without labels."""
    batches = _pairs(model.calibration)
    for feeds, _ in head(batches, samples):
        yield feeds


def unseen(model: BenchModel, rows: int | None) -> Iterator[tuple[Feeds, Any]]:
    """The first rows that no pass has seen (None: all), with their labels, or None for each batch
    without.
    """
    batches = _pairs(model.evaluation)
    return head(batches, rows)


def head(
    batches: Iterable[tuple[Feeds, Any]], rows: int | None
) -> Iterator[tuple[Feeds, Any]]:
    """The first rows of batches; the last of these is cut where it has more than are missing."""
    if rows is None:
        yield from batches
        return
    missing = rows
    for feeds, labels in batches:
        first = next(iter(feeds.values()))
        size = len(first)
        if size <= missing:
            yield feeds, labels
        elif missing > 0:
            yield _cut(feeds, labels, missing)
        missing -= size
        if missing <= 0:
            return


def _cut(feeds: Feeds, labels: Any, rows: int) -> tuple[Feeds, Any]:
    """The first rows of a batch; inputs without axes belong to every row."""
    kept = {}
    for name, array in feeds.items():
        if np.ndim(array):
            kept[name] = array[:rows]
        else:
            kept[name] = array
    if labels is None:
        return kept, None
    return kept, labels[:rows]


def _pairs(loader: str) -> Iterator[tuple[Feeds, Any]]:
    """Batches of a loader, each with its labels or None."""
    function = globals().get(loader)
    if function is None:
        loaders = _shared_loaders()
        function = getattr(loaders, loader)
    for batch in function():
        if isinstance(batch, tuple):
            yield batch
        else:
            yield batch, None


def shared_batches(loader: str) -> Iterator[tuple[Feeds, Any]]:
    """Batches of a loader of the shared data, as they come."""
    function = getattr(_shared_loaders(), loader)
    yield from function()


def _shared_loaders() -> ModuleType:
    path = _loaders_file()
    found = importlib.util.spec_from_file_location("shared_loaders", path)
    assert found is not None
    assert found.loader is not None
    loaders = importlib.util.module_from_spec(found)
    found.loader.exec_module(loaders)
    return loaders


def imagenet_unseen() -> Iterator[Any]:
    """The 400 labelled images that are not among those of `imagenet_calib`."""
    loaders = _shared_loaders()
    start = 0
    for feeds, labels in loaders.imagenet_val():
        stop = start + len(labels)
        indices = np.arange(start, stop)
        start = stop
        # every fifth image is for calibration
        is_kept = indices % 5 != 0
        kept = {}
        for name, array in feeds.items():
            kept[name] = array[is_kept]
        yield kept, labels[is_kept]


def stsb_unseen() -> Iterator[Any]:
    """The batches of STS-B behind those of `stsb_calib`, with their human scores."""
    loaders = _shared_loaders()
    seen = 0
    for _ in loaders.stsb_calib():
        seen += 1
    batches = loaders.stsb_val()
    return itertools.islice(batches, seen, None)


def stsb_half() -> Iterator[Any]:
    """Every other batch of the shared STS-B pairs, left sentences then right ones, to learn from:
    no labels.
    """
    for feeds, _ in _stsb(0):
        yield feeds


def stsb_other_half() -> Iterator[Any]:
    """The batches that `stsb_half` leaves, with their human scores."""
    return _stsb(1)


def _stsb(which: int) -> Iterator[Any]:
    loaders = _shared_loaders()
    batches = loaders.stsb_val()
    for index, batch in enumerate(batches):
        # left sentences then right ones, which stay together
        pair = index // 2
        if pair % 2 == which:
            yield batch


def detector_images() -> Iterator[Feeds]:
    """16 pages of 320 x 320: light paper with rows of dark strokes, `x` (2, 3, 320, 320) in [-1,
    1].
    """
    return _pages(seed=0)


def other_detector_images() -> Iterator[Feeds]:
    """As many other pages."""
    return _pages(seed=1)


def _pages(seed: int) -> Iterator[Feeds]:
    rng = np.random.default_rng(seed)
    shape = (2, 3, 320, 320)
    for _ in range(8):
        paper = np.full(shape, 0.85, np.float32)
        grain = rng.normal(0, 0.02, shape)
        pages = paper + grain.astype(np.float32)
        for page in pages:
            _write_rows(page, rng)
        yield {"x": pages}


def _write_rows(page: Array, rng: np.random.Generator) -> None:
    """Write rows of dark strokes on a page, (3, 320, 320)."""
    for top in range(20, 300, 36):
        height = int(rng.integers(10, 22))
        left = int(rng.integers(10, 80))
        right = int(rng.integers(left + 60, 310))
        width = right - left
        is_dark = rng.random((height, width)) < 0.45
        bottom = top + height
        row = page[:, top:bottom, left:right]
        row[:, is_dark] = -0.8


def speech_windows() -> Iterator[Feeds]:
    """32 windows of 576 samples at 16 kHz: harmonics with a moving pitch, and pauses with noise."""
    return _windows(first=0)


def other_speech_windows() -> Iterator[Feeds]:
    """The 32 windows that follow."""
    return _windows(first=32)


def _windows(first: int) -> Iterator[Feeds]:
    rng = np.random.default_rng(first)
    time = np.arange(576, dtype=np.float32) / 16_000
    for step in range(first, first + 32):
        pitch = 110 + 60 * np.sin(step / 5)
        loudness = 0.2 if step % 4 else 0.0
        voice = _harmonics(pitch, time) * loudness
        noise = rng.normal(0, 0.01, 576)
        window = voice + noise
        samples = window.astype(np.float32)
        yield {
            "input": samples[None],
            "state": np.zeros((2, 1, 128), np.float32),
            "sr": np.array(16_000),
        }


def _harmonics(pitch: float, time: Array) -> Array:
    """A tone and seven overtones, each the weaker the higher it is."""
    total: Any = 0
    for order in range(1, 9):
        wave = np.sin(2 * np.pi * pitch * order * time)
        total = total + wave / order
    return np.asarray(total)


def file_bytes() -> Iterator[Feeds]:
    """The first 2,048 bytes of this project's own text files, `bytes` (8, 2048) int32, padded with
    256.
    """
    return _heads_of_files(first=0)


def other_file_bytes() -> Iterator[Feeds]:
    """The same of the 64 files that follow."""
    return _heads_of_files(first=64)


def _heads_of_files(first: int) -> Iterator[Feeds]:
    files = sorted(_text_files())
    chosen = files[first : first + 64]
    shape = (len(chosen), 2048)
    rows = np.full(shape, 256, np.int32)
    for row, file in zip(rows, chosen, strict=True):
        content = file.read_bytes()
        head = content[:2048]
        row[: len(head)] = np.frombuffer(head, np.uint8)
    # whole batches of 8
    for start in range(0, len(rows) - 7, 8):
        batch = rows[start : start + 8]
        yield {"bytes": batch}


def _text_files() -> Iterator[Path]:
    for path in ROOT.rglob("*"):
        if ".venv" in path.parts:
            continue
        if path.suffix in {".py", ".md", ".toml"}:
            yield path
