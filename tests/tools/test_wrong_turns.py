"""Errors of common wrong turns give the line to type."""

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx_opt.tools.cli import main
from onnx_opt.tools.console import command_line
from sample_models import MLP, model_from


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(model_from(MLP), "m.onnx")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "problem", "fix"),
    [
        (
            ["quant", "m.onnx"],
            "'quant' is a pass, not a command",
            "onnx-opt m.onnx --passes quant",
        ),
        (
            ["optimize", "m.onnx"],
            "'optimize' is neither a command nor a file",
            "onnx-opt m.onnx optimizes it",
        ),
        (
            ["m.onnx", "prune"],
            "unexpected extra argument (prune)",
            "write --passes prune",
        ),
        (
            ["m.onnx", "-p", "quant(int4)"],
            "'int4' is not one of int8",
            "write quant(bits=4), or for MatMul alone quant(blocked)",
        ),
        (
            ["m.onnx", "-p", "quant(bits=1)"],
            "form int8 has 2 to 8 bits, not 1",
            "write quant(binary)",
        ),
        (
            ["m.onnx", "-p", "quant(bits=16)"],
            "16 is outside [1, 8]",
            "write quant(int16) or quant(fp16)",
        ),
        (
            ["m.onnx", "-p", "fp16"],
            "no such pass",
            "write quant(fp16), or compress-weights(fp16)",
        ),
        (["m.onnx", "-p", "dynamic"], "no such pass", "write quant(dynamic)"),
        (
            ["m.onnx", "-p", "prune(0.5)"],
            "'0.5' has no option name",
            "write prune(sparsity=0.5)",
        ),
        (
            ["m.onnx", "-p", "prune:50%"],
            "'50%' has no option name",
            "write prune(sparsity=50%)",
        ),
        (
            ["m.onnx", "--max-drop", "1%"],
            "is not a valid float",
            "write --max-drop 0.01",
        ),
        (
            ["m.onnx", "-p", "prune(sparsity=0.5"],
            "expected ',' or ')'",
            "prune:sparsity=0.5 needs no quotes",
        ),
        (
            ["eval", "m.onnx"],
            "--data: is missing",
            "onnx-opt eval m.onnx --data DATA --metric METRIC",
        ),
        (
            ["eval", "--metric=top1"],
            "MODEL: is missing",
            "onnx-opt eval --metric=top1 MODEL --data DATA",
        ),
        (["verify", "m.onnx"], "B: is missing", "onnx-opt verify m.onnx B"),
        (
            ["bisect", "m.onnx"],
            "-p/--passes: is missing",
            "onnx-opt bisect m.onnx --passes TEXT",
        ),
        (
            ["m.onnx", "--data", "images.npz"],
            "no array for input 'x'",
            "rename 'images' to 'x', and 'y' to 'labels' if these are the labels",
        ),
    ],
)
def test_the_fix_is_the_line_to_type(folder, words, problem, fix):
    np.savez("images.npz", images=np.zeros((4, 8), np.float32), y=np.zeros(4, int))
    done = CliRunner().invoke(main, words)
    assert done.exit_code in (2, 3), done.output
    error, hint = done.stderr.splitlines()
    assert problem in error
    assert fix in hint


def test_the_command_line_is_given_again_with_all_that_is_not_a_default():
    run = main.get_command(None, "run")
    words = ["m.onnx", "--data", "a.npz", "--data", "b c.npz", "--max-drop", "0"]
    context = run.make_context("run", [*words, "--no-bench", "--seed", "0"])
    expected = (
        "onnx-opt m.onnx --passes quant --data a.npz --data 'b c.npz' --max-drop 0.0"
    )
    again = command_line(context, passes=("quant",))
    assert sorted(again.split(" --")) == sorted(f"{expected} --no-bench".split(" --"))
