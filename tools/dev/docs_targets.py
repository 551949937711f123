"""Write docs/targets.md from the tables of targets; with `--check`, exit 1 where it is stale."""

from __future__ import annotations

import sys
from pathlib import Path

from generated_page import write_or_check
from onnx_opt.passes._core.target_limits import LIMITS, RuntimeLimits
from onnx_opt.passes._core.targets import TARGETS, Target

PAGE = Path(__file__).resolve().parents[2] / "docs" / "targets.md"

HEAD = """# Targets: what a graph is made for

Made by `python tools/dev/docs_targets.py` from `passes/_core/targets.py` (which form suits a
runtime) and `passes/_core/target_limits.py` (what it takes at all). `--target NAME` chooses one; a
file of options may describe more ([config.md](config.md)).

A run warns of what the target's runtime does not take, with the node and what to do; `--strict`
makes an error of what makes the file useless there, and so does `package`.
`--shape x=1,3,224,224` fixes the dims of an input, and of everything that follows from it.

`cuda` and `coreml` have no integer kernels: `quant` makes the model float16 there, and says so.
Targets whose runtime is not ONNX Runtime on this machine (all from `generic` on) are checked here
on its CPU kernels; nothing is timed for them."""

COLUMNS = (
    "target",
    "made for",
    "computes in",
    "integers",
    "highest opset, IR",
    "shapes",
    "packed constants",
    "does not take",
    "of",
    "known from",
)


def page() -> str:
    """The whole page."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for name, target in TARGETS.items():
        cells = row(target, LIMITS[name])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n\n".join([HEAD, "\n".join(lines)]) + "\n"


def row(target: Target, limits: RuntimeLimits) -> list[str]:
    """The cells of one target."""
    return [
        f"`{target.name}`",
        target.help,
        limits.precision,
        _integers(target),
        f"{_number(limits.opset)}, {_number(limits.ir_version)}",
        "fixed" if limits.fixed_shapes else "any",
        "unpacked at load" if target.folds_constants else "not written",
        _not_taken(limits),
        limits.runtime,
        limits.source,
    ]


def _integers(target: Target) -> str:
    rules = target.quant
    if rules.why_not:
        return f"none: `quant({rules.instead})` instead"
    kind = "symmetric" if rules.symmetric else "asymmetric"
    words = f"{rules.activation} activations, {kind}"
    if rules.limits_pairs:
        words += "; weights that saturate nowhere"
    return words


def _number(highest: int | None) -> str:
    return "–" if highest is None else str(highest)


def _not_taken(limits: RuntimeLimits) -> str:
    names = [f"`{name}`" for name in limits.avoid]
    if not limits.domains:
        names.append("operators of other domains")
    return ", ".join(names) or "–"


def main() -> int:
    """Write the page, or compare it; returns the exit code."""
    return write_or_check(PAGE, page, Path(__file__), __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
