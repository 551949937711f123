"""Mixed precision by hand: overrides by name pattern, in the pipeline's text and in a TOML file."""

import numpy as np
import pytest
from onnx_opt import UsageError
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._core.pipeline import parse
from onnx_opt.passes.quant import Quant
from quant_models import FEEDS, chain, initial, model_of, normal, ops, outputs, session


def quantized(layers, calibrated, **options):
    model = chain()
    outcome = Quant(layers=layers, **options).run(model, calibrated([FEEDS]))
    session(model)
    return model, outcome


def stored(model, name):
    """Form of a stored weight: the ending of its initializer's name, or `float`."""
    names = model.graph.initializers
    return next(
        (
            end
            for end in ("q", "int4", "packed", "q4", "q8")
            if f"{name}_{end}" in names
        ),
        "float" if name in names else "missing",
    )


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ((), ("q", "q", "q")),
        (("w2=float",), ("q", "float", "q")),
        (("w*=int8:4",), ("int4", "int4", "int4")),
        (("w2=int8:4", "w3=float"), ("q", "int4", "float")),
        (("w2=binary", "w*=ternary"), ("packed", "packed", "packed")),
        (("m=int8:3",), ("q", "int4", "q")),  # by the output's name
        (("w3=blocked:8",), ("q", "q", "float")),  # 7 inputs: fewer than a block
    ],
)
def test_what_a_layer_becomes(layers, expected, calibrated):
    model, _ = quantized(layers, calibrated)
    assert tuple(stored(model, name) for name in ("w1", "w2", "w3")) == expected


def test_the_first_match_wins(calibrated):
    model, _ = quantized(("w2=float", "w*=int8:4"), calibrated)
    assert (stored(model, "w1"), stored(model, "w2")) == ("int4", "float")
    model, _ = quantized(("w*=int8:4", "w2=float"), calibrated)
    assert stored(model, "w2") == "int4"


def test_overrides_come_before_the_ends(calibrated):
    model, _ = quantized(("w1=binary",), calibrated, form="binary")
    assert (stored(model, "w1"), stored(model, "w2"), stored(model, "w3")) == (
        "packed",
        "packed",
        "q",
    )


def test_an_override_takes_the_bits_of_the_pass(calibrated):
    model, _ = quantized(("w2=int8",), calibrated, bits=4)
    assert (stored(model, "w1"), stored(model, "w2")) == ("q", "int4")


def test_a_layer_left_float_says_so(calibrated):
    _, outcome = quantized(("w2=float",), calibrated, smooth=False)
    assert [(d.where, "the option layers" in d.reason) for d in outcome.declined] == [
        ("Conv m", True)
    ]


def test_a_layer_may_be_quantized_at_run_time_among_static_ones(calibrated):
    text = """
    <ir_version: 10, opset_import: ["" : 17]>
    mlp (float[N, 64] x) => (float[N, 64] y)
    { h = MatMul (x, w1)  r = Relu (h)  k = MatMul (r, w2)  s = Relu (k)  y = MatMul (s, w3) }
    """
    weights = {name: normal(64, 64) for name in ("w1", "w2", "w3")}
    model, feeds = model_of(text, **weights), {"x": normal(4, 64)}
    Quant(layers=("w2=dynamic",)).run(model, calibrated([feeds]))
    assert ops(model)["DynamicQuantizeLinear"] == ops(model)["MatMulInteger"] == 1
    assert ops(model)["QuantizeLinear"] == 2
    reference = outputs(model_of(text, **weights), feeds)
    np.testing.assert_allclose(
        outputs(model, feeds), reference, atol=0.05 * np.abs(reference).max()
    )


