"""Performance of whole processes beside `cp` and peers, and against a stored baseline.

    python tools/dev/bench_performance.py [--gib 0.5] [--repeats 3] [--only small,chain,large]
                                          [--envs DIR] [--dir FOLDER] [--check | --write]

    python tools/dev/bench_peers.py --install onnxslim,onnxsim,ort      # the peers, once

`small`: a model of 8 kB. `chain`: 20,000 nodes. `large`: a stack of MatMuls with external data.
Steps are interleaved, the least CPU seconds of the rounds count: what else the machine does only
adds to them. CPU seconds and peak memory are those of a process and its children. Peers that are
not installed are named; one that runs past --timeout has no figures.

Other machines are faster or slower: the baseline, performance.json, holds CPU seconds relative to
those of a fixed program, the yardstick, run in the same rounds. `--check` fails where a step takes
more than CPU_SLACK times its CPU share, or more memory than PEAK_SLACK allows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench_scale import SETTLE, Measure, build_chain, build_stack
from peers import Peer, missing, python_of

BASELINE = Path(__file__).with_name("performance.json")
CPU_SLACK = 1.3
"""Ratio of CPU shares from which a step counts as slower: busy cores share caches and clocks."""
PEAK_SLACK = 1.15
PEAK_FLOOR_MB = 20.0
"""Megabytes that a peak may grow by besides: allocators differ from run to run."""

YARDSTICK = """
import numpy as np
rows = np.random.default_rng(0).standard_normal((64, 1 << 16))
for _ in range(4):
    np.sort(rows, axis=1)
    (rows * 1.5 + rows).sum()
total = 0
for i in range(3_000_000):
    total += i & 7
"""

WARM = """
import sys, onnx_opt
for _ in range(int(sys.argv[2])):
    onnx_opt.optimize(sys.argv[1], "simplify")
"""
FEW_CALLS, MANY_CALLS = 10, 50

DYNAMIC = """
import sys
from onnxruntime.quantization import quantize_dynamic
quantize_dynamic(sys.argv[1], sys.argv[2], per_channel=True, use_external_data_format=True)
"""

SMALL = """
<ir_version: 10, opset_import: ["" : 21]>
small (float[N, 32] x) => (float[N, 8] y)
{
    h0 = MatMul (x, w1)
    h1 = Add (h0, b1)
    h2 = Relu (h1)
    h3 = Identity (h2)
    h4 = MatMul (h3, w2)
    y = Add (h4, b2)
}
"""


# by identity: a command is a list, which has no hash
@dataclass(frozen=True, eq=False)
class Step:
    """One process to measure. `peer`: environment that it needs; "" is this interpreter."""

    group: str
    name: str
    command: list[str]
    peer: str = ""

    @property
    def is_ours(self) -> bool:
        """True for what the baseline holds."""
        return not self.peer and self.group != "yardstick"


def build_models(folder: Path, gib: float) -> None:
    """small.onnx, chain.onnx and stack.onnx with its data."""
    import numpy as np
    import onnx.parser
    from onnx import numpy_helper, save

    model = onnx.parser.parse_model(SMALL)
    random = np.random.default_rng(0)
    shapes = {"w1": (32, 48), "b1": (48,), "w2": (48, 8), "b2": (8,)}
    for name, shape in shapes.items():
        values = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    save(model, folder / "small.onnx")
    build_chain(folder)
    build_stack(folder, max(round(gib * 16), 1))


def steps_of(folder: Path, out: Path, envs: Path) -> list[Step]:
    """Every step, the yardsticks first; each writes into `out`."""
    python = sys.executable
    small, chain, stack = (
        str(folder / f"{name}.onnx") for name in ("small", "chain", "stack")
    )
    data = str(folder / "stack.data")
    target = str(out / "out.onnx")

    def ours(model: str, passes: str, *flags: str) -> list[str]:
        words = [python, "-m", "onnx_opt", "run", model, "--passes", passes]
        return [*words, "--quiet", "-o", target, *flags]

    def of_peer(name: str, *words: str) -> list[str]:
        return [str(python_of(Peer(name, name, name, ""), envs)), *words]

    unchecked = ("--verify", "never", "--no-bench")
    sync = 'cp "$0" "$1" "$2" && sync "$2"/*'
    steps = [
        Step("yardstick", "yardstick", [python, "-c", YARDSTICK]),
        Step("small", "simplify", ours(small, "simplify")),
        Step("small", "simplify, unchecked", ours(small, "simplify", *unchecked)),
    ]
    for calls in (FEW_CALLS, MANY_CALLS):
        command = [python, "-c", WARM, small, str(calls)]
        steps.append(Step("small", f"{calls} calls", command))
    steps.append(Step("chain", "simplify", ours(chain, "simplify", *unchecked)))
    for group, model in (("small", small), ("chain", chain)):
        slim = of_peer("onnxslim", "-m", "onnxslim", model, target)
        sim = of_peer("onnxsim", "-m", "onnxsim", model, target)
        steps += [
            Step(group, "onnxslim", slim, peer="onnxslim"),
            Step(group, "onnxsim", sim, peer="onnxsim"),
        ]
    steps += [
        Step("yardstick", "cp", ["cp", stack, data, str(out)]),
        Step("yardstick", "cp + fsync", ["sh", "-c", sync, stack, data, str(out)]),
    ]
    for passes in (
        "prune",
        "prune(sparsity=0.5)",
        "prune(sparsity=0.5, scope=model)",
        "quant(int8)",
        "quant(fp16)",
        "prune, quant(int8)",
    ):
        steps.append(Step("large", passes, ours(stack, passes, *unchecked)))
    checked = ours(stack, "quant(int8)", "--verify", "always", "--no-bench")
    dynamic = of_peer("ort", "-c", DYNAMIC, stack, target)
    steps += [
        Step("large", "quant(int8), checked", checked),
        Step("large", "quantize_dynamic", dynamic, peer="ort"),
    ]
    return steps


def measured(command: Sequence[str], timeout: float) -> Measure | str:
    """Run a command to its end; the reason where it gives no figures."""
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=said)
        try:
            status, cpu, peak_mb = _waited(process, timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return f"stopped after {timeout:g} s"
        wall = time.perf_counter() - start
        if status:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            return (lines or [f"exit code {status}"])[-1][:100]
    return Measure(wall, cpu, peak_mb)


def _waited(
    process: subprocess.Popen[bytes], timeout: float
) -> tuple[int, float, float]:
    """Exit code, CPU seconds and peak megabytes of a process and the children it waited for."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            cpu = usage.ru_utime + usage.ru_stime
            return process.returncode, cpu, usage.ru_maxrss / 1024
        time.sleep(0.01)
    raise subprocess.TimeoutExpired(process.args, timeout)


