"""Batches from a folder of images: `preprocess.toml` says how pixels become inputs; class folders
are labels.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ... import RefusedError

SPEC = "preprocess.toml"
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"}
_BATCH = 16


@dataclass(frozen=True)
class Preprocess:
    """(pixel * scale - mean) / std, after a resize of the shorter side and a centre crop.

    size: (height, width) in pixels. resize: shorter side before the crop; 0 stretches to `size`
    instead. mean, std: one number, or one a channel in the order of `channels`.
    """

    size: tuple[int, int]
    resize: int = 0
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    channels: Literal["RGB", "BGR", "L"] = "RGB"

    def array(self, image: Any) -> NDArray[np.float32]:
        """A Pillow image as one sample, (C, H, W) or (H, W, C)."""
        image = image.convert("L" if self.channels == "L" else "RGB")
        height, width = self.size
        if self.resize:
            factor = self.resize / min(image.size)
            image = image.resize(
                (
                    max(round(image.width * factor), width),
                    max(round(image.height * factor), height),
                )
            )
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        else:
            image = image.resize((width, height))
        pixels = np.asarray(image, np.float32).reshape(height, width, -1)
        if self.channels == "BGR":
            pixels = pixels[..., ::-1]
        sample = (
            pixels * np.float32(self.scale) - np.array(self.mean, np.float32)
        ) / np.array(self.std, np.float32)
        return np.ascontiguousarray(
            sample.transpose(2, 0, 1) if self.layout == "NCHW" else sample
        )


@dataclass(frozen=True)
class ImageFolder:
    """Image files in sorted order, their classes by number, and the preprocessing."""

    files: list[tuple[Path, int | None]]
    preprocess: Preprocess

    @staticmethod
    def open(path: Path) -> ImageFolder:
        """Read the spec and list the files; `path/class/image` gives labels in sorted order of the
        class folders.

        Errors: RefusedError for a faulty spec or a folder without images.
        """
        spec = _read_spec(path / SPEC)
        classes = sorted(
            p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")
        )
        files: list[tuple[Path, int | None]] = [(file, None) for file in _images(path)]
        if not files:
            files = [
                (file, index)
                for index, folder in enumerate(classes)
                for file in _images(folder)
            ]
        if not files:
            raise RefusedError(
                f"data {path}",
                "holds no images",
                f"put {', '.join(sorted(_SUFFIXES))} files there",
            )
        return ImageFolder(files, spec)

    def batches(
        self, names: list[str]
    ) -> Iterator[tuple[dict[str, NDArray[Any]], NDArray[np.int64] | None]]:
        """(feeds, labels), decoded as they are asked for. Needs Pillow."""
        if len(names) != 1:
            raise RefusedError(
                "images",
                f"the model has {len(names)} inputs: {', '.join(names)}",
                "give an .npz file with one array an input",
            )
        for start in range(0, len(self.files), _BATCH):
            part = self.files[start : start + _BATCH]
            array = np.stack([self._load(file) for file, _ in part])
            labels = [label for _, label in part if label is not None]
            yield {names[0]: array}, np.array(labels, np.int64) if labels else None

    def _load(self, file: Path) -> NDArray[np.float32]:
        try:
            from PIL import Image
        except ImportError:
            raise RefusedError(
                "images", "Pillow is not installed", 'pip install "onnx-opt[images]"'
            ) from None
        try:
            with Image.open(file) as image:
                return self.preprocess.array(image)
        except (OSError, ValueError, SyntaxError) as error:
            raise RefusedError(
                f"image {file}",
                f"cannot be decoded: {error}",
                "replace or remove the file",
            ) from error


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES)


def _read_spec(path: Path) -> Preprocess:
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RefusedError(
            str(path), f"is not TOML: {error}", "write lines such as size = [224, 224]"
        ) from error
    known = [f.name for f in fields(Preprocess)]
    for key in raw:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise RefusedError(
                f"{path.name}.{key}",
                "no such key",
                f"did you mean '{near[0]}'?"
                if near
                else f"the keys are {', '.join(known)}",
            )
    if "size" not in raw:
        raise RefusedError(
            f"{path.name}.size", "is missing", "write size = [height, width]"
        )
    values = {key: _value(path, key, value) for key, value in raw.items()}
    spec = Preprocess(**values)
    channels = 1 if spec.channels == "L" else 3
    for key, numbers in (("mean", spec.mean), ("std", spec.std)):
        if len(numbers) not in (1, channels):
            raise RefusedError(
                f"{path.name}.{key}", f"{len(numbers)} numbers", f"give 1 or {channels}"
            )
    if 0 in spec.std:
        raise RefusedError(f"{path.name}.std", "is zero", "give positive numbers")
    return spec


def _value(path: Path, key: str, value: Any) -> Any:
    """A TOML value in the field's type, or RefusedError."""
    numbers = value if isinstance(value, list) else [value]
    if key in ("layout", "channels"):
        choices = ("NCHW", "NHWC") if key == "layout" else ("RGB", "BGR", "L")
        if value in choices:
            return value
        raise RefusedError(
            f"{path.name}.{key}",
            f"{value!r} is not known",
            f"choose one of {', '.join(choices)}",
        )
    if (
        not all(
            isinstance(n, (int, float)) and not isinstance(n, bool) for n in numbers
        )
        or not numbers
    ):
        raise RefusedError(
            f"{path.name}.{key}",
            f"{value!r} is not a number or a list of numbers",
            f"write {key} = {'[224, 224]' if key == 'size' else '0.5'}",
        )
    if key == "size":
        size = [int(n) for n in (numbers * 2 if len(numbers) == 1 else numbers)]
        if len(size) != 2 or min(size) < 1:
            raise RefusedError(
                f"{path.name}.size",
                f"{value!r} is no size",
                "write size = [height, width]",
            )
        return tuple(size)
    if key in ("mean", "std"):
        return tuple(float(n) for n in numbers)
    if isinstance(value, list) or value < 0:
        raise RefusedError(
            f"{path.name}.{key}",
            f"{value!r} is not a number of 0 or more",
            f"write one number for {key}",
        )
    return int(value) if key == "resize" else float(value)
