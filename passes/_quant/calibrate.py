"""Calibration of a float graph: ranges of the values that become int8, and grids from them."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from .._core.context import Context, RangeMethod
from .._core.targets import QuantRules
from .layers import QuantLayer
from .low_bit_activations import LowBitRead, low_bit_reads
from .placement import Carried, Placement
from .qparams import Parameters, Range, assign, low_bit_parameters

LEVELS_OF_8_BITS = 255


@dataclass
class Ranges:
    """Ranges of the values of one float model, each read off the calibration data once.

    The latency fallback quantizes the same model several times, with other layers left float.
    Every trial starts from a clone and prepares it alike, so a name stands for the same value; what
    differs is which weights `gptq` has rounded by then. The range kept is that of the first graph
    asked for, in which the most layers are rounded: a second look would cost a run of the model for
    a shift by rounding errors. Ranges of another model need another object.
    """

    context: Context
    method: RangeMethod
    percentile: float
    samples: int
    _found: dict[tuple[str, int], Range] = field(default_factory=dict)

    def of(
        self, model: ir.Model, names: list[str], levels: int = LEVELS_OF_8_BITS
    ) -> dict[str, Range]:
        """Range of each named value, for a grid of `levels` steps.

        Values that a run never produced are absent.
        """
        missing = [name for name in names if (name, levels) not in self._found]
        if missing:
            found = self.context.activation_ranges(
                model,
                missing,
                self.method,
                self.percentile,
                self.samples,
                levels,
            )
            for name, range_ in found.items():
                self._found[name, levels] = range_
        return {
            name: self._found[name, levels]
            for name in names
            if (name, levels) in self._found
        }


@dataclass(frozen=True)
class Calibration:
    """Places of int8 values in one graph, and their grids."""

    placement: Placement
    parameters: dict[ir.Value, Parameters]
    low_bit: dict[LowBitRead, Parameters]


def calibrate(
    model: ir.Model,
    placement: Placement,
    activation_bits: dict[QuantLayer, int],
    rules: QuantRules,
    ranges: Ranges,
) -> Calibration:
    """Find the grids of all int8 values of the main graph; the model stays as it is.

    Errors: RefusedError where calibration meets NaN or infinity.
    """
    probe, effective = with_effective_values(model, placement)
    taps: dict[ir.Value, str] = {}
    for value in placement.quantized:
        if value.name:
            # ranges are those of the effective form, where there is one
            taps[value] = effective.get(value.name, value.name)
    found = ranges.of(probe, list(taps.values()))
    by_value = {value: found[tap] for value, tap in taps.items()}
    parameters = assign(placement, by_value, rules)
    reads = low_bit_reads(placement, activation_bits)
    low_bit = _low_bit_grids(
        model,
        reads,
        rules,
        ranges,
    )
    return Calibration(placement, parameters, low_bit)


def _low_bit_grids(
    model: ir.Model, reads: list[LowBitRead], rules: QuantRules, ranges: Ranges
) -> dict[LowBitRead, Parameters]:
    """Grids of values that are read with fewer bits: fewer levels want shorter ranges."""
    grids: dict[LowBitRead, Parameters] = {}
    # one run of the model for each number of levels
    for bits in sorted({read.bits for read in reads}):
        chosen = [read for read in reads if read.bits == bits]
        names = [read.value.name or "" for read in chosen]
        found = ranges.of(model, names, levels=2**bits - 1)
        for read, name in zip(chosen, names, strict=True):
            grids[read] = low_bit_parameters(found[name], bits, rules)
    return grids


def with_effective_values(
    model: ir.Model, placement: Placement
) -> tuple[ir.Model, dict[str, str]]:
    """A copy of the model in which sums that a Relu cuts are read to its floor only.

    In relu(y + s) every y below -s gives the same 0, so y may be read as max(y, -s), its effective
    form: its range is shorter, its steps finer. Returns the copy, and the name of the effective
    form of each value that has one. `placement` lies in the main graph of `model`; the copy shares
    its weights. At most one input of an Add is cut: with both, two cut values could add up to what
    neither means.
    """
    found = {}
    for add, y, s in _cut_sums(placement):
        found[add.outputs[0].name] = (y.name, s.name)
    # what is calibrated differs from what is quantized
    copy = model.clone()
    names: dict[str, str] = {}
    for node in list(copy.graph):
        if node.op_type != "Add" or node.outputs[0].name not in found:
            continue
        y_name, s_name = found[node.outputs[0].name]
        assert y_name is not None
        values = {value.name: value for value in node.inputs if value is not None}
        effective = _insert_effective(
            node,
            values[y_name],
            values[s_name],
        )
        names[y_name] = effective
    return copy, names


def _insert_effective(add: ir.Node, y: ir.Value, s: ir.Value) -> str:
    """Compute max(y, -s) in front of the Add, which does not read it; returns its name."""
    negative = ir.node("Neg", [s])
    negative.outputs[0].name = f"{y.name}_floor"
    effective = ir.node("Max", [y, negative.outputs[0]])
    value = effective.outputs[0]
    value.name = f"{y.name}_effective"
    value.type = y.type
    value.shape = y.shape
    # nothing reads it: calibration taps it by name
    add.prepend([negative, effective])
    return value.name


def _cut_sums(placement: Placement) -> list[tuple[ir.Node, ir.Value, ir.Value]]:
    """(Add, y, s) for each quantized sum that a Relu follows.

    y is the input that nothing else reads.
    """
    made = {layer.activated for layer in placement.layers}
    found = []
    for carried in placement.carried:
        node = carried.node
        if node.op_type != "Add" or not _is_cut(carried):
            continue
        for y, s in (carried.inputs, carried.inputs[::-1]):
            if y is s or y not in made or y.is_graph_output():
                continue
            # another reader would miss what is cut off
            if len(y.uses()) == 1:
                found.append((node, y, s))
                break
    return found


def _is_cut(carried: Carried) -> bool:
    """True for a sum of two values behind which an activation is folded."""
    folded = carried.outputs[0] is not carried.node.outputs[0]
    # a Clip at 0 folds too: its upper bound does not matter here
    return folded and len(carried.inputs) == 2
