"""The judgement of what passes make of a model, by ONNX Runtime on the original.

Everything here runs in a process that may die: `crew` has the other side.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx_opt import CheckError, OnnxOptError
from onnx_opt.frontends.onnx_file import load, save
from onnx_opt.passes._core.normalize import normalize
from onnx_opt.passes._core.pipeline import parse
from onnx_opt.passes._core.registry import pass_class, pass_names
from onnx_opt.runtime.context import RunContext
from onnx_opt.runtime.feeds import open_feeds
from onnx_opt.runtime.worker import Worker
from onnx_opt.tools._run import driver
from onnx_opt.tools._run.figures import input_infos
from onnx_opt.tools._run.provenance import PREFIX
from onnx_opt.tools._run.run import Reporter, Run
from onnx_opt.tools.optimize import optimize

from .builder import all_nodes, session_options

LOSSY = (
    "simplify,quant",
    "prune",
    "prune,quant",
    "prune-channels",
    "quant(fp16)",
    "compress-weights",
    "quant(bits=4)",
    "quant(blocked)",
    "quant(dynamic)",
    "equalize,quant",
    "smooth,quant",
    "simplify,prune(sparsity=0.6),pack",
    "round-weights",
)
"""Pipelines that are judged by structure: outputs drift, and how far is another question."""

DRIVEN = (
    "simplify,quant",
    "simplify",
    "prune,quant",
    "quant(fp16)",
    "prune-channels(ratio=0.3)",
)
"""Pipelines that are run as users run them, with all checks and the writing of the file."""

PYTHON_ERRORS = (
    "AssertionError",
    "AttributeError",
    "IndexError",
    "KeyError",
    "TypeError",
    "ValueError",
    "ZeroDivisionError",
)
"""Exceptions that the worker's own code raises, not ONNX Runtime."""

RTOL = 1e-4
"""Largest error of an exact pass, relative to the output's largest number."""

HALF_RTOL = 2e-2
"""The same where a model computes in float16."""

NOISE_FACTOR = 20.0
"""Multiple of what a change of the feeds by one in a million makes that still counts as noise."""

GOOD = ("ok", "noise", "refused", "unrunnable")
"""Verdicts that are no fault: outputs within the model's own noise, an error with a reason, and
models that ONNX Runtime does not run as they came.
"""

UNSOUND = (
    "fault in onnx-opt",
    "onnx.checker:",
    "strict shape inference:",
    "' became '",
)
"""Words of a run's refusals that tell of a fault in a pass."""

Feeds = dict[str, np.ndarray]
Outputs = list[Any]


@dataclass(frozen=True)
class Verdict:
    """Judgement of one pass or pipeline on one model.

    `kind`: one of GOOD, or wrong, invalid, interface, fails (ONNX Runtime refuses the result),
    unbelieved (a run rolled an exact pass back), traceback; of dead processes died and hang.
    """

    subject: str
    kind: str
    detail: str = ""
    cpu: float = 0.0


class Phases:
    """Says to the other side what is being done, for the case that it is never finished."""

    def __init__(self, say: Callable[[str], None] = lambda phase: None) -> None:
        self.say = say


@dataclass(frozen=True)
class Original:
    """A model, and its outputs on the feeds that it runs on."""

    model: onnx.ModelProto
    feeds: list[Feeds]
    outputs: list[Outputs]

    @classmethod
    def of(cls, model: onnx.ModelProto, feeds: Sequence[Feeds]) -> Original | None:
        """None where ONNX Runtime runs it on none of the feeds, or differs from run to run."""
        try:
            session = session_of(model)
        except Exception:
            return None
        taken, outputs = [], []
        for feed in feeds:
            with contextlib.suppress(Exception):
                results = session.run(None, feed)
                again = session.run(None, feed)
                if difference(results, again, 0.0) is None:
                    taken.append(feed)
                    outputs.append(results)
        return cls(model, taken, outputs) if taken else None

    @cached_property
    def is_valid(self) -> bool:
        """True if onnx's checker and shape inference accept it.

        They know nothing of what ops of other domains give.
        """
        return validity_problem(self.model) is None

    @property
    def rtol(self) -> float:
        halves = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
        kinds = {tensor.data_type for tensor in self.model.graph.initializer}
        for value in [*self.model.graph.input, *self.model.graph.value_info]:
            kinds.add(value.type.tensor_type.elem_type)
        for node in all_nodes(self.model.graph.node):
            kinds.update(a.i for a in node.attribute if a.name == "to")
        return HALF_RTOL if kinds & halves else RTOL

    def is_noise(self, index: int, got: Outputs) -> bool:
        """True if the original itself differs as much when its feeds change by a millionth."""
        random = np.random.default_rng(0)
        spread = [np.zeros(()) for _ in got]
        steps = [np.zeros((), bool) for _ in got]
        runs = [(session_of(self.model, optimize=True), 0.0)]
        runs += [(session_of(self.model), 1e-6)] * 3
        for session, size in runs:
            feed = {
                name: _nudged(array, size, random)
                for name, array in self.feeds[index].items()
            }
            others = session.run(None, feed)
            for at, (mine, other) in enumerate(
                zip(self.outputs[index], others, strict=True)
            ):
                if not isinstance(mine, np.ndarray) or mine.shape != other.shape:
                    return True
                if mine.dtype.kind == "f":
                    gap = np.abs(mine.astype(np.float64) - other.astype(np.float64))
                    spread[at] = np.maximum(spread[at], np.nanmax(gap, initial=0))
                else:
                    steps[at] = steps[at] | np.any(mine != other)
        for at, (mine, have) in enumerate(zip(self.outputs[index], got, strict=True)):
            if difference([mine], [have], self.rtol) is None:
                continue
            if mine.shape != have.shape:
                return False
            if mine.dtype.kind != "f":
                if not steps[at]:
                    return False
                continue
            gap = np.abs(mine.astype(np.float64) - have.astype(np.float64))
            if not np.nanmax(gap, initial=0) <= NOISE_FACTOR * float(spread[at]):
                return False
        return True


