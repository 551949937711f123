"""Every form of file that this project writes, in old and new ONNX Runtimes from PyPI.

    # once: an environment a release, about 100 MB each
    python tools/dev/bench_runtimes.py --install
    python tools/dev/bench_runtimes.py [--only int8,…] [--versions 1.16.3,…] [--envs DIR]
                                       [--json FILE]

Rows are files, columns releases. exact: the same outputs, bit for bit, as the newest release gives;
close: within 1 % of their power; differs, fails: neither. The oldest release from which on a file
runs exactly or closely must be the one that `passes/_core/requirements.py` says: where it is not,
the row is marked and the exit status is 1.

Files: small nets in every form of `quant` and `compress-weights`; a file for each opset and IR
version; the shared ResNet-20 in the main forms where the shared data are there (ONNX_OPT_DATA).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
from bench_data import data_folder
from onnx_opt import optimize
from onnx_opt.passes._core.requirements import requirements_of
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
RELEASES = {
    **dict.fromkeys(("1.15.1", "1.16.3", "1.17.3", "1.18.1"), "1.26.4"),
    **dict.fromkeys(
        (
            "1.19.2",
            "1.20.1",
            "1.21.1",
            "1.22.1",
            "1.23.2",
            "1.24.4",
            "1.25.1",
            "1.26.0",
            "1.27.0",
            "1.28.0",
            "1.29.0",
            "1.30.0",
            "1.31.1",
            "1.32.0",
        ),
        "2.2.6",
    ),
}
"""The last patch of each release that has wheels for Python 3.11, and a numpy of its time."""

CLOSE = 0.01
"""Power of the difference in that of the outputs: one code here and there, and what float sums
round otherwise.
"""

IMAGE_NET = """
<ir_version: 10, opset_import: ["" : 21]>
image_net (float[N, 3, 16, 16] x) => (float[N, 10] y)
<float[16, 3, 3, 3] k1, float[16] b1, float[16, 16, 3, 3] k2, float[16] b2, float[16, 1, 3,
    3] k3, float[64, 16] w1,
 float[64] b3, float[64, 10] w2, float[10] b4>
{
    c1 = Conv <pads = [1, 1, 1, 1]> (x, k1, b1)
    r1 = Relu (c1)
    c2 = Conv <pads = [1, 1, 1, 1]> (r1, k2, b2)
    s = Add (c2, r1)
    r2 = Relu (s)
    c3 = Conv <pads = [1, 1, 1, 1], group = 16> (r2, k3)
    p = GlobalAveragePool (c3)
    f = Flatten (p)
    g = Gemm <transB = 1> (f, w1, b3)
    r3 = Relu (g)
    m = MatMul (r3, w2)
    y = Add (m, b4)
}
"""
TOKEN_NET = """
<ir_version: 10, opset_import: ["" : 21]>
token_net (float[N, T, 64] x) => (float[N, T, 64] y)
<float[64, 96] w1, float[96] b1, float[96, 64] w2, float[64] b2>
{
    m = MatMul (x, w1)
    h = Add (m, b1)
    r = Relu (h)
    n = MatMul (r, w2)
    o = Add (n, b2)
    y = Add (o, x)
}
"""
ATTENTION_NET = """
<ir_version: 10, opset_import: ["" : 21]>
attention_net (float[N, T, 64] x) => (float[N, T, 64] y)
<float[64] gamma, float[64, 64] wq, float[64, 64] wk, float[64, 64] wv, float[64, 64] wo,
 float two = {2}, float least = {0.00001}, float quarter = {0.25}, int64[1] last = {-1},
 int64[4] by_head = {0, 0, 4, 16}, int64[3] by_token = {0, 0, 64}>
{
    p = Pow (x, two)
    m = ReduceMean <keepdims = 1> (p, last)
    v = Add (m, least)
    r = Sqrt (v)
    d = Div (x, r)
    h = Mul (d, gamma)
    q3 = MatMul (h, wq)
    k3 = MatMul (h, wk)
    v3 = MatMul (h, wv)
    q4 = Reshape (q3, by_head)
    k4 = Reshape (k3, by_head)
    v4 = Reshape (v3, by_head)
    q = Transpose <perm = [0, 2, 1, 3]> (q4)
    k = Transpose <perm = [0, 2, 3, 1]> (k4)
    u = Transpose <perm = [0, 2, 1, 3]> (v4)
    s0 = MatMul (q, k)
    s1 = Mul (s0, quarter)
    a = Softmax <axis = -1> (s1)
    o = MatMul (a, u)
    o4 = Transpose <perm = [0, 2, 1, 3]> (o)
    o3 = Reshape (o4, by_token)
    w = MatMul (o3, wo)
    y = Add (w, x)
}
"""
NETS = {
    "image_net": IMAGE_NET,
    "token_net": TOKEN_NET,
    "attention_net": ATTENTION_NET,
}
FEEDS = {
    "image_net": (4, 3, 16, 16),
    "token_net": (2, 8, 64),
    "attention_net": (2, 8, 64),
}
FORMS = {
    "image_net": (
        "simplify",
        "quant",
        "quant(bits=7)",
        "quant(bits=4)",
        "quant(bits=3)",
        "quant(bits=4, kernel=float)",
        "quant(bits=4, storage=table)",
        "quant(bits=3, kernel=float, storage=table)",
        "quant(ternary)",
        "quant(ternary, kernel=float)",
        "quant(binary)",
        "quant(binary, planes=2)",
        "quant(int16)",
        "quant(fp16)",
        "quant(activation_bits=4)",
        "compress-weights(fp16)",
        "compress-weights(bf16)",
        "compress-weights(int8)",
        "compress-weights(int4)",
    ),
    "token_net": (
        "quant",
        "quant(dynamic)",
        "quant(dynamic, bits=4, ends=same)",
        "quant(dynamic, bits=4, ends=same, storage=table)",
        "quant(blocked)",
        "quant(blocked, bits=8)",
        "compress-weights(int4)",
    ),
    "attention_net": ("quant(blocked, bits=4)", "quant(blocked, bits=4, fuse=false)"),
}
RESNET = ("quant", "quant(bits=4)", "quant(bits=4, storage=table)", "quant(binary)")
FOREIGN = {
    "int4 into DequantizeLinear": (
        "f = DequantizeLinear <axis = 0> (w, s)",
        21,
        10,
        "int4[6] w = {1, 2, 3, 4, 5, 6}",
    ),
    "uint4 through Cast": (
        "c = Cast <to = 1> (w) f = Mul (c, s)",
        21,
        10,
        "uint4[6] w = {1, 2, 3, 4, 5, 6}",
    ),
    "uint4 in blocks": (
        "f = DequantizeLinear <axis = 0, block_size = 1> (w, s)",
        21,
        10,
        "uint4[6] w = {1, 2, 3, 4, 5, 6}",
    ),
}
"""Files of other tools, for rules that hold beyond what is written here: y = x * f."""
MACHINE_LEARNING = 5
SCALER = "y = ai.onnx.ml.Scaler <offset = [1.0], scale = [2.0]> (x)"
GENERIC = ("quant(int16)", "quant(fp16)")
"""Forms that the CPU is better without; they are written for any runtime."""


@dataclass
class File:
    """A file to try: where it is, what feeds it, and what its requirements say."""

    name: str
    model: Path
    feeds: Path
    says: str | None
    verdicts: dict[str, str] = field(default_factory=dict)

    @property
    def oldest(self) -> str | None:
        """The minor version of the oldest release from which on every one runs the file well."""
        found = None
        for release in sorted(self.verdicts, key=_key, reverse=True):
            if self.verdicts[release] not in ("exact", "close"):
                break
            found = _minor(release)
        return found


def _key(release: str) -> tuple[int, ...]:
    return tuple(map(int, release.split(".")))


def _minor(release: str) -> str:
    return release.rpartition(".")[0]


def install(envs: Path, releases: Sequence[str]) -> None:
    """Make the environments that are not there yet: the release and numpy, no more."""
    for release in releases:
        folder = envs / release
        if not python_of(envs, release).exists():
            subprocess.run(
                [sys.executable, "-m", "venv", "--without-pip", folder], check=True
            )
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "pip",
                    "--python",
                    python_of(envs, release),
                    "install",
                    "--quiet",
                    "--no-deps",
                    f"onnxruntime=={release}",
                    f"numpy=={RELEASES[release]}",
                ],
                check=True,
            )
        print(f"{release}: ready", flush=True)


def python_of(envs: Path, release: str) -> Path:
    """The interpreter that has the release."""
    return envs / release / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def files(folder: Path, only: Sequence[str]) -> Iterator[File]:
    """Everything to try, written to `folder`."""
    for net, text in NETS.items():
        feeds = _saved_feeds(
            folder / f"{net}.npz",
            x=np.random.default_rng(0).standard_normal(FEEDS[net]),
        )
        source = folder / f"{net}.onnx"
        onnx.save(_with_weights(text), source)
        for form in FORMS[net]:
            yield from _written(f"{net}: {form}", source, form, feeds, folder, only)
    resnet = data_folder() / "models" / "cifar10_resnet20.onnx"
    if resnet.exists():
        feeds = _saved_feeds(
            folder / "resnet20.npz",
            input=np.random.default_rng(0).standard_normal((8, 3, 32, 32)),
        )
        for form in RESNET:
            data = f"{data_folder() / 'loaders.py'}:cifar10_calib"
            yield from _written(
                f"resnet20: {form}", resnet, form, feeds, folder, only, data
            )
    yield from _stamped(folder, only)


def _with_weights(text: str) -> onnx.ModelProto:
    """The model of a text; its declared initializers from N(0, 1 / inputs)."""
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    produced = {name for node in proto.graph.node for name in node.output}
    for value in [v for v in proto.graph.value_info if v.name not in produced]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = random.standard_normal(shape) / np.sqrt(max(np.prod(shape[1:]), 1))
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(array.astype(np.float32), value.name)
        )
        proto.graph.value_info.remove(value)
    return proto


def _saved_feeds(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **{name: array.astype(np.float32) for name, array in arrays.items()})
    return path


def _written(
    name: str,
    source: Path,
    form: str,
    feeds: Path,
    folder: Path,
    only: Sequence[str],
    data: str | None = None,
) -> Iterator[File]:
    """The file that a run with these passes writes."""
    if only and not any(part in name for part in only):
        return
    out = folder / f"{len(list(folder.iterdir()))}.onnx"
    target = "generic" if form in GENERIC else "cpu"
    result = optimize(
        source,
        form,
        out=out,
        target=target,
        data=data or str(feeds),
        bench=False,
        verify="never",
    )
    assert result.passes[-1].changed or form == "simplify", f"{name}: nothing changed"
    yield File(name, out, feeds, result.requires["onnxruntime"])


def _stamped(folder: Path, only: Sequence[str]) -> Iterator[File]:
    """A file for each opset at the IR version that goes with it, for each IR version, each of
    ai.onnx.ml; others'.
    """
    feeds = _saved_feeds(folder / "stamped.npz", x=np.arange(6).reshape(1, 6))
    versions = [
        (
            opset,
            int(
                onnx.helper.find_min_ir_version_for(
                    [onnx.helper.make_opsetid("", opset)]
                )
            ),
        )
        for opset in range(13, onnx.defs.onnx_opset_version() + 1)
    ]
    for opset, ir_version in [
        *versions,
        *((13, number) for number in range(8, onnx.IR_VERSION + 1)),
    ]:
        header = f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>'
        yield from _stamp(
            f"opset {opset}, IR {ir_version}",
            header,
            "y = Elu (x)",
            feeds,
            folder,
            only,
        )
    for name, (body, opset, ir_version, weight) in FOREIGN.items():
        header = f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>'
        yield from _stamp(
            name,
            header,
            f"{body} y = Mul (x, f)",
            feeds,
            folder,
            only,
            f"<{weight}, float[6] s = {{1, 2, 3, 4, 5, 6}}>",
        )
    for version in range(1, MACHINE_LEARNING + 1):
        header = f'<ir_version: 7, opset_import: ["ai.onnx.ml" : {version}]>'
        yield from _stamp(f"ai.onnx.ml {version}", header, SCALER, feeds, folder, only)


def _stamp(
    name: str,
    header: str,
    body: str,
    feeds: Path,
    folder: Path,
    only: Sequence[str],
    weights: str = "",
) -> Iterator[File]:
    if only and not any(part in name for part in only):
        return
    proto = onnx.parser.parse_model(
        f"{header} g (float[1, 6] x) => (float[1, 6] y) {weights} {{ {body} }}"
    )
    for tensor in proto.graph.initializer:
        if tensor.data_type in (
            onnx.TensorProto.INT4,
            onnx.TensorProto.UINT4,
        ):  # the parser does not pack them
            tensor.CopyFrom(
                onnx.helper.make_tensor(
                    tensor.name, tensor.data_type, tensor.dims, tensor.int32_data
                )
            )
    path = folder / f"{name}.onnx"
    onnx.save(proto, path)
    yield File(name, path, feeds, requirements_of(ir.from_proto(proto)).onnxruntime)


def judge(
    found: Sequence[File], folder: Path, envs: Path, releases: Sequence[str]
) -> None:
    """Run everything in every release; the newest gives the outputs that the others are compared
    with.
    """
    for release in sorted(releases, key=_key, reverse=True):
        outputs = folder / release
        outputs.mkdir()
        for file, error in zip(
            found, _run(found, outputs, python_of(envs, release), folder), strict=True
        ):
            expected = folder / max(releases, key=_key) / f"{file.model.stem}.npz"
            file.verdicts[release] = (
                f"fails: {error}"
                if error
                else compared(expected, outputs / f"{file.model.stem}.npz")
            )
        print(f"{release}: done", flush=True)


def _run(
    found: Sequence[File], outputs: Path, python: Path, folder: Path
) -> list[str | None]:
    """Problem with each file, None where nothing did; a file that takes the process down
    fails alone.
    """
    answers: list[str | None] = []
    while len(answers) < len(found):
        jobs = [
            {
                "model": str(file.model),
                "feeds": str(file.feeds),
                "outputs": str(outputs / f"{file.model.stem}.npz"),
            }
            for file in found[len(answers) :]
        ]
        (folder / "jobs.json").write_text(json.dumps(jobs))
        done = subprocess.run(
            [python, HERE / "run_models.py", folder / "jobs.json"],
            capture_output=True,
            text=True,
            check=False,
        )
        answers += [json.loads(line)["error"] for line in done.stdout.splitlines()]
        if len(answers) < len(found):
            answers.append(f"the process ended with status {done.returncode}")
    return answers


def compared(expected: Path, got: Path) -> str:
    """Difference of two files of outputs, in words."""
    if not expected.exists():
        return "differs"
    with np.load(expected) as before, np.load(got) as after:
        pairs = [
            (before[name].astype(np.float64), after[name].astype(np.float64))
            for name in before.files
        ]
    if all(np.array_equal(a, b, equal_nan=True) for a, b in pairs):
        return "exact"
    noise = max(
        float(((a - b) ** 2).sum() / max((a**2).sum(), 1e-300)) for a, b in pairs
    )
    return "close" if noise <= CLOSE else "differs"


def agrees(file: File) -> bool:
    """True if the file says of itself what the releases say."""
    return file.oldest == file.says


def table(found: Sequence[File], releases: Sequence[str]) -> Table:
    """Files by releases."""
    shown = Table(box=MARKDOWN)
    for title in ("file", "says", *map(_minor, releases)):
        shown.add_column(title)
    for file in found:
        words = [file.verdicts[release].partition(":")[0] for release in releases]
        shown.add_row(
            file.name + ("" if agrees(file) else "  <- no"), file.says or "?", *words
        )
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--install", action="store_true", help="make the environments that are missing"
    )
    parser.add_argument(
        "--envs", type=Path, default=Path.home() / ".cache" / "onnx-opt" / "runtimes"
    )
    parser.add_argument(
        "--versions", default=",".join(RELEASES), help="releases to try"
    )
    parser.add_argument(
        "--only",
        default="",
        help="files whose name contains one of these, comma-separated",
    )
    parser.add_argument(
        "--json", type=Path, help="write the verdicts, errors in full, here"
    )
    options = parser.parse_args()
    releases = sorted(options.versions.split(","), key=_key)
    if options.install:
        install(options.envs, releases)
    missing = [
        release for release in releases if not python_of(options.envs, release).exists()
    ]
    if missing:
        print(
            f"no environment for {', '.join(missing)}: --install makes them",
            file=sys.stderr,
        )
        return 2
    with tempfile.TemporaryDirectory() as folder:
        found = list(
            files(Path(folder), [part for part in options.only.split(",") if part])
        )
        judge(found, Path(folder), options.envs, releases)
    Console(width=40 + 9 * len(releases)).print(table(found, releases))
    if options.json:
        options.json.write_text(
            json.dumps(
                [
                    asdict(file)
                    | {
                        "model": file.model.name,
                        "feeds": file.feeds.name,
                        "oldest": file.oldest,
                    }
                    for file in found
                ],
                indent=1,
            )
        )
    wrong = [file for file in found if not agrees(file)]
    for file in wrong:
        print(f"{file.name}: says {file.says}, runs from {file.oldest} on")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
