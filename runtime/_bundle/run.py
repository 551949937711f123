"""Run this bundle: `python run.py --selftest`, or `python run.py inputs.npz -o outputs.npz`.

Needs onnxruntime and numpy alone. In a program:

    from run import Bundle

    model = Bundle("path/of/the/bundle")
    outputs = model({"input": array})  # arrays by name, as manifest.json lists them

Exit codes: 0 done, 1 failed, 2 usage, 3 no sound bundle, 4 a file, the runtime, the provider or a
sample is not as manifest.json says.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
Facts = dict[str, Any]

SCHEMA = "1"
"""Major version of the manifests that this program reads."""

BLOCK = 1 << 20
"""Bytes of a file that are hashed at once."""

SECONDS = 1.0
LEAST_RUNS = 5
"""Time that the latency is measured for, and runs at the least."""

ASSIGNMENT = "session.record_ep_graph_assignment_info"
"""Setting of ONNX Runtime: note the provider of every node."""


class BundleError(Exception):
    """A failure: where, the problem, and a fix; `exit_code` as this file's head says."""

    def __init__(self, exit_code: int, where: str, problem: str, fix: str) -> None:
        super().__init__(f"{where}: {problem}\n  fix: {fix}")
        self.exit_code = exit_code
        self.where = where
        self.problem = problem
        self.fix = fix


def refuse(where: str, problem: str, fix: str = "unpack the bundle again") -> NoReturn:
    """Raise the failure of a folder that is no sound bundle."""
    raise BundleError(3, where, problem, fix)


def fail(where: str, problem: str, fix: str = "unpack the bundle again") -> NoReturn:
    """Raise the failure of a check."""
    raise BundleError(4, where, problem, fix)


# files


def read_manifest(folder: Path) -> Facts:
    """Read manifest.json of a bundle's folder."""
    path = folder / "manifest.json"
    where = str(path)
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or str(error)
        refuse(where, f"cannot be read: {reason}", "give the folder of a bundle")
    except (ValueError, RecursionError):
        refuse(where, "is not JSON")
    if not isinstance(manifest, dict):
        refuse(where, "is no JSON object")
    version = str(manifest.get("schema"))
    if version.partition(".")[0] != SCHEMA:
        refuse(
            where,
            f"has the form {version}; this program reads {SCHEMA}.x",
            "use the run.py of the bundle, or a newer onnx-opt",
        )
    return manifest


def inside(folder: Path, name: str) -> Path:
    """Path of a file of the bundle; a name that leads outside of its folder is refused."""
    parts = PurePosixPath(name).parts
    is_plain = bool(parts) and not {"..", "/"}.intersection(parts)
    if not is_plain or "\\" in name or ":" in name:
        refuse(name, "is no name of a file inside of the bundle")
    path = folder.joinpath(*parts)
    if not path.resolve().is_relative_to(folder.resolve()):
        refuse(name, "leads outside of the bundle")
    return path


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def named_files(manifest: Facts) -> list[str]:
    """Files that the manifest names for something."""
    model = manifest["model"]
    names = [model["file"]]
    if model["ort"]:
        names.append(model["ort"]["file"])
    for sample in manifest["samples"]:
        names += [*sample["inputs"], *sample["outputs"]]
    return names


def loaded_files(manifest: Facts, file: str) -> list[str]:
    """Files that loading a model file reads: it, and its weights where they lie beside it."""
    model = manifest["model"]
    ready = model["ort"]["file"] if model["ort"] else None
    if file == ready:
        return [file]
    others = {ready, model["operators"]}
    inside_model = [name for name in manifest["files"] if name.startswith("model/")]
    return [name for name in inside_model if name not in others]


def check_files(
    folder: Path, manifest: Facts, names: Sequence[str] | None = None
) -> None:
    """Compare files with their digests in the manifest; `names` None: all of them."""
    for name in named_files(manifest):
        if name not in manifest["files"]:
            fail(name, "has no digest in manifest.json")
    for name in manifest["files"] if names is None else names:
        facts = manifest["files"][name]
        path = inside(folder, name)
        if not path.is_file():
            fail(name, "is missing")
        if path.stat().st_size != facts["bytes"] or sha256_of(path) != facts["sha256"]:
            fail(name, "is not the file that was packaged: its sha256 differs")
    sums = folder / "SHA256SUMS"
    # the manifest cannot hold its own digest
    lines = sums.read_text(encoding="utf-8").splitlines() if sums.is_file() else []
    wanted = sha256_of(folder / "manifest.json")
    if f"{wanted}  manifest.json" not in lines:
        fail("manifest.json", "is not the file that was packaged: SHA256SUMS differs")


