"""Tests that need a newer release of a package than the oldest that the project runs on.

A test says so by its mark, `@pytest.mark.needs("onnxruntime", "1.28", "older ones die of it")`.
What many tests need stands in the table: on an older release a test that fails in just these words
is skipped. On the newest releases nothing is.
"""

from __future__ import annotations

import re
from importlib import metadata
from typing import NamedTuple

from onnx_opt.passes._core.requirements import RULES

Release = tuple[int, int]


class Need(NamedTuple):
    """A package, the release that first has something, what that is, and the failure without it."""

    package: str
    release: Release
    because: str
    failure: str


RELEASES = {rule.because: rule.release for rule in RULES}
"""The product's own table."""

REFUSED = {
    "Cast from INT4": r"Could not find an implementation for Cast\(21\)|Cast from INT4",
}
"""Words of ONNX Runtime, and of the product, about what an older release does not run."""

NEEDS = (
    *(
        Need("onnxruntime", RELEASES[what], what, words)
        for what, words in REFUSED.items()
    ),
    Need(
        "onnx", (1, 18), "opset 23", r"No Op registered for (Attention|RotaryEmbedding)"
    ),
    Need("onnx", (1, 19), "opset 24", r"needs opset 24 of domain ''"),
    Need(
        "onnx",
        (1, 18),
        "names of nodes in onnx.parser",
        r"(?s)ParseError.*\[\w+\].*Expected character = not found",
    ),
    Need(
        "onnx",
        (1, 18),
        "quoted names in onnx.parser",
        r"(?s)ParseError.*\".*(Identifier|Integer value) expected",
    ),
    Need(
        "onnx", (1, 23), "opset 28", r"invalid version \(must be between 1 and 2[2-7]\)"
    ),
    Need(
        "onnxruntime",
        (1, 26),
        "ConvInteger of signed weights",
        r"Could not find an implementation for ConvInteger\(10\)",
    ),
)


def too_old(package: str, release: Release) -> str | None:
    """Reason to skip what needs a release of a package; None where that or a newer one is here."""
    installed = metadata.version(package)
    if as_release(installed) >= release:
        return None
    return f"needs {package} {release[0]}.{release[1]}, here is {installed}"


def reason_to_skip(failure: str) -> str | None:
    """Reason to skip a test that failed in these words; None for a real failure."""
    for need in NEEDS:
        old = too_old(need.package, need.release)
        if old is not None and re.search(need.failure, failure):
            return f"{old}: {need.because}"
    return None


def as_release(version: str) -> Release:
    """First two numbers of a version."""
    major, minor, *_ = version.split(".")
    return int(major), int(minor)
