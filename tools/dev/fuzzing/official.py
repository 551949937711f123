"""The test models of the onnx package, through `simplify`: expected outputs stay expected."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from onnx import numpy_helper
from onnx.backend.test import loader
from onnx_opt import OnnxOptError
from onnx_opt.frontends.onnx_file import load
from onnx_opt.passes._core.context import NullContext
from onnx_opt.passes._core.normalize import normalize
from onnx_opt.passes.simplify import Simplify

from .builder import session_options
from .judge import (
    Original,
    Phases,
    Verdict,
    difference,
    first_line,
    last_call,
    structure_problem,
    written,
)

KINDS = ("node", "simple", "pytorch-operator", "pytorch-converted", "light")
"""Kinds of cases that the installed package holds or makes; `real` has links alone."""

Sets = list[tuple[list[Any], list[Any]]]
"""Inputs by position, and expected outputs; an input may be None."""


@cache
def cases(kinds: tuple[str, ...] = KINDS) -> dict[str, Any]:
    """Test cases by kind and name; making those of nodes takes seconds."""
    with warnings.catch_warnings():
        # they compute NaN on purpose
        warnings.simplefilter("ignore")
        found = [case for kind in kinds for case in loader.load_model_tests(kind=kind)]
    return {f"{case.kind}/{case.name}": case for case in found}


def official_verdict(
    name: str, phases: Phases, scratch: Path, kinds: tuple[str, ...] = KINDS
) -> Verdict:
    """Verdict on one case: unrunnable where the runtime does not give what it expects."""
    case = cases(kinds)[name]
    path, sets = _contents(case, scratch)
    phases.say("original")
    model = onnx.load(path)
    sets = [each for each in sets if _as_expected(path, model, each, case) is None]
    if not sets:
        return Verdict(name, "unrunnable")
    phases.say("simplify")
    out = scratch / "simplified.onnx"
    try:
        loaded = load(path)
        normalize(loaded)
        Simplify().run(loaded, NullContext())
        after = written(loaded)
    except OnnxOptError as error:
        return Verdict(name, "refused", f"{error.where}: {error.problem}")
    except Exception as error:
        return Verdict(name, "traceback", last_call(error))
    found = structure_problem(Original(model, [], []), after)
    if found:
        return Verdict(name, *found)
    onnx.save(after, out)
    for each in sets:
        problem = _as_expected(out, model, each, case)
        if problem:
            return Verdict(name, "wrong", problem)
    return Verdict(name, "ok")


def _contents(case: Any, scratch: Path) -> tuple[Path, Sets]:
    """File and data of a case, which has them in memory or in a folder."""
    if case.model is not None:
        path = scratch / "case.onnx"
        onnx.save(case.model, path)
        return path, list(case.data_sets)
    folder = Path(case.model_dir)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    sets = [
        (
            list(_tensors(data, "input", model.graph.input)),
            list(_tensors(data, "output", model.graph.output)),
        )
        for data in sorted(folder.glob("test_data_set_*"))
    ]
    return folder / "model.onnx", sets


def _tensors(folder: Path, stem: str, values: Any) -> Iterator[Any]:
    for index in range(len(list(folder.glob(f"{stem}_*.pb")))):
        data = (folder / f"{stem}_{index}.pb").read_bytes()
        kind = values[index].type.WhichOneof("value")
        if kind == "sequence_type":
            yield numpy_helper.to_list(onnx.SequenceProto.FromString(data))
        elif kind == "optional_type":
            yield numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
        else:
            yield numpy_helper.to_array(onnx.TensorProto.FromString(data))


def _as_expected(
    path: Path, model: onnx.ModelProto, data: tuple[list[Any], list[Any]], case: Any
) -> str | None:
    """Run a file on a data set; the first thing in which its outputs are not as expected."""
    inputs, expected = data
    names = [value.name for value in model.graph.input]
    feeds = {
        name: array
        for name, array in zip(names, inputs, strict=False)
        if array is not None
    }
    try:
        session = onnxruntime.InferenceSession(
            path, session_options(), providers=["CPUExecutionProvider"]
        )
        outputs = session.run(None, feeds)
    except Exception as error:
        return f"does not run: {first_line(error)}"
    # kernels that sum in another order differ by more than the reference allows itself
    return difference(expected, outputs, max(case.rtol, 1e-3), max(case.atol, 1e-5))