def run_rounds(
    steps: Sequence[Step], out: Path, repeats: int, timeout: float
) -> tuple[dict[Step, list[Measure]], dict[Step, str]]:
    """Figures of each step in every round, and the reasons of those without any."""
    figures: dict[Step, list[Measure]] = {step: [] for step in steps}
    reasons: dict[Step, str] = {}
    for _ in range(repeats):
        for step in steps:
            if step in reasons:
                continue
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            if step.group in ("large", "yardstick"):
                os.sync()
                time.sleep(SETTLE)
            found = measured(step.command, timeout)
            if isinstance(found, str):
                reasons[step] = found
            else:
                figures[step].append(found)
    return figures, reasons


@dataclass(frozen=True)
class Figure:
    """One step over all rounds: least wall and CPU seconds, CPU as a share of the yardstick's.

    `peak_mb`: the highest.
    """

    wall: float
    cpu: float
    share: float
    peak_mb: float


def summaries(figures: Mapping[Step, Sequence[Measure]]) -> dict[Step, Figure]:
    """The figures that are shown and stored; the calls of a warm process as one step."""
    least = {
        step: min(run.cpu for run in runs) for step, runs in figures.items() if runs
    }
    yardstick = next(cpu for step, cpu in least.items() if step.name == "yardstick")
    found = {}
    for step, cpu in least.items():
        runs = figures[step]
        wall = min(run.wall for run in runs)
        peak_mb = max(run.peak_mb for run in runs)
        found[step] = Figure(wall, cpu, cpu / yardstick, peak_mb)
    return _with_one_call(found, yardstick)


def _with_one_call(found: dict[Step, Figure], yardstick: float) -> dict[Step, Figure]:
    """Replace many and few calls of one process by one call, which no start is a part of."""
    by_name = {step.name: step for step in found}
    few = by_name.get(f"{FEW_CALLS} calls")
    many = by_name.get(f"{MANY_CALLS} calls")
    if few is None or many is None:
        return found
    calls = MANY_CALLS - FEW_CALLS
    before = found.pop(few)
    after = found.pop(many)
    cpu = (after.cpu - before.cpu) / calls
    wall = (after.wall - before.wall) / calls
    step = Step("small", "simplify, one more call", [])
    return {**found, step: Figure(wall, cpu, cpu / yardstick, after.peak_mb)}


