"""The part of a lossy pass that the runtime does not bear stays as it was.

The runtime's faults are scripted: what this version of ONNX Runtime refuses another may run.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx_opt import CheckError, RefusedError, UsageError, optimize
from onnx_opt.frontends.onnx_file import load
from onnx_opt.passes._base import Declined, Option, Pass, PassOutcome
from onnx_opt.passes._core.graph import label
from onnx_opt.passes._core.opset import OpsetRefused
from onnx_opt.passes._core.patterns import layer_names, left_out
from onnx_opt.runtime._worker.ipc import Installed
from onnx_opt.runtime.session import LoadRefused
from onnx_opt.runtime.worker import LimitExceeded, RemoteError, WorkerDied
from onnx_opt.tools._run import spare
from onnx_opt.tools._run import step as step_module
from onnx_opt.tools._run.drift import Reference

# seven layers, one without a name
CHAIN = """
<ir_version: 8, opset_import: ["" : 17]>
chain (float[N, 2] x) => (float[N, 2] y)
<float[2, 2] w = {1, 2, -1, 1}>
{
    [a] ha = MatMul (x, w)
    [b] hb = MatMul (ha, w)
    hc = MatMul (hb, w)
    [d] hd = MatMul (hc, w)
    ra = Relu (hd)
    [e] he = MatMul (ra, w)
    [f] hf = MatMul (he, w)
    [g] y = MatMul (hf, w)
}
"""

DIED = "ONNX Runtime's process died (SIGSEGV)"


@dataclass(frozen=True)
class Negate(Pass):
    """Mark layers, so that the script sees which are changed.

    Effect: lossy. Touches MatMul.

    Source: follows from the definition.
    """

    name: ClassVar[str] = "negate"
    effect: ClassVar[str] = "lossy"

    exclude: tuple[str, ...] = Option((), "Layers to leave.")
    raises: int = Option(0, "Opset to raise to.")

    def run(self, model, context):
        outcome = PassOutcome()
        for node in list(model.graph):
            if node.op_type != "MatMul":
                continue
            reason = left_out(layer_names(node), (), self.exclude)
            if reason:
                outcome.declined.append(Declined(label(node), reason))
                continue
            node.doc_string = "changed"
            outcome.changed += 1
        if outcome.changed and self.raises:
            model.opset_imports[""] = self.raises
        return outcome


@dataclass(frozen=True)
class NegateAll(Pass):
    """The same without any choice.

    Effect: lossy. Touches MatMul.

    Source: follows from the definition.
    """

    name: ClassVar[str] = "negate-all"
    effect: ClassVar[str] = "lossy"

    def run(self, model, context):
        return Negate().run(model, context)


@pytest.fixture
def chain(tmp_path):
    path = tmp_path / "chain.onnx"
    onnx.save(onnx.parser.parse_model(CHAIN), path)
    return path


@pytest.fixture
def scripted(monkeypatch):
    """A function that makes the runtime fail by `fails(model)`; gives the list of failures."""

    def install(fails, error=None):
        outputs, failures = Reference.outputs_of, []

        def run(self, session):
            model = load(session.path)
            if fails(model):
                failures.append(session.path)
                raise error or WorkerDied("open_session", DIED, "none")
            return outputs(self, session)

        monkeypatch.setattr(Reference, "outputs_of", run)
        return failures

    return install


def changed(model):
    """First outputs of the layers that are changed."""
    return {n.outputs[0].name for n in model.graph if n.doc_string == "changed"}


ALL = {"ha", "hb", "hc", "hd", "he", "hf", "y"}
LABELS = {"hc": "MatMul hc", "hf": "MatMul f", "y": "MatMul g", "ha": "MatMul a"}


def test_nothing_is_searched_where_the_runtime_bears_it(chain, scripted):
    failures = scripted(lambda model: False)
    result = optimize(chain, [Negate()], bench=False)
    assert (changed(result.model), failures) == (ALL, [])


@pytest.mark.parametrize("bad", [{"hc"}, {"ha"}, {"hc", "hf"}, {"ha", "hc", "y"}])
def test_layers_at_fault_stay_and_the_others_are_delivered(
    chain, tmp_path, scripted, bad
):
    scripted(lambda model: bool(bad & changed(model)))
    out = tmp_path / "out.onnx"
    result = optimize(chain, [Negate()], out=out, bench=False)
    assert changed(load(out)) == ALL - bad
    (step,) = result.passes
    assert (step.text, step.changed) == ("negate", 7 - len(bad))
    assert {d["where"] for d in step.declined} == {LABELS[name] for name in bad}
    reason = f"left as it was, for with all parts changed {DIED}"
    assert {d["reason"] for d in step.declined} == {reason}
    assert [w for w in result.warnings if w.startswith("negate: left MatMul")]


def test_two_layers_that_fail_only_together_lose_one(chain, scripted):
    scripted(lambda model: {"hb", "hf"} <= changed(model))
    result = optimize(chain, [Negate()], bench=False)
    assert len(changed(result.model)) == 6


@pytest.mark.parametrize(
    "error",
    [
        LoadRefused("candidate.onnx", "ONNX Runtime cannot load it: no kernel", "none"),
        RemoteError(
            "candidate.onnx", "ONNX Runtime fails to run it: bad", "none", "Fail"
        ),
    ],
)
def test_refusing_and_failing_are_faults_like_dying(chain, scripted, error):
    scripted(lambda model: "hc" in changed(model), error)
    result = optimize(chain, [Negate()], bench=False)
    assert changed(result.model) == ALL - {"hc"}
    assert error.problem in result.passes[0].declined[0]["reason"]


def test_a_limit_is_no_fault_of_the_runtime(chain, scripted):
    error = LimitExceeded("open_session", "ran past 600 s and was stopped", "none")
    failures = scripted(lambda model: "hc" in changed(model), error)
    with pytest.raises(CheckError, match=r"negate: ran past 600 s") as caught:
        optimize(chain, [Negate()], bench=False)
    assert (caught.value.exit_code, len(failures)) == (4, 1)


def test_outputs_that_stop_being_finite_are_searched_too(chain, monkeypatch, scripted):
    scripted(lambda model: False)
    run = Negate.run

    def overflowing(self, model, context):
        outcome = run(self, model, context)
        for node in model.graph:
            if node.name == "d" and node.doc_string == "changed":
                huge = ir.Value(
                    name="huge",
                    const_value=ir.tensor(np.full((2, 2), np.inf, np.float32)),
                )
                huge.type, huge.shape = (
                    ir.TensorType(ir.DataType.FLOAT),
                    ir.Shape([2, 2]),
                )
                model.graph.register_initializer(huge)
                node.replace_input_with(1, huge)
        return outcome

    monkeypatch.setattr(Negate, "run", overflowing)
    result = optimize(chain, [Negate()], bench=False)
    assert changed(result.model) == ALL - {"hd"}
    assert "values are no longer finite" in result.passes[0].declined[0]["reason"]


def test_strict_names_the_layer_instead(chain, scripted):
    scripted(lambda model: "hc" in changed(model))
    with pytest.raises(CheckError) as caught:
        optimize(chain, [Negate()], bench=False, strict=True)
    assert (caught.value.where, caught.value.problem) == ("negate", DIED)
    assert caught.value.fix == "run without --strict, which leaves out MatMul hc"


def test_a_pass_without_parts_is_named(chain, scripted):
    failures = scripted(lambda model: bool(changed(model)))
    with pytest.raises(CheckError) as caught:
        optimize(chain, [NegateAll()], bench=False)
    assert (caught.value.where, caught.value.problem) == ("negate-all", DIED)
    assert caught.value.fix == (
        "leave this pass out: it has no parts that it could leave as they are"
    )
    assert len(failures) == 1


def test_where_every_layer_fails_the_error_says_so(chain, scripted):
    failures = scripted(lambda model: bool(changed(model)))
    with pytest.raises(CheckError, match="none of 7 layers or nodes could be changed"):
        optimize(chain, [Negate()], bench=False)
    # one for all, and each group of the halving
    assert len(failures) == 13


def test_tries_are_bounded(chain, scripted, monkeypatch):
    monkeypatch.setattr(spare, "MAX_TRIALS", 2)
    scripted(lambda model: "ha" in changed(model))
    result = optimize(chain, [Negate()], bench=False)
    # halves: the first fails, the second works
    assert changed(result.model) == {"hd", "he", "hf", "y"}
    warned = [w for w in result.warnings if w.startswith("negate")]
    assert warned == [
        f"negate: left MatMul a, MatMul b, MatMul hc as before: with all parts changed {DIED}"
    ]


# the opset


def test_where_the_raise_alone_is_too_much_no_layer_is_blamed(chain, scripted):
    failures = scripted(lambda model: model.opset_imports[""] > 17)
    with pytest.raises(CheckError) as caught:
        optimize(chain, [Negate(raises=21)], bench=False)
    assert caught.value.problem == DIED
    assert caught.value.fix == (
        "export the model again with a newer opset: it cannot be raised from 17 to 21, "
        "and negate has no form for older ones"
    )
    # the pass, and the raise alone
    assert len(failures) == 2


def test_where_the_raise_is_borne_layers_are_searched(chain, scripted):
    scripted(lambda model: model.opset_imports[""] > 17 and "hc" in changed(model))
    result = optimize(chain, [Negate(raises=21)], bench=False)
    assert changed(result.model) == ALL - {"hc"}


WIDE = """
<ir_version: 8, opset_import: ["" : 17]>
wide (float[N, 8] x) => (float[N, 4] y)
{
    h = MatMul (x, w)
    r = Relu (h)
    y = MatMul (r, v)
}
"""


@pytest.fixture
def wide(tmp_path):
    proto = onnx.parser.parse_model(WIDE)
    random = np.random.default_rng(3)
    for name, shape in (("w", (8, 16)), ("v", (16, 4))):
        weight = random.normal(size=shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    path = tmp_path / "wide.onnx"
    onnx.save(proto, path)
    return path


def test_four_bits_fall_back_to_the_form_of_older_opsets(wide, scripted):
    scripted(lambda model: model.opset_imports[""] >= 21)
    text = "quant(bits=4, kernel=float, ends=same)"
    result = optimize(wide, text, bench=False, pack=False)
    (step,) = result.passes
    assert (step.text, step.changed) == (text, 2)
    assert result.model.opset_imports[""] < 21
    dtypes = {value.dtype for value in result.model.graph.initializers.values()}
    assert ir.DataType.INT4 not in dtypes
    (declined,) = [d for d in step.declined if d["where"] == "opset"]
    assert declined["reason"] == (
        "not raised from 17 to 21, the form is that of quant(bits=4, storage=table, "
        f"kernel=float, ends=same): {DIED}"
    )


def test_a_converter_that_fails_is_no_reason_to_fail_either(
    wide, scripted, monkeypatch
):
    scripted(lambda model: False)

    def refuse(model, minimum):
        if minimum > 17:
            raise OpsetRefused("opset", "cannot be raised from 17 to 21: no", "export")

    monkeypatch.setattr("onnx_opt.passes.quant.raise_opset", refuse)
    text = "quant(bits=4, kernel=float, ends=same)"
    assert optimize(wide, text, bench=False, pack=False).passes[0].changed == 2
    # blocks have no other form: the pass's own words stay
    with pytest.raises(RefusedError, match="cannot be raised from 17 to 21"):
        optimize(wide, "quant(blocked)", bench=False, pack=False)


# the release


@pytest.fixture
def older(monkeypatch, scripted):
    """The runtime is 1.20, which casts no INT4."""

    def casts_int4(model):
        casts = [node for node in model.graph if node.op_type == "Cast"]
        return any(node.inputs[0].dtype == ir.DataType.INT4 for node in casts)

    scripted(casts_int4)
    found = Installed("1.20.1", {"onnxruntime-gpu": "1.20.1"})
    monkeypatch.setattr(step_module, "installed", lambda worker: found)


STORED = "quant(bits=4, storage=int4, kernel=float, ends=same)"
NEEDS = "needs onnxruntime-gpu >= 1.23 (Cast from INT4); 1.20.1 is installed"


def test_an_older_runtime_gets_the_form_that_it_runs(wide, older):
    text = "quant(bits=4, kernel=float, ends=same)"
    result = optimize(wide, text, bench=False, pack=False)
    (step,) = result.passes
    assert step.changed == 2
    (declined,) = [d for d in step.declined if d["where"] == "onnxruntime"]
    assert declined["reason"] == (
        f"{NEEDS}, the form is that of quant(bits=4, storage=table, kernel=float, "
        f"ends=same): {DIED}"
    )


def test_what_has_no_other_form_says_which_release_it_needs(wide, older):
    with pytest.raises(UsageError) as caught:
        optimize(wide, STORED, bench=False, pack=False)
    assert (caught.value.where, caught.value.problem) == (
        STORED,
        NEEDS,
    )
    assert caught.value.fix == 'pip install -U "onnxruntime-gpu>=1.23"'


# half precision


def test_half_precision_leaves_single_nodes_as_they_are(wide, scripted):
    def relu_is_half(model):
        values = [n.outputs[0] for n in model.graph if n.op_type == "Relu"]
        return any(value.dtype == ir.DataType.FLOAT16 for value in values)

    scripted(relu_is_half)
    result = optimize(wide, "quant(fp16)", bench=False, pack=False)
    (step,) = result.passes
    assert step.changed == 2
    assert [d["where"] for d in step.declined] == ["Relu r"]
    for name in ("w", "v"):
        assert result.model.graph.initializers[name].dtype == ir.DataType.FLOAT16


# ONNX Runtime 1.32 dies while it optimizes this in half precision
TRANSPOSED = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 2, 2] x) => (float[2, N, 2] y)
<float[2, 2] w = {1, 2, -1, 1}>
{
    t = Transpose <perm = [1, 0, 2]> (x)
    y = MatMul (t, w)
}
"""


def test_a_transposed_product_in_half_precision_is_delivered(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(TRANSPOSED), path)
    result = optimize(path, "quant(fp16)", bench=False)
    (step,) = result.passes
    # the product with its weight; the Transpose too where the runtime bears it
    assert step.changed + len(step.declined) == 2
    assert result.model.graph.initializers["w"].dtype == ir.DataType.FLOAT16
    assert step.drift["sqnr_db"] > 60


def test_half_precision_takes_patterns(wide):
    result = optimize(wide, "quant(fp16, exclude=[w])", bench=False, pack=False)
    initializers = result.model.graph.initializers
    assert initializers["w"].dtype == ir.DataType.FLOAT
    assert initializers["v"].dtype == ir.DataType.FLOAT16
    assert result.passes[0].declined == [
        {"where": "MatMul h", "reason": "matched by exclude"}
    ]
    with pytest.raises(Exception, match=r"quant\.include: 'nothing' matches no layer"):
        optimize(wide, "quant(fp16, include=[nothing])", bench=False)
