"""Each op family: which slots go together, and that taking them out computes what shutting them off
does.
"""

import pytest
from odd_models import MODELS as ODD
from pruning import assert_exact, model_of, pattern, solved
from rule_models import MODELS as RULES
from tabular_models import MODELS as TABULAR

MODELS = RULES | ODD | TABULAR


@pytest.mark.parametrize("name", MODELS)
def test_slots_that_go_together(name):
    text, expected = MODELS[name]
    assert pattern(solved(model_of(text)), expected) == expected


@pytest.mark.parametrize("attention", ["heads", "dims"])
@pytest.mark.parametrize("name", MODELS)
def test_pruned_is_the_masked_reference(name, attention):
    text, expected = MODELS[name]
    model = model_of(text)
    gone = assert_exact(model, solved(model, attention))
    assert (gone > 0) == any(set(letters) - {"."} for letters in expected.values())
