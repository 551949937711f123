"""Measure large models as whole processes: time against `cp`, CPU seconds and peak memory of prune,
quant and simplify.

    python tools/dev/bench_scale.py [--gib 2] [--repeats 3] [--dir FOLDER] [--only prune,quant]

Builds a stack of 4096 x 4096 float32 MatMuls with external data, and a chain of 20,000 nodes, in a
temporary folder that is removed at the end. Steps are interleaved, so that a slow moment of the
machine hits all of them. `cp` leaves its copy in the page cache; a model is safe on disk before it
gets its name, hence the second yardstick, cp + fsync (--dir /dev/shm takes the disk out). Peak
memory is what the kernel counted for the process and its children (Linux).
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Nothing heavy is imported here: a child's peak memory starts at that of the process which forks
# it.

SIDE = 4096
CHAIN = 20_000
# seconds: a virtual machine gives freed memory back, so a step that starts at once gets it cheaper
SETTLE = 4.0
YARDSTICKS = ("cp", "cp + fsync")


@dataclass(frozen=True)
class Measure:
    """One run of one process: wall and CPU seconds, peak resident MB."""

    wall: float
    cpu: float
    peak_mb: float


def measure(command: Sequence[str]) -> Measure:
    """Run a command to its end. Errors: SystemExit with what it said if it fails."""
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            sys.exit(
                f"{' '.join(command)}: exit code "
                f"{process.returncode}\n{said.read().decode(errors='replace')}"
            )
    return Measure(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def build_stack(folder: Path, layers: int) -> None:
    """Y = x W1 W2 …: `layers` float32 weights of 64 MiB in stack.data, written one at a time."""
    import numpy as np
    from onnx import TensorProto, helper, save

    random = np.random.default_rng(0)
    weights, nodes, length = [], [], SIDE * SIDE * 4
    with open(folder / "stack.data", "wb") as file:
        for i in range(layers):
            file.write(
                (
                    random.standard_normal((SIDE, SIDE), np.float32)
                    / np.float32(SIDE**0.5)
                ).data
            )
            tensor = TensorProto(
                name=f"w{i}",
                data_type=TensorProto.FLOAT,
                dims=[SIDE, SIDE],
                data_location=TensorProto.EXTERNAL,
            )
            for key, value in (
                ("location", "stack.data"),
                ("offset", i * length),
                ("length", length),
            ):
                tensor.external_data.add(key=key, value=str(value))
            weights.append(tensor)
            nodes.append(
                helper.make_node(
                    "MatMul", [f"h{i}", f"w{i}"], [f"h{i + 1}"], name=f"layer{i}"
                )
            )
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", SIDE])
        for n in ("h0", f"h{layers}")
    ]
    graph = helper.make_graph(nodes, "stack", ends[:1], ends[1:], initializer=weights)
    opset = helper.make_opsetid("", 21)
    save(
        helper.make_model(graph, ir_version=10, opset_imports=[opset]),
        folder / "stack.onnx",
    )


def build_chain(folder: Path) -> None:
    """A chain of CHAIN nodes that no rule shortens but for its Identities."""
    from onnx import TensorProto, helper, save

    ops = ["Sigmoid", "Neg", "Add", "Identity"]
    nodes = []
    for i in range(CHAIN):
        op = ops[i % len(ops)]
        inputs = [f"h{i}", "b"] if op == "Add" else [f"h{i}"]
        nodes.append(helper.make_node(op, inputs, [f"h{i + 1}"], name=f"n{i}"))
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 8])
        for n in ("h0", f"h{CHAIN}")
    ]
    bias = helper.make_tensor("b", TensorProto.FLOAT, [8], [0.5] * 8)
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], initializer=[bias])
    opset = helper.make_opsetid("", 21)
    save(
        helper.make_model(graph, ir_version=10, opset_imports=[opset]),
        folder / "chain.onnx",
    )


def steps_of(folder: Path, out: Path) -> dict[str, list[str]]:
    """Steps to measure: name -> command; each writes into `out`."""
    tool = [sys.executable, "-m", "onnx_opt", "run"]
    flags = ["--no-bench", "--verify", "never", "--quiet", "-o", str(out / "out.onnx")]
    big = str(folder / "stack.onnx")
    return {
        "cp": ["cp", big, str(folder / "stack.data"), str(out)],
        "cp + fsync": [
            "sh",
            "-c",
            'cp "$0" "$1" "$2" && sync "$2"/*',
            big,
            str(folder / "stack.data"),
            str(out),
        ],
        "prune": [*tool, big, "--passes", "prune", *flags],
        "prune 2:4": [*tool, big, "--passes", "prune(pattern=2:4)", *flags],
        "prune model": [*tool, big, "--passes", "prune(scope=model)", *flags],
        "quant": [*tool, big, "--passes", "quant", *flags],
        "prune,quant": [*tool, big, "--passes", "prune,quant", *flags],
        "simplify chain": [
            *tool,
            str(folder / "chain.onnx"),
            "--passes",
            "simplify",
            *flags,
        ],
    }


def run_steps(
    steps: dict[str, list[str]], out: Path, repeats: int
) -> dict[str, list[Measure]]:
    """`repeats` interleaved rounds; before each step the output folder is emptied and SETTLE
    seconds pass.
    """
    measures: dict[str, list[Measure]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, command in steps.items():
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            os.sync()
            time.sleep(SETTLE)
            measures[name].append(measure(command))
    return measures


def table(measures: dict[str, list[Measure]]) -> str:
    """One line a step: medians of wall and CPU seconds, wall against both copies round by round,
    the highest peak.
    """
    lines = [
        f"{'step':<16}{'wall s':>9}{'min':>8}{'cpu s':>9}"
        f"{'x cp':>8}{'x cp+fsync':>12}{'peak MB':>9}"
    ]
    for name, runs in measures.items():
        plain, synced = (
            statistics.median(
                run.wall / copy.wall
                for run, copy in zip(runs, measures[yardstick], strict=True)
            )
            for yardstick in YARDSTICKS
        )
        walls = [run.wall for run in runs]
        cpu = statistics.median(run.cpu for run in runs)
        peak_mb = max(run.peak_mb for run in runs)
        lines.append(
            f"{name:<16}{statistics.median(walls):>9.2f}{min(walls):>8.2f}{cpu:>9.2f}"
            f"{plain:>8.2f}{synced:>12.2f}{peak_mb:>9.0f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--gib", type=float, default=2.0, help="size of the stack's weights (default 2)"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="interleaved rounds (default 3)"
    )
    parser.add_argument(
        "--dir",
        type=Path,
        help="where to make the temporary folder (needs about 3 times the size)",
    )
    parser.add_argument(
        "--only",
        default="prune,quant,simplify chain",
        help="steps, comma-separated; or all",
    )
    parser.add_argument(
        "--build", type=Path, help=argparse.SUPPRESS
    )  # the child that makes the models
    options = parser.parse_args()
    layers = max(round(options.gib * 16), 1)
    if options.build:
        build_stack(options.build, layers)
        build_chain(options.build)
        return
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        folder = Path(name)
        measure(
            [
                sys.executable,
                str(Path(__file__).resolve()),
                "--build",
                name,
                "--gib",
                str(options.gib),
            ]
        )
        steps = steps_of(folder, folder / "out")
        wanted = [*YARDSTICKS, *options.only.split(",")]
        if options.only != "all":
            unknown = [step for step in wanted if step not in steps]
            if unknown:
                parser.error(f"no step '{unknown[0]}'; choose among {', '.join(steps)}")
            steps = {step: steps[step] for step in wanted}
        print(
            f"{layers} x {SIDE} x {SIDE} float32 = {layers / 16:g} GiB; chain of {CHAIN} nodes; "
            f"{options.repeats} interleaved rounds, medians"
        )
        print(table(run_steps(steps, folder / "out", options.repeats)))


if __name__ == "__main__":
    main()
