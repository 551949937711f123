"""Preparation of a training: data collected, open decisions taken, everything tried once.

Errors that bad data or models cause are raised here, before the first step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from ... import RefusedError
from ...passes._core.graph import graphs_of
from ...passes._core.ops import FLOATS, QUANT_OPS
from ...passes._core.options import AUTO
from ...passes._core.scratch import scratch_folder
from ...passes._core.training_recipe import TrainingRecipe
from ..trainable import coarsest_grid, to_torch
from .acceptance import AcceptanceTest, check_shapes
from .attribution import check_classes, with_places
from .augment import Augment, image_input
from .checkpoint import Checkpoint
from .choices import ChosenRecipe, TrainingFacts, choices, has_budget
from .data import (
    LEAST_ROWS,
    UNASKED_ROWS,
    Arrays,
    Example,
    Samples,
    Split,
    TrainingBatch,
    split,
    spread,
)
from .device import Device
from .distributed import ProcessGroup, process_group
from .features import Tap, ends_in_common, find_taps
from .heads import find_heads
from .learner import Learner
from .objective import (
    IGNORED_LABEL,
    ComparedValues,
    Labels,
    Objective,
    Scale,
    check_labels,
    head_weights,
    needs_live_teacher,
    output_scales,
    projections_for,
    variances,
)
from .photographs import Photographs, photographs
from .presets import SOFT_LEVELS, PresetName, batch_rows, completed, preset_name
from .session import Environment, TrainingSession
from .teacher import TeacherFunction, TeacherOutputs, teacher_outputs
from .tensorboard import Log, logging_to

Tensor = Any

MEASURED_ROWS = 1000
"""Rows from which variances and statistics are taken, spread over the data; chosen by hand."""

FEW_ROWS = 200
"""Rows held out below which the distance from the teacher is watched, not agreement.

The share of 200 rows has a deviation of up to 3.5 %: too coarse to tell states apart. Chosen by
hand; not measured.
"""

FEATURE_ROWS = 200
"""Rows from which variances of features are taken: all of them are in memory at once."""

ASKED_ROWS = 512
"""Images that the teacher is asked about, changed: a share of them deviates by at most 2.2 %."""

TEACHER_ROWS = 64
"""Images of one question to the teacher."""

LEAST_BATCH = 32
"""Rows of a batch from which its statistics may stand for those of all; chosen by hand."""

CONTRADICTED_SHARE = 0.2
"""Share of labels that are not the teacher's choice from which that is said; chosen by hand."""

LABEL_ROWS = 4096
"""Rows whose labels are checked at a time."""

CUTS_SHOWN = 3
"""Nodes that an error names where gradients end."""


@dataclass(frozen=True)
class _Material:
    """Parts of a session that do not depend on the recipe's open decisions.

    But for `compared` and `live`: outputs alone until it is decided what else is compared.
    """

    student: ir.Model
    teacher: ir.Model
    compared: ComparedValues
    outputs: TeacherOutputs
    live: TeacherFunction
    samples: Samples
    split: Split
    acceptance: AcceptanceTest
    environment: Environment
    group: ProcessGroup
    device: Device
    folder: Path
    log: Log

    def examples(self, rows: int, at_a_time: int) -> list[Example]:
        """Return about so many rows to train on, spread over the data."""
        units = spread(self.split.train, rows, self.samples)
        return self.samples.take(units, at_a_time)


