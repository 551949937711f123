"""Every form of file that we write, in the runtimes that people deploy to.

    pip install openvino
    npm install onnxruntime-web
    python tools/dev/arm64.py arm64
    ONNX_OPT_NODE_MODULES=node_modules ONNX_OPT_ARM64=arm64 \
        python tools/dev/bench_forms.py [--only NAME] [--json FILE]

Rows are forms of two small models (the demo's digit classifier, and two layers of an encoder),
columns runtimes. A cell has the distance of the runtime's outputs from those of ONNX Runtime's CPU
provider on the same file (SQNR in dB), the share of digits that it gets right, and the time of a
run over that of the float model in the same runtime; or why it did not run. Files are made for the
runtime's own target; an emulated CPU is given the first 100 rows, and tells no times.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_opt
from numpy.typing import NDArray
from other_runtimes import RUNTIMES, Ran, Runtime, in_onnxruntime
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

DEMO = Path(onnx_opt.__file__).parent / "tools" / "demo"

ENCODER = """
<ir_version: 8, opset_import: ["" : 17]>
encoder (float[batch, 64] x) => (float[batch, 32] y)
{
    a = MatMul (x, w1)
    b = Add (a, b1)
    c = Relu (b)
    y = MatMul (c, w2)
}
"""
WEIGHTS = {"w1": (64, 256), "b1": (256,), "w2": (256, 32)}

INFINITE_DB = 200.0
"""Distance (dB) that stands for outputs that are the same bit for bit."""


@dataclass(frozen=True)
class Form:
    """A form of file: the pipeline that makes it, and whether that is given data."""

    passes: str
    has_data: bool = True


FORMS = {
    "float": Form("simplify"),
    "int8": Form("quant(measure=false)"),
    "int8 at run time": Form("quant(dynamic, measure=false)", has_data=False),
    "4 bits": Form("quant(bits=4, measure=false)"),
    "4 bits, tables": Form("quant(bits=4, storage=table, measure=false)"),
    "4 bits, blocks": Form("quant(blocked, bits=4)"),
    "1 bit": Form("quant(binary, measure=false)"),
    "fp16": Form("quant(fp16)"),
    "channels": Form("prune-channels(ratio=0.3)"),
}


@dataclass(frozen=True)
class Subject:
    """A model with data to make forms by and to run them on; `labels`: None where it has none."""

    name: str
    path: Path
    calibration: Path
    feeds: dict[str, NDArray[Any]]
    labels: NDArray[Any] | None

    def head(
        self, rows: int | None
    ) -> tuple[dict[str, NDArray[Any]], NDArray[Any] | None]:
        """Feeds and labels of the first rows; None: of all."""
        feeds = {name: array[:rows] for name, array in self.feeds.items()}
        return feeds, None if self.labels is None else self.labels[:rows]


@dataclass(frozen=True)
class Cell:
    """One form in one runtime; `problem`: why it did not run, "" where it did."""

    model: str
    form: str
    runtime: str
    bytes: int
    sqnr_db: float | None = None
    top1: float | None = None
    ms: float | None = None
    problem: str = ""


def digits() -> Subject:
    """The demo's classifier, with the labelled digits that it was not trained on."""
    held_out = np.load(DEMO / "digits_test.npz")
    return Subject(
        "digits",
        DEMO / "digits_cnn.onnx",
        DEMO / "digits_calib.npz",
        {"image": held_out["image"].astype(np.float32)},
        held_out["labels"],
    )


def encoder(folder: Path) -> Subject:
    """Two layers of random weights, whose form matters and whose sense does not."""
    model = onnx.parser.parse_model(ENCODER)
    random = np.random.default_rng(0)
    for name, shape in WEIGHTS.items():
        weight = (random.normal(size=shape) / 8).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    path = folder / "encoder.onnx"
    onnx.save(model, path)
    rows = random.normal(size=(64, 64)).astype(np.float32)
    data = folder / "encoder.npz"
    np.savez(data, x=rows)
    return Subject("encoder", path, data, {"x": rows}, None)


