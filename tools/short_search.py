"""A short search in the main command: asked for, or where the usual pipeline misses a budget."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import OnnxOptError, UsageError
from .console import Progress, say
from .shown import show_result, show_search, tell_trial

AUTO = "auto"
"""Value of --passes that asks for a search."""

SHORT = 5.0
"""Minutes after which a search of the main command begins no further round."""


@dataclass(frozen=True)
class ShortSearch:
    """A short search in place of a pipeline: asked for, or where the pipeline misses a budget.

    `repair`: a pipeline that misses it is to be kept, but for the layers that lose most.
    """

    model: Path
    passes: tuple[str, ...]
    options: dict[str, Any]
    as_json: bool
    verbosity: int
    repair: bool = False

    @property
    def is_asked(self) -> bool:
        """True for `--passes auto`, and for budgets that only a search keeps.

        Errors: UsageError where a pipeline is given beside such a budget, and for a repair without
        a pipeline or a budget.
        """
        if self.repair:
            self._check_repair()
            return False
        if self.passes == (AUTO,):
            return True
        for key in ("max_bytes", "max_latency_ms"):
            if self.options[key] is None:
                continue
            if self.passes:
                option = "--" + key.replace("_", "-")
                raise UsageError(
                    option,
                    "is a budget of a search, and --passes leaves nothing to search",
                    "leave out --passes, or write --passes auto",
                )
            return True
        return False

    def _check_repair(self) -> None:
        if self.passes in ((), (AUTO,)):
            raise UsageError("--repair", "no pipeline to repair", "give --passes quant")
        budgets = [self.options[key] for key in ("max_drop", "min_sqnr")]
        if all(budget is None for budget in budgets):
            raise UsageError(
                "--repair",
                "no budget: nothing says when a pipeline needs it",
                "give --max-drop 0.005 with --metric, or --min-sqnr 20",
            )
        if self.options["data"] is None:
            raise UsageError(
                "--repair", "what layers lose is measured on data", "give --data"
            )
        for option in self._of_pipelines():
            raise UsageError(option, "goes with no --repair", "leave one of them out")
        # here, not above: --help needs none of it
        from ..passes._core.pipeline import as_pipeline
        from ._tune.plans import check_repair

        check_repair(as_pipeline(list(self.passes)))

    def mends(self, error: OnnxOptError) -> bool:
        """True if a search may keep the budget that the pipeline missed."""
        if error.where not in ("--max-drop", "--min-sqnr"):
            return False
        # refused as it was given, not missed
        if isinstance(error, UsageError):
            return False
        if self.repair:
            if not self._is_quiet:
                say(f"{error.where}: {error.problem}")
                say("searching for the layers to leave as they are")
            return True
        if self.passes or self.options["data"] is None:
            return False
        # what a search does not have was asked for: the miss is the answer
        if self._of_pipelines():
            return False
        if not self._is_quiet:
            say(f"{error.where}: {error.problem}")
            say(
                "searching for a recipe that keeps it; --passes says what to take instead"
            )
        return True

    def run(self, out: Path) -> None:
        """Search, and show what was found. Errors: UsageError without data; those of a search."""
        if self.options["data"] is None:
            raise UsageError(
                "--passes auto",
                "a search measures each recipe, and there is no data",
                "give --data",
            )
        for option in self._of_pipelines():
            raise UsageError(
                option,
                "goes with a pipeline, not with a search (--passes auto)",
                "leave it out, or give --passes",
            )
        # here, not above: it loads onnx_ir, and --help needs none
        from .tune import tune

        known = inspect.signature(tune).parameters
        taken = {key: value for key, value in self.options.items() if key in known}
        result = tune(
            self.model,
            out=out,
            minutes=SHORT,
            repair=list(self.passes) if self.repair else None,
            progress=Progress(self.verbosity - self.as_json),
            tell=None if self._is_quiet else tell_trial,
            **taken,
        )
        if not self._is_quiet:
            show_search(result.search)
        show_result(result, self.as_json, self.verbosity)

    @property
    def _is_quiet(self) -> bool:
        return self.as_json or self.verbosity < 0

    def _of_pipelines(self) -> list[str]:
        """Options that were given, and that a search does not have."""
        from .tune import tune

        known = inspect.signature(tune).parameters
        return [
            f"--{key.replace('_', '-')}"
            for key, value in self.options.items()
            if key not in known and value not in NOT_ASKED
        ]


NOT_ASKED = (None, False, 0, "auto", ())
"""Values of options that nobody gave."""
