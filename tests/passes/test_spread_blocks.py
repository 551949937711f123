"""Blocks of a tensor that are read at intervals."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx_opt.passes._core import lazy
from onnx_opt.passes._core.lazy import DerivedTensor, blocks
from onnx_opt.passes._dims.sliced import SlicedTensor

VALUES = np.arange(60, dtype=np.float32).reshape(10, 6)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(lazy, "BLOCK", 6)


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
