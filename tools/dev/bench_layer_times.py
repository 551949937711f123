"""Time of whole models as `tune` predicts it from that of their layers, beside measured.

    python tools/dev/bench_layer_times.py [--models NAME …]

Mixtures of float and 8 bits: the first half of the layers float, a third of them drawn at random
(three times), and a single one. None of them was timed for the prediction. All are timed in turns
with the float model, and a prediction is scaled by what that model takes now and what it took then:
a machine's load changes.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Collection, Iterator

from bench_data import MODELS
from bench_sensitivity import NAMES, lab_settings
from live_table import show
from onnx_opt.tools._tune.choices import FLOAT
from onnx_opt.tools._tune.lab import Lab, open_lab
from onnx_opt.tools._tune.layer_times import layer_times
from onnx_opt.tools._tune.recipe import DEFAULT_FORM, quant_text

Row = tuple[str, ...]


def mixtures(weights: list[str]) -> dict[str, dict[str, str]]:
    """Forms of weights by the name of a mixture."""
    draw = random.Random(0)
    floats = {"first half float": weights[: len(weights) // 2]}
    for number in range(3):
        floats[f"a third float, draw {number + 1}"] = draw.sample(
            weights, len(weights) // 3
        )
    floats["a single layer float"] = weights[len(weights) // 2 :][:1]
    return {name: dict.fromkeys(each, FLOAT) for name, each in floats.items()}


def rows_of(lab: Lab, name: str) -> Iterator[Row]:
    """A row for each mixture: predicted and measured time, and by how much they differ."""
    eight_bits = lab.made(quant_text({}))
    times = layer_times(lab, eight_bits)
    asked = mixtures(list(times.forms[DEFAULT_FORM]))
    models = [lab.made(quant_text(forms)).result for forms in asked.values()]
    profiles = lab.context.profiles([lab.model, eight_bits.result, *models])
    plain = dict.fromkeys(times.forms[FLOAT], FLOAT)
    told = [times.of(plain), times.of({})]
    told += [times.of(forms) for forms in asked.values()]
    names = ["all float", "all 8 bits", *asked]
    scale = profiles[0].latency_ms / told[0]
    for mixture, then, profile in zip(names, told, profiles, strict=True):
        predicted = scale * then
        measured = profile.latency_ms
        yield (
            name,
            mixture,
            f"{predicted:.3f}",
            f"{measured:.3f}",
            f"{100 * (predicted / measured - 1):+.1f} %",
        )


def every_row(names: Collection[str]) -> Iterator[Row]:
    """Yield the rows of these models."""
    for model in MODELS:
        if model.name not in names:
            continue
        with open_lab(lab_settings(model)) as lab:
            yield from rows_of(lab, model.name)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(NAMES))
    asked = parser.parse_args()
    columns = ("model", "mixture", "predicted ms", "measured ms", "off by")
    show(columns, every_row(asked.models))


if __name__ == "__main__":
    main()
