"""The model that is packaged as it runs here: its session, its samples, and their limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnx_ir as ir

from ... import RefusedError
from ...frontends.onnx_file import load
from ...passes._core.graph import all_nodes
from ...passes._core.ops import HALF_FLOATS
from ...passes._core.targets import Target, target_named
from ...runtime.bundles import (
    Limits,
    Reevaluation,
    ReferenceSample,
    expected,
    few,
    limits_of,
)
from ...runtime.feeds import open_feeds
from ...runtime.hardware import Hardware, hardware
from ...runtime.installed import installed
from ...runtime.session import LoadRefused, Session, open_session
from ...runtime.tolerance import COARSE, FLOAT32, Tolerance
from ...runtime.worker import Worker
from .._run.drift import synthetic_batches
from .._run.kernels import is_quantized
from .request import PackageRequest


@dataclass(frozen=True)
class PackagedModel:
    """A model, its request, and the session that runs it on the target's provider, or on the CPU.

    `onnxruntime`: its version. `warnings`: those for the user, which grow.
    """

    request: PackageRequest
    target: Target
    model: ir.Model
    session: Session
    hardware: Hardware
    onnxruntime: str
    warnings: list[str]

    @staticmethod
    def of(request: PackageRequest, worker: Worker) -> PackagedModel:
        """Load the model. Errors: RefusedError."""
        target = target_named(request.target)
        model = load(request.model)
        warnings: list[str] = []
        session = _session_on(worker, request, target, warnings)
        return PackagedModel(
            request,
            target,
            model,
            session,
            hardware(worker, session.provider.name),
            installed(worker).version,
            warnings,
        )

    @cached_property
    def samples(self) -> list[ReferenceSample]:
        """Samples: of the data, else made up. Errors: RefusedError where the model runs on none."""
        data = self.request.data
        session = self.session
        if data is None:
            self.warnings.append(
                "the samples are made up: with --data they are real inputs"
            )
            made_up, _ = synthetic_batches(session, self.request.seed)
            return expected(session, made_up)
        folder = self.request.folder
        feeds = open_feeds(data, session.inputs, folder, session.outputs)
        batches = few(feeds, session.inputs)
        self.warnings.extend(f"data: {message}" for message in feeds.warnings)
        return expected(session, batches)

    @cached_property
    def limits(self) -> Limits:
        """Limits on the distance of outputs, as measured here. Errors: RefusedError."""
        evaluations = list(self._evaluations())
        return limits_of(self.session, self.samples, evaluations, self._base())

    def _evaluations(self) -> Iterator[Reevaluation]:
        """Other evaluations of the model, whose outputs should be the same up to noise."""

        def opened(**options: Any) -> Session:
            session = self.session
            name = session.provider.name
            return open_session(session.worker, session.path, name, **options)

        yield Reevaluation("once more", opened)
        yield Reevaluation("one thread", lambda: opened(threads=1))
        yield Reevaluation("as written", lambda: opened(optimize=False))
        # elsewhere these products are exact
        if self.hardware.saturates and is_quantized(self.model):
            yield Reevaluation("without saturation", lambda: opened(exact=True))

    def _base(self) -> Tolerance:
        """Limits where nothing more was measured."""
        is_elsewhere = self.target.provider != self.session.provider.name
        # GPUs compute float32 in fewer bits (TF32, float16 of TensorRT)
        if is_elsewhere or self.target.provider != "cpu" or is_quantized(self.model):
            return COARSE
        for node in all_nodes(self.model):
            if any(output.dtype in HALF_FLOATS for output in node.outputs):
                return COARSE
        return FLOAT32


def _session_on(
    worker: Worker, request: PackageRequest, target: Target, warnings: list[str]
) -> Session:
    path = request.model.absolute()
    try:
        return open_session(worker, path, target.provider, as_deployed=True)
    except LoadRefused:
        raise
    except RefusedError as error:
        # no GPU, or a build of onnxruntime without it
        if target.provider == "cpu":
            raise
        warnings.append(
            f"{error.where}: {error.problem}: the expected outputs are the CPU's, and nothing was "
            f"tried on {target.provider}"
        )
        return open_session(worker, path, "cpu", as_deployed=True)
