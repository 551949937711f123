"""torch to ONNX: names, dims, values against torch; and what is refused, in which words."""

import pickle
import re
import warnings
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_opt import CheckError, OnnxOptError, RefusedError, UsageError
from onnx_opt.frontends.from_torch import export_torch, from_torch
from onnx_opt.frontends.onnx_file import load, save

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402 - only where torch is


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(4, 5)
        nn.init.uniform_(self.bn.running_var, 0.5, 2.0)

    def forward(self, image):
        return self.head(self.drop(torch.relu(self.bn(self.conv(image))).mean((2, 3))))


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, ids, *, mask=None):
        return {"hidden": self.encoder(self.embed(ids), src_key_padding_mask=mask)}


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.gru = (
            nn.LSTM(3, 4, batch_first=True, bidirectional=True),
            nn.GRU(8, 2, batch_first=True),
        )

    def forward(self, x):
        return self.gru(self.lstm(x)[0])


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x, y=None):
        return self.layer(x if y is None else x + y)


class Branching(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


class Measuring(nn.Module):
    def forward(self, x):
        return torch.zeros(int(x.abs().sum().item())) + x[0, 0]


class Leaving(nn.Module):
    def forward(self, x):
        return torch.from_numpy(np.abs(x.numpy()))


class Dropping(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x)


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


class Counting(nn.Module):
    def forward(self, x):
        return x * 2, x.shape[0]


class Special(nn.Module):
    def forward(self, x):
        return torch.special.airy_ai(x)


class Passing(nn.Module):
    def forward(self, x):
        return x, x * 2, x


class Deceiving(nn.Module):
    """Computes something else while it is exported."""

    def forward(self, x):
        return x + 1 if torch.compiler.is_compiling() else x + 2


def interface(model):
    return [
        (value.name, str(value.shape))
        for value in (*model.graph.inputs, *model.graph.outputs)
    ]


def ops(model):
    return [node.op_type for node in model.graph]


# what is exported


@pytest.fixture(scope="module")
def cnn():
    module = Cnn()
    module.conv.eval()
    image = torch.randn(2, 3, 6, 6)
    return (
        module,
        image,
        export_torch(
            module, image, dynamic_shapes={"image": {0: "batch", 2: "height"}}
        ),
    )


def test_a_module_in_training_mode_is_exported_in_evaluation_mode_and_left_as_it_was(
    cnn,
):
    module, _, exported = cnn
    assert exported.warnings == [
        "the module is in training mode: exported in evaluation mode, as after .eval()"
    ]
    assert [
        part.training for part in (module, module.conv, module.bn, module.drop)
    ] == [True, False, True, True]
    assert ops(exported.model) == [
        "Conv",
        "BatchNormalization",
        "Relu",
        "ReduceMean",
        "Gemm",
    ]


def test_names_and_dims_are_as_asked(cnn):
    _, _, exported = cnn
    assert interface(exported.model) == [
        ("image", "[batch,3,height,6]"),
        ("output", "[batch,5]"),
    ]
    assert exported.dims == ["batch", "height"]
    assert exported.model.graph.name == "Cnn"


def test_parameters_keep_their_names_and_values(cnn):
    module, _, exported = cnn
    state = {
        name: value
        for name, value in module.state_dict().items()
        if "num_batches" not in name
    }
    for name, value in state.items():
        np.testing.assert_array_equal(
            exported.model.graph.initializers[name].const_value.numpy(), value.numpy()
        )


def test_traces_of_the_source_are_gone(cnn, tmp_path):
    save(cnn[2].model, tmp_path / "m.onnx")
    assert b"test_from_torch" not in (tmp_path / "m.onnx").read_bytes()
    onnx.checker.check_model(onnx.load(tmp_path / "m.onnx"), full_check=True)


def test_torch_is_asked_at_a_second_size(cnn):
    _, _, exported = cnn
    assert [case.sizes for case in exported.cases] == [
        {"batch": 2, "height": 6},
        {"batch": 3, "height": 7},
    ]
    assert [case.feeds["image"].shape for case in exported.cases] == [
        (2, 3, 6, 6),
        (3, 3, 7, 6),
    ]


def test_keyword_arguments_and_dims_shared_by_inputs():
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[1, 3:] = True
    axes = {0: "batch", 1: "length"}
    model = from_torch(
        Attending().eval(),
        torch.randint(0, 20, (2, 5)),
        kwargs={"mask": mask},
        dynamic_shapes={"ids": axes, "mask": axes},
        input_names=["tokens"],
    )
    assert interface(model) == [
        ("tokens", "[batch,length]"),
        ("mask", "[batch,length]"),
        ("hidden", "[batch,length,8]"),
    ]


def test_recurrent_layers_stay_one_op_of_any_length():
    model = from_torch(
        Recurrent().eval(),
        (torch.randn(2, 5, 3),),
        dynamic_axes={"x": [0, 1], "y": [0]},
        output_names=["y", "state"],
    )
    assert (
        ops(model).count("LSTM"),
        ops(model).count("GRU"),
        ops(model).count("Loop"),
    ) == (1, 1, 0)
    assert interface(model) == [
        ("x", "[batch,x_axis_1,3]"),
        ("y", "[batch,x_axis_1,2]"),
        ("state", "[1,batch,2]"),
    ]


def test_outputs_that_are_inputs_get_values_of_their_own():
    model = from_torch(Passing().eval(), torch.randn(2, 3))
    assert interface(model) == [
        ("x", "[2,3]"),
        *((f"output_{i}", "[2,3]") for i in range(3)),
    ]


def test_a_size_of_one_may_be_dynamic():
    model = from_torch(
        Linear().eval(),
        torch.randn(1, 3),
        dynamic_shapes=({0: torch.export.Dim("n", max=64)},),
    )
    assert interface(model) == [("x", "[n,3]"), ("output", "[n,4]")]


def test_the_opset_is_as_asked():
    assert (
        from_torch(Linear().eval(), torch.randn(2, 3), opset=23).opset_imports[""] == 23
    )


def test_two_names_for_one_size_are_told():
    shapes = {"x": {0: "n"}, "y": {0: "m"}}
    exported = export_torch(
        Linear().eval(), (torch.randn(2, 3), torch.randn(2, 3)), dynamic_shapes=shapes
    )
    assert exported.warnings == [
        "axis 0 of 'y' is called 'n', not 'm': forward needs both to be the same size"
    ]


def test_weights_are_shared_with_torch():
    module = Linear().eval()
    model = from_torch(module, torch.randn(2, 3), verify=False)
    module.layer.bias.data.fill_(7.0)
    assert (
        model.graph.initializers["layer.bias"].const_value.numpy().tolist() == [7.0] * 4
    )


# the check


def test_a_graph_that_computes_something_else_is_found():
    with pytest.raises(
        CheckError, match=r"output 'output' is off in 6 of 6 values: max abs error 1, "
    ) as caught:
        from_torch(Deceiving().eval(), torch.randn(2, 3))
    assert caught.value.exit_code == 4
    assert isinstance(
        from_torch(Deceiving().eval(), torch.randn(2, 3), atol=1.01), ir.Model
    )


def test_the_check_runs_the_way_one_likes():
    seen = []

    def run(model, feeds):
        seen.append((type(model), [sorted(batch) for batch in feeds]))
        return [{"output": np.full((2, 4), np.nan, np.float32)}]

    with pytest.raises(CheckError, match=r"is off in 8 of 8 values: max abs error inf"):
        from_torch(Linear().eval(), torch.randn(2, 3), verify=run)
    assert seen == [(ir.Model, [["x"]])]


def test_what_is_random_cannot_be_compared():
    with pytest.raises(CheckError, match="forward gives other outputs each time"):
        from_torch(Noisy().eval(), torch.randn(2, 3))


# what is refused


@pytest.mark.parametrize(
    ("module", "words", "line"),
    [
        (
            Branching,
            "control flow depends on the values of a tensor",
            "if x.sum() > 0:",
        ),
        (
            Measuring,
            "a size or a number depends on the values of a tensor",
            "torch.zeros(int(x.abs().sum().item()))",
        ),
        (Leaving, "forward leaves torch (.numpy())", "np.abs(x.numpy())"),
        (
            Dropping,
            "aten.dropout trains in evaluation mode too",
            "nn.functional.dropout(x)",
        ),
        (Counting, "forward returns int 2 (at outputs[1])", ""),
        (Special, "torch has no ONNX form of 'aten.special_airy_ai.default'", ""),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_cannot_be_exported_is_told_with_its_line(module, words, line):
    with pytest.raises(RefusedError, match=re.escape(words)) as caught:
        from_torch(module().eval(), torch.randn(2, 3))
    assert line in caught.value.problem
    assert not line or "test_from_torch.py:" in caught.value.problem


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"args": None}, UsageError, "args: missing"),
        (
            {"args": torch.ones(2, 7)},
            RefusedError,
            "torch itself fails on the arguments: RuntimeError: mat1 and mat2",
        ),
        ({"opset": 17}, UsageError, r"opset: 17 is outside \[18, 23\]"),
        (
            {"dynamic_shapes": {"x": {1: "n"}}},
            RefusedError,
            r"axis 1 of input 'x' cannot be dynamic: .* size 3 only",
        ),
        (
            {"dynamic_shapes": {"w": {0: "n"}}},
            UsageError,
            r"no input 'w'\n  fix: the inputs are x",
        ),
        (
            {"dynamic_shapes": {"x": {2: "n"}}},
            UsageError,
            "has no axis 2: it has 2 axes",
        ),
        (
            {"dynamic_shapes": {"x": [0]}},
            UsageError,
            r"as in dynamic_axes, axes\n  fix: write \{0: 'name'\}",
        ),
        (
            {"dynamic_shapes": {"x": {0: "n"}}, "dynamic_axes": {"x": [0]}},
            UsageError,
            "together with dynamic_shapes",
        ),
        ({"input_names": ["a", "b"]}, UsageError, "input_names: 2 names for 1 tensors"),
        ({"output_names": ["x"], "input_names": ["x"]}, None, ""),
    ],
    ids=str,
)
def test_wrong_arguments_are_told(arguments, error, words):
    arguments = {"args": torch.randn(2, 3), **arguments}
    if error is None:
        with pytest.raises(UsageError, match="is the name of an input"):
            from_torch(Linear().eval(), **arguments)
        return
    with pytest.raises(error, match=words):
        from_torch(Linear().eval(), **arguments)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_no_module_is_named():
    scripted = torch.jit.trace(Linear().eval(), torch.randn(2, 3))
    for model, words in (
        (scripted, "is TorchScript"),
        (Linear().state_dict(), "is a state dict"),
        (Linear, "is a class, not a torch.nn.Module"),
        (3, "is a int, not a torch.nn.Module"),
    ):
        with pytest.raises(RefusedError, match=words):
            from_torch(model, torch.randn(2, 3))


