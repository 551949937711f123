"""What pass tests share: a calibrated context, and images that nets read as they are."""

import dataclasses

import pytest
from calibrated_context import CalibratedContext
from onnx_opt.passes._quant import rules as quant_rules


@pytest.fixture
def calibrated():
    return CalibratedContext


@pytest.fixture
def one_limb(monkeypatch):
    """Convs read an image once, for tests whose small nets begin at one and that are not of this
    rule.
    """
    rules = dataclasses.replace(quant_rules.TARGETS["cpu"], image_channels=0)
    monkeypatch.setitem(quant_rules.TARGETS, "cpu", rules)
