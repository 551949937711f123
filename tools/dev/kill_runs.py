"""Kill runs at random points: the old output or the new one must be there, whole.

    python tools/dev/kill_runs.py [--runs 200] [--seed 0]

A run writes over an existing output; both come with and without external data, and SIGKILL comes at
a random moment. Then the output must load and be one of the two models, weight by weight, and what
the killed run left, beside the output and in the folder for temporary files, must be gone once the
next run begins. One in eight has a second run on the same output beside it, which must succeed.
Most runs are forks of this process, which has everything imported, so that kills hit the work; one
in twenty is a fresh process, one in five has ONNX Runtime's child process. Prints counts; exits
with 1 if anything is damaged or left.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx_opt.frontends.onnx_file import check_output, load
from onnx_opt.passes._core.scratch import remove_dead_folders
from onnx_opt.tools.cli import main as command_line
from onnx_opt.tools.optimize import optimize

assert optimize  # imported before the forks, which would import it each

ROWS = 512
"""Rows and columns of a weight: files of 3 MB, so that some kills hit the writing."""


@dataclass(frozen=True)
class How:
    """A way to run: as a fresh process, and with models run to check them."""

    fresh: bool = False
    verified: bool = False

    def arguments(self) -> list[str]:
        """Words of the command line."""
        words = ["source.onnx", "-o", "out.onnx", "--passes", "prune(sparsity=0.5)"]
        words += ["--no-bench", "--no-pack", "--quiet"]
        return words if self.verified else [*words, "--verify", "never"]

    def start(self, folder: Path) -> int:
        """Start a run in `folder`; return its process id."""
        if self.fresh:
            command = [sys.executable, "-m", "onnx_opt", *self.arguments()]
            process = subprocess.Popen(
                command,
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"TMPDIR": str(folder / "tmp")},
            )
            # waited for by its id, as the forks are
            process.returncode = 0
            return process.pid
        child = os.fork()
        if child:
            return child
        _be_the_run(folder, self.arguments())
        return 0


def _be_the_run(folder: Path, arguments: list[str]) -> None:
    """Be a run, in a fork, and end with it."""
    code = 1
    try:
        os.chdir(folder)
        tempfile.tempdir = str(folder / "tmp")
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        command_line.main(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


class Trial:
    """Runs over one kind of former output, to one kind of new output."""

    def __init__(self, folder: Path, old: bool, new: bool) -> None:
        self.folder = folder
        self.out = folder / "out.onnx"
        (folder / "tmp").mkdir(parents=True)
        write_model(folder / "source.onnx", 1, old)
        self._run_to_end()
        self.old = fingerprint(self.out)
        self.former = {
            path.name: path.read_bytes() for path in self._output_files(self.out)
        }
        for path in (folder / "source.onnx", folder / "source.onnx.data"):
            path.unlink(missing_ok=True)
        write_model(folder / "source.onnx", 2, new)
        begin = time.perf_counter()
        self._run_to_end()
        self.seconds = time.perf_counter() - begin
        self.new = fingerprint(self.out)
        self.restore()
        self.given = self._names()

    def restore(self) -> None:
        """Put the former output back."""
        for path in self._output_files(self.out):
            path.unlink(missing_ok=True)
        for name, content in self.former.items():
            (self.folder / name).write_bytes(content)

    def kill_one(self, how: How, moment: float, beside: bool) -> tuple[str, list[str]]:
        """Kill one run `moment` seconds after its start.

        Returns the state of the output, and what is wrong.
        """
        wrong = []
        run = how.start(self.folder)
        second = How().start(self.folder) if beside else None
        time.sleep(moment)
        os.kill(run, signal.SIGKILL)
        _, status = os.waitpid(run, 0)
        if second is not None and os.waitpid(second, 0)[1] != 0:
            wrong.append("the run beside the killed one failed")
        state = self.state()
        if state == "damaged" or (beside and state != "new"):
            wrong.append(f"the output is {state}")
        outcome = f"killed, output {state}"
        if not os.WIFSIGNALED(status):
            outcome = "ended before the kill"
        elif self._left():
            outcome += ", files left for the next run"
        if how.verified:
            # its child process ends when it misses its parent, and is then a dead run, too
            time.sleep(1.5)
        self._begin_next_run()
        wrong += [f"the next run leaves {name}" for name in self._left()]
        if self.state() != state:
            wrong.append("the next run's beginning changes the output")
        self.restore()
        return outcome, wrong

    def state(self) -> str:
        """Name of the model that the output is: "old", "new" or "damaged"."""
        try:
            found = fingerprint(self.out)
        # whatever it is, the output is not whole
        except Exception as error:
            print(f"  {type(error).__name__}: {error}")
            return "damaged"
        return {self.new: "new", self.old: "old"}.get(found, "damaged")

    def _run_to_end(self) -> None:
        _, status = os.waitpid(How().start(self.folder), 0)
        if status:
            raise RuntimeError(f"an undisturbed run ends with status {status}")

    def _begin_next_run(self) -> None:
        """Do what every run does at its beginning."""
        check_output(self.out)
        tempfile.tempdir = str(self.folder / "tmp")
        remove_dead_folders()

    def _left(self) -> list[str]:
        """Files that were not there before, and are none of the output's."""
        output = {path.name for path in self._output_files(self.out)}
        return sorted(self._names() - self.given - output)

    def _names(self) -> set[str]:
        inside = {f"tmp/{path.name}" for path in (self.folder / "tmp").iterdir()}
        return inside | {path.name for path in self.folder.iterdir()}

    def _output_files(self, model: Path) -> list[Path]:
        """The model, and the files that its external data is in."""
        if not model.exists():
            return []
        names = set()
        for tensor in onnx.load_model(
            model, load_external_data=False
        ).graph.initializer:
            place = {entry.key: entry.value for entry in tensor.external_data}
            names.add(place.get("location", model.name))
        return [model, *(model.with_name(name) for name in names - {model.name})]


