import itertools
import tracemalloc
import zipfile

import numpy as np
import pytest
from onnx import numpy_helper
from onnx_opt import RefusedError, UsageError
from onnx_opt.runtime.feeds import Batch, candidate_feeds, open_feeds, synthetic_feeds
from onnx_opt.runtime.session import TensorInfo

X = [TensorInfo("x", "float32", ("N", 2))]
FIXED = [TensorInfo("x", "float32", (4, 2))]
TOKENS = [
    TensorInfo("ids", "int64", ("N", "T")),
    TensorInfo("mask", "int64", ("N", "T")),
]
ROWS = np.arange(20, dtype=np.float32).reshape(10, 2)


def rows_of(feeds, name="x"):
    return np.concatenate([batch.feeds[name] for batch in feeds])


# every form of data


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_cut_into_batches_with_labels(tmp_path, save):
    x, labels = (
        np.random.default_rng(0).normal(size=(150, 2)).astype(np.float32),
        np.arange(150),
    )
    save(tmp_path / "d.npz", x=x, labels=labels)
    feeds = open_feeds(tmp_path / "d.npz", X)
    assert [len(batch.feeds["x"]) for batch in feeds] == [64, 64, 22]
    for _ in range(2):  # as often as wanted
        np.testing.assert_array_equal(rows_of(feeds), x)
        np.testing.assert_array_equal(
            np.concatenate([batch.labels for batch in feeds]), labels
        )


def test_large_samples_come_in_small_batches():
    inputs = [TensorInfo("x", "float32", ("N", 3, 512, 512))]
    feeds = open_feeds({"x": np.zeros((3, 3, 512, 512), np.float32)}, inputs)
    assert [len(batch.feeds["x"]) for batch in feeds] == [1, 1, 1]


def test_single_input_takes_any_single_array(tmp_path):
    np.savez(tmp_path / "d.npz", images=ROWS)
    np.save(tmp_path / "d.npy", np.asfortranarray(ROWS))
    for data in (str(tmp_path / "d.npz"), tmp_path / "d.npy", {"images": ROWS}, ROWS):
        np.testing.assert_array_equal(rows_of(open_feeds(data, X)), ROWS)


def test_an_array_of_another_name_is_taken_and_said(tmp_path):
    np.savez(tmp_path / "named.npz", images=ROWS)
    np.savez(tmp_path / "unnamed.npz", ROWS)
    taken = "'images' is taken as 'x', the model's only input"
    for data, said in (
        (tmp_path / "named.npz", [f"named.npz: {taken}"]),
        ({"images": ROWS}, [f"data: {taken}"]),
        (tmp_path / "unnamed.npz", []),
        ({"x": ROWS}, []),
        (ROWS, []),
    ):
        assert open_feeds(data, X).warnings == said


def test_text_labels_are_read(tmp_path):
    np.savez(
        tmp_path / "d.npz", x=ROWS, labels=np.array([f"line {n}" for n in range(10)])
    )
    assert next(iter(open_feeds(tmp_path / "d.npz", X))).labels[9] == "line 9"


def test_a_model_may_have_an_input_called_labels():
    inputs = [*X, TensorInfo("labels", "int64", ("N",))]
    batch = next(iter(open_feeds({"x": ROWS, "labels": np.arange(10)}, inputs)))
    assert batch.feeds["labels"].tolist() == list(range(10))
    assert batch.labels is None


def test_a_fixed_batch_drops_the_rest_and_says_so():
    feeds = open_feeds({"x": ROWS, "labels": np.arange(10)}, FIXED)
    assert [batch.labels.tolist() for batch in feeds] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert feeds.warnings == [
        "data: the last 2 of 10 samples are left out: the model takes batches of 4"
    ]


def test_arrays_without_samples_are_fed_whole():
    state = TensorInfo("state", "float32", (2, "N", 1))
    inputs = [
        TensorInfo("x", "float32", ("N", 3)),
        state,
        TensorInfo("sr", "int64", ()),
    ]
    data = {
        "x": np.zeros((5, 3), np.float32),
        "state": np.ones((2, 5, 1), np.float32),
        "sr": np.int64(16000),
    }
    (batch,) = open_feeds(data, inputs)
    assert {name: array.shape for name, array in batch.feeds.items()} == {
        "x": (5, 3),
        "state": (2, 5, 1),
        "sr": (),
    }


