"""The objective of a training: distance from the teacher, from labels, and between features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from ... import RefusedError, UsageError
from ...passes._core.training_recipe import TrainingRecipe
from ...passes._core.variation import LEAST_VARIANCE, column_axis, differ_in_unit
from . import losses
from .attribution import attribution_distance
from .augment import Augment, Mixture
from .features import Tap, channel_axis
from .heads import Head

Tensor = Any
Values = Mapping[str, Tensor]
Labels = NDArray[Any]

IGNORED_LABEL = -100
"""Class number of rows that do not count: torch's own default."""

AUTO_LOSSES = {"classes": "kl", "binary": "binary", "values": "mse"}
"""Loss of each kind of output where the recipe says auto."""


@dataclass(frozen=True)
class ComparedValues:
    """Pairs of values, of student and teacher, that a loss compares: outputs and values inside.

    `taps`: features whose values are compared; `attributed`: those whose attribution maps are.
    """

    heads: tuple[Head, ...]
    taps: tuple[Tap, ...] = ()
    attributed: tuple[Tap, ...] = ()

    def student_names(self) -> list[str]:
        """Return the student's values, each once."""
        names = [head.student for head in self.heads]
        names += [tap.student for tap in (*self.taps, *self.attributed)]
        return list(dict.fromkeys(names))

    def teacher_names(self) -> list[str]:
        """Return the teacher's values, each once."""
        names = [head.teacher for head in self.heads]
        names += [tap.teacher for tap in (*self.taps, *self.attributed)]
        return list(dict.fromkeys(names))


def needs_live_teacher(compared: ComparedValues, recipe: TrainingRecipe) -> bool:
    """True if the loss needs values of the teacher that are not cached."""
    if compared.taps or compared.attributed:
        return True
    # with labels alone the teacher has no say about changed images
    return recipe.distill and bool(Augment.of(recipe))


Scale = float | Tensor
"""Variance that squared distances are relative to: of all elements, or of each column."""


def variances(values: Mapping[str, Any]) -> dict[str, Scale]:
    """Return the variance of each array, over all its elements."""
    found: dict[str, Scale] = {}
    for name, array in values.items():
        found[name] = float(torch.as_tensor(array).double().var(correction=0))
    return found


def output_scales(outputs: Mapping[str, Any]) -> dict[str, Scale]:
    """Return the variance of each output; that of each column where their units differ."""
    found = variances(outputs)
    for name, array in outputs.items():
        values = torch.as_tensor(array).double()
        axis = column_axis(values.ndim)
        others = [each for each in range(values.ndim) if each != axis]
        if not others:
            continue
        by_column = values.var(dim=others, correction=0, keepdim=True)
        if differ_in_unit(by_column.flatten().numpy()):
            squares = values.square().mean(dim=others, keepdim=True)
            # a column that hardly varies is not worth more than it is large
            least = LEAST_VARIANCE * squares + losses.SMALLEST_VARIANCE
            found[name] = torch.maximum(by_column, least).float()
    return found


class Objective(torch.nn.Module):  # type: ignore[misc]  # torch comes without types here
    """The loss of one example, a mean over its rows.

    `variance`: of the teacher's values by name, which squared distances are relative to.
    `labelled`: True if labels are learned from. `projections`: see `projections_for`; they are the
    objective's own parameters. Errors: UsageError and RefusedError for weights of outputs that do
    not fit.
    """

    def __init__(
        self,
        compared: ComparedValues,
        recipe: TrainingRecipe,
        variance: Mapping[str, Scale],
        labelled: bool = False,
        projections: torch.nn.ModuleDict | None = None,
    ) -> None:
        super().__init__()
        self.compared = compared
        self.recipe = recipe
        self.labelled = labelled
        self.head_weights = head_weights(recipe, compared.heads)
        self.projections = torch.nn.ModuleDict() if projections is None else projections
        # no buffer: a checkpoint need not hold what is measured anew at every start
        self.variance = variance

    def forward(
        self,
        student: Values,
        teacher: Values,
        labels: Labels | None,
        mixture: Mixture | None = None,
    ) -> Tensor:
        """Return the loss, a scalar. `mixture`: how rows were mixed; labels are mixed likewise."""
        total: Tensor = 0.0
        share = self.recipe.labels if self.labelled else 0.0
        if self.recipe.distill:
            for head, weight in zip(
                self.compared.heads, self.head_weights, strict=True
            ):
                distance = self._distance(
                    head,
                    student[head.student].float(),
                    teacher[head.teacher].float(),
                )
                total = total + weight * (1 - share) * distance
        if share:
            assert labels is not None
            # labels belong to the first output
            head = self.compared.heads[0]
            own = student[head.student].float()
            total = total + share * _label_loss(head, own, labels, mixture)
        for index, tap in enumerate(self.compared.taps):
            distance = self._feature_distance(
                index,
                student[tap.student].float(),
                teacher[tap.teacher].float(),
            )
            total = total + self.recipe.feature_weight * distance
        if self.compared.attributed:
            distance = attribution_distance(
                student,
                teacher,
                self.compared.heads[0],
                self.compared.attributed,
            )
            total = total + self.recipe.attribution * distance
        return total

    def _distance(self, head: Head, own: Tensor, theirs: Tensor) -> Tensor:
        kind: str = self.recipe.loss
        if kind == "auto":
            kind = AUTO_LOSSES[head.kind]
        if kind == "mse":
            return self._mse(own, theirs, head.teacher)
        if kind == "cosine":
            return losses.cosine(own, theirs)
        # the loss functions take classes last
        own = own.movedim(head.axis, -1)
        theirs = theirs.movedim(head.axis, -1)
        loss = losses.SOFT_LOSSES[kind]
        distance = loss(own, theirs, self.recipe.temperature)
        weight = self.recipe.logit_mse
        if weight:
            distance = distance + weight * self._mse(own, theirs, head.teacher)
        return distance

    def _feature_distance(self, index: int, own: Tensor, theirs: Tensor) -> Tensor:
        kind = self.recipe.feature_loss
        if kind != "mse":
            loss = losses.FEATURE_LOSSES[kind]
            return loss(own, theirs)
        name = str(index)
        if name in self.projections:
            project = self.projections[name]
            axis = channel_axis(own.ndim)
            # linear layers take channels last
            projected = project(own.movedim(axis, -1))
            own = projected.movedim(-1, axis)
        tap = self.compared.taps[index]
        return self._mse(own, theirs, tap.teacher)

    def _mse(self, own: Tensor, theirs: Tensor, name: str) -> Tensor:
        return losses.mse(own, theirs, self.variance[name])


