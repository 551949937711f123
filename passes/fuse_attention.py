"""Transformer patterns replaced by operators that compute the same in one kernel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from ._base import Context, Declined, Effect, Option, Pass, PassOutcome
from ._core.edit import Edit
from ._core.graph import become, graphs_of, label, refresh_shapes
from ._core.ops import MICROSOFT, is_standard
from ._core.opset import OpsetRefused, raise_opset
from ._core.rewrites import permit, tried
from ._fusions.attention import Found, attention
from ._fusions.normalization import RootMeanSquare, root_mean_square
from ._fusions.rotary import Rotation, rotation
from ._fusions.shared import Shared
from .remove_unused import RemoveUnused
from .simplify import Simplify

FORMS = {
    "cpu": "runtime",
    "cpu-vnni": "runtime",
    "arm64": "runtime",
    "cuda": "runtime",
    "tensorrt": "standard",
    "generic": "standard",
    "openvino": "standard",
    "web": "runtime",
    "qnn": "standard",
    "coreml": "standard",
}
"""Form of attention by target: on CPUs ONNX Runtime's own is as fast or faster (measured).

On cuda it was not measured.
"""

FASTER = frozenset({"cpu", "cpu-vnni", "arm64"})
"""Targets whose kernels of the new operators are known: those of ONNX Runtime's CPU provider."""

KINDS = ("attention", "rotary", "normalization")

Match = Found | Rotation | RootMeanSquare


@dataclass(frozen=True)
class FuseAttention(Pass):
    """Replace each attention, rotary embedding and RMS normalisation by one operator.

    Effect: exact. Raises the opset to 23 if the new operators need it. Finds the patterns that
    exporters write:

    - attention over heads, with grouped queries (each key repeated by Expand and Reshape), masks
      that are added to the scores or written over them, and a scale on queries, keys or scores;
    - rotary embeddings that rotate halves of a head;
    - RMS normalisations over the last axis.

    Runs simplify first if there is something to fuse. Near matches are declined with the reason.
    Two things differ afterwards: the kernels accept no lengths of zero, and if a mask leaves a
    position nothing to attend to, opset 23's Attention gives zeros instead of NaN.

    Shapes: unchanged.

    Stats: `attention`, `rotary`, `normalization` (counts of new operators), `simplified` (count of
    rewrites by simplify beforehand).

    Source: follows from the definitions of the operators of opset 23.
    """

    name: ClassVar[str] = "fuse-attention"
    effect: ClassVar[Effect] = "exact"
    unit: ClassVar[str] = "operators"

    form: Literal["auto", "standard", "runtime"] = Option(
        "auto",
        "Attention of opset 23 (standard), or ONNX Runtime's own MultiHeadAttention (runtime); "
        "auto: by the target.",
    )

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        outcome = PassOutcome()
        form = FORMS[context.target] if self.form == "auto" else self.form
        fused = model.clone()
        with tried() as keep:
            # patterns lie behind what exporters write of shapes
            simplification = Simplify().run_within(fused, context)
            sweep = _Sweep(
                self.name,
                fused,
                form == "standard",
            )
            opset = sweep.opset()
            outcome.declined = sweep.declined
            if opset is None:
                return outcome
            try:
                raise_opset(fused, opset)
            except OpsetRefused as refused:
                outcome.declined.append(Declined("opset", str(refused)))
                return outcome
            sweep.write()
            outcome.declined = sweep.declined
            RemoveUnused().run_within(fused, context)
        outcome.changed = sweep.counts.total()
        outcome.stats = {**sweep.counts, "simplified": simplification.changed}
        if not outcome.changed:
            return outcome
        keep()
        become(model, fused)
        if not sweep.standard and sweep.counts["attention"]:
            model.opset_imports.setdefault(MICROSOFT, 1)
        refresh_shapes(model)
        return outcome


class _Sweep:
    """All patterns of a model in graph order, so that each is matched after earlier ones are
    written.

    `counts`: operators by kind. `declined`: the reason for each near match.
    """

    def __init__(self, pass_name: str, model: ir.Model, standard: bool) -> None:
        self.pass_name = pass_name
        self.model = model
        self.standard = standard
        self.counts = Counter(dict.fromkeys(KINDS, 0))
        self.declined: list[Declined] = []

    def opset(self) -> int | None:
        """The opset that the new operators need; None where there are none."""
        needed = [match.opset for _, match in self._matches()]
        return max(needed, default=None)

    def write(self) -> None:
        """Write every pattern that the gate and the interface allow."""
        shared = Shared(Edit(self.model))
        for node, match in self._matches():
            leave = permit(
                self.pass_name,
                match.kind,
                node,
            )
            if leave is not None and match.write(node, shared):
                leave.used()
                self.counts[match.kind] += 1

    def _matches(self) -> Iterator[tuple[ir.Node, Match]]:
        self.declined = []
        opset = self.model.opset_imports.get("", 1)
        for graph in graphs_of(self.model):
            # a list: nodes are added
            for node in list(graph):
                match = self._match(node, opset)
                if isinstance(match, str):
                    self.declined.append(Declined(label(node), match))
                elif match is not None:
                    yield node, match

    def _match(self, node: ir.Node, opset: int) -> Match | str | None:
        if is_standard(node, "MatMul"):
            return attention(
                node,
                opset,
                self.standard,
            )
        if is_standard(node, "Add"):
            return rotation(node)
        if is_standard(node, "Mul"):
            return root_mean_square(node)
        return None
