"""From an ONNX model to a torch module: choose the weights, write the source, compile it."""

from __future__ import annotations

import linecache
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from ... import RefusedError, UsageError
from ._codegen import Emitter
from ._constants import stored_tensor
from ._dtypes import to_carrier
from ._gradient_flow import cuts_of
from ._latents import Latent, find_latents, scales_of
from ._layout import laid_out
from ._ops.cast import small_float
from ._program import Known, Program
from ._rounding import on_codebook, on_grid, on_palette, softened, within_limit
from ._scope import Scope
from ._weights import Origin, attribute_name, trainable_values
from .module import ATTRIBUTES, Provenance, TrainableModule, palette_names

Qat = Literal["off", "fixed", "weights", "learned"]
Arrays = Mapping[str, NDArray[Any]]
"""Arrays by the name of an initializer."""


def to_torch(
    model: ir.Model,
    *,
    train: bool | Collection[str] = True,
    taps: Sequence[str] = (),
    qat: Qat = "fixed",
    originals: Arrays | None = None,
    masks: Arrays | None = None,
    soft: bool = False,
) -> TrainableModule:
    """Make a module that computes what `model` computes, with the model's weights as Parameters.

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
    latents = {}
    if train is not False and qat != "off":
        latents = find_latents(model, originals)
    origins = _origins(model, train, qat, latents)
    names, sources = _named(origins, soft)
    shared = [value for value, origin in origins.items() if origin.shared]
    program = Program()
    functions = dict(model.functions)
    tapped = _tapped(model, taps)
    emitter = Emitter(
        program,
        sources,
        functions,
        qat != "off",
        shared,
        tapped,
    )
    _bind_rounding(program, origins, names)
    written = _write_graph(emitter, model)
    parameters = {names[value]: origin for value, origin in origins.items()}
    provenance = Provenance(
        model,
        origins=parameters | _palettes(parameters),
        cuts=cuts_of(list(written.outputs.items())),
        detached=emitter.detached,
        source=written.source,
        inputs={_name(value): value.dtype for value in written.inputs},
        optional=frozenset(
            _name(v) for v in written.inputs if v.const_value is not None
        ),
        outputs={name: _dtype(known) for name, known in written.outputs.items()},
    )
    run = _compiled(written.source, program, _graph_name(model))
    module = TrainableModule(provenance, run, program.buffers)
    _add_parameters(module, masks or {}, soft)
    others = [latent for codes, latent in latents.items() if codes not in origins]
    _hold_palettes(module, qat, others)
    return module


def _name(value: ir.Value) -> str:
    return value.name or ""


def _dtype(known: Known | None) -> ir.DataType | None:
    if known is None:
        return None
    return known.dtype


def _graph_name(model: ir.Model) -> str:
    return model.graph.name or "graph"


def _origins(
    model: ir.Model,
    train: bool | Collection[str],
    qat: Qat,
    latents: Mapping[ir.Value, Latent],
) -> dict[ir.Value, Origin]:
    """Find the constants to train, by the value that a parameter stands for."""
    origins = trainable_values(model, train, qat == "learned")
    if train is False:
        return origins
    # keyed by the codes, which may be unpacked from what is stored: the parameter replaces
    # all of the unpacking
    for codes, latent in latents.items():
        if _is_chosen(latent.value, train):
            origins[codes] = Origin(
                latent.graph,
                latent.value,
                latent.dtype,
                latent,
            )
    if qat == "weights":
        graph = model.graph.name or ""
        for scale, reach in scales_of(model, latents.values()).items():
            if _is_chosen(scale, train):
                dtype = stored_tensor(scale).dtype
                origins[scale] = Origin(graph, scale, dtype, reach=reach)
    if not isinstance(train, bool):
        _check_found(train, origins.values())
    return origins


def _is_chosen(value: ir.Value, train: bool | Collection[str]) -> bool:
    if isinstance(train, bool):
        return train
    return value.name in train


def _check_found(train: Collection[str], origins: Iterable[Origin]) -> None:
    missing = set(train) - {origin.name for origin in origins}
    if missing:
        raise UsageError(
            "train",
            f"no weight '{', '.join(sorted(missing))}'",
            "name initializers, or pass True",
        )


def _named(
    origins: Mapping[ir.Value, Origin], soft: bool
) -> tuple[dict[ir.Value, str], dict[ir.Value, str]]:
    """Return for each trained value its parameter's name, and the source that gives the value."""
    names: dict[ir.Value, str] = {}
    sources: dict[ir.Value, str] = {}
    taken = set(ATTRIBUTES)
    for value, origin in origins.items():
        name = attribute_name(origin.name, taken)
        taken.add(name)
        names[value] = name
    by_name = {name: origins[value] for value, name in names.items()}
    palettes = palette_names(by_name)
    for value, origin in origins.items():
        name = names[value]
        source = f"self.{name}"
        if origin.latent is not None:
            source = origin.latent.expression(
                source,
                f"self.{palettes.get(name)}",
                _rule_name(name),
                soft,
            )
        sources[value] = source
    return names, sources