def test_data_set_folders_are_read_in_order(tmp_path):
    for n in (10, 2):
        folder = tmp_path / f"test_data_set_{n}"
        folder.mkdir()
        for index, name in enumerate(
            ("", "ids")
        ):  # by position, and by the name inside
            array = np.full((1, 3), n, np.int64)
            (folder / f"input_{1 - index}.pb").write_bytes(
                numpy_helper.from_array(array, name).SerializeToString()
            )
    feeds = open_feeds(tmp_path, TOKENS)
    assert (
        rows_of(feeds, "ids").tolist()
        == rows_of(feeds, "mask").tolist()
        == [[2] * 3, [10] * 3]
    )
    assert rows_of(
        open_feeds(tmp_path / "test_data_set_2", TOKENS), "ids"
    ).tolist() == [[2] * 3]


def test_damaged_data_sets_are_refused(tmp_path):
    (tmp_path / "test_data_set_0").mkdir()
    with pytest.raises(RefusedError, match=r"holds no input_0\.pb"):
        list(open_feeds(tmp_path, X))
    (tmp_path / "test_data_set_0" / "input_0.pb").write_bytes(b"\xff\xff\xff")
    with pytest.raises(RefusedError, match=r"input_0\.pb: is not a tensor"):
        list(open_feeds(tmp_path, X))


CODE = """
import numpy as np
def batches():
    for n in range(2):
        yield {"x": np.full((1, 2), n, np.float32)}, np.array([n])
def alone():
    return [np.ones((3, 2), np.float32)]
class Group:
    @staticmethod
    def batches():
        return batches()
def fails():
    yield {"x": np.ones((1, 2), np.float32)}
    raise KeyError("lost")
limit = 3
"""


@pytest.fixture
def code(tmp_path):
    path = tmp_path / "mydata.py"
    path.write_text(CODE)
    return path


def test_file_callable_is_called_anew_at_each_iteration(code):
    feeds = open_feeds(f"{code}:batches", X)
    for _ in range(2):
        assert [(b.feeds["x"][0, 0], b.labels.tolist()) for b in feeds] == [
            (0, [0]),
            (1, [1]),
        ]
    assert rows_of(open_feeds(f"{code}:alone", X)).shape == (3, 2)
    assert rows_of(open_feeds(f"{code}:Group.batches", X)).shape == (2, 2)


def test_module_callable(code, monkeypatch):
    monkeypatch.syspath_prepend(code.parent)
    assert rows_of(open_feeds("mydata:batches", X)).tolist() == [[0, 0], [1, 1]]


def test_functions_and_lists_are_data():
    batch = {"x": ROWS}
    for data in (
        lambda: [batch],
        [batch],
        [(batch, np.arange(10))],
        [Batch(batch)],
        [ROWS],
    ):
        np.testing.assert_array_equal(rows_of(open_feeds(data, X)), ROWS)
    feeds = open_feeds([batch], X)
    assert open_feeds(feeds, X) is feeds


def test_the_data_set_is_never_held(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "d.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w") as file,
    ):
        np.lib.format.write_array_header_1_0(
            file, {"shape": (4000, 2000), "fortran_order": False, "descr": "<f4"}
        )
        for _ in range(40):
            file.write(bytes(100 * 2000 * 4))
    feeds = open_feeds(tmp_path / "d.npz", [TensorInfo("x", "float32", ("N", 2000))])
    tracemalloc.start()
    assert sum(len(batch.feeds["x"]) for batch in feeds) == 4000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 << 20  # the file holds 32 MB


# what does not fit


