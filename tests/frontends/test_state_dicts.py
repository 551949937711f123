"""State dicts onto graphs: which entry finds which constant, what is refused, and that files are
read with care.
"""

import json
import re

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
from onnx_opt import RefusedError, UsageError
from onnx_opt.frontends.onnx_file import load, save
from onnx_opt.frontends.state_dicts import load_state_dict, read_state

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'

NAMED = """net (float[1, 2] x) => (float[1, 2] y)
<float[2, 2] "a.weight" = {1, 2, 3, 4}, float[2] "a.bias" = {5, 6}, float two = {2}>
{ h = Gemm <transB = 1> (x, "a.weight", "a.bias") y = Mul (h, two) }"""

NAMELESS = """net (float[1, 2] x) => (float[1, 3] y)
<float[2, 2] w0 = {0, 0, 0, 0}, float[2] "enc.0.q.bias" = {0, 0}, float[2, 2] w1 = {0, 0, 0, 0},
 float[2, 3] w2 = {0, 0, 0, 0, 0, 0}>
{
    a = MatMul (x, w0)
    b = Add ("enc.0.q.bias", a)
    c = MatMul (b, w1)
    y = MatMul (c, w2)
}"""

NORMALISED = """net (float[1, 1, 2, 2] x) => (float[1, 1, 2, 2] y)
<float[1, 1, 1, 1] "conv.weight" = {1}, float[1] "bn.weight" = {1}, float[1] "bn.bias" = {0},
 float[1] "bn.running_mean" = {0}, float[1] "bn.running_var" = {1}>
{
    c = Conv (x, "conv.weight")
    y = BatchNormalization (c, "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
}"""

FOLDED = """net (float[1, 1, 2, 2] x) => (float[1, 1, 2, 2] y)
<float[1, 1, 1, 1] "conv.weight" = {1}, float[1] "conv.bias" = {1}>
{ y = Conv (x, "conv.weight", "conv.bias") }"""


def graph(text):
    """The parser takes no dots in names: they are put in afterwards."""
    names = dict.fromkeys(re.findall(r'"(.+?)"', text))
    for index, name in enumerate(names):
        text = text.replace(f'"{name}"', f"q{index}")
    model = ir.from_proto(onnx.parser.parse_model(HEAD + text))
    for index, name in enumerate(names):
        model.graph.initializers[f"q{index}"].name = name
    return model


def values(model):
    return {
        name: value.const_value.numpy().tolist()
        for name, value in model.graph.initializers.items()
    }


def state(**entries):
    return {
        name.replace("__", "."): np.array(value, np.float32)
        for name, value in entries.items()
    }


WEIGHT, BIAS = [[9, 8], [7, 6]], [1, 2]


# what finds its place


@pytest.mark.parametrize("prefix", ["", "module.", "net.encoder."])
def test_by_name_with_any_prefix(prefix):
    model = graph(NAMED)
    loaded = load_state_dict(
        model,
        {f"{prefix}{k}": v for k, v in state(a__weight=WEIGHT, a__bias=BIAS).items()},
    )
    assert values(model) == {"a.weight": WEIGHT, "a.bias": BIAS, "two": 2.0}
    assert {how for _, _, how, _ in loaded.loaded} == {
        "name" if not prefix else "name without prefix"
    }
    assert loaded.summary() == "2 weights loaded"


def test_counters_are_ignored_and_second_names_of_a_weight_are_tied():
    model = graph(NAMED)
    entries = {
        **state(a__weight=WEIGHT, a__bias=BIAS, b__weight=WEIGHT),
        "bn.num_batches_tracked": np.array(3),
        "ids": np.arange(4),
    }
    loaded = load_state_dict(model, entries)
    assert (loaded.tied, loaded.ignored) == (
        ["b.weight"],
        ["bn.num_batches_tracked", "ids"],
    )
    assert loaded.summary() == "2 weights loaded, 1 tied, 2 ignored"


def test_nameless_weights_by_bias_by_node_and_by_shape_are_transposed():
    model = graph(NAMELESS)
    model.graph.node(2).name = "/enc.1/k/MatMul"
    entries = state(
        enc__0__q__weight=[[1, 2], [3, 4]],
        enc__0__q__bias=[5, 6],
        enc__1__k__weight=[[7, 8], [9, 0]],
        head__weight=[[1, 2], [3, 4], [5, 6]],
    )
    loaded = load_state_dict(model, entries)
    assert values(model) == {
        "w0": [[1, 3], [2, 4]],
        "enc.0.q.bias": [5, 6],
        "w1": [[7, 9], [8, 0]],
        "w2": [[1, 3, 5], [2, 4, 6]],
    }
    assert sorted(how for *_, how, _ in loaded.loaded) == [
        "bias beside it",
        "name",
        "node's name",
        "shape",
    ]


