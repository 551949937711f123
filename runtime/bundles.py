"""Bundles: models with all that they need to run elsewhere, and to prove that they run as they
should.
"""

from __future__ import annotations

from ._bundle.read import LoadedBundle, checked_model, load, opened, selftest
from ._bundle.samples import (
    Limits,
    Reevaluation,
    ReferenceSample,
    expected,
    few,
    limits_of,
)
from ._bundle.texts import FILES, licence_of_onnx_opt, texts
from ._bundle.write import Content, Place, write

__all__ = [
    "FILES",
    "Content",
    "Limits",
    "LoadedBundle",
    "Place",
    "Reevaluation",
    "ReferenceSample",
    "checked_model",
    "expected",
    "few",
    "licence_of_onnx_opt",
    "limits_of",
    "load",
    "opened",
    "selftest",
    "texts",
    "write",
]
