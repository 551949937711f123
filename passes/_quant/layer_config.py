"""Form of each layer: the pass's own, 8 bits at the ends of a low-bit network, or by name."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ... import UsageError
from .._core.layer_entries import read_entries
from .._core.linear import LinearLayer
from .._core.nearest import did_you_mean
from .._core.patterns import layer_names, matches
from .._core.tables import is_tied
from .layers import QuantLayer
from .schemes import ALL_BITS, FORMS, CodeKind
from .weight_codes import PACKED_BITS

LEAVE_FLOAT = "float"
"""Word of an override for a layer that is not quantized."""

END_FORM = "int8"
"""Form of the first and last layer beside layers of a form that has no 8 bits."""

OPTION = "quant.layers"


@dataclass(frozen=True)
class Choice:
    """The form of one layer and, where it has a choice of them, the bits of its weights and of what
    it reads.

    `named`: somebody named this very layer, so it is not for the rules to say that it gains
    nothing. `reads_floats`: what it reads does not survive 8 bits, so its weights alone take the
    form.
    """

    form: str
    bits: int
    named: bool = False
    activation_bits: int = 8
    reads_floats: bool = False

    @property
    def is_packed(self) -> bool:
        """True if the layer's weights take less than a byte in the file."""
        return FORMS[self.form].is_packed_at(self.bits)

    @property
    def codes(self) -> CodeKind:
        """Kind of codes that its weights are."""
        return FORMS[self.form].codes if self.is_packed else "steps"

    def suits(self, layer: LinearLayer) -> bool:
        """False for so few bits that the form cannot give the layer."""
        fits = FORMS[self.form].fits
        return not self.is_packed or fits(layer.channels, layer.width, self.bits)


@dataclass(frozen=True)
class Override:
    """One entry of the option `layers`."""

    pattern: str
    choice: Choice


def read_overrides(texts: tuple[str, ...], default_bits: int) -> tuple[Override, ...]:
    """Entries `PATTERN=FORM[:bits[:activation bits]]`, and `@file.toml` for a file's table
    `[layers]` of the same form.

    Errors: UsageError for an entry that cannot be read, an unknown form or bits that it has not.
    """
    entries = read_entries(OPTION, texts, "FORM", LEAVE_FLOAT)
    return tuple(
        Override(pattern, _choice(form, default_bits)) for pattern, form in entries
    )


def _choice(text: str, default_bits: int) -> Choice:
    """The choice that the right side of an entry names."""
    form, *widths = text.split(":")
    single = [LEAVE_FLOAT, *(name for name, row in FORMS.items() if row.per_layer)]
    if form not in single:
        raise UsageError(
            OPTION,
            f"'{form}' is no form of a single layer",
            did_you_mean(form, sorted(single)),
        )
    wrong = next((width for width in widths if not _is_width(width)), None)
    if wrong is not None or len(widths) > 2 or widths[1:] == ["1"]:
        raise UsageError(
            OPTION,
            f"'{wrong or text}' in '{text}' is no number of bits",
            "give 2 to 8, for example int8:4, or int8:4:4 for what the layer reads as well",
        )
    bits = int(widths[0]) if widths else default_bits
    if not widths and form in FORMS and FORMS[form].wrong_bits(bits):
        bits = ALL_BITS
    problem = FORMS[form].wrong_bits(bits) if form in FORMS else ""
    if problem:
        raise UsageError(
            OPTION, f"'{text}': form {form} has {problem}", fix_of_bits(form, bits)
        )
    activation_bits = int(widths[1]) if len(widths) > 1 else 8
    return Choice(
        form,
        bits,
        named=True,
        activation_bits=activation_bits,
    )


def fix_of_bits(form: str, bits: int) -> str:
    """Remedy for bits that a form has not."""
    if bits == 1:
        return "write quant(binary), quant(palette, bits=1) or quant(codebook, bits=1)"
    usual = min(FORMS[form].most_bits, PACKED_BITS)
    return f"add bits={usual}, for example, or take form int8"


def _is_width(text: str) -> bool:
    return text.isdecimal() and int(text) in range(1, 9)


def choices(
    layers: list[QuantLayer],
    default: Choice,
    ends: str,
    overrides: tuple[Override, ...],
) -> dict[QuantLayer, Choice]:
    """Each layer's choice.

    The first override that matches wins; then 8 bit for the ends; then the default.
    """
    found = dict.fromkeys(layers, default)
    if ends == "8" and _is_low(default) and layers:
        end_choice = _end_choice(default)
        for layer in _small_ends(layers, default):
            found[layer] = end_choice
    if ends == "8" and not FORMS[default.form].has_bits:
        # the table keeps 8 bits, and one stored form serves both
        for layer in layers:
            if is_tied(layer.weight) and found[layer].form == "blocked":
                found[layer] = Choice("blocked", 8)
    if default.bits == 1:
        usual = [layer for layer in layers if found[layer] == default]
        for layer in _smallest(usual, FORMS[default.form].small_share):
            found[layer] = Choice(default.form, 2)
    for layer in layers:
        form = found[layer].form
        if layer.width < FORMS[form].least_width:
            found[layer] = Choice(form, 8)
    # last, since a named layer outranks the ends
    for layer in layers:
        choice = _named_choice(layer, overrides) or found[layer]
        found[layer] = choice
        if choice.form != LEAVE_FLOAT and not choice.suits(layer):
            found[layer] = replace(choice, bits=8)
    return found


def _named_choice(layer: QuantLayer, overrides: tuple[Override, ...]) -> Choice | None:
    """The choice of the first override that names a layer."""
    names = layer_names(layer.node)
    for override in overrides:
        if matches(names, [override.pattern]):
            return override.choice
    return None


def _smallest(layers: list[QuantLayer], share: float) -> list[QuantLayer]:
    """The smallest layers, which have this share of all weights together."""
    total = sum(layer.tensor.size for layer in layers)
    small = []
    held = 0
    for layer in sorted(layers, key=lambda layer: layer.tensor.size):
        held += layer.tensor.size
        if held > share * total:
            break
        small.append(layer)
    return small


def _end_choice(default: Choice) -> Choice:
    """8 bits, in the form of the other layers where it has them."""
    row = FORMS[default.form]
    if row.has_bits:
        return Choice(default.form, 8)
    return Choice(END_FORM, 8)


def _small_ends(layers: list[QuantLayer], default: Choice) -> list[QuantLayer]:
    """Layers at the ends, and those that share a weight with one, unless they are large."""
    # where the first or last stays float, as it has no integer kernel, the next one is an end
    inner = [layer for layer in layers if not layer.no_integers] or layers
    last = [layers[0], layers[-1], inner[0], inner[-1]]
    # by weight: a layer elsewhere that shares it has to store it alike
    weights = {layer.weight for layer in last}
    row = FORMS[default.form]
    total = sum(layer.tensor.size for layer in layers)
    most = row.largest_end * total
    ends = []
    for layer in layers:
        is_small = layer.tensor.size <= most
        if is_small and layer.weight in weights:
            ends.append(layer)
    return ends


def _is_low(choice: Choice) -> bool:
    """True for so few bits that the first and the last layer, which carry most of the loss, stay at
    8.
    """
    if choice.is_packed:
        return True
    few_activations = choice.activation_bits <= PACKED_BITS
    return FORMS[choice.form].has_bits and few_activations
