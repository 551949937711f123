"""A test is skipped for an old release in just the words of the table, and for no other failure."""

import pytest
import releases
from releases import reason_to_skip, too_old


@pytest.fixture
def installed(monkeypatch):
    """Have every package be of one version."""
    return lambda version: monkeypatch.setattr(
        releases.metadata, "version", lambda package: version
    )


CAST = "NotImplemented: [ONNXRuntimeError] : 9 : Could not find an implementation for Cast(21) node"


def test_the_words_of_an_older_release_are_a_reason(installed):
    installed("1.22.1")
    assert reason_to_skip(CAST) == (
        "needs onnxruntime 1.23, here is 1.22.1: Cast from INT4"
    )


@pytest.mark.parametrize("version", ["1.23.0", "1.32.0", "2.0.0"])
def test_on_a_newer_release_the_same_words_are_a_failure(installed, version):
    installed(version)
    assert reason_to_skip(CAST) is None


@pytest.mark.parametrize("words", ["", "AssertionError: assert 1 == 2", "Cast(13)"])
def test_other_words_are_a_failure_everywhere(installed, words):
    installed("1.0.0")
    assert reason_to_skip(words) is None


def test_releases_are_compared_as_numbers(installed):
    installed("1.9.2")
    assert too_old("onnx", (1, 17)) == "needs onnx 1.17, here is 1.9.2"
    assert too_old("onnx", (1, 9)) is None
