"""Random networks: whatever is taken out, the rest computes what shutting it off does.

`pytest -m slow` tries many more.
"""

import numpy as np
import onnx_ir as ir
import pytest
from calibrated_context import run_session
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._channels.pruning import Pruning
from onnx_opt.passes._channels.verify import remove_channels
from onnx_opt.passes._dims.groups import kept_slots
from onnx_opt.passes._dims.reference import masked_reference
from random_nets import random_net

FAST, ALL = 16, 300


def outputs(model, feeds):
    session = run_session(model)
    return [session.run(None, feed)[0] for feed in feeds]


def assert_right(seed, attention):
    """Take half of every group's channels; gives the groups."""
    net = random_net(seed)
    model = ir.from_proto(net.model())
    pruning = Pruning(model, NullContext(), attention, keep_batchnorm=False)
    random = np.random.default_rng(seed)
    gone = [np.empty(0, np.intp)]
    for group in pruning.groups:
        channels = random.permutation(group.channels)
        gone.append(channels[: max(len(channels) // 2, 1)])
    channels = np.concatenate(gone)
    pruned = pruning.whole.clone()
    remove_channels(pruned, pruning.solution, channels, attention)
    kept = kept_slots(pruning.solution, channels)
    masked = masked_reference(pruning.whole, pruning.solution, kept)
    feeds = list(net.feeds())
    for wanted, got in zip(outputs(masked, feeds), outputs(pruned, feeds), strict=True):
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4 * scale)
    return pruning.groups


@pytest.mark.parametrize("attention", ["heads", "dims"])
@pytest.mark.needs("onnxruntime", "1.28", "older ones die of some")
def test_random_networks_compute_the_masked_reference(attention):
    found = [assert_right(seed, attention) for seed in range(FAST)]
    assert sum(map(len, found)) > 2 * FAST


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["heads", "dims"])
@pytest.mark.needs("onnxruntime", "1.28", "older ones die of some")
def test_many_random_networks_compute_the_masked_reference(attention):
    for seed in range(FAST, ALL):
        assert_right(seed, attention)
