"""Drift of a model's outputs in variants of it, all measured in one graph on the same data."""

from __future__ import annotations

import dataclasses
import math
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
from .ops import FLOATS, is_standard
from .output_errors import Change, OutputErrors
from .variation import column_axis, lost_variation

MEMORY = 1 << 30
"""Bytes of Gram matrices, and of weights of variants, that are held at once. Chosen by hand, not
measured.
"""

_COUNT = "runs"
"""Key of the request that counts runs: those of models begin with a prefix that has a slash."""

_MEAN = "mean/"
"""Prefix of the requests of what the whole model's outputs are in the mean."""

SELECTIONS = ("Compress", "NonMaxSuppression", "NonZero", "Unique")
"""Operators of which the data decides how much they give."""

AXES_AS_INPUT = 18
"""Opset from which ReduceMean takes its axes as an input."""

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
    """Share of the outputs' variation that each variant loses, the mean over float outputs.

    NaN where there is none. All variants are joined in one graph, which is run once; what a
    variant's changes do not influence is computed once for all.
    """
    outputs = float_outputs(model)
    if not outputs:
        return [float("nan")] * len(variants)
    family, values, prefixes = _joined_variants(model, variants)
    found = _measured(
        family,
        values,
        outputs,
        prefixes,
        context,
        samples,
    )
    return [_mean_share(found, prefix, outputs, True) for prefix in prefixes]


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
    errors = OutputErrors.none(list(outputs), changes)
    if not outputs:
        return errors
    changed = list(variants.values())
    family, values, prefixes = _joined_variants(model, changed)
    squares = _square_requests(family, values, outputs, prefixes)
    of_first = next(iter(squares.values()))
    count = dataclasses.replace(of_first, kind="extremes")
    requests = {**squares, _COUNT: count}
    found = _collected(family, requests, context, samples)
    counts = found[_COUNT][:, 0]
    runs = int(counts.sum())
    errors.draws[:] = runs
    for row, name in enumerate(outputs):
        power = found[WHOLE + name].mean()
        errors.powers[row] = runs * power
        for column, prefix in enumerate(prefixes):
            lost = found.get(prefix + name)
            # an output that became a constant was not looked at
            mean = np.nan if lost is None else lost.mean()
            errors.squares[row, column] = runs * mean
    return dataclasses.replace(errors, runs=runs)


def drift_between(
    model: ir.Model,
    other: ir.Model,
    context: Context,
    samples: int,
    of_variation: bool = False,
) -> float:
    """Share of the outputs' mean square that another model of the same outputs loses.

    The mean over float outputs; NaN where there is none. Nothing but inputs and outputs need be
    common to both. `of_variation`: the share of what varies in them, see `variation`.
    """
    outputs = float_outputs(model)
    if not outputs:
        return float("nan")
    prefix = "other/"
    family = join_models({WHOLE: model, prefix: other})
    _share_tensors(family)
    values = _values_by_name(family)
    found = _measured(
        family,
        values,
        outputs,
        [prefix],
        context,
        samples,
    )
    return _mean_share(found, prefix, outputs, of_variation)


def _measured(
    family: ir.Model,
    values: Mapping[str, ir.Value],
    outputs: Mapping[str, int],
    prefixes: Sequence[str],
    context: Context,
    samples: int,
) -> dict[str, NDArray[np.float64]]:
    """Moments of the columns of outputs, by what `_square_requests` and `_mean_requests` name."""
    squares = _square_requests(family, values, outputs, prefixes)
    means = _mean_requests(family, values, outputs)
    return _collected(family, {**squares, **means}, context, samples)


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


def float_outputs(model: ir.Model) -> dict[str, int]:
    """Names of the model's float outputs that a node makes, and the number of their axes.

    0 where that is not known, or the data decides how many columns there are. Without those of
    which the data decides how many rows there are: two models may give other numbers of them.
    """
    ranks = {}
    selected = _selected_values(model)
    for value in model.graph.outputs:
        if value in selected and not _has_rows_of_inputs(value, model):
            continue
        if value.dtype in FLOATS and value.producer() is not None:
            shape = () if value.shape is None else value.shape.dims
            rank = len(shape)
            has_columns = rank > 0 and isinstance(shape[column_axis(rank)], int)
            ranks[value.name or ""] = rank if has_columns else 0
    return ranks


def _selected_values(model: ir.Model) -> set[ir.Value]:
    """Values that depend on what a selection found."""
    selected: set[ir.Value] = set()
    for node in model.graph:
        depends = any(value in selected for value in node.inputs)
        if depends or is_standard(node, *SELECTIONS):
            selected.update(node.outputs)
    return selected


def _has_rows_of_inputs(value: ir.Value, model: ir.Model) -> bool:
    """True for a first axis that is fixed, or as long as one of the model's inputs'."""
    if not value.shape:
        return False
    rows = value.shape[0]
    if isinstance(rows, int):
        return True
    known: set[int | ir.SymbolicDim] = set()
    for each in model.graph.inputs:
        known.update(each.shape or ())
    return rows.value is not None and rows in known


