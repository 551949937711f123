"""torch.export as we want it: evaluation mode, recurrent layers whole, silent, and its errors in
words.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.fx.experimental._config as fx_config

from ... import OnnxOptError, RefusedError
from .errors import explained, user_line

_RECURRENT = {torch.ops.aten.lstm.input: 2, torch.ops.aten.gru.input: 1}
"""Ops whose own kernel walks the sequence step by step, which would fix its length; the number of
hidden states.
"""


def exported_program(
    module: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    dynamic_shapes: Any,
    where: str,
) -> Any:
    """`torch.export.export` of a module in evaluation mode. Errors: RefusedError: cause, line and
    cure.
    """
    fresh = [
        torch.utils._pytree.tree_map(_unmarked, part)
        for part in (tuple(args), dict(kwargs))
    ]
    try:
        with (
            quiet(),
            plain_attention(),
            whole_recurrences(),
            fx_config.patch(backed_size_oblivious=True),
        ):
            return torch.export.export(
                module, *fresh, dynamic_shapes=dynamic_shapes, strict=False
            )
    except OnnxOptError:
        raise
    except Exception as error:
        raise explained(error, where) from error


def onnx_program(program: Any, opset: int, where: str) -> Any:
    """An ExportedProgram in ONNX ops, weights shared with it. Errors: RefusedError."""
    try:
        with quiet(), whole_recurrences():
            return torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                optimize=False,
                verbose=False,
                external_data=False,
            )
    except Exception as error:
        raise explained(error, where) from error


@contextlib.contextmanager
def evaluation(module: Any) -> Iterator[int]:
    """Every submodule in evaluation mode, and afterwards as it was; yields how many were in
    training mode.
    """
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield len(training)
    finally:
        for part in training:
            part.training = True


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Without the fast path that fills padded positions with zeros, and that no exporter takes."""
    former = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(former)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter logs, warns and prints graphs; what matters of it is in its exceptions."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        torch.no_grad(),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(level)


@contextlib.contextmanager
def whole_recurrences() -> Iterator[None]:
    """While tracing, LSTM and GRU only say which shapes they give: they stay one op, of any
    length.
    """
    keys = (
        torch._C.DispatchKey.CompositeImplicitAutograd,
        torch._C.DispatchKey.Autograd,
    )
    tables: list[dict[Any, Any]] = [
        torch._decomp.decomposition_table,
        *(op.py_kernels for op in _RECURRENT),
    ]
    former = [dict(table) for table in tables]
    for op, states in _RECURRENT.items():
        kernel = _shapes_only(states)
        torch._decomp.decomposition_table[op] = kernel
        op.py_kernels.update(dict.fromkeys(keys, kernel))
        op._dispatch_cache.clear()
    try:
        yield
    finally:
        for table, entries in zip(tables, former, strict=True):
            table.clear()
            table.update(entries)
        for op in _RECURRENT:
            op._dispatch_cache.clear()


def _shapes_only(states: int) -> Any:
    def kernel(
        x: Any,
        hidden: Any,
        params: Any,
        has_biases: bool,
        layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> Any:
        initial = list(hidden) if states > 1 else [hidden]
        output = x.new_empty(
            (*x.shape[:-1], initial[0].shape[-1] * (1 + bidirectional))
        )
        return (output, *(torch.empty_like(state) for state in initial))

    return kernel


def refuse_training(program: Any, where: str, ours: bool) -> None:
    """Refuse a program with layers in training mode, which its graph cannot undo. `ours`: captured
    here, in evaluation mode, so that it is forward which does not ask for the mode.
    """
    for node in program.graph.nodes:
        packet = str(getattr(node.target, "overloadpacket", ""))
        arguments = {
            **node.kwargs,
            **{a.name: v for a, v in zip(_schema(node), node.args, strict=False)},
        }
        drops = "dropout" in packet and (
            arguments.get("train") or arguments.get("training")
        )
        learns = "batch_norm" in packet and bool(arguments.get("training"))
        if not (drops or learns):
            continue
        if ours:
            raise RefusedError(
                where,
                f"{packet} trains in evaluation mode too"
                f"{user_line(node.meta.get('stack_trace'))}",
                "pass training=self.training there",
            )
        raise RefusedError(
            where,
            f"was captured in training mode ({packet})",
            "call module.eval(), then torch.export.export and torch.export.save again",
        )


def _schema(node: Any) -> Sequence[Any]:
    schema = getattr(node.target, "_schema", None)
    return () if schema is None else schema.arguments


def _unmarked(value: Any) -> Any:
    """torch.export writes marks on the tensors that it is given: give it others of the same
    storage.
    """
    return value.detach() if isinstance(value, torch.Tensor) else value