@contextlib.contextmanager
def training_session(
    student: ir.Model,
    teacher: ir.Model,
    batches: Iterable[TrainingBatch],
    asked: TrainingRecipe,
    environment: Environment,
) -> Iterator[TrainingSession]:
    """Make everything that a training needs; it is dropped when the context ends.

    `batches` are read once. Errors: UsageError for options, RefusedError for models and data.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_threads(asked.threads))
        stack.enter_context(torch.random.fork_rng())
        torch.manual_seed(environment.seed)
        material = _collect(
            student,
            teacher,
            batches,
            asked,
            environment,
            stack,
        )
        decided = _decided(asked, material)
        recipe = decided.recipe
        material = _with_features(material, recipe)
        learner = _learner(material, recipe)
        objective = _objective(material, recipe, learner)
        is_live = needs_live_teacher(material.compared, recipe)
        yield TrainingSession(
            student=student,
            teacher=teacher,
            learner=learner,
            objective=objective,
            samples=material.samples,
            split=material.split,
            recipe=recipe,
            environment=environment,
            acceptance=material.acceptance,
            group=material.group,
            device=material.device,
            folder=material.folder,
            log=material.log,
            progress=environment.progress,
            live_teacher=material.live if is_live else None,
            checkpoint=_checkpoint(material, recipe, learner),
            chosen=decided.chosen,
            warnings=tuple(_warnings(material, recipe)),
        )


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# data


def _collect(
    student: ir.Model,
    teacher: ir.Model,
    batches: Iterable[TrainingBatch],
    asked: TrainingRecipe,
    environment: Environment,
    stack: contextlib.ExitStack,
) -> _Material:
    """Open what the training holds until `stack` closes, then read the data."""
    group = stack.enter_context(process_group())
    folder = stack.enter_context(scratch_folder())
    device = Device.of(asked)
    curves = asked.tensorboard if group.is_leader else ""
    log = stack.enter_context(logging_to(curves))
    compared = ComparedValues(
        heads=tuple(find_heads(student, teacher)),
        taps=tuple(_asked_taps(student, teacher, asked)),
    )
    # called for its errors, which should come before the data is read
    head_weights(asked, compared.heads)
    runtime = environment.runtime
    outputs = stack.enter_context(
        teacher_outputs(student, teacher, compared.heads, asked, runtime, device)
    )
    samples = Samples(_has_fixed_batch(student), folder)
    stack.callback(samples.close)
    _add_batches(samples, batches, outputs.cached)
    # who names a budget wants to train, with whatever there is
    least = LEAST_ROWS if has_budget(asked) else UNASKED_ROWS
    parts = split(samples, asked.holdout, environment.seed, least=least)
    return _Material(
        student=student,
        teacher=teacher,
        compared=compared,
        outputs=outputs,
        live=outputs.cached,
        samples=samples,
        split=parts,
        acceptance=AcceptanceTest(compared.heads, samples, parts.held, runtime, group),
        environment=environment,
        group=group,
        device=device,
        folder=folder,
        log=log,
    )


def _asked_taps(
    student: ir.Model, teacher: ir.Model, asked: TrainingRecipe
) -> list[Tap]:
    """Return the features that the recipe names; none where it leaves them to be chosen."""
    if asked.features == AUTO:
        return []
    return find_taps(student, teacher, asked.features)


def _add_batches(
    samples: Samples, batches: Iterable[TrainingBatch], ask: TeacherFunction
) -> None:
    """Keep all data with the teacher's outputs beside.

    Errors: RefusedError where those are not finite.
    """
    for index, (feeds, labels) in enumerate(batches):
        targets = _as_arrays(ask(dict(feeds)))
        for name, value in targets.items():
            if not np.isfinite(value).all():
                raise RefusedError(
                    "finetune, teacher",
                    f"'{name}' is not finite for batch {index} of the data",
                    "leave that data out, or give a teacher that is sound",
                )
        samples.add(Example(dict(feeds), labels, targets))


def _has_fixed_batch(model: ir.Model) -> bool:
    """True if some input's first axis has a fixed size, so that batches stay as they came."""
    for value in model.graph.inputs:
        # an input without axes is no row of anything either
        if value.shape is None or len(value.shape) == 0:
            return True
        if isinstance(value.shape[0], int):
            return True
    return False


def _as_arrays(values: Mapping[str, Any]) -> Arrays:
    arrays: Arrays = {}
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            arrays[name] = value.float().cpu().numpy()
        else:
            arrays[name] = np.asarray(value)
    return arrays


# decisions


def _decided(asked: TrainingRecipe, material: _Material) -> ChosenRecipe:
    """Return the recipe with everything decided that depends on the graph or the data."""
    quantized = _is_quantized(material.student)
    facts = _facts(asked, material, quantized)
    decided = choices(asked, facts)
    recipe = completed(decided.recipe, quantized, facts.levels, facts.agreement)
    watch = recipe.watch
    if watch == "auto":
        held = material.samples.rows_in(material.split.held)
        watch = "loss" if held < FEW_ROWS else "agreement"
    statistics = recipe.statistics
    if statistics == "auto":
        by_batch = recipe.preset == "student"
        if recipe.preset == "recover":
            by_batch = _batches_stand_for_all(recipe, material)
        statistics = "batch" if by_batch else "fixed"
    recipe = dataclasses.replace(
        recipe,
        watch=watch,
        statistics=statistics,
    )
    return ChosenRecipe(recipe, decided.chosen)


