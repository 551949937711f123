"""From a torch module to ONNX files: both exporters, opsets 13 to 23, BatchNormalization kept or
folded.

A variant is a word: `dynamo18`, `dynamo23-raw` (not optimized), `legacy13`, `legacy17-bn`
(BatchNormalization and every constant chain kept), each optionally with `-static` (every axis
fixed).
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

BATCH = 2


@dataclass(frozen=True)
class Input:
    """An input of a net: shape with the batch, `high` > 0 for integers below it, `open` names its
    dynamic axes.
    """

    shape: tuple[int, ...]
    high: int = 0
    open: tuple[str | None, ...] = ("batch",)

    def sample(self) -> Tensor:
        return (
            torch.randint(0, self.high, self.shape)
            if self.high
            else torch.randn(self.shape)
        )


@dataclass(frozen=True)
class Net:
    """An architecture and its variants. `fresh`: keep norms and biases as torch initializes them,
    equal and shared.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: tuple[Input, ...]
    variants: str
    fresh: bool = False

    def module(self) -> nn.Module:
        """The module in evaluation mode, the same weights every time."""
        torch.manual_seed(0)
        module = self.make().eval()
        return module if self.fresh else perturb(module)


def image(channels: int = 3, size: int = 32) -> tuple[Input, ...]:
    return (Input((BATCH, channels, size, size)),)


def tokens(
    length: int = 16, vocabulary: int = 200, open_length: bool = False
) -> tuple[Input, ...]:
    return (
        Input(
            (BATCH, length),
            vocabulary,
            ("batch", "length") if open_length else ("batch",),
        ),
    )


def sequence(length: int = 16, width: int = 32) -> tuple[Input, ...]:
    return (Input((BATCH, length, width)),)


def signal(channels: int = 16, length: int = 64) -> tuple[Input, ...]:
    return (Input((BATCH, channels, length)),)


def perturb(module: nn.Module) -> nn.Module:
    """Move every constant parameter and statistic off 0 and 1, so that a wrong channel shows in the
    output.
    """
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif (
                tensor.is_floating_point()
                and not name.endswith("fixed")
                and tensor.eq(tensor.flatten()[0]).all()
            ):
                tensor.add_(torch.empty_like(tensor).uniform_(-0.4, 0.4))
    return module


def graphs_of(nets: Sequence[Net]) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """`net.variant` and its writer, for every variant of every net."""
    for net in nets:
        for variant in net.variants.split():
            yield (
                f"{net.name}.{variant}",
                lambda path, net=net, variant=variant: write(net, variant, path),
            )


def write(net: Net, variant: str, path: Path) -> None:
    """Export `net` as `variant` says."""
    words = variant.split("-")
    module, samples = net.module(), tuple(i.sample() for i in net.inputs)
    axes: list[dict[int, str]] = [
        {}
        if "static" in words
        else {axis: name for axis, name in enumerate(i.open) if name}
        for i in net.inputs
    ]
    export = _dynamo if words[0].startswith("dynamo") else _legacy
    with _quiet():
        export(module, samples, axes, int(words[0][-2:]), words, path)
    _strip_traces(path)


def _dynamo(
    module: nn.Module,
    samples: tuple[Tensor, ...],
    axes: list[dict[int, str]],
    opset: int,
    words: list[str],
    path: Path,
) -> None:
    shapes = tuple(dict.fromkeys(named, torch.export.Dim.DYNAMIC) for named in axes)
    torch.onnx.export(
        module,
        samples,
        path,
        dynamo=True,
        opset_version=opset,
        optimize="raw" not in words,
        dynamic_shapes=shapes,
        input_names=_names(samples),
        external_data=False,
        verbose=False,
    )


def _legacy(
    module: nn.Module,
    samples: tuple[Tensor, ...],
    axes: list[dict[int, str]],
    opset: int,
    words: list[str],
    path: Path,
) -> None:
    kept = "bn" in words
    mode = torch.onnx.TrainingMode.PRESERVE if kept else torch.onnx.TrainingMode.EVAL
    torch.onnx.export(
        module,
        samples,
        path,
        dynamo=False,
        opset_version=opset,
        training=mode,
        do_constant_folding=not kept,
        input_names=_names(samples),
        dynamic_axes=dict(zip(_names(samples), axes, strict=True)),
    )


def _names(samples: Sequence[Tensor]) -> list[str]:
    """`x0` for floats, `ids0` for integers, `mask1` for zeros and ones: names by which feeds can be
    made up.
    """
    stems = [
        "x" if t.is_floating_point() else "mask" if t.max() < 2 else "ids"
        for t in samples
    ]
    return [f"{stem}{index}" for index, stem in enumerate(stems)]


def _strip_traces(path: Path) -> None:
    """Drop the exporter's stack traces, which name local folders and outweigh the weights."""
    model = onnx.load(path)
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for item in [
        *model.graph.value_info,
        *model.graph.input,
        *model.graph.output,
        *model.functions,
        model.graph,
    ]:
        del item.metadata_props[:]
    onnx.save(model, path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters warn of every trace-time constant and print each step."""
    logging.disable(logging.WARNING)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        torch.no_grad(),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