def _square_requests(
    family: ir.Model,
    values: Mapping[str, ir.Value],
    outputs: Mapping[str, int],
    prefixes: Sequence[str],
) -> dict[str, MomentRequest]:
    """Requests of the mean squares of the whole model's outputs, and of what each variant loses."""
    requests: dict[str, MomentRequest] = {}
    edit = Edit(family)
    for name, rank in outputs.items():
        wanted = values[WHOLE + name]
        square = _mean_square(wanted, rank, edit)
        requests[WHOLE + name] = MomentRequest(square, "mean")
        for prefix in prefixes:
            own = values.get(prefix + name)
            # an output that became a constant is of no node
            if own is None:
                continue
            lost = _appended("Sub", [own, wanted], edit)
            square = _mean_square(lost, rank, edit)
            requests[prefix + name] = MomentRequest(square, "mean")
    return requests


def _mean_requests(
    family: ir.Model, values: Mapping[str, ir.Value], outputs: Mapping[str, int]
) -> dict[str, MomentRequest]:
    """Requests of the means of those outputs whose mean is not what they say.

    Probabilities of classes are left out: that a character is nearly always a blank is what a text
    recognizer says.
    """
    requests = {}
    edit = Edit(family)
    for name, rank in outputs.items():
        wanted = values[WHOLE + name]
        if not is_probability(wanted):
            mean = _column_means(_finite(wanted, edit), rank, edit)
            requests[_MEAN + name] = MomentRequest(mean, "mean")
    return requests


def is_probability(output: ir.Value) -> bool:
    """True for probabilities of classes that a Softmax gives, or their logarithms."""
    source = output.producer()
    # a runtime's interface may rename what the Softmax makes
    while source is not None and is_standard(source, "Identity", "Cast"):
        value = source.inputs[0]
        source = None if value is None else value.producer()
    return source is not None and is_standard(source, "Softmax", "LogSoftmax")


def _mean_share(
    found: Mapping[str, NDArray[np.float64]],
    prefix: str,
    outputs: Iterable[str],
    of_variation: bool,
) -> float:
    """Mean over outputs of the share that a variant loses; NaN of none."""
    shares = []
    for name in outputs:
        squares = found.get(WHOLE + name)
        lost = found.get(prefix + name)
        # an output without elements has no moments
        if squares is None or lost is None or not squares.any():
            continue
        share = float(lost.mean() / squares.mean())
        means = found.get(_MEAN + name)
        if of_variation and means is not None:
            of_varying = lost_variation(lost, squares, means)
            # of what is the same for all samples there is no variation to lose
            share = share if math.isnan(of_varying) else of_varying
        shares.append(share)
    if not shares:
        return float("nan")
    return float(np.mean(shares))


def _mean_square(value: ir.Value, rank: int, edit: Edit) -> str:
    """Append the mean square of each column of a value of so many axes: (1, C), its name."""
    finite = _finite(value, edit)
    squares = _appended("Mul", [finite, finite], edit)
    return _column_means(squares, rank, edit)


def _finite(value: ir.Value, edit: Edit) -> ir.Value:
    """Append a value's elements in float32; those that are not finite are 0.

    Masks of attention may reach an output.
    """
    graph = edit.model.graph
    floats = _appended("Cast", [value], edit, to=ir.DataType.FLOAT)
    infinite = _appended("IsInf", [floats], edit)
    not_a_number = _appended("IsNaN", [floats], edit)
    odd = _appended("Or", [infinite, not_a_number], edit)
    zero = edit.constant(graph, np.zeros((), np.float32), "zero")
    return _appended("Where", [odd, zero, floats], edit)


def _column_means(values: ir.Value, rank: int, edit: Edit) -> str:
    """Append the mean of each column of values of so many axes: (1, C), its name.

    Where the axes are not known, all values are one column.
    """
    graph = edit.model.graph
    # moments are taken along an axis, and over batches
    shape = edit.constant(graph, np.array([1, -1], np.int64), "one_row")
    others = [axis for axis in range(rank) if axis != column_axis(rank)]
    if others:
        means = _mean_over(others, values, edit)
    else:
        means = _appended("ReduceMean", [values], edit, keepdims=0)
    means.type = ir.TensorType(ir.DataType.FLOAT)
    result = _appended("Reshape", [means, shape], edit)
    return result.name or ""


def _mean_over(axes: Sequence[int], values: ir.Value, edit: Edit) -> ir.Value:
    """Append the mean over some axes."""
    graph = edit.model.graph
    if graph.opset_imports.get("", 1) < AXES_AS_INPUT:
        return _appended(
            "ReduceMean",
            [values],
            edit,
            axes=axes,
            keepdims=0,
        )
    given = edit.constant(graph, np.array(axes, np.int64), "axes")
    return _appended("ReduceMean", [values, given], edit, keepdims=0)


def _appended(
    op_type: str,
    inputs: Sequence[ir.Value],
    edit: Edit,
    **attributes: int | Sequence[int],
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
