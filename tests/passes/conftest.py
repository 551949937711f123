"""What pass tests share: a calibrated context, and layers that count however small."""

import dataclasses

import pytest
from calibrated_context import CalibratedContext
from onnx_opt.passes._quant import rules as quant_rules


@pytest.fixture
def calibrated():
    return CalibratedContext


@pytest.fixture(autouse=True)
def layers_of_any_size(request, monkeypatch):
    """Test layers are tiny; the rules that leave tiny ones float have a test of their own."""
    if request.module.__name__.startswith("test_quant") and "the_rules_of_size" not in request.keywords:
        rules = dataclasses.replace(quant_rules.TARGETS["cpu"], min_weights=0, min_image_channels=0)
        monkeypatch.setitem(quant_rules.TARGETS, "cpu", rules)