@pytest.mark.parametrize(
    ("text", "kind", "problem", "fix"),
    [
        ("{code}:batchs", UsageError, "has no 'batchs'", "did you mean 'batches'"),
        (
            "{code}:limit",
            UsageError,
            "'limit' is a int, not a function",
            "name a function",
        ),
        ("{folder}/none.py:f", RefusedError, "no such file", "path of a Python file"),
        (
            "no_such_module_here:f",
            RefusedError,
            "no module named 'no_such_module_here'",
            "install it",
        ),
        ("{folder}/none.npz", RefusedError, "no such file", "existing"),
        ("{folder}/none", RefusedError, "no such file or folder", "test_data_set"),
        ("{folder}/bad.npz", RefusedError, "cannot be read", "numpy.savez"),
        (
            "{folder}/objects.npz",
            RefusedError,
            "pickled Python objects",
            "plain arrays",
        ),
        ("{folder}/notes.md", RefusedError, "'.md' files are not known", ".npz"),
        (
            "{folder}/broken.py:f",
            RefusedError,
            "ZeroDivisionError: division by zero at ",
            "correct",
        ),
        ("{folder}/syntax.py:f", RefusedError, "SyntaxError", "correct"),
        (
            "{folder}/empty",
            RefusedError,
            "neither test_data_set_* folders nor images",
            "preprocess.toml",
        ),
        (":f", UsageError, "not of the form", "file.py:function"),
    ],
)
def test_sources_that_cannot_be_opened(tmp_path, code, text, kind, problem, fix):
    (tmp_path / "bad.npz").write_bytes(b"PK nonsense")
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "broken.py").write_text("\n1 / 0\n")
    (tmp_path / "syntax.py").write_text("def f(:\n")
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "objects.npz", x=np.array([{"a": 1}], object))
    with pytest.raises(kind) as error:
        open_feeds(text.format(code=code, folder=tmp_path), X)
    assert problem in error.value.problem
    assert fix in error.value.fix


def test_an_exception_of_user_code_names_file_and_line(code):
    iterator = iter(open_feeds(f"{code}:fails", X))
    next(iterator)
    with pytest.raises(RefusedError, match=r"KeyError: 'lost' at .*mydata\.py:14"):
        next(iterator)


def test_a_number_is_no_data():
    with pytest.raises(UsageError, match="a int is no data"):
        open_feeds(5, X)


@pytest.mark.parametrize(
    ("batch", "problem", "fix"),
    [
        ({"y": ROWS}, "no input 'y'", "its inputs are x"),
        ({"x": ROWS, "xx": ROWS}, "no input 'xx'", "did you mean 'x'"),
        ({}, "input 'x' is missing", "inputs are x"),
        (
            {"x": ROWS.astype(np.int64)},
            "is int64; the model takes float32",
            "astype('float32')",
        ),
        ({"x": ROWS[0]}, "shape [2] has rank 1; the model takes [N, 2]", "rank 2"),
        ({"x": np.zeros((3, 5), np.float32)}, "axis 1 is 5", "[N, 2]"),
        ({"x": np.array([[np.nan, 0]], np.float32)}, "holds NaN", "finite"),
        (
            {"x": np.array([[np.inf, 0]], np.float32)},
            "holds an infinite value",
            "finite",
        ),
        ({"x": np.zeros((0, 2), np.float32)}, "empty batch", "leave"),
        (({"x": ROWS}, [1, 2]), "2 labels for 10 samples", "one label a sample"),
        ("text", "is a str", "dict of input name to array"),
    ],
)
def test_batches_that_do_not_fit_are_refused_by_number(batch, problem, fix):
    iterator = iter(open_feeds([{"x": ROWS}, batch], X))
    next(iterator)
    with pytest.raises(RefusedError) as error:
        next(iterator)
    assert error.value.where.startswith("data, batch 1")
    assert problem in error.value.problem
    assert fix in error.value.fix


@pytest.mark.parametrize(
    ("arrays", "inputs", "problem", "fix"),
    [
        (
            {"input_ids": ROWS, "mask": ROWS},
            TOKENS,
            "no array for input 'ids'",
            "rename 'input_ids' to 'ids'",
        ),
        (
            {"ids": ROWS, "mask": ROWS, "maskk": ROWS},
            TOKENS,
            "no input 'maskk'",
            "did you mean 'mask'",
        ),
        (
            {"ids": ROWS, "mask": ROWS[1:]},
            TOKENS,
            "'mask' holds 9 samples, others 10",
            "equally long",
        ),
        (
            {"x": ROWS, "labels": np.arange(9)},
            X,
            "'labels' holds 9 samples, others 10",
            "equally long",
        ),
        ({"x": ROWS[:0]}, X, "holds no samples", "at least one"),
        (
            {"x": ROWS[:3]},
            FIXED,
            "holds 3 samples; the model takes batches of 4",
            "at least 4",
        ),
    ],
)
def test_arrays_that_do_not_fit(arrays, inputs, problem, fix):
    with pytest.raises(RefusedError) as error:
        open_feeds(arrays, inputs)
    assert problem in error.value.problem
    assert fix in error.value.fix


