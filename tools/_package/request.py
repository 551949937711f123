"""Request to package a model: everything that the caller asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

OrtFormat = Literal["auto", "yes", "no"]
"""Presence of the model in ORT format; `auto`: where it pays."""

ORT_FORMAT: tuple[OrtFormat, ...] = ("auto", "yes", "no")


@dataclass(frozen=True, kw_only=True)
class PackageRequest:
    """Settings of one bundle, as `tools.functions.package` describes them."""

    model: Path
    out: Path
    target: str = "cpu"
    shapes: tuple[str, ...] = ()
    data: Any = None
    preprocess: Path | None = None
    labels: Path | None = None
    tokenizer: Path | None = None
    licence: Path | None = None
    node_modules: Path | None = None
    ort: OrtFormat = "auto"
    bench: bool = True
    cache: bool = True
    seed: int = 0
    force: bool = False
    source: Path | None = None
    """File that `model` was made of, where its shapes were fixed."""

    @property
    def folder(self) -> Path:
        """Folder of the original, where companions such as a tokenizer may lie."""
        return (self.source or self.model).parent
