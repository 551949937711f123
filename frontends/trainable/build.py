"""From an ONNX model to a torch module: choose the weights, write the source, compile it."""

from __future__ import annotations

import linecache
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from ... import RefusedError, UsageError
from ._codegen import Emitter
from ._dtypes import to_carrier
from ._gradient_flow import cuts_of
from ._latents import find_latents, scales_of
from ._ops.cast import small_float
from ._ops.quant import on_grid, softened, within_limit
from ._program import Known, Program
from ._scope import Scope
from ._weights import Origin, attribute_name, stored_tensor, trainable_values
from .module import ATTRIBUTES, Provenance, TrainableModule

Qat = Literal["off", "fixed", "weights", "learned"]


def to_torch(
    model: ir.Model,
    *,
    train: bool | Collection[str] = True,
    taps: Sequence[str] = (),
    qat: Qat = "fixed",
    originals: Mapping[str, NDArray[Any]] | None = None,
    masks: Mapping[str, NDArray[Any]] | None = None,
    soft: bool = False,
) -> TrainableModule:
    """A module that computes what `model` computes and whose Parameters are the model's weights.

    `train`: True for all weights, False for none, or the names of the constants to train. `taps`:
    values of the main graph to return too. `qat`: "fixed" trains stored integers as floats on their
    grid (one each, in grid units), with straight-through gradients; "weights" the scales of weights
    of few bits too; "learned" all scales; "off" keeps integers as they are. `originals`: float
    weights by initializer name, from which such latents start. `masks`: initializer name -> which
    elements may differ from zero; zeros of float weights of two dims or more (and of originals) are
    held without being named. `soft`: latents start as the originals, whatever their codes, and are
    rounded as far as the module's `rounding` says, 0 to 1. `model` is not changed; `write_back`
    puts trained weights into it. Errors: RefusedError for a node that cannot be run, UsageError for
    an unknown name in `train` or `taps`.
    """
    origins = _origins(model, train, qat, originals)
    inputs, tapped = _callable_inputs(model), _tapped(model, taps)
    program = Program()
    names, sources = _named(origins, soft)
    shared = [value for value, origin in origins.items() if origin.shared]
    emitter = Emitter(program, sources, dict(model.functions), qat != "off", shared)
    program.names.update(
        on_grid=on_grid,
        small_float=small_float,
        softened=softened,
        within_limit=within_limit,
    )
    for value, origin in origins.items():
        if origin.latent is not None and origin.latent.limited is not None:
            program.names[_limit_name(names[value])] = origin.latent.limit
    scope = Scope(model.graph.name or "graph", dict(model.opset_imports))
    outputs = list(dict.fromkeys([*model.graph.outputs, *tapped]))
    _open(program, inputs, scope)
    emitter.block(list(model.graph), scope, outputs)
    known = _close(emitter, outputs, scope)
    source = "\n".join(program.lines) + "\n"
    provenance = Provenance(
        model,
        {names[value]: origin for value, origin in origins.items()},
        cuts_of([(v.name or "", k) for v, k in zip(outputs, known, strict=True)]),
        emitter.detached,
        source,
        {v.name or "": v.dtype for v in inputs},
        frozenset(v.name or "" for v in inputs if v.const_value is not None),
        {
            v.name or "": None if k is None else k.dtype
            for v, k in zip(outputs, known, strict=True)
        },
    )
    module = TrainableModule(
        provenance, _compiled(source, program, scope.graph), program.buffers
    )
    for name, origin in module.origins.items():
        module.register_parameter(name, torch.nn.Parameter(_start(origin, soft)))
        if (kept := _kept(origin, (masks or {}).get(origin.name))) is not None:
            module.mask(name, kept)
    return module


def _origins(
    model: ir.Model,
    train: bool | Collection[str],
    qat: Qat,
    originals: Mapping[str, NDArray[Any]] | None,
) -> dict[ir.Value, Origin]:
    """What is trained, by the value that it stands for."""
    origins = trainable_values(model, train, qat == "learned")
    latents = (
        find_latents(model, originals) if qat != "off" and train is not False else {}
    )
    for codes, latent in latents.items():
        if isinstance(train, bool) or latent.value.name in train:
            origins[codes] = Origin(latent.graph, latent.value, latent.dtype, latent)
    if qat == "weights" and train is not False:
        for scale, reach in scales_of(model, latents.values()).items():
            if train is True or scale.name in train:
                dtype = stored_tensor(scale).dtype
                origins[scale] = Origin(
                    model.graph.name or "", scale, dtype, reach=reach
                )
    missing = (
        set()
        if isinstance(train, bool)
        else set(train) - {o.name for o in origins.values()}
    )
    if missing:
        raise UsageError(
            "train",
            f"no weight '{', '.join(sorted(missing))}'",
            "name initializers, or pass True",
        )
    return origins


