"""CI: JSON, exit codes and budgets; a second run of the same thing."""

from __future__ import annotations

import shutil

import numpy as np
from samples import DEMO, digits
from visit import Visit

NEEDS = ()


def replay(visit: Visit) -> None:
    shutil.copy(DEMO / "digits_cnn.onnx", visit.folder / "m.onnx")
    pixels, classes = digits()
    np.savez(visit.folder / "test.npz", image=pixels[:200], labels=classes[:200])
    words = ("m.onnx", "--data", "test.npz", "--metric", "top1", "--no-bench", "--json")

    done = visit.run(
        *words, "-p", "prune(sparsity=0.98, fit=false)", "--max-drop", "0.01"
    )
    found = done.account
    error = found["error"]
    visit.check("a missed budget exits with 4", done.code == error["exit_code"] == 4)
    drop = found["metric"]["before"] - found["metric"]["after"]
    visit.check("its object has the value", drop > 0.01)
    visit.check("the layers that did it too", found["passes"][0]["changed"] > 0)
    visit.check("nothing is written", not (visit.folder / "m.opt.onnx").exists())

    kept = visit.run(
        *words, "-p", "prune(sparsity=0.2, fit=false)", "--max-drop", "0.02"
    )
    visit.check("a budget that is kept exits with 0", kept.code == 0)
    visit.check("stderr is for people", kept.err == "")
    out = visit.folder / kept.account["output_path"]
    first = out.read_bytes()
    visit.run(*words, "-p", "prune(sparsity=0.2, fit=false)", "--max-drop", "0.02")
    visit.check("the same command, the same bytes", out.read_bytes() == first)

    for wrong, code in (
        (("none.onnx",), 3),
        (("m.onnx", "-p", "prun"), 2),
        (("m.onnx", "--data", "none.npz"), 3),
    ):
        done = visit.run(*wrong, "--json")
        error = done.account["error"]
        words_of_error = f"{' '.join(wrong)} exits with {code}"
        visit.check(
            words_of_error, done.code == error["exit_code"] == code and error["fix"]
        )
    done = visit.run("verify", "m.onnx", out, "--min-sqnr", "90", "--json")
    value = done.account["overall"]["sqnr_db"]
    visit.check("verify against a limit", done.code == 4 and value < 90)
