"""Ops that move elements, and those that compute with shapes."""

from __future__ import annotations

import numpy as np

from ..builder import ANY, FLOATS, NUMBERS, Builder, Rejected, Value
from .registry import recipe

INDICES = ("int64", "int32")


def axis_of(b: Builder, x: Value) -> int:
    """An axis, counted from either end."""
    axis = b.number(0, x.rank - 1)
    return axis - x.rank if b.chance(0.3) else axis


def ranked(b: Builder, low: int = 1, high: int = 4, dtypes=ANY) -> Value:
    return b.pick(dtypes, rank=range(low, high + 1))


def splits(b: Builder, size: int, parts: int) -> list[int]:
    """Whole numbers whose product is `size`."""
    found = []
    for _ in range(parts - 1):
        divisors = [d for d in range(1, max(size, 1) + 1) if size % d == 0]
        found.append(b.one_of(divisors))
        size //= found[-1]
    return [*found, size]


@recipe(5)
def reshape(b: Builder) -> None:
    x = b.pick(ANY, rank=(1, 2, 3, 4))
    target = splits(b, x.array.size, b.number(1, 4))
    # a copied dim, and one that follows from the others
    for axis in range(min(len(target), x.rank)):
        if target[axis] == x.shape[axis] and b.chance(0.5):
            target[axis] = 0
    if b.chance(0.4) and x.array.size:
        target[b.number(0, len(target) - 1)] = -1
    b.node("Reshape", [x, b.ints(*target)])


@recipe(2)
def reshape_like(b: Builder) -> None:
    """A target computed from a shape, as exporters write it."""
    x = b.pick(ANY, rank=(2, 3, 4))
    shape = b.node("Shape", [x])
    first = b.node("Gather", [shape, b.ints(0)])
    rest = b.ints(-1) if b.chance(0.5) else b.ints(*x.shape[1:])
    target = b.node("Concat", [first, rest], axis=0)
    if 0 in x.shape:
        raise Rejected("-1 beside a zero")
    b.node("Reshape", [x, target])


@recipe(4)
def transpose(b: Builder) -> None:
    x = ranked(b, 2)
    order = b.random.permutation(x.rank).tolist()
    b.node("Transpose", [x], **({} if b.chance(0.15) else {"perm": order}))


@recipe(2)
def squeeze(b: Builder) -> None:
    x = b.pick(ANY, rank=(1, 2, 3, 4), test=lambda v: 1 in v.shape)
    axes = [axis for axis, length in enumerate(x.shape) if length == 1]
    if b.chance(0.2):
        b.node("Squeeze", [x])
    else:
        b.node("Squeeze", [x, b.ints(b.one_of(axes))])


@recipe(2.5)
def unsqueeze(b: Builder) -> None:
    x = b.pick(ANY, rank=(0, 1, 2, 3))
    count = b.number(1, 2)
    axes = sorted(b.random.permutation(x.rank + count)[:count].tolist())
    if b.chance(0.3):
        axes = [axis - x.rank - count for axis in axes]
    b.node("Unsqueeze", [x, b.ints(*axes)])


@recipe(1)
def flatten(b: Builder) -> None:
    x = b.pick(ANY, rank=(1, 2, 3, 4))
    b.node("Flatten", [x], axis=b.number(-x.rank, x.rank))


@recipe(4)
def concat(b: Builder) -> None:
    x = ranked(b)
    axis = axis_of(b, x)
    fits = [
        v for v in b.visible() if v.dtype == x.dtype and _alike(v.shape, x.shape, axis)
    ]
    others = [b.one_of(fits) for _ in range(b.number(0, 2))]
    b.node("Concat", [x, *others], axis=axis)


def _alike(first: tuple[int, ...], second: tuple[int, ...], axis: int) -> bool:
    if len(first) != len(second):
        return False
    axis %= len(second)
    return first[:axis] + first[axis + 1 :] == second[:axis] + second[axis + 1 :]


@recipe(2.5)
def split(b: Builder) -> None:
    x = b.pick(ANY, rank=(1, 2, 3, 4), test=lambda v: max(v.shape) > 1)
    axis = axis_of(b, x)
    length = x.shape[axis]
    first = b.number(1, max(length - 1, 1))
    parts = [first, length - first]
    if length % 2 == 0 and b.chance(0.3):
        extra = {"num_outputs": 2} if b.opset >= 18 else {}
        halves = b.nodes("Split", [x], 2, axis=axis, **extra)
    else:
        halves = b.nodes("Split", [x, b.ints(*parts)], 2, axis=axis)
    if b.chance(0.25):
        b.node("Concat", halves if b.chance(0.7) else halves[::-1], axis=axis)


