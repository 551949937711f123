"""The pass alone: it asks the context, hands over its options, and changes nothing where it cannot
train.
"""

import onnx.parser
import onnx_ir as ir
import pytest
from onnx_opt import UsageError
from onnx_opt.passes._base import Declined, NullContext, PassOutcome, Trains
from onnx_opt.passes._core.options import options_of
from onnx_opt.passes._core.pipeline import parse
from onnx_opt.passes._core.training_recipe import TrainingRecipe
from onnx_opt.passes.finetune import Finetune

LINEAR = """
<ir_version: 10, opset_import: ["" : 21]>
linear (float[n, 2] x) => (float[n, 2] y)
<float[2, 2] w = {3, -1, 2, 4}>
{ y = MatMul (x, w) }
"""


class Trainer(NullContext):
    """A context that notes what it is asked."""

    def __init__(self, data: bool = True) -> None:
        super().__init__()
        self.data = data
        self.recipes = []

    def has_data(self) -> bool:
        return self.data

    def train(self, model, recipe):
        self.recipes.append(recipe)
        return PassOutcome(1, {"steps": 3})


def model() -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(LINEAR))


def test_a_context_without_training_is_told_apart():
    assert isinstance(Trainer(), Trains)
    assert not isinstance(NullContext(), Trains)


@pytest.mark.parametrize(
    ("context", "reason"),
    [
        (
            NullContext(),
            "models are not trained here: use onnx-opt run, or optimize() in Python",
        ),
        (
            Trainer(data=False),
            "there is no data to train on: give --data, labels are not needed",
        ),
    ],
)
def test_nothing_changes_where_it_cannot_train(context, reason):
    one = model()
    before = ir.to_proto(one).SerializeToString(deterministic=True)
    assert Finetune().run(one, context) == PassOutcome(
        declined=[Declined("linear", reason)]
    )
    assert ir.to_proto(one).SerializeToString(deterministic=True) == before


def test_missing_data_is_said():
    context = Trainer(data=False)
    Finetune().run(model(), context)
    assert context.warnings == [
        "finetune: nothing to train on: give --data, labels are not needed"
    ]


def test_options_reach_the_trainer_as_a_recipe():
    context = Trainer()
    outcome = Finetune(steps=7, features=("h",)).run(model(), context)
    assert outcome == PassOutcome(1, {"steps": 3})
    assert context.recipes == [TrainingRecipe(steps=7, features=("h",))]


def test_only_the_schedule_is_no_option_of_the_recipe():
    own = [option.name for option in options_of(Finetune)]
    assert own == [option.name for option in options_of(TrainingRecipe)] + ["schedule"]


@pytest.mark.parametrize("kind", [Finetune, TrainingRecipe])
def test_nothing_to_learn_from(kind):
    with pytest.raises(UsageError, match="nothing to learn from"):
        kind(labels=0.0, distill=False)


@pytest.mark.parametrize("kind", [Finetune, TrainingRecipe])
def test_values_out_of_range(kind):
    with pytest.raises(
        UsageError, match=r"finetune\.warmup: 2\.0 is outside \[0\.0, 0\.9\]"
    ):
        kind(warmup=2.0)


def test_a_schedule_prunes_before_each_round():
    seen = []

    class Watching(Trainer):
        def train(self, model, recipe):
            seen.append(
                (
                    recipe.steps,
                    model.graph.initializers["w"].const_value.numpy().ravel().tolist(),
                )
            )
            return super().train(model, recipe)

    outcome = Finetune(steps=9, schedule=("0.25", "0.5")).run(model(), Watching())
    assert seen == [(5, [3, 0, 2, 4]), (5, [3, 0, 0, 4])]
    assert (outcome.changed, outcome.stats) == (1, {"steps": 3, "sparsity": 0.5})


@pytest.mark.parametrize(
    "schedule", [("0.5", "0.2"), ("1",), ("much",), ("-0.1",), ("nan",)]
)
def test_a_schedule_rises_to_less_than_all(schedule):
    with pytest.raises(UsageError, match="not rising fractions"):
        Finetune(schedule=schedule)


@pytest.mark.parametrize(
    "text",
    [
        "finetune",
        "finetune(qad, minutes=2.0)",
        'finetune(student, steps=10, features=[a, "b=c"], flip=true)',
    ],
)
def test_text_round_trips(text):
    assert str(parse(text)) == text


def test_the_last_round_has_half_of_the_budget():
    seen = []

    class Watching(Trainer):
        def train(self, model, recipe):
            seen.append((recipe.steps, recipe.minutes))
            return super().train(model, recipe)

    Finetune(steps=8, minutes=4, schedule=("0.2", "0.4", "0.5")).run(
        model(), Watching()
    )
    assert seen == [(2, 1.0), (2, 1.0), (4, 2.0)]
