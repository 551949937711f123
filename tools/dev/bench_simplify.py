"""Compare `simplify` with onnxslim and onnxsim on real models: nodes, size, equality, latency; and
time a long chain.

    python tools/dev/bench_simplify.py [--data FOLDER] [--only TEXT] [--seconds 2] [--no-peers]
                                       [--no-latency]

FOLDER (default: $ONNX_OPT_DATA, else ../shared/data beside the repository) holds `models/` and
`loaders.py`. Nodes are counted over all graphs, Constant nodes included; `(n)` is without them.
`error` is the largest difference from the original's outputs, as a fraction of the largest output;
`noise` is that of the original with ONNX Runtime's optimizer off, the measure of what such an error
means. `latency` is the time of the result over that of the original, interleaved in this process. A
peer that is not installed or fails says so in its cell.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import helper
from onnx_opt.passes._core.context import NullContext
from onnx_opt.passes._core.graph import all_nodes
from onnx_opt.passes.simplify import Simplify
from rich.console import Console
from rich.table import Table

CHAIN = 20_000
Feeds = dict[str, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    root = Path(__file__).resolve().parents[2]
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("ONNX_OPT_DATA", root / "../shared/data")),
    )
    parser.add_argument(
        "--only", default="", help="models whose file name contains this text"
    )
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="of latency measurement per model"
    )
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--no-latency", action="store_true")
    options = parser.parse_args()
    onnxruntime.set_default_logger_severity(3)
    paths = [
        p
        for p in sorted((options.data / "models").glob("*.onnx"))
        if options.only in p.name
    ]
    if not paths:
        sys.exit(
            f"error: {options.data / 'models'}: no models\n  fix: give --data FOLDER "
            "or set ONNX_OPT_DATA"
        )
    table = Table(title="simplify: nodes (without Constants)")
    for column in (
        "model",
        "input",
        "ours",
        "onnxslim",
        "onnxsim",
        "bytes",
        "error",
        "noise",
        "latency",
        "seconds",
    ):
        table.add_column(
            column, justify="left" if column == "model" else "right", overflow="fold"
        )
    loaders = _loaders(options.data)
    for path in paths:
        table.add_row(path.stem, *_row(path, list(_feeds(path.stem, loaders)), options))
        print(f"{path.stem}: done", file=sys.stderr)
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)
    console.print(_chain_line())


def _row(path: Path, feeds: list[Feeds], options: argparse.Namespace) -> list[str]:
    original = onnx.load(path)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / path.name
        start = time.perf_counter()
        model = ir.load(path)
        Simplify().run(model, NullContext())
        ir.save(model, out)
        seconds = time.perf_counter() - start
        peers = (
            ["", ""]
            if options.no_peers
            else [_peer(_onnxslim, path), _peer(_onnxsim, path)]
        )
        sessions = [_session(path), _session(out)]
        error, noise = (
            _error(sessions, feeds),
            _error([sessions[0], _session(path, optimize=False)], feeds),
        )
        latency = (
            ""
            if options.no_latency
            else f"{_latency(sessions, feeds[0], options.seconds):.2f}x"
        )
        size = out.stat().st_size / path.stat().st_size
    figures = [
        f"{size:.3f}x",
        f"{error:.1e}",
        f"{noise:.1e}",
        latency,
        f"{seconds:.1f}",
    ]
    return [_nodes(original), _nodes(ir.to_proto(model)), *peers, *figures]


def _session(path: Path, optimize: bool = True) -> Any:
    options = onnxruntime.SessionOptions()
    if not optimize:
        options.graph_optimization_level = (
            onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        )
    return onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"]
    )


def _nodes(proto: onnx.ModelProto) -> str:
    ops = [node.op_type for node in all_nodes(ir.from_proto(proto))]
    return f"{len(ops)} ({len(ops) - ops.count('Constant')})"


def _peer(simplify: Callable[[Path], onnx.ModelProto], path: Path) -> str:
    try:
        return _nodes(simplify(path))
    except ImportError:
        return "not installed"
    except Exception as error:  # a peer's failure is a result of this benchmark
        return f"{type(error).__name__}: {str(error)[:60]}"


def _onnxslim(path: Path) -> onnx.ModelProto:
    import onnxslim

    return onnxslim.slim(onnx.load(path))


def _onnxsim(path: Path) -> onnx.ModelProto:
    import onnxsim

    return onnxsim.simplify(onnx.load(path))[0]


def _error(sessions: list[Any], feeds: list[Feeds]) -> float:
    worst = 0.0
    for feed in feeds:
        wanted, got = (session.run(None, feed) for session in sessions)
        for a, b in zip(wanted, got, strict=True):
            if a.shape != b.shape or a.dtype != b.dtype:
                return float("inf")
            if a.size:
                difference = np.abs(a.astype(np.float64) - b).max()
                worst = max(worst, float(difference / max(np.abs(a).max(), 1e-30)))
    return worst


def _latency(sessions: list[Any], feed: Feeds, seconds: float) -> float:
    """Median time of the second over the first; both warmed up, then by turns in both orders."""
    for session in sessions * 3:
        session.run(None, feed)
    times: list[list[float]] = [[], []]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 10:
        for index in (0, 1, 1, 0):
            start = time.perf_counter()
            sessions[index].run(None, feed)
            times[index].append(time.perf_counter() - start)
    return statistics.median(times[1]) / statistics.median(times[0])


def _loaders(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("loaders", folder / "loaders.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _feeds(stem: str, loaders: ModuleType) -> Iterator[Feeds]:
    """Three batches of real data where there is a loader; two batch sizes of made-up but sensible
    data elsewhere.
    """
    names = {
        "cifar10": "cifar10_calib",
        "efficientnet": "imagenet_calib",
        "minilm": "stsb_calib",
        "ch_PP-OCRv4_rec": "ocr_calib",
        "ch_PP-OCRv4_det": "ocr_calib",
    }
    loader = next(
        (name for prefix, name in names.items() if stem.startswith(prefix)), None
    )
    random = np.random.default_rng(0)
    if loader is not None:
        for index, (feed, _) in enumerate(getattr(loaders, loader)()):
            if index == 3:
                return
            if "det" in stem:  # whole pages: lines of text below each other
                yield {
                    "x": np.tile(
                        np.concatenate(list(feed["x"][:6]), axis=1)[None],
                        (index + 1, 1, 1, 1),
                    )
                }
            else:
                yield feed
    for batch in () if loader is not None else (1, 3):
        if stem.startswith("magika"):
            yield {"bytes": random.integers(0, 257, (batch, 2048)).astype(np.int32)}
        else:
            for rate, window in (
                ((16000, 576),) if "16k" in stem else ((16000, 576), (8000, 288))
            ):
                sound = np.sin(np.arange(batch * window) / 9).reshape(batch, window)
                yield {
                    "input": sound.astype(np.float32),
                    "sr": np.array(rate, np.int64),
                    "state": random.normal(0, 0.1, (2, batch, 128)).astype(np.float32),
                }


def _chain_line() -> str:
    """Time `simplify` on a chain of Relu and Add nodes that it builds itself."""
    nodes = []
    for index in range(CHAIN):
        inputs = [f"v{index}"] if index % 2 else [f"v{index}", "one"]
        nodes.append(
            helper.make_node("Relu" if index % 2 else "Add", inputs, [f"v{index + 1}"])
        )
    ports = [
        helper.make_tensor_value_info(name, 1, ["n", 4]) for name in ("v0", f"v{CHAIN}")
    ]
    one = helper.make_tensor("one", 1, [1], [1.0])
    graph = helper.make_graph(nodes, "chain", ports[:1], ports[1:], [one])
    model = ir.from_proto(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10
        )
    )
    start = time.perf_counter()
    Simplify().run(model, NullContext())
    return (
        f"chain of {CHAIN} nodes: {time.perf_counter() - start:.1f} s, {len(model.graph)} "
        "nodes left"
    )


if __name__ == "__main__":
    main()
