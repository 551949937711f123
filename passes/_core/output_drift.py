"""Drift of a model's outputs in variants of it, all measured in one graph on the same data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .context import Context, MomentRequest
from .edit import Edit
from .graph import holds_graphs
from .joined import WHOLE, data_inputs, join_models, submodel
from .ops import FLOATS
from .output_errors import Change, OutputErrors

MEMORY = 1 << 30
"""Bytes of Gram matrices, and of weights of variants, that are held at once. Chosen by hand, not
measured.
"""

_COUNT = "runs"
"""Key of the request that counts runs: those of models begin with a prefix that has a slash."""

Item = TypeVar("Item")


def in_batches(
    items: Iterable[Item], bytes_of: Callable[[Item], int]
) -> Iterator[list[Item]]:
    """Items in runs that fit in `MEMORY` together, at least one in each."""
    batch: list[Item] = []
    held = 0
    for item in items:
        own = bytes_of(item)
        if batch and held + own > MEMORY:
            yield batch
            batch = []
            held = 0
        batch.append(item)
        held += own
    if batch:
        yield batch


@dataclass(frozen=True)
class Variant:
    """A model of which some nodes compute something else.

    `changed`: names of their outputs. All other nodes are those of the whole model.
    """

    model: ir.Model
    changed: Collection[str]


def output_drifts(
    model: ir.Model, variants: Sequence[Variant], context: Context, samples: int
) -> list[float]:
    """Share of the outputs' mean square that each variant loses, the mean over float outputs.

    NaN where there is none. All variants are joined in one graph, which is run once; what a
    variant's changes do not influence is computed once for all.
    """
    outputs = float_outputs(model)
    if not outputs:
        return [float("nan")] * len(variants)
    family, values, prefixes = _joined_variants(model, variants)
    return _measured_shares(
        family,
        values,
        outputs,
        prefixes,
        context,
        samples,
    )


def output_errors(
    model: ir.Model,
    variants: Mapping[Change, Variant],
    context: Context,
    samples: int,
) -> OutputErrors:
    """Sums over runs of what variants lose at the float outputs, by the change that each makes.

    All are measured at once, as `output_drifts` does.
    """
    outputs = float_outputs(model)
    changes = list(variants)
    errors = OutputErrors.none(outputs, changes)
    if not outputs:
        return errors
    changed = list(variants.values())
    family, values, prefixes = _joined_variants(model, changed)
    squares = _square_requests(family, values, outputs, prefixes)
    of_first = squares[WHOLE + outputs[0]]
    count = dataclasses.replace(of_first, kind="extremes")
    requests = {**squares, _COUNT: count}
    found = _collected(family, requests, context, samples)
    counts = found[_COUNT][:, 0]
    runs = int(counts.sum())
    errors.draws[:] = runs
    for row, name in enumerate(outputs):
        power = found[WHOLE + name][0]
        errors.powers[row] = runs * power
        for column, prefix in enumerate(prefixes):
            lost = found.get(prefix + name)
            # an output that became a constant was not looked at
            mean = np.nan if lost is None else lost[0]
            errors.squares[row, column] = runs * mean
    return dataclasses.replace(errors, runs=runs)


def drift_between(
    model: ir.Model, other: ir.Model, context: Context, samples: int
) -> float:
    """Share of the outputs' mean square that another model of the same outputs loses.

    The mean over float outputs; NaN where there is none. Nothing but inputs and outputs need be
    common to both.
    """
    outputs = float_outputs(model)
    if not outputs:
        return float("nan")
    prefix = "other/"
    family = join_models({WHOLE: model, prefix: other})
    _share_tensors(family)
    values = _values_by_name(family)
    (share,) = _measured_shares(
        family,
        values,
        outputs,
        [prefix],
        context,
        samples,
    )
    return share


def _measured_shares(
    family: ir.Model,
    values: Mapping[str, ir.Value],
    outputs: Sequence[str],
    prefixes: Sequence[str],
    context: Context,
    samples: int,
) -> list[float]:
    """Share of the outputs that each model of a joint graph loses, by the prefixes of its names."""
    squares = _square_requests(
        family,
        values,
        outputs,
        prefixes,
    )
    found = _collected(family, squares, context, samples)
    return [_mean_share(found, prefix, outputs) for prefix in prefixes]


def _collected(
    family: ir.Model,
    requests: Mapping[str, MomentRequest],
    context: Context,
    samples: int,
) -> dict[str, NDArray[np.float64]]:
    """Moments of a joint graph, of which only what makes these is run."""
    tensors = [request.tensor for request in requests.values()]
    measured = submodel(family, data_inputs(family), tensors)
    return context.collect(measured, requests, samples)


def _joined_variants(
    model: ir.Model, variants: Sequence[Variant]
) -> tuple[ir.Model, dict[str, ir.Value], list[str]]:
    """Variants beside the whole model: the graph, its values, and the prefix of each variant."""
    named = {f"{number}/": variant for number, variant in enumerate(variants)}
    models = {prefix: variant.model for prefix, variant in named.items()}
    family = join_models({WHOLE: model, **models})
    _share_tensors(family)
    values = _values_by_name(family)
    for prefix, variant in named.items():
        _share_unchanged(prefix, variant.changed, model, values)
    return family, values, list(named)


def _share_tensors(family: ir.Model) -> None:
    """Let all variants read the same initializer where they hold the same tensor."""
    first: dict[int, ir.Value] = {}
    initializers = family.graph.initializers
    for value in list(initializers.values()):
        key = id(value.const_value)
        same = first.setdefault(key, value)
        if same is value or value.is_graph_input():
            continue
        value.replace_all_uses_with(same)
        name = value.name or ""
        del initializers[name]


def _values_by_name(model: ir.Model) -> dict[str, ir.Value]:
    """Values that nodes of the main graph make."""
    values = {}
    for node in model.graph:
        for value in node.outputs:
            values[value.name or ""] = value
    return values


def float_outputs(model: ir.Model) -> list[str]:
    """Names of the model's float outputs that a node makes."""
    floats = [value for value in model.graph.outputs if value.dtype in FLOATS]
    made = [value for value in floats if value.producer() is not None]
    return [value.name or "" for value in made]


