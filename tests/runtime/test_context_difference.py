"""Distance of two models, as a run tells it to its passes: real runs, on data and on made-up
feeds.
"""

import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_opt import RefusedError
from onnx_opt.passes._base import NullContext
from onnx_opt.runtime.context import RunContext
from onnx_opt.runtime.difference import largest_error
from onnx_opt.runtime.feeds import open_feeds, sized_feeds
from onnx_opt.runtime.session import Session, TensorInfo
from onnx_opt.runtime.worker import Worker

NET = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[N, 2] x) => (float[N, 2] y, float[N, 2] z)
<float[2, 2] w = {1, -1, 1, 1}, float[2] v = {1, 2}>
{ y = MatMul (x, w)  z = Mul (x, v) }
"""
FIXED_BATCH = """
<ir_version: 10, opset_import: ["" : 21]>
fixed (float[N, 2] x) => (float[N, 2] y)
<int64[2] shape = {3, 2}>
{ y = Reshape (x, shape) }
"""
COPY = """
<ir_version: 10, opset_import: ["" : 21]>
copy (float[N, 2] x) => (float[N, 2] y)
{ y = Identity (x) }
"""
INVALID = COPY.replace("Identity (x)", "Reshape (x, x)")
POSITIVE = """
<ir_version: 10, opset_import: ["" : 21]>
positive (float[N, 4] x) => (int64[N, 4] y)
<float zero = {0}>
{ p = Greater (x, zero)  y = Cast <to = 7> (p) }
"""
ONES = POSITIVE.replace("Cast <to = 7> (p)", "Cast <to = 7> (q)").replace(
    "y =", "n = Not (p)  q = Or (p, n)  y ="
)
NOWHERE_FINITE = """
<ir_version: 10, opset_import: ["" : 21]>
nowhere_finite (float[N, 2] x) => (float[N, 2] y)
<float one = {1}>
{ p = Abs (x)  q = Add (p, one)  n = Neg (q)  y = Sqrt (n) }
"""
INPUTS = [TensorInfo("x", "float32", ("N", 2))]
DATA = {"x": np.array([[1, 2], [3, 4], [-8, 1]], np.float32)}


def model_of(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(text))


def context(worker, data=None, inputs=INPUTS, **keywords) -> RunContext:
    feeds = None if data is None else open_feeds(data, inputs)
    return RunContext(
        worker, feeds, "cpu", 0, lambda model, path: ir.save(model, path), **keywords
    )


def difference(worker, first: str, second: str, data=None) -> tuple[float, str, str]:
    found = context(worker, data).difference(model_of(first), model_of(second))
    assert found is not None
    return found[:3]


@pytest.fixture
def rows_run(monkeypatch):
    """The batch sizes of the feeds that sessions are run on."""
    rows, run = [], Session.run

    def counted(self, feeds):
        rows.append(len(feeds["x"]))
        return run(self, feeds)

    monkeypatch.setattr(Session, "run", counted)
    return rows


@pytest.mark.parametrize("data", [None, DATA])
@pytest.mark.parametrize("model", [NET, POSITIVE.replace("N, 4", "N, 2")])
def test_equal_models(worker, model, data):
    assert difference(worker, model, model, data) == (0, "", "")


def test_nothing_where_the_run_does_not_run_models(worker):
    assert context(worker, runs=False).difference(model_of(NET), model_of(NET)) is None
    assert NullContext().difference(model_of(NET), model_of(NET)) is None


@pytest.mark.parametrize("data", [None, DATA])
@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (("{1, -1, 1, 1}", "{1.25, -1.25, 1.25, 1.25}"), 0.25),
        (("{1, 2}", "{0.5, 1}"), 0.5),
        (("{1, 2}", "{0, 0}"), 1),
    ],
)
def test_the_error_is_that_of_the_output_that_differs_most(
    worker, changed, expected, data
):
    error, *failures = difference(worker, NET, NET.replace(*changed), data)
    assert error == pytest.approx(expected, rel=1e-6)
    assert failures == ["", ""]


def test_an_error_where_the_reference_is_zero_is_infinite(worker):
    assert difference(worker, NET.replace("{1, 2}", "{0, 0}"), NET) == (
        math.inf,
        "",
        "",
    )


@pytest.mark.parametrize("data", [DATA, {"x": DATA["x"][:1]}])
def test_batches_of_one_and_of_three_are_run(worker, rows_run, data):
    assert difference(worker, COPY, COPY, data) == (0, "", "")
    assert rows_run == [1, 3, 1, 3]


def test_made_up_batches_are_of_one_of_three_and_of_more(worker, rows_run):
    assert difference(worker, COPY, COPY, None) == (0, "", "")
    assert rows_run == [1, 3, 12, 1, 3, 12]


def test_a_batch_that_became_fixed_is_found(worker):
    error, failure, reference_failure = difference(worker, COPY, FIXED_BATCH)
    assert (error, reference_failure) == (math.inf, "")
    assert "Reshape" in failure
    assert "\n" not in failure


def test_a_reference_that_takes_only_whole_batches_gets_them(worker, rows_run):
    assert difference(worker, FIXED_BATCH, FIXED_BATCH, DATA) == (0, "", "")
    assert rows_run == [1, 3, 3]


def test_an_invalid_model_is_a_failure(worker):
    error, failure, reference_failure = difference(worker, COPY, INVALID)
    assert (error, reference_failure) == (math.inf, "")
    assert failure.startswith("ONNX Runtime cannot load it: ")


def test_an_invalid_reference_is_told_apart(worker):
    error, failure, reference_failure = difference(worker, INVALID, COPY)
    assert (error, failure) == (math.inf, "")
    assert reference_failure.startswith("ONNX Runtime cannot load it: ")


def test_a_reference_that_accepts_no_feeds(worker):
    broken = FIXED_BATCH.replace("{3, 2}", "{7, 11}")
    error, failure, reference_failure = difference(worker, broken, COPY)
    assert (error, failure) == (math.inf, "")
    assert reference_failure.startswith("ONNX Runtime fails to run it: Reshape")


def test_inputs_that_cannot_be_made_up_are_a_failure_of_the_reference(worker):
    sequence = """
    <ir_version: 10, opset_import: ["" : 21]>
    sequence (seq(float[2]) s) => (int64 y)
    { y = SequenceLength (s) }
    """
    error, failure, reference_failure = difference(worker, sequence, sequence)
    assert (error, failure) == (math.inf, "")
    assert reference_failure == "is a seq(tensor(float)): it cannot be made up"


def test_bad_data_is_still_the_users_error(worker):
    with pytest.raises(RefusedError, match="holds NaN"):
        difference(worker, COPY, COPY, {"x": np.full((3, 2), np.nan, np.float32)})


def test_integers_differ_by_the_fraction_that_is_not_equal(worker):
    x = np.array([[1, -1, 1, 1]], np.float32)
    found = context(
        worker, {"x": x}, [TensorInfo("x", "float32", ("N", 4))]
    ).difference(model_of(POSITIVE), model_of(ONES))
    assert found[:3] == (0.25, "", "")


def test_another_output_is_a_failure(worker):
    assert difference(worker, COPY, POSITIVE.replace("N, 4", "N, 2")) == (
        math.inf,
        "output 'y' is int64[1, 2] instead of float32[1, 2]",
        "",
    )
    assert difference(worker, COPY, NET)[1] == "its outputs are y, z instead of y"


def test_outputs_that_are_not_finite_serve_where_there_are_no_others(worker):
    assert difference(worker, NOWHERE_FINITE, NOWHERE_FINITE) == (0, "", "")
    assert difference(worker, NOWHERE_FINITE, COPY) == (math.inf, "", "")


@pytest.mark.parametrize("dies", ["reference.onnx", "other.onnx"])
def test_a_dead_worker_is_a_failure(monkeypatch, sleepy, dies):
    run = Session.run

    def dying(self, feeds):
        if self.path.name == dies:
            self.worker.call("abort")
        return run(self, feeds)

    monkeypatch.setattr(Session, "run", dying)
    with Worker(timeout=60) as worker:
        error, *failures = difference(worker, COPY, COPY)
        assert error == math.inf
        assert [bool(f) for f in failures] == [
            dies == "other.onnx",
            dies == "reference.onnx",
        ]
        assert "ONNX Runtime's process died (SIGABRT)" in "".join(failures)
        monkeypatch.undo()
        assert difference(worker, COPY, COPY) == (0, "", "")


def test_nothing_is_left_on_disk(worker, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    difference(worker, NET, INVALID)
    difference(worker, NET, NET)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([np.nan, np.inf, 1], [np.nan, np.inf, 1], 0),
        ([np.inf, 3, 4], [np.inf, 3, 9], 1),
        ([1, 1], [1, np.nan], math.inf),
        ([1, np.nan], [1, 1], math.inf),
        ([1, np.inf], [1, -np.inf], math.inf),
        ([1e200, 0], [0.5e200, 0], 0.5),
        ([], [], 0),
    ],
)
def test_values_that_are_not_finite(first, second, expected):
    assert (
        largest_error([{"y": np.array(first, float)}], [{"y": np.array(second, float)}])
        == expected
    )


def test_a_symbol_has_one_length_in_all_inputs():
    inputs = [
        TensorInfo("lengths", "int64", ("k",)),
        TensorInfo("x", "float32", ("k", "t", 4)),
        TensorInfo("mask", "int64", ("k", "t")),
    ]
    shapes = [
        {name: array.shape for name, array in batch.feeds.items()}
        for feeds in next(sized_feeds(inputs, 0, (1, 3)))
        for batch in feeds
    ]
    assert shapes == [
        {"lengths": (n,), "x": (n, 16, 4), "mask": (n, 16)} for n in (1, 3)
    ]


def test_fixed_shapes_are_made_up_once():
    sized = list(sized_feeds([TensorInfo("x", "float32", (2, 4))], 0, (1, 3)))
    assert [
        [batch.feeds["x"].shape for feeds in kind for batch in feeds] for kind in sized
    ] == [[(2, 4)]]


PRICE = """
    <ir_version: 10, opset_import: ["" : 21]>
    price (float[N, 2] x) => (float[N, 1] y) <float mean = {{100}}, float[2, 1] w = {{{}}}>
    {{ h = MatMul (x, w)  y = Add (h, mean) }}
"""


def test_what_varies_is_told_of_outputs_that_choose_no_class(worker):
    data = {"x": np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)}
    models = [model_of(PRICE.format(w)) for w in ("1, 2", "0, 0")]
    for given in (None, data):
        found = context(worker, given).difference(*models)
        assert found.error < 0.1
        # the mean of some samples is not that of all others
        assert found.lost > 0.5
    # scores of classes may be the same for all that was made up
    net = model_of(COPY)
    assert math.isnan(context(worker).difference(net, net).lost)
