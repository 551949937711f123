"""Services that a pass may ask of its run; runtime and frontends implement them."""

from __future__ import annotations

import contextlib
import math
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ... import UsageError
from .latency import SLOWER, LatencyRatio
from .outcome import PassOutcome
from .training_recipe import TrainingRecipe

if TYPE_CHECKING:
    # the worker's child receives these values, and need not pay for onnx_ir
    import onnx_ir as ir


class KernelNode(NamedTuple):
    """One node of a runtime's optimized graph; `op`: `domain.op`, standard ops without a domain."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Difference(NamedTuple):
    """Distance of a model from a reference.

    `error`: the largest over outputs and batches of the root mean square of y - y' over that of y
    (of integers, booleans and texts: the fraction that differs); infinite where one alone has a
    value that is not finite, and after a failure. `failure` and `reference_failure`: why the model
    or the reference did not run, "" where it did. `lost`: the largest share of what varies in an
    output that is lost (see `variation`), but of outputs that may choose among classes; NaN where
    there are no others.
    """

    error: float
    failure: str
    reference_failure: str
    lost: float = math.nan


MomentKind = Literal[
    "absmax",
    "mean",
    "gram",
    "profile",
    "extremes",
    "regression",
    "row_noise",
]
RangeMethod = Literal["minmax", "percentile", "entropy", "mse", "auto"]


@dataclass(frozen=True)
class MomentRequest:
    """A moment of one float tensor over the calibration data, for `Context.collect`.

    `absmax`: max|x| of each channel, (C,). `mean`: (C,), or (groups, K) of patches. `profile`:
    means of x, |x| and x^2, (folds, 3, C), in up to 64 folds of the samples. `extremes`: count,
    lowest and highest x in those folds, (folds, 3, C). `gram`: the mean of z z^T with z = [x, 1],
    (groups, K + 1, K + 1). `regression`: the mean of z [z, y]^T, (groups, K + 1, K + 1 + M /
    groups), y the values of the tensor `target` at the same places (a layer's output, channels on
    the same axis as the input's). `row_noise`: the error that one 8-bit grid for each run's tensor
    leaves in a row of channels, as a share of the row's sum of squares; its mean over rows, (1,).
    `axis`: where the channels are. With a `kernel` x is what a convolution multiplies, a patch of
    K = C / groups * prod(kernel) values, at a sample of its output positions.
    """

    tensor: str
    kind: MomentKind
    axis: int = -1
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    groups: int = 1
    target: str = ""
    part: Literal["all", "even", "odd"] = "all"
    """Micro-batches that count, of a regression: a fit to one half can be judged on the other."""


@dataclass(frozen=True)
class Gradient:
    """Gradient of the loss by one weight, in the weight's shape.

    `mean` over the samples, and mean `square` of each sample's own.
    """

    mean: NDArray[np.float64]
    square: NDArray[np.float64]


class Context(Protocol):
    """Services of the run that a pass is part of.

    `runtime` implements it; `NullContext` serves without a run.
    """

    target: str
    seed: int

    def has_data(self) -> bool:
        """True if calibration feeds are at hand."""
        ...

    def activation_ranges(
        self,
        model: ir.Model,
        names: Sequence[str],
        method: RangeMethod,
        percentile: float,
        samples: int,
        levels: int = 255,
    ) -> dict[str, tuple[float, float]]:
        """Range (low, high) to quantize each named float tensor in, for a grid of `levels` steps.

        The model runs over at most `samples` calibration samples.

        Tensors that a run never produced (an untaken branch) are absent from the result.
        """
        ...

    def collect(
        self, model: ir.Model, requests: Mapping[str, MomentRequest], samples: int
    ) -> dict[str, NDArray[np.float64]]:
        """The moment that each request names, over at most `samples` calibration samples.

        Absent from the result: tensors that a run never produced, that are not float, or that the
        model lacks.
        """
        ...

    def kernels(self, model: ir.Model) -> list[KernelNode] | None:
        """Nodes of the graph that the target's runtime makes of the model; None if not known.

        Not known: the target's runtime is not here, shows no graph, or this run does not run
        models.
        """
        ...

    def latency_ratio(
        self, model: ir.Model, other: ir.Model, limit: float = SLOWER
    ) -> LatencyRatio | None:
        """Time of `other` over that of `model` on the run's feeds; None if not measurable.

        Timed until it is decided on which side of `limit` the ratio lies, within bounds.
        """
        ...

    def is_not_slower(self, model: ir.Model, other: ir.Model) -> bool:
        """Return whether it is decided that `other` takes no longer than `model`.

        False where that is in doubt, or not measurable: it takes less time than `latency_ratio`.
        """
        ...

    def difference(self, model: ir.Model, other: ir.Model) -> Difference | None:
        """Distance of `other` from `model` on the same feeds, at two batch sizes where both fit.

        A model that does not load, run or survive is a failure, not an exception. None where this
        run does not run models.
        """
        ...

    def remember_float(self, model: ir.Model) -> None:
        """Take the model as the one that lossy changes start from, to explain losses by layer."""
        ...

    def warn(self, where: str, message: str) -> None:
        """Tell the user something that does not stop the run."""
        ...

    def progress(
        self, label: str, total: int
    ) -> contextlib.AbstractContextManager[Callable[[int], None]]:
        """A progress bar over `total` steps; the yielded function advances it."""
        ...


@typing.runtime_checkable
class Differentiates(Protocol):
    """A context that can differentiate; passes ask `isinstance(context, Differentiates)`."""

    def gradients(
        self, model: ir.Model, weights: Sequence[str], samples: int
    ) -> Mapping[str, Gradient]:
        """Gradients of the loss by the named initializers, over at most `samples` samples.

        The loss is that of the labels where the data has them, else the distance from the model's
        own outputs. Absent from the result: weights that the loss does not depend on. Errors:
        UsageError without data.
        """
        ...


@typing.runtime_checkable
class Resumes(Protocol):
    """A context that can keep tensors of a run, so that later runs start behind them."""

    def after(
        self, model: ir.Model, tensors: Sequence[str], samples: int
    ) -> Context | None:
        """A context whose calibration data are the given tensors, on at most `samples` samples.

        It serves models that take them as inputs. None where they are too large to be held. Errors:
        UsageError without data.
        """
        ...


@typing.runtime_checkable
class Observes(Protocol):
    """A context that can look at tensors without data of the user's; passes ask
    `isinstance(context, Observes)`.
    """

    def on_any_feeds(self, tokens: Mapping[str, int], least: int = 0) -> Context | None:
        """This context with the user's data or, without any, with made-up feeds.

        `tokens`: inputs that take ids, and how many ids there are. None where the run does not run
        models, or makes up fewer than `least` tokens; a model without such inputs gets more of
        others where `least` asks for any.
        """
        ...

    def on_own_text(
        self, model: ir.Model, tokens: Mapping[str, int], least: int = 0
    ) -> Context | None:
        """The same of a model that predicts tokens: without data it reads what it wrote itself.

        Where it does not say what comes next (it fills gaps, say), its tokens are drawn alike.
        """
        ...


@typing.runtime_checkable
class Streams(Protocol):
    """A context that gives moments while it goes through a model once, some layers after others."""

    def collect_in_parts(
        self,
        model: ir.Model,
        requests: Mapping[str, MomentRequest],
        sizes: Mapping[str, int],
        most: int,
        samples: int,
    ) -> Iterator[dict[str, NDArray[np.float64]]]:
        """Moments as `collect` gives them, those of one part of the model at a time.

        `sizes`: bytes of each moment; those of a part and its weights take at most `most` bytes, as
        far as the model can be cut. The model may be changed meanwhile: what is measured is what it
        was at first. Errors: UsageError without data.
        """
        ...


Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


@typing.runtime_checkable
class SharesCores(Protocol):
    """A context that has computations done side by side; passes ask `in_parallel`."""

    def in_parallel(
        self,
        function: Callable[[Item], Outcome],
        items: Iterable[Item],
        bytes_of: Callable[[Item], int],
    ) -> Iterator[Outcome]:
        """Yield the function's results in the order of the items, which are taken in this thread.

        `bytes_of`: memory of an item; few are at work at once where they are large.
        """
        ...


def in_parallel(
    context: Context,
    function: Callable[[Item], Outcome],
    items: Iterable[Item],
    bytes_of: Callable[[Item], int],
) -> Iterator[Outcome]:
    """Yield the function's results in the order of the items, on several cores where it can be."""
    if isinstance(context, SharesCores):
        return context.in_parallel(function, items, bytes_of)
    return map(function, items)


class HeldBack(NamedTuple):
    """Contexts of most of the calibration samples and of the others, which are so many."""

    fitting: Context
    judging: Context
    samples: int


@typing.runtime_checkable
class HoldsBack(Protocol):
    """A context that can keep back some calibration data, on which a fit to the rest is judged."""

    def held_back(self) -> HeldBack | None:
        """Share out the calibration samples, those held back spread over all.

        None where there are too few to spare any. Errors: UsageError without data.
        """
        ...


@typing.runtime_checkable
class Trains(Protocol):
    """A context that can train; passes ask `isinstance(context, Trains)`."""

    def train(self, model: ir.Model, recipe: TrainingRecipe) -> PassOutcome:
        """Train the model's weights in place towards the outputs of the run's original model.

        The model is changed only for the better. Errors: UsageError without torch, RefusedError for
        data or a graph that cannot be trained on.
        """
        ...


class NullContext:
    """A context without data or a terminal: a pass alone, in a test or inside another tool."""

    def __init__(self, target: str = "cpu", seed: int = 0) -> None:
        self.target = target
        self.seed = seed
        self.warnings: list[str] = []

    def has_data(self) -> bool:
        return False

    def activation_ranges(
        self,
        model: ir.Model,
        names: Sequence[str],
        method: RangeMethod,
        percentile: float,
        samples: int,
        levels: int = 255,
    ) -> dict[str, tuple[float, float]]:
        raise _no_data()

    def collect(
        self, model: ir.Model, requests: Mapping[str, MomentRequest], samples: int
    ) -> dict[str, NDArray[np.float64]]:
        raise _no_data()

    def kernels(self, model: ir.Model) -> list[KernelNode] | None:
        return None

    def latency_ratio(
        self, model: ir.Model, other: ir.Model, limit: float = SLOWER
    ) -> LatencyRatio | None:
        return None

    def is_not_slower(self, model: ir.Model, other: ir.Model) -> bool:
        ratio = self.latency_ratio(model, other)
        return ratio is not None and ratio.verdict() == "not slower"

    def difference(self, model: ir.Model, other: ir.Model) -> Difference | None:
        return None

    def remember_float(self, model: ir.Model) -> None:
        return None

    def warn(self, where: str, message: str) -> None:
        self.warnings.append(f"{where}: {message}")

    @contextlib.contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda steps: None


def _no_data() -> UsageError:
    return UsageError(
        "calibration",
        "no calibration data",
        "pass --data (command line) or data= (Python)",
    )
