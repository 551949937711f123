"""Parts of samples, baselines, agreement: exact figures."""

import numpy as np
import pytest
from onnx_opt import RefusedError, UsageError
from onnx_opt.runtime.session import TensorInfo
from onnx_opt.tools._explain.agreement import Agreement, agreement, mean, share
from onnx_opt.tools._explain.baseline import Baselines
from onnx_opt.tools._explain.inputs import explained_input
from onnx_opt.tools._explain.parts import STAYS, Division, Markers, patches, stretches
from onnx_opt.tools._explain.samples import DataSample
from onnx_opt.tools._explain.target import target_of

SHIFTING = Division(side=2, shifts=True)


@pytest.mark.parametrize(
    ("dtype", "shape", "kind", "axes", "batched"),
    [
        ("float32", ("n", 3, 8, 8), "image", (1, 2), True),
        ("uint8", (1, 8, 8, 3), "image", (0, 1), True),
        ("float32", (3, 8, 8), "image", (1, 2), False),
        ("int64", ("n", "t"), "tokens", (0,), True),
        ("int32", (16,), "tokens", (0,), False),
        ("float32", ("n", "t", 40), "frames", (0,), True),
        ("float32", ("n", 40, 100), "frames", (1,), True),
        ("float16", ("n", 5), "columns", (0,), True),
        ("float32", (5,), "columns", (0,), False),
    ],
)
def test_kinds_of_inputs(dtype, shape, kind, axes, batched):
    found = explained_input([TensorInfo("x", dtype, shape)])
    assert (found.kind, found.axes, found.batched) == (kind, axes, batched)


def test_images_come_first_and_masks_never():
    infos = [
        TensorInfo("attention_mask", "int64", ("n", "t")),
        TensorInfo("input_ids", "int64", ("n", "t")),
        TensorInfo("image", "float32", ("n", 3, 8, 8)),
    ]
    assert explained_input(infos).name == "image"
    found = explained_input(infos, "input_ids")
    assert (found.name, found.mask) == ("input_ids", "attention_mask")
    with pytest.raises(UsageError, match="no input 'other'"):
        explained_input(infos, "other")


def test_what_is_no_known_kind_is_refused_with_its_shape():
    info = TensorInfo("cube", "float32", ("n", 2, 3, 4, 5))
    with pytest.raises(RefusedError, match=r"cube float32 \['n', 2, 3, 4, 5\]"):
        explained_input([info])


def test_a_grid_of_patches():
    assert patches((4, 4), 2, None).tolist() == [
        [0, 0, 1, 1],
        [0, 0, 1, 1],
        [2, 2, 3, 3],
        [2, 2, 3, 3],
    ]


def test_another_phase_begins_elsewhere():
    # stretches of 2 have one other phase
    found = stretches(6, 3, np.random.default_rng(0))
    assert found.tolist() == [0, 1, 1, 2, 2, 3]


def test_markers_are_what_all_texts_begin_and_end_with():
    markers = Markers.of([np.array([7, 1, 2, 9]), np.array([7, 3, 9])])
    assert (markers.first, markers.last) == (7, 9)
    counts = np.array([True, True, True, False])
    stays = markers.stays(np.array([7, 3, 9, 0]), counts)
    assert stays.tolist() == [True, False, True, True]


def tokens(*rows):
    infos = [
        TensorInfo("input_ids", "int64", ("n", "t")),
        TensorInfo("attention_mask", "int64", ("n", "t")),
    ]
    samples = []
    for row, mask in rows:
        feeds = {
            "input_ids": np.array([row]),
            "attention_mask": np.array([mask]),
        }
        samples.append(DataSample(feeds, frozenset(feeds)))
    return Baselines.of(explained_input(infos), samples, SHIFTING)


def test_a_mask_leaves_out_what_is_taken_away():
    found = tokens(([7, 4, 5, 9, 1], [1, 1, 1, 1, 0]), ([7, 6, 9], [1, 1, 1]))
    blank = found.blank(0, None)
    assert blank.parts.labels.tolist() == [STAYS, 0, 1, STAYS, STAYS]
    variants = found.variants(0, blank, np.array([[True, False], [False, True]]))
    # 1 is the token under the mask
    assert variants["input_ids"].tolist() == [[7, 4, 1, 9, 1], [7, 1, 5, 9, 1]]
    assert variants["attention_mask"].tolist() == [[1, 1, 0, 1, 0], [1, 0, 1, 1, 0]]


