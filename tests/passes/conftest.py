"""What pass tests share: a calibrated context, and images that nets read as they are."""

import dataclasses

import pytest
from calibrated_context import CalibratedContext
from onnx_opt.passes._core import targets


@pytest.fixture
def calibrated():
    return CalibratedContext


@pytest.fixture
def with_rules(monkeypatch):
    """A function that changes how `quant` lays out layers for the target cpu."""

    def change(**rules):
        cpu = targets.TARGETS["cpu"]
        quant = dataclasses.replace(cpu.quant, **rules)
        monkeypatch.setitem(
            targets.TARGETS, "cpu", dataclasses.replace(cpu, quant=quant)
        )

    return change


@pytest.fixture
def one_term(with_rules):
    """Convs read an image once, for tests whose small nets begin at one and that are not of this
    rule.
    """
    with_rules(image_channels=0)
