"""Orders of passes that rob each other are told of, with the better one; others are not."""

import numpy as np
import onnx_ir as ir
import onnx_opt
import pytest
from onnx_opt.passes._core.order import ORDERS, Ran, lost_by_order
from onnx_opt.passes._core.registry import pass_names
from sample_models import model_from

LAYERS = """
<ir_version: 10, opset_import: ["" : 21]>
layers (float[N, 64] x) => (float[N, 64] y)
<float[64, 64] v, float[64, 64] w>
{
    h = MatMul (x, v)
    r = Relu (h)
    y = MatMul (r, w)
}
"""

DATA = {"x": np.random.default_rng(0).standard_normal((40, 64)).astype(np.float32)}


def orders(passes):
    result = onnx_opt.optimize(
        ir.from_proto(model_from(LAYERS)),
        passes,
        data=DATA,
        bench=False,
        pack=False,
        force=True,
    )
    return [each for each in result.warnings if each.startswith("order: ")]


@pytest.mark.parametrize(
    ("passes", "words"),
    [
        (
            "compress-weights, quant(measure=false)",
            "quant makes other weights of those that compress-weights has rounded: they lose "
            "twice: write 'quant(measure=false), compress-weights'",
        ),
        (
            "compress-weights, quant(blocked)",
            "compress-weights stores weights in few bits, which quant leaves (2): "
            "write 'quant(blocked), compress-weights'",
        ),
        (
            "quant(measure=false), prune(sparsity=0.5)",
            "quant makes integers of weights, which prune leaves (2): "
            "write 'prune(sparsity=0.5), quant(measure=false)'",
        ),
        (
            "quant(fp16), quant(measure=false)",
            "quant stores weights in half precision, which quant leaves (2): "
            "write 'quant(measure=false), quant(fp16)'",
        ),
        (
            "prune(sparsity=0.9), pack, gptq",
            "pack puts weights behind nodes that decode them, which gptq leaves (2): "
            "write 'gptq, pack'",
        ),
        (
            "gptq, round-weights",
            "gptq moves weights onto the grid, where round-weights leaves them (2): "
            "one of them is enough",
        ),
    ],
)
def test_a_pass_that_robs_a_later_one_is_named(passes, words):
    assert orders(passes) == [f"order: {words}"]


@pytest.mark.parametrize(
    "passes",
    [
        "quant(measure=false), compress-weights",
        "prune(sparsity=0.5), quant(measure=false)",
        "prune(sparsity=0.9), pack",
        "compress-weights(include=[v]), quant(measure=false, include=[w])",
    ],
)
def test_an_order_that_costs_nothing_is_not(passes):
    assert orders(passes) == []


def test_only_layers_that_were_lost_count():
    quant = Ran("quant", "quant", 2, [])
    reasons = ["already quantized", "its weight is empty", "already quantized"]
    prune = Ran("prune", "prune", 0, reasons)
    assert "(2)" in lost_by_order(quant, prune)
    assert lost_by_order(prune, quant) is None
    assert lost_by_order(quant._replace(changed=0), prune) is None
    assert lost_by_order(quant, prune._replace(reasons=reasons[1:2])) is None


def test_the_table_names_passes_that_are_there():
    for order in ORDERS:
        assert order.earlier | order.later <= set(pass_names())
