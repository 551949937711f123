"""The first hour of ten users (`tools/dev/first_hour`), each without a workaround."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FIRST_HOUR = Path(__file__).resolve().parents[1] / "tools" / "dev" / "first_hour"
QUICK = ("broken_inputs", "text")
TASKS = sorted(path.stem for path in (FIRST_HOUR / "tasks").glob("[!_]*.py"))

REPLAY = """
import json, sys, conftest
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tasks import missing_extras, replay
missing = missing_extras(sys.argv[2])
checks = {} if missing else replay(sys.argv[2], Path(sys.argv[3])).checks
print(json.dumps({"missing": missing, "checks": checks}))
"""


def replayed(task, folder):
    """Report of a task in a process of its own: extras that it lacks, and its checks."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REPLAY, FIRST_HOUR, task, folder],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_there_are_ten():
    assert len(TASKS) == 10


@pytest.mark.parametrize(
    "task",
    [
        pytest.param(task, marks=() if task in QUICK else pytest.mark.slow)
        for task in TASKS
    ],
)
def test_nobody_needs_a_workaround(task, tmp_path):
    found = replayed(task, tmp_path)
    if found["missing"]:
        pytest.skip(f"needs {', '.join(found['missing'])}")
    assert [words for words, holds in found["checks"].items() if not holds] == []
    assert len(found["checks"]) >= 4
