"""Families of recipes: from gentle to harsh, by the SQNR that they are to leave."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ...passes._core.contract import Pass
from ...passes._core.patterns import Part
from ...passes._core.pipeline import Pipeline, parse
from .choices import FLOAT, Menu, Picks, total_cost, total_loss
from .goal import Objective
from .knapsack import cheapest, gentlest
from .layer_times import LayerTimes
from .menu import MILDER, FoundMenu
from .recipe import DEFAULT_FORM, recipe_of

LEAST_LOSS = 1e-6
"""Loss of 60 dB: what loses less is taken to lose this."""


LEAST_DB = 5.0
"""Predicted SQNR of the harshest recipe that is tried: below it hardly anything is left."""

GENTLER_DB = 3.0
"""SQNR above that of 8 bits everywhere from which a search begins: a model of which 8 bits lose too
much keeps some layers in float. Chosen by hand.
"""

REPAIRED_DB = 20.0
"""SQNR above that of a pipeline at which its repair begins: a hundredth of the loss is left."""


class Proposal(NamedTuple):
    """Canonical pipeline text, with what is predicted of it; None where that is not known.

    `sqnr_db`: of the outputs. `latency_ms`: of a run. `weight_bytes`: of the weights that there is
    a choice for.
    """

    recipe: str
    sqnr_db: float
    latency_ms: float | None = None
    weight_bytes: float | None = None


class RecipeFamily(abc.ABC):
    """Recipes by the SQNR in dB that is predicted of them, or that they are to keep."""

    @property
    @abc.abstractmethod
    def gentlest_db(self) -> float:
        """SQNR of the recipe from which a search begins."""

    @property
    def harshest_db(self) -> float:
        """SQNR below which no recipe is tried."""
        return LEAST_DB

    @abc.abstractmethod
    def proposal(self, target_db: float) -> Proposal:
        """The recipe of an SQNR."""

    def smaller(self, weight_bytes: float) -> list[Proposal]:
        """Recipes whose weights take at most so many bytes, one of each kind, gentlest first.

        None of a family whose recipes are not chosen by bytes.
        """
        return []


@dataclass(frozen=True)
class MenuRecipes(RecipeFamily):
    """For size: passes that prune, and of each weight the bits, that take fewest bytes in all.

    A weight stays float only where integers alone lose too much: for the few bytes that it may
    save elsewhere, its layer would run at the speed of floats.

    `menus`: choices behind nothing, and behind passes that prune.
    """

    menus: Sequence[FoundMenu]

    @property
    def gentlest_db(self) -> float:
        loss = _eight_bit_loss(self.menus[0].menu)
        return GENTLER_DB + db_of(loss)

    def proposal(self, target_db: float) -> Proposal:
        allowed = share_of(target_db)
        best: Picks = {}
        before = ""
        for found in self.menus:
            left = allowed - found.loss
            picks = _integers_first(cheapest, found.menu, left) if left > 0 else None
            if not picks:
                continue
            if not best or total_cost(picks) < total_cost(best):
                best = picks
                before = found.before
        # of no picks, since the solver found none in time, it is 8 bits
        return _proposed(best, before, target_db)

    def smaller(self, weight_bytes: float) -> list[Proposal]:
        proposals = []
        for found in self.menus:
            picks = _integers_first(gentlest, found.menu, weight_bytes)
            if picks:
                kept_db = db_of(found.loss + total_loss(picks))
                proposals.append(_proposed(picks, found.before, kept_db))
        return sorted(proposals, key=lambda each: -each.sqnr_db)


def _integers_first(
    solve: Callable[[Menu, float], Picks | None], menu: Menu, limit: float
) -> Picks | None:
    """The best choices within a limit, with floats only if there are none without."""
    integers = {}
    for name, choices in menu.items():
        every = [choice for choice in choices if choice.form != FLOAT]
        integers[name] = every or choices
    return solve(integers, limit) or solve(menu, limit)


def _proposed(picks: Picks, before: str, sqnr_db: float) -> Proposal:
    """Choices of bits behind passes that prune, if any."""
    first = [before] if before else []
    recipe = recipe_of(picks, before=first)
    return Proposal(
        recipe,
        sqnr_db,
        weight_bytes=total_cost(picks),
    )


def share_of(sqnr_db: float) -> float:
    """Share of the outputs' mean square that is lost at an SQNR in dB."""
    return float(10 ** (-sqnr_db / 10))


def db_of(share: float) -> float:
    """SQNR in dB of a share of the outputs' mean square that is lost."""
    return -10 * math.log10(max(share, LEAST_LOSS))