def test_no_batches_at_all():
    with pytest.raises(RefusedError, match="holds no batches"):
        list(open_feeds([], X))


def test_a_truncated_npy_is_refused(tmp_path):
    np.save(tmp_path / "d.npy", ROWS)
    data = (tmp_path / "d.npy").read_bytes()
    (tmp_path / "d.npy").write_bytes(data[:-8])
    with pytest.raises(RefusedError, match="ends early"):
        list(open_feeds(tmp_path / "d.npy", X))


# casts


@pytest.mark.parametrize(
    ("given", "wanted", "noted"),
    [
        ("float64", "float32", True),
        ("uint8", "float32", False),
        ("int32", "int64", False),
        ("int64", "int32", True),
        ("float16", "float32", False),
    ],
)
def test_casts_that_lose_nothing(given, wanted, noted):
    feeds = open_feeds(
        [{"x": np.array([1, 2]).astype(given)}] * 3, [TensorInfo("x", wanted, ("N",))]
    )
    assert {batch.feeds["x"].dtype.name for batch in feeds} == {wanted}
    assert len(feeds.warnings) == noted


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (np.int64(2**40), "int32"),
        (np.float32(1), "float16"),
        (np.float32(1), "int64"),
    ],
)
def test_casts_that_would_lose_are_refused(value, wanted):
    with pytest.raises(RefusedError, match=f"the model takes {wanted}"):
        list(open_feeds([{"x": np.array([value])}], [TensorInfo("x", wanted, ("N",))]))


def test_text_inputs():
    (batch,) = open_feeds(
        [{"x": np.array(["a", "bc"])}], [TensorInfo("x", "object", ("N",))]
    )
    assert batch.feeds["x"].dtype == object


# synthetic


def test_synthetic_is_the_same_for_the_same_seed():
    def first(seed):
        return next(iter(synthetic_feeds(X, seed))).feeds["x"]

    np.testing.assert_array_equal(first(3), first(3))
    assert not np.array_equal(first(3), first(4))
    assert sum(1 for _ in synthetic_feeds(X, 0, batches=5)) == 5


@pytest.mark.parametrize(
    ("info", "shape"),
    [
        (TensorInfo("x", "float32", ("batch", 3, None, None)), (2, 3, 64, 64)),
        (TensorInfo("x", "float32", (1, 3, "height", "width")), (1, 3, 64, 64)),
        (TensorInfo("ids", "int64", ("batch", "seq")), (2, 16)),
        (TensorInfo("state", "float32", (2, None, 128)), (2, 2, 128)),
        (TensorInfo("sr", "int64", ()), ()),
        (TensorInfo("t", "bool", (None,)), (16,)),
        (TensorInfo("s", "object", ("N", 1)), (2, 1)),
        (TensorInfo("h", "bfloat16", ("N", 1)), (2, 1)),
    ],
)
def test_synthetic_shapes(info, shape):
    array = next(iter(synthetic_feeds([info], 0))).feeds[info.name]
    assert array.shape == shape
    assert array.dtype.name == info.dtype


def test_synthetic_values_follow_names():
    names = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
    inputs = [TensorInfo(name, "int64", ("N", "T")) for name in names]
    feeds = next(
        iter(synthetic_feeds([*inputs, TensorInfo("sr", "int64", ())], 0))
    ).feeds
    assert feeds["input_ids"].min() >= 1
    assert feeds["attention_mask"].min() == 1
    assert feeds["token_type_ids"].max() == 0
    assert feeds["position_ids"][0].tolist() == list(range(16))
    assert feeds["sr"] == 16000


