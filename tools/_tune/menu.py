"""The menu of a search: what each form of each weight loses at the outputs, and its bytes.

Every form is made of the whole model once, by the passes themselves. Then one weight at a time
takes its new form in the float model, and what that loses at the outputs is measured or estimated.

The same is done behind passes that prune. What these lose is measured of the whole model: they fit
each layer to what the layers before it lost, so that single layers tell nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from ...passes._core.contract import Pass
from ...passes._core.output_drift import drift_between
from ...passes._core.pipeline import Pipeline, parse
from ...passes._core.stored import stored_constants
from ...passes.quant import Quant
from .._run.loss_probes import Twins
from .choices import FLOAT, FormChoice, Menu, without_dominated
from .goal import Goal
from .lab import Lab, Made
from .measure import float_bytes, samples_within
from .recipe import DEFAULT_FORM
from .sensitivity import Keep, Method, not_kept, sensitivities
from .swaps import Swap, comparable, swaps

AS_GIVEN = "given"
"""Form of a weight as a pipeline that is to be repaired gives it."""

MILDER = "milder"
"""Form of a weight of which a pass takes less than that pipeline says."""

LEAST_SAVED = 0.03
"""Share of the bytes of 8 bits that a form of fewer bits has to save to be on the menu."""


@dataclass(frozen=True)
class FormKind:
    """A form, and pipeline text of the pass that makes all layers of it.

    `bits`: of a weight's code. `like`: a form whose figures tell those of this one, which is then
    not made. `keeps_zeros`: pruned weights stay pruned.
    """

    form: str
    text: str
    bits: int
    like: str | None = None
    keeps_zeros: bool = True


def _palette(bits: int, like: str | None = None) -> FormKind:
    text = f"quant(palette, bits={bits}, ends=same, measure=false)"
    return FormKind(f"palette:{bits}", text, bits, like)


def _codebook(bits: int) -> FormKind:
    form = f"codebook:{bits}"
    # by name: of one bit the smallest layers would have two
    text = f'quant(codebook, bits={bits}, layers=["*={form}"], measure=false)'
    return FormKind(form, text, bits, keeps_zeros=False)


INTEGER_FORMS = (
    FormKind(DEFAULT_FORM, "quant(measure=false)", 8),
    _palette(6, like="palette:4"),
    _palette(5, like="palette:4"),
    _palette(4),
    _palette(3),
    _palette(2),
    _codebook(2),
)
"""Forms that integer kernels of a CPU run, from the most bits to the fewest."""


def _made(kinds: Sequence[FormKind]) -> tuple[FormKind, ...]:
    """Those that are made of a model to be looked at."""
    return tuple(kind for kind in kinds if kind.like is None)


MADE_FORMS = _made(INTEGER_FORMS)
"""Forms that are made of every model."""


@dataclass(frozen=True)
class MenuRange:
    """Ways to make a model smaller that a search looks at.

    `before`: passes that run before weights take their forms, in the order in which they are looked
    at. `forms`: of the weights.
    """

    before: tuple[str, ...]
    forms: tuple[FormKind, ...]

    def forms_behind(self, before: str) -> tuple[FormKind, ...]:
        """Forms that keep what a pass before them took."""
        if not before.startswith("prune") or before.startswith("prune-channels"):
            return self.forms
        return tuple(kind for kind in self.forms if kind.keeps_zeros)


WITHIN_ACCURACY = MenuRange(
    (
        "",
        "prune(min_sqnr=18)",
        "prune",
        "prune(min_sqnr=22)",
        "prune-channels",
    ),
    INTEGER_FORMS,
)
"""Range of searches whose result may lose only so much.

`prune` takes as many zeros as the outputs bear, and shares them out among the layers by what they
lose. ResNet-20 has 51, 60 and 40 % zeros then.
"""

WITHIN_BYTES = MenuRange(
    (
        "",
        "prune(min_sqnr=14)",
        "prune(min_sqnr=18)",
        "prune(min_sqnr=11)",
    ),
    (*INTEGER_FORMS, _palette(1), _codebook(1)),
)
"""Range of searches of which bytes are limited and accuracy is not: harsher pruning, fewer bits.

