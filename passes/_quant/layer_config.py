"""What each layer becomes: the pass's form, 8 bit at both ends of a low-bit network, and overrides
by name pattern.
"""

from __future__ import annotations

import difflib
import fnmatch
import tomllib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from ... import UsageError
from .layers import Layer, names_of
from .weight_codes import PACKED_BITS

FLOAT = "float"
INTEGERS = ("int8", "dynamic", "int16")
"""Forms whose weights have `bits` bits."""
OPTION = "quant.layers"


@dataclass(frozen=True)
class Choice:
    """What one layer becomes: a form and, where it has a choice of them, the bits of its weights
    and of what it reads.

    `asked`: somebody named this very layer, so it is not for the rules to say that it gains
    nothing.
    """

    form: str
    bits: int
    asked: bool = False
    activation_bits: int = 8


@dataclass(frozen=True)
class Override:
    """One entry of the option `layers`."""

    pattern: str
    choice: Choice


def read_overrides(
    texts: tuple[str, ...], default_bits: int, forms: Collection[str]
) -> tuple[Override, ...]:
    """Entries `PATTERN=FORM[:bits[:activation bits]]`, and `@file.toml` for a file's table
    `[layers]` of the same form.

    Errors: UsageError for an entry that cannot be read, an unknown form or bits outside 2..8.
    """
    entries: list[tuple[str, str]] = []
    for text in texts:
        if text.startswith("@"):
            entries += _read_table(Path(text[1:]))
            continue
        pattern, equals, form = text.rpartition("=")
        if not (pattern and equals):
            raise UsageError(
                OPTION,
                f"'{text}' is not PATTERN=FORM",
                'for example: layers=["*conv1*=float"]',
            )
        entries.append((pattern, form))
    return tuple(
        Override(pattern, _choice(form, default_bits, forms))
        for pattern, form in entries
    )


def _read_table(path: Path) -> list[tuple[str, str]]:
    fix = 'a table [layers] with lines like "*conv1*" = "float"'
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8")).get("layers")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(
            f"{OPTION} @{path}",
            f"cannot be read ({error})",
            f"give a TOML file with {fix}",
        ) from None
    if not isinstance(table, dict) or not all(
        isinstance(form, str) for form in table.values()
    ):
        raise UsageError(
            f"{OPTION} @{path}", "has no table [layers] of texts", f"write {fix}"
        )
    return list(table.items())


def _choice(text: str, default_bits: int, forms: Collection[str]) -> Choice:
    form, *bits = text.split(":")
    if form not in forms:
        near = difflib.get_close_matches(form, forms, 1)
        raise UsageError(
            OPTION,
            f"'{form}' is no form of a single layer",
            f"did you mean '{near[0]}'?"
            if near
            else f"choose one of {', '.join(sorted(forms))}",
        )
    wrong = next((b for b in bits if not (b.isdecimal() and 2 <= int(b) <= 8)), None)
    if wrong is not None or len(bits) > 2:
        raise UsageError(
            OPTION,
            f"'{wrong or text}' in '{text}' is no number of bits",
            "give 2 to 8, for example int8:4, or int8:4:4 for what the layer reads as well",
        )
    weight, activation = [int(b) for b in bits] + [default_bits, 8][len(bits) :]
    return Choice(form, weight, asked=True, activation_bits=activation)


def check_patterns(overrides: tuple[Override, ...], nodes: Iterable[ir.Node]) -> None:
    """Raise UsageError where a pattern names no layer, with the nearest names."""
    names = [name for node in nodes for name in names_of(node)]
    for override in overrides:
        if not fnmatch.filter(names, override.pattern):
            near = difflib.get_close_matches(override.pattern.strip("*"), names, 3, 0.3)
            fix = (
                f"the nearest names are {', '.join(near)}"
                if near
                else "the model has no layers"
            )
            raise UsageError(OPTION, f"'{override.pattern}' matches no layer", fix)


def choices(
    layers: list[Layer], default: Choice, ends: str, overrides: tuple[Override, ...]
) -> dict[Layer, Choice]:
    """Each layer's choice. The first override that matches wins; then 8 bit for the ends; then the
    default.
    """
    found = dict.fromkeys(layers, default)
    if ends == "8" and _is_low(default) and layers:
        weights = {layers[0].weight, layers[-1].weight}
        eight = Choice(default.form if default.form in INTEGERS else "int8", 8)
        found |= {layer: eight for layer in layers if layer.weight in weights}
    for layer in layers:
        for override in overrides:
            if any(
                fnmatch.fnmatchcase(name, override.pattern)
                for name in names_of(layer.node)
            ):
                found[layer] = override.choice
                break
    return found


def is_packed(choice: Choice) -> bool:
    """Whether the layer's weights take less than a byte in the file."""
    return choice.form in ("binary", "ternary") or (
        choice.form in INTEGERS and choice.bits <= PACKED_BITS
    )


def _is_low(choice: Choice) -> bool:
    """Whether so few bits that the first and the last layer, which carry most of the loss, stay at
    8.
    """
    few = min(choice.bits, choice.activation_bits) <= PACKED_BITS
    return choice.form in ("binary", "ternary") or (choice.form in INTEGERS and few)