@dataclass(frozen=True)
class ChannelRecipes(RecipeFamily):
    """For work, and for time where that of layers is not known: fewer channels, then integers."""

    @property
    def gentlest_db(self) -> float:
        return 40.0

    def proposal(self, target_db: float) -> Proposal:
        text = f"simplify, {_channels_left(target_db)}, quant, strip"
        return Proposal(str(parse(text)), target_db)


@dataclass(frozen=True)
class TimedRecipes(RecipeFamily):
    """For time: 8 bits, but floats where integers lose more than they save, and fewer channels.

    `menu`: of each weight what 8 bits lose, and the ms of its layer in either form. What of the
    loss the bits leave over is that of `prune-channels`.
    """

    menu: Menu
    times: LayerTimes

    @property
    def gentlest_db(self) -> float:
        loss = _eight_bit_loss(self.menu)
        return GENTLER_DB + db_of(loss)

    def proposal(self, target_db: float) -> Proposal:
        allowed = share_of(target_db)
        picks = cheapest(self.menu, allowed, self.times.borders) or {}
        left = allowed - total_loss(picks)
        if left > LEAST_LEFT * allowed:
            before = _channels_left(db_of(left))
            return Proposal(recipe_of(picks, before=[before]), target_db)
        forms = {name: choice.form for name, choice in picks.items()}
        return Proposal(
            recipe_of(picks),
            target_db,
            latency_ms=self.times.of(forms),
        )


LEAST_LEFT = 0.5
"""Share of the loss that a recipe may have from which on channels go for it. Chosen by hand."""


def _channels_left(sqnr_db: float) -> str:
    """Text of the pass that takes channels until so much SQNR in dB is left."""
    return f"prune-channels(min_sqnr={sqnr_db:.1f})"


def _eight_bit_loss(menu: Menu) -> float:
    """Loss of 8 bits everywhere, or of the first choice where a weight has no such form."""
    picks: Picks = {}
    for name, choices in menu.items():
        plain = [each for each in choices if each.form == DEFAULT_FORM]
        picks[name] = plain[0] if plain else choices[0]
    return total_loss(picks)


@dataclass(frozen=True)
class RepairRecipes(RecipeFamily):
    """A pipeline of which the layers that lose most for their bytes are spared, or stay float.

    `menu`: of each weight that the pipeline changes its form there, a milder one, and float.
    """

    menu: Menu
    pipeline: Pipeline

    @property
    def gentlest_db(self) -> float:
        return self.harshest_db + REPAIRED_DB

    @property
    def harshest_db(self) -> float:
        """SQNR of the pipeline itself."""
        total = 0.0
        for choices in self.menu.values():
            total += max(choice.loss for choice in choices)
        return db_of(total)

    def proposal(self, target_db: float) -> Proposal:
        allowed = share_of(target_db)
        picks = cheapest(self.menu, allowed)
        if picks is None:
            # the solver found none in time: all layers are put back
            left = list(self.menu)
            spared = []
        else:
            left = _of_form(picks, FLOAT)
            spared = _of_form(picks, MILDER)
        steps = []
        for pass_ in self.pipeline.passes:
            repaired = _repaired(pass_, left, spared)
            steps.append(repaired)
        # names are those of a simplified model
        if steps[0].name != "simplify":
            steps = [*parse("simplify").passes, *steps]
        return Proposal(str(Pipeline(tuple(steps))), target_db)


def _of_form(picks: Picks, form: str) -> list[str]:
    """Names of the weights that take a form."""
    return [name for name, choice in picks.items() if choice.form == form]


def _repaired(pass_: Pass, left: Sequence[str], spared: Sequence[str]) -> Pass:
    """A pass that leaves some layers as they are, and takes less from others."""
    if pass_.effect != "lossy":
        return pass_
    if spared:
        pass_ = pass_.sparing(spared) or pass_
    if not left:
        return pass_
    return pass_.without(Part(name, "", (name,)) for name in left)


TEMPLATES: dict[Objective, tuple[str, ...]] = {
    "size": (
        "simplify, quant, strip",
        "simplify, quant(palette, bits=4), strip",
        "simplify, prune(sparsity=0.5), quant(palette, bits=4), strip",
        "simplify, prune(sparsity=0.5), quant(palette, bits=3), strip",
        "simplify, prune, quant(palette, bits=4), strip",
        "simplify, quant(codebook, bits=2), strip",
    ),
    "latency": (
        "simplify, quant, strip",
        "simplify, prune-channels, quant, strip",
    ),
}
"""Pipelines that suit many models, from gentle to harsh, tried beside the recipes of a family."""

TEMPLATES["accuracy"] = TEMPLATES["size"]
TEMPLATES["macs"] = TEMPLATES["latency"]


def templates_for(objective: Objective) -> tuple[str, ...]:
    """Canonical text of the pipelines for an objective, as main runs spell them."""
    return tuple(str(parse(text)) for text in TEMPLATES[objective])
