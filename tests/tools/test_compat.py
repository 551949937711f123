"""`onnx_opt.compat`: scripts written for onnxruntime.quantization, with one import changed."""

import inspect
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import onnxruntime.quantization
import pytest
from onnx_opt import RefusedError, UsageError, compat
from onnx_opt.compat import (
    CalibrationDataReader,
    CalibrationMethod,
    DynamicQuantConfig,
    QuantFormat,
    QuantType,
    StaticQuantConfig,
    quantize,
    quantize_dynamic,
    quantize_static,
)
from sample_models import CNN, MLP, model_from

WEIGHTS = {"table": (90, 64), "up": (64, 256), "up_bias": (256,), "down": (256, 64)}

TEXT_ENCODER = """
<ir_version: 8, opset_import: ["" : 17]>
encoder (int64[batch, words] input_ids) => (float[batch, words, 64] hidden)
{
    embedded = Gather (table, input_ids)
    raised = MatMul (embedded, up)
    biased = Add (raised, up_bias)
    kept = Relu (biased)
    hidden = MatMul (kept, down)
}
"""


class ImageReader(CalibrationDataReader):
    """As the resnet50_data_reader of onnxruntime's examples: the input's name asked of a session,
    images normalized one by one, an iterator that can be rewound.
    """

    def __init__(self, model_path, images):
        session = onnxruntime.InferenceSession(
            model_path, providers=["CPUExecutionProvider"]
        )
        self.input_name = session.get_inputs()[0].name
        self.images = images
        self.enum_data = None

    def get_next(self):
        if self.enum_data is None:
            self.enum_data = iter(
                [{self.input_name: image[None]} for image in self.images]
            )
        return next(self.enum_data, None)

    def rewind(self):
        self.enum_data = None


@pytest.fixture
def image_model(tmp_path):
    path = tmp_path / "cnn.onnx"
    onnx.save(model_from(CNN), path)
    return path


@pytest.fixture
def reader(image_model):
    shape = [
        dim.dim_value or 1
        for dim in onnx.load(image_model).graph.input[0].type.tensor_type.shape.dim
    ]
    images = np.random.default_rng(0).normal(size=(24, *shape[1:])).astype(np.float32)
    return ImageReader(str(image_model), images)


@pytest.fixture
def text_model(tmp_path):
    path = tmp_path / "bert.onnx"
    model = onnx.parser.parse_model(TEXT_ENCODER)
    random = np.random.default_rng(1)
    for name, shape in WEIGHTS.items():
        array = random.normal(size=shape).astype(np.float32) / 4
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, path)
    return path


def without_measure(result):
    """The pipeline's text without the option that all of these runs have."""
    text = result.about["passes"]
    assert "measure=false" in text
    text = text.replace(", measure=false", "").replace("measure=false", "")
    return text.replace("()", "")


def ops(path):
    return [node.op_type for node in onnx.load(path).graph.node]


def test_the_arguments_are_those_of_onnxruntime():
    for name in ("quantize", "quantize_static", "quantize_dynamic"):
        theirs = inspect.signature(getattr(onnxruntime.quantization, name)).parameters
        ours = inspect.signature(getattr(compat, name)).parameters
        positional = [
            each.name
            for each in ours.values()
            if each.kind is not inspect.Parameter.KEYWORD_ONLY
        ]
        # an older release lacks the last ones
        assert positional[: len(theirs)] == list(theirs)
    for name in (
        "QuantType",
        "QuantFormat",
        "CalibrationMethod",
        "StaticQuantConfig",
        "DynamicQuantConfig",
    ):
        assert getattr(compat, name) is getattr(onnxruntime.quantization, name)
    with pytest.raises(AttributeError):
        compat.quantise_static  # noqa: B018


def test_the_script_for_images_moves_over(image_model, reader, tmp_path):
    """After image_classification/cpu/run.py: everything that it passes, and no warning."""
    output = tmp_path / "cnn.quant.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = quantize_static(
            str(image_model),
            str(output),
            reader,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
    assert result.output_path == str(output)
    assert "QuantizeLinear" in ops(output)
    assert result.drift["sqnr_db"] > 15
    reader.rewind()
    feeds = reader.get_next()
    outputs = [
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
            None, feeds
        )[0]
        for path in (image_model, output)
    ]
    assert outputs[0].shape == outputs[1].shape


