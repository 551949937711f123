"""Texts of a bundle that depend on its model: README, notices, Dockerfile, the C++ header."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

FILES = Path(__file__).with_name("files")
PACKAGE = Path(__file__).resolve().parents[2]

_GPU = ("cuda", "tensorrt")
"""Providers of another wheel than `onnxruntime`."""

_RUNTIME_NOTICES = (
    "https://github.com/microsoft/onnxruntime/blob/main/ThirdPartyNotices.txt"
)

_PARTS = (
    ("model/model.onnx", "the model"),
    ("model/model.ort", "the same in ORT format, which CPUs load faster"),
    (
        "model/operators.config",
        "operators of a reduced ONNX Runtime: `build.sh --include_ops_by_config`",
    ),
    ("samples/", "inputs with the outputs that are expected"),
    ("manifest.json", "everything about the bundle, for programs"),
    ("preprocess.toml", "steps from an image to the input"),
    ("labels.txt", "names of the classes"),
    ("tokenizer.json", "the tokenizer"),
    (
        "index.html",
        "the samples in a browser: `python -m http.server` here, then http://localhost:8000/",
    ),
    ("web/", "what this page is made of"),
    ("cpp/", "the samples through the C API, as an example"),
    ("Dockerfile", "an image that has passed the self-test"),
)
"""Files of a bundle, and what they are, in the order of its README."""


def texts(
    manifest: Mapping[str, Any], names: set[str], licence: bool
) -> dict[str, str]:
    """Texts by file name. `names`: the other files; `licence`: the model's own is there."""
    provider = manifest["providers"][0]["name"]
    wheel = "onnxruntime-gpu" if provider in _GPU else "onnxruntime"
    runtime = manifest["runtime"]
    found = {
        "requirements.txt": f"# tried with {runtime['tried']}\n"
        f"{wheel}>={runtime['minimum']}\nnumpy\n",
        "NOTICES.md": _filled(
            "NOTICES.md",
            model_licence=_model_licence(licence),
            browser_runtime=_browser_runtime(names),
        ),
        "Dockerfile": _filled(
            "Dockerfile",
            image=_image_name(manifest["name"]),
            selftest=_selftest(provider),
        ),
    }
    if "cpp/main.cpp" in names:
        found["cpp/bundle.h"] = cpp_header(manifest)
    found["README.md"] = _readme(manifest, names | found.keys())
    return found


def _filled(template: str, /, **parts: str) -> str:
    text = (FILES / template).read_text(encoding="utf-8")
    return Template(text).substitute(parts)


def _model_licence(is_there: bool) -> str:
    if is_there:
        return "see `LICENSE.model`."
    return "not stated when the bundle was made; ask whoever gave you the bundle."


def _browser_runtime(names: set[str]) -> str:
    if "web/LICENSE.onnxruntime" not in names:
        return ""
    return (
        "\n**web/ort\\*** is onnxruntime-web, MIT License (`web/LICENSE.onnxruntime`). "
        f"Notices of the libraries in it: {_RUNTIME_NOTICES}\n"
    )


def _image_name(name: str) -> str:
    # what docker takes: lower case, no runs of signs
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return plain or "bundle"


def _selftest(provider: str) -> str:
    if provider == "cpu":
        return "RUN python run.py --selftest"
    return (
        "# an image is built without a GPU: run it with --selftest where there is one"
    )


def _readme(manifest: Mapping[str, Any], names: set[str]) -> str:
    rows = []
    for side in ("input", "output"):
        for info in manifest[f"{side}s"]:
            shape = ", ".join("?" if dim is None else str(dim) for dim in info["shape"])
            rows.append(f"| {side} | `{info['name']}` | {info['dtype']} | ({shape}) |")
    names = {*names, "manifest.json"}
    parts = []
    for name, words in _PARTS:
        is_folder = name.endswith("/")
        if (
            any(other.startswith(name) for other in names)
            if is_folder
            else name in names
        ):
            parts.append(f"- `{name}`: {words}")
    feeds = [f"{info['name']!r}: …" for info in manifest["inputs"]]
    runtime = manifest["runtime"]
    return _filled(
        "README.md",
        name=manifest["name"],
        target=manifest["target"],
        feeds=", ".join(feeds),
        tensors="\n".join(rows),
        minimum=runtime["minimum"],
        because=runtime["because"],
        tried=runtime["tried"],
        files="\n".join(parts),
    )


def cpp_header(manifest: Mapping[str, Any]) -> str:
    """The header of the C++ example: names, samples and limits."""
    least = manifest["runtime"]["minimum"].split(".")
    lines = [
        "// Names, samples and limits of this bundle, as manifest.json has them.",
        "#pragma once",
        "",
        "#include <cmath>",
        "#include <cstddef>",
        "",
        f"static const int kLeastMajor = {least[0]}, kLeastMinor = {least[1]};",
        f"static const char* const kModel = {_c_text(manifest['model']['file'])};",
        f"static const size_t kSamples = {len(manifest['samples'])};",
        f"static const char* const kInputs[] = {{{_names(manifest['inputs'])}}};",
        f"static const char* const kOutputs[] = {{{_names(manifest['outputs'])}}};",
        "",
        "struct Limits {",
        "  const char* output;",
        "  double atol, min_sqnr_db, floor, unequal;",
        "};",
        "",
        "static const Limits kLimits[] = {",
    ]
    for limits in manifest["tolerance"]["outputs"]:
        least_db = limits["min_sqnr_db"]
        numbers = [
            repr(limits["atol"]),
            "-HUGE_VAL" if least_db is None else repr(least_db),
            repr(limits["floor"]),
            repr(limits["unequal"]),
        ]
        lines.append(f"    {{{_c_text(limits['name'])}, {', '.join(numbers)}}},")
    return "\n".join([*lines, "};", ""])


def _names(infos: list[dict[str, Any]]) -> str:
    return ", ".join(_c_text(info["name"]) for info in infos)


def _c_text(text: str) -> str:
    """A string of C++: UTF-8, every byte that is no plain character by its octal number."""
    parts = []
    for byte in text.encode():
        character = chr(byte)
        is_plain = 32 <= byte < 127 and character not in '"\\?'
        parts.append(character if is_plain else f"\\{byte:03o}")
    return f'"{"".join(parts)}"'


def licence_of_onnx_opt() -> bytes | None:
    """The Apache License, where this installation has it: in the tree, or beside its wheel."""
    for path in (
        PACKAGE / "LICENSE",
        *PACKAGE.parent.glob("onnx_opt-*.dist-info/**/LICENSE"),
    ):
        if path.is_file():
            return path.read_bytes()
    return None