def release(version: str) -> tuple[int, int]:
    """First two numbers of a version: (1, 20) of 1.20.1."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


# sessions


def runtime_module() -> Any:
    """Import onnxruntime."""
    # 1.32 and newer report to their maker otherwise
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise BundleError(
            2,
            "onnxruntime",
            f"cannot be imported: {error}",
            "pip install -r requirements.txt",
        ) from None
    return onnxruntime


def check_runtime(manifest: Facts) -> None:
    """Refuse an onnxruntime older than the model needs."""
    version = runtime_module().__version__
    least = manifest["runtime"]["minimum"]
    if release(version) < release(least):
        fail(
            f"onnxruntime {version}",
            f"is too old: the model needs {least} ({manifest['runtime']['because']})",
            f'pip install -U "onnxruntime>={least}"',
        )


def chosen_provider(manifest: Facts, name: str) -> Facts:
    """Provider of a name; `auto`: the best of the bundle's that this onnxruntime has."""
    ort = runtime_module()
    present = ort.get_available_providers()
    own: list[Facts] = manifest["providers"]
    if name == "auto":
        for provider in own:
            if provider["onnxruntime"] in present:
                return provider
        names = ", ".join(each["onnxruntime"] for each in own)
        fail("provider auto", f"this onnxruntime has none of {names}", "install one")
    for provider in own:
        if provider["name"] == name:
            return provider
    end = "executionprovider"
    known = {each.lower().removesuffix(end): each for each in ort.get_all_providers()}
    short = name.lower().removesuffix(end)
    wanted = known.get(short)
    if wanted is None:
        names = ", ".join(known)
        raise BundleError(2, "provider", f"'{name}' is none of {names}", "choose one")
    return {"name": name, "onnxruntime": wanted, "options": {}, "partner": None}


def open_session(path: Path, provider: Facts, threads: int, profile: str = "") -> Any:
    """Load a model on a provider, or fail; never on another one.

    `profile`: beginning of the name of a file that ONNX Runtime writes of the runs; "": none.
    """
    ort = runtime_module()
    wanted = provider["onnxruntime"]
    where = f"provider {provider['name']}"
    fix = "install a build of onnxruntime that has it, or give --provider auto"
    if wanted not in ort.get_available_providers():
        fail(where, f"this onnxruntime ({ort.__version__}) has no {wanted}", fix)
    settings = ort.SessionOptions()
    # 4: only what ends the process; every other error comes back as an exception
    settings.log_severity_level = 4
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry(ASSIGNMENT, "1")
    if profile:
        settings.enable_profiling = True
        settings.profile_file_prefix = profile
    providers = [(wanted, provider["options"])]
    if provider["partner"]:
        providers.append((provider["partner"], {}))
    if wanted != "CPUExecutionProvider" and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    try:
        session = ort.InferenceSession(str(path), settings, providers=providers)
    # ONNX Runtime's exceptions have no common class of their own
    except Exception as error:
        fail(path.name, f"ONNX Runtime cannot load it: {first_line(error)}")
    # ONNX Runtime only logs that a provider does not start, and runs everything on the CPU
    if wanted not in session.get_providers():
        fail(where, f"{wanted} does not start: libraries or a device are missing", fix)
    session.disable_fallback()
    return session


