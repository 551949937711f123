"""Batches from a folder of images.

`preprocess.toml` says how pixels become inputs; class folders are labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ... import RefusedError, UsageError
from ...passes._core import toml
from ...passes._core.nearest import did_you_mean
from ..presets import SPEC
from ..session import TensorInfo
from .classes import class_numbers

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"}

_BATCH = 16
"""Images decoded at once: 9.6 MB of float32 at 3 x 224 x 224. Chosen by hand; not measured."""


@dataclass(frozen=True)
class Preprocess:
    """Preprocessing: (pixel * scale - mean) / std, after a resize and a centre crop.

    `size`: (height, width) in pixels. `resize`: the shorter side before the crop, in pixels; 0
    stretches to `size` instead. `mean`, `std`: one number, or one a channel in the order of
    `channels`. `classes`: names of the class folders in the order of the model's outputs.
    """

    size: tuple[int, int]
    resize: int = 0
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    channels: Literal["RGB", "BGR", "L"] = "RGB"
    classes: tuple[str, ...] | None = None

    def array(self, image: Any) -> NDArray[np.float32]:
        """Turn a Pillow image into one sample, (C, H, W) or (H, W, C)."""
        # BGR is RGB to Pillow; its channels are reversed below
        mode = "L" if self.channels == "L" else "RGB"
        image = image.convert(mode)
        height, width = self.size
        # a grey image comes without an axis of channels
        pixels = np.asarray(self._resized(image), np.float32)
        pixels = pixels.reshape(height, width, -1)
        if self.channels == "BGR":
            pixels = pixels[..., ::-1]
        mean = np.array(self.mean, np.float32)
        std = np.array(self.std, np.float32)
        scaled = pixels * np.float32(self.scale)
        sample = (scaled - mean) / std
        if self.layout == "NCHW":
            sample = sample.transpose(2, 0, 1)
        return np.ascontiguousarray(sample)

    def check_size(self, info: TensorInfo) -> None:
        """Compare with an input's shape. Errors: RefusedError where it fixes another size."""
        first = 2 if self.layout == "NCHW" else 1
        sides = info.shape[first : first + 2]
        # another rank or order of axes is told when the first image is fed
        if len(info.shape) != 4 or not all(isinstance(side, int) for side in sides):
            return
        if tuple(sides) != self.size:
            raise RefusedError(
                f"{SPEC}.size",
                f"{list(self.size)}; the model's input '{info.name}' takes {list(sides)}",
                f"write size = {list(sides)}",
            )

    def _resized(self, image: Any) -> Any:
        """Resize a Pillow image to `size`: stretched, or by its shorter side and cropped."""
        height, width = self.size
        if not self.resize:
            return image.resize((width, height))
        factor = self.resize / min(image.size)
        resized_width = round(image.width * factor)
        resized_height = round(image.height * factor)
        # never smaller than the crop, which would be filled up with black
        size = (
            max(resized_width, width),
            max(resized_height, height),
        )
        image = image.resize(size)
        left = (image.width - width) // 2
        top = (image.height - height) // 2
        box = (
            left,
            top,
            left + width,
            top + height,
        )
        return image.crop(box)


class LabelledFile(NamedTuple):
    """An image file, and the number of its class where the folder has classes."""

    path: Path
    label: int | None


@dataclass(frozen=True)
class ImageFolder:
    """Image files in sorted order, their classes by number, and the preprocessing.

    `numbered`: how many class folders were numbered by their order alone; 0 where something says
    which class each is.
    """

    files: list[LabelledFile]
    preprocess: Preprocess
    numbered: int = 0

    @staticmethod
    def open(path: Path) -> ImageFolder:
        """Read the spec and list the files.

        Files `path/class/image` have labels; see `class_numbers`. Errors: RefusedError for a faulty
        spec or a folder without images.
        """
        spec = _read_spec(path / SPEC)
        files = [LabelledFile(file, None) for file in _images(path)]
        if files:
            return ImageFolder(files, spec)
        folders = _class_folders(path)
        names = [folder.name for folder in folders]
        numbers = class_numbers(path, names, spec.classes)
        for folder in folders:
            label = numbers.by_folder[folder.name]
            files.extend(LabelledFile(file, label) for file in _images(folder))
        if not files:
            raise RefusedError(
                f"data {path}",
                "holds no images",
                f"put {', '.join(sorted(_SUFFIXES))} files there",
            )
        numbered = len(folders) if numbers.is_by_order else 0
        return ImageFolder(files, spec, numbered)

    def batches(
        self, names: list[str]
    ) -> Iterator[tuple[dict[str, NDArray[Any]], NDArray[np.int64] | None]]:
        """Yield (feeds, labels), decoded as they are asked for.

        Errors: UsageError without Pillow, RefusedError for a file that cannot be decoded.
        """
        if len(names) != 1:
            raise RefusedError(
                "images",
                f"the model has {len(names)} inputs: {', '.join(names)}",
                "give an .npz file with one array an input",
            )
        for start in range(0, len(self.files), _BATCH):
            part = self.files[start : start + _BATCH]
            samples = [self._load(file.path) for file in part]
            labels = [file.label for file in part if file.label is not None]
            feeds = {names[0]: np.stack(samples)}
            yield feeds, np.array(labels, np.int64) if labels else None

    def _load(self, file: Path) -> NDArray[np.float32]:
        try:
            from PIL import Image
        except ImportError:
            raise UsageError(
                "images", "Pillow is not installed", 'pip install "onnx-opt[images]"'
            ) from None
        try:
            with Image.open(file) as image:
                return self.preprocess.array(image)
        # Pillow raises SyntaxError for some broken PNG files
        except (OSError, ValueError, SyntaxError) as error:
            raise RefusedError(
                f"image {file}",
                f"cannot be decoded: {error}",
                "replace or remove the file",
            ) from error


