"""Floor of a run: the least that a lossy result must still say of what the original says."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ... import UsageError
from ...runtime.compare import Drift

OFF = "none"


@dataclass(frozen=True)
class Floor:
    """Least SQNR in dB, and least share of rows whose largest value stays in place.

    `docs/drift.md` says how both were found.
    """

    sqnr_db: float = 3.0
    agreement: float = 0.5

    def problem(self, drift: Drift) -> str | None:
        """Say why a result is worth nothing; None where it is."""
        same = drift.top1_agreement
        if same is not None and same < self.agreement:
            return (
                f"the largest output is the same for {same:.0%} of rows, "
                f"less than {self.agreement:.0%}"
            )
        if drift.sqnr_db < self.sqnr_db:
            return f"the outputs keep {drift.sqnr_db:.1f} dB of SQNR, less than {self.sqnr_db:g}"
        return None


def floor_of(text: str | None) -> Floor | None:
    """The floor of `--floor`: dB, a percentage of rows, or both with a comma; None of `none`.

    Errors: UsageError.
    """
    if text is None:
        return Floor()
    if text == OFF:
        return None
    bounds: dict[str, float] = {}
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
            bounds["agreement"] = number / 100
        else:
            bounds["sqnr_db"] = number
    # what is not named does not count
    return Floor(
        sqnr_db=bounds.get("sqnr_db", float("-inf")),
        agreement=bounds.get("agreement", 0.0),
    )
