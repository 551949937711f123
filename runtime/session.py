"""Sessions of ONNX Runtime in a worker: on the provider that was asked for, or an error; never a
silent fallback.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .. import RefusedError
from ..passes._core.context import KernelNode
from .targets import provider_named
from .worker import RemoteError, Worker

Dim = int | str | None

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


@dataclass(frozen=True)
class TensorInfo:
    """An input or output: name, numpy dtype name (`object` for text), shape with symbolic dims by
    name or None.

    What is not a tensor keeps ONNX Runtime's type text as its dtype, e.g. `seq(tensor(float))`.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    @property
    def is_tensor(self) -> bool:
        return "(" not in self.dtype


class Session:
    """A model loaded in a worker. If the worker died meanwhile, the next use loads the model
    again.
    """

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
    ) -> None:
        self.worker = worker
        self.path = path
        self.provider = provider_named(provider)
        self.options = {**self.provider.options, **options}
        self.threads = threads
        self.optimize = optimize
        self.spin = spin
        self.exact = exact
        self.inputs: list[TensorInfo] = []
        self.outputs: list[TensorInfo] = []
        self._generation = 0
        self._handle = -1

    def handle(self) -> int:
        """The session's number in the child as it runs now."""
        if self._generation != self.worker.generation or not self.worker.alive:
            self._open()
        return self._handle

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name. Errors: RemoteError with ONNX Runtime's message; WorkerDied."""
        try:
            outputs: dict[str, NDArray[Any]] = self.worker.call(
                "run", self.handle(), dict(feeds)
            )
        except RemoteError as error:
            raise RemoteError(
                self.path.name,
                f"ONNX Runtime fails to run it: {error.problem}",
                "check that the data fits the model's inputs",
                error.kind,
            ) from None
        return outputs

    def optimized_ops(self) -> dict[str, int]:
        """Counts of `domain.op` in ONNX Runtime's own optimized graph (`Conv`,
        `com.microsoft.QLinearAdd`).
        """
        counts: dict[str, int] = self.worker.call(
            "optimized_ops", str(self.path), self._providers(), self.threads
        )
        return counts

    def optimized_nodes(self) -> list[KernelNode]:
        """Nodes of ONNX Runtime's own optimized graph, those of subgraphs included."""
        nodes = self.worker.call(
            "optimized_nodes", str(self.path), self._providers(), self.threads
        )
        return [KernelNode(*fields) for fields in nodes]

    def close(self) -> None:
        """Free the session in the child."""
        if (
            self._handle >= 0
            and self.worker.alive
            and self._generation == self.worker.generation
        ):
            self.worker.call("close_session", self._handle)
        self._handle, self._generation = -1, 0

    def _providers(self) -> list[tuple[str, dict[str, str]]]:
        partner: list[tuple[str, dict[str, str]]] = (
            [(self.provider.partner, {})] if self.provider.partner else []
        )
        return [(self.provider.ort_name, self.options), *partner]

    def _open(self) -> None:
        p = self.provider
        try:
            self._handle, inputs, outputs = self.worker.call(
                "open_session",
                str(self.path),
                p.name,
                self._providers(),
                p.install,
                self.threads,
                self.optimize,
                self.spin,
                self.exact,
            )
        except RemoteError as error:
            raise RefusedError(
                self.path.name,
                f"ONNX Runtime cannot load it: {error.problem}",
                "run `onnx-opt inspect` on it; a newer onnxruntime may know its operators",
            ) from None
        self._generation = self.worker.generation
        self.inputs = [_tensor_info(*i) for i in inputs]
        self.outputs = [_tensor_info(*o) for o in outputs]


def open_session(
    worker: Worker,
    path: str | Path,
    provider: str = "cpu",
    options: Mapping[str, str] | None = None,
    threads: int = 0,
    optimize: bool = True,
    spin: bool = True,
    exact: bool = False,
) -> Session:
    """Load a model in the worker's child. `threads` 0 is ONNX Runtime's choice; `optimize` its
    graph optimizations; `spin` whether its threads burn their cores while they wait, which is
    faster where nothing else runs; `exact` makes ONNX Runtime use slower kernels where 8-bit
    products saturate (`session.x64quantprecision`), which it does to optimized graphs alone, and
    not where layers share a zero point.

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
    )
    session.handle()
    return session


def _tensor_info(name: str, kind: str, shape: list[Any]) -> TensorInfo:
    inner = kind.removeprefix("tensor(").removesuffix(")")
    dtype = (
        _DTYPES.get(inner, inner if "(" not in inner else kind)
        if kind.startswith("tensor(")
        else kind
    )
    dims = tuple(
        d
        if isinstance(d, int) and d >= 0
        else (d if isinstance(d, str) and d else None)
        for d in shape
    )
    return TensorInfo(name, dtype, dims)
