"""Interrupted training goes on as if nothing had happened; several processes do what one does."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_opt import RefusedError
from onnx_opt.frontends.training import loop as loop_module
from training_models import (
    MLP,
    batches,
    model_of,
    pruned,
    rows,
    serialized,
    trained,
    weights,
)

HERE = Path(__file__).parent
WORKER = """
import sys
sys.path[:0] = sys.argv[2:]
import conftest
import torch
torch.set_num_threads(1)
from training_models import *
teacher = model_of(MLP)
student = pruned(teacher, 0.6)
result = trained(student, teacher, batches(rows()), steps=40, batch=32, precision="float32")
import os
with open(sys.argv[1] + os.environ.get("RANK", "0"), "wb") as file:
    file.write(serialized(student))
"""


class Interruption(Exception):
    """Stands for Ctrl-C."""


def interrupted_at(monkeypatch, step):
    real = loop_module.Loop.step

    def stopping(self, progress):
        if self.account.steps == step:
            raise Interruption
        real(self, progress)

    monkeypatch.setattr(loop_module.Loop, "step", stopping)


def test_an_interrupted_training_ends_where_a_whole_one_does(tmp_path, monkeypatch):
    teacher = model_of(MLP)
    whole = pruned(teacher, 0.6)
    trained(whole, teacher, batches(rows()), steps=50)
    student = pruned(teacher, 0.6)
    with monkeypatch.context() as patch:
        interrupted_at(patch, 33)
        with pytest.raises(Interruption):
            trained(student, teacher, batches(rows()), steps=50, folder=tmp_path)
    assert serialized(student) == serialized(pruned(teacher, 0.6))
    (state,) = tmp_path.iterdir()
    interrupted_at(
        monkeypatch, 29
    )  # it was saved at step 30: no step before that is done again
    result = trained(student, teacher, batches(rows()), steps=50, folder=tmp_path)
    assert result.stats["steps"] == 50
    assert serialized(student) == serialized(whole)
    assert state.exists()


def test_the_seed_of_a_step_is_the_same_in_every_version_of_python():
    assert loop_module._step_seed(0, 0) == 15793235383387715774
    assert loop_module._step_seed(3, 7) == 9565533078676835473


def test_blocks_that_are_done_are_not_trained_anew(tmp_path, monkeypatch):
    teacher = model_of(MLP)
    whole, student = pruned(teacher, 0.6), pruned(teacher, 0.6)
    trained(whole, teacher, batches(rows()), preset="block", steps=30, watch="loss")
    fits = []
    real = loop_module.Loop.run

    def stopping(self):
        fits.append(self)
        if len(fits) == 2:
            raise Interruption
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop_module.Loop, "run", stopping)
        with pytest.raises(Interruption):
            trained(
                student,
                teacher,
                batches(rows()),
                preset="block",
                steps=30,
                watch="loss",
                folder=tmp_path,
            )
        result = trained(
            student,
            teacher,
            batches(rows()),
            preset="block",
            steps=30,
            watch="loss",
            folder=tmp_path,
        )
    assert len(fits) == 3  # two blocks: the first once, the second once more
    assert result.stats["blocks"] == 2
    assert serialized(student) == serialized(whole)


def test_another_training_does_not_take_its_state(tmp_path):
    teacher = model_of(MLP)
    for options in ({}, {"seed": 1}, {"rate": 0.02}):
        trained(
            pruned(teacher, 0.6),
            teacher,
            batches(rows()),
            steps=5,
            folder=tmp_path,
            **options,
        )
    assert len(list(tmp_path.iterdir())) == 3


def test_a_damaged_state_is_named(tmp_path):
    teacher = model_of(MLP)
    trained(pruned(teacher, 0.6), teacher, batches(rows()), steps=5, folder=tmp_path)
    (state,) = tmp_path.iterdir()
    state.write_bytes(b"not a checkpoint")
    with pytest.raises(RefusedError, match="cannot be read"):
        trained(
            pruned(teacher, 0.6), teacher, batches(rows()), steps=5, folder=tmp_path
        )


def processes(count: int, out: Path) -> list[bytes]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    team = {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    paths = [str(HERE), str(HERE.parents[1])]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(out), *paths],
            env={**os.environ, **team, "RANK": str(rank)},
        )
        for rank in range(count)
    ]
    assert [p.wait(120) for p in running] == [0] * count
    return [Path(f"{out}{rank}").read_bytes() for rank in range(count)]


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path):
    alone, teacher = pruned(model_of(MLP), 0.6), model_of(MLP)
    trained(alone, teacher, batches(rows()), steps=40, batch=32, precision="float32")
    first, second = processes(2, tmp_path / "team")
    assert first == second
    one, two = (
        weights(alone),
        weights(ir.from_proto(onnx.load_model_from_string(first))),
    )
    for name, weight in one.items():
        np.testing.assert_allclose(two[name], weight, atol=1e-4)
    assert not np.array_equal(one["w1"], weights(pruned(model_of(MLP), 0.6))["w1"])
