"""What pass tests share: a calibrated context, and layers that count however small."""

import dataclasses

import pytest
from calibrated_context import CalibratedContext
from onnx_opt.passes._quant import rules as quant_rules


@pytest.fixture
def calibrated():
    return CalibratedContext


@pytest.fixture(autouse=True)
def first_layers_count(request, monkeypatch):
    """Test nets begin at an image; the rule that leaves such a Conv float has a test of its own."""
    if request.module.__name__.startswith("test_quant") and "the_rule_of_the_first_layer" not in request.keywords:
        rules = dataclasses.replace(quant_rules.TARGETS["cpu"], min_image_channels=0)
        monkeypatch.setitem(quant_rules.TARGETS, "cpu", rules)
