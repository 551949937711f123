"""Bundles and batches on real models: what a deployment sees.

    python tools/dev/bench_bundles.py [--headers DIR] [--out DIR] [--only TEXT]
                                       [--skip-bundles] [--skip-batch]

Makes ResNet-20 and MiniLM in int8 and ResNet-56 in 1 bit (untrained: what is asked of it is a
bundle), packs each twice, and prints for each: if both bundles are the same bytes; the self-test by
its own run.py in a bare environment, which has onnxruntime and numpy alone; cold starts (session
and first run, in a fresh process) of the float original and of the bundle, with and without the
check of its digests; and how far the example in C++ is off, built with the header below --headers
(onnxruntime_c_api.h) and the library of the installed onnxruntime. Then a batch of `simplify` over
all shared models with one that is damaged, and the same again. Needs the shared data
(ONNX_OPT_DATA), and pip for the bare environment. Exits with 1 where something is not as it should.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
from bench_data import data_folder, source
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

DAMAGED = "damaged.onnx"
"""Model of the batch that is cut off in the middle."""

STARTS = 31
"""Cold starts of each, in turn: what troubles the machine troubles all alike."""

COLD_START = """
import json, sys, time
import numpy as np
import onnxruntime
sys.path.insert(0, sys.argv[1])
from run import Bundle, load_sample, read_manifest
folder = __import__("pathlib").Path(sys.argv[1])
feeds, _ = load_sample(folder, read_manifest(folder), 0)
start = time.perf_counter()
if sys.argv[2] == "original":
    session = onnxruntime.InferenceSession(sys.argv[3], providers=["CPUExecutionProvider"])
    session.run(None, feeds)
else:
    Bundle(folder, check=sys.argv[2] == "checked")(feeds)
print(json.dumps(1e3 * (time.perf_counter() - start)))
"""


@dataclass(frozen=True)
class Case:
    """A model of the shared data, the form that is packed, and the data to make it by."""

    model: str
    form: str
    passes: str
    calibration: str
    ort: str = "auto"

    @property
    def name(self) -> str:
        """Name of its row."""
        return f"{self.model}, {self.form}"


CASES = (
    Case("cifar10_resnet20", "int8", "quant", "cifar10_calib"),
    Case("minilm_l6_v2", "int8", "quant", "stsb_calib"),
    # bits are unpacked while the ONNX file loads, which takes longer than loading floats
    Case(
        "cifar10_resnet56",
        "1 bit",
        "quant(binary, measure=false)",
        "cifar10_calib",
        ort="yes",
    ),
)


@dataclass
class Bench:
    """Folders in which everything is made, and failures so far."""

    out: Path
    bare: Path
    headers: Path | None
    faults: list[str]

    def expect(self, holds: bool, problem: str) -> str:
        """`yes`, or `NO` and a fault that is told at the end."""
        if not holds:
            self.faults.append(problem)
        return "yes" if holds else "NO"


def onnx_opt(*words: Any) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    command = [sys.executable, "-m", "onnx_opt", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def require(done: subprocess.CompletedProcess[str]) -> str:
    """Return the stdout of a command. Errors: SystemExit where it failed."""
    if done.returncode:
        raise SystemExit(f"{done.args}\n{done.stdout}{done.stderr}")
    return done.stdout


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def make_bare_environment(folder: Path) -> None:
    """Make an environment with onnxruntime and numpy alone."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    wheels = [f"onnxruntime=={onnxruntime.__version__}", "numpy"]
    install = [str(python), "-m", "pip", "install", "-q", *wheels]
    require(subprocess.run(install, capture_output=True, text=True, check=False))


def measure(bench: Bench, case: Case) -> dict[str, Any]:
    """Figures of one model's bundle."""
    name = case.model
    original = data_folder() / "models" / f"{name}.onnx"
    data = source(case.calibration)
    model = bench.out / f"{name}.opt.onnx"
    words = [original, "-o", model, "--passes", case.passes, "--data", data]
    # forced: one bit loses too much without training
    require(onnx_opt(*words, "--no-bench", "-q", "--force"))
    places = [bench.out / f"{name}{end}" for end in ("", ".2", ".zip", ".2.zip")]
    for place in places:
        words = ["package", model, "-o", place, "--data", data, "--ort", case.ort]
        require(onnx_opt(*words, "-q"))
    first, second, zipped, zipped_again = places
    same = contents(first) == contents(second)
    same_archives = zipped.read_bytes() == zipped_again.read_bytes()
    unpacked = bench.out / f"{name}.unpacked"
    shutil.unpack_archive(zipped, unpacked)
    (folder,) = unpacked.iterdir()
    report = bare_selftest(bench, folder)
    cold = cold_starts(bench, folder, original)
    pairs = zip(cold["checked"], cold["original"], strict=True)
    ratio = statistics.median(own / other for own, other in pairs)
    return {
        "bundle": case.name,
        "zipped": megabytes(zipped.stat().st_size),
        "two builds the same": bench.expect(
            same and same_archives, f"{name}: other bytes"
        ),
        "self-test": report,
        **{f"ms, {kind}": f"{statistics.median(t):.0f}" for kind, t in cold.items()},
        "ratio": f"{ratio:.2f}",
        "no slower": bench.expect(ratio <= 1, f"{name}: a slower cold start"),
        "C++": cpp(bench, folder, name),
    }


