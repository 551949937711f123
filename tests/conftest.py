"""Make `onnx_opt` importable in a bare checkout: the repository root is the package.

Tests import it in fresh processes, too, whose start they time: the rest is in `suite`.
"""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("onnx_opt") is None:
    root = Path(__file__).resolve().parents[1]
    spec = importlib.util.spec_from_file_location(
        "onnx_opt", root / "__init__.py", submodule_search_locations=[str(root)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["onnx_opt"] = module
    spec.loader.exec_module(module)

pytest_plugins = ["suite"]
