"""Loss of each form of each weight at the outputs: measured, or for large models estimated."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from ... import RefusedError, UsageError
from ...passes._core.output_errors import Change, OutputErrors
from .estimate import errors_of_forms, estimate_samples
from .lab import Lab, Made
from .measure import measured_errors, samples_of

Method = Literal["auto", "measured", "estimated"]

LEAST_SAMPLES = 64
"""Samples from which on losses are measured, unless a method was asked for.

Chosen by hand: on fewer, as of MiniLM, measuring takes longer than estimating on all.
"""

Keep = Callable[[str, Callable[[], OutputErrors]], OutputErrors]
"""Gives the errors of a name: those that were kept, else those that the function makes."""


def not_kept(name: str, make: Callable[[], OutputErrors]) -> OutputErrors:
    """Errors as they are made, where nothing keeps them."""
    return make()


def check_method(method: str) -> None:
    """Errors: UsageError for a word that is no method."""
    known = get_args(Method)
    if method not in known:
        raise UsageError(
            "--sensitivity", f"'{method}' is no method", f"give {', '.join(known)}"
        )


@dataclass(frozen=True)
class Sensitivities:
    """Losses of weights in other forms, as a share of the outputs' mean square.

    `method`: how they were found. `samples`: on so many at most. `measured`: weights and forms that
    were measured although the others are estimated, since no gradient reaches them.
    """

    losses: Mapping[Change, float]
    method: Literal["measured", "estimated"]
    samples: int
    measured: tuple[Change, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """The way in which the losses were found, for the account."""
        return {
            "method": self.method,
            "samples": self.samples,
            "measured": [f"{weight}={form}" for weight, form in self.measured],
        }


def sensitivities(
    lab: Lab, forms: Mapping[str, Made], method: Method, keep: Keep = not_kept
) -> Sensitivities:
    """Losses of all weights in all forms.

    `auto` estimates where measuring would take fewer than `LEAST_SAMPLES` samples, and measures
    where that cannot be, which the run then warns of. Errors: those of `errors_of_forms` where
    `estimated` is asked for.
    """
    if method == "estimated":
        return _estimated(lab, forms, keep)
    if method == "auto" and samples_of(forms.values()) < LEAST_SAMPLES:
        try:
            return _estimated(lab, forms, keep)
        except (UsageError, RefusedError) as error:
            reason = f"{error.where}: {error.problem}"
            lab.context.warn(
                "tune", f"losses are measured, not estimated, which is slow: {reason}"
            )
    return _measured(lab, forms, keep)


def _measured(lab: Lab, forms: Mapping[str, Made], keep: Keep) -> Sensitivities:
    samples = samples_of(forms.values())
    losses: dict[Change, float] = {}
    with lab.run.reporter("what bits cost, layer by layer", len(forms)) as advance:
        for form, made in forms.items():
            measure = functools.partial(measured_errors, lab, form, made, samples)
            errors = keep(f"measured-{samples}-{form}", measure)
            losses |= errors.shares()
            advance(1)
    return Sensitivities(losses, "measured", samples)


def _estimated(lab: Lab, forms: Mapping[str, Made], keep: Keep) -> Sensitivities:
    samples = estimate_samples(forms)
    errors = keep(f"estimated-{samples}", lambda: errors_of_forms(lab, forms, samples))
    losses = errors.shares()
    # of a rounding, say, that gradients do not pass: only running the variant tells
    unreached = [change for change, loss in losses.items() if not _is_told(loss)]
    fewer = samples_of(forms.values())
    for form, made in forms.items():
        weights = {weight for weight, other in unreached if other == form}
        if weights:
            measured = measured_errors(lab, form, made, fewer, weights)
            losses |= measured.shares()
    return Sensitivities(losses, "estimated", samples, tuple(unreached))


def _is_told(loss: float) -> bool:
    return math.isfinite(loss) and loss > 0