def _label_loss(
    head: Head, own: Tensor, labels: Labels, mixture: Mixture | None
) -> Tensor:
    """Return the distance of an output from labels: of classes cross-entropy, else squared."""
    if head.kind != "classes":
        wanted = torch.as_tensor(
            labels,
            dtype=own.dtype,
            device=own.device,
        )
        return F.mse_loss(own, wanted)
    logits = own.movedim(head.axis, -1)
    loss = _cross_entropy(logits, labels)
    if mixture is None:
        return loss
    # the loss of mixed labels is the mixture of losses
    other, share = mixture
    other_loss = _cross_entropy(logits, labels[other])
    return share * loss + (1 - share) * other_loss


def _cross_entropy(logits: Tensor, labels: Labels) -> Tensor:
    classes = torch.as_tensor(
        labels.astype(np.int64),
        device=logits.device,
    )
    return F.cross_entropy(
        logits.flatten(0, -2),
        classes.flatten(),
        ignore_index=IGNORED_LABEL,
    )


def projections_for(
    taps: Sequence[Tap], recipe: TrainingRecipe, student: Values, teacher: Values
) -> torch.nn.ModuleDict:
    """Return a learned 1 x 1 projection, by the tap's number, where channels differ.

    `student`, `teacher`: values of one example. Errors: RefusedError for a feature whose other axes
    differ.
    """
    projections = torch.nn.ModuleDict()
    if recipe.feature_loss != "mse":
        return projections
    for index, tap in enumerate(taps):
        own = student[tap.student]
        theirs = teacher[tap.teacher]
        if own.shape == theirs.shape:
            continue
        if not _differ_in_channels_only(own, theirs):
            raise RefusedError(
                f"finetune.features '{tap.student}'",
                f"has shape {list(own.shape)}, the teacher's {list(theirs.shape)}",
                "tap values that differ in channels only, or use feature_loss=relation",
            )
        axis = channel_axis(own.ndim)
        # a linear layer over the channels is a 1 x 1 convolution
        layer = torch.nn.Linear(own.shape[axis], theirs.shape[axis])
        projections[str(index)] = layer.to(own.device)
    return projections


def _differ_in_channels_only(own: Tensor, theirs: Tensor) -> bool:
    if own.ndim != theirs.ndim or own.ndim < 2:
        return False
    axis = channel_axis(own.ndim)
    own_shape = list(own.shape)
    own_shape[axis] = theirs.shape[axis]
    return own_shape == list(theirs.shape)


def head_weights(recipe: TrainingRecipe, heads: Sequence[Head]) -> list[float]:
    """Return the weight of each head, from texts `name=weight`.

    Errors: UsageError for another form, RefusedError for a name that is no head.
    """
    given = _weights_by_output(recipe.output_weights)
    outputs = [head.output for head in heads]
    for name in given:
        if name not in outputs:
            raise RefusedError(
                "finetune.output_weights",
                f"no trained output '{name}'",
                f"the outputs are {', '.join(outputs)}",
            )
    return [given.get(name, 1.0) for name in outputs]


def _weights_by_output(texts: Sequence[str]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for text in texts:
        # the last equals sign: names may have some of their own
        name, _, number = text.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not name or not 0 <= weight < math.inf:
            raise UsageError(
                "finetune.output_weights",
                f"'{text}' is not name=weight",
                "write for example logits=0.5",
            )
        weights[name] = weight
    return weights


def check_labels(labels: Labels, wanted: Sequence[int], head: Head) -> None:
    """Raise RefusedError unless labels fit an output whose logits have the shape `wanted`."""
    shape = list(wanted)
    if head.kind != "classes":
        _check_wanted_values(labels, shape, head)
        return
    fix = "give one class number a row, or labels=0 to learn from the teacher alone"
    classes = shape.pop(head.axis)
    if labels.dtype.kind not in "iu" or list(labels.shape) != shape:
        raise RefusedError(
            "finetune, labels",
            f"are {labels.dtype} {list(labels.shape)}; output '{head.output}' needs "
            f"integers {shape}",
            fix,
        )
    negative = (labels < 0) & (labels != IGNORED_LABEL)
    # torch would fail as well, but in the middle of a training and without these words
    wrong = labels[negative | (labels >= classes)]
    if wrong.size:
        raise RefusedError(
            "finetune, labels",
            f"class {wrong.flat[0]} is outside 0 … {classes - 1}",
            fix,
        )


def _check_wanted_values(labels: Labels, shape: list[int], head: Head) -> None:
    if list(labels.shape) != shape or labels.dtype.kind not in "fiu":
        raise RefusedError(
            "finetune, labels",
            f"are {labels.dtype} {list(labels.shape)}; output '{head.output}' is {shape}",
            "give wanted values in the output's shape, or labels=0",
        )
