"""A step of `finetune` beside the same step of a hand-written torch module, interleaved.

    python tools/dev/bench_training.py [--only resnet20,minilm,…] [--steps 12] [--threads 2]
                                       [--precision float32] [--json FILE]

Both train the same pruned graph from the same weights, with the same teacher, losses, optimizer
and batch. Ours is the pass's own loop. Before steps are timed, outputs and losses of both are
compared in float32 on the first batch. Times are medians; the ratio is that of medians. Models
whose files are not there (ONNX_OPT_DATA) are made here, with random weights, and marked so;
MiniLM is left out then.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import psutil
import torch
from bench_data import data_folder, shared_batches
from numpy.typing import NDArray
from onnx_opt import load, optimize
from onnx_opt.frontends.from_torch import from_torch
from onnx_opt.frontends.training.learner import Learner
from onnx_opt.frontends.training.loop import Loop
from onnx_opt.frontends.training.prepare import training_session
from onnx_opt.frontends.training.session import Environment, TrainingSession
from onnx_opt.passes._core.training_recipe import TrainingRecipe
from onnx_opt.runtime.hardware import cpu_name
from onnx_opt.runtime.worker import Worker
from onnx_opt.tools._run.context import Sessions
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from torch import nn
from training_peers import (
    EfficientNetLite0,
    HandWritten,
    LineReader,
    OutputAlone,
    ResNet,
    SentenceEncoder,
    Values,
)

Array = NDArray[Any]
Feeds = dict[str, Array]
Tensors = Mapping[str, torch.Tensor]

GATES = (0, 2, 3, 1)
"""Places in ONNX (input, output, forget, cell) of torch's gates (input, forget, cell, output)."""


@dataclass(frozen=True)
class Case:
    """A model, its data and its recipe.

    `file`: of the shared models. `make`: the hand-written module, with normalizations or without.
    `shape`: of a row where data are made up. `recipe`: besides the budget. `rows`: of data.
    `makeable`: the module's own export has weights where `fill` looks for them.
    """

    name: str
    file: str
    loader: str
    make: Callable[[bool], nn.Module]
    shape: tuple[int, ...]
    recipe: Mapping[str, Any]
    rows: int
    makeable: bool = True

    @property
    def path(self) -> Path:
        """The shared file."""
        return data_folder() / "models" / f"{self.file}.onnx"


CHANGED = {"flip": True, "shift": 4, "labels": 0.0}
IMAGES = {**CHANGED, "features": ("auto",)}
CASES = [
    Case(
        "resnet20",
        "cifar10_resnet20",
        "cifar10_train",
        lambda norm: ResNet(3, norm),
        (3, 32, 32),
        {**IMAGES, "batch": 128},
        rows=1200,
    ),
    Case(
        "resnet56",
        "cifar10_resnet56",
        "cifar10_train",
        lambda norm: ResNet(9, norm),
        (3, 32, 32),
        {**IMAGES, "batch": 64},
        rows=600,
    ),
    Case(
        "lite0",
        "efficientnet_lite0",
        "imagenet_calib",
        EfficientNetLite0,
        (3, 224, 224),
        {**CHANGED, "batch": 16},
        rows=100,
    ),
    Case(
        "minilm",
        "minilm_l6_v2",
        "stsb_calib",
        lambda norm: SentenceEncoder(),
        (32,),
        {"labels": 0.0, "batch": 32},
        rows=256,
        makeable=False,
    ),
    Case(
        "crnn",
        "",
        "",
        LineReader,
        (1, 32, 128),
        {"labels": 0.0, "batch": 32},
        rows=256,
    ),
]


@dataclass
class Row:
    """A line of the table; times in ms of a step, CPU seconds of all processes likewise."""

    name: str
    ours: float
    theirs: float
    ratio: float
    ours_cpu: float
    theirs_cpu: float
    cpu_ratio: float
    samples_per_second: float
    output_difference: float
    loss_difference: float
    made_here: bool


