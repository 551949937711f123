"""Failures of a bundle's own program, as the errors of this package."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ... import CheckError, OnnxOptError, RefusedError, UsageError
from .run import BundleError

_ERRORS = {error.exit_code: error for error in (UsageError, RefusedError, CheckError)}


@contextlib.contextmanager
def as_own_errors() -> Iterator[None]:
    """Raise a failure inside the block as UsageError, RefusedError, CheckError or OnnxOptError."""
    try:
        yield
    except BundleError as failure:
        kind = _ERRORS.get(failure.exit_code, OnnxOptError)
        raise kind(failure.where, failure.problem, failure.fix) from None
