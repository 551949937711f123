"""The forms of `quant` as a table: a new form is one row here, and one file with what it needs.

A row says how weights are encoded, which engines may run the layers, best first, and which options
apply. Nothing else in `quant` asks for the name of a form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from .._core.channel_layout import Layout
from .._core.context import Context
from .._core.graph import Names
from .._core.outcome import PassOutcome
from .._core.saturation import KernelPairs
from .._core.targets import QuantRules
from . import codebooks
from .blocked import BLOCKED_OPSET, insert_blocked, why_not_blocked
from .dynamic import insert_dynamic, insert_float, why_not_dynamic, why_not_float
from .engine import Engine
from .fp16.convert import WhyNot, to_half
from .insert_static import insert_static, why_not_static
from .palettes import LARGEST_END, LEAST_WIDTH, MOST_BITS
from .weight_codes import (
    PACKED_BITS,
    Codes,
    Fit,
    Storage,
    codebook_codes,
    integer_codes,
    palette_codes,
    sign_codes,
    ternary_codes,
)

PER_CHANNEL_OPSET = 13
"""Opset in which DequantizeLinear takes a scale a channel."""

ANY_BITS = 0
"""Least bits of a form that has no choice of them."""

ALL_BITS = 8
"""Bits of a code: layers that keep so many have no palettes."""

SMALL_TYPES_OPSET = 21
"""Opset of 4-bit weights and 16-bit activations."""

STATIC = Engine("static", why_not_static, insert_static, needs_ranges=True)
"""Integers with calibrated ranges."""

DYNAMIC = Engine("dynamic", why_not_dynamic, insert_dynamic)
"""Integers with ranges found at run time."""

FLOAT = Engine("float", why_not_float, insert_float, integer=False)
"""Float, from weights unpacked at load."""

BLOCKED = Engine("blocked", why_not_blocked, insert_blocked, integer=False)
"""Float times weights in blocks."""

ENGINES = (STATIC, DYNAMIC, FLOAT, BLOCKED)
"""All engines in the order of insertion: ranges are read off a graph that is still float."""


@dataclass(frozen=True)
class EncodeOptions:
    """Options of the pass that encoding a weight depends on.

    `pairs`: of a layer's weights, those that may not saturate an integer kernel; None where nothing
    limits them. `storage`: of 3- and 4-bit weights.
    """

    bits: int
    planes: int
    fit: Fit
    pairs: KernelPairs | None = None
    storage: Storage = "auto"


CodeKind = Literal["steps", "palettes", "codebook"]
"""Codes that weights may have: whole steps of a scale, values of their channel, or vectors."""

Encode = Callable[[ir.TensorProtocol, Layout, EncodeOptions], Codes]


def _encode_integers(
    tensor: ir.TensorProtocol, layout: Layout, options: EncodeOptions
) -> Codes:
    return integer_codes(
        tensor,
        layout,
        options.bits,
        options.fit,
        options.pairs,
        options.storage,
    )


def _encode_palettes(
    tensor: ir.TensorProtocol, layout: Layout, options: EncodeOptions
) -> Codes:
    # so many values are all that there are
    if options.bits == ALL_BITS:
        return _encode_integers(tensor, layout, options)
    return palette_codes(tensor, layout, options.bits)


def _encode_codebook(
    tensor: ir.TensorProtocol, layout: Layout, options: EncodeOptions
) -> Codes:
    if options.bits == ALL_BITS:
        return _encode_integers(tensor, layout, options)
    return codebook_codes(tensor, layout, options.bits)


def _encode_ternary(
    tensor: ir.TensorProtocol, layout: Layout, options: EncodeOptions
) -> Codes:
    return ternary_codes(tensor, layout, options.fit)


def _encode_signs(
    tensor: ir.TensorProtocol, layout: Layout, options: EncodeOptions
) -> Codes:
    return sign_codes(
        tensor,
        layout,
        options.planes,
        options.fit,
    )


def _per_channel_opset(options: EncodeOptions) -> int:
    return PER_CHANNEL_OPSET


def _integer_opset(options: EncodeOptions) -> int:
    # 2 bits are ternary, which are looked up in a table
    has_own_type = options.bits > 2 and options.bits <= PACKED_BITS
    if has_own_type and options.storage != "table":
        return SMALL_TYPES_OPSET
    return PER_CHANNEL_OPSET


def _asked_width(options: EncodeOptions) -> int:
    return options.bits


def _every_layer(channels: int, width: int, bits: int) -> bool:
    return True


def _for_every_target(rules: QuantRules) -> str:
    return ""


@dataclass(frozen=True)
class Form:
    """One form of quantized layers.

    `engines`: those that may run it, the first that the run allows is taken. `encode`: a weight's
    codes for them (None: the engine makes its own). `opset`: the least that the stored form needs.
    `whole`: converts the whole model instead, layers or not.

    `width`: bits of one of its weights; `has_bits`: the option `bits` is that width, at least
    `least_bits`; `is_packed`: it is always less than a byte. `most_bits`: of weights that are
    packed. `codes`: steps, values of their channel, or vectors. `least_width`: weights of a channel
    below which it keeps 8 bits; `fits`: whether a layer of so many channels and weights a channel
    may have so many bits; `largest_end`: share of all weights up to which the first and the last
    layer keep 8; `small_share`: of the smallest layers, which get 2 bits where the others have one.
    `low_bit_activations`: the option `activation_bits` applies.
    `per_layer`: single layers may have it beside other forms, for the activations around them stay
    what they are.
    `activation`: type of activations in place of the target's; `why_not`: reason why a target has
    none. `is_timed`: its aim is speed, so that what measures slower goes back to float.
    """

    engines: tuple[Engine, ...] = ()
    encode: Encode | None = None
    opset: Callable[[EncodeOptions], int] = _per_channel_opset
    whole: Callable[[ir.Model, Context, Names, WhyNot], PassOutcome] | None = None
    width: Callable[[EncodeOptions], int] = _asked_width
    has_bits: bool = False
    least_bits: int = 2
    is_packed: bool = False
    most_bits: int = PACKED_BITS
    codes: CodeKind = "steps"
    least_width: int = 0
    fits: Callable[[int, int, int], bool] = _every_layer
    small_share: float = 0.0
    largest_end: float = 1.0
    low_bit_activations: bool = False
    per_layer: bool = True
    activation: Literal["uint16"] | None = None
    why_not: Callable[[QuantRules], str] = _for_every_target
    is_timed: bool = False

    def is_packed_at(self, bits: int) -> bool:
        """True if weights of so many bits take less than a byte in the file."""
        return self.is_packed or (self.has_bits and bits <= self.most_bits)

    def wrong_bits(self, bits: int) -> str:
        """The range that so many bits are outside of; empty where they are not, or no choice."""
        if self.least_bits == ANY_BITS:
            return ""
        most = ALL_BITS if self.codes == "steps" else self.most_bits
        if self.least_bits <= bits <= most:
            return ""
        return f"{self.least_bits} to {most} bits, not {bits}"


FORMS: dict[str, Form] = {
    "int8": Form(
        engines=(STATIC, DYNAMIC),
        encode=_encode_integers,
        opset=_integer_opset,
        has_bits=True,
        low_bit_activations=True,
        is_timed=True,
    ),
    "dynamic": Form(
        engines=(DYNAMIC,),
        encode=_encode_integers,
        opset=_integer_opset,
        has_bits=True,
        is_timed=True,
    ),
    "int16": Form(
        engines=(STATIC,),
        encode=_encode_integers,
        opset=lambda options: SMALL_TYPES_OPSET,
        has_bits=True,
        per_layer=False,
        activation="uint16",
        why_not=lambda rules: rules.why_not or rules.why_not_int16,
        is_timed=True,
    ),
    "blocked": Form(
        engines=(BLOCKED,),
        opset=lambda options: BLOCKED_OPSET,
    ),
    "fp16": Form(
        whole=to_half,
        least_bits=ANY_BITS,
        per_layer=False,
    ),
    "palette": Form(
        engines=(STATIC, DYNAMIC, FLOAT),
        encode=_encode_palettes,
        has_bits=True,
        least_bits=1,
        most_bits=MOST_BITS,
        codes="palettes",
        least_width=LEAST_WIDTH,
        largest_end=LARGEST_END,
        low_bit_activations=True,
    ),
    "codebook": Form(
        engines=(STATIC, DYNAMIC, FLOAT),
        encode=_encode_codebook,
        has_bits=True,
        least_bits=1,
        most_bits=codebooks.MOST_BITS,
        codes="codebook",
        least_width=LEAST_WIDTH,
        fits=codebooks.fits,
        largest_end=LARGEST_END,
        small_share=codebooks.SMALL_SHARE,
        low_bit_activations=True,
    ),
    "ternary": Form(
        engines=(STATIC, FLOAT),
        encode=_encode_ternary,
        least_bits=ANY_BITS,
        width=lambda options: 2,
        is_packed=True,
        low_bit_activations=True,
    ),
    "binary": Form(
        engines=(STATIC, FLOAT),
        encode=_encode_signs,
        least_bits=ANY_BITS,
        width=lambda options: options.planes,
        is_packed=True,
        low_bit_activations=True,
    ),
}


def engine_of(form: Form, kernel: str, calibrated: bool, rules: QuantRules) -> Engine:
    """The engine that runs a layer of a form.

    `kernel`: the pass's option. `calibrated`: ranges of the values around the layer are at hand.
    """
    allowed = form.engines
    if len(allowed) > 1 and kernel != "auto":
        # whoever asks for a kind of kernel gets it for every form that has a choice
        allowed = (FLOAT,) if kernel == "float" else (STATIC, DYNAMIC)
    for engine in allowed:
        if not engine.needs_ranges or (calibrated and not rules.why_not):
            return engine
    return allowed[-1]


def is_integer_only(form: Form, kernel: str) -> bool:
    """True if no engine of the form leaves layers float."""
    return kernel != "float" and all(engine.integer for engine in form.engines)
