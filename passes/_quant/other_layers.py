"""Weights that quant stores beside those of linear layers: of tables and of recurrent layers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import onnx_ir as ir

from .._core.graph import Names
from .._core.outcome import Declined
from .._core.targets import Target
from .engine import Counts, PaletteBits, StoredRows
from .recurrent import RecurrentPlan, plan_recurrent, store_recurrent
from .schemes import DYNAMIC, Form
from .tables import TablePlan, plan_tables, store_tables


@dataclass(frozen=True)
class OtherRequest:
    """Facts on which plans depend: the form, its target and options, and patterns of names.

    `left_float`: patterns of layers whose integer kernels are slower; their weights have 8 bits all
    the same.
    """

    form: Form
    target: Target
    kernel: str
    tables: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    left_float: tuple[str, ...]
    palette_bits: PaletteBits

    @property
    def has_tables(self) -> bool:
        """True if tables are to have 8 bits."""
        return self.tables != "float" and not self.target.quant.why_not_tables

    @property
    def has_integer_lstm(self) -> bool:
        """True if an LSTM is to run in integers."""
        is_dynamic = DYNAMIC in self.form.engines and self.kernel != "float"
        return is_dynamic and "LSTM" in self.target.quant.dynamic


@dataclass(frozen=True)
class OtherPlan:
    """Tables and recurrent layers to store in int8, with a reason for each other one."""

    tables: TablePlan
    recurrent: RecurrentPlan
    palette_bits: PaletteBits
    rows: dict[ir.Value, StoredRows] = field(default_factory=dict)
    """Tables that linear layers have stored, to be shared."""

    @property
    def size(self) -> int:
        """Count of what is to be stored."""
        return len(self.tables.tables) + len(self.recurrent.layers)

    @property
    def is_empty(self) -> bool:
        """True if nothing is to be stored."""
        return not self.size

    @property
    def table_values(self) -> set[ir.Value]:
        """The tables to store."""
        return {table.value for table in self.tables.tables}

    @property
    def declined(self) -> list[Declined]:
        """A reason for each table and recurrent layer that is left out."""
        return self.tables.declined + self.recurrent.declined


def plan_others(model: ir.Model, request: OtherRequest) -> OtherPlan:
    """Find the tables and recurrent layers of every graph; nothing is read of their weights."""
    tables = TablePlan([], [])
    if request.has_tables:
        tables = plan_tables(model, request.include, request.exclude)
    recurrent = plan_recurrent(
        model,
        request.include,
        request.exclude,
        request.left_float,
        is_integer=request.has_integer_lstm,
        is_folded=request.target.folds_constants,
    )
    return OtherPlan(tables, recurrent, request.palette_bits)


def store_others(
    model: ir.Model, plan: OtherPlan, names: Names, limits_pairs: bool
) -> tuple[Counts, list[Declined]]:
    """Store what is planned; the counts, and a reason for what cannot be stored.

    `limits_pairs`: no pair of weights may saturate an integer kernel.
    """
    total = Counter[str]()
    declined: list[Declined] = []
    for counts, reasons in (
        store_tables(plan.tables, names, plan.rows, plan.palette_bits),
        store_recurrent(
            model,
            plan.recurrent,
            names,
            limits_pairs,
            plan.palette_bits,
        ),
    ):
        total.update(counts)
        declined += reasons
    # what found nothing has no figures
    return {key: count for key, count in total.items() if count}, declined
