"""Measure prune-channels on a large transformer with external weights: seconds and peak memory.

    python tools/dev/bench_channels_scale.py [--layers 12] [--width 768] [--hidden 3072]
        [--heads 12] [--vocab 30000] [--ratio 0.5] [--dir FOLDER] [--json]

Builds a decoder without a mask: embeddings that the last layer shares, `layers` times attention
with separate Q, K and V and a feed-forward net, LayerNormalization before each, dynamic batch and
length. No data, no run of the model: what is measured is loading, the pass (solver, scores,
surgery) and writing. Peak memory is that of the whole process.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

POSITIONS = 512
"""Longest text that the table of positions serves."""


@dataclass(frozen=True)
class Size:
    """Sizes of the transformer."""

    layers: int = 12
    width: int = 768
    hidden: int = 3072
    heads: int = 12
    vocab: int = 30_000


@dataclass(frozen=True)
class Figures:
    """Measurements: counts, seconds, MB of peak memory.

    `solve_s`: up to the groups; `run_s`: the whole pass, which solves again.
    """

    params: int
    params_after: int
    macs: int
    macs_after: int
    groups: int
    load_s: float
    solve_s: float
    run_s: float
    save_s: float
    peak_mb: float


class _Builder:
    """Nodes and weights of a graph; weights go into one file as they come."""

    def __init__(self, folder: Path) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(0)
        self._file = open(folder / "transformer.data", "wb")  # noqa: SIM115 - closed by `close`

    def close(self) -> None:
        self._file.close()

    def weight(self, name: str, *shape: int) -> str:
        array = self._random.standard_normal(shape, np.float32) / np.float32(
            shape[0] ** 0.5
        )
        tensor = TensorProto(
            name=name,
            data_type=TensorProto.FLOAT,
            dims=shape,
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (
            ("location", "transformer.data"),
            ("offset", self._file.tell()),
            ("length", array.nbytes),
        ):
            tensor.external_data.add(key=key, value=str(value))
        self._file.write(array.data)
        self.weights.append(tensor)
        return name

    def integers(self, name: str, values: Sequence[int]) -> str:
        if all(tensor.name != name for tensor in self.weights):
            self.weights.append(
                helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
            )
        return name

    def number(self, name: str, value: float) -> str:
        if all(tensor.name != name for tensor in self.weights):
            self.weights.append(
                helper.make_tensor(name, TensorProto.FLOAT, [], [value])
            )
        return name

    def op(self, kind: str, name: str, *inputs: str, **attributes: object) -> str:
        self.nodes.append(
            helper.make_node(kind, inputs, [name], name=f"node.{name}", **attributes)
        )
        return name

    def linear(self, name: str, x: str, rows: int, columns: int) -> str:
        product = self.op(
            "MatMul", f"{name}.product", x, self.weight(f"{name}.weight", rows, columns)
        )
        return self.op("Add", name, product, self.weight(f"{name}.bias", columns))

    def norm(self, name: str, x: str, width: int) -> str:
        scale = self.weight(f"{name}.scale", width)
        shift = self.weight(f"{name}.shift", width)
        return self.op("LayerNormalization", name, x, scale, shift, axis=-1)


def build(folder: Path, size: Size) -> Path:
    """Write transformer.onnx and transformer.data; returns the former's path."""
    b = _Builder(folder)
    x = b.op("Gather", "embedded", b.weight("tokens", size.vocab, size.width), "ids")
    length = b.op("Shape", "length", "ids", start=1, end=2)
    positions = b.op(
        "Slice",
        "positions",
        b.weight("places", POSITIONS, size.width),
        b.integers("zero", [0]),
        length,
        b.integers("axis", [0]),
    )
    x = b.op("Add", "start", x, positions)
    for i in range(size.layers):
        normed = b.norm(f"{i}.norm1", x, size.width)
        mixed = _attention(b, f"{i}.attention", normed, size)
        x = b.op("Add", f"{i}.mixed", x, mixed)
        normed = b.norm(f"{i}.norm2", x, size.width)
        up = b.linear(f"{i}.up", normed, size.width, size.hidden)
        active = b.op("Gelu", f"{i}.gelu", up)
        down = b.linear(f"{i}.down", active, size.hidden, size.width)
        x = b.op("Add", f"{i}.out", x, down)
    head = b.op("Transpose", "head", "tokens", perm=[1, 0])
    b.op("MatMul", "logits", b.norm("norm", x, size.width), head)
    b.close()
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])
    logits = helper.make_tensor_value_info(
        "logits", TensorProto.FLOAT, ["batch", "length", size.vocab]
    )
    graph = helper.make_graph(
        b.nodes, "transformer", [ids], [logits], initializer=b.weights
    )
    path = folder / "transformer.onnx"
    opsets = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, ir_version=10, opset_imports=opsets)
    onnx.save(model, path)
    return path


