"""An ONNX model as a torch module: its graph as straight-line source, its float weights as Parameters."""

from __future__ import annotations

import linecache
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from ... import RefusedError, UsageError
from ._cuts import Cut, find_cuts
from ._dtypes import CARRIERS, carrier, to_carrier
from ._emit import Emitter
from ._program import Known, Program
from ._scope import Scope
from ._weights import Origin, attribute_name, trainable_values

Qat = Literal["off", "fixed", "learned"]


class TrainableModule(torch.nn.Module):  # type: ignore[misc] - torch comes without types here
    """Runs an ONNX graph in torch, with gradients. Made by `to_torch`.

    Inputs in the order of the graph or by name; numpy arrays are taken too. One output comes bare, several as a tuple:
    `output_names`, then `tap_names`. `origins`: parameter name -> what it came from. `cuts`: where gradients end.
    `source`: the Python that runs. Half precision is computed in float32, integers of odd widths in wider ones.
    """

    def __init__(
        self, model: ir.Model, program: Program, inputs: Sequence[ir.Value], outputs: Sequence[str],
        taps: Sequence[str],
    ) -> None:
        super().__init__()
        self.model = model
        self.input_names = [value.name or "" for value in inputs]
        self.input_dtypes = [value.dtype for value in inputs]
        self.output_names = list(outputs)
        self.tap_names = list(taps)
        self.origins: dict[str, Origin] = {}
        self.cuts: list[Cut] = []
        self.output_dtypes: list[ir.DataType | None] = []
        self.source = ""
        self.register_buffer("anchor", torch.empty(0), persistent=False)
        for name, tensor in program.buffers.items():
            self.register_buffer(name, tensor)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Outputs and taps of the graph; see the class."""
        given = [*inputs, *(named[name] for name in self.input_names[len(inputs):] if name in named)]
        values = [self._accept(value, dtype) for value, dtype in zip(given, self.input_dtypes, strict=False)]
        results = self._run(self, *values)
        return results[0] if len(results) == 1 else results

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Named inputs to named outputs and taps.

        Errors: UsageError for an input that is missing or unknown.
        """
        for name in {*feeds} ^ {*self.input_names}:
            problem = f"input '{name}' is not given" if name in self.input_names else f"no input '{name}'"
            if name in feeds or name not in self._optional:
                raise UsageError("feeds", problem, f"the model's inputs are {', '.join(self.input_names)}")
        values = [self._accept(feeds.get(n), d) for n, d in zip(self.input_names, self.input_dtypes, strict=True)]
        return dict(zip([*self.output_names, *self.tap_names], self._run(self, *values), strict=True))

    def _accept(self, value: Any, dtype: ir.DataType | None) -> Any:
        if isinstance(value, torch.Tensor):
            wanted = CARRIERS.get(dtype) if dtype is not None else None
            return value if wanted is None or value.dtype == wanted else value.to(wanted)
        if isinstance(value, list):
            return [self._accept(item, dtype) for item in value]
        if isinstance(value, (np.ndarray, np.generic)) and dtype in CARRIERS:
            assert dtype is not None
            return to_carrier(np.asarray(value), dtype).to(self.anchor.device)
        return value


