"""The methods by the libraries that people know: lime and shap, on the same variants' scores."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator

import numpy as np

from ... import UsageError
from .lime import drawn_variants, kernel
from .perturbed import Perturbed, Weights

PACKAGES = {"lime": "lime", "shap": "shap", "ig": "captum"}
"""The library of each method; occlusion has none."""


def check_library(method: str) -> None:
    """Refuse a method without a library, or whose library is missing. Errors: UsageError."""
    package = PACKAGES.get(method)
    if package is None:
        raise UsageError(
            "--engine",
            f"no library is used for {method}",
            "leave --engine out, or choose --method lime, shap or ig",
        )
    if importlib.util.find_spec(package) is None:
        raise UsageError(
            "--engine",
            f"the library {package} is not installed",
            "pip install 'onnx-opt[explain]', or leave --engine out",
        )


def by_lime(case: Perturbed) -> Weights:
    """Coefficients by `lime`'s own regression over drawn variants, (P,)."""
    from lime.lime_base import LimeBase

    kept = drawn_variants(case)
    scores = case.scores(kept)
    distances = 1 - np.sqrt(kept.mean(1))
    _, pairs, _, _ = LimeBase(kernel).explain_instance_with_data(
        kept.astype(np.float64),
        scores[:, None],
        distances,
        label=0,
        num_features=case.parts,
        feature_selection="none",
    )
    weights = np.zeros(case.parts)
    for place, weight in pairs:
        weights[place] = weight
    return weights


def by_shap(case: Perturbed) -> Weights:
    """Shapley values by `shap.KernelExplainer`, of `runs` coalitions, (P,)."""
    from shap import KernelExplainer

    def scores(rows: Weights) -> Weights:
        return case.scores(rows > 0)

    nothing = np.zeros((1, case.parts))
    everything = np.ones((1, case.parts))
    with _seeded(case.random):
        explainer = KernelExplainer(scores, nothing)
        found = explainer.shap_values(
            everything,
            nsamples=case.runs,
            l1_reg=False,
            silent=True,
        )
    return np.asarray(found, np.float64).reshape(-1)


@contextlib.contextmanager
def _seeded(random: np.random.Generator) -> Iterator[None]:
    """Seed the numbers that `shap` draws, which are numpy's global ones, for a block."""
    before = np.random.get_state()
    np.random.seed(int(random.integers(2**32)))
    try:
        yield
    finally:
        np.random.set_state(before)
