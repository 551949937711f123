"""What a pruned model must compute, built another way: the whole model with the removed slots shut
off.

Every sum over an axis gets a mask of ones and zeros on what it sums; every normalisation sees only
the slots that stay. No tensor is sliced but around a normalisation, so the surgery is checked by
something that shares nothing with it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from .._core.edit import Edit
from .._core.graph import refresh_shapes
from .relations import Mix, Slots
from .solve import Solution
from .surgery import Kept


def masked_reference(model: ir.Model, solution: Solution, kept: Kept) -> ir.Model:
    """A copy of `model`, weights shared, in which what is not `kept` has no effect. Shapes stay."""
    copy = model.clone()
    masking = _Masking(Edit(copy), solution, kept)
    twins = dict(zip(model.graph, copy.graph, strict=True))
    for mix in solution.relations.mixes:
        if mix.kind == "contract":
            masking.shut_off(mix, twins[mix.node])
        else:
            masking.gather_and_spread(mix, twins[mix.node])
    refresh_shapes(copy)
    return copy


class _Masking:
    """Edits of one copy. `mix.node` is a node of the solved model, `twin` the same node of the
    copy.
    """

    def __init__(self, edit: Edit, solution: Solution, kept: Kept) -> None:
        self.edit = edit
        self.solution = solution
        self.kept = kept

    def _shape(self, value: ir.Value) -> tuple[int, ...]:
        return self.solution.relations.trace.shapes[value]

    def shut_off(self, mix: Mix, twin: ir.Node) -> None:
        """Multiply what a node sums over by 1 where a slot stays and by 0 where it goes."""
        for index, axis in mix.axes:
            source, value = self._source(mix, index), twin.inputs[index]
            stays = self.kept.get(source.name or "", {}).get(axis)
            if stays is None:
                continue
            shape = self._shape(source)
            mask = np.zeros(
                shape[axis],
                np.float32 if source.dtype is None else source.dtype.numpy(),
            )
            mask[stays] = 1
            graph = twin.graph
            assert isinstance(graph, ir.Graph)
            aligned = mask.reshape([-1 if i == axis else 1 for i in range(len(shape))])
            ones = self.edit.constant(graph, aligned, f"{source.name}_mask")
            product = self.edit.node_before(twin, "Mul", [value, ones])
            product.outputs[0].type = source.type
            self.edit.set_input(twin, index, product.outputs[0])

    def gather_and_spread(self, mix: Mix, twin: ir.Node) -> None:
        """Gather the slots that stay in front of a normalisation, and spread its results behind it.

        What the spread puts in the place of a removed slot does not matter: every sum over it is
        masked.
        """
        classes = {
            self.solution.classes[self._source(mix, index), axis]
            for index, axis in mix.axes
        }
        for index, source in enumerate(mix.node.inputs):
            for axis, stays in self._lost(source, classes):
                value = twin.inputs[index]
                assert value is not None
                gathered = self._gather(twin, value, axis, stays)
                self.edit.set_input(twin, index, gathered)
        if mix.node.op_type == "GroupNormalization":
            self._fit_groups(mix, twin)
        for source, value in zip(mix.node.outputs, twin.outputs, strict=True):
            for axis, stays in self._lost(source, classes):
                back = np.zeros(self._shape(source)[axis], np.intp)
                back[stays] = np.arange(len(stays))
                self._spread(twin, value, axis, back)

    def _source(self, mix: Mix, index: int) -> ir.Value:
        source = mix.node.inputs[index]
        assert source is not None
        return source

    def _lost(
        self, value: ir.Value | None, classes: set[int]
    ) -> Iterator[tuple[int, Slots]]:
        """(axis, slots that stay) of the axes of the given classes that lose some."""
        if value is not None:
            for axis, stays in self.kept.get(value.name or "", {}).items():
                if self.solution.classes[value, axis] in classes:
                    yield axis, stays

    def _gather(
        self, before: ir.Node, value: ir.Value, axis: int, slots: Slots
    ) -> ir.Value:
        graph = before.graph
        assert isinstance(graph, ir.Graph)
        indices = self.edit.constant(
            graph, slots.astype(np.int64), f"{value.name}_stays"
        )
        node = self.edit.node_before(before, "Gather", [value, indices], axis=axis)
        node.outputs[0].type = value.type
        return node.outputs[0]

    def _spread(self, node: ir.Node, value: ir.Value, axis: int, back: Slots) -> None:
        users = [(use.node, use.idx) for use in value.uses()]
        assert not value.is_graph_output()  # outputs of the model are frozen
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        indices = self.edit.constant(graph, back.astype(np.int64), f"{value.name}_back")
        spread = ir.node("Gather", [value, indices], attributes={"axis": axis})
        spread.name = self.edit.fresh(f"{node.name}_spread")
        spread.outputs[0].name = self.edit.fresh(f"{value.name}_spread")
        spread.outputs[0].type = value.type
        graph.insert_after(node, spread)
        for user, index in users:
            user.replace_input_with(index, spread.outputs[0])

    def _fit_groups(self, mix: Mix, twin: ir.Node) -> None:
        """As many groups as have a channel that stays."""
        index, axis = mix.axes[0]
        source = self._source(mix, index)
        stays = self.kept.get(source.name or "", {}).get(axis)
        if stays is not None:
            width = self._shape(source)[axis] // mix.node.attributes.get_int(
                "num_groups", 1
            )
            twin.attributes["num_groups"] = ir.AttrInt64(
                "num_groups", len(set((stays // width).tolist()))
            )
