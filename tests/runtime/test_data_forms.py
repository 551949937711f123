"""Tables, texts, loaders and iterators as data; inputs that may be left out."""

import gc
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx_opt import RefusedError, UsageError
from onnx_opt.runtime.feeds import open_feeds
from onnx_opt.runtime.session import TensorInfo

X = [TensorInfo("x", "float32", ("N", 2))]
ROWS = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
TOKENS = [
    TensorInfo("input_ids", "int64", ("B", "T")),
    TensorInfo("attention_mask", "int64", ("B", "T")),
]


# iterators and loaders


def values_of(feeds, name="x"):
    return [batch.feeds[name].tolist() for batch in feeds]


def test_iterators_can_be_read_again_and_again():
    feeds = open_feeds(({"x": ROWS + i} for i in range(3)), X)
    first = next(iter(feeds)).feeds["x"]
    assert first.tolist() == ROWS.tolist()
    expected = [(ROWS + i).tolist() for i in range(3)]
    assert values_of(feeds) == expected
    assert values_of(feeds) == expected


def test_what_an_iterator_gave_goes_with_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    feeds = open_feeds(iter([{"x": ROWS}]), X)
    assert len(list(feeds)) == 1
    assert len(list(tmp_path.iterdir())) == 1
    del feeds
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_calibration_data_readers():
    class Reader:
        """As onnxruntime.quantization asks for."""

        def __init__(self):
            self.left = [{"x": ROWS}, {"x": ROWS * 2}]

        def get_next(self):
            return self.left.pop(0) if self.left else None

    feeds = open_feeds(Reader(), X)
    expected = [ROWS.tolist(), (ROWS * 2).tolist()]
    assert values_of(feeds) == expected
    assert values_of(feeds) == expected


def test_data_loaders_of_torch():
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.tensor(ROWS), torch.tensor([7, 8, 9]))
    feeds = open_feeds(torch.utils.data.DataLoader(data, batch_size=2), X)
    assert values_of(feeds) == [ROWS[:2].tolist(), ROWS[2:].tolist()]
    assert [batch.labels.tolist() for batch in feeds] == [[7, 8], [9]]


def test_tensors_with_a_gradient_and_of_half_precision():
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(ROWS, requires_grad=True, dtype=torch.bfloat16)
    assert values_of(open_feeds([{"x": tensor}], X)) == [ROWS.tolist()]


def test_datasets_of_hugging_face():
    class Dataset:
        """The part of datasets.Dataset that is used."""

        column_names = ("x", "label")

        def iter(self, batch_size):
            assert batch_size > 1
            yield {"x": ROWS.tolist(), "label": [0, 1, 1]}

    (batch,) = open_feeds(Dataset(), X)
    assert batch.feeds["x"].tolist() == ROWS.tolist()
    assert batch.labels.tolist() == [0, 1, 1]


# several at once


def test_several_files_are_joined(tmp_path):
    np.savez(tmp_path / "a.npz", x=ROWS)
    np.savez(tmp_path / "b.npz", x=ROWS[:1])
    feeds = open_feeds([tmp_path / "a.npz", str(tmp_path / "b.npz")], X)
    assert values_of(feeds) == [ROWS.tolist(), ROWS[:1].tolist()]
    assert feeds.where == "a.npz and b.npz"


def test_labels_in_one_of_two_files_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=ROWS, labels=[1, 2, 3])
    np.savez(tmp_path / "b.npz", x=ROWS)
    with pytest.raises(RefusedError, match=r"data b\.npz: has no labels, a\.npz has"):
        list(open_feeds([tmp_path / "a.npz", tmp_path / "b.npz"], X))


# conventional inputs


