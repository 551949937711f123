"""Losses of all forms of all weights, estimated from gradients in one pass over the samples.

The layers in their new forms are those that measuring swaps in, each alone on the values that the
float model has there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from numpy.typing import NDArray

from ... import UsageError
from ...passes._core.chains import made_of_constants
from ...passes._core.joined import submodel
from ...passes._core.output_drift import in_batches
from ...passes._core.output_errors import OutputErrors
from ...runtime.batching import RowLimit, micro_batches
from .._run.figures import input_infos
from .._run.loss_probes import Twins
from .lab import Lab, Made
from .measure import float_bytes, samples_within
from .swaps import Swap, comparable, swapped, swaps

if TYPE_CHECKING:
    from ...frontends.output_errors import LayerChange


def errors_of_forms(lab: Lab, forms: Mapping[str, Made], samples: int) -> OutputErrors:
    """Estimated errors by weight and form, over at most so many samples.

    Errors: UsageError without data or torch, RefusedError where the model cannot be trained.
    """
    # here, not above: torch takes seconds to load, and may not be installed
    from ...frontends.output_errors import estimated_errors

    total: OutputErrors | None = None
    for reference, layers in _by_reference(forms):
        for batch in in_batches(layers, _bytes_of):
            found = estimated_errors(
                reference,
                batch,
                _runs(lab, samples),
                lab.context.seed,
            )
            total = found if total is None else total.beside(found)
    assert total is not None
    return total


def estimate_samples(forms: Mapping[str, Made]) -> int:
    """Samples for an estimate: each takes runs of the model, of its gradients and of all forms."""
    from ...frontends.output_errors import DRAWS

    largest = max(sum(float_bytes(made.reference).values()) for made in forms.values())
    return samples_within(1 + DRAWS + len(forms), largest)


def _runs(lab: Lab, samples: int) -> Iterator[Mapping[str, NDArray[Any]]]:
    """Feeds of one sample each; whole batches of a model that fixes their size."""
    if lab.context.feeds is None:
        raise UsageError(
            "calibration",
            "no calibration data",
            "pass --data (command line) or data= (Python)",
        )
    parts = micro_batches(
        lab.context.feeds,
        input_infos(lab.model),
        samples,
        RowLimit(),
    )
    with lab.run.reporter("what forms cost, by gradients", samples) as advance:
        for part in parts:
            yield part.feeds
            advance(part.rows)


def _by_reference(
    forms: Mapping[str, Made],
) -> list[tuple[ir.Model, list[LayerChange]]]:
    """Layers in their new forms by the float model that they are part of.

    Passes may rewrite the float model before they round it; mostly all do so alike.
    """
    found: dict[str, tuple[ir.Model, list[LayerChange]]] = {}
    for form, made in forms.items():
        whole = comparable(made.reference, made.result)
        key = _fingerprint(whole)
        _, layers = found.setdefault(key, (whole, []))
        layers += _layers(whole, made.result, form)
    return list(found.values())


def _layers(whole: ir.Model, result: ir.Model, form: str) -> list[LayerChange]:
    """The layers of all weights that have another form in a result."""
    from ...frontends.output_errors import LayerChange

    twins = Twins(result)
    nodes = list(whole.graph)
    made = made_of_constants(whole)
    layers = []
    for swap in swaps(whole, twins):
        for place, index in swap.layers:
            alone = _alone(whole, nodes[place], made)
            single = Swap(swap.weight, layers=[(_place_in(alone, nodes[place]), index)])
            changed = swapped(alone, twins, single).model
            layers.append(LayerChange((swap.weight, form), changed))
        for place in swap.tables:
            alone = _alone(whole, nodes[place], made)
            single = Swap(swap.weight, tables=[_place_in(alone, nodes[place])])
            changed = swapped(alone, twins, single).model
            layers.append(LayerChange((swap.weight, form), changed))
    return layers


def _alone(model: ir.Model, node: ir.Node, made: Mapping[ir.Value, bool]) -> ir.Model:
    """A model of one layer and the constants that it reads."""
    return submodel(model, _activations(node, made), _results(node))


def _place_in(alone: ir.Model, node: ir.Node) -> int:
    """Place of a layer among the nodes of its own model."""
    (index,) = _places(alone, _results(node))
    return index


def _activations(node: ir.Node, made: Mapping[ir.Value, bool]) -> list[str]:
    """Names of a layer's inputs that differ from run to run."""
    names = []
    for value in node.inputs:
        if value is None or value in made:
            continue
        if value.const_value is None or value.is_graph_input():
            names.append(value.name or "")
    return list(dict.fromkeys(names))


def _results(node: ir.Node) -> list[str]:
    """Names of a layer's outputs that something reads."""
    read = [value for value in node.outputs if value.uses() or value.is_graph_output()]
    return [value.name or "" for value in read]


def _places(model: ir.Model, outputs: Sequence[str]) -> list[int]:
    """Places of the nodes that make some values."""
    found = []
    for index, node in enumerate(model.graph):
        if any(value.name in outputs for value in node.outputs):
            found.append(index)
    return found


def _bytes_of(layer: LayerChange) -> int:
    """Memory of a layer: of its weights as floats, whatever they are stored as."""
    tensors = [value.const_value for value in layer.layer.graph.initializers.values()]
    return sum(tensor.size * 4 for tensor in tensors if tensor is not None)


def _fingerprint(model: ir.Model) -> str:
    """A text that is the same for models that compute the same values under the same names."""
    digest = hashlib.sha256()
    for node in model.graph:
        digest.update(str(node).encode())
    for name, value in sorted(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None:
            digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
            digest.update(tensor.tobytes())
    return digest.hexdigest()
