"""What training starts from, and how it tells of itself."""

import onnx.parser
import onnx_ir as ir
import pytest
from onnx_opt import UsageError
from onnx_opt.frontends.onnx_file import save
from onnx_opt.passes._core.training_recipe import TrainingRecipe
from onnx_opt.runtime.worker import Worker
from onnx_opt.tools._run.context import TrainingContext, training_progress

LINEAR = """
<ir_version: 10, opset_import: ["" : 21]>
linear (float[n, 2] x) => (float[n, 2] y) <float[2, 2] w = {3, -1, 2, 4}>
{ y = MatMul (x, w) }
"""


def context() -> TrainingContext:
    return TrainingContext(Worker(), None, "cpu", 0, save)


def test_floats_outlast_the_pass_that_names_them():
    one = context()
    assert one._original_floats() is None
    one.remember_float(ir.from_proto(onnx.parser.parse_model(LINEAR)))
    one.float_form = None  # as a run does before its next pass
    assert one._original_floats()["w"].tolist() == [[3, -1], [2, 4]]


def test_training_without_data_is_an_error():
    with pytest.raises(UsageError, match="no data to train on"):
        context().train(
            ir.from_proto(onnx.parser.parse_model(LINEAR)), TrainingRecipe()
        )


def test_a_bar_moves_by_parts_and_shows_words():
    moves, notes = [], []

    class Bars:
        def __call__(self, label, total):
            import contextlib

            assert (label, total) == ("finetune", 1000)
            return contextlib.nullcontext(moves.append)

        def note(self, words):
            notes.append(words)

    with training_progress("finetune", Bars()) as tell:
        tell(0.25, "loss 2, held out 0.8")
        tell(1.0, "loss 1, held out 0.9")
    assert moves == [250, 750]
    assert notes == ["loss 2, held out 0.8", "loss 1, held out 0.9"]