@recipe(4)
def slice_(b: Builder) -> None:
    x = ranked(b)
    axes = sorted(b.random.permutation(x.rank)[: b.number(1, min(2, x.rank))].tolist())
    starts, ends, steps = [], [], []
    for axis in axes:
        length = x.shape[axis]
        start = b.number(0, max(length - 1, 0))
        end = b.number(start, length)
        step = b.one_of([1, 1, 1, 2])
        if b.chance(0.15):
            start, end, step = length - 1, -length - 1, -1
        elif b.chance(0.2):
            start, end = 0, 2**31
        elif b.chance(0.2) and length:
            start -= length
        starts.append(start)
        ends.append(end)
        steps.append(step)
    inputs = [x, b.ints(*starts), b.ints(*ends), b.ints(*axes)]
    if steps != [1] * len(axes) or b.chance(0.3):
        inputs.append(b.ints(*steps))
    b.node("Slice", inputs)


@recipe(2)
def pad(b: Builder) -> None:
    x = b.pick((*NUMBERS,), rank=(1, 2, 3, 4))
    mode = b.one_of(["constant", "constant", "constant", "edge", "reflect", "wrap"])
    most = 2 if mode == "constant" else min(1, max(min(x.shape) - 1, 0))
    pads = [b.number(0, most) if b.chance(0.6) else 0 for _ in range(2 * x.rank)]
    inputs: list[Value | None] = [x, b.ints(*pads)]
    if mode == "constant" and b.chance(0.5):
        inputs.append(b.constant(np.asarray(b.one_of([0, 1]), x.array.dtype)))
    b.node("Pad", inputs, mode=mode)


@recipe(1)
def tile(b: Builder) -> None:
    x = ranked(b, 1, 3)
    repeats = [b.number(1, 2) if b.chance(0.5) else 1 for _ in range(x.rank)]
    b.node("Tile", [x, b.ints(*repeats)])


@recipe(2)
def expand(b: Builder) -> None:
    x = ranked(b, 0, 3)
    shape = [b.number(1, 3) if d == 1 else d for d in x.shape]
    if b.chance(0.3):
        shape = [b.number(1, 3), *shape]
    b.node("Expand", [x, b.ints(*shape)])


def indices(b: Builder, length: int, shape: tuple[int, ...]) -> Value:
    """Positions on an axis, from either end; constant, or an input."""
    if length == 0:
        raise Rejected("nothing to index")
    low = -length if b.chance(0.3) else 0
    array = b.random.integers(low, length, shape).astype(b.one_of(INDICES))
    return b.constant(array) if b.chance(0.7) else b.leaf(array)


@recipe(3)
def gather(b: Builder) -> None:
    x = ranked(b)
    axis = axis_of(b, x)
    shape = tuple(b.number(1, 3) for _ in range(b.number(0, 2)))
    b.node("Gather", [x, indices(b, x.shape[axis], shape)], axis=axis)


@recipe(1)
def gather_elements(b: Builder) -> None:
    x = ranked(b)
    axis = axis_of(b, x)
    b.node("GatherElements", [x, indices(b, x.shape[axis], x.shape)], axis=axis)


@recipe(1)
def gather_nd(b: Builder) -> None:
    x = ranked(b)
    depth = b.number(1, x.rank)
    if 0 in x.shape:
        raise Rejected("nothing to index")
    rows = [b.random.integers(0, x.shape[:depth]) for _ in range(b.number(1, 3))]
    b.node("GatherND", [x, b.constant(np.array(rows, np.int64))])


@recipe(1)
def scatter_elements(b: Builder) -> None:
    x = b.pick((*NUMBERS,), rank=(1, 2, 3))
    axis = axis_of(b, x) % x.rank
    if 0 in x.shape:
        raise Rejected("nothing to index")
    # a place a row, so that none is written twice
    shape = tuple(1 if at == axis else d for at, d in enumerate(x.shape))
    places = b.constant(b.random.integers(0, x.shape[axis], shape))
    updates = b.leaf(b.array(x.dtype, shape))
    extra = {"reduction": "add"} if b.opset >= 16 and b.chance(0.3) else {}
    b.node("ScatterElements", [x, places, updates], axis=axis, **extra)


