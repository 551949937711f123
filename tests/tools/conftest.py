"""Fixtures that several tests of commands and functions share."""

import onnx
import pytest
from sample_models import MLP, model_from


@pytest.fixture
def mlp(tmp_path):
    """The file of a small perceptron."""
    path = tmp_path / "mlp.onnx"
    onnx.save(model_from(MLP), path)
    return path