def _palettes(parameters: Mapping[str, Origin]) -> dict[str, Origin]:
    """Return the palettes of codes that have one, by the names of their parameters."""
    found: dict[str, Origin] = {}
    for name, palette in palette_names(parameters).items():
        # of several weights that share one the first stands for all
        found.setdefault(palette, replace(parameters[name], is_palette=True))
    return found


def _hold_palettes(module: TrainableModule, qat: Qat, others: Iterable[Latent]) -> None:
    """Leave palettes as they are whose scales do not train either.

    `others`: codes that do not train. A codebook that they share stays, or there would be two.
    """
    palettes = [latent.palette for latent in others if latent.palette is not None]
    shared = {id(palette.values) for palette in palettes}
    for name, origin in module.origins.items():
        if not origin.is_palette:
            continue
        latent = origin.latent
        assert latent is not None
        assert latent.palette is not None
        is_shared = id(latent.palette.values) in shared
        if is_shared or qat in ("off", "fixed") or not latent.is_coarse:
            module.get_parameter(name).requires_grad_(False)


def _rule_name(parameter: str) -> str:
    return f"{parameter}_rule"


def _bind_rounding(
    program: Program, origins: Mapping[ir.Value, Origin], names: Mapping[ir.Value, str]
) -> None:
    """Bind the names that the expressions of latents use."""
    program.names.update(
        on_grid=on_grid,
        small_float=small_float,
        softened=softened,
        within_limit=within_limit,
        on_palette=on_palette,
        on_codebook=on_codebook,
    )
    for value, origin in origins.items():
        if origin.latent is not None and origin.latent.limit is not None:
            program.names[_rule_name(names[value])] = origin.latent.limit


def _add_parameters(module: TrainableModule, masks: Arrays, soft: bool) -> None:
    """Register the parameters of a module and the masks that hold their zeros."""
    for name, origin in module.origins.items():
        value = origin.value if origin.latent is None else origin.latent.codes
        start = laid_out(_start(origin, soft), value)
        parameter = torch.nn.Parameter(start)
        module.register_parameter(name, parameter)
        mask = masks.get(origin.name)
        kept = _kept(origin, mask)
        if kept is not None:
            module.mask(name, kept)


def _start(origin: Origin, soft: bool) -> torch.Tensor:
    """Return a parameter's first value."""
    latent = origin.latent
    if latent is None:
        weight = stored_tensor(origin.value).numpy()
        return to_carrier(weight, origin.dtype)
    if origin.is_palette:
        assert latent.palette is not None
        return torch.from_numpy(latent.palette.values).to(torch.float32)
    # 32-bit codes are more than float32 has digits for
    is_wide = origin.dtype == ir.DataType.INT32
    wide = torch.float64 if is_wide else torch.float32
    start: NDArray[Any] = latent.start
    if soft and latent.original is not None:
        start = latent.original
    return torch.from_numpy(start).to(wide)


def _kept(origin: Origin, mask: NDArray[Any] | None) -> torch.Tensor | None:
    """Return which elements of a parameter may differ from zero; None for all.

    Rounded codes are zero here and there by chance: of latents only zeros of a float original
    count.
    """
    if mask is None:
        mask = _nonzero(origin)
    if mask is None or mask.all():
        return None
    return torch.from_numpy(np.array(mask, dtype=bool))