Nothing comes first: without masks, whose bits are stored, fewest bytes can be reached.
"""


def range_for(goal: Goal) -> MenuRange:
    """Return what a search for a goal looks at."""
    return WITHIN_ACCURACY if goal.limits_accuracy else WITHIN_BYTES


@dataclass(frozen=True)
class FormFigures:
    """Losses at the outputs and bytes in the file by weight, all weights being of one form."""

    losses: Mapping[str, float]
    bytes: Mapping[str, float]


@dataclass(frozen=True)
class FoundMenu:
    """Choices of weights behind other passes, and how their losses were found.

    `before`: text of these passes, which may be empty; `loss`: what they lose themselves, as a
    share of the outputs' mean square. `sensitivity`: as `Sensitivities` tells it.
    """

    before: str
    loss: float
    menu: Menu
    sensitivity: Mapping[str, Any]


def menu_of(
    lab: Lab,
    before: str = "",
    method: Method = "auto",
    keep: Keep = not_kept,
    kinds: Sequence[FormKind] = INTEGER_FORMS,
) -> FoundMenu:
    """Choices of every weight that has integer forms; empty where `before` changes nothing.

    `method`, `keep`: as `sensitivities` takes them. `kinds`: of forms, 8 bits first. Errors: those
    of the passes.
    """
    loss = 0.0
    if before:
        behind = lab.behind(before)
        samples = samples_within(2, sum(float_bytes(lab.model).values()))
        loss = drift_between(
            lab.model,
            behind.model,
            lab.context,
            samples,
        )
        # NaN, too
        if not loss > 0:
            return FoundMenu(before, 0.0, {}, {})
        lab = behind
    forms: dict[str, Made] = {}
    made = _made(kinds)
    with lab.run.reporter("make the forms of layers", len(made)) as advance:
        for kind in made:
            forms[kind.form] = lab.made(kind.text)
            advance(1)
    found = sensitivities(lab, forms, method, _kept_behind(before, keep))
    figures = _figures(lab, forms, found.losses)
    plain = figures[DEFAULT_FORM]
    floats = float_bytes(lab.model)
    menu = {}
    for name in plain.losses:
        if name in floats and name in plain.bytes:
            menu[name] = _choices(name, floats[name], figures, kinds)
    return FoundMenu(before, loss, menu, found.as_dict())


def _kept_behind(before: str, keep: Keep) -> Keep:
    return lambda name, make: keep(f"{before}{name}", make)


def menu_to_repair(
    lab: Lab, given: Pipeline, method: Method = "auto", keep: Keep = not_kept
) -> Menu:
    """For every weight that a pipeline changes: its form there, a milder one, and float.

    What a weight loses by several passes adds up.
    """
    given = Pipeline(tuple(_untimed(each) for each in given.passes))
    milder = Pipeline(tuple(_untimed(each.milder() or each) for each in given.passes))
    pipelines = {AS_GIVEN: given}
    if milder != given:
        pipelines[MILDER] = milder
    steps = {form: lab.steps(str(each)) for form, each in pipelines.items()}
    losses: dict[str, dict[str, float]] = {form: {} for form in steps}
    for made in zip(*steps.values(), strict=True):
        forms = dict(zip(steps, made, strict=True))
        found = sensitivities(
            lab,
            forms,
            method,
            lambda name, make: keep(f"{given}{name}", make),
        )
        for (weight, form), loss in found.losses.items():
            losses[form][weight] = losses[form].get(weight, 0.0) + loss
    sizes = {form: _bytes_in_file(lab, made[-1]) for form, made in steps.items()}
    floats = float_bytes(lab.model)
    menu = {}
    for name in losses[AS_GIVEN]:
        if name in floats:
            menu[name] = _choices_to_repair(
                name,
                floats[name],
                losses,
                sizes,
            )
    return menu


def _untimed(pass_: Pass) -> Pass:
    """A pass that leaves no layer float for its time, which differs from run to run."""
    return replace(pass_, measure=False) if isinstance(pass_, Quant) else pass_


def _choices_to_repair(
    name: str,
    float_size: float,
    losses: Mapping[str, Mapping[str, float]],
    sizes: Mapping[str, Mapping[str, float]],
) -> list[FormChoice]:
    choices = [FormChoice(FLOAT, 0.0, float_size)]
    for form, found in losses.items():
        if name in found:
            # of what several layers share, all is stored for the first of them
            size = sizes[form].get(name, 0.0)
            choices.append(FormChoice(form, found[name], size))
    if len(choices) == 3 and choices[2].cost <= choices[1].cost:
        # an end, whose bits a pass spares by itself as long as others have fewer
        del choices[1]
    return choices


def _figures(
    lab: Lab, forms: Mapping[str, Made], losses: Mapping[tuple[str, str], float]
) -> dict[str, FormFigures]:
    """Figures of forms, from the losses of weights in them."""
    figures: dict[str, FormFigures] = {}
    for form, made in forms.items():
        own = {
            weight: loss for (weight, other), loss in losses.items() if other == form
        }
        figures[form] = FormFigures(own, _bytes_in_file(lab, made))
    return figures


def _choices(
    name: str,
    float_size: float,
    figures: Mapping[str, FormFigures],
    kinds: Sequence[FormKind],
) -> list[FormChoice]:
    """Choices of one weight."""
    plain = figures[DEFAULT_FORM]
    every = [
        FormChoice(FLOAT, 0.0, float_size),
        FormChoice(DEFAULT_FORM, plain.losses[name], plain.bytes[name]),
    ]
    for kind in kinds[1:]:
        choice = _of_few_bits(kind, name, figures)
        if choice is not None:
            every.append(choice)
    return without_dominated(every)


def _of_few_bits(
    kind: FormKind, name: str, figures: Mapping[str, FormFigures]
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
        # each bit more halves the distance of neighbouring values
        beyond = max(loss - plain.losses[name], 0.0)
        loss = plain.losses[name] + beyond / 4**more
        # and of the way from these bits to eight it is so far
        size += (plain.bytes[name] - size) * more / (8 - bits)
    if size > (1 - LEAST_SAVED) * plain.bytes[name]:
        return None
    return FormChoice(kind.form, loss, size)


def bits_of(form: str) -> int:
    """Bits of a form's codes, as of `palette:4`."""
    return int(form.rpartition(":")[2])


