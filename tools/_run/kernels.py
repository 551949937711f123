"""What this CPU's integer kernels make of a quantized model, against the graph as it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from ... import OnnxOptError
from ...passes._core.graph import all_nodes
from ...passes._core.ops import QUANT_OPS
from ...runtime.hardware import Hardware
from ...runtime.session import Session
from ...runtime.targets import TARGETS
from .drift import Arrays, Outputs, meter
from .saturation import saturating_pairs

APART = 3.0
"""Kernels and graph disagree when their SQNR to the float model differs by more than this (dB)."""
AGREEING = 15.0
"""The SQNR (dB) of kernels to the graph below which they disagree, where no float model tells. On
CPUs whose products do not saturate, models that keep 10 to 35 dB were 19 to 47 dB apart."""
SAMPLES = 32
"""How many samples are compared: unfused graphs take several times as long to run."""

IN_INTEGERS = QUANT_OPS - {
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulNBits",
}
"""Ops that are integer kernels as written: they saturate whether graphs are optimized or not."""

Open = Callable[..., Session]


@dataclass(frozen=True)
class Kernels:
    """SQNR in dB of what this CPU's kernels compute, and of the graph as written.

    Both to a model that is not quantized; where there is none, the kernels' to the graph, and None.
    """

    sqnr_db: float
    as_written_db: float | None

    @property
    def disagree(self) -> bool:
        """Whether the kernels lose what the graph as written does not."""
        if self.as_written_db is None:
            return self.sqnr_db < AGREEING
        return self.as_written_db - self.sqnr_db > APART

    def words(self, hardware: Hardware) -> str:
        """What the disagreement is, and on which CPU."""
        found = f"{self.sqnr_db:.1f} dB"
        if self.as_written_db is None:
            found += " to it"
        else:
            found += f" instead of {self.as_written_db:.1f} dB"
        return (
            f"the integer kernels of this CPU ({hardware.label}) do not compute what the graph "
            f"says: {found}"
        )


def remedy(model: ir.Model, hardware: Hardware, target: str | None) -> str:
    """What to do about a model whose kernels disagree with it. `target`: what it was made for."""
    if hardware.saturates and saturating_pairs(model).offending:
        if target in TARGETS and TARGETS[target].cpus:
            return "--target cpu makes weights that saturate on no CPU"
        return "--passes requantize mends weights that saturate"
    if any("block_size" in node.attributes for node in all_nodes(model)):
        return (
            "what blocked weights multiply is rounded to 8 bits on every CPU, "
            "compress-weights(int8) keeps it float"
        )
    return "--explain-loss names the layers that lose it, quant(exclude=…) leaves them float"


def is_quantized(model: ir.Model) -> bool:
    """Whether a part of the graph computes or stores whole numbers for floats."""
    return any(node.op_type in QUANT_OPS for node in all_nodes(model))


def compare_kernels(
    open_session: Open,
    path: Path,
    model: ir.Model,
    hardware: Hardware,
    batches: Sequence[Arrays],
    fused: Outputs,
    reference: Outputs | None,
) -> Kernels | None:
    """Run a quantized model as written on a part of `batches`; None where it does not run that way.

    `open_session(path, optimize=, exact=)` opens a file in a worker. `fused`: its outputs there, as
    optimized for this CPU. `reference`: of a model that is not quantized; None: there is none.
    """
    count = next((n for n in range(len(batches)) if enough(batches[:n])), len(batches))
    for options in _ways(model, hardware):
        try:
            session = open_session(path, **options)
            try:
                written = [session.run(feeds) for feeds in batches[:count]]
            finally:
                session.close()
        except OnnxOptError:
            continue  # not loaded that way, as weights that share a zero point are not
        if reference is None:
            return Kernels(meter(written, fused[:count]).overall().sqnr_db, None)
        return Kernels(
            *(
                meter(reference[:count], outputs[:count]).overall().sqnr_db
                for outputs in (fused, written)
            )
        )
    return None


def enough(batches: Sequence[Arrays]) -> bool:
    """Whether these hold as many samples as are compared."""
    return (
        sum(
            max((len(a) for a in feeds.values() if a.ndim), default=1)
            for feeds in batches
        )
        >= SAMPLES
    )


def _ways(model: ir.Model, hardware: Hardware) -> list[dict[str, bool]]:
    """How to run the model so that no product saturates, the best first."""
    unfused = {"optimize": False}
    in_integers = any(node.op_type in IN_INTEGERS for node in all_nodes(model))
    return (
        [{"exact": True}, unfused] if in_integers and hardware.saturates else [unfused]
    )