# models and data


def model_of(case: Case, folder: Path) -> tuple[Path, bool]:
    """The file of a case, and True where it was made here."""
    if case.path.exists():
        return case.path, False
    torch.manual_seed(0)
    module = OutputAlone(case.make(False)).eval()
    example = [torch.from_numpy(value) for value in made_rows(case, 4).values()]
    names = list(made_rows(case, 1))
    shapes = {name: {0: "batch"} for name in names}
    model = from_torch(
        module, tuple(example), input_names=names, dynamic_shapes=shapes, verify=False
    )
    path = folder / f"{case.name}.onnx"
    ir.save(model, path)
    return path, True


def made_rows(case: Case, rows: int) -> Feeds:
    """Feeds made up for a case."""
    random = np.random.default_rng(0)
    if len(case.shape) == 1:
        tokens = random.integers(1000, 20000, (rows, *case.shape))
        return {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
    images = random.normal(size=(rows, *case.shape))
    return {"input": images.astype(np.float32)}


def prepared(path: Path, folder: Path) -> tuple[Path, ir.Model]:
    """A model simplified, as a file, and pruned, as the student."""
    plain = folder / "plain.onnx"
    pruned = folder / "pruned.onnx"
    quiet = {"bench": False, "force": True, "pack": False}
    optimize(path, "simplify", out=plain, **quiet)
    optimize(plain, "prune(sparsity=0.5)", out=pruned, **quiet)
    return plain, load(pruned)


def batches_of(case: Case, made_here: bool) -> Iterator[tuple[Feeds, None]]:
    """Data of a case, without labels."""
    if made_here:
        for _ in range(0, case.rows, 32):
            yield made_rows(case, 32), None
        return
    seen = 0
    for feeds, _ in shared_batches(case.loader):
        if seen >= case.rows:
            return
        seen += len(next(iter(feeds.values())))
        yield feeds, None


# weights of hand-written modules


def load_teacher(module: nn.Module, model: ir.Model) -> None:
    """Give a module the weights of a graph."""
    tensors = {}
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        tensors[name] = torch.from_numpy(value.const_value.numpy().copy())
    fill(module, model, tensors)


def load_student(module: nn.Module, learner: Learner) -> dict[str, torch.Tensor]:
    """Give a module what a learner starts from; returns masks by name of its parameters."""
    tensors = {}
    for name, parameter in learner.runs.named_parameters():
        tensors[learner.runs.origins[name].name] = parameter.detach().clone()
    fill(module, learner.model, tensors)
    masks = {}
    for name, parameter in module.named_parameters():
        pruned = parameter == 0
        if parameter.ndim > 1 and pruned.any():
            masks[name] = ~pruned
    return masks


def fill(module: nn.Module, model: ir.Model, tensors: Tensors) -> None:
    """Copy constants into layers, in the order of their nodes."""
    layers = layers_of(module)
    nodes = [node for node in model.graph if node.op_type in OPERATORS]
    linear = [node for node in nodes if is_weighted(node, tensors)]
    with torch.no_grad():
        for layer, node in zip(layers, linear, strict=True):
            FILLERS[type(layer)](layer, node, tensors)
        if isinstance(module, SentenceEncoder):
            embeddings = module.bert.embeddings
            embeddings.word_embeddings.weight.copy_(tensors["we.weight"])
            embeddings.position_embeddings.weight.copy_(tensors["pe.weight"])
            embeddings.token_type_embeddings.weight[0].copy_(tensors["select"])


OPERATORS = (
    "Conv",
    "BatchNormalization",
    "Gemm",
    "MatMul",
    "LSTM",
    "LayerNormalization",
)


def layers_of(module: nn.Module) -> list[nn.Module]:
    """Layers with weights that nodes have as well."""
    return [layer for layer in module.modules() if type(layer) in FILLERS]


def is_weighted(node: ir.Node, tensors: Tensors) -> bool:
    """True for a node that reads a constant as its weight."""
    return any(value is not None and value.name in tensors for value in node.inputs)


def constant(node: ir.Node, index: int, tensors: Tensors) -> torch.Tensor:
    """A constant that a node reads."""
    value = node.inputs[index]
    assert value is not None
    return tensors[value.name or ""]


def fill_by_name(
    layer: nn.Module, names: Sequence[str], node: ir.Node, tensors: Tensors, start: int
) -> None:
    """Copy the inputs of a node, from one on, into tensors of a layer."""
    for offset, name in enumerate(names):
        if getattr(layer, name) is not None:
            getattr(layer, name).copy_(constant(node, start + offset, tensors))


def fill_conv(layer: nn.Module, node: ir.Node, tensors: Tensors) -> None:
    fill_by_name(layer, ("weight", "bias"), node, tensors, 1)


def fill_norm(layer: nn.Module, node: ir.Node, tensors: Tensors) -> None:
    names = ("weight", "bias", "running_mean", "running_var")
    fill_by_name(layer, names, node, tensors, 1)


def fill_layer_norm(layer: nn.Module, node: ir.Node, tensors: Tensors) -> None:
    layer.eps = node.attributes.get_float("epsilon", 1e-5)
    fill_by_name(layer, ("weight", "bias"), node, tensors, 1)


def fill_linear(layer: nn.Module, node: ir.Node, tensors: Tensors) -> None:
    weight = constant(node, 1, tensors)
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0)
    layer.weight.copy_(weight if transposed else weight.T)
    if node.op_type == "Gemm":
        layer.bias.copy_(constant(node, 2, tensors))
        return
    # a bias that is added by a node of its own
    (user, _), *_ = node.outputs[0].uses()
    for value in user.inputs:
        if value is not None and value.name in tensors:
            layer.bias.copy_(tensors[value.name])


