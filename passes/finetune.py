"""Training of the graph as it is, towards what the run's original model says; the loop is the
context's.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import onnx_ir as ir

from .. import UsageError
from ._base import Context, Declined, Effect, Option, Pass, PassOutcome, Trains
from .prune import Prune


@dataclass(frozen=True)
class Finetune(Pass):
    """Train the weights until the outputs are those of the run's original model again; labels are
    optional.

    Effect: lossy. Touches float weights, and integers of a quantized graph as floats that are
    rounded whenever they are used; shapes, types and grids stay, zeros of pruned weights stay zero,
    tied weights stay tied. The teacher is the model that the run began with. Some of the data is
    held out: only weights that ONNX Runtime finds better there replace those that came in. Without
    data, or where the run cannot train, nothing changes.

    Shapes: any -> same.

    Errors: UsageError without torch; RefusedError for too little data, labels that do not fit,
    nothing to train; CheckError where the loss stops being finite before anything is better.

    Stats: `preset`; `rows`, `held_out`, `batch` (samples); `rate`; `steps`, `best_step`, `epochs`;
    `loss_first`, `loss_last` (mean between checks); `scores` (held out, at each check, by torch);
    `before`, `after` (the same by ONNX Runtime); `stopped` (why before its budget); `seconds`;
    `sparsity` (schedule). Of block: `blocks`, `better_blocks`.

    Source: Hinton et al. 2015 (arXiv:1503.02531); DIST: Huang et al. 2022 (arXiv:2205.10536); DKD:
    Zhao et al. 2022 (arXiv:2203.08679); attention: Zagoruyko and Komodakis 2017 (arXiv:1612.03928);
    block: Nagel et al. 2020 (arXiv:2004.10568), Li et al. 2021 (arXiv:2102.05426), Wei et al. 2022
    (arXiv:2203.05740); schedule: Zhu and Gupta 2017 (arXiv:1710.01878).
    """

    name: ClassVar[str] = "finetune"
    effect: ClassVar[Effect] = "lossy"

    preset: Literal["auto", "recover", "qad", "block", "student"] = Option(
        "auto",
        "Defaults of what is 0, -1 or auto below: recover for floats, qad for quantized graphs.",
    )
    steps: int = Option(0, "Budget in steps; 0: other budgets, or the preset's.", low=0)
    epochs: float = Option(0.0, "Budget in epochs; 0: other budgets.", low=0.0)
    minutes: float = Option(
        0.0,
        "Budget of time; 0: other budgets. Where the clock ends it, seeds do not reproduce.",
        low=0.0,
        unit="minutes",
    )
    batch: int = Option(
        0, "Samples of a step; 0: up to 128, by the amount of data.", low=0
    )
    accumulate: int = Option(1, "Batches of a step.", low=1, high=1024)
    loss: Literal["auto", "kl", "dist", "dkd", "mse", "cosine"] = Option(
        "auto", "Distance from the teacher; auto: kl of classes, mse of other values."
    )
    temperature: float = Option(
        0.0,
        "Softens classes in kl, dist and dkd; 0: the preset's.",
        low=0.0,
        high=100.0,
    )
    logit_mse: float = Option(
        -1.0,
        "Weight of the square distance of logits beside kl, dist, dkd; -1: the preset's.",
        low=-1.0,
        high=100.0,
    )
    labels: float = Option(
        0.1, "Share of the labels' loss, where the data has labels.", low=0.0, high=1.0
    )
    distill: bool = Option(True, "Learn from the teacher; false: from labels alone.")
    features: tuple[str, ...] = Option(
        (),
        "Values inside to match as well: name, student_name=teacher_name, or auto: "
        "the last of each size of map.",
    )
    feature_loss: Literal["mse", "attention", "relation"] = Option(
        "mse", "Distance of features."
    )
    feature_weight: float = Option(1.0, "Weight of each feature's distance.", low=0.0)
    output_weights: tuple[str, ...] = Option(
        (), "Weights of outputs, as name=weight; 1 where not given."
    )
    l1: float = Option(0.0, "Weight of the sum of magnitudes.", low=0.0)
    l2: float = Option(0.0, "Decay of weights, of each step times the rate.", low=0.0)
    group_lasso: float = Option(
        0.0,
        "Weight of the norms of output channels, which empties whole channels.",
        low=0.0,
    )
    optimizer: Literal["auto", "adamw", "sgd"] = Option(
        "auto", "AdamW, or SGD with momentum."
    )
    rate: float = Option(
        0.0,
        "Learning rate: adamw moves a tensor by this part of its size a step; 0: the preset's.",
        low=0.0,
    )
    warmup: float = Option(
        0.05,
        "Part of the budget over which the rate rises; then it falls along a cosine.",
        low=0.0,
        high=0.9,
    )
    clip: float = Option(1.0, "Largest norm of the gradient; 0: any.", low=0.0)
    flip: bool = Option(
        False,
        "Mirror images left to right by a coin; the teacher sees what the student sees.",
    )
    shift: int = Option(
        0,
        "Move images by up to so many pixels, edges repeated.",
        low=0,
        high=64,
        unit="pixels",
    )
    mixup: float = Option(
        0.0,
        "Mix pairs of images: alpha of the Beta distribution of their shares; 0: never.",
        low=0.0,
        high=10.0,
    )
    cutmix: float = Option(
        0.0,
        "Paste a rectangle of another image: alpha, as for mixup; with both, one by a coin.",
        low=0.0,
        high=10.0,
    )
    holdout: float = Option(
        0.1, "Part of the data to judge by, at most 1,000 samples.", low=0.01, high=0.5
    )
    checks: int = Option(10, "How often to judge.", low=1, high=10000)
    patience: int = Option(
        0, "Stop after so many checks without a better one; 0: never.", low=0
    )
    watch: Literal["auto", "agreement", "labels", "loss"] = Option(
        "auto",
        "What is better: agreement with the teacher, right labels, or a smaller "
        "distance (scored below 0). "
        "auto: agreement, but the distance where under 200 samples are held out.",
    )
    statistics: Literal["auto", "fixed", "batch"] = Option(
        "auto",
        "BatchNormalization by the graph's statistics, or by the batch's; then "
        "convolutions without one have "
        "one while they learn. auto: batch for student, and for recover in batches of 32 or more.",
    )
    qat: bool = Option(
        True, "Train quantized weights, rounded as they run; false: leave them."
    )
    scales: Literal["none", "weights", "all"] = Option(
        "weights",
        "Scales of quantization to train: of weights of 4 bits or fewer, or of "
        "activations as well.",
    )
    include: tuple[str, ...] = Option(
        (), "Only weights whose name matches one of these."
    )
    exclude: tuple[str, ...] = Option(
        (), "Not the weights whose name matches one of these."
    )
    device: Literal["auto", "cpu", "cuda"] = Option(
        "auto", "Where torch trains; auto: on a GPU if there is one."
    )
    teacher: Literal["auto", "onnxruntime", "torch"] = Option(
        "auto",
        "What runs the teacher; auto: ONNX Runtime; torch on a GPU, and of images "
        "changed at every step.",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Option(
        "auto",
        "What learning computes in, weights staying float32; auto: bfloat16 on a "
        "GPU, and on a CPU that has "
        "instructions for it.",
    )
    threads: int = Option(0, "Threads of torch; 0: its default.", low=0)
    synthesize: int = Option(
        0,
        "Samples to make up from statistics of BatchNormalization where there are no data (weak).",
        low=0,
        high=100_000,
    )
    soft: float = Option(
        -1.0,
        "Part of the budget over which rounding of weights sets in; -1: 0.6 for one "
        "bit and ternary that agree "
        "with the teacher on less than 0.75, else 0.",
        low=-1.0,
        high=1.0,
    )
    tensorboard: str = Option(
        "",
        "Folder for curves of loss, score and rate, for TensorBoard if that is installed.",
    )
    schedule: tuple[str, ...] = Option(
        (),
        "Sparsities to prune to before each round, e.g. [0.5, 0.8, 0.9]; the last "
        "has half of the budget.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels == 0 and not self.distill and not self.features:
            raise UsageError(
                "finetune.distill",
                "false leaves nothing to learn from with labels=0",
                "leave one of them out",
            )
        self._sparsities()

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        where = model.graph.name or "graph"
        if not isinstance(context, Trains):
            return PassOutcome(
                declined=[Declined(where, "this run does not train models")]
            )
        if not context.has_data() and not self.synthesize:
            context.warn(
                "finetune", "nothing to train on: give --data, labels are not needed"
            )
            return PassOutcome(declined=[Declined(where, "no data to train on")])
        recipe = dataclasses.asdict(self)
        del recipe["schedule"]
        if not self.schedule:
            return context.train(model, recipe)
        return self._rounds(model, context, recipe)

    def _rounds(
        self, model: ir.Model, context: Context, recipe: dict[str, Any]
    ) -> PassOutcome:
        """Prune a little, train, prune more: what is left of the last round's account, with all
        that was declined.
        """
        assert isinstance(context, Trains)
        outcome, declined, changed = PassOutcome(), [], 0
        for sparsity, part in zip(
            self._sparsities(), _shares(len(self.schedule)), strict=True
        ):
            recipe |= {
                "steps": math.ceil(self.steps * part),
                "epochs": self.epochs * part,
                "minutes": self.minutes * part,
            }
            pruned = Prune(sparsity=sparsity, allocation="lamp").run(model, context)
            outcome = context.train(model, recipe)
            outcome.stats |= {"sparsity": pruned.stats["sparsity"]}
            declined += outcome.declined
            changed = max(changed, pruned.changed, outcome.changed)
        return PassOutcome(changed, outcome.stats, declined)

    def _sparsities(self) -> list[float]:
        """The schedule as numbers. Errors: UsageError unless they rise, from 0 to 0.99."""
        try:
            found = [float(text) for text in self.schedule]
        except ValueError:
            found = [-1.0]
        if any(not 0 <= s <= 0.99 for s in found) or found != sorted(found):
            raise UsageError(
                "finetune.schedule",
                f"[{', '.join(self.schedule)}] are not rising fractions up to 0.99",
                "write for example schedule=[0.5, 0.8, 0.9]",
            )
        return found


def _shares(rounds: int) -> list[float]:
    """Of a budget: half for the last round, whose weights stay, the others alike."""
    return [1.0] if rounds == 1 else [0.5 / (rounds - 1)] * (rounds - 1) + [0.5]
