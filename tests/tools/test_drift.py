"""Exactness: float noise passes, faults do not, whatever the scale of the outputs."""

import numpy as np
import pytest
from onnx_opt.runtime.compare import Drift
from onnx_opt.runtime.tolerance import COARSE, FLOAT32
from onnx_opt.tools._run.drift import Reference, first_batches, inexact


def batches(*values, dtype=np.float32):
    return [{"y": np.array(values, dtype)}]


@pytest.mark.parametrize(
    ("reference", "got"),
    [
        ((1.0, 2.0), (1.0, 2.0)),
        ((1.0, 2.0), (1.00001, 2.0)),
        ((1000.0, 2000.0), (1000.05, 2000.0)),
        ((1e-9, -1e-9), (2e-9, 1e-9)),
        ((float("nan"), float("inf"), 1.0), (float("nan"), float("inf"), 1.0)),
    ],
)
def test_float_noise_is_exact(reference, got):
    assert inexact(batches(*reference), batches(*got), FLOAT32) is None


@pytest.mark.parametrize(
    ("reference", "got", "problem"),
    [
        ((1.0, 2.0), (1.001, 2.0), "output 'y' is off by 0.001 (allowed: 0.0002)"),
        (
            (1e-3, 2e-3),
            (1.05e-3, 2e-3),
            "output 'y' has an SQNR of 33.0 dB (exact passes keep 80.0 dB)",
        ),
        (
            (1.0, 2.0),
            (float("nan"), 2.0),
            "output 'y' has 1 values that are no longer finite",
        ),
        ((float("inf"), 2.0), (1.0, 2.0), "output 'y' is off by inf (allowed: 0.0002)"),
        ((1.0, 2.0), (1.0,), "output 'y': shape [1] instead of [2]"),
    ],
)
def test_faults_are_named(reference, got, problem):
    assert inexact(batches(*reference), batches(*got), FLOAT32) == problem


def test_another_integer_is_a_fault():
    problem = inexact(
        batches(3, 4, dtype=np.int64), batches(3, 5, dtype=np.int64), FLOAT32
    )
    assert problem == "output 'y' is off by 1 (allowed: 0.0004)"


def test_rows_that_moved_are_a_fault():
    rows = [[0, 1, 7], [0, 0, 3]]
    problem = inexact(
        batches(*rows, dtype=np.int64), batches(*rows[::-1], dtype=np.int64), FLOAT32
    )
    assert problem == "output 'y' is off by 4 (allowed: 0.0007)"


def test_the_models_own_noise_widens_the_tolerance():
    reference, got = batches(1.0, 2.0), batches(1.001, 2.0)
    noise = {"y": Drift(60.0, 1.0, 0.0005, 0.0005, None, 0)}
    assert inexact(reference, got, FLOAT32, noise) is None
    assert (
        inexact(reference, batches(1.01, 2.0), FLOAT32, noise)
        == "output 'y' is off by 0.01 (allowed: 0.002)"
    )


def test_models_that_round_between_layers_are_judged_coarsely():
    assert inexact(batches(1.0, 2.0), batches(1.005, 2.0), COARSE) is None
    assert (
        inexact(batches(1.0, 2.0), batches(1.1, 2.0), COARSE)
        == "output 'y' is off by 0.1 (allowed: 0.02)"
    )


@pytest.mark.parametrize(
    ("rows", "taken"), [([1], 1), ([1] * 9, 4), ([100] * 9, 3), ([300, 1], 1)]
)
def test_feeds_for_the_checks_are_few(rows, taken):
    assert (
        len(first_batches({"x": np.zeros((n, 2), np.float32)} for n in rows)) == taken
    )


class Noisy:
    """A session of the original without optimizations: off by `error`."""

    def __init__(self, error):
        self.error = error

    def run(self, feeds):
        (expected,) = batches(2e-7, -1e-7)
        return {"y": expected["y"] + np.float32(self.error)}

    def close(self):
        pass


@pytest.mark.parametrize(
    ("noise", "is_exact", "sqnr_db"),
    [
        # of a lossy result the original's own noise decides
        (1e-8, False, float("inf")),
        (1e-9, False, 24.0),
        (1e-9, True, float("inf")),
    ],
)
def test_an_output_that_is_zero_up_to_noise_has_not_drifted(noise, is_exact, sqnr_db):
    original = batches(2e-7, -1e-7)
    reference = Reference(lambda path, optimize: Noisy(noise), [{}], None, original)
    drift = reference.from_original(batches(2.1e-7, -0.9e-7), is_exact)
    assert drift.sqnr_db == pytest.approx(sqnr_db, abs=0.1)


def test_a_small_output_that_is_off_has_drifted():
    original = batches(2e-3, -1e-3)
    reference = Reference(lambda path, optimize: Noisy(0), [{}], None, original)
    drift = reference.from_original(batches(2.1e-3, -0.9e-3), is_exact=True)
    assert drift.sqnr_db == pytest.approx(24.0, abs=0.1)
