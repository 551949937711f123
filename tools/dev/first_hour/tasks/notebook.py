"""A notebook: a Result as a cell shows it, and a kernel whose streams are no terminals."""

from __future__ import annotations

import shutil

from samples import DEMO
from visit import Visit

NEEDS = ()

CELLS = """
import io, sys
import numpy as np

class KernelStream(io.TextIOBase):
    # as ipykernel's: text goes somewhere, but there is no file under it
    def __init__(self):
        self.texts = []
    def write(self, text):
        self.texts.append(text)
        return len(text)
    def isatty(self):
        return False
    def fileno(self):
        raise io.UnsupportedOperation("fileno")

screen = sys.stdout
sys.stdout = KernelStream()
sys.stderr = KernelStream()
import onnx_opt
data = np.load("calib.npz")
passes = "simplify, prune(sparsity=0.3, fit=false)"
result = onnx_opt.optimize("m.onnx", passes, data=data, bench=False)
said = "".join(sys.stdout.texts + sys.stderr.texts)
sys.stdout = screen
print(repr(result))
print(result._repr_html_()[:5])
print("sparsity=0.3" in str(result), "before" in result._repr_html_())
print("codes" if chr(27) in said + str(result) + result._repr_html_() else "plain")
facts = onnx_opt.inspect(result.model)
print(facts.figures["params"] == result.output.params, facts._repr_html_()[:5])
result.save("small.onnx")
"""


def replay(visit: Visit) -> None:
    shutil.copy(DEMO / "digits_cnn.onnx", visit.folder / "m.onnx")
    shutil.copy(DEMO / "digits_calib.npz", visit.folder / "calib.npz")
    done = visit.python(CELLS)
    visit.check(f"cells run without a terminal {done.err[-300:]}", done.code == 0)
    lines = done.out.splitlines()
    visit.check("repr is one short line", lines[0].startswith("Result("))
    visit.check("cells show the command's table", lines[1:3] == ["<pre>", "True True"])
    visit.check("no codes of terminals", lines[3] == "plain")
    visit.check("facts show themselves too", lines[4] == "True <pre>")
    visit.check("a result is saved", (visit.folder / "small.onnx").exists())
