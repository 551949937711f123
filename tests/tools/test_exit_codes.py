"""Exit codes as a contract: the process's, the account's, the schema's and Python's agree."""

import json
import subprocess
import sys
from pathlib import Path

import click
import jsonschema
import onnx
import onnx_opt
import pytest
from click.testing import CliRunner
from onnx_opt.tools.cli import main, report_error
from sample_models import MLP, model_from

SCHEMA = json.loads(
    Path(onnx_opt.__file__)
    .with_name("tools")
    .joinpath("schema", "run-1.json")
    .read_text(encoding="utf-8")
)
CODES = SCHEMA["$defs"]["error"]["properties"]["exit_code"]["enum"]

ERRORS = [
    (onnx_opt.OnnxOptError("w", "p", "f"), 1),
    (onnx_opt.UsageError("w", "p", "f"), 2),
    (onnx_opt.RefusedError("w", "p", "f"), 3),
    (onnx_opt.CheckError("w", "p", "f"), 4),
    (click.UsageError("p"), 2),
    (KeyboardInterrupt(), 130),
    (MemoryError(), 1),
    (OSError(28, "full"), 1),
    (ZeroDivisionError("p"), 1),
]


def test_the_schema_lists_all_codes_but_success():
    assert sorted({code for _, code in ERRORS}) == CODES


@pytest.mark.parametrize(("error", "code"), ERRORS)
def test_every_error_has_its_code_in_the_account(error, code, capsys):
    assert report_error(error, as_json=True) == code
    account = json.loads(capsys.readouterr().out)
    jsonschema.validate(account, SCHEMA)
    assert account["error"]["exit_code"] == code


def test_every_error_of_the_package_has_a_code_of_the_list():
    kinds = [onnx_opt.OnnxOptError]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
    assert {kind.exit_code for kind in kinds} <= set(CODES)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), 0),
        (("--target", "abacus"), 2),
        (("--passes", "prune(sparsity=2)"), 2),
        (("--data", "missing.npz"), 3),
        (("--passes", "prune(sparsity=0.9)", "--min-sqnr", "90"), 4),
    ],
)
def test_the_process_ends_with_the_code_of_the_account(words, code, tmp_path):
    path = tmp_path / "mlp.onnx"
    onnx.save(model_from(MLP), path)
    line = [str(path), "--no-bench", "--json", *words]
    done = CliRunner().invoke(main, line)
    assert done.exit_code == code
    account = json.loads(done.stdout)
    jsonschema.validate(account, SCHEMA)
    assert ("error" in account) == (code != 0)
    if code:
        assert account["error"]["exit_code"] == code


def test_a_process_of_its_own_ends_so_too(tmp_path):
    code = "import conftest; from onnx_opt.tools.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "missing.onnx"), "--json"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["exit_code"] == 3
