"""Parts that work together: found by halving, never believed untried, within so many tries."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx_opt.passes._core.halving import kept_by_halving


def search(parts, bad, trials=1000, kind=lambda part: None):
    """The parts kept, and the sets that were tried; those of `bad` fail wherever they are."""
    tried = []

    def works(kept):
        tried.append(list(kept))
        return not any(set(each) <= set(kept) for each in bad)

    return kept_by_halving(parts, works, trials, kind), tried


def test_a_single_part_that_fails_is_not_tried_again():
    assert search("a", ["a"]) == ([], [])


def test_one_of_two_costs_one_try():
    assert search("ab", ["b"]) == (["a"], [["a"]])


def test_two_that_fail_together_lose_one():
    kept, _ = search("abcd", ["ad"])
    assert kept == ["a", "b", "c"]


def test_kinds_are_told_apart_before_single_parts():
    # both of kind b fail, and nothing else
    kept, tried = search(
        ["a1", "b1", "a2", "b2"], [["b1"], ["b2"]], kind=lambda part: part[0]
    )
    assert kept == ["a1", "a2"]
    assert tried[0] == ["a1", "a2"]


@pytest.mark.parametrize(("trials", "kept"), [(0, ""), (1, ""), (2, "cd"), (4, "cdb")])
def test_without_tries_left_what_worked_stays(trials, kept):
    assert search("abcd", ["a"], trials)[0] == list(kept)


@given(st.integers(1, 60), st.data())
def test_all_but_the_culprits_stay_in_few_tries(count, data):
    parts = list(range(count))
    bad = data.draw(st.sets(st.sampled_from(parts), min_size=1, max_size=3))
    kept, tried = search(parts, [[part] for part in bad])
    assert set(kept) == set(parts) - bad
    # a culprit costs two tries a level
    assert len(tried) <= 2 * len(bad) * count.bit_length()
    assert not kept or kept in tried


@given(st.integers(2, 20), st.data())
def test_what_is_returned_was_seen_to_work(count, data):
    parts = list(range(count))
    pairs = st.lists(st.sampled_from(parts), min_size=1, max_size=2)
    bad = data.draw(st.lists(pairs, min_size=1, max_size=5))
    kept, tried = search(parts, bad)
    assert not any(set(each) <= set(kept) for each in bad)
    assert not kept or kept in tried