def megabytes(count: int) -> str:
    """Bytes in MB of a million."""
    return f"{count / 1e6:.2f} MB"


def bare_selftest(bench: Bench, folder: Path) -> str:
    """Run the self-test in the bare environment, without anything of this package."""
    command = [str(bench.bare), "-I", str(folder / "run.py"), "--selftest", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return bench.expect(False, f"{folder.name}: {done.stderr}")
    report = json.loads(done.stdout)
    texts = []
    for model in report["models"]:
        errors = [own.get("max_abs", own.get("unequal")) for own in model["samples"]]
        kind = Path(model["file"]).suffix
        texts.append(f"{kind} off by {max(errors):.2g}")
    return ", ".join(texts)


def cold_starts(bench: Bench, folder: Path, original: Path) -> dict[str, list[float]]:
    """Times in ms of cold starts in fresh processes: of the original, and of the bundle."""
    kinds = ("original", "unchecked", "checked")
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(STARTS):
        for kind in kinds:
            words = [bench.bare, "-c", COLD_START, folder, kind, original]
            command = list(map(str, words))
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            times[kind].append(json.loads(require(done)))
    return times


def cpp(bench: Bench, folder: Path, name: str) -> str:
    """Build the example and run it."""
    if bench.headers is None:
        return "not built: no --headers"
    release = bench.out / "onnxruntime"
    if not release.exists():
        shutil.copytree(bench.headers, release / "include")
        (release / "lib").mkdir()
        capi = Path(onnxruntime.__file__).parent / "capi"
        (library,) = capi.glob("libonnxruntime.so.*")
        for link in ("libonnxruntime.so", "libonnxruntime.so.1"):
            (release / "lib" / link).symlink_to(library)
    build = bench.out / f"{name}.build"
    for words in (
        ["cmake", "-S", folder / "cpp", "-B", build, f"-DONNXRUNTIME_DIR={release}"],
        ["cmake", "--build", build],
    ):
        command = list(map(str, words))
        require(subprocess.run(command, capture_output=True, text=True, check=False))
    command = [str(build / "run_bundle"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    bench.expect(done.returncode == 0, f"{name}: C++ {done.stdout}{done.stderr}")
    errors = re.findall(r"off by ([^,]+)", done.stdout)
    worst = max(map(float, errors), default=0)
    return f"off by {worst:.2g}"


def batches(bench: Bench) -> list[dict[str, Any]]:
    """The batch twice, with an empty cache at first."""
    models = bench.out / "models"
    models.mkdir()
    sources = sorted((data_folder() / "models").glob("*.onnx"))
    for path in sources:
        shutil.copy(path, models)
    content = sources[0].read_bytes()
    (models / DAMAGED).write_bytes(content[: len(content) // 2])
    os.environ["ONNX_OPT_CACHE"] = str(bench.out / "cache")
    rows = []
    for run in ("first", "second"):
        start = time.perf_counter()
        words = ["batch", models, "-o", bench.out / run, "-p", "simplify", "-j", 2]
        done = onnx_opt(*words, "--json")
        seconds = time.perf_counter() - start
        facts = json.loads(done.stdout)
        done_by = {"first": (len(sources), 0), "second": (0, len(sources))}
        is_right = (
            done.returncode == 1
            and facts["failed"] == [DAMAGED]
            and (facts["done"], facts["cached"]) == done_by[run]
        )
        rows.append(
            {
                "run": run,
                "exit code": done.returncode,
                "done": facts["done"],
                "from the cache": facts["cached"],
                "failed": ", ".join(facts["failed"]),
                "seconds": round(seconds, 1),
                "as it should": bench.expect(is_right, f"batch, {run} run"),
            }
        )
    ratio = rows[1]["seconds"] / rows[0]["seconds"]
    rows[1]["of the first"] = f"{ratio:.3f}"
    rows[0]["of the first"] = ""
    bench.expect(ratio < 0.1, f"the second batch took {ratio:.2f} of the first's time")
    return rows


def show(rows: Sequence[dict[str, Any]], title: str) -> None:
    """Print rows as a table of Markdown."""
    table = Table(*rows[0], title=title, box=MARKDOWN)
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=240, highlight=False).print(table)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--headers", type=Path, help="folder of onnxruntime_c_api.h")
    parser.add_argument("--out", type=Path, help="folder to make everything in")
    parser.add_argument("--only", default="", help="part of the names of bundles")
    parser.add_argument("--skip-bundles", action="store_true")
    parser.add_argument("--skip-batch", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = options.out or Path(scratch)
        out.mkdir(parents=True, exist_ok=True)
        bench = Bench(out, out / "bare" / "bin" / "python", options.headers, [])
        if not options.skip_bundles:
            make_bare_environment(out / "bare")
            chosen = [case for case in CASES if options.only in case.name]
            rows = [measure(bench, case) for case in chosen]
            show(rows, f"bundles, onnxruntime {onnxruntime.__version__}")
        if not options.skip_batch:
            show(batches(bench), "batch of all models, two at a time")
    for fault in bench.faults:
        print(f"error: {fault}", file=sys.stderr)
    return 1 if bench.faults else 0


if __name__ == "__main__":
    sys.exit(main())
