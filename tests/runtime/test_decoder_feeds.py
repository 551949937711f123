"""Decoders with a cache, known by name and dims: prefill and step without data, gaps in data."""

import numpy as np
import onnx
import pytest
from cached_decoders import BUFFER, FORMS, TRANSFORMERS, decoder_model
from onnx_opt import RefusedError
from onnx_opt.runtime._data.decoders import CachedDecoder, Lengths
from onnx_opt.runtime.feeds import candidate_feeds, open_feeds, synthetic_feeds
from onnx_opt.runtime.session import TensorInfo, open_session
from onnx_opt.tools._run.drift import NoFiniteOutputs, synthetic_batches


def info(name, dtype, *shape):
    return TensorInfo(name, dtype, shape)


IDS = info("input_ids", "int64", "b", "t")
KEY = info("past_key_values.0.key", "float32", "b", 2, "p", 4)
MASK = info("attention_mask", "int64", "b", "m")


def values(*inputs, batch=2, tokens=3, past=0):
    decoder = CachedDecoder.of([IDS, KEY, *inputs])
    lengths = Lengths(batch, tokens, past)
    return {i.name: decoder.derived(i.name, lengths) for i in inputs}


@pytest.fixture
def session(worker, tmp_path):
    def opened(text):
        path = tmp_path / "decoder.onnx"
        onnx.save(decoder_model(text), path)
        return open_session(worker, path)

    return opened


# recognition


@pytest.mark.parametrize(
    "inputs",
    [
        [IDS, MASK],
        [info("x", "float32", "b", 3), KEY],
        # recurrent states of a model of sound
        [info("input", "float32", "b", "n"), info("state", "float32", 2, "b", 128)],
        [IDS, info("past_key_values.0.key", "float32", "p")],
    ],
)
def test_other_models_are_no_decoders(inputs):
    assert CachedDecoder.of(inputs) is None


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "role"),
    [
        ("past_key_values.0.key", "float32", ("b", 2, "p", 4), "cache"),
        ("past_0", "float16", (2, "b", 2, "p", 4), "cache"),
        ("cache_k_0", "bfloat16", ("b", 2, "p", 4), "cache"),
        ("past_key_self_0", "int8", ("b", 2, "p", 4), "cache"),
        ("past_key_values.0.encoder.key", "float32", ("b", 2, "s", 4), "cross cache"),
        ("past_key_cross_0", "float32", ("b", 2, "s", 4), "cross cache"),
        ("past_key_values.0.decoder.key", "float32", ("b", 2, "p", 4), "cache"),
        ("past_conv.0", "float32", ("b", 8, 3), "state"),
        ("cache_params.ssm_states.0", "float32", ("b", 8, 16), "state"),
        ("decoder_input_ids", "int64", ("b", "t"), "tokens"),
        ("token_type_ids", "int64", ("b", "t"), None),
        ("inputs_embeds", "float32", ("b", "t", 8), "embeddings"),
        ("encoder_attention_mask", "int64", ("b", "s"), "encoder mask"),
        ("encoder_hidden_states", "float32", ("b", "s", 8), "encoder states"),
        ("attention_mask", "float32", ("b", 1, "t", "m"), "mask"),
        ("cache_position", "int64", ("t",), "positions"),
        ("position_ids", "int64", (3, "b", "t"), "positions"),
        ("past_sequence_length", "int64", (1,), "past length"),
        ("total_sequence_length", "int32", (), "total length"),
        ("seqlens_k", "int32", ("b",), "last position"),
        ("use_cache_branch", "bool", (1,), "cache branch"),
        ("num_logits_to_keep", "int64", (), "logits kept"),
        ("images", "float32", ("b", 3, "h", "w"), None),
    ],
)
def test_inputs_by_name_and_dims(name, dtype, shape, role):
    inputs = {i.name: i for i in (IDS, KEY, info(name, dtype, *shape))}
    assert CachedDecoder.of(inputs.values()).roles.get(name) == role


# values


def test_lengths_follow_from_tokens_and_past():
    told = values(
        info("past_sequence_length", "int64", 1),
        info("total_sequence_length", "int32"),
        info("seqlens_k", "int32", "b"),
        info("use_cache_branch", "bool", 1),
        tokens=3,
        past=5,
    )
    assert {name: array.tolist() for name, array in told.items()} == {
        "past_sequence_length": [5],
        "total_sequence_length": 8,
        "seqlens_k": [7, 7],
        "use_cache_branch": [True],
    }
    assert told["seqlens_k"].dtype == np.int32