def to_torch(
    model: ir.Model, *, train: bool | Collection[str] = True, taps: Sequence[str] = (), qat: Qat = "off",
    originals: Mapping[str, NDArray[Any]] | None = None,
) -> TrainableModule:
    """A module that computes what `model` computes and whose Parameters are the model's weights.

    `train`: True for all weights, False for none, or the names of the constants to train. `taps`: values of the main
    graph to return too. `model` is not changed; `write_back` puts trained weights into it.
    Errors: RefusedError for a node that cannot be run, UsageError for an unknown name in `train` or `taps`.
    """
    origins = trainable_values(model, train)
    _check_names(train, origins)
    names: dict[ir.Value, str] = {}
    for value, origin in origins.items():
        names[value] = attribute_name(origin.name, names.values())
    program = Program()
    inputs = _callable_inputs(model)
    emitter = Emitter(program, names, dict(model.functions), qat != "off")
    scope = Scope(model.graph.name or "graph", dict(model.opset_imports))
    outputs = [*model.graph.outputs, *_tapped(model, taps)]
    _open(program, inputs, scope)
    emitter.block(list(model.graph), scope, outputs)
    dtypes = _close(emitter, outputs, scope)
    module = TrainableModule(model, program, inputs, [v.name or "" for v in model.graph.outputs], taps)
    for value, origin in origins.items():
        array = origin_tensor(value).numpy()
        module.register_parameter(names[value], torch.nn.Parameter(to_carrier(array, origin.dtype)))
        module.origins[names[value]] = origin
    module.output_dtypes = dtypes
    module._optional = {v.name for v in inputs if v.const_value is not None}
    module.source = "\n".join(program.lines) + "\n"
    module._run = _compiled(module.source, program, scope.graph)
    module.cuts = find_cuts(model, origins.keys(), emitter.detached)
    return module


def origin_tensor(value: ir.Value) -> ir.TensorProtocol:
    """The tensor of an initializer or of a Constant node's output."""
    from ._weights import tensor_of

    producer = value.producer()
    tensor = value.const_value if producer is None else tensor_of(producer)
    assert tensor is not None
    return tensor


def _check_names(train: bool | Collection[str], origins: Mapping[ir.Value, Origin]) -> None:
    missing = set() if isinstance(train, bool) else set(train) - {o.name for o in origins.values()}
    if missing:
        names = ", ".join(sorted(missing))
        raise UsageError("train", f"no float constant '{names}'", "name initializers of the model, or pass True")


def _callable_inputs(model: ir.Model) -> list[ir.Value]:
    """Graph inputs that callers give; initializers that IR 3 lists among them are none."""
    old = model.ir_version is not None and model.ir_version < 4
    return [v for v in model.graph.inputs if not (old and v.is_initializer())]


def _tapped(model: ir.Model, taps: Sequence[str]) -> list[ir.Value]:
    known = {v.name: v for node in model.graph for v in node.outputs if v.name}
    known |= {v.name: v for v in (*model.graph.inputs, *model.graph.initializers.values())}
    for name in taps:
        if name not in known:
            raise UsageError("taps", f"no value '{name}' in the main graph", "name an output of one of its nodes")
    return [known[name] for name in taps]


def _open(program: Program, inputs: Sequence[ir.Value], scope: Scope) -> None:
    names = [f"x{index}" for index in range(len(inputs))]
    program.depth = 0
    program.line(f"def run({', '.join(['self', *(f'{n}=None' for n in names)])}):")
    program.depth = 1
    program.line("device = self.anchor.device")
    for value, name in zip(inputs, names, strict=True):
        if value.const_value is not None:
            default = Known(None, value.dtype, constant=to_carrier(value.const_value.numpy(), value.const_value.dtype))
            program.line(f"if {name} is None: {name} = {program.tensor_code(default)}")
        scope.values[value] = Known(name, value.dtype, type=value.type, shape=value.shape)


def _close(emitter: Emitter, outputs: Sequence[ir.Value], scope: Scope) -> list[ir.DataType | None]:
    codes, dtypes = [], []
    for value in outputs:
        known = emitter.value(value, scope)
        if known is None:
            codes.append("None")
            dtypes.append(None)
            continue
        codes.append(emitter.program.tensor_code(known))
        dtypes.append(known.dtype)
    emitter.program.line(f"return ({', '.join(codes)},)")
    return dtypes


def _compiled(source: str, program: Program, graph: str) -> Any:
    """The generated function; tracebacks show its lines."""
    filename = f"<onnx graph {graph} {id(program):x}>"
    try:
        code = compile(source, filename, "exec")
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise RefusedError(f"graph '{graph}'", f"cannot be written as Python: {error}", "flatten nested Ifs") from error
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    exec(code, program.names)
    return program.names["run"]


__all__ = ["TrainableModule", "carrier", "origin_tensor", "to_torch"]