def test_overrides_by_symbol_and_by_input():
    feeds = synthetic_feeds(TOKENS, 0, overrides={"T": 5, "mask": (1, 7)})
    assert {n: a.shape for n, a in next(iter(feeds)).feeds.items()} == {
        "ids": (2, 5),
        "mask": (1, 7),
    }


def test_candidates_differ_and_end():
    inputs = [TensorInfo("x", "float32", ("N", 3, None, None))]
    arrays = [next(iter(feeds)).feeds["x"] for feeds in candidate_feeds(inputs, 0)]
    # the likely ones first: N(0, 1) has negative values, [0, 1) has none
    likely = [array.shape for array in arrays if array.min() < 0]
    modest = [array.shape for array in arrays if array.min() >= 0]
    assert [array.shape for array in arrays] == likely + modest
    assert likely[0] == (2, 3, 64, 64)
    assert (2, 3, 224, 224) in likely
    assert (1, 3, 64, 64) in likely
    assert modest[0] == (16, 3, 64, 64)
    assert (1, 3, 1, 1) in modest
    for shapes in (likely, modest):
        assert len(set(shapes)) == len(shapes)
    assert len(list(candidate_feeds([TensorInfo("x", "float32", (1, 2))], 0))) == 2


def test_open_axes_that_multiply_stay_affordable():
    inputs = [TensorInfo("x", "float32", ("A", "B", "C", "D", "E"))]
    shapes = [
        next(iter(feeds)).feeds["x"].shape for feeds in candidate_feeds(inputs, 0)
    ]
    assert max(np.prod(shape) for shape in shapes) <= 1 << 24
    assert len(shapes) > 2
    # a model of one size is fed with that size
    fixed = [TensorInfo("x", "float32", (1, 2, 3000, 3000))]
    assert next(candidate_feeds(fixed, 0)).inputs["x"].shape == (1, 2, 3000, 3000)


def test_modest_values():
    inputs = [
        TensorInfo("input_ids", "int64", (64, 4)),
        TensorInfo("x", "float32", (64, 4)),
        TensorInfo("position_ids", "int64", (64, 4)),
    ]
    *_, last = candidate_feeds(inputs, 0)
    feeds = next(iter(last)).feeds
    assert set(feeds["input_ids"].flat) == {0, 1}
    assert set(feeds["position_ids"].flat) == {0, 1}
    assert feeds["x"].min() >= 0
    assert feeds["x"].max() < 1


def test_a_symbol_has_one_length():
    inputs = [
        TensorInfo("x", "float32", ("K", "M", 3, 2)),
        TensorInfo("w", "float32", (2, 3, "K", "N")),
        TensorInfo("lengths", "int64", ("K",)),
    ]
    for feeds in (synthetic_feeds(inputs, 0), *candidate_feeds(inputs, 0)):
        shapes = {n: a.shape for n, a in next(iter(feeds)).feeds.items()}
        assert shapes["w"][2] == shapes["x"][0]
        assert shapes["lengths"] == shapes["x"][:1]


def test_a_symbol_of_an_overridden_shape_is_asked_for_elsewhere():
    feeds = synthetic_feeds(TOKENS, 0, overrides={"ids": (1, 7)})
    batch = next(iter(feeds)).feeds
    assert {n: a.shape for n, a in batch.items()} == {"ids": (1, 7), "mask": (1, 7)}


def test_an_axis_that_the_model_fixes_at_0_is_no_empty_batch():
    inputs = [TensorInfo("past", "float32", (0, 4)), *X]
    batch = next(iter(synthetic_feeds(inputs, 0)))
    assert {n: a.shape for n, a in batch.feeds.items()} == {"past": (0, 4), "x": (2, 2)}


def test_what_cannot_be_made_up():
    with pytest.raises(RefusedError, match="cannot be made up"):
        synthetic_feeds([TensorInfo("s", "seq(tensor(float))", ())], 0)
    feeds = open_feeds([{"s": [1]}], [TensorInfo("s", "seq(tensor(float))", ())])
    with pytest.raises(RefusedError, match="only tensors can be fed"):
        list(itertools.islice(feeds, 1))
