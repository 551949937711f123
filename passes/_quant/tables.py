"""Tables of rows in 8 bits, with a scale a row; only the rows that are read become floats.

    Gather(table, ids)  ->  Gather(codes, ids) -> Cast -> Mul(Gather(scales, ids))

They stay small in memory too: there is nothing to fold while the model is loaded. A layer whose
weight is a table, the head of a language model, reads the same codes transposed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .._core.channel_layout import Layout
from .._core.graph import Names, label
from .._core.outcome import Declined
from .._core.patterns import left_out, weight_names
from .._core.tables import tables_of
from .._core.weights import Weight
from .engine import Counts, PaletteBits, StoredRows, stat_of
from .inserter import Inserter, take_over
from .weight_codes import palette_codes
from .weights import INT8_LEVELS, Floats, channel_absmax, quantize_weight, wide_enough

LEAST_TABLE = 1024
"""Numbers of a table below which scales and nodes cost more than is saved; chosen by hand."""

LEAST_ROW = 8
"""Numbers of a row below which its scale weighs too much; chosen by hand."""


@dataclass(frozen=True)
class TablePlan:
    """Tables to store in 8 bits, and a reason for each other one."""

    tables: list[Weight]
    declined: list[Declined]


def plan_tables(
    model: ir.Model, include: tuple[str, ...], exclude: tuple[str, ...]
) -> TablePlan:
    """Choose the tables that are worth it, by size and the patterns of names."""
    found = TablePlan([], [])
    for table in tables_of(model).values():
        reason = _why_not(table, include, exclude)
        if reason is None:
            found.tables.append(table)
        else:
            found.declined.append(Declined(table.name, reason))
    return found


def _why_not(
    table: Weight, include: tuple[str, ...], exclude: tuple[str, ...]
) -> str | None:
    reason = left_out(weight_names(table), include, exclude)
    if reason is not None:
        return reason
    if table.value.is_graph_output():
        return "it is an output of the model"
    # what a Cast makes of it has another type than the rows that replace it
    if any(node.outputs[0].dtype != ir.DataType.FLOAT for node, _ in table.uses):
        return "its rows are read in another float type"
    rows = int(table.tensor.shape.numpy()[0])
    if table.size < LEAST_TABLE or table.size < LEAST_ROW * rows:
        return f"its {table.size} numbers in {rows} rows are too few to pay for scales"
    return None


def store_tables(
    plan: TablePlan,
    names: Names,
    shared: dict[ir.Value, StoredRows],
    palette_bits: PaletteBits,
) -> tuple[Counts, list[Declined]]:
    """Store each table in int8, and let every Gather read codes; what is done, and what is not.

    `shared`: codes of rows that layers have stored already, by the table.
    """
    counts: Counter[str] = Counter()
    declined: list[Declined] = []
    for table in plan.tables:
        reader = _other_reader(table)
        if reader is not None:
            reason = (
                f"{label(reader)} reads it too, and stays float: so does the table, or "
                "the file would grow"
            )
            declined.append(Declined(table.name, reason))
            continue
        rows = shared.get(table.value)
        if rows is None:
            largest = channel_absmax(table.tensor, _layout(table))
            if not np.isfinite(largest).all():
                declined.append(Declined(table.name, "it holds NaN or infinity"))
                continue
            bits = palette_bits(weight_names(table))
            rows = _stored(
                table,
                names,
                largest,
                bits,
            )
            # where layers share the rows, they counted them
            counts["weights"] += table.size
            counts[stat_of(bits or 8)] += table.size
        _read_rows(table, names, rows)
        counts["tables"] += 1
    return dict(counts), declined


def _layout(table: Weight) -> Layout:
    dims = tuple(int(dim) for dim in table.tensor.shape.numpy())
    return Layout.of(dims, 0)


def _other_reader(table: Weight) -> ir.Node | None:
    """A node that reads the table itself, and no rows of it."""
    gathers = {node for node, _ in table.uses}
    waiting = [table.value]
    while waiting:
        for user in waiting.pop().consumers():
            if user in gathers:
                continue
            if user.op_type != "Identity":
                return user
            waiting.append(user.outputs[0])
    return None


def _stored(
    table: Weight, names: Names, largest: Floats, palette_bits: int | None
) -> StoredRows:
    graph = table.value.graph
    assert isinstance(graph, ir.Graph)
    layout = _layout(table)
    codes: ir.TensorProtocol
    if palette_bits is None:
        scales = wide_enough(largest / np.float32(INT8_LEVELS), None, 1.0)
        codes = quantize_weight(table.tensor, layout, scales)
    else:
        made = palette_codes(table.tensor, layout, palette_bits)
        scales = wide_enough(made.scales, None, 1.0)
        codes = made.codes(scales)
    stored = Inserter(graph, names).encoded(table.name, "rows", codes)
    return StoredRows(stored, scales)


def _read_rows(table: Weight, names: Names, rows: StoredRows) -> None:
    """Let every Gather of a table take codes and scales, which are multiplied."""
    graph = table.value.graph
    assert isinstance(graph, ir.Graph)
    rank = len(table.tensor.shape)
    ones = (1,) * (rank - 1)
    scales = Inserter(graph, names).initializer(
        f"{table.name}_row_scale",
        ir.Tensor(rows.scales.reshape(-1, *ones)),
    )
    for node, _ in table.uses:
        assert isinstance(node.graph, ir.Graph)
        _read(
            Inserter(node.graph, names),
            node,
            rows.codes,
            scales,
            len(ones),
        )


def _read(
    inserter: Inserter, node: ir.Node, codes: ir.Value, scales: ir.Value, inner: int
) -> None:
    ids = node.inputs[1]
    result = node.outputs[0]
    f32 = ir.DataType.FLOAT
    taken = inserter.node(
        "Gather", [codes, ids], "rows", ir.DataType.INT8, result.shape
    )
    cast = inserter.node(
        "Cast", [taken.outputs[0]], "float", f32, result.shape, {"to": int(f32)}
    )
    factors = inserter.node("Gather", [scales, ids], "scale", f32, None)
    if result.shape is not None:
        outer = list(result.shape)[: len(result.shape) - inner]
        factors.outputs[0].shape = ir.Shape([*outer, *[1] * inner])
    scaled = inserter.node(
        "Mul", [cast.outputs[0], factors.outputs[0]], "dequantized", f32, result.shape
    )
    node.prepend([taken, cast, factors, scaled])
    take_over(node, scaled)
