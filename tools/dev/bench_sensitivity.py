"""Losses of forms of weights as `tune` finds them: estimated from gradients, beside measured.

    python tools/dev/bench_sensitivity.py [--models NAME …] [--samples N]

Both on the samples that measuring takes, N at most. By model and form: rank correlation (Spearman)
over the weights, the median of estimated over measured loss, and seconds; those of the estimate are
of all forms together. Making the forms is timed apart, since both need it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Collection, Iterator

import numpy as np
from bench_data import MODELS, BenchModel, source
from live_table import show
from onnx_opt.passes._core.pipeline import parse
from onnx_opt.tools._run.settings import RunSettings
from onnx_opt.tools._tune.estimate import errors_of_forms
from onnx_opt.tools._tune.lab import Lab, open_lab
from onnx_opt.tools._tune.measure import SAMPLES, measured_errors, samples_of
from onnx_opt.tools._tune.menu import MADE_FORMS
from scipy.stats import spearmanr

NAMES = (
    "cifar10_resnet20",
    "cifar10_resnet56",
    "efficientnet_lite0",
    "minilm_l6_v2",
    "ch_PP-OCRv4_rec_infer",
)


def rows_of(lab: Lab, name: str, most: int) -> Iterator[tuple[str, ...]]:
    """Yield a row for each form: correlation, median ratio, seconds of all three parts."""
    started = time.monotonic()
    made = {kind.form: lab.made(kind.text) for kind in MADE_FORMS}
    making = time.monotonic() - started
    samples = min(samples_of(made.values()), most)
    started = time.monotonic()
    shares = errors_of_forms(lab, made, samples).shares()
    estimating = time.monotonic() - started
    for form, each in made.items():
        started = time.monotonic()
        measured = measured_errors(lab, form, each, samples).shares()
        measuring = time.monotonic() - started
        estimated = [shares[change] for change in measured]
        losses = np.array(list(measured.values()))
        correlation = spearmanr(losses, estimated).statistic
        ratio = np.median(np.array(estimated) / losses)
        yield (
            name,
            form,
            f"{len(losses)}",
            f"{samples}",
            f"{correlation:.3f}",
            f"{ratio:.2f}",
            f"{measuring:.0f}",
            f"{estimating:.0f}",
            f"{making:.0f}",
        )


def lab_settings(model: BenchModel) -> RunSettings:
    """Settings of a run that only measures."""
    return RunSettings(
        model=model.file,
        pipeline=parse("simplify"),
        out=None,
        target="cpu",
        data=source(model.calibration),
        seed=0,
    )


def every_row(names: Collection[str], samples: int) -> Iterator[tuple[str, ...]]:
    """Yield the rows of these models."""
    for model in MODELS:
        if model.name not in names:
            continue
        with open_lab(lab_settings(model)) as lab:
            yield from rows_of(lab, model.name, samples)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(NAMES))
    parser.add_argument("--samples", type=int, default=SAMPLES)
    asked = parser.parse_args()
    columns = (
        "model",
        "form",
        "weights",
        "samples",
        "Spearman",
        "estimated / measured",
        "measuring s",
        "estimating s, all forms",
        "making s, all forms",
    )
    show(columns, every_row(asked.models, asked.samples))


if __name__ == "__main__":
    main()
