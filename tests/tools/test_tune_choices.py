"""Choices of each weight: the best within a limit, and the recipes that they become."""

import itertools
import math
import subprocess
import sys

import pytest
from onnx_opt.passes._core.pipeline import parse
from onnx_opt.tools._tune.choices import (
    FormChoice,
    total_cost,
    total_loss,
    without_dominated,
)
from onnx_opt.tools._tune.families import MenuRecipes
from onnx_opt.tools._tune.knapsack import cheapest, gentlest
from onnx_opt.tools._tune.menu import FoundMenu
from onnx_opt.tools._tune.recipe import recipe_of


def choice(form, loss, size):
    return FormChoice(form, loss, size)


MENU = {
    "a": [choice("int8:8", 0.0, 8), choice("palette:4", 0.1, 4)],
    "b": [choice("int8:8", 0.0, 80), choice("palette:4", 0.1, 40)],
    "c": [choice("int8:8", 0.0, 8), choice("palette:4", 0.3, 1)],
}


@pytest.mark.parametrize(
    ("limit", "small"),
    [
        (0.05, ""),
        # the weight that saves most
        (0.1, "b"),
        (0.2, "ab"),
        # b and c save more together than a and b, but lose more
        (0.4, "bc"),
        (0.5, "abc"),
    ],
)
def test_the_cheapest_choices_within_a_loss(limit, small):
    picks = cheapest(MENU, limit)
    assert {name for name, each in picks.items() if each.form == "palette:4"} == set(
        small
    )
    assert total_loss(picks) <= limit + 1e-9
    assert total_cost(picks) == sum(each.cost for each in picks.values())


@pytest.mark.parametrize("most", [49, 60, 88, 92, 96])
def test_the_gentlest_choices_within_a_cost(most):
    picks = gentlest(MENU, most)
    assert total_cost(picks) <= most
    losses = [
        sum(each.loss for each in chosen)
        for chosen in itertools.product(*MENU.values())
        if sum(each.cost for each in chosen) <= most
    ]
    assert total_loss(picks) == pytest.approx(min(losses))


def test_no_choice_is_cheap_enough():
    assert gentlest(MENU, 44) is None


def test_no_choice_loses_little_enough():
    assert cheapest({"a": [choice("palette:2", 0.5, 1)]}, 0.1) is None


def test_nothing_to_choose_is_nothing_chosen():
    assert cheapest({}, 0.1) == {}


def test_a_choice_that_another_beats_is_not_on_the_menu():
    best = choice("palette:4", 0.1, 4)
    plain = choice("int8:8", 0.0, 8)
    beaten = [choice("palette:5", 0.2, 5), choice("float", 0.0, 32)]
    assert without_dominated([*beaten, best, plain]) == [plain, best]


def test_a_recipe_is_canonical_text_that_names_layers():
    picks = {
        "w1": choice("palette:3", 0.1, 4),
        "odd,[name]": choice("palette:4", 0.0, 8),
        "w2": choice("int8:8", 0.0, 8),
        'a"quote\\': choice("float", 0.0, 8),
    }
    text = recipe_of(picks, before=["prune(sparsity=0.5)"])
    assert str(parse(text)) == text
    _, prune, quant, _ = parse(text).passes
    assert prune.sparsity == 0.5
    expected = ("w1=palette:3", "odd,[[]name]=palette:4", 'a"quote\\=float')
    assert quant.layers == expected
    assert not quant.measure


def test_weights_that_no_choice_names_have_8_bits():
    assert [each.name for each in parse(recipe_of({})).passes] == [
        "simplify",
        "quant",
        "strip",
    ]


def test_what_pruning_loses_is_taken_from_what_bits_may_lose():
    pruned = {
        name: [choice(each.form, each.loss, each.cost / 2) for each in choices]
        for name, choices in MENU.items()
    }
    menus = [FoundMenu("", 0.0, MENU, {}), FoundMenu("prune", 0.15, pruned, {})]
    family = MenuRecipes(menus)
    # 0.1 bears no pruning
    assert "prune" not in family.proposal(10.0).recipe
    # 0.2 bears it with 8 bits everywhere, or palettes of two weights without it
    assert family.proposal(-10 * math.log10(0.2)).recipe == recipe_of(
        {name: choices[0] for name, choices in MENU.items()}, before=["prune"]
    )


def test_weights_stay_float_only_where_integers_lose_too_much():
    integers = [choice("int8:8", 0.02, 8), choice("palette:4", 0.1, 4)]
    # for four bytes more the other weight could save 40
    small = [choice("float", 0.0, 12), *integers]
    large = [choice("int8:8", 0.01, 80), choice("palette:4", 0.1, 40)]
    family = MenuRecipes([FoundMenu("", 0.0, {"small": small, "large": large}, {})])
    assert "float" not in family.proposal(-10 * math.log10(0.11)).recipe
    (smaller,) = family.smaller(90)
    assert "float" not in smaller.recipe
    assert "small=float" in family.proposal(-10 * math.log10(0.02)).recipe


TALKATIVE = """
import ctypes
import scipy.optimize
from onnx_opt.tools._tune import knapsack
from onnx_opt.tools._tune.choices import FormChoice

solve = scipy.optimize.milp

def talkative(*arguments, **named):
    ctypes.CDLL(None).printf(b"from C\\n")
    return solve(*arguments, **named)

scipy.optimize.milp = talkative
print("before")
print(knapsack.gentlest({"a": [FormChoice("int8:8", 0.0, 8)]}, 10)["a"].form)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="C is reached in another way there")
def test_what_the_solver_prints_is_not_shown():
    # a pipe, for which C holds back what it prints
    done = subprocess.run(
        [sys.executable, "-c", TALKATIVE], capture_output=True, text=True, check=True
    )
    assert done.stdout == "before\nint8:8\n"
    assert done.stderr == ""
