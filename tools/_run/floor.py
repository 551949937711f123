"""Floor of a run: the least that a lossy result must still say of what the original says."""

from __future__ import annotations

import re

from ... import CheckError, UsageError
from ...runtime.drift_words import USUAL, Bounds

OFF = "none"


class BelowFloor(CheckError):
    """A lossy result that no longer says what the original says."""


def floor_of(asked: str | float | None, has_own: bool = False) -> Bounds | None:
    """The floor of `--floor`: dB, a percentage of rows, or both with a comma; None of `none`.

    Of None the usual one, or none where the run `has_own`: a budget that says what is enough.

    Errors: UsageError.
    """
    if asked is None:
        return None if has_own else USUAL
    text = str(asked)
    if text == OFF:
        return None
    given: dict[str, float] = {}
    for word in text.split(","):
        found = re.fullmatch(r"(-?\d+(?:\.\d+)?)(%|dB)?", word.strip())
        if found is None:
            raise UsageError(
                "--floor",
                f"'{text}' is no floor",
                "give dB, a percentage of rows, or both: --floor 3, --floor 50%, "
                "--floor 3,50%; none turns it off",
            )
        number = float(found[1])
        if found[2] == "%":
            given["agreement"] = number / 100
        else:
            given["sqnr_db"] = number
    # what is not named does not count
    return Bounds(
        sqnr_db=given.get("sqnr_db", float("-inf")),
        agreement=given.get("agreement", 0.0),
    )