def test_the_script_for_bert_moves_over(text_model, tmp_path):
    """After the notebook of BERT on CPUs: paths and a type, nothing else."""
    output = tmp_path / "bert.opt.quant.onnx"
    quantize_dynamic(str(text_model), str(output), weight_type=QuantType.QInt8)
    found = ops(output)
    assert {"DynamicQuantizeLinear", "DynamicQuantizeMatMul"}.intersection(found)
    assert output.stat().st_size < text_model.stat().st_size


def test_what_has_no_counterpart_is_named(image_model, reader, tmp_path):
    with pytest.warns(UserWarning, match="is not followed") as caught:
        quantize_static(
            image_model,
            tmp_path / "out.onnx",
            reader,
            quant_format=QuantFormat.QOperator,
            weight_type=QuantType.QUInt8,
            nodes_to_exclude=["no such node"],
            use_external_data_format=True,
            calibrate_method=CalibrationMethod.MinMax,
            calibration_providers=["CUDAExecutionProvider"],
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "SmoothQuantAlpa": 0.5,
                "OpTypesToExcludeOutputQuantization": [],
            },
        )
    assert {warning.filename for warning in caught} == {__file__}
    named = [str(w.message).split(" is not followed: ") for w in caught]
    prefix = "quantize_static: "
    assert [(name.removeprefix(prefix), instead) for name, instead in named] == [
        (
            "quant_format=QOperator",
            "QDQ is written, of which ONNX Runtime makes the same kernels",
        ),
        (
            "weight_type=QUInt8",
            "weights are signed, of as many bits: CPUs are faster",
        ),
        (
            "extra_options['ActivationSymmetric']=True",
            "the target decides it (tensorrt: symmetric)",
        ),
        ("extra_options['SmoothQuantAlpa']=0.5", "did you mean 'SmoothQuantAlpha'?"),
        (
            "calibration_providers=['CUDAExecutionProvider']",
            "the model is calibrated on the provider of its target",
        ),
        (
            "use_external_data_format=True",
            "weights lie beside the file where it would be too large",
        ),
        ("nodes_to_exclude=['no such node']", "the model has no such nodes"),
    ]


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({"weight_type": "QInt16"}, "weight_type"),
        ({"weight_type": "QFLOAT8E4M3FN"}, "weight_type"),
        ({"activation_type": "QUInt4"}, "activation_type"),
        ({"calibrate_method": "Distribution"}, "calibrate_method"),
        (
            {"extra_options": {"TensorQuantOverrides": {"x": [{"scale": 1.0}]}}},
            "extra_options['TensorQuantOverrides']",
        ),
        ({"calibration_data_reader": None}, "calibration_data_reader"),
    ],
)
def test_what_would_make_another_result_is_refused(arguments, where, tmp_path):
    given = {"calibration_data_reader": [], **arguments}
    with pytest.raises(UsageError) as caught:
        quantize_static("model.onnx", tmp_path / "out.onnx", **given)
    assert caught.value.where == where
    assert list(tmp_path.iterdir()) == []


def test_nodes_are_chosen_by_name_and_operator(text_model, tmp_path):
    model = onnx.load(text_model)
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"
    named = tmp_path / "named.onnx"
    onnx.save(model, named)

    def text_of(**choice):
        result = quantize_dynamic(named, tmp_path / "out.onnx", **choice)
        return without_measure(result)

    assert text_of() == "quant(dynamic)"
    assert (
        text_of(nodes_to_exclude=["MatMul_4"]) == "quant(dynamic, exclude=[MatMul_4])"
    )
    assert text_of(nodes_to_quantize=["MatMul_4"]) == (
        "quant(dynamic, include=[MatMul_4])"
    )
    assert text_of(op_types_to_quantize=["MatMul"]) == "quant(dynamic, tables=float)"
    assert text_of(op_types_to_quantize=["MatMul", "Gather"]) == "quant(dynamic)"
    assert text_of(op_types_to_quantize=[]) == "quant(dynamic)"
    with pytest.warns(UserWarning, match="these have no weights, and follow"):
        text_of(nodes_to_exclude=["Relu_3"])
    for choice in (
        {"op_types_to_quantize": ["Conv"]},
        {"nodes_to_exclude": ["MatMul_1", "MatMul_4"]},
    ):
        with pytest.raises(RefusedError, match="is left to quantize"):
            text_of(**choice)