def fill_lstm(layer: nn.Module, node: ir.Node, tensors: Tensors) -> None:
    for direction, suffix in enumerate(("", "_reverse")):
        biases = constant(node, 3, tensors)[direction].chunk(2)
        found = {
            "weight_ih": constant(node, 1, tensors)[direction],
            "weight_hh": constant(node, 2, tensors)[direction],
            "bias_ih": biases[0],
            "bias_hh": biases[1],
        }
        for name, value in found.items():
            gates = value.chunk(4)
            ordered = torch.cat([gates[place] for place in GATES])
            getattr(layer, f"{name}_l0{suffix}").copy_(ordered)


FILLERS: dict[type[nn.Module], Callable[[Any, ir.Node, Tensors], None]] = {
    nn.Conv2d: fill_conv,
    nn.BatchNorm2d: fill_norm,
    nn.LayerNorm: fill_layer_norm,
    nn.Linear: fill_linear,
    nn.LSTM: fill_lstm,
}


# the two trainings


def hand_written(case: Case, session: TrainingSession) -> HandWritten:
    """The hand-written training that starts where a session starts."""
    recipe = session.recipe
    learner = session.learner
    student = case.make(learner.normalized is not None)
    teacher = case.make(False)
    load_teacher(teacher, session.teacher)
    masks = load_student(student, learner)
    objective = session.objective
    compared = objective.compared
    (head,) = compared.heads
    names = [head.teacher, *(tap.teacher for tap in compared.taps)]
    return HandWritten(
        student=student,
        teacher=teacher,
        rate=1e-4,
        half=session.device.half,
        variances=[objective.variance[name] for name in names],
        loss="kl" if head.kind == "classes" else "mse",
        temperature=recipe.temperature,
        logit_mse=recipe.logit_mse,
        clip=recipe.clip,
        changed=recipe.shift,
        kept=masks,
        matched=bool(compared.taps),
    )