# files


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torch_files")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_files(folder)
    return folder


def write_files(folder):
    module, x = Linear().eval(), torch.randn(2, 3)
    torch.save(module.state_dict(), folder / "weights.pt")
    torch.save(
        {"epoch": 3, "state_dict": module.state_dict()}, folder / "checkpoint.pt"
    )
    torch.save(module, folder / "whole.pt")
    torch.jit.save(torch.jit.trace(module, x), folder / "scripted.pt")
    program = torch.export.export(
        module, (x,), dynamic_shapes={"x": {0: torch.export.Dim.DYNAMIC}}
    )
    torch.export.save(program, folder / "program.pt2")
    torch.export.save(
        torch.export.export(Cnn(), (torch.randn(2, 3, 4, 4),)), folder / "training.pt2"
    )
    (folder / "other.pt2").write_bytes(b"nothing of the kind")


def test_an_exported_program_from_a_file(files):
    model = from_torch(files / "program.pt2", output_names=["y"])
    assert interface(model) == [("x", "[batch,3]"), ("y", "[batch,4]")]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("weights.pt", "is a checkpoint: weights without a graph"),
        ("checkpoint.pt", "is a checkpoint: weights without a graph"),
        ("whole.pt", "is a pickled module: reading it can run any code"),
        ("scripted.pt", "is a TorchScript file"),
        ("training.pt2", r"was captured in training mode \(aten.batch_norm\)"),
        ("other.pt2", "is not a .pt2 file"),
        ("missing.pt2", "no such file or folder"),
        (".", "is a folder without config.json"),
    ],
)
def test_files_that_hold_no_graph_are_named(files, name, words):
    with pytest.raises(RefusedError, match=words):
        from_torch(files / name)


