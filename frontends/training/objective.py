"""What training minimizes: the distance from the teacher, from labels where they are used, and
penalties on weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from ... import RefusedError
from . import losses
from .augment import Augment
from .features import Tap, channel_axis
from .heads import Head
from .recipe import Recipe, weights_by_output

Tensor = Any
IGNORED = -100


class Objective(torch.nn.Module):  # type: ignore[misc]  # torch comes without types here
    """The loss of one example, a mean over its rows. Its own parameters are the projections of
    features.
    """

    def __init__(
        self, heads: Sequence[Head], taps: Sequence[Tap], recipe: Recipe, labelled: bool
    ) -> None:
        super().__init__()
        self.heads, self.taps, self.recipe = list(heads), list(taps), recipe
        self.labelled = labelled and recipe.labels > 0
        given = weights_by_output(recipe)
        for name in set(given) - {h.output for h in heads}:
            raise RefusedError(
                "finetune.output_weights",
                f"no trained output '{name}'",
                f"the outputs are {', '.join(h.output for h in heads)}",
            )
        self.weights = [given.get(h.output, 1.0) for h in heads]
        self.projections = torch.nn.ModuleDict()
        self.variance: dict[str, float] = {}

    def measure(self, teacher: Mapping[str, Any]) -> None:
        """Take the variance of the teacher's values from an example: squared distances are relative
        to it.
        """
        self.variance |= {
            name: float(torch.as_tensor(values).double().var(correction=0))
            for name, values in teacher.items()
        }

    def student_names(self) -> list[str]:
        """Values of the student that the loss reads."""
        return list(
            dict.fromkeys(
                [h.student for h in self.heads] + [t.student for t in self.taps]
            )
        )

    def teacher_names(self) -> list[str]:
        """Values of the teacher that the loss reads."""
        return list(
            dict.fromkeys(
                [h.teacher for h in self.heads] + [t.teacher for t in self.taps]
            )
        )

    def asks_always(self) -> bool:
        """Whether the teacher must say more at each step than is kept of it: images change,
        features are large.
        """
        return bool(self.taps) or (
            self.recipe.distill and bool(Augment.of(self.recipe))
        )

    def project(
        self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]
    ) -> None:
        """Make a learned 1 x 1 projection for each feature whose channels differ, from one example
        of both.

        Errors: RefusedError for a feature whose other axes differ.
        """
        if self.recipe.feature_loss != "mse":
            return
        for index, tap in enumerate(self.taps):
            own, theirs = student[tap.student], teacher[tap.teacher]
            if own.shape == theirs.shape:
                continue
            axis = channel_axis(own.ndim)
            same = (
                own.ndim == theirs.ndim
                and own.ndim > 1
                and _without(own, axis) == _without(theirs, axis)
            )
            if not same:
                raise RefusedError(
                    f"finetune.features '{tap.student}'",
                    f"has shape {list(own.shape)}, the teacher's {list(theirs.shape)}",
                    "tap values that differ in channels only, or use feature_loss=relation",
                )
            layer = torch.nn.Linear(own.shape[axis], theirs.shape[axis])
            self.projections[str(index)] = layer.to(own.device)

    def forward(
        self,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        labels: NDArray[Any] | None,
        partner: tuple[NDArray[np.int64], float] | None = None,
    ) -> Tensor:
        """`partner`: with which rows these were mixed, and the share that is their own (labels are
        mixed likewise).
        """
        total: Tensor = 0.0
        share = self.recipe.labels if self.labelled else 0.0
        for head, weight in zip(self.heads, self.weights, strict=True):
            own = student[head.student].float()
            if self.recipe.distill:
                total = total + weight * (1 - share) * self._distance(
                    head, own, teacher[head.teacher].float()
                )
        if share:
            total = total + share * self._against_labels(student, labels, partner)
        for index, tap in enumerate(self.taps):
            total = total + self.recipe.feature_weight * self._feature(
                index, student[tap.student].float(), teacher[tap.teacher].float()
            )
        return total

    def _distance(self, head: Head, own: Tensor, theirs: Tensor) -> Tensor:
        kind, temperature = self.recipe.loss, self.recipe.temperature
        if kind == "auto":
            kind = {"classes": "kl", "binary": "binary", "values": "mse"}[head.kind]
        if kind in ("mse", "cosine"):
            return (
                self._mse(own, theirs, head.teacher)
                if kind == "mse"
                else losses.cosine(own, theirs)
            )
        own, theirs = own.movedim(head.axis, -1), theirs.movedim(head.axis, -1)
        distance = getattr(losses, kind)(own, theirs, temperature)
        if self.recipe.logit_mse:
            distance = distance + self.recipe.logit_mse * self._mse(
                own, theirs, head.teacher
            )
        return distance

    def _against_labels(
        self,
        student: Mapping[str, Tensor],
        labels: NDArray[Any] | None,
        partner: tuple[NDArray[np.int64], float] | None,
    ) -> Tensor:
        head = self.heads[0]
        own = student[head.student].float()
        assert labels is not None
        if head.kind != "classes":
            return F.mse_loss(
                own, torch.as_tensor(labels, dtype=own.dtype, device=own.device)
            )
        logits = own.movedim(head.axis, -1).flatten(0, -2)

        def entropy(truth: NDArray[Any]) -> Tensor:
            wanted = torch.as_tensor(
                truth.astype(np.int64), device=own.device
            ).flatten()
            return F.cross_entropy(logits, wanted, ignore_index=IGNORED)

        if partner is None:
            return entropy(labels)
        other, share = partner
        return share * entropy(labels) + (1 - share) * entropy(labels[other])

    def _feature(self, index: int, own: Tensor, theirs: Tensor) -> Tensor:
        if self.recipe.feature_loss != "mse":
            return getattr(losses, self.recipe.feature_loss)(own, theirs)
        if str(index) in self.projections:
            axis = channel_axis(own.ndim)
            own = self.projections[str(index)](own.movedim(axis, -1)).movedim(-1, axis)
        return self._mse(own, theirs, self.taps[index].teacher)

    def _mse(self, own: Tensor, theirs: Tensor, name: str) -> Tensor:
        return losses.mse(own, theirs, self.variance[name])


def _without(value: Tensor, axis: int) -> list[int]:
    shape = list(value.shape)
    del shape[axis]
    return shape


def check_labels(labels: NDArray[Any], wanted: Sequence[int], head: Head) -> None:
    """Whether labels fit the first output, whose logits have the shape `wanted`. Errors:
    RefusedError.
    """
    fix = "give one class number a row, or labels=0 to learn from the teacher alone"
    shape = list(wanted)
    if head.kind != "classes":
        if list(labels.shape) != shape or labels.dtype.kind not in "fiu":
            raise RefusedError(
                "finetune, labels",
                f"are {labels.dtype} {list(labels.shape)}; output '{head.output}' "
                f"is {shape}",
                "give wanted values in the output's shape, or labels=0",
            )
        return
    classes = shape.pop(head.axis)
    if labels.dtype.kind not in "iu" or list(labels.shape) != shape:
        raise RefusedError(
            "finetune, labels",
            f"are {labels.dtype} {list(labels.shape)}; output '{head.output}' needs "
            f"integers {shape}",
            fix,
        )
    wrong = labels[((labels < 0) & (labels != IGNORED)) | (labels >= classes)]
    if wrong.size:
        raise RefusedError(
            "finetune, labels",
            f"class {wrong.flat[0]} is outside 0 … {classes - 1}",
            fix,
        )
