"""Random small networks around what pruning gets wrong: weights of several layers, sizes that are
computed, shapes that are not known, heads in every layout.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LENGTH = 6
"""Tokens where the length is fixed."""


class Net:
    """A graph that grows by nodes; `now` is the last tensor, (N, L, width)."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.nodes, self.constants, self.count = [], [], 0
        self.open_length = self.chance(0.5)
        self.batch = None
        self.width = self.pick([8, 12, 16])
        self.inputs = {"x": 5}
        self.now = self.linear("x", 5, self.width)

    # --- pieces -----------------------------------------------------------------

    def chance(self, share):
        return bool(self.random.random() < share)

    def pick(self, options):
        return options[int(self.random.integers(len(options)))]

    def op(self, kind, *inputs, outputs=1, **attributes):
        self.count += 1
        names = [f"t{self.count}_{i}" for i in range(outputs)]
        self.nodes.append(
            helper.make_node(kind, inputs, names, f"n{self.count}", **attributes)
        )
        return names[0] if outputs == 1 else names

    def constant(self, values, kind=np.int64):
        self.count += 1
        name = f"c{self.count}"
        self.constants.append(numpy_helper.from_array(np.array(values, kind), name))
        return name

    def weight(self, *shape):
        scale = 1 / np.sqrt(shape[0])
        return self.constant(self.random.normal(0, scale, shape), np.float32)

    def linear(self, x, inputs, outputs, weight=None):
        """One of the ways to multiply by a weight (inputs, outputs)."""
        weight = weight or self.weight(inputs, outputs)
        kind = self.pick(
            ["plain", "plain", "bias", "gemm", "fused", "turned", "einsum"]
        )
        if kind in ("gemm", "fused"):
            flat = self.op("Reshape", x, self.constant([-1, inputs]))
            bias = self.weight(outputs)
            if kind == "gemm":
                made = self.op("Gemm", flat, weight, bias)
            else:
                made = self.op(
                    "FusedGemm",
                    flat,
                    weight,
                    bias,
                    activation="LeakyRelu",
                    activation_alpha=0.3,
                    domain="com.microsoft",
                )
            return self.op("Reshape", made, self.like(x, [outputs]))
        if kind == "turned":
            turned = self.op("Transpose", weight, perm=[1, 0])
            return self.op("FusedMatMul", x, turned, transB=1, domain="com.microsoft")
        if kind == "einsum":
            return self.op("Einsum", x, weight, equation="nlc,cd->nld")
        made = self.op("MatMul", x, weight)
        if kind == "bias":
            made = self.op("Add", made, self.weight(outputs))
        return made

    def size(self, x, axis):
        """The size of an axis as a tensor (1,), computed."""
        shape = self.op("Shape", x)
        if self.chance(0.5):
            return self.op("Gather", shape, self.constant([axis]))
        number = self.op("Gather", shape, self.constant(axis))
        return self.op("Unsqueeze", number, self.constant([0]))

    def like(self, x, rest):
        """A target (N, L, *rest), as the graph or an exporter would spell it."""
        kind = self.pick(["computed", "computed", "mixed", "minus"])
        length = self.size(x, 1) if self.open_length else self.constant([LENGTH])
        if kind == "minus" and not self.open_length:
            return self.constant([-1, LENGTH, *rest])
        batch = self.constant([-1]) if kind == "mixed" else self.size(x, 0)
        return self.op("Concat", batch, length, self.constant(rest), axis=0)

    # --- blocks -----------------------------------------------------------------

    def feed_forward(self):
        hidden = self.pick([6, 10, 16])
        up, down = self.weight(self.width, hidden), self.weight(hidden, self.width)
        # as ALBERT: one block, applied several times
        for _ in range(self.pick([1, 1, 2])):
            h = self.op(
                self.pick(["Relu", "Tanh", "Sigmoid"]),
                self.linear(self.now, self.width, hidden, up),
            )
            self.now = self.op(
                "Add", self.now, self.linear(h, hidden, self.width, down)
            )

    def attention(self):
        heads = self.pick([2, 4])
        size = self.pick([2, 3])
        inner = heads * size
        layout = self.pick(["heads", "heads", "joined", "packed", "inside", "einsum"])
        x = self.op("LayerNormalization", self.now, self.weight(self.width), axis=-1)
        if layout in ("packed", "inside"):
            packed = self.linear(x, self.width, 3 * inner)
            order = [3, heads, size] if layout == "packed" else [heads, 3, size]
            cut = self.op("Reshape", packed, self.like(x, order))
            perm = [2, 0, 3, 1, 4] if layout == "packed" else [3, 0, 2, 1, 4]
            turned = self.op("Transpose", cut, perm=perm)
            q, k, v = [
                self.op("Gather", turned, self.constant(i), axis=0) for i in range(3)
            ]
        elif layout == "joined":
            # (L, N * heads, size), as torch's MultiheadAttention
            rows = self.op("Transpose", x, perm=[1, 0, 2])
            q, k, v = [self.joined(rows, heads, size) for _ in range(3)]
        else:
            q, k, v = [self.split(x, heads, size, layout) for _ in range(3)]
        axes = [0, 2, 1] if layout == "joined" else [0, 1, 3, 2]
        if layout == "einsum":
            scores = self.op("Einsum", q, k, equation="nhld,nhmd->nhlm")
        else:
            scores = self.op("MatMul", q, self.op("Transpose", k, perm=axes))
        shares = self.op("Softmax", scores, axis=-1)
        mixed = self.op("MatMul", shares, v)
        if layout == "joined":
            back = self.op("Transpose", mixed, perm=[1, 0, 2])
            target = self.op(
                "Concat",
                self.size(back, 0),
                self.size(x, 0),
                self.constant([inner]),
                axis=0,
            )
            joined = self.op(
                "Transpose", self.op("Reshape", back, target), perm=[1, 0, 2]
            )
        else:
            rows = self.op("Transpose", mixed, perm=[0, 2, 1, 3])
            joined = self.op("Reshape", rows, self.like(x, [inner]))
        self.now = self.op("Add", self.now, self.linear(joined, inner, self.width))

    def split(self, x, heads, size, layout):
        made = self.linear(x, self.width, heads * size)
        cut = self.op("Reshape", made, self.like(x, [heads, size]))
        return self.op("Transpose", cut, perm=[0, 2, 1, 3])

    def joined(self, rows, heads, size):
        made = self.op("MatMul", rows, self.weight(self.width, heads * size))
        both = self.op("Mul", self.size(rows, 1), self.constant([heads]))
        parts = [self.size(rows, 0), both, self.constant([size])]
        if self.chance(0.3):
            parts[1] = self.constant([-1])
        target = self.op("Concat", *parts, axis=0)
        allows_zero = int(self.chance(0.4) and parts[1] == both)
        cut = self.op("Reshape", made, target, allowzero=allows_zero)
        return self.op("Transpose", cut, perm=[1, 0, 2])

    def tower(self):
        """The same two layers for two activations."""
        hidden = self.pick([6, 10])
        up, down = self.weight(self.width, hidden), self.weight(hidden, self.width)
        sides = []
        for side in (self.now, self.op("Neg", self.now)):
            h = self.op("Relu", self.linear(side, self.width, hidden, up))
            sides.append(self.linear(h, hidden, self.width, down))
        self.now = self.op(self.pick(["Add", "Mul"]), *sides)

    def unknown(self):
        """A detour of which nothing is known."""
        wider = self.op(
            "ExpandDims", self.now, self.constant(1, np.int32), domain="com.microsoft"
        )
        back = self.op("Squeeze", wider, self.constant([1]))
        mixed = self.op(
            "Gemm",
            self.op("Reshape", back, self.constant([-1, self.width])),
            self.weight(self.width, self.width),
        )
        self.now = self.op("Reshape", mixed, self.like(self.now, [self.width]))

    def fixed(self):
        """A Reshape that only one batch, or one length, fits."""
        hidden = self.pick([6, 10])
        made = self.linear(self.now, self.width, hidden)
        if self.batch is None:
            self.batch = self.pick([1, 3])
        target = [self.batch, -1, hidden]
        held = self.op("Reshape", made, self.constant(target))
        self.now = self.linear(self.op("Tanh", held), hidden, self.width)

    def positions(self):
        """A table of which as many rows are taken as there are tokens."""
        if not self.open_length:
            self.now = self.op("Add", self.now, self.weight(1, LENGTH, self.width))
            return
        table = self.weight(1, 20, self.width)
        stop = self.size(self.now, 1)
        some = self.op("Slice", table, self.constant([0]), stop, self.constant([1]))
        self.now = self.op("Add", self.now, some)

    def model(self):
        y = self.linear(self.now, self.width, 3)
        dims = ["N", "L" if self.open_length else LENGTH]
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [*dims, 5])],
            [helper.make_tensor_value_info(y, TensorProto.FLOAT, [None, None, 3])],
            self.constants,
        )
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        onnx.checker.check_model(model)
        return model

    def feeds(self, count=3):
        """Feeds of different sizes, as far as the model takes them."""
        for index in range(count):
            batch = self.batch or index + 1
            length = 3 + 2 * index if self.open_length else LENGTH
            yield {"x": self.random.normal(0, 1, (batch, length, 5)).astype(np.float32)}


BLOCKS = (
    "feed_forward",
    "attention",
    "attention",
    "tower",
    "unknown",
    "fixed",
    "positions",
)


def random_net(seed):
    """A network of one to three random blocks."""
    net = Net(seed)
    for _ in range(net.pick([1, 2, 3])):
        getattr(net, net.pick(BLOCKS))()
    return net
