"""Where an optimized model comes from: written into its `metadata_props`, so that the run can be
repeated.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx_ir as ir

from ... import __version__

PREFIX = "onnx_opt."
RECORD = ("version", "passes", "input_sha256", "seed", "target", "cpu", "min_runtime")
"""What a run is repeated from, and what its result needs. Passes keep facts of their own under the
same prefix.
"""


def sha256_of(path: Path) -> str:
    """Hex digest of the .onnx file itself (external data is not read)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    """Record version, canonical pipeline text, the input's digest, seed, target, the CPU that
    measured and the oldest ONNX Runtime that runs it; replaces an earlier record.
    """
    for key in provenance(model):
        del model.metadata_props[PREFIX + key]
    values = (__version__, passes, input_sha256, str(seed), target, cpu, min_runtime)
    record = zip(RECORD, values, strict=True)
    model.metadata_props.update(
        {PREFIX + key: value for key, value in record if value is not None}
    )


def provenance(model: ir.Model) -> dict[str, str]:
    """The record of the run that made this model; empty if onnx-opt did not make it."""
    return {
        key: model.metadata_props[PREFIX + key]
        for key in RECORD
        if PREFIX + key in model.metadata_props
    }