def _nudged(array: np.ndarray, size: float, random: np.random.Generator) -> np.ndarray:
    if array.dtype.kind != "f" or not size:
        return array
    return (array * (1 + size * random.standard_normal(array.shape))).astype(
        array.dtype
    )


def session_of(model: onnx.ModelProto, optimize: bool = False) -> Any:
    return onnxruntime.InferenceSession(
        model.SerializeToString(),
        session_options(optimize),
        providers=["CPUExecutionProvider"],
    )


def difference(
    expected: Outputs, got: Outputs, rtol: float, atol: float = 0.0
) -> str | None:
    """Say the first thing in which outputs differ; None if nothing does."""
    for at, (want, have) in enumerate(zip(expected, got, strict=True)):
        if isinstance(want, list):
            if not isinstance(have, list) or len(want) != len(have):
                return f"output {at}: another sequence"
            problem = difference(want, have, rtol, atol)
        else:
            problem = _arrays_differ(want, have, rtol, atol)
        if problem:
            return f"output {at}: {problem}"
    return None


def _arrays_differ(want: Any, have: Any, rtol: float, atol: float) -> str | None:
    if want is None or have is None:
        return None if want is have else "a value where none was, or none"
    want, have = np.asarray(want), np.asarray(have)
    if want.shape != have.shape:
        return f"shape {want.shape} became {have.shape}"
    if want.dtype != have.dtype:
        return f"type {want.dtype} became {have.dtype}"
    if want.dtype.kind not in "fV":
        return None if np.array_equal(want, have) else "other whole numbers or texts"
    one, other = want.astype(np.float64), have.astype(np.float64)
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    finite = np.isfinite(one) & np.isfinite(other)
    if not np.all(same | finite):
        return "infinite or NaN where it was not"
    gap = np.abs(one - other)[finite]
    scale = np.abs(one)[finite].max(initial=0)
    if gap.size and gap.max() > rtol * scale + atol:
        return f"off by {gap.max():.3g} of {scale:.3g}"
    return None


# verdicts


def interface_problem(before: onnx.ModelProto, after: onnx.ModelProto) -> str | None:
    """Say what callers would see changed, compared as the files have it."""
    for kind in ("input", "output"):
        mine, theirs = (_ports(model, kind) for model in (before, after))
        if len(mine) != len(theirs):
            return f"{len(mine)} {kind}s became {len(theirs)}"
        for one, other in zip(mine, theirs, strict=True):
            if one.SerializeToString(deterministic=True) != other.SerializeToString(
                deterministic=True
            ):
                return f"{kind} {_words(one)} became {_words(other)}"
    if _metadata(before) != _metadata(after):
        return "metadata changed"
    if _defaults(before) != _defaults(after):
        return f"defaults {_defaults(before)} became {_defaults(after)}"
    return None


def _ports(model: onnx.ModelProto, kind: str) -> list[onnx.ValueInfoProto]:
    """Names and types of inputs or outputs, without notes."""
    values = list(getattr(model.graph, kind))
    # before IR 4 every initializer had to be listed as an input without being one
    if kind == "input" and model.ir_version < 4:
        stored = {tensor.name for tensor in model.graph.initializer}
        values = [value for value in values if value.name not in stored]
    return [onnx.ValueInfoProto(name=value.name, type=value.type) for value in values]


