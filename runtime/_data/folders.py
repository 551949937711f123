"""Batches from folders: ONNX `test_data_set_*`, and images with a preprocessing spec."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ... import RefusedError
from ..presets import PRESETS, SPEC
from ..session import TensorInfo
from .images import ImageFolder


class Folder(NamedTuple):
    """Batches of a folder, each time they are asked for; `numbered` as in `ImageFolder`."""

    batches: Callable[[], Iterator[Any]]
    numbered: int = 0


def open_folder(path: Path, inputs: Sequence[TensorInfo]) -> Folder:
    """Open a folder of either kind.

    `inputs`: of the model. Errors: RefusedError for an unknown or empty folder, and for images of
    another size than the model takes.
    """
    names = [info.name for info in inputs]
    sets = sorted(path.glob("test_data_set_*"), key=_number)
    if not sets and path.name.startswith("test_data_set_"):
        sets = [path]
    if sets:
        return Folder(lambda: (_test_data(folder, names) for folder in sets))
    if (path / SPEC).is_file():
        images = ImageFolder.open(path)
        if len(inputs) == 1:
            images.preprocess.check_size(inputs[0])
        return Folder(lambda: images.batches(names), images.numbered)
    raise RefusedError(
        f"data {path}",
        f"has neither test_data_set_* folders nor images with a {SPEC}",
        f"run 'onnx-opt data init {path}', which writes a {SPEC} to adapt (presets: "
        f"{', '.join(PRESETS)}), or give an .npz file",
    )


def _number(path: Path) -> tuple[int, str]:
    """Key that sorts names by the number at their end: 2 before 10."""
    digits = re.search(r"(\d+)$", path.name)
    number = int(digits[1]) if digits else -1
    return number, path.name


def _test_data(folder: Path, names: list[str]) -> dict[str, NDArray[Any]]:
    """Read one data set, input_0.pb and so on.

    A file belongs to the input that its tensor is named after, else to the input of its number.
    """
    files = sorted(folder.glob("input_*.pb"), key=lambda p: _number(p.with_suffix("")))
    if not files:
        raise RefusedError(
            f"data {folder}",
            "holds no input_0.pb",
            "give the folder that holds test_data_set_*",
        )
    feeds: dict[str, NDArray[Any]] = {}
    for index, file in enumerate(files):
        own_name, array = _read_tensor(file)
        # a file too many gets a name that no input has, and is refused by it later
        name = names[index] if index < len(names) else f"input_{index}"
        if own_name in names:
            name = own_name
        feeds[name] = array
    return feeds


def _read_tensor(file: Path) -> tuple[str, NDArray[Any]]:
    """Name and values of a serialized TensorProto."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from onnx import numpy_helper

    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(file.read_bytes())
        array = np.asarray(numpy_helper.to_array(tensor))
    except (DecodeError, ValueError, TypeError) as error:
        raise RefusedError(
            f"data {file}",
            f"is not a tensor: {error}",
            "write it with onnx.numpy_helper",
        ) from error
    return tensor.name, array