def _facts(
    asked: TrainingRecipe, material: _Material, quantized: bool
) -> TrainingFacts:
    student = material.student
    preset = preset_name(asked, quantized)
    levels = coarsest_grid(student) if quantized else math.inf
    found = _photographs(asked, material, preset)
    is_changed = found.flip or bool(Augment.of(asked))
    agreement = 0.0
    # scoring costs a run, which is spared where no choice depends on it
    if levels < SOFT_LEVELS or (preset == "recover" and is_changed):
        agreement = material.acceptance.score(student, "agreement").value
    units = len(material.split.train)
    return TrainingFacts(
        preset=preset,
        rows=round(units * material.samples.rows_per_unit()),
        sparsity=_sparsity(student),
        levels=levels,
        agreement=agreement,
        photographs=found,
        has_features=bool(ends_in_common(student, material.teacher)),
    )


def _photographs(
    asked: TrainingRecipe, material: _Material, preset: PresetName
) -> Photographs:
    """Return the changes that the data bear, where some may be chosen."""
    # blocks learn from values inside, which changed images would change
    if preset == "block":
        return Photographs()
    if AUTO not in (asked.flip, asked.shift, asked.cutmix):
        return Photographs()
    return photographs(
        material.examples(ASKED_ROWS, TEACHER_ROWS),
        material.compared.heads,
        material.outputs.cached,
        material.environment.seed,
    )


def _sparsity(model: ir.Model) -> float:
    """Return the fraction of zeros (0-1) in float constants of two axes and more."""
    zeros = 0
    size = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or len(tensor.shape) < 2 or tensor.dtype not in FLOATS:
            continue
        array = tensor.numpy()
        size += array.size
        zeros += array.size - int(np.count_nonzero(array))
    return zeros / max(size, 1)


def _with_features(material: _Material, recipe: TrainingRecipe) -> _Material:
    """Return the material with all that is compared, and a teacher that gives it."""
    taps = find_taps(material.student, material.teacher, recipe.features)
    compared = dataclasses.replace(
        material.compared,
        taps=tuple(taps),
        attributed=tuple(_attributed(material, recipe, taps)),
    )
    live = material.outputs.live(compared, recipe)
    return dataclasses.replace(material, compared=compared, live=live)


def _attributed(
    material: _Material, recipe: TrainingRecipe, taps: list[Tap]
) -> list[Tap]:
    """Return the features whose attribution maps are compared.

    Errors: RefusedError where no output has classes, or no feature has places to tell apart.
    """
    if not recipe.attribution or recipe.preset == "block":
        return []
    check_classes(material.compared.heads[0])
    found = taps or find_taps(material.student, material.teacher, [AUTO])
    example = material.samples.take(material.split.train[:2], most=2)[0]
    module = to_torch(
        material.student,
        train=False,
        taps=[tap.student for tap in found],
        qat="off",
    )
    with torch.no_grad():
        values = module.run(example.feeds)
    placed = with_places(found, values)
    if not placed:
        raise RefusedError(
            "finetune.attribution",
            "no feature that both graphs have is a map",
            "name some by features=[student_value=teacher_value], or leave attribution out",
        )
    return placed


def _is_quantized(model: ir.Model) -> bool:
    op_types: set[str] = set()
    for graph in graphs_of(model):
        op_types.update(node.op_type for node in graph)
    return not op_types.isdisjoint(QUANT_OPS)


def _batches_stand_for_all(recipe: TrainingRecipe, material: _Material) -> bool:
    """True if normalizations may go by batches: of many rows, of one process."""
    samples = material.samples
    if samples.ragged or material.group.size > 1:
        return False
    units = len(material.split.train)
    rows = round(units * samples.rows_per_unit())
    return batch_rows(recipe, rows) >= LEAST_BATCH


# the learner and its objective


def _learner(material: _Material, recipe: TrainingRecipe) -> Learner:
    def feeds(rows: int) -> Iterator[Arrays]:
        for example in material.examples(MEASURED_ROWS, rows):
            yield example.feeds

    # a graph is sized by what it was once; another teacher's channels say nothing of it
    original = material.teacher if recipe.preset == "recover" else None
    learner = Learner(
        material.student,
        material.compared.student_names(),
        recipe,
        material.environment.originals,
        feeds,
        original,
    )
    learner.to(material.device.name)
    return learner


