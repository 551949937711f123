"""Calibration of a float graph: ranges of the values that become int8, and grids from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from .._core.bodies import RunNames, bodies_of
from .._core.context import Context, RangeMethod
from .._core.linear import LINEAR_OPS
from .._core.ops import is_standard
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
    _entered: dict[str, bool] = field(default_factory=dict)

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

    def entered(self, model: ir.Model) -> set[ir.Graph]:
        """Bodies of If, Loop and Scan that hold layers and that some sample enters.

        Each is looked at once: its path is the same in a clone.
        """
        bodies = bodies_of(model)
        probes: dict[str, str] = {}
        for body in bodies.values():
            probe = _probe(body.graph)
            if body.path not in self._entered and probe is not None:
                probes[body.path] = f"{body.path}{probe.name}"
        if probes:
            seen = self.context.activation_ranges(
                model,
                list(probes.values()),
                "minmax",
                100.0,
                self.samples,
            )
            for path, name in probes.items():
                self._entered[path] = name in seen
        return {graph for graph, body in bodies.items() if self._entered.get(body.path)}


def _probe(body: ir.Graph) -> ir.Value | None:
    """A value that a body makes whenever it is entered: what its first layer gives."""
    for node in body:
        if is_standard(node, *LINEAR_OPS):
            return node.outputs[0]
    return None


@dataclass(frozen=True)
class Calibration:
    """Places of int8 values in one graph, and their grids."""

    placement: Placement
    parameters: dict[ir.Value, Parameters]
    low_bit: dict[LowBitRead, Parameters]


def calibrate(
    model: ir.Model,
    placements: Sequence[Placement],
    activation_bits: Mapping[QuantLayer, int],
    rules: QuantRules,
    ranges: Ranges,
) -> list[Calibration]:
    """Find the grids of all int8 values of graphs of a model; the model stays as it is.

    Errors: RefusedError where calibration meets NaN or infinity.
    """
    names = RunNames.of(model)
    probe, effective = with_effective_values(model, placements)
    taps: list[dict[ir.Value, str]] = []
    for placement in placements:
        own = {}
        for value in placement.quantized:
            # ranges are those of the effective form, where there is one
            name = names.name(value, placement.graph)
            own[value] = effective.get(name, name)
        taps.append(own)
    asked: dict[str, None] = {}
    for own in taps:
        asked.update(dict.fromkeys(own.values()))
    found = ranges.of(probe, list(asked))
    calibrations = []
    for placement, own in zip(placements, taps, strict=True):
        by_value = {value: found[name] for value, name in own.items()}
        parameters = assign(placement, by_value, rules)
        reads = low_bit_reads(placement, activation_bits)
        low_bit = _low_bit_grids(
            model,
            [names.name(read.value, placement.graph) for read in reads],
            reads,
            rules,
            ranges,
        )
        calibrations.append(Calibration(placement, parameters, low_bit))
    return calibrations


def _low_bit_grids(
    model: ir.Model,
    names: list[str],
    reads: list[LowBitRead],
    rules: QuantRules,
    ranges: Ranges,
) -> dict[LowBitRead, Parameters]:
    """Grids of values that are read with fewer bits: fewer levels want shorter ranges.

    `names`: of what is read, as a run knows it.
    """
    grids: dict[LowBitRead, Parameters] = {}
    named = list(zip(reads, names, strict=True))
    # one run of the model for each number of levels
    for bits in sorted({read.bits for read in reads}):
        chosen = [name for read, name in named if read.bits == bits]
        found = ranges.of(model, chosen, levels=2**bits - 1)
        for read, name in named:
            if read.bits == bits:
                grids[read] = low_bit_parameters(found[name], bits, rules)
    return grids


def with_effective_values(
    model: ir.Model, placements: Sequence[Placement]
) -> tuple[ir.Model, dict[str, str]]:
    """A copy of the model in which sums that a Relu cuts are read to its floor only.

    In relu(y + s) every y below -s gives the same 0, so y may be read as max(y, -s), its effective
    form: its range is shorter, its steps finer. Returns the copy, and the name of the effective
    form of each value that has one, both as a run knows them. `placements` lie in graphs of
    `model`; the copy shares its weights. At most one input of an Add is cut: with both, two cut
    values could add up to what neither means.
    """
    names = RunNames.of(model)
    found = {}
    for placement in placements:
        for add, y, s in _cut_sums(placement):
            name = names.name(add.outputs[0], placement.graph)
            found[name] = (y.name, s.name)
    # what is calibrated differs from what is quantized
    copy = model.clone()
    copied = RunNames.of(copy)
    effective: dict[str, str] = {}
    for graph in [copy.graph, *copied.bodies]:
        for node in list(graph):
            if node.op_type != "Add":
                continue
            name = copied.name(node.outputs[0], graph)
            if name not in found:
                continue
            y_name, s_name = found[name]
            values = {value.name: value for value in node.inputs if value is not None}
            y = values[y_name]
            cut = _insert_effective(node, y, values[s_name])
            effective[copied.name(y, graph)] = copied.name(cut, graph)
    return copy, effective


def _insert_effective(add: ir.Node, y: ir.Value, s: ir.Value) -> ir.Value:
    """Compute max(y, -s) in front of the Add, which does not read it."""
    negative = ir.node("Neg", [s])
    negative.outputs[0].name = f"{y.name}_floor"
    effective = ir.node("Max", [y, negative.outputs[0]])
    value = effective.outputs[0]
    value.name = f"{y.name}_effective"
    value.type = y.type
    value.shape = y.shape
    # nothing reads it: calibration taps it by name
    add.prepend([negative, effective])
    return value


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
