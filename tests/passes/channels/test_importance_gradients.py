import numpy as np
import pytest
from importance_nets import RAW, mlp
from onnx_opt import UsageError
from onnx_opt.passes._base import Gradient, NullContext
from onnx_opt.passes._channels.importance.gradients import fisher, taylor

W = np.array([[1.0, -2], [3, 0]])
V = np.array([[2.0], [-1]])


class Differentiating(NullContext):
    """Gives the gradients it is told; notes what it was asked."""

    def __init__(self, found):
        super().__init__()
        self.found = found
        self.asked = []

    def gradients(self, model, weights, samples):
        self.asked.append((list(weights), samples))
        return self.found


def both(g, h):
    return {
        "w": Gradient(np.array(g, float), np.square(np.array(g, float)) + 1),
        "v": Gradient(np.array(h, float), np.square(np.array(h, float))),
    }


@pytest.mark.parametrize(
    ("criterion", "want"),
    [
        (taylor, [abs(1 * 1 + 3 * -2) + abs(2 * 3), abs(-2 * 0.5) + abs(-1 * -4)]),
        (fisher, [(1 * 2 + 9 * 5) / 2 + 4 * 9 / 2, (4 * 1.25) / 2 + 1 * 16 / 2]),
    ],
)
def test_two_channels_by_hand(criterion, want):
    model, solution, groups = mlp(W, V)
    context = Differentiating(both([[1, 0.5], [-2, 7]], [[3], [-4]]))
    (found,) = criterion(groups, solution, model, context, RAW)
    np.testing.assert_allclose(found, want)
    assert context.asked == [(["w", "v"], 64)]


def test_weights_without_a_gradient_do_not_count():
    model, solution, groups = mlp(W, V)
    only = {"v": both(W, V)["v"]}
    np.testing.assert_allclose(
        taylor(groups, solution, model, Differentiating(only), RAW)[0], [4, 1]
    )
    assert taylor(groups, solution, model, Differentiating({}), RAW) == [
        "the loss has no gradient by its weights"
    ]


@pytest.mark.parametrize("criterion", [taylor, fisher])
def test_a_run_that_cannot_differentiate_says_what_to_do(criterion):
    model, solution, groups = mlp(W, V)
    with pytest.raises(UsageError, match="cannot differentiate") as caught:
        criterion(groups, solution, model, NullContext(), RAW)
    assert "variance" in str(caught.value.fix)