def test_another_baseline_draws_words_of_the_data():
    found = tokens(([7, 4, 4, 9], [1] * 4), ([7, 4, 9, 1], [1, 1, 1, 0]))
    blank = found.blank(0, np.random.default_rng(0))
    assert set(blank.values.tolist()) <= {4, 7, 9}
    variants = found.variants(0, blank, np.zeros((1, blank.parts.count), bool))
    assert "attention_mask" not in variants


def test_bytes_are_replaced_by_what_pads_them():
    samples = [
        DataSample({"x": np.array([row])}, frozenset("x"))
        for row in ([1, 2, 256, 256], [3, 4, 5, 6])
    ]
    subject = explained_input([TensorInfo("x", "int32", ("n", 4))])
    found = Baselines.of(subject, samples, SHIFTING)
    assert found.padding == 256
    assert found.blank(0, None).parts.labels.tolist() == [0, 1, STAYS, STAYS]


def test_columns_have_their_means_or_the_row_of_another():
    samples = [
        DataSample({"x": np.array([row], np.float32)}, frozenset("x"))
        for row in ([0, 2], [4, 6])
    ]
    subject = explained_input([TensorInfo("x", "float32", ("n", 2))])
    found = Baselines.of(subject, samples, SHIFTING)
    assert found.blank(0, None).values.tolist() == [2, 4]
    assert found.blank(0, np.random.default_rng(0)).values.tolist() == [4, 6]


def test_an_image_has_its_mean_colour():
    image = np.arange(32, dtype=np.float32).reshape(1, 2, 4, 4)
    subject = explained_input([TensorInfo("x", "float32", ("n", 1, 4, 4))])
    sample = DataSample({"x": image[:, :1]}, frozenset("x"))
    found = Baselines.of(subject, [sample], SHIFTING)
    assert np.unique(found.blank(0, None).values).tolist() == [7.5]
    assert len(np.unique(found.blank(0, np.random.default_rng(1)).values)) == 1


# agreement


def test_the_same_explanation_agrees_wholly():
    heat = np.arange(20.0).reshape(4, 5)
    assert agreement(heat, heat * 3 + 1) == Agreement(1.0, 1.0)


def test_the_opposite_explanation():
    heat = np.arange(20.0)
    assert agreement(heat, -heat) == Agreement(pytest.approx(-1.0), 0.0)


def test_constants_agree_with_constants_alone():
    flat = np.zeros(4)
    assert agreement(flat, flat).spearman == 1
    assert agreement(flat, np.arange(4.0)).spearman == 0


def test_only_elements_that_count_are_compared():
    one = np.array([1.0, 2, 3, 9])
    other = np.array([1.0, 2, 3, -9])
    counts = np.array([True, True, True, False])
    assert agreement(one, other, counts) == Agreement(1.0, 1.0)


def test_means_and_shares():
    found = mean([Agreement(1.0, 0.5), Agreement(0.5, 0.5)])
    assert found == Agreement(0.75, 0.5)
    assert share(found, Agreement(0.5, 0.0)) == {"spearman": 1.5, "topk": None}


# outputs


def test_clear_leads_are_classes_and_others_embeddings():
    clear = [{"y": np.array([[9.0, 0, 0, 0]])}]
    even = [{"y": np.array([[0.5, 0.4, -0.5, 0.3]])}]
    assert target_of(clear).form == "class"
    assert target_of(even).form == "embedding"
    assert target_of(even, form="class").form == "class"
    assert target_of([{"y": np.array([[0.3]])}]).form == "value"


def test_scores_beside_labels_are_found():
    answers = [{"label": np.array([1]), "scores": np.array([[0.1, 0.9]], np.float32)}]
    assert target_of(answers).output == "scores"


def test_outputs_without_classes_are_named():
    answers = [{"boxes": np.zeros((1, 5, 4)), "map": np.zeros((1, 1, 8, 8))}]
    with pytest.raises(RefusedError) as caught:
        target_of(answers)
    assert "output 'boxes'" in str(caught.value)
    # neither can be chosen
    assert caught.value.fix.startswith("explain a model that has scores of classes")
    with pytest.raises(UsageError, match="no output 'other'"):
        target_of(answers, "other")


def test_the_cosine_is_1_for_the_original_itself():
    answer = {"y": np.array([[0.5, 0.4, -0.5, 0.3]])}
    aim = target_of([answer]).of_sample(answer)
    both = {"y": np.concatenate([answer["y"], -2 * answer["y"]])}
    assert aim.scores(both, 2) == pytest.approx([1, -1])
