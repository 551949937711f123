"""The weights of a graph: float tensors that an op learns by, as opposed to its settings."""

from __future__ import annotations

import functools
import keyword
import re
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...passes._core.ops import FLOATS, WEIGHTED_OPS, is_standard
from ._constants import PASSING, constants_of
from ._dtypes import RANGES
from ._latents import Latent

InputTable = dict[str, tuple[int, ...] | None]
"""Op -> indices of some of its inputs; None: all of them."""

PEEPHOLES = 7
"""Input of an LSTM that lets its gates see the cell."""


def _multiplied_inputs() -> dict[str, tuple[int, ...]]:
    """Return the inputs of weighted operators that are learned: weights, biases, peepholes."""
    table: dict[str, tuple[int, ...]] = {}
    for name, weighted in WEIGHTED_OPS.items():
        bias = () if weighted.bias is None else (weighted.bias,)
        table[name] = weighted.weights + bias
    table["LSTM"] += (PEEPHOLES,)
    return table


LEARNED: InputTable = {
    **_multiplied_inputs(),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "RMSNormalization": (1,),
    "PRelu": (1,),
    "DeformConv": (1, 3),
    "Gather": (0,),
    "Einsum": None,
}
"""Inputs that are weights whatever their size.

More than `WEIGHTED_OPS` of passes/_core/ops.py, whose passes prune and quantize matrices only:
training moves biases, norms and embeddings too.
"""

SETTINGS: InputTable = {
    "BatchNormalization": (3, 4),
    "Clip": (1, 2),
    "Pad": (1, 2, 3),
    "Resize": (1, 2, 3),
    "Upsample": (1,),
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "Pow": (1,),
    "Dropout": (1, 2),
    "OneHot": None,
    "Range": None,
    "Mod": None,
    "Equal": None,
    "Less": None,
    "Greater": None,
    "LessOrEqual": None,
    "GreaterOrEqual": None,
    "NonMaxSuppression": None,
    "RoiAlign": (1, 2),
    "MaxRoiPool": (1,),
    "GridSample": (1,),
    "Shape": None,
    "Size": None,
    "Loop": None,
    "Scan": None,
    "If": None,
    "Where": (0,),
    "RotaryEmbedding": (1, 2),
    "STFT": (2,),
    "ConstantOfShape": None,
    "LSTM": (4, 5, 6),
    "GRU": (4, 5),
    "RNN": (4, 5),
    "QLinearConv": None,
    "QLinearMatMul": None,
    "QLinearAdd": None,
}
"""Inputs that set how an op works and are never trained."""


@dataclass(frozen=True, eq=False)
class Origin:
    """The constant behind a trained tensor: an initializer, or the output of a Constant node.

    `latent`: set for stored codes; the parameter is then in units of their grid. `is_palette`: it
    is the values that these codes have, as `Latent.palette` says. `shared`: it is a weight here and
    a setting there (exporters store equal tensors once: a scale of ones, a variance of ones); there
    it is not trained. `reach`: largest code that the tensor scales, 1 for anything but a scale: how
    far a step of one moves what is computed with it.
    """

    graph: str
    value: ir.Value
    dtype: ir.DataType
    latent: Latent | None = None
    shared: bool = False
    reach: float = 1.0
    is_palette: bool = False

    @property
    def name(self) -> str:
        """Name of the constant in its graph; of a palette one that no constant there has."""
        name = self.value.name or ""
        return f"{name} (palette)" if self.is_palette else name

    @functools.cached_property
    def limits(self) -> tuple[float, float] | None:
        """Lowest and highest number that the parameter may be; None for any.

        Values of a palette keep to the range of the whole weight: beyond it codes might saturate.
        """
        latent = self.latent
        if latent is None or not latent.step:
            return None
        if self.is_palette:
            assert latent.palette is not None
            return latent.palette.range
        return latent.low, latent.high


