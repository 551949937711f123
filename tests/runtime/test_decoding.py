"""Tokens one by one with the cache, and the metrics that need it."""

import math

import numpy as np
import onnx
import pytest
from cached_decoders import BUFFER, CROSS, FORMS, TRANSFORMERS, decoder_model
from onnx_opt import RefusedError, UsageError
from onnx_opt.runtime.cached_run import step_after
from onnx_opt.runtime.decoding import NEW_TOKENS, greedy, prompts_of, step_remark
from onnx_opt.runtime.feeds import open_feeds
from onnx_opt.runtime.metrics import evaluate, metric_named
from onnx_opt.runtime.next_tokens import with_next_tokens
from onnx_opt.runtime.session import open_session

PLAIN = """
<ir_version: 10, opset_import: ["" : 21]>
model (int64[batch, sequence] input_ids) => (float[batch, sequence, 12] logits)
<float[12, 12] next> { logits = Gather (next, input_ids) }
"""
"""The likeliest next token depends on the last alone."""

# the first has no room for new ones where the cache has a fixed length
IDS = np.arange(24).reshape(2, 12) % 12


@pytest.fixture
def session(worker, tmp_path):
    def opened(text, seed=0, name="decoder.onnx"):
        path = tmp_path / name
        onnx.save(decoder_model(text, seed), path)
        return open_session(worker, path)

    return opened


def feeds_of(session, ids=IDS, **more):
    data = {"input_ids": ids, **more}
    names = [info.name for info in session.inputs]
    if "encoder_hidden_states" in names:
        random = np.random.default_rng(1)
        states = random.standard_normal((len(ids), 5, 8))
        data["encoder_hidden_states"] = states.astype(np.float32)
    return open_feeds(data, session.inputs)


