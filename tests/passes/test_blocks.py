"""Blocks of a tensor: read at intervals, computed on several threads."""

import itertools
import threading

import numpy as np
import onnx_ir as ir
import pytest
from onnx_opt.passes._core import lazy
from onnx_opt.passes._core.lazy import (
    DerivedTensor,
    blocks,
    in_order,
    map_blocks,
    side_by_side,
)
from onnx_opt.passes._core.stats import model_stats
from onnx_opt.passes._dims.sliced import SlicedTensor
from onnx_opt.passes._sparsity.masks import zero_beyond

VALUES = np.arange(60, dtype=np.float32).reshape(10, 6)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(lazy, "BLOCK", 6)
    monkeypatch.setattr(lazy, "BATCH", 12)


def in_memory(tmp_path):
    return ir.Tensor(VALUES, name="w")


def in_a_file(tmp_path):
    header = np.full(3, -1, np.float32)
    path = tmp_path / "w.data"
    path.write_bytes(header.tobytes() + VALUES.tobytes())
    return ir.ExternalTensor(
        path.name,
        header.nbytes,
        VALUES.nbytes,
        ir.DataType.FLOAT,
        shape=ir.Shape(VALUES.shape),
        name="w",
        base_dir=tmp_path,
    )


def doubled(tmp_path):
    # by place: a kernel that is given another start would show
    halves = DerivedTensor(
        in_a_file(tmp_path), lambda block, start: block - start, ir.DataType.FLOAT
    )
    return DerivedTensor(halves, lambda block, start: block + start, ir.DataType.FLOAT)


def sliced(tmp_path):
    whole = np.concatenate([VALUES, VALUES], axis=1)
    return SlicedTensor(ir.Tensor(whole, name="w"), {1: np.arange(6)})


@pytest.mark.parametrize("make", [in_memory, in_a_file, doubled, sliced])
@pytest.mark.parametrize("every", [1, 3, 100])
def test_one_block_in_so_many_is_read(make, every, tmp_path):
    found = list(blocks(make(tmp_path), every=every))
    starts = [start for start, _ in found]
    expected = [block for _, block in blocks(make(tmp_path))][::every]
    assert starts == [6 * number for number in range(0, 10, every)]
    for (start, block), whole in zip(found, expected, strict=True):
        assert block.tolist() == whole.tolist() == list(range(start, start + 6))


@pytest.mark.parametrize("granule", [1, 4, 12])
@pytest.mark.parametrize("make", [in_memory, in_a_file, doubled, sliced])
def test_results_of_threads_come_in_order(make, granule, tmp_path):
    tensor = make(tmp_path)
    found = list(map_blocks(lambda block, start: (start, block), tensor, granule))
    expected = list(blocks(tensor, granule))
    assert [start for start, _ in found] == [start for start, _ in expected]
    together = np.concatenate([block for _, block in found])
    assert together.tolist() == VALUES.reshape(-1).tolist()


def test_two_tasks_run_at_once():
    both = threading.Barrier(2)

    def meet(number):
        # raises where no second task comes
        both.wait(timeout=30)
        return number

    tasks = [lambda number=number: meet(number) for number in range(6)]
    assert list(in_order(tasks)) == [0, 1, 2, 3, 4, 5]


def test_a_task_inside_a_task_waits_for_no_thread():
    def outer(number):
        inner = [lambda each=each: each for each in range(number)]
        return sum(in_order(inner))

    tasks = [lambda number=number: outer(number) for number in range(40)]
    assert list(in_order(tasks)) == [sum(range(number)) for number in range(40)]


def test_tasks_that_wait_for_blocks_go_side_by_side(tmp_path):
    tensor = in_a_file(tmp_path)
    both = threading.Barrier(2)

    def total():
        both.wait(timeout=30)
        return sum(map_blocks(lambda block, start: float(block.sum()), tensor))

    assert list(side_by_side([total] * 4)) == [float(VALUES.sum())] * 4


def test_tasks_that_wait_for_blocks_do_not_wait_for_each_other_inside_a_block(tmp_path):
    tensor = in_a_file(tmp_path)

    def inner(block, start):
        def total():
            return sum(map_blocks(lambda part, _: float(part.sum()), tensor))

        return list(side_by_side([total] * 2))

    found = list(map_blocks(inner, tensor))
    assert len(found) > 2
    assert found == [[float(VALUES.sum())] * 2] * len(found)


def test_few_tasks_run_ahead():
    begun = []
    endless = (
        lambda number=number: begun.append(number) for number in itertools.count()
    )
    results = in_order(endless)
    next(results)
    results.close()
    assert len(begun) <= lazy.THREADS + 1


def test_an_error_of_a_block_reaches_the_caller(tmp_path):
    def fail(block, start):
        if start >= 24:
            raise ArithmeticError(start)
        return start

    found = map_blocks(fail, in_a_file(tmp_path))
    assert list(itertools.islice(found, 4)) == [0, 6, 12, 18]
    with pytest.raises(ArithmeticError):
        next(found)


@pytest.mark.parametrize("make", [in_memory, in_a_file, doubled])
def test_a_kernel_leaves_its_source_as_it_is(make, tmp_path):
    """It writes into the blocks that it is given, where they are its own."""
    source = make(tmp_path)
    key = int(np.float32(20).view(np.uint32))
    pruned = zero_beyond(source, "min", key, source.size, np.uint32)
    flat = VALUES.reshape(-1)
    for _ in range(2):
        assert (
            pruned.numpy().reshape(-1).tolist() == np.where(flat > 20, flat, 0).tolist()
        )
        assert source.numpy().reshape(-1).tolist() == flat.tolist()


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int8, np.int64])
def test_nonzeros_are_counted_whatever_their_type(kind):
    values = np.array([0, 1, 0, 3, 100] * 8).astype(kind)
    if kind in (np.float32, np.float16):
        values[:4] = [-0.0, np.nan, np.inf, np.finfo(kind).smallest_subnormal]
    graph = ir.Graph([], [], nodes=[], name="g", opset_imports={"": 21})
    graph.register_initializer(
        ir.Value(name="w", const_value=ir.Tensor(values, name="w"))
    )
    stats = model_stats(ir.Model(graph, ir_version=10), count_macs=False)
    counted = 0 if kind == np.int64 else int(np.count_nonzero(values))
    assert stats.nonzero == counted
