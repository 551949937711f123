"""Two models explained on the same samples: the agreement, beside that of one model with itself."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ... import CheckError
from ...runtime.feeds import open_feeds
from ...runtime.hardware import Hardware, hardware
from ...runtime.worker import Worker
from .._compare import Side
from .._run.clock import Clock
from .._run.provenance import sha256_of
from .._run.settings import ProgressBar
from .._run.versions import versions
from .agreement import Agreement, agreement, mean, share
from .attribution import Attribution, Explanation
from .baseline import Baselines
from .inputs import ExplainedInput, explained_input
from .methods import DIVISIONS
from .request import ExplainRequest
from .runs import Runner
from .samples import DataSample, first_samples
from .target import Aim, ExplainedOutput, target_of

SCHEMA = "1.0"
"""Version of the JSON form."""

OTHER_SEED = 1
"""Number of the original's second explanation."""


@dataclass(frozen=True)
class ExplainedSample:
    """Explanations of one sample: of A, of B, and of A again with other seeds.

    `chosen`: classes that A and B choose; None where the output has none. `scores`: the explained
    number of A and of B.
    """

    index: int
    sample: DataSample
    chosen: tuple[int, int] | None
    scores: tuple[float, float]
    a: Explanation
    b: Explanation
    again: Explanation

    @property
    def agreement(self) -> Agreement:
        """Agreement of B with A."""
        return agreement(self.a.heat, self.b.heat, self.a.counts)

    @property
    def noise_floor(self) -> Agreement:
        """Agreement of A with itself."""
        return agreement(self.a.heat, self.again.heat, self.a.counts)

    def to_json(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "sample": self.index,
            "class": None if self.chosen is None else self.chosen[0],
            "class_b": None if self.chosen is None else self.chosen[1],
            "score_a": self.scores[0],
            "score_b": self.scores[1],
            "agreement": self.agreement.to_json(),
            "noise_floor": self.noise_floor.to_json(),
        }


@dataclass
class Explained:
    """All samples, and what was explained on them."""

    request: ExplainRequest
    subject: ExplainedInput
    target: ExplainedOutput
    baselines: Baselines
    samples: list[ExplainedSample]
    hardware: Hardware
    versions: dict[str, str | None]
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def agreement(self) -> Agreement:
        """Mean agreement of B with A."""
        return mean(each.agreement for each in self.samples)

    @property
    def noise_floor(self) -> Agreement:
        """Mean agreement of A with itself."""
        return mean(each.noise_floor for each in self.samples)

    @property
    def share(self) -> dict[str, float | None]:
        """The agreement as parts of the noise floor."""
        return share(self.agreement, self.noise_floor)

    def problem(self) -> str | None:
        """Shortfall of the agreement, in words; None where it suffices or none was asked for."""
        least = self.request.min_agreement
        if least is None:
            return None
        for name, value in self.share.items():
            if value is None:
                return f"the noise floor of {name} is not above 0: nothing compares with it"
            if value < least:
                return f"{name} is {value:.3f} of the noise floor, below {least:g}"
        return None

    def to_json(self) -> dict[str, Any]:
        """The JSON form, without pictures."""
        request = self.request
        problem = self.problem()
        return {
            "schema": SCHEMA,
            "versions": self.versions,
            "a": {"path": str(request.a), "sha256": sha256_of(request.a)},
            "b": {"path": str(request.b), "sha256": sha256_of(request.b)},
            "method": request.method,
            "engine": request.engine,
            "runs": request.runs_of_method,
            "seed": request.seed,
            "input": {"name": self.subject.name, "kind": self.subject.kind},
            "output": {"name": self.target.output, "form": self.target.form},
            "samples": len(self.samples),
            "agreement": self.agreement.to_json(),
            "noise_floor": self.noise_floor.to_json(),
            "share": self.share,
            "same_class": self._same_class(),
            "min_agreement": request.min_agreement,
            "within": problem is None,
            "problem": problem,
            "by_sample": [each.to_json() for each in self.samples],
            "hardware": self.hardware.to_json(),
            "seconds": self.seconds,
            "warnings": self.warnings,
        }

    def _same_class(self) -> float | None:
        chosen = [each.chosen for each in self.samples if each.chosen is not None]
        if not chosen:
            return None
        return float(np.mean([one == other for one, other in chosen]))

    def failure(self, facts: dict[str, Any]) -> CheckError | None:
        """The error of an agreement that is too low; `facts`: what is known of it."""
        problem = self.problem()
        if problem is None:
            return None
        error = CheckError(
            str(self.request.b),
            problem,
            "prune or quantize less, train with finetune(attribution=1), or lower --min-agreement",
        )
        error.account = facts
        return error