def table(
    found: Mapping[Step, Figure],
    reasons: Mapping[Step, str],
    stored: Mapping[str, Mapping[str, float]],
) -> str:
    """One line a step; `x cp + fsync` of wall seconds, `stored` is the share of the baseline."""
    copies = [
        figure.wall for step, figure in found.items() if step.name == "cp + fsync"
    ]
    header = f"{'group':<10}{'step':<36}{'wall s':>9}{'cpu s':>9}{'share':>8}"
    lines = [f"{header}{'stored':>8}{'x cp':>7}{'peak MB':>9}"]
    for step, figure in found.items():
        line = f"{step.group:<10}{step.name:<36}{figure.wall:>9.3f}{figure.cpu:>9.3f}"
        line += f"{figure.share:>8.3f}{stored_share(step, stored):>8}"
        is_copied = bool(copies) and step.group == "large"
        line += f"{figure.wall / copies[0]:>7.2f}" if is_copied else " " * 7
        lines.append(f"{line}{figure.peak_mb:>9.0f}")
    for step, reason in reasons.items():
        lines.append(f"{step.group:<10}{step.name:<36} {reason}")
    return "\n".join(lines)


def stored_share(step: Step, stored: Mapping[str, Mapping[str, float]]) -> str:
    """CPU share of the baseline, "" where it has none."""
    known = stored.get(key_of(step))
    return f"{known['share']:.3f}" if known and not step.peer else ""


def key_of(step: Step) -> str:
    """Name of a step in the baseline."""
    return f"{step.group}: {step.name}"


def regressions(
    found: Mapping[Step, Figure], stored: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """Steps that got worse beyond noise, and those that the baseline lacks."""
    worse = []
    for step, figure in found.items():
        if not step.is_ours:
            continue
        known = stored.get(key_of(step))
        if known is None:
            worse.append(f"{key_of(step)}: not in {BASELINE.name}; run --write")
            continue
        if figure.share > CPU_SLACK * known["share"]:
            worse.append(
                f"{key_of(step)}: CPU share {figure.share:.3f}, {known['share']:.3f} stored"
            )
        if figure.peak_mb > PEAK_SLACK * known["peak_mb"] + PEAK_FLOOR_MB:
            worse.append(
                f"{key_of(step)}: peak {figure.peak_mb:.0f} MB, {known['peak_mb']:.0f} stored"
            )
    return worse


def stored_at(gib: float) -> dict[str, dict[str, float]]:
    """Steps of the baseline at this size; empty where it is of another."""
    if not BASELINE.exists():
        return {}
    content = json.loads(BASELINE.read_text())
    return dict(content["steps"]) if content["gib"] == gib else {}


def write_baseline(found: Mapping[Step, Figure], gib: float) -> None:
    """Store the figures of our own steps; those of groups that did not run stay."""
    steps = stored_at(gib)
    for step, figure in found.items():
        if step.is_ours:
            steps[key_of(step)] = {
                "share": round(figure.share, 3),
                "peak_mb": round(figure.peak_mb),
            }
    text = json.dumps({"gib": gib, "steps": steps}, indent=2)
    BASELINE.write_text(text + "\n")


def main() -> None:
    """Measure, show the table, and check or write the baseline."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Callable[..., object] = parser.add_argument
    add("--gib", type=float, default=0.5, help="size of the stack's weights")
    add("--repeats", type=int, default=3, help="interleaved rounds")
    add("--only", default="small,chain,large", help="groups, comma-separated")
    add("--envs", type=Path, default=Path.home() / ".cache" / "onnx-opt" / "peers")
    add("--dir", type=Path, help="where to make the temporary folder")
    add("--timeout", type=float, default=300, help="seconds that a step may take")
    # a child makes the models: numpy in this process would count as memory of every step
    add("--build", type=Path, help=argparse.SUPPRESS)
    add("--check", action="store_true", help="fail where something got worse")
    add("--write", action="store_true", help="store the figures as the baseline")
    options = parser.parse_args()
    if options.build:
        build_models(options.build, options.gib)
        return
    groups = {*options.only.split(","), "yardstick"}
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        folder = Path(name)
        gib = options.gib if "large" in groups else 0.0
        words = ["--build", name, "--gib", str(gib)]
        subprocess.run([sys.executable, __file__, *words], check=True)
        steps = steps_of(folder, folder / "out", options.envs)
        wanted = [step for step in steps if step.group in groups]
        reasons = {}
        for step in wanted:
            reason = missing(Peer(step.peer, "", step.peer, ""), options.envs)
            if step.peer and reason:
                reasons[step] = reason
        installed = [step for step in wanted if step not in reasons]
        figures, failed = run_rounds(
            installed, folder / "out", options.repeats, options.timeout
        )
    found = summaries(figures)
    stored = stored_at(options.gib)
    print(table(found, {**reasons, **failed}, stored))
    own_failures = [step.name for step in failed if step.is_ours]
    if own_failures:
        sys.exit(f"failed: {', '.join(own_failures)}")
    if options.write:
        write_baseline(found, options.gib)
    if options.check:
        worse = regressions(found, stored)
        print("\n".join(worse) or "nothing got worse than the baseline")
        sys.exit(1 if worse else 0)


if __name__ == "__main__":
    main()