def _square_requests(
    family: ir.Model,
    values: Mapping[str, ir.Value],
    outputs: Sequence[str],
    prefixes: Sequence[str],
) -> dict[str, MomentRequest]:
    """Requests of the mean squares of the whole model's outputs, and of what each variant loses."""
    requests: dict[str, MomentRequest] = {}
    edit = Edit(family)
    for name in outputs:
        wanted = values[WHOLE + name]
        square = _mean_square(wanted, edit)
        requests[WHOLE + name] = MomentRequest(square, "mean")
        for prefix in prefixes:
            own = values.get(prefix + name)
            # an output that became a constant is of no node
            if own is None:
                continue
            lost = _appended("Sub", [own, wanted], edit)
            square = _mean_square(lost, edit)
            requests[prefix + name] = MomentRequest(square, "mean")
    return requests


def _mean_share(
    found: Mapping[str, NDArray[np.float64]], prefix: str, outputs: Sequence[str]
) -> float:
    """Mean over outputs of the share of its mean square that a variant loses; NaN of none."""
    shares = []
    for name in outputs:
        whole = found[WHOLE + name][0]
        lost = found.get(prefix + name)
        if lost is not None and whole > 0:
            share = lost[0] / whole
            shares.append(float(share))
    if not shares:
        return float("nan")
    return float(np.mean(shares))


def _mean_square(value: ir.Value, edit: Edit) -> str:
    """Append the mean square of a value's finite elements; the name of the (1, 1) tensor.

    Elements that are not finite count as 0: masks of attention may reach an output.
    """
    graph = edit.model.graph
    floats = _appended("Cast", [value], edit, to=ir.DataType.FLOAT)
    infinite = _appended("IsInf", [floats], edit)
    not_a_number = _appended("IsNaN", [floats], edit)
    odd = _appended("Or", [infinite, not_a_number], edit)
    zero = edit.constant(graph, np.zeros((), np.float32), "zero")
    finite = _appended("Where", [odd, zero, floats], edit)
    squares = _appended("Mul", [finite, finite], edit)
    mean = _appended("ReduceMean", [squares], edit, keepdims=0)
    mean.type = ir.TensorType(ir.DataType.FLOAT)
    # moments are taken along an axis, and over batches: a scalar has neither
    one_by_one = np.ones(2, np.int64)
    shape = edit.constant(graph, one_by_one, "one_by_one")
    result = _appended("Reshape", [mean, shape], edit)
    return result.name or ""


def _appended(
    op_type: str, inputs: Sequence[ir.Value], edit: Edit, **attributes: int
) -> ir.Value:
    node = ir.node(
        op_type,
        inputs,
        attributes=attributes,
        name=edit.fresh(op_type),
    )
    output = node.outputs[0]
    output.name = edit.fresh(op_type)
    edit.model.graph.append(node)
    return output


def _share_unchanged(
    prefix: str,
    changed: Collection[str],
    model: ir.Model,
    values: Mapping[str, ir.Value],
) -> None:
    """Let a variant read from the whole model whatever its changed nodes do not influence."""
    influenced: set[ir.Value] = set()
    for node in model.graph:
        reads = any(value in influenced for value in node.inputs)
        own = any(value.name in changed for value in node.outputs)
        # what a subgraph reads is not among the inputs of its node
        if reads or own or holds_graphs(node):
            influenced.update(node.outputs)
            continue
        for value in node.outputs:
            if value.name:
                same = values[WHOLE + value.name]
                values[prefix + value.name].replace_all_uses_with(same)
