"""Floor of a run: the least that a lossy result must still say of what the original says."""

from __future__ import annotations

import re

from ... import CheckError, UsageError
from ...runtime.drift_words import Bounds
from .settings import RunSettings

OFF = "none"


class BelowFloor(CheckError):
    """A lossy result that no longer says what the original says."""


def is_asked(settings: RunSettings) -> bool:
    """True if a floor was asked for, not only the usual one."""
    return settings.floor is not None and str(settings.floor) != OFF


def floor_of(settings: RunSettings, usual: Bounds) -> Bounds | None:
    """The floor that was asked for, or else the `usual` one; None: no floor.

    Errors: UsageError.
    """
    if isinstance(settings.floor, int | float):
        return Bounds(float(settings.floor), 0.0)
    if settings.floor is not None:
        return _parsed(settings.floor)
    # a budget that was asked for is a floor, too; the student of a teacher starts from nothing
    asked = (settings.min_sqnr, settings.max_drop, settings.teacher)
    return usual if asked == (None, None, None) else None


def _parsed(text: str) -> Bounds | None:
    """Bounds of a text: dB, a percentage of rows, or both with a comma; None of `none`."""
    if text == OFF:
        return None
    # what is not named does not count
    sqnr_db = float("-inf")
    agreement = 0.0
    for word in text.split(","):
        found = re.fullmatch(r"(-?\d+(?:\.\d+)?)\s*(%|dB)?", word.strip())
        if found is None:
            raise UsageError(
                "--floor",
                f"'{text}' is no floor",
                "give dB, a percentage of rows, or both: --floor 3, --floor 50%, "
                "--floor 3,50%; none turns it off",
            )
        number = float(found[1])
        if found[2] == "%":
            agreement = number / 100
        else:
            sqnr_db = number
    return Bounds(sqnr_db, agreement)
