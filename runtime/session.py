"""Sessions of ONNX Runtime in a worker.

They run on the provider that was asked for, or are an error; never a silent fallback.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .. import OnnxOptError, RefusedError
from ..passes._core.freed import give_back
from ..passes._core.requirements import Requirements, requirements_of
from ._worker.ipc import OpenedSession, OrtTensor, Providers
from .installed import installed, too_old
from .providers import provider_named
from .table_rows import row_at_fault
from .worker import LimitExceeded, RemoteError, Worker, WorkerDied

Dim = int | str | None
"""Length of an axis: a number, the name of a symbol, or None where nothing is known."""

# ONNX Runtime names element types as C++ does, numpy by their bits
_DTYPES = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "string": "object",
    "bool": "bool",
    "int8": "int8",
    "int16": "int16",
    "int32": "int32",
    "int64": "int64",
    "uint8": "uint8",
    "uint16": "uint16",
    "uint32": "uint32",
    "uint64": "uint64",
}


class LoadRefused(RefusedError):
    """A model that ONNX Runtime does not load."""


def is_runtime_fault(error: OnnxOptError) -> bool:
    """True where ONNX Runtime itself refuses a model or dies of it; no limit of ours was met."""
    if isinstance(error, LimitExceeded):
        return False
    return isinstance(error, LoadRefused | WorkerDied)


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a model.

    `dtype`: numpy's name of it, `object` for text; what is not a tensor keeps ONNX Runtime's words,
    such as `seq(tensor(float))`. `shape`: axes without a fixed length are symbols by name, or None.
    `rows`: of the table that an input of ids indexes; None where that is not known.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    rows: int | None = None

    @property
    def is_tensor(self) -> bool:
        """True unless it is a sequence, map or optional value."""
        return "(" not in self.dtype


class Session:
    """A model loaded in a worker; the next use after the worker died loads it again."""

    def __init__(
        self,
        worker: Worker,
        path: Path,
        provider: str,
        options: Mapping[str, str],
        threads: int,
        optimize: bool,
        spin: bool = True,
        exact: bool = False,
        as_deployed: bool = False,
    ) -> None:
        self.worker = worker
        self.path = path
        self.provider = provider_named(provider)
        self.options = {**self.provider.options, **options}
        self.threads = threads
        self.optimize = optimize
        self.spin = spin
        self.exact = exact
        self.as_deployed = as_deployed
        self.inputs: list[TensorInfo] = []
        self.outputs: list[TensorInfo] = []
        self._generation = 0
        self._handle = -1

    def handle(self) -> int:
        """Number of the session in the child that runs now."""
        if not self._is_open():
            self._open()
        return self._handle

    def _is_open(self) -> bool:
        # a child that was started again knows nothing of its forerunner's sessions
        return self.worker.alive and self._generation == self.worker.generation

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the model on one batch of feeds: outputs by name.

        Errors: RemoteError with ONNX Runtime's message; WorkerDied.
        """
        outputs: dict[str, NDArray[Any]] = self._call("run", feeds)
        return outputs

    def run_rows(
        self, feeds: Mapping[str, NDArray[Any]], output: str, rows: Sequence[int]
    ) -> NDArray[Any]:
        """Run the model for some rows of one output: (B, T, ...) -> (B, n, ...).

        Only these leave the child: logits of a whole window may take hundreds of megabytes. Errors:
        as of `run`.
        """
        places = list(rows)
        found: NDArray[Any] = self._call("run_rows", feeds, output, places)
        return found

    def _call(
        self, function: str, feeds: Mapping[str, NDArray[Any]], *arguments: Any
    ) -> Any:
        """Call one of the child's functions that run the session."""
        try:
            return self.worker.call(function, self.handle(), dict(feeds), *arguments)
        except RemoteError as error:
            row = row_at_fault(error.problem, feeds)
            if row is not None:
                raise RemoteError(
                    self.path.name,
                    row,
                    "take the tokenizer.json that the model was trained with",
                    error.kind,
                ) from None
            raise RemoteError(
                self.path.name,
                f"ONNX Runtime fails to run it: {error.problem}",
                "check that the data fits the model's inputs",
                error.kind,
            ) from None

    def write_optimized(self, paths: Mapping[str, Path]) -> None:
        """Write ONNX Runtime's optimized graph: to a file for each level of `optimized.LEVELS`.

        It loads the model anew for each: the session is closed, and the next use opens it again.
        """
        self.close()
        files = {level: str(path) for level, path in paths.items()}
        self.worker.call("write_optimized", str(self.path), self._providers(), files)

    def profile(
        self, feeds: Sequence[Mapping[str, NDArray[Any]]], runs: int, optimized: Path
    ) -> dict[str, float]:
        """Time of each node in ms, by its name in the optimized graph, which is written.

        It loads the model anew, as `write_optimized` does. Errors: RemoteError; WorkerDied.
        """
        self.close()
        times: dict[str, float] = self.worker.call(
            "profile",
            str(self.path),
            self._providers(),
            [dict(batch) for batch in feeds],
            runs,
            self.threads,
            str(optimized),
        )
        return times

    def close(self) -> None:
        """Free the session in the child."""
        if self._handle >= 0 and self._is_open():
            self.worker.call("close_session", self._handle)
        self._handle = -1
        # no child has this generation: the next use opens the session again
        self._generation = 0

    def _providers(self) -> Providers:
        """Providers and their options, the preferred one first, as ONNX Runtime takes them."""
        providers = [(self.provider.ort_name, self.options)]
        if self.provider.partner:
            providers.append((self.provider.partner, {}))
        return providers

    def _open(self) -> None:
        # the child takes most of it now
        give_back()
        try:
            opened: OpenedSession = self.worker.call(
                "open_session",
                str(self.path),
                self.provider.name,
                self._providers(),
                self.provider.install,
                self.threads,
                self.optimize,
                self.spin,
                self.exact,
                self.as_deployed,
            )
        except RemoteError as error:
            raise self._refusal(error.problem) from None
        self._handle = opened.handle
        # after the call, which may have started the child
        self._generation = self.worker.generation
        self.inputs = [_tensor_info(value) for value in opened.inputs]
        self.outputs = [_tensor_info(value) for value in opened.outputs]

    def _refusal(self, words: str) -> LoadRefused:
        """Make the error for a model that ONNX Runtime refuses with these words."""
        needs = _needs_of(self.path)
        old = None if needs is None else too_old(installed(self.worker), needs)
        if old is not None:
            return LoadRefused(self.path.name, *old)
        # the path is no news to who gave it, and means nothing where it was ours
        words = words.removeprefix(f"Load model from {self.path} failed:")
        return LoadRefused(
            self.path.name,
            f"ONNX Runtime cannot load it: {words}",
            "run `onnx-opt inspect` on it; a newer onnxruntime may know its operators",
        )


