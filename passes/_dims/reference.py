"""The output that a pruned model must have, computed another way: removed slots are shut off.

Every sum over an axis of the whole model gets a mask of ones and zeros on what it sums; every
normalisation sees only the slots that stay. No tensor is sliced but around a normalisation, so the
surgery is checked by something that shares nothing with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from .._core.edit import Edit
from .._core.graph import refresh_shapes
from .relations import Mix, Slots, required_input
from .solve import Solution
from .surgery import Kept, set_int


def masked_reference(model: ir.Model, solution: Solution, kept: Kept) -> ir.Model:
    """A copy of `model`, weights shared, in which what is not `kept` has no effect. Shapes stay."""
    copy = model.clone()
    masking = _Masking(Edit(copy), solution, kept)
    twins = dict(zip(model.graph, copy.graph, strict=True))
    for mix in solution.relations.mixes:
        twin = twins[mix.node]
        if mix.kind == "contract":
            masking.shut_off(mix, twin)
        else:
            masking.gather_and_spread(mix, twin)
    refresh_shapes(copy)
    return copy


class _Masking:
    """Edits of one copy.

    `mix.node` is a node of the solved model, `twin` the same node of the copy.
    """

    def __init__(self, edit: Edit, solution: Solution, kept: Kept) -> None:
        self.edit = edit
        self.solution = solution
        self.kept = kept

    def shut_off(self, mix: Mix, twin: ir.Node) -> None:
        """Multiply what a node sums over by 1 where a slot stays and by 0 where it goes."""
        for index, axis in mix.axes:
            source = required_input(mix.node, index)
            stays = self._stays(source, axis)
            if stays is None:
                continue
            shape = self._shape(source)
            dtype = source.dtype or ir.DataType.FLOAT
            mask = np.zeros(shape[axis], dtype.numpy())
            mask[stays] = 1
            aligned = [1] * len(shape)
            aligned[axis] = -1
            graph = _graph_of(twin)
            ones = self.edit.constant(
                graph,
                mask.reshape(aligned),
                f"{source.name}_mask",
            )
            value = twin.inputs[index]
            product = self.edit.node_before(
                twin,
                "Mul",
                [value, ones],
            )
            # strict checks want a type; the shape is inferred at the end
            product.outputs[0].type = source.type
            self.edit.set_input(
                twin,
                index,
                product.outputs[0],
            )

    def gather_and_spread(self, mix: Mix, twin: ir.Node) -> None:
        """Gather the slots that stay in front of a normalisation, and spread its results behind it.

        What the spread puts in the place of a removed slot does not matter: every sum over it is
        masked.
        """
        classes = set()
        for index, axis in mix.axes:
            source = required_input(mix.node, index)
            classes.add(self.solution.classes[source, axis])
        for index, original in enumerate(mix.node.inputs):
            for axis, stays in self._lost(original, classes):
                value = required_input(twin, index)
                gathered = self._gather(
                    twin,
                    value,
                    axis,
                    stays,
                )
                self.edit.set_input(twin, index, gathered)
        if mix.node.op_type == "GroupNormalization":
            self._fit_groups(mix, twin)
        # statistics are of the slots that stay; others read tensors of the old shape
        for made, value in zip(mix.node.outputs, twin.outputs, strict=True):
            for axis, stays in self._lost(made, classes):
                size = self._shape(made)[axis]
                back = np.zeros(size, np.intp)
                back[stays] = np.arange(len(stays))
                self._spread(
                    twin,
                    value,
                    axis,
                    back,
                )

    def _shape(self, value: ir.Value) -> tuple[int, ...]:
        return self.solution.relations.trace.shapes[value]

    def _stays(self, value: ir.Value, axis: int) -> Slots | None:
        """Slots of an axis that stay; None if all do."""
        return self._kept_of(value).get(axis)

    def _kept_of(self, value: ir.Value) -> Mapping[int, Slots]:
        """By axis that loses some: the slots that stay."""
        return self.kept.get(value.name or "", {})

    def _lost(
        self, value: ir.Value | None, classes: set[int]
    ) -> Iterator[tuple[int, Slots]]:
        """(axis, slots that stay) of the axes of the given classes that lose some."""
        if value is None:
            return
        for axis, stays in self._kept_of(value).items():
            if self.solution.classes[value, axis] in classes:
                yield axis, stays

    def _gather(
        self, before: ir.Node, value: ir.Value, axis: int, slots: Slots
    ) -> ir.Value:
        indices = self.edit.constant(
            _graph_of(before),
            slots.astype(np.int64),
            f"{value.name}_stays",
        )
        node = self.edit.node_before(
            before,
            "Gather",
            [value, indices],
            axis=axis,
        )
        node.outputs[0].type = value.type
        return node.outputs[0]

    def _spread(self, node: ir.Node, value: ir.Value, axis: int, back: Slots) -> None:
        # the new node reads the value too: its readers of now are noted before
        users = [(use.node, use.idx) for use in value.uses()]
        assert not value.is_graph_output()  # outputs of the model are frozen
        graph = _graph_of(node)
        indices = self.edit.constant(
            graph,
            back.astype(np.int64),
            f"{value.name}_back",
        )
        spread = ir.node(
            "Gather",
            [value, indices],
            attributes={"axis": axis},
        )
        spread.name = self.edit.fresh(f"{node.name}_spread")
        result = spread.outputs[0]
        result.name = self.edit.fresh(f"{value.name}_spread")
        result.type = value.type
        graph.insert_after(node, spread)
        for user, index in users:
            user.replace_input_with(index, result)

    def _fit_groups(self, mix: Mix, twin: ir.Node) -> None:
        """Set as many groups as have a channel that stays."""
        index, axis = mix.axes[0]
        source = required_input(mix.node, index)
        stays = self._stays(source, axis)
        if stays is None:
            return
        groups = mix.node.attributes.get_int("num_groups", 1)
        width = self._shape(source)[axis] // groups
        left = len(np.unique(stays // width))
        set_int(twin, "num_groups", left)


def _graph_of(node: ir.Node) -> ir.Graph:
    assert isinstance(node.graph, ir.Graph)
    return node.graph