def test_ranges_and_reduced_weights(image_model, reader, tmp_path):
    def text_of(**arguments):
        reader.rewind()
        out = tmp_path / "out.onnx"
        return without_measure(quantize_static(image_model, out, reader, **arguments))

    method = CalibrationMethod.Percentile
    assert text_of(
        calibrate_method=method, extra_options={"CalibPercentile": 99.9}
    ) == ("quant(calibration=percentile, percentile=99.9)")
    # its weights saturate nowhere with 8 bits
    assert text_of(reduce_range=True) == "quant"
    assert text_of(reduce_range=True, target="cpu-vnni") == "quant(bits=7)"


def test_sixteen_bits_of_activations_are_written_where_they_are_run(
    image_model, reader, tmp_path
):
    out = tmp_path / "out.onnx"
    result = quantize_static(
        image_model, out, reader, activation_type=QuantType.QUInt16
    )
    assert result.about["target"] == "generic"
    types = {
        tensor.data_type
        for tensor in onnx.load(out).graph.initializer
        if tensor.data_type in (onnx.TensorProto.UINT16, onnx.TensorProto.INT16)
    }
    assert types == {onnx.TensorProto.UINT16}


def test_a_model_in_memory_is_taken(tmp_path):
    model = model_from(MLP)
    before = model.SerializeToString()
    quantize_dynamic(model, Path(tmp_path, "out.onnx"))
    assert model.SerializeToString() == before
    assert (tmp_path / "out.onnx").is_file()


# configurations


def test_a_static_configuration_is_the_call_with_its_values(
    image_model, reader, tmp_path
):
    config = StaticQuantConfig(
        reader,
        calibrate_method=CalibrationMethod.Percentile,
        weight_type=QuantType.QInt4,
        per_channel=True,
        extra_options={"CalibPercentile": 99.9},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = quantize(image_model, tmp_path / "a.onnx", config, force=True)
    reader.rewind()
    same = quantize_static(
        image_model,
        tmp_path / "b.onnx",
        reader,
        calibrate_method="Percentile",
        weight_type="QInt4",
        extra_options={"CalibPercentile": 99.9},
        force=True,
    )
    assert without_measure(result) == (
        "quant(calibration=percentile, percentile=99.9, bits=4)"
    )
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert result.about["passes"] == same.about["passes"]


def test_a_dynamic_configuration_needs_no_data(text_model, tmp_path):
    class Ours(DynamicQuantConfig):
        """As a script may keep its own defaults."""

    config = Ours(op_types_to_quantize=["MatMul"], reduce_range=True)
    result = quantize(text_model, tmp_path / "a.onnx", config, target="cpu-vnni")
    assert without_measure(result) == "quant(dynamic, bits=7, tables=float)"


def test_a_warning_shows_the_line_of_the_script(text_model, tmp_path):
    config = DynamicQuantConfig(weight_type=QuantType.QUInt8)
    with pytest.warns(UserWarning, match="weight_type=QUInt8 is not fol") as caught:
        quantize(text_model, tmp_path / "a.onnx", config)
    line = inspect.currentframe().f_lineno - 1
    assert [(each.filename, each.lineno) for each in caught] == [(__file__, line)]


def test_other_configurations_are_refused(text_model, tmp_path):
    class WeightOnlyQuantConfig:
        """As in onnxruntime's matmul_nbits_quantizer, which needs a package more."""

    class RTNWeightOnlyQuantConfig(WeightOnlyQuantConfig):
        pass

    for config, fix in (
        (RTNWeightOnlyQuantConfig(), r"quant\(blocked\)"),
        ({"per_channel": True}, "give a StaticQuantConfig or"),
        (StaticQuantConfig(None), "call quantize_dynamic"),
    ):
        with pytest.raises(UsageError, match=fix) as caught:
            quantize(text_model, tmp_path / "a.onnx", config)
        assert caught.value.where in ("quant_config", "calibration_data_reader")
    assert list(tmp_path.glob("a.onnx")) == []