def _objective(
    material: _Material, recipe: TrainingRecipe, learner: Learner
) -> Objective:
    """Return the loss, after one example went through everything that the loop does with it."""
    compared = material.compared
    example = material.samples.take(material.split.train[:2], most=2)[0]
    values = learner.trains.run(example.feeds)
    targets = {}
    for name, value in material.live(example.feeds).items():
        tensor = torch.as_tensor(value)
        targets[name] = tensor.to(material.device.name)
    for head in compared.heads:
        own = values[head.student]
        theirs = targets[head.teacher]
        check_shapes(head, own.shape, theirs.shape)
    labelled = _uses_labels(material, recipe)
    if labelled or recipe.watch == "labels":
        _check_all_labels(material)
    if not labelled and not recipe.distill and not compared.taps:
        raise RefusedError(
            "finetune",
            "there is nothing to learn from: no teacher's loss and no labels",
            "give labelled data, or leave distill on",
        )
    if Augment.of(recipe):
        # called for its errors
        image_input(example)
    projections = projections_for(compared.taps, recipe, values, targets)
    _check_gradients(learner, compared.student_names(), values)
    return Objective(
        compared=compared,
        recipe=recipe,
        variance=_variances(material),
        labelled=labelled,
        projections=projections,
    )


def _check_all_labels(material: _Material) -> None:
    if not material.samples.labelled:
        raise RefusedError(
            "finetune.watch",
            "the data has no labels",
            "give labels, or watch=agreement",
        )
    head = material.compared.heads[0]
    for labels, answers in _labelled_answers(material):
        check_labels(labels, answers.shape, head)


def _labelled_answers(material: _Material) -> Iterator[tuple[Labels, Labels]]:
    """Yield labels, and the teacher's values that they belong to, piece by piece."""
    head = material.compared.heads[0]
    units = np.concatenate([material.split.train, material.split.held])
    for piece in material.samples.take(units, LABEL_ROWS):
        assert piece.labels is not None
        yield piece.labels, piece.targets[head.teacher]


def _uses_labels(material: _Material, recipe: TrainingRecipe) -> bool:
    return recipe.labels > 0 and material.samples.labelled


def _warnings(material: _Material, recipe: TrainingRecipe) -> list[str]:
    """Return a warning of labels that say something else than the teacher."""
    head = material.compared.heads[0]
    if not _uses_labels(material, recipe) or head.kind != "classes":
        return []
    wrong = 0
    count = 0
    for labels, answers in _labelled_answers(material):
        counted = labels != IGNORED_LABEL
        choices_of_teacher = answers.argmax(head.axis)
        other = choices_of_teacher != labels
        wrong += int((other & counted).sum())
        count += int(counted.sum())
    share = wrong / max(count, 1)
    if share < CONTRADICTED_SHARE or not recipe.distill:
        return []
    return [
        f"labels contradict the teacher on {share:.0%} of the samples: check that they are "
        "numbered as its classes are, or leave them out (labels=0)"
    ]


def _variances(material: _Material) -> dict[str, Scale]:
    """Return the variance of the teacher's values by name."""
    found: dict[str, Scale] = {}
    if material.compared.taps:
        (few, *_) = material.examples(FEATURE_ROWS, FEATURE_ROWS)
        live = material.live(few.feeds)
        found |= variances(live)
    # outputs are cached, so that more rows cost nothing: these replace the ones above
    (many, *_) = material.examples(MEASURED_ROWS, MEASURED_ROWS)
    return found | output_scales(many.targets)


def _check_gradients(
    learner: Learner, names: Sequence[str], values: Mapping[str, Any]
) -> None:
    """Raise RefusedError unless the compared values depend on some weight, at these rows."""
    probe: Tensor = None
    for name in names:
        value = values[name]
        if not value.requires_grad:
            continue
        # weighted at random: a plain sum of softmax outputs, say, has a gradient of zero
        weighted = value * torch.randn_like(value)
        total = weighted.sum()
        probe = total if probe is None else probe + total
    found: Sequence[Any] = ()
    if probe is not None:
        found = torch.autograd.grad(
            outputs=probe,
            inputs=learner.parameters(),
            allow_unused=True,
        )
    if any(gradient is not None and bool(gradient.any()) for gradient in found):
        return
    cuts = {f"{cut.node}: {cut.reason}" for cut in learner.trains.provenance.cuts}
    shown = "; ".join(sorted(cuts)[:CUTS_SHOWN])
    problem = "no weight is reached by a gradient"
    if shown:
        problem += f" ({shown})"
    raise RefusedError(
        "finetune",
        problem,
        "train a graph whose outputs follow from its weights by differentiable operations",
    )


def _checkpoint(
    material: _Material, recipe: TrainingRecipe, learner: Learner
) -> Checkpoint | None:
    environment = material.environment
    if environment.checkpoints is None:
        return None
    samples = material.samples
    processes = material.group.size
    return Checkpoint(
        folder=environment.checkpoints,
        parameters=dict(learner.runs.named_parameters()),
        recipe=recipe,
        seed=environment.seed,
        data=f"{samples.rows} rows in {samples.units} units, {processes} processes",
    )