def test_the_newer_exporter_notes_the_module_of_a_node():
    model = graph(NAMELESS)
    scopes = "['', 'enc.0', 'enc.0.{}', 'linear']"
    model.graph.node(2).metadata_props["pkg.torch.onnx.name_scopes"] = scopes.format(
        "k"
    )
    entries = state(
        enc__0__k__weight=[[7, 8], [9, 0]],
        enc__0__q__bias=[5, 6],
        enc__0__q__weight=[[1, 2], [3, 4]],
        head__weight=[[1, 2], [3, 4], [5, 6]],
    )
    load_state_dict(model, entries)
    assert (values(model)["w0"], values(model)["w1"]) == (
        [[1, 3], [2, 4]],
        [[7, 9], [8, 0]],
    )


def test_a_weight_takes_the_type_of_the_graph():
    model = graph(NAMED)
    load_state_dict(
        model,
        {
            "a.weight": np.array(WEIGHT, np.float64),
            "a.bias": np.array(BIAS, np.float16),
        },
    )
    assert {v.const_value.dtype for v in model.graph.initializers.values()} == {
        ir.DataType.FLOAT
    }
    assert values(model)["a.bias"] == BIAS


def test_batch_normalization_that_is_there_is_filled():
    model = graph(NORMALISED)
    load_state_dict(
        model,
        state(
            conv__weight=[[[[3]]]],
            bn__weight=[4],
            bn__bias=[5],
            bn__running_mean=[6],
            bn__running_var=[7],
        ),
    )
    assert values(model)["bn.running_var"] == [7]


# what does not


def refused(model, entries, words, **options):
    before = values(model)
    with pytest.raises(RefusedError, match=words) as caught:
        load_state_dict(model, entries, **options)
    assert values(model) == before
    return caught.value


def test_two_weights_of_one_shape_are_not_guessed():
    entries = state(
        enc__0__q__bias=[5, 6],
        p__weight=[[1, 2], [3, 4]],
        r__weight=[[7, 8], [9, 0]],
        head__weight=[[1, 2], [3, 4], [5, 6]],
    )
    error = refused(
        graph(NAMELESS),
        entries,
        r"2 weights loaded \(1 transposed\), 2 unused, 2 kept as they were",
    )
    assert (
        "2 weights of the graph have its shape and none its name: p.weight, r.weight"
        in error.problem
    )
    assert "no entry of the state dict fits: w0, w1" in error.problem
    assert error.fix.startswith("--partial loads the 2 that fit")


def test_another_shape_is_told():
    error = refused(
        graph(NAMED),
        state(a__weight=[[1, 2, 3]], a__bias=BIAS),
        "does not fit the graph",
    )
    assert "unused, shape [1, 3] where the graph has [2, 2]: a.weight" in error.problem
    assert "kept, the state dict has another shape for it: a.weight" in error.problem


def test_a_missing_weight_is_told_and_partial_lets_it_pass():
    assert (
        "kept, no entry of the state dict fits: a.bias"
        in refused(
            graph(NAMED), state(a__weight=WEIGHT), "1 weights loaded, 1 kept"
        ).problem
    )
    model = graph(NAMED)
    loaded = load_state_dict(model, state(a__weight=WEIGHT, z=[1]), partial=True)
    assert values(model)["a.weight"] == WEIGHT
    assert loaded.lines() == [
        "unused, no constant of the graph has its name or shape: z",
        "kept, no entry of the state dict fits: a.bias",
    ]


def test_nothing_that_fits_is_refused_even_in_part():
    error = refused(graph(NAMED), state(z=[1]), "0 weights loaded", partial=True)
    assert error.fix == "give the state dict of the model that was exported"


@pytest.mark.parametrize("partial", [False, True])
def test_folded_batch_normalization_is_refused(partial):
    entries = state(
        conv__weight=[[[[3]]]],
        conv__bias=[1],
        bn__weight=[4],
        bn__bias=[5],
        bn__running_mean=[6],
        bn__running_var=[7],
    )
    refused(
        graph(FOLDED),
        entries,
        "BatchNormalization 'bn' is not in the graph: it was folded",
        partial=partial,
    )


