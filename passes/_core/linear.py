"""Linear layers: nodes that multiply an activation by a constant weight, seen as a matrix.

A weight is seen as (groups, M, K): M outputs and K inputs of each group. The K columns of a
convolution are the values of one patch, (C / groups, *kernel) flattened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .chains import Chain, chain_of, not_stored
from .channel_layout import Layout
from .context import MomentKind, MomentRequest
from .edit import Edit, is_constant, used_once
from .graph import input_of, label
from .lazy import DerivedTensor, set_tensor
from .ops import (
    CONVOLUTIONS,
    FLOATS,
    group_count,
    is_standard,
    output_axis,
    summed_axes,
)
from .saturation import KernelPairs, kernel_pairs
from .weights import weight_inputs

Matrices = NDArray[np.float64]
"""Weights (groups, M, K), or rows (channels, K)."""

LINEAR_OPS = frozenset({"Conv", "Gemm", "MatMul"})
"""Operators that make linear layers: recurrent ones and ConvTranspose have kernels of their own."""

NOTHING_MADE: Mapping[ir.Value, bool] = {}
"""For callers that do not tell apart what is computed."""


@dataclass(frozen=True, eq=False)
class WeightView:
    """A stored weight as the node sees it that multiplies by it.

    `index`: the input of `node` at which the weight arrives. `stored`: the initializer, which
    Identity, Cast and Transpose nodes may lie behind. `permutation`: axes of `stored` in the order
    in which the node sees them.
    """

    node: ir.Node
    index: int
    stored: ir.Value
    permutation: tuple[int, ...]

    @property
    def tensor(self) -> ir.TensorProtocol:
        """Values of the stored weight."""
        assert self.stored.const_value is not None
        return self.stored.const_value

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight as the node sees it."""
        stored = self.tensor.shape.numpy()
        seen = [int(stored[axis]) for axis in self.permutation]
        return tuple(seen)

    @property
    def kernel(self) -> tuple[int, ...]:
        """Spatial sizes of a convolution's weight, () of other nodes."""
        if self.node.op_type not in CONVOLUTIONS:
            return ()
        return self.shape[2:]

    @property
    def groups(self) -> int:
        """Groups of a convolution; 1 of every other node."""
        return group_count(self.node)

    @property
    def input_axis(self) -> int:
        """Axis of the seen weight along which input channels lie (of one group, for a Conv)."""
        return summed_axes(self.node, self.index, len(self.permutation))[0]

    @property
    def output_axis(self) -> int | None:
        """Axis of the seen weight along which output channels lie; None where none is."""
        return output_axis(
            self.node,
            self.index,
            len(self.permutation),
        )

    def matrix(self) -> Matrices:
        """Weight as (groups, M, K) in float64, K in the order of `columns`."""
        stored = self.tensor.numpy().astype(np.float64)
        seen = stored.transpose(self.permutation)
        if self.node.op_type not in CONVOLUTIONS:
            inputs_last = np.moveaxis(seen, self.input_axis, -1)
            matrix = inputs_last.reshape(
                1,
                -1,
                seen.shape[self.input_axis],
            )
            return np.ascontiguousarray(matrix)
        matrix = seen.reshape(
            self.groups,
            seen.shape[0] // self.groups,
            -1,
        )
        # weight (C, M / groups, *K): inputs come first
        if self.node.op_type == "ConvTranspose":
            matrix = matrix.transpose(0, 2, 1)
        return np.ascontiguousarray(matrix)

    def restored(self, matrix: NDArray[Any]) -> NDArray[Any]:
        """Matrix (groups, M, K) in the shape of the stored weight: the inverse of `matrix`."""
        shape = self.shape
        if self.node.op_type == "Conv":
            seen = matrix.reshape(shape)
        elif self.node.op_type == "ConvTranspose":
            seen = matrix.transpose(0, 2, 1).reshape(shape)
        else:
            outputs = list(shape)
            inputs = outputs.pop(self.input_axis)
            inputs_last = matrix.reshape(*outputs, inputs)
            seen = np.moveaxis(inputs_last, -1, self.input_axis)
        # argsort inverts a permutation
        stored = seen.transpose(np.argsort(self.permutation))
        return np.ascontiguousarray(stored)

    def columns(self) -> NDArray[np.intp]:
        """Input channel that each column of `matrix` multiplies, (groups, K)."""
        inputs = self.shape[self.input_axis]
        if self.node.op_type != "Conv":
            channels = np.arange(inputs)
            return channels.reshape(self.groups, -1)
        # the input axis holds the channels of one group; each has a column for each position
        channels = np.arange(self.groups * inputs)
        positions = math.prod(self.kernel)
        columns = channels.repeat(positions)
        return columns.reshape(self.groups, -1)

    def request(
        self,
        kind: MomentKind,
        data: ir.Value | None = None,
        axis: int = -1,
        target: str = "",
    ) -> MomentRequest:
        """Moment of what the weight multiplies.

        `data`: the activation, by default the node's first input. `axis`: where its channels lie;
        that of a Conv is known.
        """
        if data is None:
            data = self.node.inputs[0]
        assert data is not None
        assert data.name is not None
        if self.node.op_type != "Conv":
            return MomentRequest(data.name, kind, axis=axis, target=target)
        ones = (1,) * len(self.kernel)
        no_pads = (0, 0) * len(self.kernel)
        attributes = self.node.attributes
        return MomentRequest(
            data.name,
            kind,
            axis=1,
            kernel=self.kernel,
            groups=self.groups,
            strides=tuple(attributes.get_ints("strides") or ones),
            pads=tuple(attributes.get_ints("pads") or no_pads),
            dilations=tuple(attributes.get_ints("dilations") or ones),
            target=target,
        )

    def not_a_product(self) -> str | None:
        """Reason why the node is not one product of a matrix with what `request` measures."""
        padding = self.node.attributes.get_string("auto_pad", "NOTSET")
        if padding not in ("NOTSET", "VALID"):
            return "its padding follows its input's size (auto_pad)"
        if self.node.op_type in ("Gemm", "MatMul") and len(self.permutation) != 2:
            return f"its weight has rank {len(self.permutation)}, not 2"
        read = self.node.inputs[0]
        if read is not None and read.shape is not None and len(read.shape) == 1:
            return "it reads a single vector, without an axis of samples"
        return None


