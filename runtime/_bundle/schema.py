"""Check of a manifest against its JSON Schema, `schema/bundle-1.json`.

The few words of JSON Schema that it uses, and no others: a package for all of them would be a
dependency of every installation. The suite compares both on faulty manifests.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).with_name("schema") / "bundle-1.json"

Rule = Mapping[str, Any]
Faults = Iterator[tuple[str, str]]
"""Part of a schema; (place, problem) of what does not follow it."""

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
}

_NOTES = frozenset({"$schema", "$defs", "title", "description"})
"""Words that ask for nothing."""


@functools.cache
def manifest_schema() -> dict[str, Any]:
    """The schema of manifest.json."""
    found: dict[str, Any] = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return found


def first_fault(manifest: Any) -> tuple[str, str] | None:
    """(place, problem) of the first fault of a manifest; None where it has none."""
    return next(faults(manifest, manifest_schema(), "manifest.json"), None)


def faults(value: Any, rule: Rule, where: str) -> Faults:
    """Yield (place, problem) of everything in a value that does not follow a rule."""
    for word in rule:
        if word not in _NOTES:
            check = _CHECKS[word]
            yield from check(value, rule, where)


def _type(value: Any, rule: Rule, where: str) -> Faults:
    asked = rule["type"]
    names = [asked] if isinstance(asked, str) else asked
    allowed: list[type] = []
    for name in names:
        allowed.extend(_TYPES[name])
    # to Python a truth value is a number
    is_number = isinstance(value, tuple(allowed)) and not isinstance(value, bool)
    if not is_number:
        yield where, f"is not of type {' or '.join(names)}"


def _enum(value: Any, rule: Rule, where: str) -> Faults:
    if value not in rule["enum"]:
        yield where, f"is none of {', '.join(rule['enum'])}"


def _pattern(value: Any, rule: Rule, where: str) -> Faults:
    if not isinstance(value, str):
        return
    pattern = rule["pattern"]
    if not re.search(pattern, value):
        yield where, f"'{value[:80]}' is not written as {pattern}"


def _required(value: Any, rule: Rule, where: str) -> Faults:
    if not isinstance(value, dict):
        return
    for name in rule["required"]:
        if name not in value:
            yield where, f"lacks '{name}'"


def _properties(value: Any, rule: Rule, where: str) -> Faults:
    if not isinstance(value, dict):
        return
    for name, inner in rule["properties"].items():
        if name in value:
            yield from faults(value[name], inner, f"{where}: {name}")


def _others(value: Any, rule: Rule, where: str) -> Faults:
    if not isinstance(value, dict):
        return
    known = rule.get("properties", {})
    inner = rule["additionalProperties"]
    for name, item in value.items():
        if name not in known:
            yield from faults(item, inner, f"{where}: {name}")


def _items(value: Any, rule: Rule, where: str) -> Faults:
    if not isinstance(value, list):
        return
    inner = rule["items"]
    for number, item in enumerate(value):
        yield from faults(item, inner, f"{where}[{number}]")


def _min_items(value: Any, rule: Rule, where: str) -> Faults:
    least = rule["minItems"]
    if isinstance(value, list) and len(value) < least:
        yield where, f"has fewer than {least} entries"


def _any_of(value: Any, rule: Rule, where: str) -> Faults:
    found: list[tuple[str, str]] = []
    for inner in rule["anyOf"]:
        found = list(faults(value, inner, where))
        if not found:
            return
    # of the last form, the one that is not null
    yield found[0]


def _reference(value: Any, rule: Rule, where: str) -> Faults:
    name = rule["$ref"].removeprefix("#/$defs/")
    inner = manifest_schema()["$defs"][name]
    yield from faults(value, inner, where)


_CHECKS = {
    "type": _type,
    "enum": _enum,
    "pattern": _pattern,
    "required": _required,
    "properties": _properties,
    "additionalProperties": _others,
    "items": _items,
    "minItems": _min_items,
    "anyOf": _any_of,
    "$ref": _reference,
}
