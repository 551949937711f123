"""A vision engineer: a classifier of many classes, and pictures in folders named by class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from PIL import Image
from samples import DEMO, digits, outputs
from visit import Visit

NEEDS = ("PIL",)
PICTURES = 63
STEP = 16
"""Class numbers between two digits: folders are called 0000, 0016 and so on."""

SPEC = """
size = [8, 8]
channels = "L"
scale = 1
layout = "NCHW"
"""


def replay(visit: Visit) -> None:
    model = visit.folder / "classifier.onnx"
    many_classes(model)
    pixels, classes = digits()
    pictures = visit.folder / "pictures"
    for index in range(PICTURES):
        folder = pictures / f"{classes[index] * STEP:04}"
        folder.mkdir(parents=True, exist_ok=True)
        picture = pixels[index, 0].astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{index}.png")
    scores = outputs(model, image=pixels[:PICTURES])[0]
    real = float((scores.argmax(1) == classes[:PICTURES] * STEP).mean())

    words = ("classifier.onnx", "--data", "pictures", "--metric", "top1")
    done = visit.run("eval", *words)
    visit.refuses("a missing preprocess file is explained", done, 3, "data init")
    done = visit.run("data", "init", "pictures")
    visit.check("the starter file is written", (pictures / "preprocess.toml").exists())
    done = visit.run("eval", *words)
    visit.check(
        "a wrong size is told by the spec", done.code == 3 and "size" in done.err
    )
    (pictures / "preprocess.toml").write_text(SPEC)
    done = visit.run("eval", *words, "--json")
    visit.check("top-1 is the real one", done.account["value"] == real)
    done = visit.run(*words, "--max-drop", "0.01", "--no-bench", "--json")
    visit.check("the budget is kept", done.code == 0)
    metric = done.account["metric"]
    visit.check("the account has the real top-1", metric["before"] == real)
    after = outputs(visit.folder / "classifier.opt.onnx", image=pixels[:PICTURES])[0]
    kept = float((after.argmax(1) == classes[:PICTURES] * STEP).mean())
    visit.check("and that of the result", metric["after"] == kept)
    warnings = " ".join(done.account["warnings"])
    visit.check("what 63 labels can tell is said", "63 labels" in warnings)


def many_classes(path: Path) -> None:
    """Write the demo's classifier of digits, its scores spread over 160 classes."""
    model = onnx.load(DEMO / "digits_cnn.onnx")
    place = np.zeros((10, 10 * STEP), np.float32)
    place[np.arange(10), np.arange(10) * STEP] = 1
    # the classes between never win
    floor = np.where(place.any(0), 0, -1000).astype(np.float32)
    graph = model.graph
    graph.initializer.extend(
        [
            onnx.numpy_helper.from_array(place, "place"),
            onnx.numpy_helper.from_array(floor, "floor"),
        ]
    )
    scores = graph.output[0].name
    node = onnx.helper.make_node("Gemm", [scores, "place", "floor"], ["scores"])
    graph.node.append(node)
    graph.output[0].name = "scores"
    graph.output[0].type.tensor_type.shape.dim[1].dim_value = 10 * STEP
    onnx.save(model, path)
