"""The menu of a search: what each form of each weight loses at the outputs, and its bytes.

Every form is made of the whole model once, by the passes themselves; then one layer at a time takes
its new weights and its new input in the float model, and the outputs of all these models are
compared with the float model's in one run. Zeros are measured as `prune` does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ...passes._core.output_drift import in_batches, output_drifts
from ...passes._core.pipeline import parse
from ...passes._core.stored import stored_constants
from ...passes._core.tables import tables_of
from ...passes._core.weights import weights_of
from ...passes.prune import LossBySparsity, losses_by_sparsity
from .._run.loss_probes import Twins
from .choices import FLOAT, FormChoice, Menu, without_dominated
from .lab import Lab, LossyStep
from .recipe import DEFAULT_FORM
from .swaps import Swap, comparable, swapped, swaps

SAMPLES = 256
"""Samples on which losses are measured, at most. Chosen by hand."""

MOST_RUNS = 8192
"""Samples times weights at most: models of many weights take fewer samples. Chosen by hand."""

MOST_BYTES = 150e9
"""Bytes of weights that all these runs read, at most: larger models take fewer samples.

Chosen by hand: 160 samples of EfficientNet-Lite0, 46 of MiniLM.
"""

NODE_BYTES = 2048
"""Memory of a node in a variant. Chosen by hand; not measured."""

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

AS_GIVEN = "given"
"""Form of a weight as a pipeline that is to be repaired gives it."""

MILDER = "milder"
"""Form of a weight of which a pass takes less than that pipeline says."""

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


@dataclass(frozen=True)
class FormFigures:
    """Losses at the outputs and bytes in the file by weight, all weights being of one form."""

    losses: Mapping[str, float]
    bytes: Mapping[str, float]


def menu_of(lab: Lab) -> Menu:
    """Choices of every weight that has integer forms."""
    figures: dict[str, FormFigures] = {}
    made = [kind for kind in INTEGER_FORMS if kind.like is None]
    with lab.run.reporter("what bits cost, layer by layer", len(made)) as advance:
        for kind in made:
            figures[kind.form] = figures_of(lab, kind.text)
            advance(1)
    curves = losses_by_sparsity(lab.model, lab.context)
    plain = figures[DEFAULT_FORM]
    floats = _float_bytes(lab.model)
    menu = {}
    for name in plain.losses:
        if name in floats and name in plain.bytes:
            curve = curves.get(name)
            menu[name] = _choices(name, floats[name], figures, curve)
    return menu


def menu_to_repair(lab: Lab, given: str, milder: str | None) -> Menu:
    """For every weight that pipeline text changes: its form there, a milder one, and float."""
    floats = _float_bytes(lab.model)
    texts = {AS_GIVEN: given} if milder is None else {AS_GIVEN: given, MILDER: milder}
    figures = {form: figures_of(lab, text) for form, text in texts.items()}
    menu = {}
    for name in figures[AS_GIVEN].losses:
        if name not in floats:
            continue
        choices = [FormChoice(FLOAT, 0.0, 0.0, floats[name])]
        for form, found in figures.items():
            if name in found.losses:
                # of what several layers share, all is stored for the first of them
                size = found.bytes.get(name, 0.0)
                choices.append(FormChoice(form, 0.0, found.losses[name], size))
        if len(choices) == 3 and choices[2].bytes <= choices[1].bytes:
            # an end, whose bits a pass spares by itself as long as others have fewer
            del choices[1]
        menu[name] = choices
    return menu


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


def figures_of(lab: Lab, text: str) -> FormFigures:
    """Losses and bytes where all layers are of the form that pipeline text gives.

    What a weight loses by several passes adds up.
    """
    losses: dict[str, float] = {}
    found: dict[str, Swap] = {}
    steps = lab.steps(text)
    for step in steps:
        for swap, loss in _losses_of(lab, step):
            losses[swap.weight] = losses.get(swap.weight, 0.0) + loss
            found[swap.weight] = swap
    packed = steps[-1].result
    parse("pack").passes[0].run(packed, lab.context)
    sizes = _bytes_by_weight(packed, list(found.values()))
    return FormFigures(losses, sizes)


def _losses_of(lab: Lab, step: LossyStep) -> list[tuple[Swap, float]]:
    """What each weight that a pass changes loses by it at the outputs."""
    whole = comparable(step.reference, step.result)
    twins = Twins(step.result)
    found = swaps(whole, twins)
    sizes = _float_bytes(whole)
    samples = _samples(len(found), sum(sizes.values()))
    nodes = len(whole.graph)

    def bytes_of(swap: Swap) -> int:
        return int(sizes.get(swap.weight, 0)) + nodes * NODE_BYTES

    losses: list[float] = []
    for batch in in_batches(found, bytes_of):
        variants = [swapped(whole, twins, swap) for swap in batch]
        losses += output_drifts(whole, variants, lab.context, samples)
    return list(zip(found, losses, strict=True))


def _samples(weights: int, model_bytes: float) -> int:
    """Samples on which losses of so many weights of a model are measured."""
    runs = max(weights, 1)
    by_runs = MOST_RUNS // runs
    by_bytes = int(MOST_BYTES / (runs * max(model_bytes, 1.0)))
    return max(min(SAMPLES, by_runs, by_bytes), 1)


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
        for output, ids in swap.rows:
            for value in _makers_of(makers.get(output), ids):
                total += stored.pop(value, 0)
        if total:
            sizes[swap.weight] = total
    return sizes


def _makers_of(node: ir.Node | None, known: str) -> list[ir.Value]:
    """Values from which a node's output is computed, directly or not, but the one named `known`."""
    found: dict[ir.Value, None] = {}
    pending = [] if node is None else [node]
    while pending:
        for value in pending.pop().inputs:
            if value is None or value in found or value.name == known:
                continue
            found[value] = None
            producer = value.producer()
            if producer is not None:
                pending.append(producer)
    return list(found)


def _float_bytes(model: ir.Model) -> dict[str, float]:
    found, _ = weights_of(model)
    every = [*found, *tables_of(model).values()]
    return {weight.name: float(weight.tensor.nbytes) for weight in every}


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
