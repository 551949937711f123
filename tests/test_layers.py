"""Imports between layers: those of docs/design.md, checked over every import, those inside
functions too.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LAYERS = {
    "passes": {"onnx_ir", "onnx", "numpy", "ml_dtypes", "tomli", "tomllib"},
    "runtime": {
        "psutil",
        "threadpoolctl",
        "onnxruntime",
        "onnx_ir",
        "onnx",
        "numpy",
        "ml_dtypes",
        "PIL",
        "pyarrow",
        "tokenizers",
        "tensorrt",
        "google",
        # of onnxruntime, whose format it is
        "flatbuffers",
    },
    "frontends": {
        "onnx_ir",
        "onnxscript",
        "onnx",
        "numpy",
        "torch",
        "transformers",
        "google",
    },
    "tools": {
        "passes",
        "runtime",
        "frontends",
        "onnx_ir",
        "onnx",
        "numpy",
        "click",
        "rich",
        "platformdirs",
        "scipy",
        "ray",
        "captum",
        "lime",
        "shap",
    },
}
"""What each layer may import besides itself, the root package and the standard library (google:
protobuf, of onnx).
"""

FOLDERS = set(LAYERS)

GROUND_FLOOR = "onnx_opt.passes._core"
"""The one package of `passes` that `runtime` and `frontends` may import; it imports none of the
layers itself.
"""


def imported_names(
    tree: ast.AST, package: tuple[str, ...]
) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import in `tree`, a module of the package `package`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(package, node.level, node.module)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            ("import_module", "__import__")
        ):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                level = len(first.value) - len(first.value.lstrip("."))
                yield node.lineno, _absolute(package, level, first.value[level:])


def _absolute(package: tuple[str, ...], level: int, module: str | None) -> str:
    prefix = package[: len(package) - level + 1] if level else ()
    return ".".join((*prefix, *([module] if module else [])))


def violations(path: Path, source: str) -> list[str]:
    """`file:line: reason` for each import of `source`, living at `path` below the root, that its
    layer may not have.
    """
    layer = path.parts[0]
    package = ("onnx_opt", *path.parent.parts)
    found = []
    for line, name in imported_names(ast.parse(source), package):
        head, *rest = name.split(".")
        if layer in ("runtime", "frontends") and name.startswith(f"{GROUND_FLOOR}."):
            continue
        inside = rest[0] if rest and rest[0] in FOLDERS else layer
        target = inside if head == "onnx_opt" else head
        if (
            target == layer
            or target in LAYERS[layer]
            or target in sys.stdlib_module_names
        ):
            continue
        found.append(f"{path.as_posix()}:{line}: {layer} must not import {name}")
    return found


def absolute_self_imports(path: Path, source: str) -> list[str]:
    """`file:line: reason` for each `import onnx_opt…` inside the package, where imports are
    relative.
    """
    tree = ast.parse(source)
    return [
        f"{path.as_posix()}:{node.lineno}: write a relative import"
        for node in ast.walk(tree)
        if (
            isinstance(node, ast.ImportFrom)
            and not node.level
            and (node.module or "").split(".")[0] == "onnx_opt"
        )
        or (
            isinstance(node, ast.Import)
            and any(a.name.split(".")[0] == "onnx_opt" for a in node.names)
        )
    ]


def sources() -> list[Path]:
    """Every Python file that is installed, relative to the root."""
    files = (file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
    return sorted(
        p
        for p in (f.relative_to(ROOT) for f in files)
        if p.parts[:2] != ("tools", "dev")
    )


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "passes/a.py",
            "import numpy as np\nimport onnx_ir as ir\nfrom onnx import "
            "helper\nimport math",
        ),
        (
            "passes/a.py",
            "from .. import UsageError\nfrom ._base import Pass\nfrom . import _lazy",
        ),
        (
            "passes/_dims/a.py",
            "from .._base import Pass\nfrom . import solver\nfrom ... import UsageError",
        ),
        ("runtime/a.py", "import onnxruntime\nfrom .feeds import Feeds"),
        ("frontends/a.py", "def f():\n    import torch"),
        ("frontends/b/a.py", "from ...passes._core.saturation import offending"),
        ("runtime/a.py", "from ..passes._core import saturation"),
        (
            "tools/a.py",
            "from ..passes import _base\nfrom ..runtime.session import run\nimport click",
        ),
        (
            "tools/cli.py",
            "from importlib import import_module\nimport_module('.commands.run', __package__)",
        ),
    ],
)
def test_allowed_imports_pass(path, source):
    assert violations(Path(path), source) == []


@pytest.mark.parametrize(
    ("path", "source", "found"),
    [
        (
            "passes/a.py",
            "from ..runtime import session",
            "passes/a.py:1: passes must not import onnx_opt.runtime.session",
        ),
        (
            "passes/a.py",
            "\nfrom .. import runtime",
            "passes/a.py:2: passes must not import onnx_opt.runtime",
        ),
        (
            "passes/_dims/a.py",
            "from ...frontends.x import y",
            "passes/_dims/a.py:1: passes must not import onnx_opt.frontends.x.y",
        ),
        (
            "passes/a.py",
            "def f():\n    import onnxruntime",
            "passes/a.py:2: passes must not import onnxruntime",
        ),
        (
            "passes/a.py",
            "import onnx_opt.tools.cli",
            "passes/a.py:1: passes must not import onnx_opt.tools.cli",
        ),
        (
            "runtime/a.py",
            "from ..passes._base import Context",
            "runtime/a.py:1: runtime must not import onnx_opt.passes._base.Context",
        ),
        (
            "runtime/a.py",
            "import torch.nn",
            "runtime/a.py:1: runtime must not import torch.nn",
        ),
        (
            "frontends/a.py",
            "from ..tools import optimize",
            "frontends/a.py:1: frontends must not import onnx_opt.tools.optimize",
        ),
        ("tools/a.py", "import torch", "tools/a.py:1: tools must not import torch"),
        (
            "passes/a.py",
            "from importlib import import_module\nimport_module('..runtime.session', __package__)",
            "passes/a.py:2: passes must not import onnx_opt.runtime.session",
        ),
    ],
)
def test_forbidden_imports_name_file_and_line(path, source, found):
    assert violations(Path(path), source) == [found]


def test_absolute_imports_of_the_package_are_found():
    assert absolute_self_imports(
        Path("passes/a.py"), "import os\nfrom onnx_opt.passes import x"
    ) == ["passes/a.py:2: write a relative import"]


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.as_posix())
def test_the_layers_hold(path):
    source = (ROOT / path).read_text(encoding="utf-8")
    assert violations(path, source) + absolute_self_imports(path, source) == []


@pytest.mark.parametrize(
    "path",
    [p for p in sources() if p.parts[:2] == ("passes", "_core")],
    ids=lambda path: path.as_posix(),
)
def test_the_ground_floor_imports_no_layer(path):
    package = ("onnx_opt", *path.parent.parts)
    names = [
        name
        for _, name in imported_names(
            ast.parse((ROOT / path).read_text(encoding="utf-8")), package
        )
    ]
    layers = tuple(f"onnx_opt.{folder}." for folder in FOLDERS)
    upper = [
        n for n in names if n.startswith(layers) and not n.startswith(GROUND_FLOOR)
    ]
    assert upper == []


def test_only_the_face_and_main_lie_at_the_root():
    assert sorted(p.name for p in ROOT.glob("*.py")) == ["__init__.py", "__main__.py"]
