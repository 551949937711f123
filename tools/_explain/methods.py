"""The methods by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from .libraries import by_lime, by_shap
from .lime import lime
from .occlusion import occlusion
from .parts import Division
from .perturbed import Perturbed, Weights
from .shap import shap

Method = Literal["occlusion", "lime", "shap", "ig"]
METHODS: tuple[Method, ...] = get_args(Method)

Engine = Literal["own", "library"]
ENGINES: tuple[Engine, ...] = get_args(Engine)

PerturbationMethod = Callable[[Perturbed], Weights]

BY_PERTURBATION: dict[tuple[str, str], PerturbationMethod] = {
    ("occlusion", "own"): occlusion,
    ("lime", "own"): lime,
    ("shap", "own"): shap,
    ("lime", "library"): by_lime,
    ("shap", "library"): by_shap,
}
"""Methods that run a sample without some of its parts, by their names and the engine."""

RUNS: dict[str, int] = {"occlusion": 0, "lime": 512, "shap": 512, "ig": 32}
"""Variants of a sample, or points on a path; occlusion has one for each part. Chosen by hand."""

DIVISIONS: dict[str, Division] = {
    "occlusion": Division(side=8, shifts=True),
    "lime": Division(side=6, shifts=False),
    "shap": Division(side=6, shifts=False),
    "ig": Division(side=8, shifts=False),
}
"""Parts by method: a regression has as many unknowns as there are parts. Chosen by hand."""
