"""The table of recipes, filled by a decorator, and growth by recipes drawn from it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..builder import Builder, Rejected

Recipe = Callable[[Builder], object]

RECIPES: dict[Recipe, float] = {}
"""Recipes and how often each is tried, relative to the others."""

MAX_DEPTH = 3
"""Graphs inside each other, the main one included."""

_TRIES = 6
"""Recipes that are tried for a node, at most."""


def recipe(weight: float = 1.0) -> Callable[[Recipe], Recipe]:
    """Enter a function into the table."""

    def enter(function: Recipe) -> Recipe:
        RECIPES[function] = weight
        return function

    return enter


def grow(b: Builder, steps: int) -> None:
    """Apply `steps` recipes to the innermost graph; those that do not fit leave no trace."""
    recipes = list(RECIPES)
    weights = np.array(list(RECIPES.values()))
    weights /= weights.sum()
    for _ in range(steps):
        for _ in range(_TRIES):
            chosen = recipes[int(b.random.choice(len(recipes), p=weights))]
            try:
                with b.attempt():
                    chosen(b)
                break
            except Rejected:
                continue
