"""Aims for people without a budget: pipelines that suit each kind of target, and what to bear.

The pipelines follow the recipes of docs/recipes.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ...passes._core.pipeline import parse
from .goal import Goal, Objective

Aim = Literal["size", "speed", "accuracy"]

Kind = Literal["cpu", "gpu", "other"]
"""Kinds of targets that are served by the same pipelines."""

KINDS: dict[str, Kind] = {
    "cpu": "cpu",
    "cpu-vnni": "cpu",
    "arm64": "cpu",
    "cuda": "gpu",
    "tensorrt": "gpu",
}
"""Kinds of targets; those that are not named are of the kind `other`."""

BEARABLE_DROP = 0.01
"""Drop of a metric that an aim bears. Chosen by hand: `--max-drop` says what you bear."""

BEARABLE_CHANGES = 0.02
"""Share of rows that may change their class, where there are no labels. Chosen by hand."""

BEARABLE_DB = 20.0
"""SQNR of the outputs that is kept, where they choose no class. Chosen by hand."""

ACCURATE_SHARE = 0.6
"""Share of the original's bytes within which the most accurate form is looked for.

All weights in 16 bits take 0.5; the rest is for the graph of a small model.
"""


@dataclass(frozen=True)
class AimFacts:
    """The objective of an aim, and its pipelines by kind of target, from gentle to harsh."""

    objective: Objective
    pipelines: Mapping[Kind, tuple[str, ...]]


AIMS: dict[Aim, AimFacts] = {
    "size": AimFacts(
        "size",
        {
            "cpu": (
                "simplify, compress-weights, strip",
                "simplify, quant, strip",
                "simplify, quant(palette, bits=4), strip",
                "simplify, quant(bits=4), strip",
                "simplify, quant(blocked, bits=4), strip",
                "simplify, prune, quant(palette, bits=4), strip",
                "simplify, quant(palette, bits=3), strip",
                "simplify, prune(sparsity=0.5), quant(palette, bits=3), strip",
                "simplify, quant(codebook, bits=2), strip",
            ),
            "gpu": (
                "simplify, quant(fp16), strip",
                "simplify, compress-weights, strip",
                "simplify, compress-weights(palette), strip",
            ),
            "other": (
                "simplify, compress-weights(fp16), strip",
                "simplify, compress-weights, strip",
                "simplify, quant, strip",
            ),
        },
    ),
    "speed": AimFacts(
        "latency",
        {
            "cpu": (
                "simplify, quant, strip",
                "simplify, prune-channels, quant, strip",
                "simplify, prune-channels(min_sqnr=20), quant, strip",
                "simplify, quant(blocked, bits=4), strip",
            ),
            "gpu": (
                "simplify, quant(fp16), strip",
                "simplify, quant, strip",
                "simplify, prune-channels, quant(fp16), strip",
            ),
            "other": (
                "simplify, strip",
                "simplify, prune-channels, strip",
            ),
        },
    ),
    "accuracy": AimFacts(
        "accuracy",
        {
            "cpu": (
                "simplify, compress-weights(fp16), strip",
                "simplify, compress-weights, strip",
                "simplify, quant, strip",
            ),
            "gpu": (
                "simplify, quant(fp16), strip",
                "simplify, compress-weights(fp16), strip",
            ),
            "other": (
                "simplify, compress-weights(fp16), strip",
                "simplify, compress-weights, strip",
            ),
        },
    ),
}
"""Pipelines that suit many models, by aim."""


def pipelines_of(aim: Aim, target: str) -> tuple[str, ...]:
    """Canonical text of the pipelines of an aim, as main runs spell them."""
    texts = AIMS[aim].pipelines[KINDS.get(target, "other")]
    return tuple(str(parse(text)) for text in texts)


def bearable(aim: Aim, has_metric: bool, chooses_classes: bool, size: int) -> Goal:
    """The goal of an aim without a budget.

    `chooses_classes`: outputs of the model do. `size`: bytes of the model.
    """
    objective = AIMS[aim].objective
    if objective == "accuracy":
        return Goal(objective, max_bytes=int(ACCURATE_SHARE * size))
    if has_metric:
        return Goal(objective, max_drop=BEARABLE_DROP)
    if chooses_classes:
        return Goal(objective, max_drop=BEARABLE_CHANGES)
    return Goal(objective, min_sqnr=BEARABLE_DB)