def by_hand(logits, labels):
    """Perplexity of labels that are not -100."""
    shifted = logits - logits.max(-1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    kept = labels != -100
    rows = logs[kept]
    return math.exp(-rows[np.arange(len(rows)), labels[kept]].mean())


# steps


@pytest.mark.parametrize("form", [name for name in FORMS if name != "cross"])
def test_steps_give_the_logits_of_the_prefill(session, form):
    opened = session(FORMS[form])
    (first, *_) = feeds_of(opened)
    assert step_remark(opened, first.feeds) == ""


def test_a_cache_that_is_not_read_is_told(session):
    # the new keys take the place of all that came before
    text = TRANSFORMERS.replace(
        "Concat <axis = 2> (past_key_values_0_value, v)",
        "Concat <axis = 2> (forgotten, v)",
    )
    text = text.replace(
        "present_0_value = Concat",
        "forgotten = Mul (past_key_values_0_value, none) present_0_value = Concat",
    )
    opened = session(text)
    (batch,) = feeds_of(opened)
    remark = step_remark(opened, batch.feeds)
    assert remark.startswith(
        "tokens fed one by one, with the cache, give other logits than all at once: "
    )
    assert remark.endswith(
        " dB over the last 4 tokens of a window; the score is of all at once"
    )


def test_a_step_reads_what_the_prefill_left(session):
    opened = session(TRANSFORMERS)
    (batch,) = feeds_of(opened)
    step = step_after(opened, batch.feeds)
    prefill = opened.run(batch.feeds)
    assert step["input_ids"].tolist() == [[11], [11]]
    assert step["position_ids"].tolist() == [[12], [12]]
    assert step["attention_mask"].shape == (2, 13)
    np.testing.assert_array_equal(
        step["past_key_values.0.key"], prefill["present.0.key"]
    )


def test_states_of_the_encoder_are_kept_from_the_first_run(session):
    opened = session(CROSS)
    (batch,) = feeds_of(opened)
    step = step_after(opened, batch.feeds)
    assert step["past_key_values.0.encoder.key"].shape == (2, 5, 8)
    assert step["use_cache_branch"].tolist() == [True]


def test_a_cache_that_comes_back_unlike_it_is_refused(session):
    text = TRANSFORMERS.replace(
        "present_0_value = Concat <axis = 2> (past_key_values_0_value, v)",
        "full_value = Concat <axis = 2> (past_key_values_0_value, v) "
        "present_0_value = Slice (full_value, first, second, second)",
    ).replace("MatMul (weights, present_0_value)", "MatMul (weights, full_value)")
    opened = session(text)
    (batch,) = feeds_of(opened)
    with pytest.raises(RefusedError) as error:
        step_after(opened, batch.feeds)
    assert str(error.value) == (
        "decoder.onnx, output 'present.0.value': has shape [2, 1, 12, 4]; the cache input "
        "'past_key_values.0.value' takes [?, 2, ?, 4]\n"
        "  fix: export the model again: what it gives back must fit what it takes"
    )


def test_a_cache_without_an_output_is_refused(session):
    text = TRANSFORMERS.replace(",\n    float[s0, 2, s5, 4] present_0_value)", ")")
    opened = session(text)
    (batch,) = feeds_of(opened)
    with pytest.raises(RefusedError) as error:
        step_after(opened, batch.feeds)
    assert error.value.problem == (
        "no output goes with the cache input 'past_key_values.0.value'; its outputs are logits, "
        "present.0.key"
    )


def test_outputs_without_telling_names_go_by_order(session):
    opened = session(TRANSFORMERS.replace("present_0", "grown"))
    (batch,) = feeds_of(opened)
    assert step_remark(opened, batch.feeds) == ""


# labels


@pytest.mark.parametrize("text", [PLAIN, TRANSFORMERS])
def test_perplexity_of_tokens_is_that_of_the_next_ones(session, text):
    opened = session(text)
    feeds = feeds_of(opened)
    labels = np.concatenate([IDS[:, 1:], np.full((2, 1), -100)], axis=1)
    (batch,) = feeds
    expected = by_hand(opened.run(batch.feeds)["logits"].astype(float), labels)
    found = evaluate(opened, feeds, metric_named("perplexity"))
    assert found.value == pytest.approx(expected, rel=1e-5)
    assert found.remark == ""
    # the labels themselves, as trainers take them
    same = feeds_of(opened, labels=IDS)
    assert evaluate(opened, same, metric_named("perplexity")).value == found.value
    assert "data: labels are the tokens themselves: moved by one" in same.warnings
    # labels that are moved already
    own = feeds_of(opened, labels=labels)
    assert evaluate(opened, own, metric_named("perplexity")).value == found.value


def test_padding_has_no_label(session):
    opened = session(TRANSFORMERS)
    mask = np.array([[1] * 12, [1] * 9 + [0] * 3])
    (batch,) = with_next_tokens(
        opened, feeds_of(opened, attention_mask=mask), "perplexity"
    )
    ends = np.array([[9, 10, 11, -100], [-100, -100, -100, -100]])
    np.testing.assert_array_equal(batch.labels[:, -4:], ends)


def test_a_decoder_without_labels_or_tokens_is_refused(session):
    text = TRANSFORMERS.replace(
        "int64[s0, s1] input_ids", "float[s0, s1, 8] inputs_embeds"
    )
    opened = session(
        text.replace("e = Gather (table, input_ids)", "e = Identity (inputs_embeds)")
    )
    feeds = open_feeds({"inputs_embeds": np.ones((2, 3, 8), np.float32)}, opened.inputs)
    with pytest.raises(RefusedError) as error:
        evaluate(opened, feeds, metric_named("perplexity"))
    assert str(error.value) == (
        "data, batch 0: has no labels, and the model no input of token ids to take them from; "
        "perplexity needs them\n"
        "  fix: put them under 'labels' in the .npz, or yield (feeds, labels)"
    )


# generation


def test_generation_follows_the_likeliest_token(session):
    opened = session(PLAIN)
    (prompt,) = prompts_of(opened, feeds_of(opened))
    (table,) = onnx.load(opened.path).graph.initializer
    likeliest = onnx.numpy_helper.to_array(table).argmax(1)
    token = IDS[0, -1]
    expected = []
    for _ in range(NEW_TOKENS):
        token = likeliest[token]
        expected.append(token)
    assert greedy(opened, prompt)[0].tolist() == expected


def without_cache(text):
    """The same decoder, that takes all tokens each time."""
    text = text.replace(
        ",\n float[s0, 2, s4, 4] past_key_values_0_key, "
        "float[s0, 2, s4, 4] past_key_values_0_value)",
        ")",
    )
    for part, new in (("key", "k"), ("value", "v")):
        text = text.replace(
            f"Concat <axis = 2> (past_key_values_0_{part}, {new})", f"Identity ({new})"
        )
    return text


def test_the_cache_generates_what_feeding_all_again_does(session):
    cached = session(TRANSFORMERS)
    plain = session(without_cache(TRANSFORMERS), name="plain.onnx")
    (prompt,) = prompts_of(cached, feeds_of(cached))
    tokens = greedy(cached, prompt)
    assert tokens.shape == (2, NEW_TOKENS)
    np.testing.assert_array_equal(greedy(plain, prompt), tokens)
    # at once, behind the tokens of another model
    np.testing.assert_array_equal(greedy(plain, prompt, tokens), tokens)


def test_padded_prompts_go_by_themselves(session):
    opened = session(TRANSFORMERS)
    mask = np.array([[1] * 12, [1] * 9 + [0] * 3])
    prompts = prompts_of(opened, feeds_of(opened, attention_mask=mask))
    assert [prompt["input_ids"].shape for prompt in prompts] == [(1, 12), (1, 9)]


@pytest.mark.parametrize("text", [PLAIN, TRANSFORMERS])
def test_agreement_counts_up_to_the_first_other_token(session, text):
    original = session(text)
    other = session(text, seed=3, name="other.onnx")
    metric = metric_named("generation")
    assert evaluate(original, feeds_of(original), metric).value == 1
    found = evaluate(other, feeds_of(other), metric).value
    (prompt,) = prompts_of(original, feeds_of(original))
    is_same = greedy(original, prompt) == greedy(other, prompt)
    prefixes = [row.tolist().index(False) for row in is_same]
    assert found == sum(prefixes) / is_same.size


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            PLAIN.replace("sequence]", "12]"),
            "takes exactly 12 tokens in 'input_ids': nothing can be generated",
        ),
        (
            BUFFER,
            "its cache has room for 16 tokens; 16 new ones and a prompt do not fit",
        ),
    ],
)
def test_models_that_cannot_generate_say_so(session, text, problem):
    opened = session(text)
    with pytest.raises(RefusedError) as error:
        list(prompts_of(opened, feeds_of(opened)))
    assert error.value.problem == problem


def test_a_prompt_leaves_room_in_a_fixed_cache(session):
    opened = session(BUFFER.replace("16", "20"))
    prompts = prompts_of(opened, feeds_of(opened))
    tokens = [greedy(opened, prompt) for prompt in prompts]
    assert [found.shape for found in tokens] == [(1, NEW_TOKENS)] * 2


def test_an_unknown_metric_names_all(session):
    with pytest.raises(UsageError) as error:
        metric_named("generate")
    assert error.value.problem == (
        "'generate' is not one of top1, top5, spearman, perplexity, generation"
    )
