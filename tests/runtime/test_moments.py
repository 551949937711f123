import numpy as np
import pytest
from onnx_opt import RefusedError
from onnx_opt.passes._core.context import MomentRequest
from onnx_opt.runtime import moments
from onnx_opt.runtime.moments import MomentObserver, patches

RANDOM = np.random.default_rng(0)


def request(
    kind,
    axis=-1,
    kernel=(),
    groups=1,
    strides=(1, 1),
    pads=(0, 0, 0, 0),
    dilations=(1, 1),
):
    return MomentRequest(
        "x",
        kind,
        axis=axis,
        kernel=kernel,
        strides=strides,
        pads=pads,
        dilations=dilations,
        groups=groups,
    )


def seen(wanted, *arrays):
    observer = MomentObserver(wanted)
    for array in arrays:
        observer.update(np.asarray(array, np.float32))
    return observer


def test_maxima_and_means_of_channels():
    a, b = [[1, -5], [2, 3]], [[-4, 0]]
    np.testing.assert_array_equal(seen(request("absmax"), a, b).value(), [4, 5])
    np.testing.assert_allclose(seen(request("mean"), a, b).value(), [-1 / 3, -2 / 3])


def test_channels_of_an_inner_axis():
    x = RANDOM.normal(size=(2, 3, 4, 5))
    np.testing.assert_allclose(
        seen(request("absmax", 1), x).value(), np.abs(x).max(axis=(0, 2, 3)), rtol=1e-6
    )


def test_gram_holds_products_mean_and_one():
    x = RANDOM.normal(size=(40, 3)).astype(np.float32)
    z = np.concatenate([x, np.ones((40, 1))], axis=1)
    got = seen(request("gram"), x[:7], x[7:]).value()
    assert got.shape == (1, 4, 4)
    np.testing.assert_allclose(got[0], z.T @ z / 40, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("groups", "strides", "pads", "dilations"),
    [
        (1, (1, 1), (0, 0, 0, 0), (1, 1)),
        (1, (2, 1), (1, 1, 0, 2), (1, 1)),
        (2, (1, 2), (2, 1, 2, 1), (2, 1)),
        (4, (1, 1), (1, 1, 1, 1), (1, 1)),
    ],
)
def test_patches_are_what_a_convolution_multiplies(groups, strides, pads, dilations):
    import onnx
    import onnxruntime

    x = RANDOM.normal(size=(2, 4, 6, 7)).astype(np.float32)
    w = RANDOM.normal(size=(8, 4 // groups, 3, 2)).astype(np.float32)
    node = onnx.helper.make_node(
        "Conv",
        ["x", "w"],
        ["y"],
        group=groups,
        strides=strides,
        pads=pads,
        dilations=dilations,
    )
    infos = [onnx.helper.make_tensor_value_info(n, 1, None) for n in ("x", "w", "y")]
    graph = onnx.helper.make_graph([node], "conv", infos[:2], infos[2:])
    model = onnx.helper.make_model(
        graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 21)]
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    want = session.run(None, {"x": x, "w": w})[0]
    rows = patches(x, request("gram", 1, (3, 2), groups, strides, pads, dilations))
    got = rows @ w.reshape(groups, 8 // groups, -1).transpose(
        0, 2, 1
    )  # (groups, N * places, M / groups)
    got = (
        got.reshape(groups, 2, -1, 8 // groups)
        .transpose(1, 0, 3, 2)
        .reshape(want.shape)
    )
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_few_positions_of_a_large_image_always_the_same_ones(monkeypatch):
    monkeypatch.setattr(moments, "POSITIONS", 20)
    x = RANDOM.normal(size=(3, 2, 30, 30)).astype(np.float32)
    wanted = request("gram", 1, (3, 3))
    rows = patches(x, wanted)
    assert rows.shape == (1, 3 * 20, 18)
    np.testing.assert_array_equal(rows[:, :20], patches(x[:1], wanted))


@pytest.mark.parametrize(
    "wanted",
    [
        request("absmax", 1),
        request("mean", 1),
        request("gram", 1),
        request("gram", 1, (3, 3)),
        request("mean", 1, (3, 3), 2),
    ],
)
def test_shards_merge_to_the_same_moment(wanted):
    x = RANDOM.normal(size=(6, 2, 5, 5))
    whole, first, second = seen(wanted, x), seen(wanted, x[:2]), seen(wanted, x[2:])
    empty = seen(wanted)
    for observer in (second, seen(wanted)):
        first.merge(observer)
    empty.merge(first)
    np.testing.assert_allclose(first.value(), whole.value(), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(empty.value(), first.value())
    assert first.count == whole.count


def test_an_empty_array_adds_nothing():
    assert seen(request("gram"), np.zeros((0, 3))).count == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_name_the_tensor(bad):
    with pytest.raises(RefusedError, match="tensor 'x': is NaN or infinite"):
        seen(request("absmax"), [[1, bad]])


def test_a_regression_has_the_products_with_its_target_behind_the_gram_matrix():
    x, y = (
        RANDOM.normal(size=(30, 3)).astype(np.float32),
        RANDOM.normal(size=(30, 2)).astype(np.float32),
    )
    observer = MomentObserver(request("regression"))
    observer.update(x, y)
    z = np.concatenate([x, np.ones((30, 1))], axis=1)
    np.testing.assert_allclose(
        observer.value(),
        [z.T @ np.concatenate([z, y], axis=1) / 30],
        rtol=1e-4,
        atol=1e-6,
    )


def test_a_regression_of_a_vector_is_of_one_sample():
    observer = MomentObserver(request("regression"))
    observer.update(np.float32([1, 2]), np.float32([3]))
    expected = [[1, 2, 1, 3], [2, 4, 2, 6], [1, 2, 1, 3]]
    assert observer.value()[0].tolist() == expected


def test_halves_are_multiplied_in_single_precision():
    observer = MomentObserver(request("gram"))
    observer.update(np.full((100, 1), 300, np.float16))
    np.testing.assert_array_equal(observer.value()[0], [[90000, 300], [300, 1]])
