"""Plans of a search: what it tries for a goal, for an aim, and to repair a pipeline."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ... import RefusedError, UsageError
from ...passes._core.pipeline import Pipeline
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
from .menu import FoundMenu, MenuRange, menu_of, menu_to_repair, range_for
from .sensitivity import Keep, Method
from .timed import timed_recipes

UNMEASURED = ("strip", "pack")
"""Passes that change no value: losses are measured without them, by the names of layers."""


@dataclass(frozen=True)
class SearchPlan:
    """Recipes and pipelines that a search tries.

    `family`: recipes from gentle to harsh; None: templates alone. `templates`: pipelines that are
    tried as they are, from gentle to harsh. `tries_all`: also those behind one that loses too much.
    `sensitivity`: how losses of weights were found; None where they were not looked for.
    """

    family: RecipeFamily | None
    templates: tuple[str, ...] = ()
    tries_all: bool = False
    sensitivity: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class MenuSettings:
    """The way in which losses of weights are found, and where findings are kept.

    `menu`: gives the menu of a name: the one that was kept, else the one that the function makes.
    `deadline`: seconds of `time.monotonic` after which no further menu is begun.
    """

    method: Method
    keep: Keep
    menu: KeepMenu
    deadline: float


KeepMenu = Callable[[str, Callable[[], FoundMenu]], FoundMenu]


def plan_for(goal: Goal, lab: Lab, menu_settings: MenuSettings) -> SearchPlan:
    """The plan that makes the objective small. Errors: RefusedError where there is no choice."""
    templates = templates_for(goal.objective)
    if goal.objective == "latency":
        timed = timed_recipes(lab, menu_settings.method, menu_settings.keep)
        if timed is not None:
            return SearchPlan(
                timed.family, templates, sensitivity=timed.sensitivity.as_dict()
            )
    if goal.objective in ("latency", "macs"):
        return SearchPlan(ChannelRecipes(), templates)
    menus = _menus(lab, range_for(goal), menu_settings)
    if not menus:
        raise RefusedError(
            str(lab.run.settings.model),
            "no weight of it has a choice of forms: there is nothing to search",
            "onnx-opt inspect shows why",
        )
    how = menus[0].sensitivity
    return SearchPlan(MenuRecipes(menus), templates, sensitivity=how)


def _menus(
    lab: Lab, menu_range: MenuRange, menu_settings: MenuSettings
) -> list[FoundMenu]:
    """Menus behind nothing and behind passes that prune, as many as the time allows."""
    menus = []
    fewest = menu_range.forms[-1].form
    for before in menu_range.before:
        start = time.monotonic()
        make = functools.partial(
            menu_of,
            lab,
            before,
            menu_settings.method,
            menu_settings.keep,
            menu_range.forms_behind(before),
        )
        name = f"{menu_settings.method}-{fewest}-{before}"
        found = menu_settings.menu(name, make)
        if found.menu:
            menus.append(found)
        # the next one takes about as long
        taken = time.monotonic() - start
        if not menus or time.monotonic() + taken > menu_settings.deadline:
            break
    return menus


def plan_of_aim(aim: Aim, target: str) -> SearchPlan:
    """The plan that tries the pipelines of an aim."""
    return SearchPlan(None, pipelines_of(aim, target), tries_all=True)


def check_repair(pipeline: Pipeline) -> None:
    """Errors: UsageError for a pass whose layers cannot be spared."""
    for pass_ in pipeline.passes:
        if pass_.effect == "lossy" and not pass_.has_parts():
            raise UsageError(
                "--repair",
                f"'{pass_.name}' cannot leave single layers as they are",
                "leave that pass out, or --repair",
            )


def plan_to_repair(
    pipeline: Pipeline, lab: Lab, menu_settings: MenuSettings
) -> SearchPlan:
    """The plan that spares layers of a pipeline until it loses little enough.

    Errors: RefusedError where it changes none.
    """
    measured = [each for each in pipeline.passes if each.name not in UNMEASURED]
    menu = menu_to_repair(
        lab,
        Pipeline(tuple(measured)),
        menu_settings.method,
        menu_settings.keep,
    )
    if not menu:
        raise RefusedError(
            "--repair",
            f"'{pipeline}' changes no layer of {lab.run.settings.model}",
            "onnx-opt inspect shows why",
        )
    return SearchPlan(RepairRecipes(menu, pipeline), (str(pipeline),))
