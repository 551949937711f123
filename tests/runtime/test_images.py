import numpy as np
import pytest
from onnx_opt import RefusedError
from onnx_opt.runtime.feeds import open_feeds
from onnx_opt.runtime.session import TensorInfo

Image = pytest.importorskip("PIL.Image")
NCHW = [TensorInfo("x", "float32", ("N", 3, 4, 4))]
RED = (255, 0, 51)


def folder_of(tmp_path, spec, names=("a/1.png", "b/2.png"), size=(8, 4)):
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", size, RED).save(path)
    (tmp_path / "preprocess.toml").write_text(spec)
    return tmp_path


def test_class_folders_give_labels(tmp_path):
    (batch,) = open_feeds(
        folder_of(tmp_path, "size = [4, 4]", ("b/2.png", "a/1.png", "a/3.PNG")), NCHW
    )
    assert batch.labels.tolist() == [0, 0, 1]
    np.testing.assert_allclose(batch.feeds["x"][0, :, 0, 0], [1, 0, 0.2], atol=1e-6)


def test_flat_folders_have_none(tmp_path):
    (batch,) = open_feeds(
        folder_of(tmp_path, "size = 4", ("1.png", "notes.txt.png")), NCHW
    )
    assert batch.labels is None
    assert batch.feeds["x"].shape == (2, 3, 4, 4)


@pytest.mark.parametrize(
    ("spec", "shape", "pixel"),
    [
        ('size = [4, 4]\nlayout = "NHWC"', (4, 4, 3), [1, 0, 0.2]),
        ('size = [4, 4]\nlayout = "NHWC"\nchannels = "BGR"', (4, 4, 3), [0.2, 0, 1]),
        ('size = [4, 4]\nlayout = "NHWC"\nscale = 1', (4, 4, 3), [255, 0, 51]),
        (
            'size = [4, 4]\nlayout = "NHWC"\nmean = 0.5\nstd = [0.5, 1, 2]',
            (4, 4, 3),
            [1, -0.5, -0.15],
        ),
        ('size = [4, 2]\nlayout = "NHWC"\nresize = 4', (4, 2, 3), [1, 0, 0.2]),
    ],
)
def test_the_spec_decides_the_pixels(tmp_path, spec, shape, pixel):
    inputs = [TensorInfo("x", "float32", ("N", None, None, 3))]
    batch = next(iter(open_feeds(folder_of(tmp_path, spec), inputs)))
    assert batch.feeds["x"].shape[1:] == shape
    np.testing.assert_allclose(batch.feeds["x"][0, 0, 0], pixel, atol=1e-5)


def test_grey(tmp_path):
    inputs = [TensorInfo("x", "float32", ("N", 1, 4, 4))]
    batch = next(
        iter(open_feeds(folder_of(tmp_path, 'size = [4, 4]\nchannels = "L"'), inputs))
    )
    assert batch.feeds["x"].shape == (2, 1, 4, 4)


@pytest.mark.parametrize(
    ("spec", "place", "problem"),
    [
        ("size = [4", "preprocess.toml", "is not TOML"),
        ("", "preprocess.toml.size", "is missing"),
        ("size = [4, 4]\nmeen = 1", "preprocess.toml.meen", "no such key"),
        ("size = [4, 4, 4]", "preprocess.toml.size", "is no size"),
        ("size = [0, 4]", "preprocess.toml.size", "is no size"),
        ("size = true", "preprocess.toml.size", "not a number"),
        ("size = 4\nmean = [1, 2]", "preprocess.toml.mean", "2 numbers"),
        ("size = 4\nstd = 0", "preprocess.toml.std", "is zero"),
        ("size = 4\nscale = -1", "preprocess.toml.scale", "not a number of 0 or more"),
        ('size = 4\nlayout = "CHW"', "preprocess.toml.layout", "'CHW' is not known"),
    ],
)
def test_faulty_specs(tmp_path, spec, place, problem):
    with pytest.raises(RefusedError) as error:
        open_feeds(folder_of(tmp_path, spec), NCHW)
    assert error.value.where.endswith(place)
    assert problem in error.value.problem


def test_a_folder_without_images(tmp_path):
    with pytest.raises(RefusedError, match="holds no images"):
        open_feeds(folder_of(tmp_path, "size = 4", ()), NCHW)


def test_a_damaged_image_is_named(tmp_path):
    folder = folder_of(tmp_path, "size = 4")
    (folder / "a" / "1.png").write_bytes(b"not a picture")
    with pytest.raises(RefusedError, match=r"1\.png: cannot be decoded"):
        list(open_feeds(folder, NCHW))


def test_images_feed_one_input(tmp_path):
    with pytest.raises(RefusedError, match="the model has 2 inputs"):
        list(
            open_feeds(
                folder_of(tmp_path, "size = 4"),
                [*NCHW, TensorInfo("y", "float32", ("N",))],
            )
        )


def labels_of(folder):
    (batch,) = open_feeds(folder, NCHW)
    return batch.labels.tolist()


def test_folders_named_by_index_are_that_class(tmp_path):
    names = ("0016/1.png", "0002/1.png", "0000/1.png")
    assert labels_of(folder_of(tmp_path, "size = 4", names)) == [0, 2, 16]


def test_two_folders_of_one_index_are_refused(tmp_path):
    folder = folder_of(tmp_path, "size = 4", ("1/1.png", "01/1.png"))
    with pytest.raises(RefusedError, match="'01' and '1' are both class 1"):
        open_feeds(folder, NCHW)


def test_a_list_of_classes_numbers_them(tmp_path):
    folder = folder_of(tmp_path, "size = 4", ("cat/1.png", "dog/1.png"))
    (folder / "classes.txt").write_text("fox\ndog\n\ncat\n")
    assert labels_of(folder) == [2, 1]
    (folder / "preprocess.toml").write_text('size = 4\nclasses = ["dog", "ant", "cat"]')
    assert labels_of(folder) == [2, 0]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("cat\n", "does not have the folder 'dog'"),
        ("cat\ndog\ncat", "'cat' is there twice"),
    ],
)
def test_faulty_lists_of_classes(tmp_path, text, problem):
    folder = folder_of(tmp_path, "size = 4", ("cat/1.png", "dog/1.png"))
    (folder / "classes.txt").write_text(text)
    with pytest.raises(RefusedError, match=problem):
        open_feeds(folder, NCHW)


def test_classes_in_the_spec_are_names(tmp_path):
    folder = folder_of(tmp_path, "size = 4\nclasses = [1, 2]")
    with pytest.raises(RefusedError, match="is not a list of names"):
        open_feeds(folder, NCHW)


def test_a_size_that_the_model_does_not_take_is_told_by_the_spec(tmp_path):
    folder = folder_of(tmp_path, "size = 8")
    with pytest.raises(RefusedError) as error:
        open_feeds(folder, NCHW)
    assert error.value.where == "preprocess.toml.size"
    assert error.value.fix == "write size = [4, 4]"