def _images(folder: Path) -> list[Path]:
    files = [path for path in folder.iterdir() if _is_image(path)]
    return sorted(files)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES


def _class_folders(path: Path) -> list[Path]:
    folders = []
    for entry in path.iterdir():
        hidden = entry.name.startswith(".")
        if entry.is_dir() and not hidden:
            folders.append(entry)
    return sorted(folders)


def _read_spec(path: Path) -> Preprocess:
    try:
        raw = toml.loads(path.read_text(encoding="utf-8"))
    except (toml.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RefusedError(
            str(path), f"is not TOML: {error}", "write lines such as size = [224, 224]"
        ) from error
    known = [f.name for f in fields(Preprocess)]
    for key in raw:
        if key not in known:
            fix = did_you_mean(key, known, f"the keys are {', '.join(known)}")
            raise RefusedError(f"{path.name}.{key}", "no such key", fix)
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
                f"{path.name}.{key}",
                f"{len(numbers)} numbers",
                f"give 1 or {channels}",
            )
    if 0 in spec.std:
        raise RefusedError(f"{path.name}.std", "is zero", "give positive numbers")
    return spec


_CHOICES = {"layout": ("NCHW", "NHWC"), "channels": ("RGB", "BGR", "L")}


def _value(path: Path, key: str, value: Any) -> Any:
    """Convert a TOML value to the field's type. Errors: RefusedError."""
    if key in _CHOICES:
        return _chosen(path, key, value)
    if key == "classes":
        return _class_names(path, value)
    numbers = value if isinstance(value, list) else [value]
    if not numbers or not all(_is_number(n) for n in numbers):
        example = "[224, 224]" if key == "size" else "0.5"
        raise RefusedError(
            f"{path.name}.{key}",
            f"{value!r} is not a number or a list of numbers",
            f"write {key} = {example}",
        )
    if key == "size":
        # one number is a square
        sides = numbers * 2 if len(numbers) == 1 else numbers
        size = tuple(int(n) for n in sides)
        if len(size) != 2 or min(size) < 1:
            raise RefusedError(
                f"{path.name}.size",
                f"{value!r} is no size",
                "write size = [height, width]",
            )
        return size
    if key in ("mean", "std"):
        return tuple(float(n) for n in numbers)
    if isinstance(value, list) or value < 0:
        raise RefusedError(
            f"{path.name}.{key}",
            f"{value!r} is not a number of 0 or more",
            f"write one number for {key}",
        )
    return int(value) if key == "resize" else float(value)


def _class_names(path: Path, value: Any) -> tuple[str, ...]:
    is_list = isinstance(value, list) and len(value) > 0
    if not is_list or not all(isinstance(name, str) for name in value):
        raise RefusedError(
            f"{path.name}.classes",
            f"{value!r} is not a list of names",
            'write classes = ["cat", "dog"], in the order of the model\'s outputs',
        )
    return tuple(value)


def _chosen(path: Path, key: str, value: Any) -> str:
    choices = _CHOICES[key]
    if value not in choices:
        raise RefusedError(
            f"{path.name}.{key}",
            f"{value!r} is not known",
            f"choose one of {', '.join(choices)}",
        )
    return str(value)


def _is_number(value: Any) -> bool:
    # true and false are integers to Python
    return isinstance(value, (int, float)) and not isinstance(value, bool)