def _named(
    origins: Mapping[ir.Value, Origin], soft: bool
) -> tuple[dict[ir.Value, str], dict[ir.Value, str]]:
    """For each trained value the parameter's name, and the source that gives the value."""
    names: dict[ir.Value, str] = {}
    taken = set(ATTRIBUTES)
    sources: dict[ir.Value, str] = {}
    for value, origin in origins.items():
        names[value] = attribute_name(origin.name, taken)
        taken.add(names[value])
        parameter = f"self.{names[value]}"
        sources[value] = (
            parameter
            if origin.latent is None
            else origin.latent.expression(parameter, soft, _limit_name(names[value]))
        )
    return names, sources


def _limit_name(parameter: str) -> str:
    return f"{parameter}_limit"


def _start(origin: Origin, soft: bool) -> torch.Tensor:
    """A parameter's first value; 32-bit codes need double precision."""
    if origin.latent is None:
        return to_carrier(stored_tensor(origin.value).numpy(), origin.dtype)
    wide = torch.float64 if origin.dtype == ir.DataType.INT32 else torch.float32
    start = (
        origin.latent.original
        if soft and origin.latent.original is not None
        else origin.latent.start
    )
    return torch.from_numpy(start).to(wide)


def _kept(origin: Origin, mask: NDArray[Any] | None) -> torch.Tensor | None:
    """Which elements of a parameter may differ from zero; None for all.

    Rounded codes are zero here and there by chance: of latents only zeros of a float original
    count.
    """
    if mask is None:
        latent = origin.latent
        if latent is not None and not latent.holds_zeros:
            return None
        values = stored_tensor(origin.value).numpy() if latent is None else latent.start
        if values.ndim < 2:
            return None
        mask = values != 0
    return None if mask.all() else torch.from_numpy(np.array(mask, dtype=bool))


def _callable_inputs(model: ir.Model) -> list[ir.Value]:
    """Graph inputs that callers give; initializers that IR 3 lists among them are none."""
    old = model.ir_version is not None and model.ir_version < 4
    return [v for v in model.graph.inputs if not (old and v.is_initializer())]


def _tapped(model: ir.Model, taps: Sequence[str]) -> list[ir.Value]:
    made = [v for node in model.graph for v in node.outputs]
    known = {
        v.name or "": v
        for v in (*model.graph.inputs, *model.graph.initializers.values(), *made)
    }
    for name in taps:
        if name not in known:
            raise UsageError(
                "taps",
                f"no value '{name}' in the main graph",
                "name an output of one of its nodes",
            )
    return [known[name] for name in taps]


def _open(program: Program, inputs: Sequence[ir.Value], scope: Scope) -> None:
    names = [f"x{index}" for index in range(len(inputs))]
    program.depth = 0
    program.line(f"def run({', '.join(['self', *(f'{n}=None' for n in names)])}):")
    program.depth = 1
    program.line("device = self.anchor.device")
    for value, name in zip(inputs, names, strict=True):
        if value.const_value is not None:
            default = Known(
                None,
                value.dtype,
                constant=to_carrier(value.const_value.numpy(), value.const_value.dtype),
            )
            program.line(f"if {name} is None: {name} = {program.tensor_code(default)}")
        scope.values[value] = Known(
            name, value.dtype, type=value.type, shape=value.shape
        )


def _close(
    emitter: Emitter, outputs: Sequence[ir.Value], scope: Scope
) -> list[Known | None]:
    known = [emitter.value(value, scope) for value in outputs]
    codes = ["None" if k is None else emitter.program.tensor_code(k) for k in known]
    emitter.program.line(f"return ({', '.join(codes)},)")
    return known


def _compiled(source: str, program: Program, graph: str) -> Any:
    """The generated function; tracebacks show its lines."""
    filename = f"<onnx graph {graph} {id(program):x}>"
    try:
        code = compile(source, filename, "exec")
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise RefusedError(
            f"graph '{graph}'",
            f"cannot be written as Python: {error}",
            "flatten nested Ifs",
        ) from error
    linecache.cache[filename] = (
        len(source),
        None,
        source.splitlines(keepends=True),
        filename,
    )
    exec(code, program.names)
    return program.names["run"]