def trainable_values(
    model: ir.Model, train: bool | Collection[str], scales: bool
) -> dict[ir.Value, Origin]:
    """Find the float constants to train, in graph order.

    `train`: True for all weights, False for none, names for exactly those (scalars too). `scales`:
    with all weights also the scales of quantization.
    """
    found: dict[ir.Value, Origin] = {}
    if train is False:
        return found
    for graph, value, tensor in constants_of(model):
        if tensor.dtype not in FLOATS or tensor.size == 0:
            continue
        # names choose among all floats, so that a setting can be trained on request
        weight = is_weight(value, tensor)
        largest_code = _largest_code(value)
        if isinstance(train, bool):
            chosen = weight or (scales and largest_code > 1)
        else:
            chosen = value.name in train
        if not chosen:
            continue
        found[value] = Origin(
            graph,
            value,
            tensor.dtype,
            shared=weight and bool(setting_uses(value)),
            reach=max(largest_code, 1.0),
        )
    return found


def is_weight(value: ir.Value, tensor: ir.TensorProtocol) -> bool:
    """Return whether some op learns by a constant.

    In the position of a weight or bias it counts at any size, elsewhere from two elements on: a
    single number is a factor or an epsilon. Infinite entries make it a mask.
    """
    learned = 0
    plain = 0
    waiting = [value]
    seen = {value}
    while waiting:
        for node, index in waiting.pop().uses():
            # of other domains' ops nothing is known: what they read may be a weight
            if not is_standard(node):
                plain += 1
            elif _within(LEARNED, node, index):
                learned += 1
            elif node.op_type in PASSING and index == 0:
                waiting.extend(out for out in node.outputs if out not in seen)
                seen.update(node.outputs)
            elif not _within(SETTINGS, node, index):
                plain += 1
    by_size = plain > 0 and tensor.size >= 2
    if not learned and not by_size:
        return False
    values = tensor.numpy().astype(np.float32)
    return bool(np.isfinite(values).all())


def _largest_code(value: ir.Value) -> float:
    """Return the largest code that a value scales; 0 if it is no scale."""
    largest = 0.0
    for node, index in value.uses():
        if index != 1:
            continue
        dtype = _dtype_of_codes(node)
        # 32-bit codes are biases, whose scale follows from two others
        if dtype in RANGES and dtype != ir.DataType.INT32:
            largest = max(largest, float(RANGES[dtype][1]))
    return largest


def _dtype_of_codes(node: ir.Node) -> ir.DataType | None:
    """Return the type of the integers that a node quantizes to or from; None for other nodes."""
    if node.op_type == "QuantizeLinear":
        codes: ir.Value | None = node.outputs[0]
    elif node.op_type == "DequantizeLinear":
        codes = node.inputs[0]
    else:
        return None
    if codes is not None and codes.dtype:
        return codes.dtype
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is not None and zero.dtype:
        return zero.dtype
    # the standard's type where no zero point names one
    return ir.DataType.UINT8


def setting_uses(value: ir.Value) -> list[tuple[ir.Node, int]]:
    """List the (node, input) that read a value as a setting, through Identities too."""
    found: list[tuple[ir.Node, int]] = []
    waiting = [value]
    while waiting:
        for node, index in waiting.pop().uses():
            if node.op_type == "Identity":
                waiting.extend(node.outputs)
            elif is_setting(node, index):
                found.append((node, index))
    return found


def behind_identities(value: ir.Value | None) -> ir.Value | None:
    """Follow a value back through Identities."""
    while value is not None:
        node = value.producer()
        if node is None or node.op_type != "Identity":
            return value
        value = node.inputs[0]
    return None


def is_setting(node: ir.Node, index: int) -> bool:
    """Return whether an op reads the input as a setting."""
    if not is_standard(node) or _within(LEARNED, node, index):
        return False
    return _within(SETTINGS, node, index)


def _within(table: InputTable, node: ir.Node, index: int) -> bool:
    if node.op_type not in table:
        return False
    indexes = table[node.op_type]
    return indexes is None or index in indexes


def attribute_name(name: str, taken: Collection[str]) -> str:
    """Make an initializer's name a free attribute of the module.

    `taken`: attributes that the module has. The result is no keyword and reads like no buffer of a
    constant or of a mask.
    """
    # Names of passes/_core/graph.py keeps the names of a graph apart; these are Python's.
    stem = re.sub(r"\W", "_", name) or "weight"
    if not stem[0].isalpha():
        stem = f"w{stem}"
    if keyword.iskeyword(stem) or re.fullmatch(r"constant_\d+|.*_kept", stem):
        stem = f"{stem}_"
    candidate = stem
    number = 0
    while candidate in taken:
        number += 1
        candidate = f"{stem}_{number}"
    return candidate
