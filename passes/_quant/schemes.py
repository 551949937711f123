"""The forms of `quant` as a table: how each writes weights, and which kernels may run them, best
first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from .._base import Context, PassOutcome
from .._core.channel_layout import Layout
from .._core.graph import Names
from .._core.saturation import KernelPairs
from .._core.targets import QuantRules
from .blocked import BLOCKED_OPSET
from .fp16.convert import to_half
from .layer_config import FLOAT, Choice
from .weight_codes import (
    PACKED_BITS,
    Codes,
    Fit,
    Storage,
    integer_codes,
    sign_codes,
    ternary_codes,
)

Engine = Literal["static", "dynamic", "float", "blocked"]
"""Int8 with calibrated ranges; int8 with ranges found at run time; float, from weights unpacked at
load; float times weights in blocks.
"""

PER_CHANNEL_OPSET = 13
SMALL_TYPES_OPSET = 21
"""4-bit weights and 16-bit activations."""


@dataclass(frozen=True)
class Settings:
    """The options of the pass that forms share.

    `pairs`: of a layer's weights, those that may not saturate an integer kernel; None where nothing
    limits them. `storage`: of 3- and 4-bit weights.
    """

    bits: int
    planes: int
    fit: Fit
    pairs: KernelPairs | None = None
    storage: Storage = "auto"


@dataclass(frozen=True)
class Form:
    """`engines` may run it, the first that the run allows is taken; `encode` writes a weight for
    them.

    `opset`: what its weights need. `whole`: converts the whole model instead, layers or not.
    """

    engines: tuple[Engine, ...] = ()
    encode: Callable[[ir.TensorProtocol, Layout, Settings], Codes] | None = None
    opset: Callable[[Settings], int] = lambda settings: PER_CHANNEL_OPSET
    whole: Callable[[ir.Model, Context, Names], PassOutcome] | None = None


def _integers(tensor: ir.TensorProtocol, layout: Layout, settings: Settings) -> Codes:
    return integer_codes(
        tensor, layout, settings.bits, settings.fit, settings.pairs, settings.storage
    )


def _integer_opset(settings: Settings) -> int:
    typed = 2 < settings.bits <= PACKED_BITS and settings.storage != "table"
    return SMALL_TYPES_OPSET if typed else PER_CHANNEL_OPSET


FORMS: dict[str, Form] = {
    "int8": Form(("static", "dynamic"), _integers, _integer_opset),
    "dynamic": Form(("dynamic",), _integers, _integer_opset),
    "int16": Form(("static",), _integers, lambda settings: SMALL_TYPES_OPSET),
    "blocked": Form(("blocked",), opset=lambda settings: BLOCKED_OPSET),
    "fp16": Form(whole=to_half),
    "ternary": Form(
        ("static", "float"), lambda t, layout, s: ternary_codes(t, layout, s.fit)
    ),
    "binary": Form(
        ("static", "float"), lambda t, layout, s: sign_codes(t, layout, s.planes, s.fit)
    ),
}

ONE_LAYER = (FLOAT, *(name for name in FORMS if name not in ("int16", "fp16")))
"""Forms that a single layer may have beside others; int16 and fp16 change the activations of the
whole graph.
"""


def engine_of(
    choice: Choice, kernel: str, calibrated: bool, rules: QuantRules
) -> Engine:
    """Which kernels run a layer. `calibrated`: ranges of the values around it are at hand."""
    allowed = FORMS[choice.form].engines
    if len(allowed) > 1 and kernel != "auto":
        allowed = ("float",) if kernel == "float" else ("static", "dynamic")
    possible = [
        engine
        for engine in allowed
        if engine != "static" or (calibrated and not rules.why_not)
    ]
    return possible[0] if possible else allowed[-1]
