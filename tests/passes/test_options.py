"""Options that may be unset: how they are parsed, printed, checked and explained."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
from onnx_opt import UsageError
from onnx_opt.passes._base import NullContext, Option, Pass, PassOutcome
from onnx_opt.passes._core.options import options_of


@dataclass(frozen=True)
class Example(Pass):
    """An example of every kind of option that may be unset."""

    name: ClassVar[str] = "example"
    effect: ClassVar = "exact"

    form: Literal["a", "b"] | None = Option(None, "A word.")
    limit: float | None = Option(None, "A number.", low=0.0, high=8.0, unit="ms")
    count: int | None = Option(None, "A count.", low=1)
    on: bool | None = Option(None, "A switch.")
    text: str | None = Option(None, "A text.")
    names: tuple[str, ...] | None = Option(None, "Names.")
    given: float | None = Option(0.5, "Set by default.")
    plain: float = Option(1.0, "Never unset.")

    def run(self, model, context):
        return PassOutcome()


OPTIONS = {option.name: option for option in options_of(Example)}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("form", "none", None),
        ("form", "a", "a"),
        ("limit", "none", None),
        ("limit", "2.5", 2.5),
        ("limit", "50%", 0.5),
        ("count", "none", None),
        ("count", "3", 3),
        ("on", "none", None),
        ("on", "false", False),
        ("text", "none", None),
        ("text", "", ""),
        ("text", "nonesuch", "nonesuch"),
        ("names", "none", None),
        ("names", ["none"], ("none",)),
        ("names", [], ()),
        ("given", "none", None),
    ],
)
def test_parses_values_and_none(name, text, value):
    assert OPTIONS[name].parse("example", text) == value


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("form", None, "none"),
        ("form", "a", "a"),
        ("limit", None, "limit=none"),
        ("limit", 2.5, "limit=2.5"),
        ("on", None, "on=none"),
        ("on", False, "on=false"),
        ("text", "", 'text=""'),
        ("names", None, "names=none"),
        ("names", (), "names=[]"),
        ("given", None, "given=none"),
    ],
)
def test_renders_values_and_none(name, value, text):
    assert OPTIONS[name].render(value) == text


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "plain"])
def test_none_is_valid_where_the_type_says_so(name):
    OPTIONS[name].validate("example", None)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("form", "c", "'c' is not one of a, b"),
        ("limit", 9.0, "9.0 is outside [0.0, 8.0]"),
        ("limit", "none", "'none' is not number in [0.0, 8.0] (ms) or none"),
        ("limit", float("nan"), "nan is outside [0.0, 8.0]"),
        ("count", 0, "0 is outside [1, None]"),
        ("count", True, "True is not integer in [1, ] or none"),
        ("on", 1, "1 is not true | false or none"),
        ("names", ["a"], "['a'] is not list of text or none"),
        ("plain", None, "None is not number"),
    ],
)
def test_a_wrong_value_is_refused(name, value, problem):
    with pytest.raises(UsageError) as caught:
        OPTIONS[name].validate("example", value)
    assert caught.value.where == f"example.{name}"
    assert caught.value.problem == problem


def test_none_is_no_value_of_an_option_that_is_always_set():
    with pytest.raises(UsageError, match="'none' is not number") as caught:
        OPTIONS["plain"].parse("example", "none")
    assert caught.value.fix == "give number; the default is 1.0"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("form", "a | b or none"),
        ("limit", "number in [0.0, 8.0] (ms) or none"),
        ("count", "integer in [1, ] or none"),
        ("on", "true | false or none"),
        ("text", "text or none"),
        ("names", "list of text or none"),
        ("plain", "number"),
    ],
)
def test_the_help_says_that_an_option_may_be_unset(name, text):
    assert OPTIONS[name].type_text == text


@pytest.mark.parametrize(
    ("name", "text", "fix"),
    [
        ("form", ["c"], "choose one of a, b; the default is none"),
        ("limit", "many", "choose a value in [0.0, 8.0]; the default is none"),
        ("on", "many", "give true | false or none; the default is none"),
        ("given", "many", "give number or none; the default is 0.5"),
    ],
)
def test_the_fix_spells_an_unset_default(name, text, fix):
    with pytest.raises(UsageError) as caught:
        OPTIONS[name].parse("example", text)
    assert caught.value.fix == fix


def test_the_text_of_a_pass_leaves_out_what_is_unset_by_default():
    assert str(Example()) == "example"
    assert str(Example(form="b", given=None)) == "example(b, given=none)"
    assert Example().run(None, NullContext()).changed == 0
