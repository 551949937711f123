"""One worker for the whole folder, and models written from text."""

from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
from onnx_opt.runtime import worker as worker_module
from onnx_opt.runtime.worker import Worker

_SERVE = "child.serve("
SLEEPY_BOOTSTRAP = worker_module._BOOTSTRAP.replace(
    _SERVE,
    f"import os, time\nchild.FUNCTIONS.update(sleep=time.sleep, abort=os.abort)\n{_SERVE}",
)
"""The child's program with two more functions that can be called: `sleep` and `abort`."""


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    with Worker(timeout=60) as worker:
        yield worker


@pytest.fixture
def sleepy(monkeypatch: pytest.MonkeyPatch) -> str:
    """Let children that start from now on sleep and abort when told to; their program."""
    monkeypatch.setattr(worker_module, "_BOOTSTRAP", SLEEPY_BOOTSTRAP)
    return SLEEPY_BOOTSTRAP


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_model(text: str, name: str = "model.onnx") -> Path:
        path = tmp_path / name
        onnx.save(onnx.parser.parse_model(text), path)
        return path

    return write_model
