"""One worker for the whole folder, and models written from text."""

from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
from onnx_opt.runtime.worker import Worker


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    with Worker(timeout=60) as worker:
        yield worker


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_model(text: str, name: str = "model.onnx") -> Path:
        path = tmp_path / name
        onnx.save(onnx.parser.parse_model(text), path)
        return path

    return write_model