def test_the_mask_is_past_and_new_tokens_long():
    told = values(MASK, info("position_ids", "int64", "b", "t"), tokens=2, past=3)
    np.testing.assert_array_equal(told["attention_mask"], np.ones((2, 5)))
    np.testing.assert_array_equal(told["position_ids"], [[3, 4], [3, 4]])


def test_a_mask_of_floats_adds_to_the_scores():
    told = values(info("attention_mask", "float32", "b", 1, "t", "m"), tokens=2, past=1)
    expected = np.array([[0, 0, -1e4], [0, 0, 0]])
    np.testing.assert_array_equal(told["attention_mask"][1, 0], expected)


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        # written in place: filled from the left
        (6, [1, 1, 1, 1, 0, 0]),
        # the cache shifts: valid tokens at its end
        ("m", [0, 0, 0, 1, 1, 1, 1]),
    ],
)
def test_a_cache_of_fixed_length(ends, expected):
    inputs = [
        info("input_ids", "int64", 1, 1),
        info("attention_mask", "int64", 1, ends),
        info("past_key_values.0.key", "float32", 1, 2, 6, 4),
    ]
    decoder = CachedDecoder.of(inputs)
    mask = decoder.derived("attention_mask", Lengths(1, 1, 3))
    np.testing.assert_array_equal(mask, [expected])


def test_padding_is_not_counted_as_positions():
    inputs = [IDS, KEY, MASK, info("position_ids", "int64", "b", "t")]
    data = {
        "input_ids": np.ones((2, 4), np.int64),
        "attention_mask": np.array([[1, 1, 1, 1], [0, 0, 1, 1]]),
    }
    (batch,) = open_feeds(data, inputs)
    expected = [[0, 1, 2, 3], [0, 0, 0, 1]]
    np.testing.assert_array_equal(batch.feeds["position_ids"], expected)


# without data


@pytest.mark.parametrize("form", FORMS)
def test_every_form_runs_without_data_in_both_phases(session, form):
    opened = session(FORMS[form])
    batches, outputs = synthetic_batches(opened, 0)
    tokens = [batch["input_ids"].shape[1] for batch in batches]
    assert tokens == [16, 1]
    for name in CachedDecoder.of(opened.inputs).caches:
        # nothing to be read at the prefill, and much at the step
        assert not batches[0][name].any()
        assert np.isfinite(batches[1][name]).all()
        assert batches[1][name].any()
    assert all(np.isfinite(batch["logits"]).all() for batch in outputs)


def test_the_mask_of_an_export_with_symbols_of_its_own():
    inputs = [IDS, MASK, KEY]
    prefill, step = synthetic_feeds(inputs, 0)
    assert prefill.feeds["attention_mask"].shape == (2, 16)
    assert prefill.feeds[KEY.name].shape == (2, 2, 0, 4)
    assert step.feeds["attention_mask"].shape == (2, 33)
    assert step.feeds[KEY.name].shape == (2, 2, 32, 4)


def test_a_model_of_one_token_a_run_has_no_prefill():
    inputs = [info("input_ids", "int64", "b", 1), KEY]
    phases = [batch.feeds["input_ids"].shape for batch in synthetic_feeds(inputs, 0)]
    assert phases[-1] == (2, 1)


def test_caches_of_two_lengths_are_named():
    longer = info("past_key_values.0.value", "float32", "b", 2, 32, 4)
    shorter = info("past_key_values.0.key", "float32", "b", 2, 16, 4)
    with pytest.raises(RefusedError) as error:
        next(candidate_feeds([IDS, shorter, longer], 0))
    assert str(error.value) == (
        "input 'past_key_values.0.value': holds 32 past tokens, 'past_key_values.0.key' 16\n"
        "  fix: export the model again: all caches must be equally long"
    )


def test_the_runtimes_own_words_where_nothing_runs(session):
    text = TRANSFORMERS.replace(
        "<int64[2] rows", "<int64[2] odd = {2, 7}, int64[2] rows"
    )
    text = text.replace(
        "seen = Cast <to = 9> (attention_mask)",
        "other = Reshape (attention_mask, odd) seen = Cast <to = 9> (other)",
    )
    with pytest.raises(NoFiniteOutputs) as error:
        synthetic_batches(session(text), 0)
    assert error.value.problem.startswith(
        "gives no finite outputs on synthetic feeds: "
    )
    assert "Reshape node" in error.value.problem


