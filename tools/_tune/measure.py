"""Errors of forms at the outputs, measured: one variant of the float model for each weight."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx_ir as ir

from ...passes._core.output_drift import in_batches, output_errors
from ...passes._core.output_errors import OutputErrors
from ...passes._core.tables import tables_of
from ...passes._core.weights import weights_of
from .._run.loss_probes import Twins
from .lab import Lab, Made
from .swaps import Swap, comparable, swapped, swaps

SAMPLES = 256
"""Samples on which losses are measured, at most. Chosen by hand."""

MOST_RUNS = 8192
"""Samples times weights at most: models of many weights take fewer samples. Chosen by hand."""

MOST_BYTES = 150e9
"""Bytes of weights that all these runs read, at most: larger models take fewer samples.

Chosen by hand: 160 samples of EfficientNet-Lite0, 46 of MiniLM.
"""

NODE_BYTES = 2048
"""Memory of a node in a variant. Chosen by hand; not measured."""


def measured_errors(
    lab: Lab,
    form: str,
    made: Made,
    samples: int,
    only: Collection[str] | None = None,
) -> OutputErrors:
    """Errors of a form by weight, over at most so many samples; `only`: of these weights."""
    whole = comparable(made.reference, made.result)
    twins = Twins(made.result)
    sizes = float_bytes(whole)
    nodes = len(whole.graph)
    found = swaps(whole, twins)
    if only is not None:
        found = [swap for swap in found if swap.weight in only]

    def bytes_of(swap: Swap) -> int:
        return int(sizes.get(swap.weight, 0)) + nodes * NODE_BYTES

    total: OutputErrors | None = None
    for batch in in_batches(found, bytes_of):
        variants = {}
        for swap in batch:
            change = (swap.weight, form)
            variants[change] = swapped(whole, twins, swap)
        errors = output_errors(
            whole,
            variants,
            lab.context,
            samples,
        )
        total = errors if total is None else total.beside(errors)
    return total or OutputErrors.none([], [])


def samples_of(forms: Iterable[Made]) -> int:
    """Samples on which all weights of a model are measured, the fewest of all its forms."""
    counts = []
    for made in forms:
        whole = comparable(made.reference, made.result)
        twins = Twins(made.result)
        runs = len(swaps(whole, twins))
        sizes = float_bytes(whole)
        model_bytes = sum(sizes.values())
        count = samples_within(runs, model_bytes)
        counts.append(count)
    return min(counts)


def samples_within(runs: int, model_bytes: float) -> int:
    """Samples that are worth their time if each takes so many runs of a model."""
    runs = max(runs, 1)
    by_runs = MOST_RUNS // runs
    bytes_read = runs * max(model_bytes, 1.0)
    by_bytes = int(MOST_BYTES / bytes_read)
    worthwhile = min(SAMPLES, by_runs, by_bytes)
    return max(worthwhile, 1)


def float_bytes(model: ir.Model) -> dict[str, float]:
    """Bytes of a float model's weights and tables by name."""
    found, _ = weights_of(model)
    tables = tables_of(model)
    sizes = {}
    for weight in [*found, *tables.values()]:
        sizes[weight.name] = float(weight.tensor.nbytes)
    return sizes
