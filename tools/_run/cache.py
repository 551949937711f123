"""Scores of model files, kept on this machine's disk and found again by content.

A score is found only where model, data, metric, settings, ONNX Runtime and CPU are the same.
Timings are never kept: a latency is of the state that a machine is in, and a ratio needs both
models timed in turns.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__
from ...runtime.data_files import DataFile
from ...runtime.metrics import MetricScore
from .provenance import sha256_of

FOLDER = "ONNX_OPT_CACHE"
"""Variable of the environment that moves the cache."""

MOST = 1000
"""Entries that are kept: those used last. Chosen by hand: one takes about 1 kB, and 7 kB where the
data has 50,000 rows."""

Facts = Mapping[str, Any]


def cache_folder() -> Path:
    """Folder of the cache: `ONNX_OPT_CACHE`, else the platform's own for such files."""
    chosen = os.environ.get(FOLDER)
    if chosen:
        return Path(chosen)
    from platformdirs import user_cache_path

    return user_cache_path("onnx-opt", appauthor=False)


@dataclass(frozen=True)
class Cache:
    """JSON files by key in a folder, which several runs may use at once.

    It never fails a run: what cannot be read is not there, and what cannot be written is not kept.
    """

    folder: Path
    most: int = MOST

    def read(self, key: str) -> Facts | None:
        """Facts of a key; None where there are none, or none that can be read."""
        path = self._path(key)
        try:
            facts = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        # the entries used last are kept
        with contextlib.suppress(OSError):
            os.utime(path)
        return facts if isinstance(facts, dict) else None

    def write(self, key: str, facts: Facts) -> None:
        """Keep the facts of a key, in place of earlier ones."""
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._replace(self._path(key), json.dumps(facts))
            self._trim()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _replace(self, path: Path, text: str) -> None:
        # readers see the former entry or this one, never a part
        handle, temporary = tempfile.mkstemp(dir=self.folder, suffix=".json")
        try:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise

    def _trim(self) -> None:
        """Remove the entries that were not used for longest."""
        entries = list(self.folder.glob("*.json"))
        if len(entries) <= self.most:
            return
        entries.sort(key=lambda path: path.stat().st_mtime)
        for path in entries[: -self.most]:
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class ScoreCache:
    """Scores of one metric on one set of data, by model.

    `settings`: everything besides model and data that a score depends on, as plain values.
    """

    cache: Cache
    data: tuple[DataFile, ...]
    settings: Facts

    def score(
        self, path: Path, files: Iterable[Path], compute: Callable[[], MetricScore]
    ) -> MetricScore:
        """Score of the model at a path: an earlier one, or that of `compute`.

        `files`: it, and those of its weights.
        """
        key = self._key(path, files)
        known = _score_from(self.cache.read(key))
        if known is not None:
            return known
        found = compute()
        self.cache.write(key, _as_facts(found))
        return found

    @cached_property
    def _digests_of_data(self) -> list[tuple[str, str]]:
        # data is read once a run, however many models are scored on it
        return [(file.name, sha256_of(file.path)) for file in self.data]

    def _key(self, path: Path, files: Iterable[Path]) -> str:
        # the model file names those of its weights; its own name tells nothing
        weights = {
            os.path.relpath(file, path.parent): sha256_of(file)
            for file in files
            if file != path
        }
        content = {
            "onnx_opt": __version__,
            "model": sha256_of(path),
            "weights": weights,
            "data": self._digests_of_data,
            **self.settings,
        }
        text = json.dumps(content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _as_facts(score: MetricScore) -> Facts:
    facts: dict[str, Any] = {
        "value": score.value,
        "classes": score.classes,
        "strangers": score.strangers,
        "remark": score.remark,
    }
    if score.hits is not None:
        packed = np.packbits(score.hits).tobytes()
        facts["hits"] = base64.b64encode(packed).decode()
        facts["rows"] = len(score.hits)
    return facts


def _score_from(facts: Facts | None) -> MetricScore | None:
    """The score of an entry; None for one that is damaged or of another form."""
    if facts is None:
        return None
    try:
        hits = None
        if "hits" in facts:
            packed = np.frombuffer(base64.b64decode(facts["hits"]), np.uint8)
            hits = np.unpackbits(packed, count=facts["rows"]).astype(np.bool_)
        return MetricScore(
            float(facts["value"]),
            hits,
            int(facts["classes"]),
            str(facts["strangers"]),
            is_cached=True,
            remark=str(facts["remark"]),
        )
    except (KeyError, TypeError, ValueError):
        return None