def _nonzero(origin: Origin) -> NDArray[Any] | None:
    """Return which elements of a weight are not zero; None where its zeros mean nothing."""
    latent = origin.latent
    if latent is None:
        values = stored_tensor(origin.value).numpy()
    elif origin.is_palette:
        assert latent.palette is not None
        return latent.palette.may_move()
    elif latent.holds_zeros:
        values = latent.start
    else:
        return None
    # a vector is a bias or a scale: nobody prunes it, and a bias often starts at zero
    if values.ndim < 2:
        return None
    return np.asarray(values != 0)


@dataclass(frozen=True)
class WrittenGraph:
    """A main graph as source: its inputs, and its outputs and taps by name."""

    source: str
    inputs: list[ir.Value]
    outputs: dict[str, Known | None]


def _write_graph(emitter: Emitter, model: ir.Model) -> WrittenGraph:
    """Write the function that computes the outputs of the main graph and what is tapped."""
    program = emitter.program
    scope = Scope(_graph_name(model), dict(model.opset_imports))
    inputs = _callable_inputs(model)
    # a tap may be an output too
    wanted = [*model.graph.outputs, *emitter.taps]
    outputs = list(dict.fromkeys(wanted))
    nodes = list(model.graph)
    _open(program, inputs, scope)
    emitter.block(nodes, scope, outputs)
    known = _close(emitter, outputs, scope)
    source = "\n".join(program.lines) + "\n"
    names = [_name(value) for value in outputs]
    known_by_name = dict(zip(names, known, strict=True))
    return WrittenGraph(source, inputs, known_by_name)


def _callable_inputs(model: ir.Model) -> list[ir.Value]:
    """List the graph inputs that callers give."""
    if model.ir_version is None or model.ir_version >= 4:
        return list(model.graph.inputs)
    # before IR 4 every initializer is listed among the inputs
    return [value for value in model.graph.inputs if not value.is_initializer()]


def _tapped(model: ir.Model, taps: Sequence[str]) -> list[ir.Value]:
    """List the values of the main graph that have the names of `taps`."""
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    for node in model.graph:
        values.extend(node.outputs)
    known = {_name(value): value for value in values}
    for name in taps:
        if name not in known:
            raise UsageError(
                "taps",
                f"no value '{name}' in the main graph",
                "name an output of one of its nodes",
            )
    return [known[name] for name in taps]


def _open(program: Program, inputs: Sequence[ir.Value], scope: Scope) -> None:
    """Write the head of the function; inputs with defaults get them."""
    names = [f"x{index}" for index in range(len(inputs))]
    parameters = ["self", *(f"{name}=None" for name in names)]
    program.depth = 0
    program.line(f"def run({', '.join(parameters)}):")
    program.depth = 1
    program.line("device = self.anchor.device")
    for value, name in zip(inputs, names, strict=True):
        tensor = value.const_value
        if tensor is not None:
            constant = to_carrier(tensor.numpy(), tensor.dtype)
            default = Known(None, value.dtype, constant=constant)
            code = program.tensor_code(default)
            program.line(f"if {name} is None: {name} = {code}")
        scope.values[value] = Known(
            name,
            value.dtype,
            type=value.type,
            shape=value.shape,
        )


def _close(
    emitter: Emitter, outputs: Sequence[ir.Value], scope: Scope
) -> list[Known | None]:
    known = [emitter.value(value, scope) for value in outputs]
    codes = [
        "None" if output is None else emitter.program.tensor_code(output)
        for output in known
    ]
    emitter.program.line(f"return ({', '.join(codes)},)")
    return known


def _compiled(source: str, program: Program, graph: str) -> Any:
    """Return the generated function; tracebacks show its lines."""
    filename = f"<onnx graph {graph} {id(program):x}>"
    try:
        code = compile(source, filename, "exec")
    except (SyntaxError, RecursionError, MemoryError) as error:
        # the parser has a limit of nested blocks, and raises any of these beyond it
        raise RefusedError(
            f"graph '{graph}'",
            f"cannot be written as Python: {error}",
            "flatten nested Ifs",
        ) from error
    lines = source.splitlines(keepends=True)
    linecache.cache[filename] = (len(source), None, lines, filename)
    exec(code, program.names)
    return program.names["run"]