def explained(
    request: ExplainRequest, progress: ProgressBar | None = None
) -> Explained:
    """Explain both models on the first samples of the data.

    Errors: RefusedError for models with other inputs or outputs, for data, and where there is
    nothing to explain; UsageError for names.
    """
    from ..commands.verify import require_same_interface

    clock = Clock()
    with Worker() as worker:
        first = Side.of(worker, request.a, request.threads)
        second = Side.of(worker, request.b, request.threads)
        require_same_interface(first.session, second.session)
        session = first.session
        subject = explained_input(session.inputs, request.input)
        feeds = open_feeds(
            request.data, session.inputs, session.path.parent, session.outputs
        )
        samples = first_samples(feeds, session.inputs, subject, request.samples)
        runner = Runner.of(session, subject)
        answers = [runner.plain(sample) for sample in samples]
        target = target_of(answers, request.output, request.form)
        division = DIVISIONS[request.method]
        baselines = Baselines.of(subject, samples, division)
        sides = [
            Attribution(side, baselines, target, request) for side in (first, second)
        ]
        aims = [target.of_sample(answer) for answer in answers]
        found = _all_samples(sides, samples, aims, progress)
        machine = hardware(worker)
        parts = versions(worker)
    warnings = [f"data: {words}" for words in feeds.warnings]
    if len(samples) < request.samples:
        warnings.append(
            f"the data has {len(samples)} samples; {request.samples} were asked for"
        )
    if request.form is None and _is_one_class(aims):
        warnings.append(
            f"output '{target.output}': taken for scores of classes, of which every sample has the "
            "same one: values of unequal scale look like that, too; if they are no classes, --as "
            "embedding explains all of them together"
        )
    whole = clock.whole()
    return Explained(
        request,
        subject,
        target,
        baselines,
        found,
        machine,
        parts,
        warnings,
        seconds=round(whole.seconds, 2),
    )


def _is_one_class(aims: Sequence[Aim]) -> bool:
    """True if all of several samples have the same class."""
    classes = {aim.chosen for aim in aims}
    return len(aims) > 1 and len(classes) == 1 and None not in classes


def _all_samples(
    sides: Sequence[Attribution],
    samples: Sequence[DataSample],
    aims: Sequence[Aim],
    progress: ProgressBar | None,
) -> list[ExplainedSample]:
    found = []
    with contextlib.ExitStack() as stack:
        advance: Any = lambda steps: None  # noqa: E731
        if progress is not None:
            bar = progress("explain", len(samples))
            advance = stack.enter_context(bar)
        for index, (sample, aim) in enumerate(zip(samples, aims, strict=True)):
            each = _one_sample(sides, index, sample, aim)
            found.append(each)
            advance(1)
    return found


def _one_sample(
    sides: Sequence[Attribution], index: int, sample: DataSample, aim: Aim
) -> ExplainedSample:
    original, other = sides
    answers = original.runner.plain(sample)
    others = other.runner.plain(sample)
    (score,) = aim.scores(answers, 1)
    (other_score,) = aim.scores(others, 1)
    chosen = None
    if aim.chosen is not None:
        table = np.asarray(others[aim.target.output])
        chosen = (aim.chosen, int(table.argmax()))
    return ExplainedSample(
        index,
        sample,
        chosen,
        scores=(float(score), float(other_score)),
        a=original.explain(index, aim),
        b=other.explain(index, aim),
        again=original.explain(index, aim, OTHER_SEED),
    )
