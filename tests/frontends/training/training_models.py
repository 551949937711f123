"""Small graphs that train in a second, data for them, and ONNX Runtime in this very process."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
from onnx_opt.frontends.training import Environment, train
from onnx_opt.passes._core.training_recipe import TrainingRecipe

CLASSES, WIDTH, ROWS = 4, 6, 256

MLP = """
<ir_version: 10, opset_import: ["" : 21]>
mlp (float[n, 6] x) => (float[n, 4] y)
<float[6, 16] w1, float[16] b1, float[16, 4] w2, float[4] b2>
{
    a = MatMul (x, w1)
    h = Add (a, b1)
    r = Relu (h)
    c = MatMul (r, w2)
    y = Add (c, b2)
}
"""
SOFTMAX = MLP.replace("y = Add (c, b2)", "z = Add (c, b2)\n    y = Softmax (z)")
VALUES = MLP.replace("y = Add (c, b2)", "z = Add (c, b2)\n    y = Tanh (z)")
NARROW = MLP.replace("16", "8")
NOTHING = """
<ir_version: 10, opset_import: ["" : 21]>
nothing (float[n, 6] x) => (float[n, 6] y) { y = Relu (x) }
"""
ROUNDED = MLP.replace("y = Add (c, b2)", "z = Add (c, b2)\n    y = Round (z)")
CNN = """
<ir_version: 10, opset_import: ["" : 21]>
cnn (float[n, 1, 6, 6] x) => (float[n, 4] y)
<float[8, 1, 3, 3] k, float[8] scale, float[8] shift, float[8] mean, float[8] var, float[8,
    4] w, float[4] b>
{
    c = Conv <pads = [1, 1, 1, 1]> (x, k)
    s = BatchNormalization (c, scale, shift, mean, var)
    r = Relu (s)
    p = GlobalAveragePool (r)
    f = Flatten (p)
    y = Gemm (f, w, b)
}
"""


def model_of(text: str, seed: int = 0) -> ir.Model:
    """The model with random weights, small biases, and ones for `var` and `scale`."""
    declared = (
        text[text.index("<float") + 1 : text.rindex(">\n{")] if "<float" in text else ""
    )
    proto = onnx.parser.parse_model(
        text.replace(f"<{declared}>", "") if declared else text
    )
    random = np.random.default_rng(seed)
    for part in declared.split(", float"):
        if not part:
            continue
        shape_text, name = part.removeprefix("float").rsplit(" ", 1)
        shape = [int(d) for d in shape_text.strip("[]").split(",")]
        size = 0.1 if len(shape) == 1 else 2 / np.sqrt(np.prod(shape[:-1]))
        array = (
            np.ones(shape)
            if name in ("var", "scale")
            else size * random.normal(size=shape)
        )
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(array.astype(np.float32), name)
        )
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def pruned(model: ir.Model, fraction: float) -> ir.Model:
    """A copy with the smallest elements of each matrix zeroed."""
    copy = model.clone()
    for value in copy.graph.initializers.values():
        array = value.const_value.numpy().copy()
        if array.ndim > 1:
            array[np.abs(array) < np.quantile(np.abs(array), fraction)] = 0
            value.const_value = ir.Tensor(array, name=value.name)
    return copy


def rows(
    count: int = ROWS, shape: tuple[int, ...] = (WIDTH,), seed: int = 1
) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def batches(array: np.ndarray, size: int = 64, labels: np.ndarray | None = None):
    for start in range(0, len(array), size):
        yield (
            {"x": array[start : start + size]},
            None if labels is None else labels[start : start + size],
        )


class Local:
    """`Runtime` in this process."""

    @contextlib.contextmanager
    def runner(self, model, names):
        copy = model.clone()
        present = {value.name for value in copy.graph.outputs}
        for node in copy.graph:
            for value in node.outputs:
                if value.name in names and value.name not in present:
                    copy.graph.outputs.append(value)
        session = onnxruntime.InferenceSession(
            serialized(copy), providers=["CPUExecutionProvider"]
        )
        output_names = [o.name for o in session.get_outputs()]
        yield lambda feeds: dict(
            zip(output_names, session.run(None, feeds), strict=True)
        )


def serialized(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


def trained(
    student: ir.Model,
    teacher: ir.Model,
    data,
    seed: int = 0,
    folder=None,
    originals=None,
    runtime=None,
    **options,
):
    """`train` with a recipe from options; 60 steps unless they say more."""
    recipe = TrainingRecipe(**{"steps": 60, "holdout": 0.25, **options})
    environment = Environment(runtime or Local(), seed, originals, folder)
    return train(student, teacher, data, recipe, environment)


def weights(model: ir.Model) -> dict[str, np.ndarray]:
    return {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
    }


def outputs(model: ir.Model, x: np.ndarray) -> np.ndarray:
    with Local().runner(model, ()) as run:
        return run({"x": x})["y"]


def agreement(model: ir.Model, other: ir.Model, x: np.ndarray) -> float:
    return float(np.mean(outputs(model, x).argmax(1) == outputs(other, x).argmax(1)))


def relative_error(model: ir.Model, teacher: ir.Model, x: np.ndarray) -> float:
    """Squared error of the outputs, as a share of their square."""
    y, z = outputs(model, x), outputs(teacher, x)
    return float(np.square(y - z).sum() / np.square(z).sum())
