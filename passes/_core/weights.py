"""Weights of a model, each once, and a reason for everything that may be taken for one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from .chains import chain_of, made_of_constants, not_stored
from .graph import all_nodes, initializers, input_of, label
from .ops import FLOATS, RECURRENT, REPETITIONS, WEIGHTED_OPS, is_standard
from .outcome import Declined
from .tabular import ML, MODELS, held_bytes


@dataclass
class Weight:
    """A float initializer and every (node, input index) that multiplies by it."""

    value: ir.Value
    uses: list[tuple[ir.Node, int]] = field(default_factory=list)
    transposed: bool = False
    """True if some use sees it through a Transpose (its axes are then not the op's axes)."""

    @property
    def name(self) -> str:
        return self.value.name or ""

    @property
    def tensor(self) -> ir.TensorProtocol:
        assert self.value.const_value is not None
        return self.value.const_value

    @property
    def size(self) -> int:
        return self.tensor.size


def weights_of(
    model: ir.Model, known: Collection[ir.Value] = ()
) -> tuple[list[Weight], list[Declined]]:
    """All weights in graph order, each once however many nodes share it, and what is declined.

    Declined, each with a reason: weights that may not change, and float constants of two axes or
    more that other operators read, such as tables of Gather, but for those that are `known`.
    """
    found: dict[ir.Value, Weight] = {}
    declined: list[Declined] = []
    made = made_of_constants(model)
    for node in all_nodes(model):
        for index in weight_inputs(node):
            chain = chain_of(input_of(node, index))
            if chain is None:
                continue
            source = chain.source
            reason = _not_a_weight(source, made)
            if reason:
                declined.append(Declined(label(node), reason))
            # an activation, of a MatMul of two, is no weight and no refusal either
            elif not source.is_initializer():
                continue
            elif chain.is_shown:
                declined.append(
                    Declined(source.name or "", "it is an output of the model")
                )
            elif _steers(source):
                reason = "another node uses it as a size, scale or bound"
                declined.append(Declined(source.name or "", reason))
            else:
                weight = found.setdefault(source, Weight(source))
                weight.uses.append((node, index))
                weight.transposed |= chain.transposes
    declined += other_weights(model, known)
    # a node may read the same thing twice
    return list(found.values()), list(dict.fromkeys(declined))


STEERED = frozenset(
    {"Clip", "DequantizeLinear", "QuantizeLinear", "Resize", "Upsample"}
)
"""Operators whose operands but the first are no factors or summands: a zero there is an error."""


def _steers(source: ir.Value) -> bool:
    """True if a constant is equal to, and so shared with, what steers a node of `STEERED`."""
    return any(use.idx > 0 and is_standard(use.node, *STEERED) for use in source.uses())


def weight_inputs(node: ir.Node) -> tuple[int, ...]:
    """Inputs at which a node may have a weight."""
    if not is_standard(node, *WEIGHTED_OPS):
        return ()
    return WEIGHTED_OPS[node.op_type].weights


def _not_a_weight(source: ir.Value, made: Mapping[ir.Value, bool]) -> str | None:
    """Reason why what stands where a weight may stand is none to change."""
    if source.producer() is not None:
        return not_stored(source, made)
    if source.const_value is None:
        return None
    if source.dtype not in FLOATS:
        return f"weight '{source.name}' is {source.dtype}: already quantized"
    if source.is_graph_input():
        return f"weight '{source.name}' is also an input of the model: callers may override it"
    return None


READERS = {
    "Gather": "looks up rows of it and multiplies by none; compress-weights shrinks tables",
    "Einsum": "is not a product of an activation and one matrix",
}
"""Reasons by the standard operator that reads a constant which no layer multiplies by."""

NO_FACTOR = REPETITIONS | {
    "Add",
    "Concat",
    "Equal",
    "Greater",
    "Less",
    "Max",
    "Min",
    "Pad",
    "Shape",
    "Size",
    "Sub",
    "Sum",
    "Where",
}
"""Standard operators that multiply by nothing they read: their constants are no weights."""


@dataclass(frozen=True)
class _Reader:
    """A node that reads a constant, or what is made of it; `weighs`: as the weight of a layer."""

    node: ir.Node
    weighs: bool

    @property
    def rank(self) -> int:
        """Order of readers: one that tells more about a constant than another has more."""
        if self.weighs:
            return 2
        return 0 if is_standard(self.node, *NO_FACTOR) else 1


def other_weights(model: ir.Model, known: Collection[ir.Value] = ()) -> list[Declined]:
    """A reason for each float constant of two axes or more by which no layer, but perhaps another
    operator multiplies.

    `known`: constants that a pass has found in another way.
    """
    readers = _readers(model)
    declined = held_models(model)
    for value in initializers(model):
        reader = readers.get(value)
        if reader is None or reader.weighs or value in known:
            continue
        # a bias or a first state: of both directions it has two axes
        if is_standard(reader.node, *RECURRENT):
            continue
        if _is_matrix(value) and not is_standard(reader.node, *NO_FACTOR):
            declined.append(Declined(value.name or "", _why_other(value, reader.node)))
    return declined


def held_models(model: ir.Model) -> list[Declined]:
    """Tree ensembles and their kind, whose numbers are in attributes, where no pass reaches."""
    declined = []
    for node in all_nodes(model):
        if node.domain == ML and node.op_type in MODELS:
            kind = MODELS[node.op_type]
            reason = f"{kind}: {held_bytes(node):,} bytes, no pass shrinks it"
            declined.append(Declined(label(node), reason))
    return declined


def _readers(model: ir.Model) -> dict[ir.Value, _Reader]:
    """One reader of each constant that is read: a layer, else one that may multiply, if any."""
    made = made_of_constants(model)
    readers: dict[ir.Value, _Reader] = {}
    nodes = list(all_nodes(model))
    # readers come before what they read
    for node in reversed(nodes):
        # what is made of constants stands for those that read it
        behind = [readers[value] for value in node.outputs if value in readers]
        is_made = any(value in made for value in node.outputs)
        for index, value in enumerate(node.inputs):
            if value is None:
                continue
            if value.const_value is None and value not in made:
                continue
            is_weight = index in weight_inputs(node)
            own = _Reader(node, is_weight)
            candidates = behind if is_made else [own]
            for reader in candidates:
                known = readers.get(value)
                if known is None or reader.rank >= known.rank:
                    readers[value] = reader
    return readers


def _is_matrix(value: ir.Value) -> bool:
    """True if a value is of floats that vary along two axes or more."""
    if value.dtype not in FLOATS or value.shape is None:
        return False
    return sum(dim != 1 for dim in value.shape) > 1


def _why_other(value: ir.Value, node: ir.Node) -> str:
    if value.is_graph_input():
        return "is also an input of the model: callers may override it"
    where = label(node)
    if not is_standard(node):
        return f"{where} of {node.domain} reads it, an operator that is not of ONNX"
    reason = READERS.get(node.op_type, "reads it, and is not a layer")
    return f"{where} {reason}"
