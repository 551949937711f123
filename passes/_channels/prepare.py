"""Preparation of a model in which channels are looked for.

Shape arithmetic is folded, and every user of a shared vector has its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import onnx_ir as ir

from .._base import Context, PassOutcome
from .._core.edit import is_constant
from .._core.graph import Names, all_nodes, refresh_shapes
from .._core.normalize import normalize
from .._core.ops import FLOATS
from .._core.opset import raise_opset
from .._dims.sliced import SlicedTensor
from ..eliminate_common_subexpressions import EliminateCommonSubexpressions
from ..fold_batchnorm import FoldBatchnorm
from ..fold_constants import fold
from ..remove_identities import RemoveIdentities
from ..remove_unused import RemoveUnused
from ..unpack_sequences import UnpackSequences

OLDEST = 13
"""Opset from which Slice, Split, Squeeze and reductions take their axes in the form that the
surgery writes.
"""

ROUNDS = 3
"""Rounds of folding at most: the second sees the shapes that the first made known."""

Step = Callable[[ir.Model, Context], PassOutcome]
"""The run of an exact pass."""

Origins = dict[str, str]
"""Copy of a shared constant -> the name it was copied from."""


def prepare(
    model: ir.Model, context: Context, *, keep_batchnorm: bool = False
) -> Origins:
    """Normalize, fold what does not depend on the input, unshare vectors; returns the copies.

    Exact. Every node gets a name of its own. Scale factors that exporters compute from a width
    (1/sqrt(head size)) become constants here: pruning must not change them.
    """
    normalize(model)
    raise_opset(model, OLDEST)
    steps: list[Step] = [
        RemoveUnused().run,
        UnpackSequences().run,
        RemoveIdentities().run,
        fold_but_ties,
        EliminateCommonSubexpressions().run,
    ]
    if not keep_batchnorm:
        steps.append(FoldBatchnorm().run)
    for _ in range(ROUNDS):
        changed = sum(step(model, context).changed for step in steps)
        refresh_shapes(model)
        if not changed:
            break
    _name_nodes(model)
    return _unshare(model)


def fold_but_ties(model: ir.Model, context: Context) -> PassOutcome:
    """Fold constants, but no transposed copy of a matrix that others read as it is.

    It would be a weight by itself, with channels of its own.
    """
    readers: set[ir.Node] = set()
    for value in model.graph.initializers.values():
        if len(value.uses()) > 1 and value.dtype in FLOATS and _is_matrix(value):
            readers.update(value.consumers())
    only = {node for node in all_nodes(model) if node not in readers}
    return fold(model, only=only)


def _is_matrix(value: ir.Value) -> bool:
    """Return whether more than one axis of a constant is longer than 1."""
    if value.const_value is None:
        return False
    longer_than_one = [size for size in value.const_value.shape.numpy() if size != 1]
    return len(longer_than_one) > 1


def _name_nodes(model: ir.Model) -> None:
    """Give a name to nodes that have none, or another's.

    Nodes are found again by name in copies of the model.
    """
    names = Names(model)
    seen: set[str] = set()
    for node in model.graph:
        if not node.name or node.name in seen:
            output = node.outputs[0]
            stem = f"{node.op_type}_{output.name}"
            node.name = names.fresh(stem)
        seen.add(node.name)


def _unshare(model: ir.Model) -> Origins:
    """Give every user of a shared vector its own copy; returns the copies.

    Exporters store equal vectors once (all-zero biases): their users must not lose the same
    channels for that. A shared matrix is a tie that was meant: its users lose the same.
    """
    names = Names(model)
    origins = Origins()
    # copies are added on the way
    for value in list(model.graph.initializers.values()):
        uses = list(value.uses())
        if len(uses) < 2 or not is_constant(value) or value.is_graph_output():
            continue
        tensor = value.const_value
        assert tensor is not None
        if _is_matrix(value):
            continue
        for use in uses[1:]:
            # an initializer of the main graph may serve a subgraph, too
            if use.node.graph is not model.graph:
                continue
            user = use.node.name or use.node.op_type
            copy = ir.Value(
                name=names.fresh(f"{value.name}_of_{user}"),
                shape=value.shape,
                type=value.type,
                const_value=tensor,
            )
            model.graph.register_initializer(copy)
            use.node.replace_input_with(use.idx, copy)
            origins[copy.name or ""] = value.name or ""
    return origins


def share_again(model: ir.Model, origins: Origins) -> None:
    """Let copies that are still equal be one constant again.

    No weight is read: equal means the same slots of one tensor.
    """
    families: dict[str, list[ir.Value]] = defaultdict(list)
    for name, value in model.graph.initializers.items():
        origin = origins.get(name, name)
        families[origin].append(value)
    for family in families.values():
        if len(family) == 1:
            continue
        firsts: dict[object, ir.Value] = {}
        for value in family:
            signature = _signature(value)
            first = firsts.setdefault(signature, value)
            # copies that lost other channels stay on their own
            if first is not value:
                value.replace_all_uses_with(first)
                del model.graph.initializers[value.name or ""]


def _signature(value: ir.Value) -> object:
    """Identity of a tensor and of every cut that was made in it."""
    tensor = value.const_value
    cuts = []
    while isinstance(tensor, SlicedTensor):
        for axis in sorted(tensor.kept):
            slots = tensor.kept[axis]
            cuts.append((axis, slots.tobytes()))
        # tells one cut along two axes from two cuts
        cuts.append((-1, b""))
        tensor = tensor.source
    return id(tensor), tuple(cuts)
