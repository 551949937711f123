"""The contract that every registered pass keeps, on small models of several kinds: nothing here
names a pass.
"""

import contextlib
import dataclasses
import inspect

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from exactness import assert_close
from onnx_opt import UsageError
from onnx_opt.frontends.onnx_file import save
from onnx_opt.passes._core.context import NullContext
from onnx_opt.passes._core.normalize import normalize
from onnx_opt.passes._core.options import options_of
from onnx_opt.passes._core.pipeline import Pipeline, parse
from onnx_opt.passes._core.registry import pass_class, pass_names
from onnx_opt.passes._core.rewrites import Gate, through
from onnx_opt.runtime.context import RunContext
from onnx_opt.runtime.feeds import candidate_feeds
from onnx_opt.runtime.worker import Worker
from onnx_opt.tools._run.checks import interface_of
from onnx_opt.tools._run.figures import input_infos
from sample_models import ALL, model_from

SECTIONS = ("Effect:", "Shapes:", "Errors:", "Stats:", "Source:")
REQUIRED = {"Effect:", "Source:"}


@pytest.fixture(scope="module")
def worker():
    with Worker() as child:
        yield child


def context_for(model: ir.Model, worker: Worker) -> RunContext:
    feeds = next(candidate_feeds(input_infos(model), 0, batches=4))
    return RunContext(worker, feeds, "cpu", 0, save)


def outputs(model: ir.Model, feeds) -> list[list[np.ndarray]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )
    return [session.run(None, batch.feeds) for batch in feeds]


def changed_values(option):
    """Values of an option that differ from its default and lie in its range."""
    if option.choices:
        return [choice for choice in option.choices if choice != option.default]
    if option.kind is bool:
        return [not option.default]
    if option.kind is str:
        return ["a word", 'quo"ted', "plain"]
    if option.kind == tuple[str, ...]:
        return [("a*", "b c"), ("x,y",)]
    return [
        option.kind(bound)
        for bound in (option.low, option.high)
        if bound is not None and bound != option.default
    ]


@pytest.mark.parametrize("name", pass_names())
def test_the_docstring_has_its_sections_in_order(name):
    kind = pass_class(name)
    lines = inspect.cleandoc(kind.__doc__).splitlines()
    heads = [
        section for line in lines for section in SECTIONS if line.startswith(section)
    ]
    assert kind.name == name
    assert heads == [section for section in SECTIONS if section in heads]
    assert set(heads) >= REQUIRED
    assert f"Effect: {kind.effect}." in "\n".join(lines)
    assert lines[0].endswith(".")


@pytest.mark.parametrize("name", pass_names())
def test_a_pass_says_what_it_counts(name):
    unit = vars(pass_class(name))["unit"]
    # in the plural, as in "12 layers"
    assert unit.split()[0].endswith("s")


@pytest.mark.parametrize("name", pass_names())
def test_options_have_help_and_defaults_in_range(name):
    for option in options_of(pass_class(name)):
        assert option.help.endswith(".")
        assert option.default is not dataclasses.MISSING
        option.validate(name, option.default)


@pytest.mark.parametrize("name", pass_names())
def test_the_text_round_trips_with_every_option(name):
    kind = pass_class(name)
    made = [kind()]
    for option in options_of(kind):
        for value in changed_values(option):
            with contextlib.suppress(
                UsageError
            ):  # a value that contradicts another option's default
                made.append(kind(**{option.name: value}))
    assert len(made) > 1 or not options_of(kind)
    for pass_ in made:
        assert parse(str(pass_)) == Pipeline((pass_,))


@pytest.mark.parametrize("sample", ALL)
@pytest.mark.parametrize("name", pass_names())
def test_a_pass_can_leave_out_every_part_that_it_names(name, sample):
    model = ir.from_proto(model_from(ALL[sample]))
    normalize(model)
    pass_ = pass_class(name)()
    parts = pass_.parts(model)
    # every name alone is one that `exclude` takes; all together leave nothing
    for part in parts:
        try:
            pass_.without([part]).run(model.clone(), NullContext())
        except UsageError as error:
            # the others want data, which comes after the names
            if error.where != "calibration":
                raise
    if parts:
        outcome = pass_.without(parts).run(model.clone(), NullContext())
        assert outcome.changed == 0


@pytest.mark.parametrize("sample", ALL)
@pytest.mark.parametrize("name", pass_names())
def test_a_pass_leaves_a_valid_model_with_the_same_interface(name, sample, worker):
    model = ir.from_proto(model_from(ALL[sample]))
    normalize(model)
    context = context_for(model, worker)
    before, expected = interface_of(model), outputs(model, context.feeds)
    outcome = pass_class(name)().run(model, context)
    assert outcome.changed >= 0
    assert interface_of(model) == before
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    got = outputs(model, context.feeds)
    for want, have in zip(expected, got, strict=True):
        for one, other in zip(want, have, strict=True):
            assert one.shape == other.shape
            assert np.isfinite(other).all()
            if pass_class(name).effect != "lossy":
                assert_close(other, one)


EXACT = [name for name in pass_names() if pass_class(name).effect == "exact"]


@pytest.mark.parametrize("sample", ALL)
@pytest.mark.parametrize("name", EXACT)
def test_an_exact_pass_asks_before_every_rewrite(name, sample, worker):
    model = ir.from_proto(model_from(ALL[sample]))
    normalize(model)
    context = context_for(model, worker)

    def result(gate):
        clone = model.clone()
        with through(gate):
            changed = pass_class(name)().run(clone, context).changed
        return changed, ir.to_proto(clone).SerializeToString(deterministic=True)

    unchanged = ir.to_proto(model).SerializeToString(deterministic=True)
    assert result(Gate(limit=0)) == (0, unchanged)
    free = Gate()
    changed, full = result(free)
    assert bool(free.made) >= bool(changed)
    assert result(Gate(limit=len(free.made))) == (changed, full)


@pytest.mark.parametrize("sample", ALL)
@pytest.mark.parametrize("name", pass_names())
def test_running_twice_changes_nothing_more(name, sample, worker):
    model = ir.from_proto(model_from(ALL[sample]))
    normalize(model)
    context = context_for(model, worker)
    pass_class(name)().run(model, context)
    once = ir.to_proto(model).SerializeToString(deterministic=True)
    pass_class(name)().run(model, context)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == once


@pytest.mark.parametrize("name", pass_names())
def test_a_model_without_nodes_to_touch_stays(name, worker):
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    tiny (float[batch, 4] x) => (float[batch, 4] y) { y = Softmax (x) }
    """
    model = ir.from_proto(model_from(text))
    normalize(model)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    outcome = pass_class(name)().run(model, context_for(model, worker))
    assert outcome.changed == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