def _attention(b: _Builder, name: str, x: str, size: Size) -> str:
    depth = size.width // size.heads
    split = b.integers("split_heads", [0, 0, size.heads, depth])
    parts = {}
    for part, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        made = b.linear(f"{name}.{part}", x, size.width, size.width)
        cut = b.op("Reshape", f"{name}.{part}.cut", made, split)
        parts[part] = b.op("Transpose", f"{name}.{part}.heads", cut, perm=order)
    scores = b.op("MatMul", f"{name}.scores", parts["q"], parts["k"])
    scaled = b.op("Mul", f"{name}.scaled", scores, b.number("scale", depth**-0.5))
    mixed = b.op(
        "MatMul",
        f"{name}.mixed",
        b.op("Softmax", f"{name}.shares", scaled, axis=-1),
        parts["v"],
    )
    rows = b.op("Transpose", f"{name}.rows", mixed, perm=[0, 2, 1, 3])
    joined = b.op(
        "Reshape", f"{name}.joined", rows, b.integers("join_heads", [0, 0, -1])
    )
    return b.linear(f"{name}.out", joined, size.width, size.width)


def measure(path: Path, out: Path, ratio: float) -> Figures:
    """Load, prune and save once."""
    from onnx_opt.frontends.onnx_file import load, save
    from onnx_opt.passes._core.context import NullContext
    from onnx_opt.passes._core.normalize import normalize
    from onnx_opt.passes.prune_channels import PruneChannels, channel_groups

    clock = [time.perf_counter()]
    model = load(path)
    normalize(model)
    clock.append(time.perf_counter())
    # without norms no weight is read: that is the solver alone
    groups = channel_groups(model, norms=False).groups
    clock.append(time.perf_counter())
    stats = PruneChannels(ratio=ratio).run(model, NullContext()).stats
    clock.append(time.perf_counter())
    save(model, out)
    clock.append(time.perf_counter())
    load_s, solve_s, run_s, save_s = (b - a for a, b in pairwise(clock))
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Figures(
        params=int(stats["params_before"]),
        params_after=int(stats["params_after"]),
        macs=int(stats["macs_before"]),
        macs_after=int(stats["macs_after"]),
        groups=len(groups),
        load_s=load_s,
        solve_s=solve_s,
        run_s=run_s,
        save_s=save_s,
        peak_mb=peak_mb,
    )


def main(words: Sequence[str] | None = None) -> Figures:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in asdict(Size()).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--dir", type=Path, help="Where the temporary folder is made.")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(words)
    size = Size(given.layers, given.width, given.hidden, given.heads, given.vocab)
    with tempfile.TemporaryDirectory(dir=given.dir) as name:
        folder = Path(name)
        figures = measure(build(folder, size), folder / "pruned.onnx", given.ratio)
    if given.json:
        print(json.dumps(asdict(figures)))
    else:
        f = figures
        print(
            f"{f.params:,} -> {f.params_after:,} parameters, {f.macs:,} -> "
            f"{f.macs_after:,} MACs (dims as 1), "
            f"{f.groups} groups"
        )
        print(
            f"load {f.load_s:.2f} s, solver alone {f.solve_s:.2f} s, the whole pass "
            f"{f.run_s:.2f} s, "
            f"save {f.save_s:.2f} s, peak {f.peak_mb:.0f} MB"
        )
    return figures


if __name__ == "__main__":
    main()