def _words(value: onnx.ValueInfoProto) -> str:
    return " ".join(str(value).split())


def _metadata(model: onnx.ModelProto) -> dict[str, str]:
    entries = {entry.key: entry.value for entry in model.metadata_props}
    return {key: text for key, text in entries.items() if not key.startswith(PREFIX)}


def _defaults(model: onnx.ModelProto) -> set[str]:
    stored = {tensor.name for tensor in model.graph.initializer}
    return {value.name for value in _ports(model, "input")} & stored


def structure_problem(
    original: Original, after: onnx.ModelProto
) -> tuple[str, str] | None:
    """Kind and words of a result that is not valid or has another interface."""
    problem = interface_problem(original.model, after)
    if problem:
        return "interface", problem
    problem = validity_problem(after)
    if problem and original.is_valid:
        return "invalid", problem
    return None


def validity_problem(model: onnx.ModelProto) -> str | None:
    """Say why onnx's checker or strict shape inference refuses a model; None if neither does."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        return first_line(error)
    return None


def judged(
    subject: str, original: Original, after: onnx.ModelProto, exact: bool
) -> Verdict:
    """Verdict on a result that a pass gave without an exception."""
    found = structure_problem(original, after)
    if found:
        return Verdict(subject, *found)
    try:
        session = session_of(after)
        outputs = [session.run(None, feed) for feed in original.feeds]
    except Exception as error:
        return Verdict(subject, "fails", first_line(error))
    if not exact:
        return Verdict(subject, "ok")
    for index, (want, have) in enumerate(zip(original.outputs, outputs, strict=True)):
        problem = difference(want, have, original.rtol)
        if problem is None:
            continue
        if original.is_noise(index, have):
            return Verdict(subject, "noise", problem)
        return Verdict(subject, "wrong", f"feeds {index}, {problem}")
    return Verdict(subject, "ok")


def exact_verdicts(original: Original, phases: Phases, worker: Worker) -> list[Verdict]:
    """Verdicts on loading, on each exact pass by itself, and on `simplify`."""
    loaded, verdict = _loaded(original)
    verdicts = [verdict]
    if loaded is None:
        return verdicts
    feeds = _calibration(loaded, original)
    for name in exact_passes():
        phases.say(name)
        start = time.process_time()
        model = loaded.clone()
        try:
            context = RunContext(worker, feeds, "cpu", 0, save)
            outcome = pass_class(name)().run(model, context)
            after = written(model)
        except OnnxOptError as error:
            verdicts.append(_refusal(name, error))
            continue
        except Exception as error:
            verdicts.append(Verdict(name, "traceback", last_call(error)))
            continue
        # the loaded model was judged: where nothing changed, it is the same
        if not outcome.changed and name != "simplify":
            verdicts.append(Verdict(name, "ok"))
            continue
        verdict = judged(name, original, after, exact=True)
        verdicts.append(dataclasses.replace(verdict, cpu=time.process_time() - start))
    return verdicts


def verdict_of(
    subject: str, original: Original, phases: Phases, worker: Worker
) -> Verdict:
    """Verdict on one subject: `load`, `run: TEXT`, an exact pass, or other pipeline text."""
    if subject.startswith("run: "):
        text = subject.removeprefix("run: ")
        return driven_verdicts(original, phases, worker, [text])[0]
    if subject in ("load", *exact_passes()):
        verdicts = exact_verdicts(original, phases, worker)
        found = [verdict for verdict in verdicts if verdict.subject == subject]
        return found[0] if found else verdicts[0]
    return lossy_verdicts(original, phases, worker, [subject])[0]


def exact_passes() -> list[str]:
    return [name for name in pass_names() if pass_class(name).effect == "exact"]


def lossy_verdicts(
    original: Original, phases: Phases, worker: Worker, texts: Sequence[str] = LOSSY
) -> list[Verdict]:
    """Verdicts on pipelines, pass after pass, without the checks of a run."""
    loaded, verdict = _loaded(original)
    if loaded is None:
        return [verdict]
    feeds = _calibration(loaded, original)
    verdicts = []
    for text in texts:
        phases.say(text)
        start = time.process_time()
        model = loaded.clone()
        context = RunContext(worker, feeds, "cpu", 0, save)
        try:
            for pass_ in parse(text).passes:
                pass_.run(model, context)
            after = written(model)
        except OnnxOptError as error:
            verdicts.append(_refusal(text, error))
            continue
        except Exception as error:
            verdicts.append(Verdict(text, "traceback", last_call(error)))
            continue
        verdict = judged(text, original, after, exact=False)
        verdicts.append(dataclasses.replace(verdict, cpu=time.process_time() - start))
    return verdicts


def _refusal(subject: str, error: OnnxOptError) -> Verdict:
    """Verdict on a run that ended in an error of the project: a traceback, if one is behind it."""
    is_fault = "--debug" in error.fix or getattr(error, "kind", "") in PYTHON_ERRORS
    kind = "traceback" if is_fault else "refused"
    return Verdict(subject, kind, f"{error.where}: {error.problem}")


def _calibration(loaded: ir.Model, original: Original) -> Any:
    inputs = input_infos(loaded)
    names = [info.name for info in inputs]
    batches = [{n: f[n] for n in names} for f in original.feeds]
    # an empty batch is no data, nor is one of no inputs; sizes may differ from one to the next
    whole = [
        batch
        for batch in batches
        if batch and all(array.size and array.ndim for array in batch.values())
    ]
    return open_feeds(whole, inputs) if whole else None


def driven_verdicts(
    original: Original, phases: Phases, worker: Worker, texts: Sequence[str] = DRIVEN
) -> list[Verdict]:
    """Verdicts on whole runs, from file to file."""
    verdicts = []
    with tempfile.TemporaryDirectory() as folder, _one_worker(worker):
        source, out = Path(folder, "in.onnx"), Path(folder, "out.onnx")
        onnx.save(original.model, source)
        for text in texts:
            phases.say(f"run: {text}")
            out.unlink(missing_ok=True)
            start = time.process_time()
            verdict = _driven(f"run: {text}", original, source, out, text)
            verdicts.append(
                dataclasses.replace(verdict, cpu=time.process_time() - start)
            )
    return verdicts


def _driven(
    subject: str, original: Original, source: Path, out: Path, text: str
) -> Verdict:
    try:
        result = optimize(source, text, out=out, bench=False, force=True)
    except CheckError as error:
        # a bar that a sound result may miss is one thing, a result that is not sound another
        is_fault = any(sign in f"{error.problem} {error.fix}" for sign in UNSOUND)
        kind = "unbelieved" if is_fault else "refused"
        return Verdict(subject, kind, f"{error.where}: {error.problem}")
    except OnnxOptError as error:
        return _refusal(subject, error)
    except Exception as error:
        return Verdict(subject, "traceback", last_call(error))
    rolled_back = [warning for warning in result.warnings if "rolled back" in warning]
    if rolled_back:
        return Verdict(subject, "unbelieved", rolled_back[0])
    is_exact = all(pass_.effect == "exact" for pass_ in parse(text).passes)
    return judged(subject, original, onnx.load(out), is_exact)


@contextlib.contextmanager
def _one_worker(worker: Worker) -> Iterator[None]:
    """Let runs share a worker: starting one takes longer than all else in them."""

    @contextlib.contextmanager
    def open_run(settings: Any) -> Iterator[Run]:
        with tempfile.TemporaryDirectory() as scratch:
            yield Run(settings, worker, Path(scratch), Reporter(settings.progress))

    own = driver.open_run
    driver.open_run = open_run
    try:
        yield
    finally:
        driver.open_run = own


def _loaded(original: Original) -> tuple[ir.Model | None, Verdict]:
    """The model as passes get it, and the verdict on that."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        onnx.save(original.model, path)
        try:
            model = load(path)
            normalize(model)
            after = written(model)
        except OnnxOptError as error:
            detail = f"{error.where}: {error.problem}"
            return None, Verdict("load", "refused", detail)
        except Exception as error:
            return None, Verdict("load", "traceback", last_call(error))
    verdict = judged("load", original, after, exact=True)
    return (model if verdict.kind in GOOD else None), verdict


def written(model: ir.Model) -> onnx.ModelProto:
    """A model as its file has it: writing brings declarations back that inference does without."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "result.onnx")
        save(model, path)
        return onnx.load(path)


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def last_call(error: BaseException) -> str:
    """The exception, and the line of the project's source that it came from last."""
    root = Path(driver.__file__).resolve().parents[2]
    places = [
        f"{Path(frame.filename).resolve().relative_to(root)}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).resolve().is_relative_to(root)
    ]
    where = f" at {places[-1]}" if places else ""
    return f"{type(error).__name__}: {first_line(error)}{where}"


SUITES: dict[str, Callable[[Original, Phases, Worker], list[Verdict]]] = {
    "exact": exact_verdicts,
    "lossy": lossy_verdicts,
    "driven": driven_verdicts,
}