def test_a_square_weight_beside_transposed_ones_is_not_guessed():
    text = """net (float[1, 2] x) => (float[1, 3] y)
    <float[2, 2] "a.weight" = {1, 2, 3, 4}, float[2, 3] "b.weight" = {1, 2, 3, 4, 5, 6}>
    { h = MatMul (x, "a.weight") y = MatMul (h, "b.weight") }"""
    error = refused(
        graph(text),
        state(a__weight=WEIGHT, b__weight=[[1, 2], [3, 4], [5, 6]]),
        "1 weights loaded",
    )
    assert (
        "is square, and others of this graph are transposed: cannot tell which way: a.weight"
        in error.problem
    )


def test_recurrent_weights_in_another_order_are_told():
    text = """net (float[1, 1, 1] x) => (float[1, 1, 1, 1] y)
    <float[1, 4, 1] w = {1, 2, 3, 4}, float[1, 4, 1] r = {1, 2, 3, 4}>
    { y = LSTM <hidden_size = 1> (x, w, r) }"""
    error = refused(
        graph(text), state(l__weight_ih_l0=[[1], [2], [3], [4]]), "0 weights loaded"
    )
    assert "recurrent weights lie in another order in this graph" in error.problem


# files


def safetensors(path, tensors, header=None):
    entries, blob = {}, b""
    for name, array in tensors.items():
        place = [len(blob), len(blob) + array.nbytes]
        entries[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": place,
        }
        blob += array.tobytes()
    text = json.dumps(
        {"__metadata__": {"format": "pt"}, **entries} if header is None else header
    ).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + blob)
    return path


def test_safetensors_go_into_the_file_that_is_written(tmp_path):
    path = safetensors(
        tmp_path / "w.safetensors", state(a__weight=WEIGHT, a__bias=BIAS)
    )
    model = graph(NAMED)
    load_state_dict(model, path)
    assert isinstance(
        model.graph.initializers["a.weight"].const_value, ir.ExternalTensor
    )
    save(model, tmp_path / "out.onnx", external=False)
    path.unlink()
    assert values(load(tmp_path / "out.onnx")) == {
        "a.weight": WEIGHT,
        "a.bias": BIAS,
        "two": 2.0,
    }


def test_shards_are_read_through_their_index(tmp_path):
    for name, entries in (
        ("1.safetensors", state(a__weight=WEIGHT)),
        ("2.safetensors", state(a__bias=BIAS)),
    ):
        safetensors(tmp_path / name, entries)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(
        json.dumps(
            {"weight_map": {"a.weight": "1.safetensors", "a.bias": "2.safetensors"}}
        )
    )
    assert sorted(read_state(index)) == ["a.bias", "a.weight"]
    index.write_text(json.dumps({"weight_map": {"a.weight": "../1.safetensors"}}))
    with pytest.raises(RefusedError, match="names a file outside its folder"):
        read_state(index)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (
            {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
            "does not have its length",
        ),
        (
            {"a": {"dtype": "F32", "shape": [100], "data_offsets": [0, 400]}},
            "lies outside of the file",
        ),
        (
            {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}},
            "a size is not a number",
        ),
        (
            {"a": {"dtype": "Q4", "shape": [1], "data_offsets": [0, 4]}},
            "the type Q4 is not known",
        ),
        ({"a": {"shape": [1]}}, "damaged safetensors header"),
        ([1], "damaged safetensors header"),
    ],
)
def test_damaged_safetensors_are_refused(tmp_path, header, words):
    path = safetensors(tmp_path / "w.safetensors", state(a=[1]), header)
    with pytest.raises(RefusedError, match=words):
        read_state(path)


def test_a_cut_safetensors_file_is_refused(tmp_path):
    path = safetensors(tmp_path / "w.safetensors", state(a=[1]))
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(
        RefusedError, match="is not a safetensors file, or is cut short"
    ):
        read_state(path)


def test_torch_files_are_read_as_tensors_only(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {
        "a.weight": torch.tensor(WEIGHT, dtype=torch.bfloat16),
        "a.bias": torch.tensor(BIAS),
    }
    torch.save({"epoch": 3, "state_dict": tensors}, tmp_path / "checkpoint.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pt")
    entries = read_state(tmp_path / "checkpoint.pt")
    assert entries["a.weight"].numpy().astype(float).tolist() == WEIGHT
    with pytest.raises(
        RefusedError,
        match="holds pickled objects besides tensors; reading them could run any code",
    ):
        read_state(tmp_path / "whole.pt")
    (tmp_path / "junk.pth").write_bytes(b"nothing")
    with pytest.raises(RefusedError, match="is not a file of torch"):
        read_state(tmp_path / "junk.pth")


def test_torch_files_without_torch_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "w.pt").write_bytes(b"")
    with pytest.raises(UsageError, match="or save the weights as"):
        read_state(tmp_path / "w.pt")
