"""torch.export in evaluation mode, with recurrent layers whole, silent, and errors in words."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.fx.experimental._config as fx_config
from torch.utils import _pytree as pytree

from ... import OnnxOptError, RefusedError
from .errors import as_refusal, user_line

_RECURRENT = {torch.ops.aten.lstm.input: 2, torch.ops.aten.gru.input: 1}
"""Recurrent ops -> number of their hidden states.

Their own kernels walk the sequence step by step, so tracing them would fix its length.
"""


def exported_program(
    module: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    dynamic_shapes: Any,
    where: str,
) -> Any:
    """Trace a module in evaluation mode by torch.export.export.

    Errors: RefusedError with cause, line and cure.
    """
    fresh_args = pytree.tree_map(_unmarked, tuple(args))
    fresh_kwargs = pytree.tree_map(_unmarked, dict(kwargs))
    try:
        with (
            quiet(),
            plain_attention(),
            whole_recurrences(),
            # otherwise an example of size 0 or 1 makes its axis static
            fx_config.patch(backed_size_oblivious=True),
        ):
            return torch.export.export(
                module,
                fresh_args,
                fresh_kwargs,
                dynamic_shapes=dynamic_shapes,
                strict=False,
            )
    except OnnxOptError:
        raise
    except Exception as error:
        raise as_refusal(error, where) from error


def onnx_program(program: Any, opset: int, where: str) -> Any:
    """An ExportedProgram in ONNX ops, weights shared with it. Errors: RefusedError."""
    try:
        with quiet(), whole_recurrences():
            return torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                # its optimizer folds parameters too; `tidy` keeps them
                optimize=False,
                verbose=False,
                external_data=False,
            )
    except Exception as error:
        raise as_refusal(error, where) from error


@contextlib.contextmanager
def evaluation(module: Any) -> Iterator[int]:
    """Put every submodule into evaluation mode, and afterwards back as it was.

    Yields the number of those that were in training mode.
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
    """Switch off the fast path of attention, which no exporter takes.

    It also fills padded positions with zeros, so torch's own outputs would differ.
    """
    former = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(former)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter's logs, warnings and printed graphs; its exceptions say what matters."""
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
    """Let LSTM and GRU only give shapes while tracing: they stay one op, of any length."""
    keys = (
        torch._C.DispatchKey.CompositeImplicitAutograd,
        torch._C.DispatchKey.Autograd,
    )
    tables: list[dict[Any, Any]] = [
        torch._decomp.decomposition_table,
        *(op.py_kernels for op in _RECURRENT),
    ]
    former = [dict(table) for table in tables]
    # tracing asks the ops' kernels and decomposing asks the table; a choice once made is cached
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
    """A kernel of aten.lstm.input or aten.gru.input whose outputs have shapes but no values."""

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
        # both directions lie side by side along the last axis
        width = initial[0].shape[-1] * (1 + bidirectional)
        output = x.new_empty((*x.shape[:-1], width))
        return (output, *(torch.empty_like(state) for state in initial))

    return kernel


def refuse_training(program: Any, where: str, captured_here: bool) -> None:
    """Refuse a program with layers in training mode, which its graph cannot undo.

    `captured_here`: it was traced in evaluation mode, so forward itself asks for training.

    Errors: RefusedError.
    """
    for node in program.graph.nodes:
        packet = str(getattr(node.target, "overloadpacket", ""))
        if not _trains(node, packet):
            continue
        if captured_here:
            line = user_line(node.meta.get("stack_trace"))
            raise RefusedError(
                where,
                f"{packet} trains in evaluation mode too{line}",
                "pass training=self.training there",
            )
        raise RefusedError(
            where,
            f"was captured in training mode ({packet})",
            "call module.eval(), then torch.export.export and torch.export.save again",
        )


def _trains(node: Any, packet: str) -> bool:
    """True for a dropout or batch normalization in training mode."""
    arguments = dict(node.kwargs)
    # positional arguments have their names in the schema only
    for parameter, value in zip(_schema(node), node.args, strict=False):
        arguments[parameter.name] = value
    if "dropout" in packet:
        return bool(arguments.get("train") or arguments.get("training"))
    return "batch_norm" in packet and bool(arguments.get("training"))


def _schema(node: Any) -> Sequence[Any]:
    schema = getattr(node.target, "_schema", None)
    return () if schema is None else schema.arguments


def _unmarked(value: Any) -> Any:
    """Another tensor of the same storage: torch.export writes marks on those that it is given."""
    return value.detach() if isinstance(value, torch.Tensor) else value
