"""Each op family: which slots go together, and that taking them out computes what shutting them off
does.
"""

import pytest
from odd_models import MODELS as ODD
from pruning import assert_exact, model_of, pattern, solved
from rule_models import MODELS as RULES
from tabular_models import MODELS as TABULAR

MODELS = RULES | ODD | TABULAR


def case(name):
    """A name of a model, marked by what it needs."""
    text, _ = MODELS[name]
    if '"" : 23]' in text:
        return pytest.param(name, marks=pytest.mark.needs("onnx", "1.18", "opset 23"))
    if name == "a Conv that the runtime fused":
        needed = pytest.mark.needs("onnxruntime", "1.28", "older ones fail on it")
        return pytest.param(name, marks=needed)
    return name


CASES = [case(name) for name in MODELS]


@pytest.mark.parametrize("name", CASES)
def test_slots_that_go_together(name):
    text, expected = MODELS[name]
    assert pattern(solved(model_of(text)), expected) == expected


@pytest.mark.parametrize("attention", ["heads", "dims"])
@pytest.mark.parametrize("name", CASES)
def test_pruned_is_the_masked_reference(name, attention):
    text, expected = MODELS[name]
    model = model_of(text)
    gone = assert_exact(model, solved(model, attention))
    assert (gone > 0) == any(set(letters) - {"."} for letters in expected.values())