def test_masks_and_types_may_be_left_out(tmp_path):
    inputs = [
        *TOKENS,
        TensorInfo("token_type_ids", "int64", ("B", "T")),
        TensorInfo("position_ids", "int32", ("B", "T")),
    ]
    ids = np.array([[5, 6, 7], [8, 9, 0]])
    np.savez(tmp_path / "ids.npz", input_ids=ids)
    for data in (tmp_path / "ids.npz", [{"input_ids": ids}]):
        feeds = open_feeds(data, inputs)
        (batch,) = feeds
        assert batch.feeds["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 1]]
        assert batch.feeds["token_type_ids"].tolist() == [[0, 0, 0], [0, 0, 0]]
        assert batch.feeds["position_ids"].tolist() == [[0, 1, 2], [0, 1, 2]]
        assert batch.feeds["position_ids"].dtype == np.int32
        assert any(
            "'attention_mask' is not given: taken as ones" in w for w in feeds.warnings
        )


def test_a_mask_without_tokens_is_missing():
    inputs = [*X, TensorInfo("attention_mask", "int64", ("B", "T"))]
    with pytest.raises(RefusedError, match="input 'attention_mask' is missing"):
        list(open_feeds([{"x": ROWS}], inputs))


# tables


def test_a_table_feeds_its_features_to_the_only_input(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b,label\n1,2,0\n3,4,1\n5.5,6,1\n")
    (batch,) = open_feeds(path, X)
    assert batch.feeds["x"].tolist() == [[1, 2], [3, 4], [5.5, 6]]
    assert batch.labels.tolist() == [0, 1, 1]


def test_columns_feed_inputs_by_name(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table(
        {"name": ["u", "v"], "age": [3, 4], "vector": [[1.0, 2.0], [3.0, 4.0]]}
    )
    parquet.write_table(table, tmp_path / "t.parquet")
    inputs = [
        TensorInfo("age", "int64", ("N", 1)),
        TensorInfo("name", "object", ("N",)),
        TensorInfo("vector", "float32", ("N", 2)),
    ]
    (batch,) = open_feeds(tmp_path / "t.parquet", inputs)
    assert batch.feeds["age"].tolist() == [[3], [4]]
    assert batch.feeds["name"].tolist() == ["u", "v"]
    assert batch.feeds["vector"].tolist() == [[1, 2], [3, 4]]
    assert batch.labels is None


def test_rows_come_in_the_batches_that_the_model_takes(tmp_path):
    path = tmp_path / "t.csv"
    lines = [f"{i},{i + 1}" for i in range(5)]
    path.write_text("\n".join(["a,b", *lines]))
    fixed = [TensorInfo("x", "float32", (2, 2))]
    assert values_of(open_feeds(path, fixed)) == [[[0, 1], [1, 2]], [[2, 3], [3, 4]]]


@pytest.mark.parametrize(
    ("text", "inputs", "problem", "fix"),
    [
        (
            "a,b,c\n1,2,3\n",
            X,
            "has 3 columns besides the labels; 'x' takes 2",
            "'label'",
        ),
        ("a,b\n1,2\n,4\n", X, "row 2 has no value in column 'a'", "leave the row out"),
        (
            "ages,b\n1,2\n",
            [
                TensorInfo("age", "float32", ("N", 1)),
                TensorInfo("b", "float32", ("N", 1)),
            ],
            "has no column 'age', an input of the model",
            "rename 'ages' to 'age'",
        ),
        ("a,b\n1,2\n1\n", X, "cannot be read", "correct the table"),
    ],
)
def test_faulty_tables(tmp_path, text, inputs, problem, fix):
    pytest.importorskip("pyarrow")
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(RefusedError) as error:
        list(open_feeds(tmp_path / "t.csv", inputs))
    assert problem in error.value.problem
    assert fix in error.value.fix


# texts


def save_tokenizer(folder):
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3, "c": 4, "[SEP]": 5}
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(words, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A", pair="$A [SEP] $B:1", special_tokens=[("[SEP]", 5)]
    )
    tokenizer.save(str(Path(folder, "tokenizer.json")))


def test_lines_of_text_are_encoded_and_filled_up(tmp_path):
    save_tokenizer(tmp_path)
    (tmp_path / "t.txt").write_text("a b c\n\nb\n")
    (batch,) = open_feeds(tmp_path / "t.txt", TOKENS)
    assert batch.feeds["input_ids"].tolist() == [[2, 3, 4], [3, 0, 0]]
    assert batch.feeds["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.labels is None


def test_lines_of_text_for_a_decoder_with_a_cache(tmp_path):
    save_tokenizer(tmp_path)
    (tmp_path / "t.txt").write_text("a b c\nb\n")
    past = TensorInfo("past_key_values.0.key", "float32", ("B", 2, "P", 4))
    (batch,) = open_feeds(tmp_path / "t.txt", [*TOKENS, past])
    assert batch.feeds["input_ids"].tolist() == [[2, 3, 4], [3, 0, 0]]
    assert batch.feeds["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.feeds["past_key_values.0.key"].shape == (2, 2, 0, 4)


def test_pairs_and_labels_of_json_lines(tmp_path):
    model_folder = tmp_path / "model"
    model_folder.mkdir()
    save_tokenizer(model_folder)
    lines = [
        '{"question": "a b", "answer": "c", "label": 1}',
        '{"q": "b", "a": "c", "label": 0}',
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    inputs = [*TOKENS, TensorInfo("token_type_ids", "int64", ("B", "T"))]
    (batch,) = open_feeds(tmp_path / "t.jsonl", inputs, model_folder)
    assert batch.feeds["input_ids"].tolist() == [[2, 3, 5, 4], [3, 5, 4, 0]]
    assert batch.feeds["token_type_ids"].tolist() == [[0, 0, 0, 1], [0, 0, 1, 0]]
    assert batch.labels.tolist() == [1, 0]


def test_texts_of_a_fixed_length(tmp_path):
    save_tokenizer(tmp_path)
    (tmp_path / "t.txt").write_text("a b c a b\nb\n")
    fixed = [TensorInfo("tokens", "int32", (1, 3))]
    feeds = open_feeds(tmp_path / "t.txt", fixed)
    assert values_of(feeds, "tokens") == [[[2, 3, 4]], [[3, 0, 0]]]


@pytest.mark.parametrize(
    ("name", "text", "inputs", "problem"),
    [
        ("t.txt", "a", X, "does not make the model's input 'x'"),
        ("t.jsonl", "{", TOKENS, "is not JSON"),
        ("t.jsonl", '{"label": 1}', TOKENS, "holds no text"),
    ],
)
def test_faulty_texts(tmp_path, name, text, inputs, problem):
    save_tokenizer(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(RefusedError, match=problem):
        list(open_feeds(tmp_path / name, inputs))


def test_texts_need_a_tokenizer(tmp_path):
    (tmp_path / "t.txt").write_text("a")
    with pytest.raises(RefusedError, match=r"there is no tokenizer\.json beside it"):
        open_feeds(tmp_path / "t.txt", TOKENS)


# packages that are not installed


@pytest.mark.parametrize(
    ("file", "package", "problem", "extra"),
    [
        ("d.csv", "pyarrow", "pyarrow is not installed", "tables"),
        ("d.parquet", "pyarrow", "pyarrow is not installed", "tables"),
        ("d.txt", "tokenizers", "tokenizers is not installed", "text"),
        ("images", "PIL", "Pillow is not installed", "images"),
    ],
)
def test_a_missing_package_is_a_matter_of_installation(
    tmp_path, monkeypatch, file, package, problem, extra
):
    path = tmp_path / file
    inputs = TOKENS[:1]
    if file == "images":
        path.mkdir()
        (path / "1.png").write_bytes(b"")
        (path / "preprocess.toml").write_text("size = [2, 2]", encoding="utf-8")
        inputs = [TensorInfo("x", "float32", ("N", 3, 2, 2))]
    else:
        path.write_text("x\n", encoding="utf-8")
        (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    # an import of None raises ImportError
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError) as caught:
        list(open_feeds(path, inputs))
    assert caught.value.problem == problem
    assert caught.value.fix == f'pip install "onnx-opt[{extra}]"'
