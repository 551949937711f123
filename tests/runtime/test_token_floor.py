"""A language model that predicts its data's tokens far worse is below the floor."""

import numpy as np
import pytest
from onnx_opt.runtime.token_floor import token_problem

VOCABULARY = 50
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (2, 12))
FEEDS = [{"input_ids": TOKENS}]


def outputs(sure, shape=TOKENS.shape):
    """Logits that give the next token `sure` more than each other."""
    logits = np.zeros((*shape, VOCABULARY), np.float32)
    rows, places = np.indices((shape[0], shape[1] - 1))
    logits[rows, places, TOKENS[:, 1:]] = sure
    return [{"logits": logits}]


def perplexity(sure):
    return (np.exp(sure) + VOCABULARY - 1) / np.exp(sure)


def test_the_perplexity_is_told_where_it_more_than_doubles():
    found = token_problem(FEEDS, outputs(5.0), outputs(3.0))
    assert found == (
        "output 'logits' predicts the next token with a perplexity of "
        f"{perplexity(3.0):.4g}, of {perplexity(5.0):.4g} before"
    )


def test_what_does_not_double_is_no_problem():
    assert perplexity(4.5) < 2 * perplexity(5.0)
    assert token_problem(FEEDS, outputs(5.0), outputs(4.5)) is None


@pytest.mark.parametrize(
    ("feeds", "before"),
    [
        # it guesses: next tokens are not what it predicts
        (FEEDS, outputs(1.0)),
        ([{"pixels": np.zeros((2, 12), np.float32)}], outputs(5.0)),
        # ids beyond the output's classes
        ([{"input_ids": TOKENS + VOCABULARY}], outputs(5.0)),
        ([{"input_ids": TOKENS[:, :1]}], outputs(5.0)),
        (FEEDS, [{"logits": np.zeros((2, 3), np.float32)}]),
    ],
)
def test_models_that_predict_no_next_token_have_no_such_floor(feeds, before):
    assert token_problem(feeds, before, outputs(0.0)) is None


def test_padding_is_left_out():
    mask = np.ones_like(TOKENS)
    mask[:, 6:] = 0
    after = outputs(5.0)
    after[0]["logits"][:, 6:] = 0
    padded = [{"input_ids": TOKENS, "attention_mask": mask}]
    assert token_problem(FEEDS, outputs(5.0), after) is not None
    assert token_problem(padded, outputs(5.0), after) is None
