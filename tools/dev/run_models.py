"""Run models on feeds with the ONNX Runtime of this interpreter, which needs nothing else but
numpy.

    python run_models.py JOBS.json

JOBS.json: a list of {"model", "feeds", "outputs"}: paths of a model, of an .npz with one array an
input, and of the .npz to write. Prints one line of JSON a job, in order: {"error": null, or why it
did not load or run}.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def run(job):
    """Write the model's outputs, one array each, named out0, out1 …"""
    session = onnxruntime.InferenceSession(
        job["model"], providers=["CPUExecutionProvider"]
    )
    with np.load(job["feeds"]) as feeds:
        outputs = session.run(
            None, {value.name: feeds[value.name] for value in session.get_inputs()}
        )
    np.savez(
        job["outputs"], **{f"out{index}": array for index, array in enumerate(outputs)}
    )


def main():
    onnxruntime.set_default_logger_severity(4)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        error = None
        try:
            run(job)
        except Exception as problem:  # whatever it is, it is the answer
            error = f"{type(problem).__name__}: {problem}"
        print(json.dumps({"error": error}), flush=True)


if __name__ == "__main__":
    main()
