"""Methods on functions whose explanations are known, and beside the libraries."""

import itertools
import math

import numpy as np
import pytest
from onnx_opt.tools._explain.lime import lime
from onnx_opt.tools._explain.occlusion import occlusion
from onnx_opt.tools._explain.perturbed import Perturbed
from onnx_opt.tools._explain.shap import shap

WEIGHTS = np.array([3.0, -2.0, 0.5, 0.0, 1.0, 4.0])


def case(scores, parts=6, runs=400, windows=None, seed=0):
    windows = np.eye(parts, dtype=bool) if windows is None else windows
    return Perturbed(scores, parts, windows, runs, np.random.default_rng(seed))


def linear(kept):
    return kept @ WEIGHTS


def pairs(kept):
    """Linear, but for a product of the first two parts."""
    return linear(kept) + 2 * kept[:, 0] * kept[:, 1]


def test_occlusion_gives_the_fall_without_each_part():
    assert occlusion(case(linear)).tolist() == pytest.approx(WEIGHTS.tolist())


def test_overlapping_windows_share_their_falls():
    windows = np.array([[1, 1, 0], [0, 1, 1]], bool)
    found = occlusion(case(lambda kept: kept @ [1.0, 2, 4], 3, windows=windows))
    assert found.tolist() == [3, 4.5, 6]


def test_lime_of_a_linear_function_is_nearly_its_weights():
    found = lime(case(linear, runs=2000))
    assert np.abs(found - WEIGHTS).max() < 0.15
    assert found.argsort().tolist() == WEIGHTS.argsort(kind="stable").tolist()


def brute_force(scores, parts):
    """Shapley values by their definition."""
    values = np.zeros(parts)
    for order in itertools.permutations(range(parts)):
        kept = np.zeros((1, parts), bool)
        before = scores(kept)[0]
        for part in order:
            kept[0, part] = True
            after = scores(kept)[0]
            values[part] += after - before
            before = after
    return values / math.factorial(parts)


def test_shap_of_few_parts_is_exact():
    found = shap(case(pairs))
    assert found == pytest.approx(brute_force(pairs, 6), abs=1e-9)


def test_shap_of_drawn_coalitions_is_exact_for_linear_functions():
    weights = np.arange(20.0)
    found = shap(case(lambda kept: kept @ weights, parts=20, runs=200))
    assert found == pytest.approx(weights, abs=1e-9)


def test_shap_adds_up():
    def maximum(kept):
        return np.max(kept * np.arange(16.0), axis=1)

    found = shap(case(maximum, parts=16, runs=100))
    assert found.sum() == pytest.approx(15)


def test_shap_of_a_single_part():
    assert shap(case(lambda kept: kept.sum(1) * 2.0, parts=1)).tolist() == [2.0]


def test_lime_agrees_with_the_library():
    pytest.importorskip("lime", reason="lime is not installed")
    from onnx_opt.tools._explain.libraries import by_lime

    assert lime(case(pairs)) == pytest.approx(by_lime(case(pairs)), abs=1e-9)


@pytest.mark.filterwarnings("ignore")
def test_shap_agrees_with_the_library():
    pytest.importorskip("shap", reason="shap is not installed")
    from onnx_opt.tools._explain.libraries import by_shap

    before = np.random.get_state()[1].tolist()
    assert shap(case(pairs)) == pytest.approx(by_shap(case(pairs)), abs=1e-6)
    assert np.random.get_state()[1].tolist() == before
