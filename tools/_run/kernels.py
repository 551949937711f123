"""Comparison of this CPU's integer kernels with the graph as written; pairs that may saturate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ... import OnnxOptError
from ...passes._core.graph import all_nodes
from ...passes._core.integer_layers import offending_pairs, weight_pairs
from ...passes._core.ops import QUANT_OPS
from ...passes._core.saturation import SATURATING_CPUS
from ...passes._core.targets import TARGETS
from ...passes.unpack import without_packing
from ...runtime.hardware import Hardware
from ...runtime.held_outputs import Arrays, HeldOutputs
from ...runtime.session import Session
from .drift import Outputs, meter, sample_count

APART = 3.0
"""Difference of SQNR to the float model (dB) above which kernels and graph disagree.

Chosen by hand; not measured.
"""
AGREEING = 15.0
"""SQNR (dB) of kernels to the graph below which they disagree, where no float model tells.

On CPUs whose products do not saturate, models that keep 10 to 35 dB were 19 to 47 dB apart
(measured).
"""
SAMPLES = 32
"""Samples to compare: unfused graphs take several times as long to run.

Chosen by hand; not measured.
"""

INTEGER_KERNELS = QUANT_OPS - {
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulNBits",
    "GatherBlockQuantized",
}
"""Ops that are integer kernels as written: they saturate whether graphs are optimized or not."""

Open = Callable[..., Session]


def is_quantized(model: ir.Model) -> bool:
    """True if a part of the graph computes or stores whole numbers for floats."""
    return any(node.op_type in QUANT_OPS for node in all_nodes(model))


# kernels beside the graph


@dataclass(frozen=True)
class Kernels:
    """SQNR in dB of what this CPU's kernels compute, and of the graph as written.

    Both to a model that is not quantized; where there is none, the kernels' to the graph, and None.
    """

    sqnr_db: float
    as_written_db: float | None

    @property
    def disagree(self) -> bool:
        """True if the kernels lose what the graph as written does not."""
        if self.as_written_db is None:
            return self.sqnr_db < AGREEING
        return self.as_written_db - self.sqnr_db > APART

    def words(self, hardware: Hardware) -> str:
        """Sentence on the disagreement, and on which CPU."""
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
    """Advice on a model whose kernels disagree with it; `target`: what it was made for."""
    if hardware.saturates and saturating_pairs(model).offending:
        # a target with CPUs of its own uses the full range of weights on purpose
        if target in TARGETS and TARGETS[target].cpus:
            return "--target cpu makes weights that saturate on no CPU"
        return "--passes requantize mends weights that saturate"
    # MatMulNBits and blocked DequantizeLinear: their kernels quantize the other side
    if any("block_size" in node.attributes for node in all_nodes(model)):
        return (
            "what blocked weights multiply is rounded to 8 bits on every CPU, "
            "compress-weights(int8) keeps it float"
        )
    return "--explain-loss names the layers that lose it, quant(exclude=…) leaves them float"


def compare_kernels(
    open_session: Open,
    path: Path,
    model: ir.Model,
    hardware: Hardware,
    batches: Sequence[Arrays],
    fused: HeldOutputs,
    reference: HeldOutputs | None,
) -> Kernels | None:
    """Run a quantized model as written on a part of `batches`; None where it does not run that way.

    `open_session(path, optimize=, exact=)` opens a file in a worker. `fused`: its outputs there, as
    optimized for this CPU. `reference`: of a model that is not quantized; None: there is none.
    """
    count = 0
    while count < len(batches) and not enough_samples(batches[:count]):
        count += 1
    # the second way, where there is one, for files that the first does not load
    for options in _session_options(model, hardware):
        try:
            session = open_session(path, **options)
            try:
                written = HeldOutputs(session.run(feeds) for feeds in batches[:count])
            finally:
                session.close()
        except OnnxOptError:
            # not loaded that way, as weights that share a zero point are not
            continue
        if reference is None:
            return Kernels(_sqnr_db(written, fused.first(count)), None)
        return Kernels(
            sqnr_db=_sqnr_db(reference.first(count), fused.first(count)),
            as_written_db=_sqnr_db(reference.first(count), written),
        )
    return None


def enough_samples(batches: Sequence[Arrays]) -> bool:
    """True if these hold as many samples as are compared."""
    return sum(sample_count(feeds) for feeds in batches) >= SAMPLES


def _session_options(model: ir.Model, hardware: Hardware) -> list[dict[str, bool]]:
    """Options of sessions in which no product saturates, the best first."""
    # without optimizations the nodes between Q and DQ run as the float ops that they are
    unfused = {"optimize": False}
    has_integers = any(node.op_type in INTEGER_KERNELS for node in all_nodes(model))
    if has_integers and hardware.saturates:
        return [{"exact": True}, unfused]
    return [unfused]


def _sqnr_db(reference: Outputs, outputs: Outputs) -> float:
    return meter(reference, outputs, by_rows=True).overall().sqnr_db


# weights that saturate


@dataclass(frozen=True)
class SaturatingPairs:
    """Weight pairs of a quantized model that may saturate, and on which CPUs.

    `by_layer`: offending pairs of each layer that has some. `pairs`: of all integer layers.
    """

    by_layer: dict[str, int]
    pairs: int

    @property
    def offending(self) -> int:
        """Offending pairs of all layers."""
        return sum(self.by_layer.values())

    def words(self) -> str:
        """Sentence for people; empty where no kernel multiplies whole numbers."""
        return pair_words(self.offending, self.pairs) if self.pairs else ""

    def to_json(self) -> dict[str, Any]:
        """`offending_pairs`, `pairs`, `layers`: offending pairs by layer."""
        return {
            "offending_pairs": self.offending,
            "pairs": self.pairs,
            "layers": self.by_layer,
        }


def pair_words(offending_pairs: int, pairs: int, **_: Any) -> str:
    """Sentence on the pairs that may saturate, where, and what mends it.

    Takes the keys of `SaturatingPairs.to_json`.
    """
    if not offending_pairs:
        return f"none of {pairs:,} weight pairs saturates on any CPU"
    return (
        f"{offending_pairs:,} of {pairs:,} weight pairs may saturate on {SATURATING_CPUS}: "
        "requantize mends it"
    )


def saturating_pairs(model: ir.Model) -> SaturatingPairs:
    """Count the pairs; a model that is not quantized has none."""
    plain = without_packing(model)
    return SaturatingPairs(offending_pairs(plain), weight_pairs(plain))