def first_line(error: Exception) -> str:
    """First line of an exception's text."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:300]


def assigned(session: Any) -> dict[str, list[str]]:
    """Nodes by the provider that the session gave them to.

    Empty where it does not tell: older releases, and models in ORT format.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return {}
    found: dict[str, list[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        names = [node.name or node.op_type for node in part.get_nodes()]
        found.setdefault(part.ep_name, []).extend(names)
    return found


def profiled(session: Any) -> dict[str, list[str]]:
    """Nodes by the provider that ran them, from the profile that the session wrote."""
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    found: dict[str, list[str]] = {}
    for event in events:
        provider = event.get("args", {}).get("provider")
        if event.get("cat") != "Node" or not provider:
            continue
        node = event["name"].removesuffix("_kernel_time")
        names = found.setdefault(provider, [])
        if node not in names:
            names.append(node)
    return found


def check_assignment(provider: Facts, nodes: dict[str, list[str]]) -> None:
    """Fail where the provider runs no node: everything fell back to another one."""
    # none: the session does not tell, or it computed the whole graph while it loaded
    if nodes and not nodes.get(provider["onnxruntime"]):
        fail(
            f"provider {provider['name']}",
            f"runs none of the nodes; {', '.join(sorted(nodes))} run them all",
            "choose the provider that the bundle was made for",
        )


class Bundle:
    """A bundle as a function: arrays by input name -> arrays by output name.

    `provider`: `auto`, or a name such as cpu, cuda or OpenVINO. `threads`: 0 is ONNX Runtime's
    choice. `check`: compare what is loaded with its digest first.
    """

    def __init__(
        self,
        folder: str | Path,
        provider: str = "auto",
        threads: int = 0,
        check: bool = True,
    ) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        try:
            check_runtime(self.manifest)
            self.provider = chosen_provider(self.manifest, provider)
            self.file = best_file(self.manifest, self.provider)
            if check:
                names = loaded_files(self.manifest, self.file)
                check_files(self.folder, self.manifest, names)
            path = inside(self.folder, self.file)
            self.inputs: list[Facts] = self.manifest["inputs"]
            self.outputs: list[Facts] = self.manifest["outputs"]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            refuse("manifest.json", f"is not as a bundle's is: {error!r}")
        self.session = open_session(path, self.provider, threads)
        check_assignment(self.provider, assigned(self.session))

    def __call__(self, feeds: Mapping[str, Any]) -> Arrays:
        """Run it once."""
        return run(self.session, self.inputs, feeds)


def best_file(manifest: Facts, provider: Facts) -> str:
    """Model file to load: the one in ORT format where it is there and this runtime reads it."""
    model = manifest["model"]
    ready = model["ort"]
    version = release(runtime_module().__version__)
    on_cpu = provider["onnxruntime"] == "CPUExecutionProvider"
    if ready and on_cpu and version >= release(ready["runtime"]):
        return str(ready["file"])
    return str(model["file"])


def run(session: Any, inputs: Sequence[Facts], feeds: Mapping[str, Any]) -> Arrays:
    """Run a session on arrays by name; they are converted to the types of the inputs."""
    arrays = {}
    for info in inputs:
        name = info["name"]
        if name not in feeds:
            names = ", ".join(feeds) or "nothing"
            raise BundleError(
                2,
                f"input '{name}'",
                f"is not given; there is {names}",
                f"give an array of type {info['dtype']} and shape {info['shape']}",
            )
        kind = None if info["dtype"] == "string" else info["dtype"]
        arrays[name] = np.asarray(feeds[name], kind)
    try:
        values = session.run(None, arrays)
    except Exception as error:
        raise BundleError(
            1,
            "run",
            f"ONNX Runtime fails: {first_line(error)}",
            "compare the arrays with the inputs in manifest.json",
        ) from None
    outputs = [output.name for output in session.get_outputs()]
    return dict(zip(outputs, values, strict=True))


# samples


def load_array(folder: Path, name: str) -> NDArray[Any]:
    """Array of a .npy file of the bundle."""
    try:
        array: NDArray[Any] = np.load(inside(folder, name), allow_pickle=False)
    except (OSError, ValueError) as error:
        fail(name, f"cannot be read: {first_line(error)}")
    return array


def load_sample(folder: Path, manifest: Facts, number: int) -> tuple[Arrays, Arrays]:
    """Inputs and expected outputs of a sample, by name."""
    sample = manifest["samples"][number]
    sides = []
    for side in ("inputs", "outputs"):
        arrays = {}
        for info, name in zip(manifest[side], sample[side], strict=True):
            arrays[info["name"]] = load_array(folder, name)
        sides.append(arrays)
    return sides[0], sides[1]


def distance(expected: NDArray[Any], got: NDArray[Any]) -> Facts:
    """Figures of an output: largest error, SQNR in dB, fraction of elements that are not equal."""
    if expected.shape != got.shape:
        return {"shape": list(got.shape), "max_abs": math.inf}
    if expected.dtype.kind != "f":
        same = expected.astype(str) == got.astype(str)
        unequal = 1.0 - float(np.mean(same)) if same.size else 0.0
        return {"unequal": unequal}
    y = expected.astype(np.float64)
    z = got.astype(np.float64)
    are_nan = np.isnan(y) & np.isnan(z)
    finite = np.isfinite(y)
    both_finite = finite & np.isfinite(z)
    as_expected = (y == z) | are_nan | both_finite
    if not as_expected.all():
        return {"max_abs": math.inf, "sqnr_db": -math.inf}
    values = y[finite]
    error = np.abs(values - z[finite])
    largest = float(error.max(initial=0.0))
    noise = float(error @ error)
    signal = float(values @ values)
    sqnr_db = math.inf
    if noise:
        sqnr_db = 10 * math.log10(signal / noise) if signal else -math.inf
    return {"max_abs": largest, "sqnr_db": sqnr_db}


def outside(limits: Facts, found: Facts) -> str | None:
    """Limit that the figures of an output do not keep, in words; None where they keep all."""
    if "shape" in found:
        return f"has the shape {found['shape']}"
    if "unequal" in found:
        if found["unequal"] > limits["unequal"]:
            share = f"{100 * found['unequal']:.3g} % of its elements"
            return f"differs in {share} (at most {100 * limits['unequal']:.3g} %)"
        return None
    if found["max_abs"] > limits["atol"]:
        return f"is off by {found['max_abs']:.3g} (at most {limits['atol']:.3g})"
    least = limits["min_sqnr_db"]
    # what errs less than the floor is zero for all purposes, whatever its SQNR
    if least is None or found["max_abs"] <= limits["floor"]:
        return None
    if found["sqnr_db"] < least:
        return f"has an SQNR of {found['sqnr_db']:.1f} dB (at least {least:.1f} dB)"
    return None


def check_samples(session: Any, folder: Path, manifest: Facts) -> list[Facts]:
    """Run every sample, and compare its outputs with those that are expected."""
    limits = {each["name"]: each for each in manifest["tolerance"]["outputs"]}
    figures = []
    for number in range(len(manifest["samples"])):
        feeds, expected = load_sample(folder, manifest, number)
        got = run(session, manifest["inputs"], feeds)
        for name, array in expected.items():
            if name not in got:
                fail(f"sample {number}", f"the model has no output '{name}'")
            found = distance(array, np.asarray(got[name]))
            problem = outside(limits[name], found)
            if problem is not None:
                fail(
                    f"sample {number}",
                    f"output '{name}' {problem}",
                    "this runtime or CPU computes something else: report both with the bundle",
                )
            figures.append({"sample": number, "output": name, **found})
    return figures


# the self-test


def selftest(
    folder: Path, provider: str = "auto", threads: int = 0, seconds: float = SECONDS
) -> Facts:
    """Check the files, the runtime, the provider and the samples, and measure.

    It fails at the first thing that is not as the manifest says.
    """
    manifest = read_manifest(folder)
    try:
        check_files(folder, manifest)
        check_runtime(manifest)
        chosen = chosen_provider(manifest, provider)
        if not manifest["samples"]:
            fail("samples", "there are none", "package the model with --data")
        tested = [
            test_file(folder, manifest, file, chosen, threads, seconds)
            for file in model_files(manifest, chosen)
        ]
        best = best_file(manifest, chosen)
    except (KeyError, TypeError, AttributeError) as error:
        refuse("manifest.json", f"is not as a bundle's is: {error!r}")
    return {
        "bundle": manifest["name"],
        "files": len(manifest["files"]),
        "onnxruntime": runtime_module().__version__,
        "provider": chosen["onnxruntime"],
        "loads": best,
        "models": tested,
    }


def model_files(manifest: Facts, provider: Facts) -> list[str]:
    """Model files that can be loaded here, the one that a program would load first."""
    first = best_file(manifest, provider)
    model = manifest["model"]["file"]
    return [first] if first == model else [first, model]


def test_file(
    folder: Path,
    manifest: Facts,
    file: str,
    provider: Facts,
    threads: int,
    seconds: float,
) -> Facts:
    """Load one model file, run the samples, and tell which provider each node ran on."""
    path = inside(folder, file)
    feeds, _ = load_sample(folder, manifest, 0)
    runtime_module()
    start = time.perf_counter()
    session = open_session(path, provider, threads)
    loaded = time.perf_counter()
    run(session, manifest["inputs"], feeds)
    first_run = time.perf_counter()
    check_assignment(provider, assigned(session))
    nodes = nodes_by_profile(path, provider, manifest["inputs"], feeds)
    check_assignment(provider, nodes)
    samples = check_samples(session, folder, manifest)
    return {
        "file": file,
        "nodes": nodes,
        "samples": samples,
        "load_ms": 1e3 * (loaded - start),
        "cold_start_ms": 1e3 * (first_run - start),
        "latency_ms": latency_ms(session, manifest["inputs"], feeds, seconds),
    }


def nodes_by_profile(
    path: Path, provider: Facts, inputs: Sequence[Facts], feeds: Arrays
) -> dict[str, list[str]]:
    """Nodes that ran, by provider: one run is profiled."""
    with tempfile.TemporaryDirectory() as scratch:
        session = open_session(path, provider, 0, str(Path(scratch, "profile")))
        run(session, inputs, feeds)
        return profiled(session)


def latency_ms(
    session: Any, inputs: Sequence[Facts], feeds: Arrays, seconds: float
) -> float:
    """Median time of a run, in ms."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < LEAST_RUNS or time.perf_counter() < end:
        start = time.perf_counter()
        run(session, inputs, feeds)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


# the command


def finite(value: Any) -> Any:
    """Value as JSON has it: None for infinities and NaN."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def print_report(report: Facts) -> None:
    """The self-test in words."""
    print(f"bundle      {report['bundle']}: {report['files']} files as packaged")
    print(f"onnxruntime {report['onnxruntime']}, {report['provider']}")
    for model in report["models"]:
        counts = [f"{name} {len(own)}" for name, own in model["nodes"].items()]
        nodes = ", ".join(counts)
        errors = [each.get("max_abs", each.get("unequal")) for each in model["samples"]]
        print(f"{model['file']}")
        print(f"  nodes     {nodes or 'none'}")
        print(
            f"  samples   {len(errors)} outputs as expected, off by {max(errors):.3g}"
        )
        print(
            f"  load      {model['load_ms']:.1f} ms, with the first run "
            f"{model['cold_start_ms']:.1f} ms"
        )
        print(f"  latency   {model['latency_ms']:.3f} ms")
    print("self-test   passed")


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    found.add_argument("inputs", nargs="?", help=".npz file of arrays by input name")
    found.add_argument("-o", "--output", default="outputs.npz", help=".npz to write")
    found.add_argument("--selftest", action="store_true", help="check this bundle")
    found.add_argument("--provider", default="auto", help="auto, cpu, cuda, …")
    found.add_argument("--threads", type=int, default=0, help="0: the default")
    found.add_argument("--json", action="store_true", help="print the report as JSON")
    return found


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = parser().parse_args(words)
    folder = Path(__file__).resolve().parent
    try:
        if options.selftest:
            report = selftest(folder, options.provider, options.threads)
            if options.json:
                print(json.dumps(finite(report), indent=2))
            else:
                print_report(report)
            return 0
        if options.inputs is None:
            raise BundleError(
                2, "usage", "no inputs", "give an .npz file, or --selftest"
            )
        bundle = Bundle(folder, options.provider, options.threads)
        outputs = bundle(read_inputs(options.inputs))
        write_outputs(Path(options.output), outputs)
    except BundleError as failure:
        print(f"error: {failure}", file=sys.stderr)
        return failure.exit_code
    return 0


def read_inputs(path: str) -> Arrays:
    """Arrays of an .npz file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise BundleError(
            3, path, f"is no .npz file: {first_line(error)}", "np.savez(…) makes one"
        ) from None


def write_outputs(path: Path, outputs: Arrays) -> None:
    """Write arrays as an .npz file; unlike numpy's own function it takes every name."""
    with zipfile.ZipFile(path, "w") as file:
        for name, array in outputs.items():
            # texts as numpy holds them without objects, which would be pickled
            plain = array.astype(str) if array.dtype.kind == "O" else array
            with file.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, plain, allow_pickle=False)


if __name__ == "__main__":
    sys.exit(main())