@dataclass(eq=False)
class LinearLayer:
    """A Conv, Gemm or MatMul that multiplies an activation by a constant weight, and its bias.

    `chain`: the way of the weight to the node. `bias_add`: the Add that holds a MatMul's bias, if
    any. `spelling`: the reason why the node is more than product and bias (alpha, say), None if it
    is not.
    """

    node: ir.Node
    chain: Chain
    bias: ir.Value | None
    bias_add: ir.Node | None
    spelling: str | None

    @property
    def name(self) -> str:
        """Name in reports."""
        return label(self.node)

    @property
    def weight(self) -> ir.Value:
        """The stored weight, which Identity, Cast and Transpose nodes may lie behind."""
        return self.chain.source

    @property
    def input(self) -> ir.Value:
        """Activation that the weight multiplies."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def output(self) -> ir.Value:
        """Value after the bias."""
        return (self.bias_add or self.node).outputs[0]

    @property
    def view(self) -> WeightView:
        """The weight as the node sees it."""
        return WeightView(
            self.node,
            1,
            self.weight,
            self._permutation,
        )

    @property
    def tensor(self) -> ir.TensorProtocol:
        """Values of the weight, in float32 whatever type of floats is stored."""
        tensor = self.weight.const_value
        assert tensor is not None
        if tensor.dtype == ir.DataType.FLOAT:
            return tensor
        return DerivedTensor(tensor, _widened, ir.DataType.FLOAT)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the stored weight: (M, C / groups, *K) of a Conv, two axes of the others."""
        assert self.weight.const_value is not None
        return tuple(int(d) for d in self.weight.const_value.shape.numpy())

    @property
    def is_transposed(self) -> bool:
        """True if the node reads the two axes of the stored weight in the other order."""
        return self._permutation == (1, 0)

    @property
    def read_axis(self) -> int:
        """Axis of the weight, as the node reads it, along which output channels lie."""
        axis = output_axis(self.node, 1, len(self.shape))
        assert axis is not None
        return axis

    @property
    def channel_axis(self) -> int:
        """Axis of the stored weight along which output channels lie."""
        return self._permutation[self.read_axis]

    @property
    def _permutation(self) -> tuple[int, ...]:
        return self.chain.permutation(len(self.shape))

    @property
    def channels(self) -> int:
        """Output channels."""
        return self.shape[self.channel_axis]

    @property
    def groups(self) -> int:
        """Groups of a Conv, 1 of the others."""
        return group_count(self.node)

    @property
    def width(self) -> int:
        """Inputs of one output channel."""
        return math.prod(self.shape) // max(self.channels, 1)

    @property
    def pairs(self) -> KernelPairs:
        """Columns of `rows` that meet in integer kernels."""
        # a Gemm with transB stores (N, K) where kernels read (K, N)
        shape = self.shape
        if self.node.op_type != "Conv" and self.channel_axis == 0:
            shape = shape[::-1]
        return kernel_pairs(self.node.op_type, shape, self.groups)

    def rows(self) -> Matrices:
        """Weight as (channels, width) in float64."""
        array = self.tensor.numpy().astype(np.float64)
        channels_first = np.moveaxis(array, self.channel_axis, 0)
        rows = channels_first.reshape(self.channels, -1)
        return np.ascontiguousarray(rows)

    def restored(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Rows (channels, width) in the weight's own shape: the inverse of `rows`."""
        rest = list(self.shape)
        del rest[self.channel_axis]
        channels_first = rows.reshape(self.channels, *rest)
        restored = np.moveaxis(channels_first, 0, self.channel_axis)
        return np.ascontiguousarray(restored)

    def set_rows(self, rows: Matrices) -> None:
        """Make (channels, width) the weight, rounded once to float32."""
        exact = self.restored(rows)
        rounded = exact.astype(np.float32)
        set_tensor(self.weight, ir.Tensor(rounded))

    def set_codes(self, codes: NDArray[np.int8], scales: Matrices) -> None:
        """Make codes (channels, width) times the scale of each channel the weight.

        Only the codes are held; products are computed while the file is written.
        """
        layout = Layout.of(self.shape, self.channel_axis)
        factors = scales.astype(np.float32)

        def kernel(block: NDArray[Any], start: int) -> NDArray[Any]:
            view, channels = layout.view(block, start)
            factor = factors[channels][:, None]
            product = np.multiply(view, factor, dtype=np.float32)
            flat: NDArray[Any] = product.reshape(-1)
            return flat

        # one byte a weight instead of four until the file is written
        stored = self.restored(codes)
        source = ir.Tensor(stored, name=self.weight.name)
        tensor = DerivedTensor(
            source,
            kernel,
            ir.DataType.FLOAT,
            layout.granule,
        )
        set_tensor(self.weight, tensor)

    def block_codes(
        self, codes: NDArray[np.int8], scales: NDArray[np.float32], block: int
    ) -> DerivedTensor:
        """A weight of codes of 4 bits (channels, width) times the scale of each block of inputs.

        Of a Gemm or a MatMul. Only the codes are held, two in a byte. Shapes: scales (channels,
        blocks).
        """
        length = self.shape[1]
        by_rows = self.channel_axis == 0
        # the stored weight is (K, N) otherwise, and a row of it is within one block
        by_stored = scales if by_rows else np.ascontiguousarray(scales.T)

        def kernel(flat: NDArray[Any], start: int) -> NDArray[Any]:
            view = flat.reshape(-1, length).astype(np.int8)
            first = start // length
            numbers = np.arange(first, first + len(view))
            if by_rows:
                factors = by_stored[numbers].repeat(block, axis=1)[:, :length]
            else:
                factors = by_stored[numbers // block]
            product = np.multiply(view, factors, dtype=np.float32)
            flat_product: NDArray[Any] = product.reshape(-1)
            return flat_product

        stored = self.restored(codes)
        in_4_bits = stored.astype(ir.DataType.INT4.numpy())
        packed = ir.Tensor(in_4_bits, dtype=ir.DataType.INT4).tobytes()
        source = ir.PackedTensor(
            np.frombuffer(packed, np.uint8),
            ir.DataType.INT4,
            shape=stored.shape,
            name=self.weight.name,
        )
        return DerivedTensor(
            source,
            kernel,
            ir.DataType.FLOAT,
            length,
        )

    def bias_row(self) -> Matrices:
        """Bias as (channels,) in float64; zeros where there is none."""
        if self.bias is None:
            return np.zeros(self.channels)
        assert self.bias.const_value is not None
        stored = self.bias.const_value.numpy()
        flat = stored.astype(np.float64).reshape(-1)
        # one number stands for all channels
        return np.zeros(self.channels) + flat

    def set_bias(self, row: Matrices, edit: Edit) -> None:
        """Make (channels,) the bias; a node without one is given it (a MatMul by an Add)."""
        array = row.astype(np.float32)
        bias = self.bias
        if bias is not None and used_once(bias) and not bias.is_graph_input():
            assert bias.const_value is not None
            shape = tuple(bias.const_value.shape.numpy())
            # one number for all channels becomes one for each
            if math.prod(shape) == array.size:
                array = array.reshape(shape)
            set_tensor(bias, ir.Tensor(array))
            return
        # others see the old bias too, so the layer is given one of its own
        graph = self.node.graph
        assert isinstance(graph, ir.Graph)
        value = edit.constant(
            graph,
            array,
            f"{self.weight.name}_bias",
        )
        if self.bias_add is not None:
            place = list(self.bias_add.inputs).index(self.bias)
            edit.set_input(self.bias_add, place, value)
        elif self.node.op_type == "MatMul":
            self.bias_add = _add_behind(self.node, value, edit)
        else:
            edit.set_input(self.node, 2, value)
        self.bias = value

    def request(self, kind: MomentKind) -> MomentRequest:
        """Moment `kind` of what the layer multiplies."""
        return self.view.request(kind)

    def not_fittable(self) -> str | None:
        """Reason why the weight cannot be changed by what the layer multiplies; None if it can."""
        if not self.chain.has_one_reader:
            return f"weight '{self.weight.name}' is shared with another node"
        if self.weight.dtype != ir.DataType.FLOAT:
            return f"its weight is stored as {self.weight.dtype}, not FLOAT"
        return self.spelling or self.view.not_a_product()


def _widened(block: NDArray[Any], start: int) -> NDArray[Any]:
    return block.astype(np.float32)


def multiplies_by_weight(node: ir.Node, made: Mapping[ir.Value, bool]) -> bool:
    """True if a node is of an operator that multiplies by a weight, and does so.

    An attention's MatMul of two activations does not. `made`: values made of constants.
    """
    indices = weight_inputs(node)
    # a Conv and a recurrent operator multiply by nothing else
    if indices and node.op_type not in ("MatMul", "Gemm"):
        return True
    for index in indices:
        chain = chain_of(input_of(node, index))
        if chain is None:
            continue
        if chain.source.is_initializer() or not_stored(chain.source, made):
            return True
    return False


def linear_layer(
    node: ir.Node, made: Mapping[ir.Value, bool] = NOTHING_MADE
) -> LinearLayer | str:
    """The node as a linear layer, or the reason why it is none.

    `made`: values made of constants, whose reasons are more precise.
    """
    if node.op_type not in LINEAR_OPS:
        return f"{node.op_type} is not a linear layer"
    chain = chain_of(input_of(node, 1))
    problem = _chain_problem(node, chain, made)
    if problem is None and chain is not None:
        problem = _weight_problem(chain) or _data_problem(node, chain)
    if problem is not None or chain is None:
        return problem or "it has no weight"
    layer = LinearLayer(
        node,
        chain,
        input_of(node, 2),
        None,
        _spelling_problem(node),
    )
    if node.op_type == "MatMul":
        layer.bias_add, layer.bias = _bias_behind(node.outputs[0], layer.channels)
    elif layer.bias is not None:
        size = _size_along_last_axis(layer.bias)
        if size not in (1, layer.channels):
            layer.spelling = (
                "its bias is computed at run time, or not one number a channel"
            )
    return layer


def _chain_problem(
    node: ir.Node, chain: Chain | None, made: Mapping[ir.Value, bool]
) -> str | None:
    """Reason why no stored weight reaches the second input of a node; None if one does."""
    if chain is not None and chain.source.const_value is not None:
        return None
    other = chain_of(input_of(node, 0))
    if node.op_type != "Conv" and other is not None and other.source.is_initializer():
        return "its weight is the left operand of the product, where only the right one is handled"
    reason = not_stored(chain.source, made) if chain is not None else None
    return reason or "its weight is computed at run time"


def _weight_problem(chain: Chain) -> str | None:
    weight = chain.source
    assert weight.const_value is not None
    if weight.is_graph_input():
        return "its weight is also an input of the model: callers may override it"
    if chain.is_shown:
        return "its weight is an output of the model"
    if weight.dtype != ir.DataType.FLOAT and not (
        chain.nodes and weight.dtype in FLOATS
    ):
        problem = f"its weight is {weight.dtype}, not FLOAT"
        is_float = weight.dtype in FLOATS
        return f"{problem}: export the model in float32" if is_float else problem
    if weight.const_value.size == 0:
        return "its weight is empty"
    return None


def _data_problem(node: ir.Node, chain: Chain) -> str | None:
    """Reason why the node is no product of an activation and a matrix or kernel; None if it is."""
    data = input_of(node, 0)
    if data is None or data.dtype not in (None, ir.DataType.FLOAT):
        return "its input is not FLOAT"
    # fold-constants makes one constant of both
    if data.const_value is not None:
        return "its input is constant: run simplify first"
    assert chain.source.const_value is not None
    rank = len(chain.source.const_value.shape.numpy())
    if node.op_type == "MatMul" and rank != 2:
        return f"its weight has rank {rank}, not 2"
    if rank != 2 and chain.permutation(rank) != tuple(range(rank)):
        return "its weight is transposed when the model is loaded: run simplify first"
    return None


def _spelling_problem(node: ir.Node) -> str | None:
    """Reason why this spelling of the operator is no plain product; None if it is."""
    if node.op_type != "Gemm":
        return None
    if node.attributes.get_int("transA", 0):
        return "it transposes its input (transA)"
    alpha = node.attributes.get_float("alpha", 1.0)
    beta = node.attributes.get_float("beta", 1.0)
    if alpha != 1.0 or beta != 1.0:
        return "it scales its product or its bias (alpha, beta)"
    return None


def _bias_behind(
    output: ir.Value, channels: int
) -> tuple[ir.Node | None, ir.Value | None]:
    """The Add of one constant a channel that alone reads `output`, and the constant."""
    if not used_once(output):
        return None, None
    (use,) = output.uses()
    if not is_standard(use.node, "Add"):
        return None, None
    bias = use.node.inputs[1 - use.idx]
    if bias is None or _size_along_last_axis(bias) != channels:
        return None, None
    return use.node, bias


def _size_along_last_axis(value: ir.Value) -> int | None:
    """Elements of a constant that varies along its last axis at most; None of every other value."""
    if not is_constant(value):
        return None
    assert value.const_value is not None
    shape = value.const_value.shape.numpy()
    size = math.prod(shape)
    if size == 1:
        return 1
    return size if shape and size == shape[-1] else None


def _add_behind(node: ir.Node, bias: ir.Value, edit: Edit) -> ir.Node:
    """Insert an Add of `bias` that everything which read the node's output reads instead."""
    old = node.outputs[0]
    graph = node.graph
    assert graph is not None
    name = edit.fresh(f"{node.name or 'MatMul'}_bias")
    # the node's output comes in last: before that, replacing it would make the Add read itself
    add = ir.node("Add", [bias, bias], name=name)
    new = add.outputs[0]
    new.name = edit.fresh(f"{old.name}_biased")
    graph.insert_after(node, add)
    edit.replace(old, new)
    old.type = new.type
    old.shape = new.shape
    add.replace_input_with(0, old)
    return add