def _bytes_in_file(lab: Lab, made: Made) -> dict[str, float]:
    """Bytes of each weight in the file of a result, which is packed for it, as encoded there."""
    whole = comparable(made.reference, made.result)
    found = swaps(whole, Twins(made.result))
    packed = made.result
    parse("pack").passes[0].run(packed, lab.context)
    twins = Twins(packed)
    nodes = list(whole.graph)
    stored = {each.value: each.nbytes for each in stored_constants(packed)}
    sizes: dict[str, float] = {}
    for swap in found:
        total = 0
        for value in _stored_for(swap, nodes, twins):
            # what several layers share is counted once
            total += stored.pop(value, 0)
        if total:
            sizes[swap.weight] = float(total)
    return sizes


def _stored_for(
    swap: Swap, nodes: Sequence[ir.Node], twins: Twins
) -> Iterator[ir.Value]:
    """Values of a packed model that its layers read a weight from, or its tables their rows."""
    for place, index in swap.layers:
        reader = twins.layer(nodes[place])
        if reader is None or index >= len(reader.inputs):
            continue
        value = reader.inputs[index]
        if value is not None:
            yield value
    for place in swap.tables:
        node = nodes[place]
        rows = node.outputs[0]
        ids = node.inputs[1]
        assert ids is not None
        twin = twins.by_output.get(rows.name)
        yield from _makers_of(twin, ids.name)


def _makers_of(node: ir.Node | None, known: str | None) -> list[ir.Value]:
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
