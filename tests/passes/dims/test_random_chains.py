"""Random chains of ops that move elements: whatever is taken out, the rest computes the same."""

from math import prod

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._channels.prepare import prepare
from pruning import assert_exact, solved

WIDTH = 24
MOST = 96


class Chain:
    """A graph that grows by one tensor at a time; all have the batch first, `shape` is that of the
    rest.
    """

    def __init__(self):
        self.nodes, self.initializers = [], []
        self.x = ir.Value(
            name="x", shape=ir.Shape(["N", 5]), type=ir.TensorType(ir.DataType.FLOAT)
        )
        self.shape = (WIDTH,)
        self.now = self.node("MatMul", [self.x, self.weight(5, WIDTH)])

    def node(self, op, inputs, outputs=1, **attributes):
        node = ir.node(
            op,
            inputs,
            attributes=attributes,
            num_outputs=outputs,
            name=f"n{len(self.nodes)}",
        )
        for index, value in enumerate(node.outputs):
            value.name = f"t{len(self.nodes)}_{index}"
        self.nodes.append(node)
        return node.outputs[0] if outputs == 1 else node.outputs

    def weight(self, *shape):
        values = (
            np.random.default_rng(len(self.initializers))
            .uniform(0.1, 1, shape)
            .astype(np.float32)
        )
        return self.constant(values)

    def constant(self, array):
        value = ir.Value(
            name=f"c{len(self.initializers)}", const_value=ir.Tensor(np.asarray(array))
        )
        self.initializers.append(value)
        return value

    def cut(self, axis, seed):
        """One axis becomes two."""
        size = self.shape[axis]
        factors = [f for f in (2, 3, 4) if size % f == 0 and f < size]
        if factors:
            factor = factors[seed % len(factors)]
            self.reshaped(
                (*self.shape[:axis], factor, size // factor, *self.shape[axis + 1 :])
            )

    def merge(self, axis, seed):
        """An axis and the next become one."""
        if axis + 1 < len(self.shape):
            joined = self.shape[axis] * self.shape[axis + 1]
            self.reshaped((*self.shape[:axis], joined, *self.shape[axis + 2 :]))

    def reshaped(self, shape):
        self.shape = shape
        self.now = self.node(
            "Reshape", [self.now, self.constant(np.array([-1, *shape], np.int64))]
        )

    def turn(self, axis, seed):
        order = np.random.default_rng(seed).permutation(len(self.shape)).tolist()
        self.shape = tuple(self.shape[i] for i in order)
        self.now = self.node("Transpose", [self.now], perm=[0, *(i + 1 for i in order)])

    def double(self, axis, seed):
        """A tensor beside itself, or beside its negative."""
        if prod(self.shape) * 2 <= MOST:
            other = self.now if seed % 2 else self.node("Neg", [self.now])
            self.now = self.node("Concat", [self.now, other], axis=axis + 1)
            self.shape = (
                *self.shape[:axis],
                self.shape[axis] * 2,
                *self.shape[axis + 1 :],
            )

    def swap(self, axis, seed):
        """Two parts change places, or are added where they are of one size."""
        size = self.shape[axis]
        if size < 2:
            return
        first = 1 + seed % (size - 1)
        sizes = self.constant(np.array([first, size - first], np.int64))
        a, b = self.node("Split", [self.now, sizes], 2, axis=axis + 1)
        if 2 * first == size:
            self.now = self.node("Add", [a, b])
            self.shape = (*self.shape[:axis], first, *self.shape[axis + 1 :])
        else:
            self.now = self.node("Concat", [b, a], axis=axis + 1)

    def scale(self, axis, seed):
        self.now = self.node("Mul", [self.now, self.weight(*self.shape[axis:])])

    def pick(self, axis, seed):
        """Some slots, in any order, some twice."""
        size = self.shape[axis]
        indices = np.random.default_rng(seed).integers(0, size, max(size - 1, 2))
        self.now = self.node(
            "Gather", [self.now, self.constant(indices.astype(np.int64))], axis=axis + 1
        )
        self.shape = (*self.shape[:axis], len(indices), *self.shape[axis + 1 :])

    def reverse(self, axis, seed):
        starts, ends, axes, steps = (
            self.constant(np.array([n], np.int64)) for n in (-1, -99, axis + 1, -1)
        )
        self.now = self.node("Slice", [self.now, starts, ends, axes, steps])

    def model(self):
        self.reshaped((prod(self.shape),))
        y = self.node("MatMul", [self.now, self.weight(*self.shape, 3)])
        y.type, y.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["N", 3])
        graph = ir.Graph(
            [self.x],
            [y],
            nodes=self.nodes,
            initializers=self.initializers,
            opset_imports={"": 21},
            name="g",
        )
        model = ir.Model(graph, ir_version=10)
        prepare(model, NullContext())
        return model


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["cut", "merge", "turn", "double", "swap", "scale", "pick", "reverse"]
        ),
        st.integers(0, 3),
        st.integers(0, 9),
    ),
    max_size=9,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    steps=STEPS, attention=st.sampled_from(["heads", "dims"]), seed=st.integers(0, 9)
)
def test_any_chain_is_exact(steps, attention, seed):
    chain = Chain()
    for name, axis, number in steps:
        getattr(chain, name)(axis % len(chain.shape), number)
    model = chain.model()
    assert assert_exact(model, solved(model, attention), seed) >= 0


def test_a_chain_without_steps_loses_half():
    model = Chain().model()
    assert assert_exact(model, solved(model)) == pytest.approx(0.5 * WIDTH * (5 + 3))
