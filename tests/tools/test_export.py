"""`onnx-opt export`: what it writes and prints, exit codes, and that nothing is written unless
torch agrees.
"""

import json
import sys

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx_opt.frontends.onnx_file import load
from onnx_opt.tools._export import dynamic_axes
from onnx_opt.tools.cli import main

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x, scale=None):
        h = self.layer(x)
        return h if scale is None else h * scale

class Deceiving(nn.Module):
    def forward(self, x):
        return x + 1 if torch.compiler.is_compiling() else x + 2

def net():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return Net(), torch.randn(2, 3)

def scaled():
    return Net().eval(), (torch.randn(2, 3),), {"scale": torch.ones(4)}

def optioned():
    return Net().eval(), (torch.randn(2, 3),), {"dynamic_shapes": {"x": {0: "n"}},
        "output_names": ["y"], "opset": 20}

def deceiving():
    return Deceiving().eval(), (torch.randn(2, 3),)

def only_a_module():
    return Net()

def weights():
    return Net().state_dict()

def pair():
    return "net", 3

def needs(path):
    return Net(), torch.randn(2, 3)

def failing():
    return 1 / 0

module = Net()
"""


def invoke(*words):
    return CliRunner().invoke(main, ["export", *map(str, words)])


@pytest.fixture
def source(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(SOURCE)
    return tmp_path


# what is written


def test_a_module_becomes_a_file_with_its_origin_and_figures(source):
    done = invoke(
        "nets.py:net",
        "-o",
        "net.onnx",
        "--dynamic",
        "x:0=batch",
        "--output-names",
        "y",
        "--json",
    )
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert (facts["output_path"], facts["opset"], facts["nodes"], facts["params"]) == (
        "net.onnx",
        21,
        1,
        16,
    )
    assert facts["inputs"] == [{"name": "x", "dtype": "float", "shape": ["batch", 3]}]
    assert facts["outputs"] == [{"name": "y", "dtype": "float", "shape": ["batch", 4]}]
    assert [check["sizes"] for check in facts["checks"]] == [{"batch": 2}, {"batch": 3}]
    assert all(check["outputs"]["y"]["max_abs"] < 1e-5 for check in facts["checks"])
    assert facts["warnings"] == [
        "the module is in training mode: exported in evaluation mode, as after .eval()"
    ]
    assert load("net.onnx").metadata_props["onnx_opt.exported_from"] == "nets.py:net"
    onnx.checker.check_model("net.onnx", full_check=True)


def test_the_file_name_comes_on_stdout_and_the_account_on_stderr(source):
    done = invoke("nets.py:scaled", "-o", "net.onnx")
    assert done.stdout == "net.onnx\n"
    assert "ONNX Runtime against torch" in done.stderr
    assert [value.name for value in load("net.onnx").graph.inputs] == ["x", "scale"]


def test_options_of_the_callable_count_and_those_of_the_command_line_win(source):
    assert (
        invoke(
            "nets.py:optioned", "-o", "a.onnx", "--no-verify", "--opset", "22"
        ).exit_code
        == 0
    )
    model = load("a.onnx")
    assert (model.opset_imports[""], model.graph.outputs[0].name) == (22, "y")
    assert str(model.graph.inputs[0].shape) == "[n,3]"


def test_weights_are_loaded_before_and_put_onto_the_graph_after(source):
    import torch

    state = {
        "module.layer.weight": torch.full((4, 3), 2.0),
        "module.layer.bias": torch.arange(4.0),
    }
    torch.save(state, "w.pt")
    assert invoke("nets.py:net", "--state-dict", "w.pt", "-o", "a.onnx").exit_code == 0
    np.testing.assert_array_equal(
        load("a.onnx").graph.initializers["layer.weight"].const_value.numpy(), 2.0
    )
    torch.save({name: tensor + 1 for name, tensor in state.items()}, "w.pt")
    done = invoke("--onto", "a.onnx", "--state-dict", "w.pt", "-o", "b.onnx", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["loaded"][0] == {
        "name": "layer.weight",
        "from": "module.layer.weight",
        "how": "name without prefix",
        "transposed": False,
    }
    np.testing.assert_array_equal(
        load("b.onnx").graph.initializers["layer.weight"].const_value.numpy(), 3.0
    )
    torch.save({"other": torch.zeros(2)}, "w.pt")
    done = invoke("nets.py:net", "--state-dict", "w.pt", "-o", "c.onnx")
    assert done.exit_code == 3
    assert (
        "does not fit the module: unused: other; missing: layer.weight, layer.bias"
        in done.stderr
    )


# what is refused


def test_what_torch_does_not_confirm_is_not_written(source):
    done = invoke("nets.py:deceiving", "-o", "a.onnx")
    assert done.exit_code == 4
    assert (
        "ONNX Runtime does not agree with torch: output 'output' is off in 6 of 6 values"
        in done.stderr
    )
    assert list(source.glob("*.onnx*")) == []
    assert invoke("nets.py:deceiving", "-o", "a.onnx", "--atol", "1.01").exit_code == 0


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("only_a_module", 3, "returned only a module"),
        ("weights", 3, "returned a dict: weights have no graph"),
        ("pair", 3, "returned a tuple of str, int"),
        ("needs", 3, "takes arguments, and is called without any"),
        ("failing", 3, "ZeroDivisionError: division by zero at "),
        ("module", 3, "is a module, not a function"),
        ("Net", 3, "is a class, not a function"),
        ("missing", 2, "has no 'missing'"),
    ],
)
def test_what_is_no_such_callable_is_told(source, name, code, words):
    done = invoke(f"nets.py:{name}", "-o", "a.onnx")
    assert done.exit_code == code
    assert words in done.stderr
    assert "return (module, args)" in done.stderr or name in ("failing", "missing")


def test_an_existing_file_stays_without_force(source):
    (source / "a.onnx").write_bytes(b"mine")
    done = invoke("nets.py:net", "-o", "a.onnx")
    assert (done.exit_code, (source / "a.onnx").read_bytes()) == (2, b"mine")
    assert "error: a.onnx: exists\n  fix: pass --force" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "export: no source"),
        (("a.py:f", "--onto", "b.onnx"), "export: 2 sources"),
        (("--onto", "b.onnx"), "--onto: needs weights"),
    ],
)
def test_sources_are_counted(tmp_path, words, message):
    done = invoke(*words, "-o", tmp_path / "a.onnx")
    assert done.exit_code == 2
    assert message in done.stderr


def test_dynamic_axes_are_read():
    assert dynamic_axes(["x:0=batch", "x:-1=length", "mask:0=batch"]) == {
        "x": {0: "batch", -1: "length"},
        "mask": {0: "batch"},
    }


@pytest.mark.parametrize(
    "text", ["x", "x:0", "x=batch", "x:a=batch", ":0=n", "x:0=", "x:0=two words"]
)
def test_other_forms_of_dynamic_are_refused(text):
    from onnx_opt import UsageError

    with pytest.raises(
        UsageError,
        match=r"is not of the form NAME:AXIS=DIM\n  fix: --dynamic x:0=batch",
    ):
        dynamic_axes([text])


def test_without_torch_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    done = invoke("nets.py:net", "-o", tmp_path / "a.onnx")
    assert done.exit_code == 2
    assert done.stderr == (
        "error: torch: not installed, and exporting needs it\n"
        "  fix: pip install 'onnx-opt[torch]'\n"
    )
