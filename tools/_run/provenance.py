"""Provenance of a model: the record in its `metadata_props` from which its run can be repeated."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import onnx_ir as ir

from ... import __version__

_BLOCK = 1 << 20
"""Bytes hashed at once. Chosen by hand; not measured."""

PREFIX = "onnx_opt."
RECORD = ("version", "passes", "input_sha256", "seed", "target", "cpu", "min_runtime")
"""Keys that a run is repeated from, and that say what its result needs.

Passes keep facts of their own under the same prefix.
"""

HISTORY = "history"
"""Key of the records before: a JSON list, the oldest first. A chain of runs is repeated from it."""

MOST = 20
"""Records that the history keeps, those of the latest runs. Chosen by hand."""


def sha256_of(path: Path) -> str:
    """Hex digest of one file: of a model the .onnx file itself, without its external data."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def hashed(path: Path) -> dict[str, str | int]:
    """`path`, `bytes` and `sha256` of a file."""
    size = path.stat().st_size
    return {"path": str(path), "bytes": size, "sha256": sha256_of(path)}


def stamp(
    model: ir.Model,
    passes: str,
    input_sha256: str | None,
    seed: int,
    target: str,
    *,
    cpu: str,
    min_runtime: str | None,
) -> None:
    """Write the record into a model; an earlier one becomes the last of its history.

    `passes`: canonical pipeline text. `cpu`: label of the CPU that measured. `min_runtime`: oldest
    ONNX Runtime that runs the model.
    """
    earlier = provenance(model)
    if earlier:
        records = [*history(model), earlier]
        latest = json.dumps(records[-MOST:], ensure_ascii=False)
        model.metadata_props[PREFIX + HISTORY] = latest
    # it may have keys that this one lacks
    for key in earlier:
        del model.metadata_props[PREFIX + key]
    record = {
        "version": __version__,
        "passes": passes,
        "input_sha256": input_sha256,
        "seed": str(seed),
        "target": target,
        "cpu": cpu,
        "min_runtime": min_runtime,
    }
    for key in RECORD:
        text = record[key]
        if text is not None:
            model.metadata_props[PREFIX + key] = text


def history(model: ir.Model) -> list[dict[str, str]]:
    """Records of the runs before the one that made this model, the oldest first."""
    try:
        records = json.loads(model.metadata_props.get(PREFIX + HISTORY, "[]"))
    except (ValueError, RecursionError):
        # files come from anywhere
        return []
    if not isinstance(records, list):
        return []
    return [record for record in records if isinstance(record, dict)]


def stamp_source(model: ir.Model, key: str, value: str) -> None:
    """Write where a model that no run made comes from: `key` and `value`, and the version."""
    model.metadata_props[f"{PREFIX}version"] = __version__
    model.metadata_props[PREFIX + key] = value


def provenance(model: ir.Model) -> dict[str, str]:
    """Record of the run that made this model; empty if onnx-opt did not make it."""
    found = {}
    for key in RECORD:
        value = model.metadata_props.get(PREFIX + key)
        if value is not None:
            found[key] = value
    return found
