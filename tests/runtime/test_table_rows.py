"""Ids beyond a model's table are named: input, row and id."""

import numpy as np
import pytest
from onnx_opt.runtime.session import open_session
from onnx_opt.runtime.table_rows import row_at_fault
from onnx_opt.runtime.worker import RemoteError

TABLE = """
<ir_version: 8, opset_import: ["" : 17]>
table (int64[N, L] ids, int64[N, L] mask) => (float[N, L, 1] y)
<float[3, 1] t = {1, 2, 3}>
{ kept = Mul (ids, mask)  y = Gather (t, kept) }
"""

WORDS = "idx=9 must be within the inclusive range [-3,2]"


def test_another_error_is_none_of_ids():
    assert row_at_fault("Got invalid dimensions", {"ids": np.array([[9]])}) is None


def test_indices_that_are_computed_inside_are_not_looked_for():
    assert row_at_fault(WORDS, {"x": np.ones((2, 3), np.float32)}) is None
    assert row_at_fault(WORDS, {"ids": np.array([[1, 2]])}) is None


def test_the_first_row_at_fault_is_named(worker, write):
    session = open_session(worker, write(TABLE))
    ids = np.array([[0, 1], [2, 7], [9, 0]])
    with pytest.raises(RemoteError) as error:
        session.run({"ids": ids, "mask": np.ones_like(ids)})
    assert error.value.problem == (
        "input 'ids', row 2 of a batch (2, 7): the id 7 has no row in the model's table,"
        " whose rows are 0 to 2"
    )
    assert "tokenizer.json" in error.value.fix