@recipe(0.8)
def scatter_nd(b: Builder) -> None:
    x = b.pick((*NUMBERS,), rank=(1, 2, 3), test=lambda v: v.array.size > 0)
    row = np.array([[b.number(0, x.shape[0] - 1)]], np.int64)
    updates = b.leaf(b.array(x.dtype, (1, *x.shape[1:])))
    b.node("ScatterND", [x, b.constant(row), updates])


@recipe(2.5)
def shape_of(b: Builder) -> None:
    x = b.pick(ANY)
    if b.chance(0.2):
        b.node("Size", [x])
        return
    extra = {}
    if b.opset >= 15 and x.rank and b.chance(0.4):
        extra = {"start": b.number(-x.rank, x.rank - 1)}
        if b.chance(0.5):
            extra["end"] = b.number(-x.rank, x.rank)
    b.node("Shape", [x], **extra)


@recipe(1)
def constant_of_shape(b: Builder) -> None:
    from onnx import numpy_helper

    shape = b.pick(("int64",), rank=(1,), test=_is_shape)
    dtype = b.one_of(ANY)
    value = numpy_helper.from_array(b.array(dtype, (1,)))
    b.node("ConstantOfShape", [shape], **({} if b.chance(0.3) else {"value": value}))


def _is_shape(value: Value) -> bool:
    array = value.array
    return len(array) <= 4 and bool(np.all((array >= 0) & (array <= 6)))


@recipe(0.8)
def range_(b: Builder) -> None:
    dtype = b.one_of(["int64", "int32", "float32"])
    ends = [np.asarray(number, dtype) for number in (0, b.number(0, 5), 1)]
    start, step = b.constant(ends[0]), b.constant(ends[2])
    limit = b.constant(ends[1])
    if dtype == "int64" and b.chance(0.6):
        limit = b.node("Size", [b.pick(ANY, test=lambda v: v.array.size < 40)])
    b.node("Range", [start, limit, step])


@recipe(0.8)
def triangle(b: Builder) -> None:
    x = ranked(b, 2)
    if b.chance(0.4):
        square = b.pick(FLOATS, rank=(2,))
        b.node("EyeLike", [square], k=b.number(-1, 1))
    else:
        inputs = [x]
        if b.chance(0.5):
            inputs.append(b.constant(np.asarray(b.number(-1, 1), np.int64)))
        b.node("Trilu", inputs, upper=b.number(0, 1))


@recipe(0.6)
def one_hot(b: Builder) -> None:
    x = b.pick(("int64",), rank=(1, 2))
    depth = b.constant(np.asarray(4, np.int64))
    pair = b.constant(b.array(b.one_of(["float32", "int64"]), (2,)))
    b.node("OneHot", [x, depth, pair], axis=-1)


@recipe(0.6)
def nonzero(b: Builder) -> None:
    x = b.pick(("bool", "int64", "int32"), rank=(1, 2))
    b.node("NonZero", [x])


@recipe(0.6)
def compress(b: Builder) -> None:
    x = ranked(b, 1, 3)
    axis = axis_of(b, x)
    mask = b.leaf(b.array("bool", (x.shape[axis],)))
    b.node("Compress", [x, mask], axis=axis)


@recipe(0.8)
def depth_and_space(b: Builder) -> None:
    shape = (1, 4 * b.number(1, 2), 2, 4)
    x = b.pick(rank=(4,), test=lambda v: v.shape[1] % 4 == 0, fresh=0.2)
    if x.shape[1] % 4:
        x = b.leaf(b.array("float32", shape))
    y = b.node("DepthToSpace", [x], blocksize=2, mode=b.one_of(["DCR", "CRD"]))
    if b.chance(0.5):
        b.node("SpaceToDepth", [y], blocksize=2)


@recipe(0.5)
def reverse_sequence(b: Builder) -> None:
    x = b.pick(rank=(2, 3), test=lambda v: v.array.size > 0)
    lengths = b.random.integers(1, x.shape[0] + 1, (x.shape[1],))
    b.node("ReverseSequence", [x, b.constant(lengths.astype(np.int64))])


@recipe(1)
def resize(b: Builder) -> None:
    x = b.pick(("float32",), rank=(4,), test=lambda v: v.array.size > 0)
    mode = b.one_of(["nearest", "linear"])
    if b.chance(0.5):
        scales = b.constant(np.array([1, 1, 2, b.one_of([1, 2])], np.float32))
        b.node("Resize", [x, None, scales], mode=mode)
    else:
        sizes = [*x.shape[:2], x.shape[2] * 2, x.shape[3]]
        b.node("Resize", [x, None, None, b.ints(*sizes)], mode=mode)
