"""A researcher: a metric of their own, a sweep in Python, and the losses as a DataFrame."""

from __future__ import annotations

from typing import Any

import numpy as np
from samples import DEMO, digits
from visit import Visit

NEEDS = ("pandas",)
SPARSITIES = (0.3, 0.6, 0.9)


def replay(visit: Visit) -> None:
    import onnx_opt
    import pandas

    model = DEMO / "digits_cnn.onnx"
    pixels, classes = digits()
    data = {"image": pixels[:200], "labels": classes[:200]}
    rows = []
    for sparsity in SPARSITIES:
        result = onnx_opt.optimize(
            model, [("prune", {"sparsity": sparsity, "fit": False})], data=data, metric=margin,
            bench=False, explain_loss=True, force=True,
        )  # fmt: skip
        assert result.metric is not None
        row = {"sparsity": sparsity, "bytes": result.output.bytes}
        rows.append({**row, "margin": result.metric["after"]})
    table = pandas.DataFrame(rows)
    visit.check("a sweep is a loop", len(table) == len(SPARSITIES))
    visit.check("more zeros, less margin", table.margin.is_monotonic_decreasing)
    # every figure again by hand
    value = onnx_opt.evaluate(result.model, data, margin)
    visit.check("the metric is the function's", value == table.margin.iloc[-1])
    losses = pandas.DataFrame(result.loss)
    visit.check(
        "losses are a DataFrame at once", {"layer", "op"} <= set(losses.columns)
    )
    pruned = result.passes[0].changed
    visit.check("a row for each layer", len(losses) == pruned > 5)
    account = result.to_dict()
    visit.check("the account is plain", account["passes"][0]["pass"] == "prune")


def margin(outputs: list[Any], labels: list[Any]) -> float:
    """Mean of the true class's score less the best other one."""
    margins = []
    for scores, truth in zip(outputs, labels, strict=True):
        logits = scores[0] if isinstance(scores, list) else scores
        rows = np.arange(len(truth))
        true = logits[rows, truth]
        others = logits.copy()
        others[rows, truth] = -np.inf
        margins.append(true - others.max(1))
    return float(np.concatenate(margins).mean())
