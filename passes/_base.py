"""The contract of a pass: options from fields, an effect, `run(model, context) -> PassOutcome`."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import difflib
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .. import UsageError

Effect = Literal["exact", "lossy", "analysis"]
Stat = int | float | str
KernelFields = tuple[str, str, tuple[str, ...], tuple[str, ...]]
"""A node of a runtime's optimized graph: `domain.op` (standard ops without a domain), name, inputs,
outputs.
"""
Difference = tuple[float, str, str]
"""How far a model is from a reference: the error, why the model failed, why the reference did; ""
for neither.

Error: the largest over outputs and batches of the root mean square of y - y' over that of y (of
integers, booleans and texts: the fraction that differs); infinite where one alone has a value that
is not finite, and after a failure.
"""
RangeMethod = Literal["minmax", "percentile", "entropy", "mse", "auto"]


def Option(  # noqa: N802 - reads as a declaration, like dataclasses.field
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    unit: str = "",
) -> Any:
    """Declare one option of a pass: its default, one sentence of help, its inclusive range and its
    unit.
    """
    return dataclasses.field(
        default=default, metadata={"help": help, "low": low, "high": high, "unit": unit}
    )


@dataclass(frozen=True)
class Declined:
    """Something a pass could have touched and did not: the node or tensor, and why."""

    where: str
    reason: str


@dataclass
class PassOutcome:
    """What a pass did: `changed` counts altered nodes or tensors; `stats` have their units in the
    pass's docstring.
    """

    changed: int = 0
    stats: dict[str, Stat] = dataclasses.field(default_factory=dict)
    declined: list[Declined] = dataclasses.field(default_factory=list)


@dataclass(frozen=True)
class Request:
    """A moment of one float tensor over the calibration data, for `Context.collect`.

    `absmax`: max|x| of each channel, (C,). `mean`: (C,), or (groups, K) of patches. `profile`:
    means of x, |x| and x^2, (folds, 3, C), in up to 64 folds of the samples. `extremes`: count,
    lowest and highest x in those folds, (folds, 3, C). `gram`: the mean of z z^T with z = [x, 1],
    (groups, K + 1, K + 1). `regression`: the mean of z [z, y]^T, (groups, K + 1, K + 1 + M /
    groups), y the values of the tensor `target` at the same places (a layer's output, channels on
    the same axis as the input's). `axis`: where the channels are. With a `kernel` x is what a
    convolution multiplies, a patch of K = C / groups * prod(kernel) values, at a sample of its
    output positions.
    """

    tensor: str
    kind: Literal["absmax", "mean", "gram", "profile", "extremes", "regression"]
    axis: int = -1
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    groups: int = 1
    target: str = ""
    part: Literal["all", "even", "odd"] = "all"
    """Of a regression: which micro-batches count, so that a fit to one half can be judged on the
    other.
    """


class Context(Protocol):
    """What a pass may ask of the run it is part of. Implemented in `runtime`; `NullContext` serves
    without one.
    """

    target: str
    seed: int

    def has_data(self) -> bool:
        """Whether calibration feeds are at hand."""
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
        """Run the model over at most `samples` calibration samples; (low, high) of each named float
        tensor, to cut at for a grid with so many steps.

        Tensors that a run never produced (an untaken branch) are absent from the result.
        """
        ...

    def collect(
        self, model: ir.Model, requests: Mapping[str, Request], samples: int
    ) -> dict[str, NDArray[np.float64]]:
        """Run the model over at most `samples` calibration samples; the moment that each request
        names.

        Absent from the result: tensors that a run never produced, that are not float, or that the
        model lacks.
        """
        ...

    def kernels(self, model: ir.Model) -> list[KernelFields] | None:
        """Each node that the target's runtime makes of the model, in its optimized graph; None if
        not known.

        Not known: the target's runtime is not here, shows no graph, or this run does not run
        models.
        """
        ...

    def latency_ratio(
        self, model: ir.Model, other: ir.Model, seconds: float
    ) -> tuple[float, float, float] | None:
        """Quartiles of time(other) / time(model) over paired runs on the run's feeds; above 1:
        `other` is slower.

        None where nothing can be measured.
        """
        ...

    def difference(self, model: ir.Model, other: ir.Model) -> Difference | None:
        """Run both on the same feeds, at two batch sizes where they are open; how far `other` is
        from `model`.

        A model that does not load, run or survive is a failure, not an exception. None where this
        run does not run models.
        """
        ...

    def remember_float(self, model: ir.Model) -> None:
        """Say what the lossy changes that follow start from, so that losses can be explained layer
        by layer.
        """
        ...

    def warn(self, where: str, message: str) -> None:
        """Tell the user something that does not stop the run."""
        ...

    def progress(
        self, label: str, total: int
    ) -> contextlib.AbstractContextManager[Callable[[int], None]]:
        """A progress bar over `total` steps; the yielded function advances it."""
        ...


@dataclass(frozen=True)
class Gradient:
    """Of the loss by one weight, in its shape: `mean` over the samples, and mean `square` of each
    sample's own.
    """

    mean: NDArray[np.float64]
    square: NDArray[np.float64]


@typing.runtime_checkable
class Differentiates(Protocol):
    """What a context may be able to do beside: differentiate. Passes ask `isinstance(context,
    Differentiates)`.
    """

    def gradients(
        self, model: ir.Model, weights: Sequence[str], samples: int
    ) -> Mapping[str, Gradient]:
        """Gradients of the loss by the named initializers over at most `samples` calibration
        samples.

        The loss is that of the labels where the data has them, else the distance from the model's
        own outputs. Absent from the result: weights that the loss does not depend on. Errors:
        UsageError without data.
        """
        ...


@typing.runtime_checkable
class Resumes(Protocol):
    """What a context may be able to do beside: keep tensors of a run, so that later runs start
    behind them.
    """

    def after(
        self, model: ir.Model, tensors: Sequence[str], samples: int
    ) -> Context | None:
        """A context whose calibration data are these inputs and outputs of the model on at most
        `samples` samples.

        It serves models that take them as inputs. None where they are too large to be held. Errors:
        UsageError without data.
        """
        ...


@typing.runtime_checkable
class Trains(Protocol):
    """What a context may be able to do beside: train. Passes ask `isinstance(context, Trains)`."""

    def train(self, model: ir.Model, recipe: Mapping[str, Any]) -> PassOutcome:
        """Train the model's weights in place, to say of the run's data what the run's original
        model says.

        `recipe`: plain values by the names of the options of `finetune`. The model is changed only
        for the better. Errors: UsageError without torch, RefusedError for data or a graph that
        cannot be trained on.
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
        raise UsageError(
            "calibration",
            "no calibration data",
            "pass --data (command line) or data= (Python)",
        )

    def collect(
        self, model: ir.Model, requests: Mapping[str, Request], samples: int
    ) -> dict[str, NDArray[np.float64]]:
        raise UsageError(
            "calibration",
            "no calibration data",
            "pass --data (command line) or data= (Python)",
        )

    def kernels(self, model: ir.Model) -> list[KernelFields] | None:
        return None

    def latency_ratio(
        self, model: ir.Model, other: ir.Model, seconds: float
    ) -> tuple[float, float, float] | None:
        return None

    def difference(self, model: ir.Model, other: ir.Model) -> Difference | None:
        return None

    def remember_float(self, model: ir.Model) -> None:
        return None

    def warn(self, where: str, message: str) -> None:
        self.warnings.append(f"{where}: {message}")

    @contextlib.contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda steps: None


@dataclass(frozen=True)
class Pass(abc.ABC):
    """A transformation of a model, in place. Subclasses are frozen dataclasses whose fields are
    their options.
    """

    name: ClassVar[str]
    effect: ClassVar[Effect]

    def __post_init__(self) -> None:
        for option in options_of(type(self)):
            option.validate(self.name, getattr(self, option.name))

    @abc.abstractmethod
    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        """Transform `model` in place and account for it."""

    def __str__(self) -> str:
        """Canonical pipeline text: the options that differ from their defaults, a leading word
        positionally.
        """
        given = [
            (o, getattr(self, o.name))
            for o in options_of(type(self))
            if getattr(self, o.name) != o.default
        ]
        if not given:
            return self.name
        return f"{self.name}({', '.join(o.render(value) for o, value in given)})"


@dataclass(frozen=True)
class OptionSpec:
    """One option as declared by a field of a pass: the single source for text, help, docs and
    validation.
    """

    name: str
    kind: Any
    default: Any
    help: str
    low: float | None
    high: float | None
    unit: str
    positional: bool

    @property
    def choices(self) -> tuple[str, ...]:
        """The words a `Literal` option accepts; empty for every other kind."""
        return (
            typing.get_args(self.kind)
            if typing.get_origin(self.kind) is Literal
            else ()
        )

    @property
    def type_text(self) -> str:
        """The kind for people: `fraction in [0, 1]`, `int8 | binary`, `list of text`."""
        if self.choices:
            return " | ".join(self.choices)
        names = {
            float: "number",
            int: "integer",
            bool: "true | false",
            str: "text",
            tuple[str, ...]: "list of text",
        }
        text = names[self.kind]
        if self.low is not None or self.high is not None:
            text += f" in [{'' if self.low is None else self.low}, {'' if self.high is None else self.high}]"
        return f"{text} ({self.unit})" if self.unit else text

    def parse(self, where: str, value: Any) -> Any:
        """Turn a value of pipeline text (str, or list of str) into this option's type; UsageError
        if it cannot be.
        """
        try:
            return _PARSERS[str if self.choices else self.kind](value)
        except (ValueError, TypeError, KeyError):
            raise UsageError(
                f"{where}.{self.name}",
                f"{_shown(value)} is not {self.type_text}",
                self._fix(),
            ) from None

    def validate(self, where: str, value: Any) -> None:
        """Raise UsageError unless `value` has this option's type and lies in its range."""
        place = f"{where}.{self.name}"
        if self.choices:
            if value not in self.choices:
                near = difflib.get_close_matches(str(value), self.choices, 1)
                raise UsageError(
                    place,
                    f"{_shown(value)} is not one of {', '.join(self.choices)}",
                    f"did you mean '{near[0]}'?" if near else self._fix(),
                )
            return
        if not _HAS_TYPE[self.kind](value):
            raise UsageError(
                place, f"{_shown(value)} is not {self.type_text}", self._fix()
            )
        if isinstance(value, (int, float)) and not (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
        ):
            raise UsageError(
                place, f"{value} is outside [{self.low}, {self.high}]", self._fix()
            )

    def render(self, value: Any) -> str:
        """The option as pipeline text."""
        if isinstance(value, bool):
            text = "true" if value else "false"
        elif isinstance(value, tuple):
            text = "[" + ", ".join(map(quoted, value)) + "]"
        else:
            text = quoted(value) if isinstance(value, str) else repr(value)
        return text if self.positional else f"{self.name}={text}"

    def _fix(self) -> str:
        if self.choices:
            return f"choose one of {', '.join(self.choices)}; the default is {self.default}"
        if self.low is not None or self.high is not None:
            return f"choose a value in [{self.low}, {self.high}]; the default is {self.default}"
        return f"give {self.type_text}; the default is {self.default!r}"


def options_of(kind: type[Pass]) -> list[OptionSpec]:
    """The options of a pass class, in field order; a leading `Literal` field may be given
    positionally.
    """
    hints = typing.get_type_hints(kind)
    specs = []
    for index, field in enumerate(dataclasses.fields(kind)):
        annotation = hints[field.name]
        specs.append(
            OptionSpec(
                field.name,
                annotation,
                field.default,
                field.metadata["help"],
                field.metadata["low"],
                field.metadata["high"],
                field.metadata["unit"],
                positional=index == 0 and typing.get_origin(annotation) is Literal,
            )
        )
    return specs


def quoted(text: str) -> str:
    """A word as pipeline text: bare where the grammar allows, in double quotes otherwise."""
    bare = bool(text) and not any(c.isspace() or c in ',()[]="\\' for c in text)
    return text if bare else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _shown(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value)


def _parse_number(value: str) -> float:
    return float(value[:-1]) / 100 if value.endswith("%") else float(value)


def _parse_words(value: str | list[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _parse_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


_PARSERS: dict[Any, Callable[[Any], Any]] = {
    float: _parse_number,
    int: int,
    bool: {"true": True, "false": False}.__getitem__,
    str: _parse_text,
    tuple[str, ...]: _parse_words,
}

_HAS_TYPE: dict[Any, Callable[[Any], bool]] = {
    float: lambda v: isinstance(v, (int, float)) and not isinstance(v, bool),
    int: lambda v: isinstance(v, int) and not isinstance(v, bool),
    bool: lambda v: isinstance(v, bool),
    str: lambda v: isinstance(v, str),
    tuple[str, ...]: lambda v: (
        isinstance(v, tuple) and all(isinstance(s, str) for s in v)
    ),
}
