"""Plans of a search: what it tries for a goal, for an aim, and to repair a pipeline."""

from __future__ import annotations

from dataclasses import dataclass

from ... import RefusedError, UsageError
from ...passes._core.pipeline import Pipeline, parse
from .._run.cache import Cache
from .aims import Aim, pipelines_of
from .families import (
    ChannelRecipes,
    MenuRecipes,
    RecipeFamily,
    RepairRecipes,
    templates_for,
)
from .goal import Goal
from .lab import Lab
from .menu import menu_of, menu_to_repair
from .remembered import remember_menu, remembered_menu

UNMEASURED = ("strip", "pack")
"""Passes that change no value: losses are measured without them, by the names of layers."""


@dataclass(frozen=True)
class SearchPlan:
    """What a search tries.

    `family`: recipes from gentle to harsh; None: templates alone. `templates`: pipelines that are
    tried as they are, from gentle to harsh. `tries_all`: also those behind one that loses too much.
    """

    family: RecipeFamily | None
    templates: tuple[str, ...] = ()
    tries_all: bool = False


def plan_for(goal: Goal, lab: Lab, cache: Cache | None, key: str) -> SearchPlan:
    """The plan that makes the objective small. Errors: RefusedError where there is no choice.

    `cache`, `key`: where findings of this search are kept.
    """
    templates = templates_for(goal.objective)
    if goal.objective in ("latency", "macs"):
        return SearchPlan(ChannelRecipes(), templates)
    menu = None if cache is None else remembered_menu(cache, key)
    if menu is None:
        menu = menu_of(lab)
        if cache is not None:
            remember_menu(cache, key, menu)
    if not menu:
        raise RefusedError(
            str(lab.run.settings.model),
            "no weight of it has a choice of forms: there is nothing to search",
            "onnx-opt inspect shows why",
        )
    return SearchPlan(MenuRecipes(menu), templates)


def plan_of_aim(aim: Aim, target: str) -> SearchPlan:
    """The plan that tries the pipelines of an aim."""
    return SearchPlan(None, pipelines_of(aim, target), tries_all=True)


def plan_to_repair(pipeline: Pipeline, lab: Lab) -> SearchPlan:
    """The plan that puts layers of a pipeline back until it loses little enough.

    Errors: UsageError for a pass whose layers cannot be put back; RefusedError where nothing is
    left to be put back.
    """
    for pass_ in pipeline.passes:
        if pass_.effect == "lossy" and not pass_.parts(lab.model):
            raise UsageError(
                "--repair",
                f"'{pass_.name}' cannot leave single layers as they are",
                "leave that pass out, or --repair",
            )
    measured = [each for each in pipeline.passes if each.name not in UNMEASURED]
    milder = [each.milder() or each for each in measured]
    menu = menu_to_repair(
        lab,
        str(Pipeline(tuple(measured))),
        None if milder == measured else str(Pipeline(tuple(milder))),
    )
    if not menu:
        raise RefusedError(
            "--repair",
            f"'{pipeline}' changes no layer of {lab.run.settings.model}",
            "onnx-opt inspect shows why",
        )
    whole = str(parse(str(pipeline)))
    return SearchPlan(RepairRecipes(menu, pipeline), (whole,))
