"""Outputs that are held for comparison: large ones in files without a name."""

import gc
import os
import tempfile

import numpy as np
import pytest
from onnx_opt.runtime._worker import ipc
from onnx_opt.runtime.held_outputs import IN_MEMORY, HeldOutputs

LARGE = IN_MEMORY // 4 + 1
"""Elements of float32 that do not stay in memory."""


def large(value: float) -> dict[str, np.ndarray]:
    return {"logits": np.full(LARGE, value, np.float32), "label": np.array(["a", "b"])}


def test_small_outputs_stay_in_memory() -> None:
    outputs = {"y": np.arange(4.0)}

    held = HeldOutputs([outputs])

    (found,) = held
    assert found is outputs


def test_large_outputs_come_back_as_often_as_wanted() -> None:
    held = HeldOutputs(large(value) for value in (1.0, 2.0))

    for _ in range(2):
        first, second = held
        assert (first["logits"] == 1).all()
        assert (second["logits"] == 2).all()
        assert second["label"].tolist() == ["a", "b"]


def test_the_first_batches_are_shared_and_outlive_the_rest() -> None:
    held = HeldOutputs([large(1.0), {"y": np.arange(4.0)}, large(3.0)])

    first = held.first(2)
    del held
    gc.collect()

    assert len(first) == 2
    one, _ = first
    assert (one["logits"] == 1).all()


@pytest.mark.skipif(os.name == "nt", reason="Windows gives such files a name")
def test_nothing_is_left_in_the_folder_of_temporary_files(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    held = HeldOutputs([large(1.0)])

    assert not list(tmp_path.iterdir())
    assert len(held) == 1


def test_a_full_disk_leaves_outputs_in_memory(monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ipc, "send", full)
    outputs = large(1.0)

    held = HeldOutputs([outputs])

    (found,) = held
    assert found is outputs