def test_a_table_in_a_file(calibrated, tmp_path):
    path = tmp_path / "layers.toml"
    path.write_text('[layers]\n"w1" = "float"\n"w*" = "int8:4"\n', encoding="utf-8")
    model, _ = quantized((f"@{path}", "w3=binary"), calibrated)
    assert tuple(stored(model, name) for name in ("w1", "w2", "w3")) == (
        "float",
        "int4",
        "int4",
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read"),
        ("[layers", "cannot be read"),
        ("[other]\n", "no table"),
        ('[layers]\n"w1" = 4\n', "no table"),
        ('[layers]\n"w1" = "int9"\n', "no form"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_bad_file_is_named(content, problem, tmp_path):
    path = tmp_path / "layers.toml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=problem):
        Quant(layers=(f"@{path}",))


@pytest.mark.parametrize(
    ("text", "problem", "fix"),
    [
        ("w1", "not PATTERN=FORM", "for example"),
        ("=float", "not PATTERN=FORM", "for example"),
        ("w1=flaot", "'flaot' is no form", "did you mean 'float'"),
        ("w1=int16", "no form of a single layer", ""),
        ("w1=int8:9", "no number of bits", "2 to 8"),
        ("w1=int8:", "no number of bits", "2 to 8"),
        ("w1=int8:-4", "no number of bits", "2 to 8"),
        ("w1=", "no form", "choose one of"),
    ],
)
def test_a_bad_entry_is_refused_with_a_fix(text, problem, fix):
    with pytest.raises(UsageError, match=problem) as error:
        Quant(layers=(text,))
    assert fix in error.value.fix
    assert error.value.where == "quant.layers"


def test_a_pattern_without_a_layer_names_the_nearest():
    with pytest.raises(UsageError, match=r"'w22\*' matches no layer") as error:
        Quant(layers=("w1=float", "w22*=float")).run(chain(), NullContext())
    assert "w2" in error.value.fix


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_names_that_no_layer_has_are_refused(option):
    with pytest.raises(UsageError, match="'w22' matches no layer") as error:
        Quant(**{option: ("w1", "w22")}).run(chain(), NullContext())
    assert error.value.where == f"quant.{option}"
    assert "w2" in error.value.fix


def test_a_layer_that_cannot_be_quantized_may_be_named(calibrated):
    text = """
    <ir_version: 10, opset_import: ["" : 17]>
    g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y)
    { [up] c = ConvTranspose (x, w)  y = Relu (c) }
    """
    outcome = Quant(exclude=("up",)).run(
        model_of(text, w=normal(4, 4, 1, 1)),
        calibrated([{"x": normal(1, 4, 6, 6)}]),
    )
    assert [d.reason for d in outcome.declined] == [
        "the target has no int8 ConvTranspose"
    ]


def test_a_name_that_simplify_gives_is_known(calibrated):
    text = """
    <ir_version: 10, opset_import: ["" : 17]>
    g (float[N, 8, 6, 6] x) => (float[N, 8, 6, 6] z)
    { c = Conv (x, w)  y = BatchNormalization (c, s, b, m, v)  z = Softmax (y) }
    """
    ones = np.ones(8, np.float32)
    model = model_of(
        text, w=normal(8, 8, 1, 1), s=ones, b=normal(8), m=normal(8), v=ones
    )
    feeds = [{"x": normal(1, 8, 6, 6)}]
    outcome = Quant(exclude=("w_scaled",)).run(model, calibrated(feeds))
    assert [d.reason for d in outcome.declined] == ["matched by exclude"]


@pytest.mark.parametrize(
    "text",
    [
        'quant(layers=["*conv1*=float", "fc*=int8", "blocks.3*=int8:4"])',
        'quant(layers=["@layers file.toml"])',
        'quant(binary, layers=["a[0-9]=float"], planes=2)',
    ],
)
def test_the_text_round_trips(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "layers file.toml").write_text(
        '[layers]\n"w1" = "float"\n', encoding="utf-8"
    )
    assert str(parse(text)) == text
    assert parse(str(parse(text))) == parse(text)


def test_the_spelling_without_quotes():
    (one,) = parse("quant:layers=[*conv1*=float,fc*=int8:4]").passes
    assert one == Quant(layers=("*conv1*=float", "fc*=int8:4"))
    (one,) = parse('quant(layers="fc.1=float")').passes
    assert one == Quant(layers=("fc.1=float",))


def test_names_with_equal_signs_and_colons(calibrated):
    model = chain()
    model.graph.initializers["w2"].name = "block:0/w=2"
    outcome = Quant(layers=("block:0/w=2=float",)).run(model, calibrated([FEEDS]))
    assert outcome.stats["layers"] == 2
    assert initial(model, "block:0/w=2").shape == (7, 8, 3, 3)