def made(subject: Subject, form: str, target: str, folder: Path) -> Path:
    """The file of a form for a target; whatever its outputs have lost."""
    chosen = FORMS[form]
    name = form.replace(" ", "-").replace(",", "")
    path = folder / f"{subject.name}-{name}-{target}.onnx"
    if not path.exists():
        onnx_opt.optimize(
            subject.path,
            chosen.passes,
            out=path,
            data=subject.calibration if chosen.has_data else None,
            target=target,
            bench=False,
            # what is asked is whether a runtime runs it, not whether it is good
            force=True,
        )
    return path


def measured(subject: Subject, form: str, runtime: Runtime, folder: Path) -> Cell:
    """Run a form in a runtime, and compare with ONNX Runtime's CPU provider on the same file."""
    path = made(subject, form, runtime.target, folder)
    size = path.stat().st_size
    feeds, labels = subject.head(runtime.rows)
    wanted = in_onnxruntime(path, feeds)
    try:
        ran = runtime.run(path, feeds)
    # whatever a runtime raises is what the table tells
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Cell(subject.name, form, runtime.name, size, problem=lines[-1])
    return Cell(
        subject.name,
        form,
        runtime.name,
        size,
        sqnr_db=distance(wanted, ran),
        top1=None if labels is None else right(ran, labels),
        ms=ran.ms,
    )


def distance(wanted: Ran, ran: Ran) -> float:
    """SQNR of all outputs together, in dB; `INFINITE_DB` where they are the same."""
    signal = noise = 0.0
    for one, other in zip(wanted.outputs, ran.outputs, strict=True):
        exact = one.astype(np.float64)
        signal += float((exact**2).sum())
        noise += float(((exact - other) ** 2).sum())
    if noise == 0:
        return INFINITE_DB
    return min(float(10 * np.log10(signal / noise)), INFINITE_DB)


def right(ran: Ran, labels: NDArray[Any]) -> float:
    """Share of rows whose largest output is that of the label."""
    return float((ran.outputs[0].argmax(axis=1) == labels).mean())


def rows(folder: Path, only: str) -> list[Cell]:
    """All cells of the runtimes that are here and have `only` in their names."""
    present = [
        each
        for each in RUNTIMES.values()
        if only in each.name and each.missing() is None
    ]
    return [
        measured(subject, form, runtime, folder)
        for subject in (digits(), encoder(folder))
        for form in FORMS
        for runtime in present
    ]


def words(cell: Cell, floats: dict[tuple[str, str], float]) -> str:
    """A cell of the table; `floats`: ms of the float model, by model and runtime."""
    if cell.problem:
        return f"fails: {cell.problem[:60]}"
    assert cell.sqnr_db is not None
    parts = ["same" if cell.sqnr_db >= INFINITE_DB else f"{cell.sqnr_db:.0f} dB"]
    if cell.top1 is not None:
        parts.append(f"top1 {cell.top1:.3f}")
    if cell.ms is not None:
        parts.append(f"{cell.ms / floats[cell.model, cell.runtime]:.2f}")
    return ", ".join(parts)


def table(cells: list[Cell]) -> Table:
    """Rows are forms, columns runtimes."""
    names = [name for name in RUNTIMES if any(cell.runtime == name for cell in cells)]
    floats = {
        (cell.model, cell.runtime): cell.ms or 1.0
        for cell in cells
        if cell.form == "float"
    }
    shown = Table("model", "form", "bytes", *names, box=MARKDOWN)
    by_row: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        by_row.setdefault((cell.model, cell.form), []).append(cell)
    for (model, form), row in by_row.items():
        sizes = "/".join(str(size) for size in sorted({cell.bytes for cell in row}))
        shown.add_row(model, form, sizes, *(words(cell, floats) for cell in row))
    return shown


def main() -> None:
    """Print the table, and write the cells as JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the cells there, too")
    parser.add_argument("--only", default="", help="part of the names of runtimes")
    options = parser.parse_args()
    for runtime in RUNTIMES.values():
        reason = runtime.missing()
        if reason is not None:
            print(f"{runtime.name}: left out, {reason}")
    with tempfile.TemporaryDirectory() as folder:
        cells = rows(Path(folder), options.only)
    Console(width=200).print(table(cells))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(cell) for cell in cells], indent=2))


if __name__ == "__main__":
    main()