def _needs_of(path: Path) -> Requirements | None:
    """Requirements of a model file; None where it cannot be read, which has an error of its own."""
    import onnx
    import onnx_ir as ir

    with contextlib.suppress(Exception):
        proto = onnx.load(path, load_external_data=False)
        return requirements_of(ir.from_proto(proto))
    return None


def open_session(
    worker: Worker,
    path: str | Path,
    provider: str = "cpu",
    options: Mapping[str, str] | None = None,
    threads: int = 0,
    optimize: bool = True,
    spin: bool = True,
    exact: bool = False,
    as_deployed: bool = False,
) -> Session:
    """Load a model in the worker's child.

    `options`: of the provider, in ONNX Runtime's words. `threads`: 0 is ONNX Runtime's choice.
    `optimize`: let ONNX Runtime optimize the graph. `spin`: let its threads burn their cores while
    they wait, which is faster where nothing else runs. `exact`: have it use slower kernels where
    8-bit products saturate (`session.x64quantprecision`), which it does to optimized graphs alone,
    and not where layers share a zero point. `as_deployed`: load it as an application does, for what
    that takes; otherwise a large model is loaded in a way that takes less memory.

    Errors: RefusedError when ONNX Runtime cannot load the model or lacks the provider; WorkerDied
    when it crashes.
    """
    session = Session(
        worker,
        Path(path).absolute(),
        provider,
        options or {},
        threads,
        optimize,
        spin,
        exact,
        as_deployed,
    )
    session.handle()
    return session


def _tensor_info(value: OrtTensor) -> TensorInfo:
    dims = tuple(_dim(length) for length in value.shape)
    return TensorInfo(value.name, _dtype(value.type), dims)


def _dtype(ort_type: str) -> str:
    if not ort_type.startswith("tensor("):
        return ort_type
    element = ort_type.removeprefix("tensor(").removesuffix(")")
    if "(" in element:
        return ort_type
    return _DTYPES.get(element, element)


def _dim(length: Any) -> Dim:
    if isinstance(length, int):
        # some exporters write -1 for an open length
        return length if length >= 0 else None
    if isinstance(length, str) and length:
        return length
    return None
