"""Broken inputs: each is told in two lines, with what to do."""

from __future__ import annotations

import shutil

import numpy as np
from samples import DEMO, digits
from visit import Visit

NEEDS = ("PIL", "pyarrow")

METRIC = """
def ratio(outputs, labels):
    return helper(outputs)

def helper(outputs):
    return len(outputs) / 0
"""


def replay(visit: Visit) -> None:
    shutil.copy(DEMO / "digits_cnn.onnx", visit.folder / "m.onnx")
    pixels, classes = digits()
    np.savez(visit.folder / "test.npz", image=pixels[:64], labels=classes[:64])
    whole = (visit.folder / "m.onnx").read_bytes()
    (visit.folder / "half.onnx").write_bytes(whole[: len(whole) // 2])
    done = visit.run("half.onnx")
    visit.refuses("half a file", done, 3, "half.onnx")
    (visit.folder / "picture.onnx").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    visit.refuses("a picture as a model", visit.run("picture.onnx"), 3, "picture.onnx")

    (visit.folder / "mine.py").write_text(METRIC)
    done = visit.run(
        "eval", "m.onnx", "--data", "test.npz", "--metric", "mine.py:ratio"
    )
    visit.refuses("a metric that raises", done, 3, "ZeroDivisionError", "mine.py:6")
    bad = pixels[:64].copy()
    bad[5, 0, 0, 0] = np.nan
    np.savez(visit.folder / "nan.npz", image=bad)
    done = visit.run("m.onnx", "--data", "nan.npz", "--no-bench")
    visit.refuses("data that is not finite", done, 3, "NaN")
    (visit.folder / "t.csv").write_text("pixel,label\n1,2\n")
    done = visit.run("m.onnx", "--data", "t.csv", "--no-bench")
    visit.refuses("a table that does not fit", done, 3, "image")
    save_pictures(visit)
    done = visit.run("m.onnx", "--data", "pictures", "--no-bench")
    visit.refuses("two folders of one class", done, 3, "3", "03")
    shell = '"$python" -m onnx_opt inspect m.onnx | head -1; echo ${PIPESTATUS[0]} >&2'
    done = visit.python("", shell)
    visit.check("a closed stdout is no traceback", "Traceback" not in done.err)
    visit.check("and the first line is there", done.out.startswith("m.onnx"))


def save_pictures(visit: Visit) -> None:
    from PIL import Image

    for name in ("3", "03"):
        folder = visit.folder / "pictures" / name
        folder.mkdir(parents=True)
        Image.new("L", (8, 8), 7).save(folder / "one.png")
    spec = 'size = [8, 8]\nchannels = "L"\nscale = 1\n'
    (visit.folder / "pictures" / "preprocess.toml").write_text(spec)