def test_pickles_inside_a_program_are_not_executed(files, tmp_path):
    class Malicious:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    with (
        zipfile.ZipFile(files / "program.pt2") as source,
        zipfile.ZipFile(tmp_path / "m.pt2", "w") as target,
    ):
        for name in source.namelist():
            inputs = name.endswith("sample_inputs/model.pt")
            target.writestr(
                name, pickle.dumps(Malicious()) if inputs else source.read(name)
            )
    with pytest.raises(RefusedError, match="Weights only load failed"):
        from_torch(tmp_path / "m.pt2")
    assert not (tmp_path / "executed").exists()


def test_a_saved_export_runs_and_agrees(cnn, tmp_path):
    import onnxruntime

    module, image, exported = cnn
    save(exported.model, tmp_path / "cnn.onnx", external=True)
    assert len(load(tmp_path / "cnn.onnx").graph.initializers) >= 8
    (got,) = onnxruntime.InferenceSession(tmp_path / "cnn.onnx").run(
        None, {"image": image.numpy()}
    )
    module.eval()
    np.testing.assert_allclose(
        got, module(image).detach().numpy(), rtol=1e-5, atol=1e-6
    )
    module.train()
    module.conv.eval()


def test_without_torch_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(OnnxOptError, match=r"pip install 'onnx-opt\[torch\]'"):
        from_torch("model.pt2")


def test_a_hugging_face_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    model = from_torch(tmp_path)
    assert [name for name, _ in interface(model)] == [
        "input_ids",
        "attention_mask",
        "token_type_ids",
        "last_hidden_state",
        "pooler_output",
    ]
    assert interface(model)[0] == ("input_ids", "[batch,sequence]")
