"""The menu of a search: what each form of each weight loses at the outputs, and its bytes.

Every form is made of the whole model once, by the passes themselves; then one layer at a time takes
its new weights and its new input in the float model, and what that loses at the outputs is measured
or estimated. Zeros are measured as `prune` does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ...passes._core.pipeline import parse
from ...passes._core.stored import stored_constants
from ...passes.prune import LossBySparsity, losses_by_sparsity
from .._run.loss_probes import Twins
from .choices import FLOAT, FormChoice, Menu, without_dominated
from .lab import Lab, Made
from .measure import float_bytes
from .recipe import DEFAULT_FORM
from .sensitivity import Keep, Method, not_kept, sensitivities
from .swaps import Swap, comparable, swaps

FLOAT_BYTES = 4

SPARSITIES = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
"""Shares of zeros that are on the menu.

Above 0.7 losses that were measured at a half say little: a layer of ResNet-20 that was to cost
0.003 at 0.9 cost 0.04.
"""

LEAST_MASKED = 3
"""Bits from which codes are stored under a mask.

ResNet-20: the loss of 2 bits grew by a third where half of the weights were zero, that of 3 and 4
bits not at all.
"""

GAP_BITS = 4
"""Bits of the distance from one nonzero to the next, as `pack` stores short ones."""

LEAST_SAVED = 0.03
"""Share of the bytes of 8 bits that a form of fewer bits has to save to be on the menu."""


@dataclass(frozen=True)
class FormKind:
    """A form, and pipeline text of the pass that makes all layers of it.

    `bits`: of a weight's code, which zeros are spared. `like`: a form whose figures tell those of
    this one, which is then not made.
    """

    form: str
    text: str
    bits: int
    like: str | None = None


def _palette(bits: int, like: str | None = None) -> FormKind:
    text = f"quant(palette, bits={bits}, ends=same, measure=false)"
    return FormKind(f"palette:{bits}", text, bits, like)


INTEGER_FORMS = (
    FormKind(DEFAULT_FORM, "quant(measure=false)", 8),
    _palette(6, like="palette:4"),
    _palette(5, like="palette:4"),
    _palette(4),
    _palette(3),
    _palette(2),
)
"""Forms that integer kernels of a CPU run, from the most bits to the fewest."""

MADE_FORMS = tuple(kind for kind in INTEGER_FORMS if kind.like is None)
"""Those that are made of a model to be looked at."""


@dataclass(frozen=True)
class FormFigures:
    """Losses at the outputs and bytes in the file by weight, all weights being of one form."""

    losses: Mapping[str, float]
    bytes: Mapping[str, float]


@dataclass(frozen=True)
class FoundMenu:
    """Choices of weights, and how their losses were found, as `Sensitivities` tells it."""

    menu: Menu
    sensitivity: Mapping[str, Any]


def menu_of(lab: Lab, method: Method = "auto", keep: Keep = not_kept) -> FoundMenu:
    """Choices of every weight that has integer forms.

    `method`, `keep`: as `sensitivities` takes them.
    """
    forms: dict[str, Made] = {}
    with lab.run.reporter("make the forms of layers", len(MADE_FORMS)) as advance:
        for kind in MADE_FORMS:
            forms[kind.form] = lab.made(kind.text)
            advance(1)
    found = sensitivities(lab, forms, method, keep)
    figures: dict[str, FormFigures] = {}
    for form, made in forms.items():
        losses = {
            weight: loss
            for (weight, other), loss in found.losses.items()
            if other == form
        }
        figures[form] = FormFigures(losses, _bytes_in_file(lab, made))
    curves = losses_by_sparsity(lab.model, lab.context)
    plain = figures[DEFAULT_FORM]
    floats = float_bytes(lab.model)
    menu = {}
    for name in plain.losses:
        if name in floats and name in plain.bytes:
            curve = curves.get(name)
            menu[name] = _choices(name, floats[name], figures, curve)
    return FoundMenu(menu, found.as_dict())


def _choices(
    name: str,
    float_bytes: float,
    figures: Mapping[str, FormFigures],
    curve: LossBySparsity | None,
) -> list[FormChoice]:
    """Choices of one weight; `curve`: losses of its zeros, None where it is not to have any."""
    plain = figures[DEFAULT_FORM]
    elements = float_bytes / FLOAT_BYTES
    dense = [
        FormChoice(FLOAT, 0.0, 0.0, float_bytes),
        FormChoice(DEFAULT_FORM, 0.0, plain.losses[name], plain.bytes[name]),
    ]
    for kind in INTEGER_FORMS[1:]:
        choice = _of_few_bits(kind, name, figures, elements)
        if choice is not None:
            dense.append(choice)
    every = list(dense)
    if curve is not None:
        for choice in dense:
            every += _sparse(choice, curve, elements)
    return without_dominated(every)


def _bytes_in_file(lab: Lab, made: Made) -> dict[str, float]:
    """Bytes of each weight in the file of a result, which is packed for it."""
    changed = swaps(comparable(made.reference, made.result), Twins(made.result))
    parse("pack").passes[0].run(made.result, lab.context)
    return _bytes_by_weight(made.result, changed)


def _bytes_by_weight(packed: ir.Model, found: Sequence[Swap]) -> dict[str, float]:
    """Bytes that a file holds for each weight, as it is encoded there."""
    stored = {each.value: each.nbytes for each in stored_constants(packed)}
    makers: dict[str | None, ir.Node] = {}
    for node in packed.graph:
        for value in node.outputs:
            makers[value.name] = node
    sizes: dict[str, float] = {}
    for swap in found:
        total = 0.0
        for output, index in swap.readers:
            reader = makers.get(output)
            if reader is None or index >= len(reader.inputs):
                continue
            weight = reader.inputs[index]
            # what several layers share is counted once
            if weight is not None:
                total += stored.pop(weight, 0)
        if total:
            sizes[swap.weight] = total
    return sizes


def _of_few_bits(
    kind: FormKind, name: str, figures: Mapping[str, FormFigures], elements: float
) -> FormChoice | None:
    """The choice of a form of few bits; None where it saves nothing of a weight's bytes."""
    plain = figures[DEFAULT_FORM]
    source = figures[kind.like or kind.form]
    if name not in source.losses or name not in source.bytes:
        return None
    loss = source.losses[name]
    size = source.bytes[name]
    if kind.like is not None:
        bits = bits_of(kind.like)
        more = kind.bits - bits
        # each bit more halves the distance of neighbouring values, and doubles their number
        beyond = max(loss - plain.losses[name], 0.0)
        loss = plain.losses[name] + beyond / 4**more
        palette = max(size - elements * bits / 8, 0.0)
        size = elements * kind.bits / 8 + palette * 2**more
    if size > (1 - LEAST_SAVED) * plain.bytes[name]:
        return None
    return FormChoice(kind.form, 0.0, loss, size)


def _sparse(
    dense: FormChoice, curve: LossBySparsity, elements: float
) -> list[FormChoice]:
    """The same form with zeros, stored as `pack` does: places of the nonzeros, and their codes."""
    bits = 32.0 if dense.form == FLOAT else float(bits_of(dense.form))
    # places and few values have little to save from each other, and lose more together
    if bits < LEAST_MASKED:
        return []
    beside = dense.bytes - elements * bits / 8
    if bits < 8:
        # zero is no longer one of the values
        bits = math.log2(2**bits - 1)
    found = []
    for sparsity in SPARSITIES[1:]:
        nonzeros = (1 - sparsity) * elements
        mask = elements / 8
        gaps = nonzeros * GAP_BITS / 8
        size = min(mask, gaps) + nonzeros * bits / 8 + beside
        # what stays is rounded with about the error that all had: few weights near zero round well
        loss = dense.loss + curve(sparsity)
        found.append(FormChoice(dense.form, sparsity, loss, size))
    return found


def bits_of(form: str) -> int:
    """Bits of a form's codes, as of `palette:4`."""
    return int(form.rpartition(":")[2])
