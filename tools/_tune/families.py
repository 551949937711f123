"""Families of recipes: from gentle to harsh, by the SQNR that they are to leave."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from ...passes._core.pipeline import parse
from .choices import Menu, Picks, cheapest, total_loss
from .goal import Objective
from .recipe import DEFAULT_FORM, recipe_of

LEAST_LOSS = 1e-6
"""Loss of 60 dB: what loses less is taken to lose this."""


GENTLER_DB = 3.0
"""SQNR above that of 8 bits everywhere from which a search begins: a model of which 8 bits lose too
much keeps some layers in float. Chosen by hand.
"""


class RecipeFamily(Protocol):
    """Recipes by the SQNR in dB that is predicted of them, or that they are to keep."""

    @property
    def gentlest_db(self) -> float:
        """SQNR of the recipe from which a search begins."""
        ...

    def recipe(self, target_db: float) -> str:
        """Canonical pipeline text."""
        ...


@dataclass(frozen=True)
class MenuRecipes:
    """For size: of each weight the sparsity and the bits that take fewest bytes in all."""

    menu: Menu

    @property
    def gentlest_db(self) -> float:
        picks: Picks = {}
        for name, choices in self.menu.items():
            plain = [each for each in choices if each.form == DEFAULT_FORM]
            dense = [each for each in plain if not each.sparsity]
            picks[name] = dense[0] if dense else choices[0]
        loss = max(total_loss(picks), LEAST_LOSS)
        return GENTLER_DB - 10 * math.log10(loss)

    def recipe(self, target_db: float) -> str:
        picks = cheapest(self.menu, 10 ** (-target_db / 10))
        # the solver found none in time: 8 bits are always allowed
        return recipe_of({} if picks is None else picks)


@dataclass(frozen=True)
class ChannelRecipes:
    """For time and work: channels that the outputs bear to lose, then integers."""

    gentlest_db: float = 40.0

    def recipe(self, target_db: float) -> str:
        text = f"simplify, prune-channels(min_sqnr={target_db:.1f}), quant, strip"
        return str(parse(text))


TEMPLATES: dict[Objective, tuple[str, ...]] = {
    "size": (
        "simplify, quant, strip",
        "simplify, quant(palette, bits=4), strip",
        "simplify, prune(sparsity=0.5), quant(palette, bits=4), strip",
        "simplify, prune(sparsity=0.5), quant(palette, bits=3), strip",
    ),
    "latency": ("simplify, quant, strip",),
}
"""Pipelines that suit many models, from gentle to harsh, tried beside the recipes of a family."""

TEMPLATES["accuracy"] = TEMPLATES["size"]
TEMPLATES["macs"] = TEMPLATES["latency"]


def templates_for(objective: Objective) -> tuple[str, ...]:
    """Canonical text of the pipelines for an objective, as main runs spell them."""
    return tuple(str(parse(text)) for text in TEMPLATES[objective])
