"""Options of training, declared once: the pass `finetune` shows them, a trainer follows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ... import UsageError
from .options import AUTO, Auto, Option, options_of

PASS = "finetune"
"""Name of the pass whose options these are; errors begin with it."""


@dataclass(frozen=True)
class TrainingRecipe:
    """One way to train a model. `Context.train` takes it, the pass `finetune` inherits it.

    0 (`rate`, `temperature`, `steps`), "auto" and -1 (`logit_mse`, `soft`) leave the choice to the
    trainer: it knows the graph and the data. What it chose, and why, is in its account.

    Errors: UsageError for values out of range, and where nothing is left to learn from.
    """

    preset: Literal["auto", "recover", "qad", "block", "student"] = Option(
        "auto",
        "Defaults of what is 0, -1 or auto below: recover for floats, qad for quantized graphs.",
    )
    # budget: the first that is spent ends the training
    steps: int = Option(
        0, "Budget in steps; 0: other budgets; without any, chosen.", low=0
    )
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
    # distance from the teacher and from labels
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
    # values inside, and weights of outputs
    features: tuple[str, ...] | Auto = Option(
        AUTO,
        "Values inside to match as well: name, student_name=teacher_name, or [auto]: "
        "the last of each size of map. auto: these where images are changed.",
    )
    feature_loss: Literal["mse", "attention", "relation"] = Option(
        "mse", "Distance of features."
    )
    feature_weight: float = Option(1.0, "Weight of each feature's distance.", low=0.0)
    attribution: float = Option(
        0.0,
        "Weight of the distance of attribution maps, of the features or else of the last of each "
        "size of map; 0: none.",
        low=0.0,
        high=1000.0,
    )
    output_weights: tuple[str, ...] = Option(
        (), "Weights of outputs, as name=weight; 1 where not given."
    )
    # penalties on weights
    l1: float = Option(0.0, "Weight of the sum of magnitudes.", low=0.0)
    l2: float = Option(0.0, "Decay of weights, of each step times the rate.", low=0.0)
    group_lasso: float = Option(
        0.0,
        "Weight of the norms of output channels, which empties whole channels.",
        low=0.0,
    )
    # the optimizer
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
    # changes to images; auto: those under which the teacher agrees with itself
    flip: bool | Auto = Option(
        AUTO,
        "Mirror images left to right by a coin; the teacher sees what the student "
        "sees. auto: photographs.",
    )
    shift: int | Auto = Option(
        AUTO,
        "Move images by up to so many pixels, edges repeated. auto: photographs.",
        low=0,
        high=64,
        unit="pixels",
    )
    mixup: float | Auto = Option(
        AUTO,
        "Mix pairs of images: alpha of the Beta distribution of their shares; 0 and auto: never.",
        low=0.0,
        high=10.0,
    )
    cutmix: float | Auto = Option(
        AUTO,
        "Paste a rectangle of another image: alpha, as for mixup; with both, one by a "
        "coin. auto: photographs, for students and codes of few levels.",
        low=0.0,
        high=10.0,
    )
    # judging on rows held out
    holdout: float = Option(
        0.1, "Part of the data to judge by, at most 1,000 samples.", low=0.01, high=0.5
    )
    checks: int = Option(10, "How often to judge.", low=1, high=10000)
    patience: int | Auto = Option(
        AUTO,
        "Stop after so many checks without a better one; 0: never. auto: such checks "
        "shorten a budget that was chosen.",
        low=0,
    )
    watch: Literal["auto", "agreement", "labels", "loss"] = Option(
        "auto",
        "What is better: agreement with the teacher, right labels, or a smaller "
        "distance (scored below 0). "
        "auto: agreement, but the distance where under 200 samples are held out.",
    )
    # what trains
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
    regrow: float = Option(
        0.0,
        "Part of a pruned weight's nonzeros that change places with zeros every 100 steps, falling "
        "to 0 at 0.75 of the budget; 0: zeros stay where they are. N:M patterns do not outlast it.",
        low=0.0,
        high=0.5,
    )
    include: tuple[str, ...] = Option(
        (), "Only weights whose name matches one of these."
    )
    exclude: tuple[str, ...] = Option(
        (), "Not the weights whose name matches one of these."
    )
    # the machine
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

    def __post_init__(self) -> None:
        # of a subclass all options, so that the pass has its own validated too
        for option in options_of(type(self)):
            option.validate(PASS, getattr(self, option.name))
        has_features = self.features not in ((), AUTO)
        if self.labels == 0 and not self.distill and not has_features:
            raise UsageError(
                f"{PASS}.distill",
                "false leaves nothing to learn from with labels=0",
                "leave one of them out",
            )
