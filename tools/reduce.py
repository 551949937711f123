"""One reduction from file to file: read, check, search, write model and text."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnx.parser
import onnx.printer
import onnx_ir as ir

from .. import CheckError, UsageError
from ..frontends.onnx_file import check_output, read_in_memory, save
from ..passes._core.scratch import scratch_folder
from ._reduce.checks import CommandCheck, PipelineCheck
from ._reduce.reductions import REDUCTIONS
from ._reduce.search import Search
from ._reduce.subject import Subject, size_of
from .model_forms import as_file
from .optimize import Passes

ISSUE_CHARACTERS = 60_000
"""Characters of a text that fits an issue: GitHub's limit is 65,536."""


@dataclass(frozen=True)
class Sizes:
    """Counts of a model: nodes with those of bodies and functions, and bytes of its file."""

    nodes: int
    inputs: int
    outputs: int
    bytes: int

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Sizes:
        """Count a model."""
        graph = model.graph
        nodes = size_of(model)[0]
        return cls(nodes, len(graph.input), len(graph.output), model.ByteSize())


@dataclass(frozen=True)
class Reduced:
    """Result of a reduction.

    `symptom`: the failure that was kept, where a pipeline was the check. `is_text_whole`: the text
    can be parsed to the same model.
    """

    path: Path
    text_path: Path
    text: str
    is_text_whole: bool
    symptom: str | None
    checks: int
    seconds: float
    before: Sizes
    after: Sizes

    def __str__(self) -> str:
        """A line for people."""
        nodes = f"{self.before.nodes} nodes became {self.after.nodes}"
        size = f"{self.before.bytes} bytes {self.after.bytes}"
        effort = f"{self.checks} checks in {self.seconds:.0f} s"
        words = f"{nodes}, {size}; {effort}; {self.path} and {self.text_path.name}"
        if not self.is_text_whole or len(self.text) > ISSUE_CHARACTERS:
            words += "; attach the file: the text does not say all, or is too long for an issue"
        return words

    def to_json(self) -> dict[str, Any]:
        """The JSON form."""
        facts = asdict(self)
        return {**facts, "path": str(self.path), "text_path": str(self.text_path)}


def reduce(
    model: Any,
    *,
    check: str | None = None,
    passes: Passes | None = None,
    out: str | Path | None = None,
    timeout: float = 60,
    max_checks: int = 2000,
    tell: Callable[[str], None] = lambda words: None,
) -> Reduced:
    """Shrink a model while a check holds, and write what is left and its text.

    Either `check`, a command that exits with 0 for a model that still shows the fault, or `passes`,
    a pipeline that fails. `out`: the file to write, by default beside the file of the model; of a
    model in memory it has to be given. `tell` takes lines on progress.

    Errors: UsageError (options, paths), RefusedError (no model), CheckError where the check does
    not hold for the model itself.
    """
    if (check is None) == (passes is None):
        raise UsageError(
            "reduce",
            "needs either --check or --fails-with-passes",
            "give a command, or a pipeline that fails",
        )
    if out is None and not isinstance(model, (str, Path)):
        raise UsageError("out", "is not given, nor a file to write beside", "give out=")
    with as_file(model) as path:
        target = Path(out or path.with_name(f"{path.stem}.reduced.onnx"))
        check_output(target, path)
        whole = read_in_memory(path)
        where = str(path)
    start = time.monotonic()
    with scratch_folder() as folder:
        interesting: CommandCheck | PipelineCheck
        if check is not None:
            interesting = CommandCheck(check, timeout, Path(folder))
        else:
            assert passes is not None
            interesting = PipelineCheck(passes)
        _require(interesting, whole, where)

        def told(name: str, subject: Subject) -> None:
            tell(f"{name}: {size_of(subject.model)[0]} nodes, {search.tried} checks")

        search = Search(interesting, max_checks, told)
        smallest = search.smallest(whole, REDUCTIONS)
    text = str(onnx.printer.to_text(smallest))
    text_path = target.with_suffix(".txt")
    save(ir.from_proto(smallest), target)
    text_path.write_text(text + "\n", encoding="utf-8")
    return Reduced(
        path=target,
        text_path=text_path,
        text=text,
        is_text_whole=_is_whole(text, smallest),
        symptom=getattr(interesting, "symptom", None),
        checks=search.tried,
        seconds=time.monotonic() - start,
        before=Sizes.of(whole),
        after=replace(Sizes.of(smallest), bytes=target.stat().st_size),
    )


def _require(
    interesting: CommandCheck | PipelineCheck, model: onnx.ModelProto, where: str
) -> None:
    """Raise CheckError unless the check holds for the model as it came."""
    if not interesting(model):
        raise CheckError(
            where,
            f"does not show the fault itself: {interesting.outcome}",
            "give a check that holds for this model: exit code 0, or a pipeline that fails",
        )


def _is_whole(text: str, model: onnx.ModelProto) -> bool:
    """True if the text parses to a model of the same text."""
    # the parser lacks some of what the printer writes, such as NaN
    with contextlib.suppress(onnx.parser.ParseError, ValueError):
        return str(onnx.printer.to_text(onnx.parser.parse_model(text))) == text
    return False
