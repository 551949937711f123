"""Limits: each is documented, and a variable changes it."""

from pathlib import Path

import pytest
from onnx_opt import UsageError
from onnx_opt.passes._core.limits import LIMITS, limit, table

SECURITY = Path(__file__).resolve().parents[2] / "SECURITY.md"


def test_the_page_lists_them_all():
    assert table() in SECURITY.read_text(encoding="utf-8")


def test_a_variable_changes_one(monkeypatch):
    assert limit("CALL_DEPTH") == LIMITS["CALL_DEPTH"].default
    monkeypatch.setenv("ONNX_OPT_CALL_DEPTH", "7")
    assert limit("CALL_DEPTH") == 7


@pytest.mark.parametrize("text", ["", "abc", "-1", "1.5", "1e9", "٣", "9" * 5000])
def test_what_is_no_number_is_refused(monkeypatch, text):
    monkeypatch.setenv("ONNX_OPT_SECONDS", text)
    with pytest.raises(UsageError, match="is not a whole number of s"):
        limit("SECONDS")
