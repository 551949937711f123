"""Page of a bundle for browsers, and the files of onnxruntime-web that it runs on."""

from __future__ import annotations

import os
from pathlib import Path

from ... import RefusedError
from ...runtime.bundles import FILES, Content
from .content import has_texts
from .packaged_model import PackagedModel
from .request import PackageRequest

TARGET = "web"

MODULES = "ONNX_OPT_NODE_MODULES"
"""Variable of the environment that names a folder `node_modules` with onnxruntime-web in it."""

RUNTIME = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)
"""Files of onnxruntime-web that run a model on WebAssembly, in its folder dist/."""

LICENCE = "LICENSE.onnxruntime"
PAGE = "index.html"
_OF_PAGE = ("page.css", "page.js", "bundle.js", "compare.js", "npy.js")
_SOURCES = FILES / "web"


def page_files(packaged: PackagedModel) -> dict[str, Content]:
    """The page, with onnxruntime-web where it is here; empty for other targets.

    Errors: RefusedError where a folder was given that has no onnxruntime-web.
    """
    folder = _runtime_folder(packaged.request)
    if packaged.target.name != TARGET:
        if packaged.request.node_modules is not None:
            packaged.warnings.append(f"no page: only target {TARGET} has one")
        return {}
    if has_texts(packaged):
        packaged.warnings.append("no page: it has arrays of numbers alone")
        return {}
    files: dict[str, Content] = {PAGE: _SOURCES / PAGE}
    for name in _OF_PAGE:
        files[f"web/{name}"] = _SOURCES / name
    if folder is None:
        packaged.warnings.append(
            f"no onnxruntime-web in the bundle: its page needs {', '.join(RUNTIME)} in web/; "
            f"--node-modules or {MODULES} names the folder to copy them from"
        )
        return files
    files[f"web/{LICENCE}"] = _SOURCES / LICENCE
    for name in RUNTIME:
        files[f"web/{name}"] = folder / name
    return files


def _runtime_folder(request: PackageRequest) -> Path | None:
    """The folder dist/ of onnxruntime-web; None where none was named."""
    given = request.node_modules
    if given is None and os.environ.get(MODULES):
        given = Path(os.environ[MODULES])
    if given is None:
        return None
    folder = given / "onnxruntime-web" / "dist"
    for name in RUNTIME:
        if not (folder / name).is_file():
            raise RefusedError(
                str(given),
                f"has no onnxruntime-web/dist/{name}",
                "npm install onnxruntime-web, and name its node_modules",
            )
    return folder