class Inputs:
    """Inputs of the steps as tensors, and the teacher's values where they do not change."""

    def __init__(self, loop: Loop, theirs: HandWritten) -> None:
        session = loop.session
        self.loop = loop
        self.cached: dict[int, Values] = {}
        names = list(session.learner.runs.provenance.inputs)
        self.units: list[list[torch.Tensor]] = []
        for unit in range(session.samples.units):
            (example,) = session.samples.take(np.array([unit]), 1)
            self.units.append([torch.from_numpy(example.feeds[name]) for name in names])
        self.ragged = session.samples.ragged
        if not theirs.changed:
            for unit, inputs in enumerate(self.units):
                self.cached[unit] = theirs.ask(inputs)
        if not self.ragged:
            self.whole = [torch.cat(column) for column in zip(*self.units, strict=True)]
            if self.cached:
                self.targets = torch.cat([y for y, _ in self.cached.values()])

    def of_step(self, step: int) -> tuple[list[torch.Tensor], Values | None]:
        """Inputs and targets of a step."""
        units = self.loop.order.units(step)
        if self.ragged:
            (unit,) = units
            return self.units[unit], self.cached.get(int(unit))
        index = torch.from_numpy(units)
        targets: Values | None = None
        if self.cached:
            targets = self.targets[index], []
        return [column[index] for column in self.whole], targets


def differences(loop: Loop, theirs: HandWritten, inputs: Inputs) -> tuple[float, float]:
    """Largest difference of the outputs, over their size, and of the losses, in float32.

    On the first batch as it is, of the student as it learns and of the teacher.
    """
    session = loop.session
    units = loop.order.units(0)
    (example, *_) = session.samples.take(units, len(units))
    tensors, _ = inputs.of_step(0)
    with torch.no_grad():
        before = {k: v.clone() for k, v in theirs.student.state_dict().items()}
        own = theirs.student(*tensors)
        told = theirs.teacher(*tensors)
        # running statistics moved
        theirs.student.load_state_dict(before)
        state = session.learner.state()
        values = session.learner.learn(example.feeds)
        session.learner.restore(state)
    asked = session.live_teacher
    targets = example.targets if asked is None else asked(example.feeds)
    targets = {name: torch.as_tensor(value) for name, value in targets.items()}
    compared = session.objective.compared
    (head,) = compared.heads
    pairs = [(values[head.student], own[0]), (targets[head.teacher], told[0])]
    for index, tap in enumerate(compared.taps):
        pairs.append((values[tap.student], own[1][index]))
        pairs.append((targets[tap.teacher], told[1][index]))
    worst = 0.0
    for ours, his in pairs:
        error = (ours - his).abs().max() / his.abs().max()
        worst = max(worst, float(error))
    loss = session.objective(student=values, teacher=targets, labels=None)
    other = theirs.loss_of(own, told)
    return worst, float((loss - other).abs() / other.abs())


def measured(case: Case, steps: int, threads: int, precision: str) -> Row:
    """Measure one case."""
    with tempfile.TemporaryDirectory() as scratch, Worker() as worker:
        path, made_here = model_of(case, Path(scratch))
        path, student = prepared(path, Path(scratch))
        teacher = load(path)
        recipe = TrainingRecipe(
            steps=10 * steps,
            threads=threads,
            checks=1,
            precision=precision,
            **case.recipe,
        )
        environment = Environment(runtime=Sessions(worker, threads))
        batches = batches_of(case, made_here)
        exact = TrainingRecipe(
            **{**asdict(recipe), "precision": "float32", "teacher": "torch"}
        )
        with training_session(student, teacher, batches, exact, environment) as session:
            loop = Loop(session)
            theirs = hand_written(case, session)
            inputs = Inputs(loop, theirs)
            distance, loss = differences(loop, theirs, inputs)
        batches = batches_of(case, made_here)
        with training_session(
            student, teacher, batches, recipe, environment
        ) as session:
            loop = Loop(session)
            theirs = hand_written(case, session)
            inputs = Inputs(loop, theirs)
            ours, own = interleaved(loop, theirs, inputs, steps)
    return row_of(case, loop, ours, own, distance, loss, made_here)