def write_model(path: Path, seed: int, external: bool) -> None:
    """A model of three weights, in one file or with its weights beside it."""
    rng = np.random.default_rng(seed)
    weights = []
    nodes = []
    for index in range(3):
        values = rng.normal(size=(ROWS, ROWS)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{index}"))
        names = [f"h{index}", f"w{index}"]
        nodes.append(helper.make_node("MatMul", names, [f"h{index + 1}"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("h0", TensorProto.FLOAT, ["N", ROWS])],
        [helper.make_tensor_value_info("h3", TensorProto.FLOAT, ["N", ROWS])],
        weights,
    )
    opsets = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    location = f"{path.name}.data" if external else None
    onnx.save(model, path, save_as_external_data=external, location=location)


def fingerprint(model: Path) -> str:
    """Hash of all weights; it does not depend on the data file's name.

    Errors: whatever loading raises for a model that is not whole.
    """
    digest = hashlib.sha256()
    for name, value in sorted(load(model).graph.initializers.items()):
        assert value.const_value is not None
        digest.update(name.encode() + value.const_value.tobytes())
    return digest.hexdigest()


def main() -> int:
    """Run the trials and print counts; 1 if anything is damaged or left."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    counts: collections.Counter[str] = collections.Counter()
    faulty = 0
    with tempfile.TemporaryDirectory() as scratch:
        kinds = [(False, False), (False, True), (True, False), (True, True)]
        trials = [
            Trial(Path(scratch, str(index)), old, new)
            for index, (old, new) in enumerate(kinds)
        ]
        for number in range(arguments.runs):
            trial = trials[number % len(trials)]
            how = How(fresh=number % 20 == 19, verified=number % 5 == 4)
            # starting, and running the model, take longer than a fork's work
            life = trial.seconds + 3.0 * how.fresh + 2.0 * how.verified
            moment = rng.uniform(0, 1.2) * life
            outcome, wrong = trial.kill_one(how, moment, beside=number % 8 == 7)
            counts[outcome] += 1
            faulty += bool(wrong)
            for fault in wrong:
                print(f"run {number}, killed after {moment:.2f} s: {fault}")
    print(f"{arguments.runs} runs, {faulty} with a damaged output or files left")
    for outcome, count in sorted(counts.items()):
        print(f"  {count:4} {outcome}")
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
