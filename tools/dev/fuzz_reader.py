"""Fuzz the reader of ONNX files: every input is loaded or refused, and what loads can be saved.

    python tools/dev/fuzz_reader.py [--runs 20000] [--seconds 600] [--seed 0] [--plain]

Guided by coverage where atheris is installed (pip install atheris), by chance elsewhere or with
`--plain`. It starts from the sound models of `hostile_cases.damage`. Anything but a model or a
RefusedError, or more than 5 seconds for one input, ends it with 1 and keeps the input as
`crash.onnx` in the working folder.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from hostile_cases.damage import cut, flipped, seeds, spliced

SECONDS = 5.0
"""Seconds of CPU that one input may take, however the machine is loaded."""


class Reader:
    """Loads inputs from a folder of its own, and counts what comes of them."""

    def __init__(self, folder: Path) -> None:
        # not before atheris instruments what is imported
        from onnx_opt import RefusedError
        from onnx_opt.frontends.onnx_file import load, save

        self.load, self.save, self.refused = load, save, RefusedError
        self.path = folder / "m.onnx"
        self.out = folder / "out.onnx"
        self.counts: Counter[str] = Counter()
        # what onnx_ir says of odd models is no fault
        logging.disable(logging.WARNING)

    def take(self, content: bytes) -> None:
        """Read one input. Errors: whatever is wrong."""
        self.path.write_bytes(content)
        begin = time.process_time()
        try:
            model = self.load(self.path)
        except self.refused as error:
            self.counts["refused"] += 1
            shown = error.problem + error.fix
            if not shown.isprintable() or not error.problem or not error.fix:
                raise AssertionError(f"not two lines: {shown!r}") from error
        else:
            self.counts["loaded"] += 1
            self.save(model, self.out)
            self.load(self.out)
        taken = time.process_time() - begin
        if taken > SECONDS:
            raise AssertionError(f"{taken:.1f} s for {len(content)} bytes")


def fuzz_by_chance(reader: Reader, runs: int, seconds: float, seed: int) -> None:
    """Change sound models at random, and what was changed before and still loaded."""
    rng = random.Random(seed)
    pool = list(seeds().values())
    end = time.monotonic() + seconds
    for _ in range(runs):
        if time.monotonic() > end:
            break
        change = rng.choices([flipped, spliced, cut], [6, 4, 1])[0]
        content = change(rng.choice(pool), rng)
        before = reader.counts["loaded"]
        if not content:
            continue
        try:
            reader.take(content)
        except BaseException:
            Path("crash.onnx").write_bytes(content)
            raise
        if reader.counts["loaded"] > before and len(pool) < 500:
            pool.append(content)


def fuzz_by_coverage(runs: int, seconds: float, seed: int) -> int:
    """Let atheris change the models, in a process of its own, which it ends itself."""
    with tempfile.TemporaryDirectory() as corpus:
        for name, content in seeds().items():
            Path(corpus, name).write_bytes(content)
        command = [sys.executable, __file__, "--guided", corpus, f"-runs={runs}"]
        options = [
            f"-max_total_time={int(seconds)}",
            f"-seed={seed + 1}",
            "-exact_artifact_path=crash.onnx",
            "-rss_limit_mb=4096",
            f"-timeout={int(20 * SECONDS)}",
            "-print_final_stats=1",
        ]
        return subprocess.run(command + options, check=False).returncode


def _be_guided(arguments: list[str]) -> None:
    """Be the process that atheris runs."""
    import atheris

    with atheris.instrument_imports(include=["onnx_opt"]):
        import onnx_opt.frontends.onnx_file
    assert onnx_opt
    folder = tempfile.mkdtemp()
    reader = Reader(Path(folder))

    def take(content: bytes) -> None:
        # nothing at all is refused before anything is read
        if content:
            reader.take(content)

    atheris.Setup([sys.argv[0], *arguments], take)
    atheris.Fuzz()


def main() -> int:
    """Fuzz and print counts; 1 if something is wrong."""
    if sys.argv[1:2] == ["--guided"]:
        _be_guided(sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="without atheris")
    arguments = parser.parse_args()
    limits = (arguments.runs, arguments.seconds, arguments.seed)
    has_atheris = importlib.util.find_spec("atheris") is not None
    if has_atheris and not arguments.plain:
        return 1 if fuzz_by_coverage(*limits) else 0
    with tempfile.TemporaryDirectory() as folder:
        reader = Reader(Path(folder))
        fuzz_by_chance(reader, *limits)
    print(f"{reader.counts.total()} inputs: {dict(reader.counts)}, 0 faults")
    return 0


if __name__ == "__main__":
    sys.exit(main())
