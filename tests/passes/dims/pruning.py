"""Solve a model given as text, prune it, and run it beside its masked reference."""

import re

import numpy as np
import onnx
import onnx_ir as ir
from calibrated_context import run_session
from exactness import HEADER, KINDS
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._channels.prepare import prepare
from onnx_opt.passes._dims.groups import channel_groups, kept_slots
from onnx_opt.passes._dims.reference import masked_reference
from onnx_opt.passes._dims.remove import remove_slots
from onnx_opt.passes._dims.rules import relate
from onnx_opt.passes._dims.solve import FROZEN, solve
from onnx_opt.passes._dims.trace import traced


def model_of(text, seed=0):
    """A prepared model; tensors that are declared in `<...>` without values become random
    initializers.
    """
    proto = onnx.parser.parse_model(
        text if text.lstrip().startswith("<") else HEADER + text
    )
    random = np.random.default_rng(seed)
    made = {name for node in proto.graph.node for name in node.output}
    for info in proto.graph.value_info:
        if info.name not in made:
            shape = [d.dim_value for d in info.type.tensor_type.shape.dim]
            kind = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
            floating = np.issubdtype(kind, np.floating)
            values = (
                random.uniform(0.1, 1.5, shape)
                if floating
                else random.integers(1, 8, shape)
            )
            proto.graph.initializer.append(
                onnx.numpy_helper.from_array(values.astype(kind), info.name)
            )
    del proto.graph.value_info[:]
    model = ir.from_proto(proto)
    prepare(model, NullContext())
    return model


def solved(model, attention="heads"):
    return solve(relate(model, traced(model)), attention)


def pattern(solution, places):
    """Slots of the given "value[axis]" as letters, one for each channel in order of appearance; a
    dot stays.
    """
    values = {value.name: value for value in solution.relations.trace.shapes}
    letters, found = {FROZEN: "."}, {}
    for place in places:
        name, axis = re.fullmatch(r"(.+)\[(-?\d+)\]", place).groups()
        slots = solution.slots(
            values[name], int(axis) % len(solution.relations.trace.shapes[values[name]])
        )
        found[place] = "".join(
            letters.setdefault(s, chr(ord("a") + len(letters) - 1))
            for s in slots.tolist()
        )
    return found


def assert_exact(model, solution, seed=0, ratio=0.5, batches=(3, 2)):
    """Take random channels of every group; gives how many weights (elements) went."""
    random = np.random.default_rng(seed)
    removed = [
        random.permutation(g.channels)[: int(ratio * len(g.channels))]
        for g in channel_groups(solution)
    ]
    kept = kept_slots(
        solution, np.concatenate(removed) if removed else np.empty(0, np.intp)
    )
    pruned = model.clone()
    remove_slots(pruned, kept, solution.relations.trace)
    onnx.checker.check_model(ir.to_proto(pruned))
    sessions = [
        run_session(each) for each in (masked_reference(model, solution, kept), pruned)
    ]
    for batch in batches:
        feeds = {i.name: _feed(i, batch, random) for i in sessions[0].get_inputs()}
        for wanted, got in zip(
            *(session.run(None, feeds) for session in sessions), strict=True
        ):
            assert wanted.size < 2 or np.std(wanted.astype(float)) > 0
            tolerance = 1e-2 if wanted.dtype == np.float16 else 1e-4
            np.testing.assert_allclose(
                got,
                wanted,
                rtol=tolerance,
                atol=tolerance * np.abs(wanted).max(initial=0),
            )
    return _elements(model) - _elements(pruned)


def _feed(tensor, batch, random):
    shape = [d if isinstance(d, int) else batch for d in tensor.shape]
    values = (
        random.normal(0.2, 1, shape)
        if "float" in tensor.type
        else random.integers(0, 4, shape)
    )
    return values.astype(KINDS[tensor.type])


def _elements(model):
    return sum(
        v.const_value.size
        for v in model.graph.initializers.values()
        if v.dtype != ir.DataType.INT64
    )