# data with gaps


def test_data_of_tokens_alone_is_completed():
    data = {"input_ids": np.ones((2, 3), np.int64)}
    inputs = [
        IDS,
        MASK,
        KEY,
        info("past_key_values.0.value", "float32", "b", 2, "p", 4),
    ]
    feeds = open_feeds(data, inputs)
    (batch,) = feeds
    assert {name: array.shape for name, array in batch.feeds.items()} == {
        "input_ids": (2, 3),
        "attention_mask": (2, 3),
        "past_key_values.0.key": (2, 2, 0, 4),
        "past_key_values.0.value": (2, 2, 0, 4),
    }
    assert feeds.warnings == [
        "data: input 'attention_mask' is not given: taken as ones",
        "data: inputs 'past_key_values.0.key' … 'past_key_values.0.value' (2) are not given: "
        "taken as empty",
    ]


def test_states_of_an_encoder_do_not_follow_from_tokens():
    states = info("encoder_hidden_states", "float32", "b", "s", 8)
    with pytest.raises(RefusedError) as error:
        open_feeds({"input_ids": np.ones((2, 3), np.int64)}, [IDS, KEY, states])
    assert error.value.problem == (
        "no array for input 'encoder_hidden_states'; it holds input_ids"
    )


@pytest.mark.parametrize(
    ("past", "mask", "where", "problem"),
    [
        (
            {"key": 5, "value": 4},
            6,
            "input 'past_key_values.0.value'",
            "holds 4 past tokens, 'past_key_values.0.key' 5",
        ),
        (
            {"key": 5, "value": 5},
            5,
            "input 'attention_mask'",
            "is 5 long; the cache ('past_key_values.0.key') holds 5, and there are 1 new "
            "tokens: 6 together",
        ),
        (
            {},
            5,
            "input 'attention_mask'",
            "is 5 long; no cache is given, and there are 1 new tokens: 1 together",
        ),
    ],
)
def test_caches_that_disagree_are_refused(past, mask, where, problem):
    inputs = [
        IDS,
        MASK,
        KEY,
        info("past_key_values.0.value", "float32", "b", 2, "p", 4),
    ]
    data = {
        "input_ids": np.ones((2, 1), np.int64),
        "attention_mask": np.ones((2, mask), np.int64),
    }
    for part, length in past.items():
        data[f"past_key_values.0.{part}"] = np.ones((2, 2, length, 4), np.float32)
    with pytest.raises(RefusedError) as error:
        list(open_feeds([data], inputs))
    assert error.value.where == f"data, batch 0, {where}"
    assert error.value.problem == problem


def test_windows_beyond_a_fixed_cache_are_refused(session):
    inputs = session(BUFFER).inputs
    with pytest.raises(RefusedError) as error:
        list(open_feeds({"input_ids": np.ones((1, 20), np.int64)}, inputs))
    assert str(error.value) == (
        "data, batch 0, input 'input_ids': holds 20 tokens a row; the cache "
        "'past_key_values.0.key' has room for 16\n"
        "  fix: give windows of at most 16 tokens"
    )


def test_ids_beyond_the_table_are_refused_with_their_row():
    ids = info("input_ids", "int64", "b", "t")
    inputs = [TensorInfo(ids.name, ids.dtype, ids.shape, rows=12)]
    data = {"input_ids": np.array([[0, 11, -12], [3, 12, 40]])}
    with pytest.raises(RefusedError) as error:
        list(open_feeds(data, inputs))
    assert str(error.value) == (
        "data, batch 0, input 'input_ids': row 2 of a batch (3, 12, 40): the id 12 has no row in "
        "the model's table, whose rows are 0 to 11\n"
        "  fix: take the tokenizer.json that the model was trained with"
    )


def test_batches_are_as_large_as_their_outputs_allow():
    outputs = [info("logits", "float32", "b", "t", 49152)]
    data = {"input_ids": np.ones((5, 128), np.int64)}
    rows = [len(b.feeds["input_ids"]) for b in open_feeds(data, [IDS], None, outputs)]
    assert rows == [2, 2, 1]
