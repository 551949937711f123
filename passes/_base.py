"""Everything that a pass is written with, in one import: contract, options, context."""

# one import for passes outside of this repository; those inside may use it or `_core`
from ._core.context import (
    Context,
    Difference,
    Differentiates,
    Gradient,
    HeldBack,
    HoldsBack,
    KernelNode,
    MomentRequest,
    NullContext,
    RangeMethod,
    Resumes,
    Trains,
)
from ._core.contract import Pass
from ._core.latency import LatencyRatio
from ._core.options import Option
from ._core.outcome import Chosen, Declined, Effect, PassOutcome, Stat

__all__ = [
    "Chosen",
    "Context",
    "Declined",
    "Difference",
    "Differentiates",
    "Effect",
    "Gradient",
    "HeldBack",
    "HoldsBack",
    "KernelNode",
    "LatencyRatio",
    "MomentRequest",
    "NullContext",
    "Option",
    "Pass",
    "PassOutcome",
    "RangeMethod",
    "Resumes",
    "Stat",
    "Trains",
]