Times = list[tuple[float, float]]
"""Seconds of the clock and of CPUs, of each step."""


def interleaved(
    loop: Loop, theirs: HandWritten, inputs: Inputs, steps: int
) -> tuple[Times, Times]:
    """Times of both, one step of each in turn; the first two are dropped."""
    own: Times = []
    other: Times = []
    for step in range(steps + 2):
        tensors, targets = inputs.of_step(step)
        own.append(timed(partial(loop.step, 0.5)))
        other.append(timed(partial(theirs.step, tensors, targets)))
    assert loop.account.stop is None, loop.account.stop
    return own[2:], other[2:]


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds that a call takes, of the clock and of CPUs."""
    before = cpu_seconds()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start, cpu_seconds() - before


def cpu_seconds() -> float:
    """CPU seconds of this process and its children, so far."""
    own = psutil.Process()
    total = 0.0
    for process in (own, *own.children(recursive=True)):
        times = process.cpu_times()
        total += times.user + times.system
    return total


def row_of(
    case: Case,
    loop: Loop,
    ours: Times,
    theirs: Times,
    distance: float,
    loss: float,
    made_here: bool,
) -> Row:
    """The line of a case."""
    own, own_cpu = medians(ours)
    other, other_cpu = medians(theirs)
    return Row(
        name=case.name,
        ours=own * 1e3,
        theirs=other * 1e3,
        ratio=own / other,
        ours_cpu=own_cpu,
        theirs_cpu=other_cpu,
        cpu_ratio=own_cpu / other_cpu,
        samples_per_second=loop.batch / own,
        output_difference=distance,
        loss_difference=loss,
        made_here=made_here,
    )


def medians(times: Times) -> tuple[float, float]:
    """Median seconds of the clock, and of CPUs."""
    wall, cpu = zip(*times, strict=True)
    return statistics.median(wall), statistics.median(cpu)


def table_of(rows: Sequence[Row]) -> Table:
    """As markdown."""
    table = Table(box=MARKDOWN)
    heads = (
        "model",
        "ours, ms",
        "torch, ms",
        "ratio",
        "CPU ratio",
        "samples/s",
        "outputs",
        "loss",
    )
    for head in heads:
        table.add_column(head)
    for row in rows:
        name = row.name
        if row.made_here:
            name += " (made here)"
        table.add_row(
            name,
            f"{row.ours:.0f}",
            f"{row.theirs:.0f}",
            f"{row.ratio:.2f}",
            f"{row.cpu_ratio:.2f}",
            f"{row.samples_per_second:.0f}",
            f"{row.output_difference:.1e}",
            f"{row.loss_difference:.1e}",
        )
    return table


def main() -> None:
    """Measure the chosen cases, printing each as it is done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="names of cases, by commas")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    chosen = set(filter(None, arguments.only.split(",")))
    rows = []
    for case in CASES:
        if not case.makeable and not case.path.exists():
            print(f"{case.name} is left out: {case.path} is missing")
        elif not chosen or case.name in chosen:
            row = measured(
                case, arguments.steps, arguments.threads, arguments.precision
            )
            rows.append(row)
            print(row, flush=True)
    load_average, *_ = os.getloadavg()
    console = Console(width=140)
    console.print(
        f"{cpu_name()}, torch with {torch.backends.cpu.get_cpu_capability()}, "
        f"{arguments.threads} threads, precision {arguments.precision}, "
        f"load {load_average:.1f}"
    )
    console.print(table_of(rows))
    if arguments.json:
        text = json.dumps([asdict(row) for row in rows], indent=2)
        arguments.json.write_text(text)


if __name__ == "__main__":
    main()
