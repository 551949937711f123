"""The examples for CI call commands and options that exist, and the hook does what it says."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import onnx
import pytest
from onnx_opt.tools.cli import main
from sample_models import MLP, model_from

ROOT = Path(__file__).resolve().parents[1]
CI = ROOT / "examples" / "ci"
HOOKS = ROOT / ".pre-commit-hooks.yaml"


def lines_of(name):
    """Calls of onnx-opt in a file, as words without the redirection."""
    text = (CI / name).read_text(encoding="utf-8")
    found = re.findall(r"^ +(?:- run: )?onnx-opt (.+?)(?: > \S+)?$", text, re.M)
    return [shlex.split(line) for line in found]


def test_the_workflow_calls_what_there_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("onnx-opt.toml").write_text("[recipes.small]\npasses = 'quant'\n")
    lines = lines_of("github-actions.yml")
    assert [line[0] for line in lines] == [
        "model.onnx",
        "report",
        "package",
        "selftest",
    ]
    for line in lines:
        # parsed, not run: an unknown option or a missing argument is an error here
        with main.make_context("onnx-opt", list(line)) as context:
            name, command, rest = main.resolve_command(context, context._protected_args)
            words = [*rest, *context.args]
            assert command.make_context(name, words, parent=context).params


def test_the_workflow_is_yaml():
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load((CI / "github-actions.yml").read_text())
    steps = workflow["jobs"]["optimize"]["steps"]
    assert all("uses" in step or "run" in step for step in steps)
    (hook,) = yaml.safe_load(HOOKS.read_text())
    assert re.search(hook["files"], "models/a.onnx")
    assert not re.search(hook["files"], "a.onnx.txt")


def hook_entry():
    (entry,) = re.findall(r"^  entry: (.+)$", HOOKS.read_text(), re.M)
    return shlex.split(entry)


@pytest.mark.skipif(shutil.which("sh") is None, reason="the hook is a shell's")
def test_the_hook_refuses_what_is_no_model(tmp_path, monkeypatch):
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    program = bin_folder / "onnx-opt"
    program.write_text(
        f"#!{sys.executable}\n"
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "import conftest\n"
        "from onnx_opt.tools.cli import main\n"
        "main()\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(bin_folder), prepend=":")
    good, bad = tmp_path / "good one.onnx", tmp_path / "bad.onnx"
    onnx.save(model_from(MLP), good)
    bad.write_bytes(b"\x08\x0a\x3a\x7f")

    def code(*models):
        line = [*hook_entry(), *map(str, models)]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        return done.returncode

    assert code(good, good) == 0
    assert code(good, bad, good) == 3


def test_the_image_installs_the_package_and_runs_the_command():
    text = (CI / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["onnx-opt"]' in text
    assert "USER nobody" in text
    assert isinstance(main, click.Group)
