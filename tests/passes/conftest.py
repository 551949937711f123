"""What pass tests share: a calibrated context, and images that nets read as they are."""

import dataclasses

import pytest
from calibrated_context import CalibratedContext
from onnx_opt.passes._quant import rules as quant_rules


@pytest.fixture
def calibrated():
    return CalibratedContext


@pytest.fixture(autouse=True)
def one_limb(request, monkeypatch):
    """Test nets begin at an image; the rule that gives such a Conv its input twice has tests of its own."""
    if request.module.__name__.startswith("test_quant") and "images_in_limbs" not in request.keywords:
        rules = dataclasses.replace(quant_rules.TARGETS["cpu"], image_channels=0)
        monkeypatch.setitem(quant_rules.TARGETS, "cpu", rules)
