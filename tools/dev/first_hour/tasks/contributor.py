"""A contributor: the pass of CONTRIBUTING.md, one file and its test, and nothing else."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from samples import DEMO
from visit import Visit

NEEDS = ("pytest",)
ROOT = Path(__file__).resolve().parents[4]

SKIPPED = shutil.ignore_patterns(
    ".git", ".venv", "build", "*.egg-info", "__pycache__", ".*_cache"
)


def replay(visit: Visit) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files = re.findall(r"^`([\w/]+\.py)`.*?^```python\n(.*?)^```", text, re.M | re.S)
    visit.check("a pass is two files", len(files) == 2)
    # a checkout of their own, in which the package is the folder
    package = visit.folder / "onnx_opt"
    shutil.copytree(ROOT, package, ignore=SKIPPED)
    for path, content in files:
        (package / path).write_text(content, encoding="utf-8")
    shutil.copy(DEMO / "digits_cnn.onnx", visit.folder / "m.onnx")
    here = 'PYTHONPATH="$PWD:$PYTHONPATH"'
    listed = visit.python("", f'{here} "$python" -m onnx_opt passes keep-bits')
    visit.check("its options are shown", "Significant bits kept" in listed.out)
    run = visit.python(
        "",
        f'{here} "$python" -m onnx_opt m.onnx --passes "keep-bits(bits=6)" --no-bench',
    )
    visit.check("it runs by its name", run.code == 0 and "keep-bits" in run.err)
    tested = visit.python(
        "", f'{here} "$python" -m pytest -q -p no:cacheprovider {package / files[1][0]}'
    )
    visit.check("its test passes", tested.code == 0)
