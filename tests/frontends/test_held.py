"""Large tensors that stay in their model file: the same models and refusals as of a plain parse."""

import gc
import os

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from builders import external, node, small, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx_opt import RefusedError
from onnx_opt.frontends._onnx_io import save as save_module
from onnx_opt.frontends._onnx_io.protos import tensor_protos
from onnx_opt.frontends._onnx_io.slots import slots_of
from onnx_opt.frontends.onnx_file import load, save
from onnx_opt.passes._core import held_file, wire
from onnx_opt.passes._core.graph import initializers
from onnx_opt.passes._core.held import HeldTensor
from onnx_opt.passes._core.lazy import DerivedTensor, blocks, set_tensor

pytestmark = pytest.mark.skipif(
    not held_file.CAN_HOLD, reason="files are not held open on Windows"
)

NEVER = 1 << 40


@pytest.fixture
def low(monkeypatch):
    """Thresholds below which nothing of these small models lies."""
    monkeypatch.setattr(held_file, "SMALLEST", 0)
    monkeypatch.setattr(wire, "LEAST", 1)


def tensor(name: str, values=(1, 2, 3, 4), shape=(2, 2), dtype=np.float32):
    array = np.asarray(values, dtype)
    return numpy_helper.from_array(array.reshape(shape), name)


def raw_model(*tensors: onnx.TensorProto) -> onnx.ModelProto:
    """`small()`, its weight in raw_data, with further initializers."""
    model = small()
    del model.graph.initializer[:]
    model.graph.initializer.extend([tensor("w"), *tensors])
    return model


def field(number: int, content: bytes) -> bytes:
    """A field of bytes or of a message on the wire."""
    tag = wire.encoded_varint(number << 3 | wire.BYTES)
    return tag + wire.encoded_varint(len(content)) + content


def with_tensor(encoded: bytes) -> bytes:
    """`small()` with a weight of these bytes: the graph stands last, its tensor last in it."""
    model = small()
    del model.graph.initializer[:]
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    return model.SerializeToString() + field(7, graph + field(5, encoded))


def in_all_places() -> onnx.ModelProto:
    """A model with tensors in a subgraph, as attributes of nodes and in a function's body."""
    model = raw_model()
    inner = helper.make_graph(
        [
            helper.make_node("Constant", [], ["k"], value=tensor("", dtype=np.float16)),
            helper.make_node("Cast", ["k"], ["c"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["c", "v"], ["z"]),
        ],
        "inner",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, 2])],
        [tensor("v", (5, 6, 7, 8))],
    )
    model.graph.input.append(helper.make_tensor_value_info("b", TensorProto.BOOL, []))
    node(model, "If", ["b"], ["r"], then_branch=inner, else_branch=inner)
    body = [
        helper.make_node("Constant", [], ["k"], value=tensor("k", (9, 8, 7, 6))),
        helper.make_node("Add", ["a", "k"], ["s"]),
    ]
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    model.opset_import.append(imports[1])
    model.functions.append(
        helper.make_function("local", "f", ["a"], ["s"], body, imports[:1])
    )
    node(model, "f", ["r"], ["called"], domain="local")
    model.opset_import.append(helper.make_opsetid("my.own", 1))
    both = [tensor("first"), tensor("second", (0, 0, 0, 1))]
    node(model, "Custom", ["r"], ["custom"], domain="my.own", tables=both)
    return model


def of_every_type() -> onnx.ModelProto:
    """A model with a tensor of each type that raw_data may hold."""
    model = raw_model()
    for kind in TensorProto.DataType.values():
        name = TensorProto.DataType.Name(kind)
        # onnx_ir checks the bits of the last ones, of which any byte has too many
        if name in ("UNDEFINED", "STRING") or name.startswith("FLOAT6"):
            continue
        bits = ir.DataType(kind).bitwidth
        # of types below a byte, the last byte is not full
        count = 5 if bits < 8 else 3
        nbytes = -(-count * bits // 8)
        model.graph.initializer.append(
            TensorProto(
                name=name, data_type=kind, dims=[count], raw_data=bytes([1] * nbytes)
            )
        )
    return model


def described() -> onnx.ModelProto:
    model = raw_model()
    model.graph.initializer[0].doc_string = "a weight"
    helper.set_model_props(model.graph.initializer[0], {"from": "torch"})
    return model


W = tensor("w")
NAME_AND_DIMS = TensorProto(name="w", dims=[2, 2], data_type=1).SerializeToString()
VALUES = field(9, W.raw_data)
OTHER_VALUES = field(9, tensor("w", (9, 9, 9, 9)).raw_data)
CONSTANT = helper.make_attribute("value", tensor("k")).SerializeToString()


def with_attribute(encoded: bytes) -> bytes:
    """A model with a Constant whose attribute has these bytes."""
    model = raw_model()
    constant = helper.make_node("Constant", [], ["k"]).SerializeToString()
    graph = field(1, constant + field(5, encoded))
    return model.SerializeToString() + field(7, graph)


# name -> bytes of a model, and how many of its tensors stay in the file
HELD = {
    "an initializer": (raw_model().SerializeToString(), 1),
    "everywhere": (in_all_places().SerializeToString(), 8),
    "described": (described().SerializeToString(), 1),
    "raw_data first": (with_tensor(VALUES + NAME_AND_DIMS), 1),
    "raw_data amid the rest": (
        with_tensor(NAME_AND_DIMS[:2] + VALUES + NAME_AND_DIMS[2:]),
        1,
    ),
    "fields that nobody knows": (
        with_tensor(NAME_AND_DIMS + VALUES) + field(50, b"newer"),
        1,
    ),
    "graph in two parts": (with_attribute(CONSTANT), 2),
    "long names": (
        raw_model(tensor("n" * 20_000), tensor("m" * 70_000)).SerializeToString(),
        3,
    ),
}

# what protobuf itself has to judge: all of it is parsed
PARSED = {
    "raw_data twice": with_tensor(NAME_AND_DIMS + OTHER_VALUES + VALUES),
    "a tensor in two parts": with_attribute(
        CONSTANT + field(5, TensorProto(name="more").SerializeToString())
    ),
    "raw_data in both parts": with_attribute(CONSTANT + CONSTANT),
    "a longer length than needed": with_tensor(
        NAME_AND_DIMS + bytes([9 << 3 | wire.BYTES, 16 | 128, 0]) + W.raw_data
    ),
    "a list of numbers": with_attribute(
        helper.make_attribute("value_ints", range(2000)).SerializeToString()
    ),
    "typed values": small().SerializeToString(),
    "external data": external(small()).SerializeToString(),
}

REFUSED = {
    "too short": with_tensor(NAME_AND_DIMS + field(9, W.raw_data[:-1])),
    "too long": with_tensor(NAME_AND_DIMS + field(9, W.raw_data + b"\0")),
    "negative dims": with_tensor(
        TensorProto(name="w", dims=[-2, -2], data_type=1).SerializeToString() + VALUES
    ),
    "data twice": with_tensor(
        NAME_AND_DIMS + VALUES + TensorProto(float_data=[1]).SerializeToString()
    ),
    "external and raw": with_tensor(
        external(small()).graph.initializer[0].SerializeToString() + VALUES
    ),
    "text in raw_data": with_tensor(
        TensorProto(name="w", dims=[2, 2], data_type=8).SerializeToString() + VALUES
    ),
    "no such type": with_tensor(
        TensorProto(name="w", dims=[2, 2], data_type=77).SerializeToString() + VALUES
    ),
    "a name that is not UTF-8": with_tensor(NAME_AND_DIMS + field(8, b"\xff") + VALUES),
    "cut short": raw_model().SerializeToString()[:-3],
    "the location of held tensors": external(small(), "\0").SerializeToString(),
    "no graph": onnx.ModelProto(ir_version=10).SerializeToString() + VALUES,
    "a picture": b"\x89PNG" + bytes(100),
}


def held_tensors(model) -> list[HeldTensor]:
    tensors = [slot.tensor for slot in slots_of(model)]
    return [tensor for tensor in tensors if isinstance(tensor, HeldTensor)]


def saved(path) -> list[bytes] | str:
    """The files that the model at `path` is saved as, or the words of its refusal."""
    (path.parent / "m.onnx.data").write_bytes(bytes(range(16)))
    try:
        model = load(path)
    except RefusedError as error:
        return error.problem
    # others may lie there from before
    return [file.read_bytes() for file in save(model, path.with_name("again.onnx"))]


def saved_when_parsed(path, monkeypatch) -> list[bytes] | str:
    with monkeypatch.context() as patch:
        patch.setattr(held_file, "SMALLEST", NEVER)
        return saved(path)


@pytest.mark.parametrize(("data", "count"), HELD.values(), ids=HELD)
def test_a_model_is_the_same_as_when_it_is_parsed(
    tmp_path, monkeypatch, low, data, count
):
    path = written(tmp_path, data)
    assert len(held_tensors(load(path))) == count
    found = saved(path)
    assert isinstance(found, list)
    assert found == saved_when_parsed(path, monkeypatch)


def test_tensors_of_every_type_are_the_same(tmp_path, monkeypatch, low):
    path = written(tmp_path, of_every_type())
    held = load(path)
    with monkeypatch.context() as patch:
        patch.setattr(held_file, "SMALLEST", NEVER)
        parsed = load(path)
    names = [value.name for value in initializers(held)]
    assert len(held_tensors(held)) == len(names) > 20
    for name in names:
        one = held.graph.initializers[name].const_value
        other = parsed.graph.initializers[name].const_value
        assert (one.dtype, one.size, one.nbytes) == (
            other.dtype,
            other.size,
            other.nbytes,
        )
        assert one.tobytes() == other.tobytes()
        assert one.numpy().dtype == other.numpy().dtype
        assert one.numpy().tobytes() == other.numpy().tobytes()
        assert one.numpy().shape == other.numpy().shape
    assert saved(path) == saved_when_parsed(path, monkeypatch)


@pytest.mark.parametrize("data", PARSED.values(), ids=PARSED)
def test_what_protobuf_has_to_judge_is_parsed(tmp_path, monkeypatch, low, data):
    path = written(tmp_path, data)
    found = saved(path)
    assert found == saved_when_parsed(path, monkeypatch)


def test_the_last_raw_data_counts(tmp_path, low):
    path = written(tmp_path, PARSED["raw_data twice"])
    (tmp_path / "m.onnx.data").write_bytes(b"")
    weight = load(path).graph.initializers["w"].const_value
    assert weight.numpy().tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_refusals_are_the_same(tmp_path, monkeypatch, low, data):
    path = written(tmp_path, data)
    found = saved(path)
    assert isinstance(found, str)
    assert found == saved_when_parsed(path, monkeypatch)


def test_every_prefix_is_refused_alike(tmp_path, monkeypatch, low):
    data = in_all_places().SerializeToString()
    for length in range(0, len(data), 7):
        path = written(tmp_path, data[:length])
        assert saved(path) == saved_when_parsed(path, monkeypatch)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_random_models_are_those_of_onnx(tmp_path, monkeypatch, low, data):
    lengths = data.draw(st.lists(st.integers(0, 40), max_size=6))
    least = data.draw(st.integers(1, 20))
    monkeypatch.setattr(wire, "LEAST", least)
    model = small()
    for index, length in enumerate(lengths):
        bytes_ = data.draw(st.binary(min_size=length, max_size=length))
        kept = TensorProto(
            name=f"t{index}",
            dims=[length],
            data_type=TensorProto.UINT8,
            raw_data=bytes_,
        )
        place = data.draw(st.sampled_from(["initializer", "constant", "branch"]))
        if place == "initializer":
            model.graph.initializer.append(kept)
        elif place == "constant":
            node(model, "Constant", [], [f"t{index}"], value=kept)
        else:
            inner = helper.make_graph([], "g", [], [], [kept])
            node(model, "Body", [], [f"o{index}"], domain="my.own", body=inner)
    model.opset_import.append(helper.make_opsetid("my.own", 1))
    path = written(tmp_path, model)
    held = load(path)
    # a graph has to be larger than its tensors to be entered, and so is every message around them
    assert len(held_tensors(held)) == sum(length >= least for length in lengths)
    save(held, tmp_path / "again.onnx")
    again = onnx.load(tmp_path / "again.onnx")
    assert all_values(again) == all_values(onnx.load(path))


def all_values(model: onnx.ModelProto) -> dict[str, bytes]:
    return {
        tensor.name: numpy_helper.to_array(tensor).tobytes()
        for tensor in tensor_protos(model)
    }


# --- the file


def test_small_files_are_parsed(tmp_path):
    path = written(tmp_path, raw_model())
    assert held_tensors(load(path)) == []


def test_large_files_are_held(tmp_path):
    large = tensor("large", np.arange(1 << 24), (1 << 24,), np.int32)
    path = written(tmp_path, raw_model(large))
    model = load(path)
    (held,) = held_tensors(model)
    assert held.name == "large"
    small = model.graph.initializers["w"].const_value
    assert small.numpy().tolist() == [[1, 2], [3, 4]]
    for start, block in blocks(held):
        assert block[0] == start
        assert block[-1] == start + block.size - 1


def test_a_model_is_written_over_its_own_file(tmp_path, low):
    path = written(tmp_path, raw_model())
    model = load(path)
    model.graph.name = "renamed"
    assert save(model, path) == [path]
    assert onnx.load(path).graph.name == "renamed"
    # another file has the name now, in which the weight lies elsewhere
    assert saved(path) == [path.read_bytes()]
    weight = model.graph.initializers["w"].const_value
    assert weight.numpy().tolist() == [[1, 2], [3, 4]]
    path.unlink()
    save(model, path)
    assert load(path).graph.initializers["w"].const_value.numpy().tolist() == [
        [1, 2],
        [3, 4],
    ]


def test_a_written_model_holds_its_weights(tmp_path, low):
    path = written(tmp_path, raw_model())
    save(load(path), tmp_path / "new.onnx", external=True)
    path.unlink()
    assert load(tmp_path / "new.onnx").graph.initializers[
        "w"
    ].const_value.numpy().tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("change", [b"", b"\0" * 500], ids=["cut", "rewritten"])
def test_a_file_that_is_written_to_meanwhile_is_named(tmp_path, low, change):
    path = written(tmp_path, raw_model())
    model = load(path)
    path.write_bytes(change)
    later = path.stat().st_mtime_ns + 1_000_000_000
    os.utime(path, ns=(later, later))
    weight = model.graph.initializers["w"].const_value
    for read in (weight.numpy, weight.tobytes, lambda: list(blocks(weight))):
        with pytest.raises(RefusedError, match="was written to while it was in use"):
            read()


def test_a_file_is_closed_with_the_last_tensor(tmp_path, low):
    model = load(written(tmp_path, raw_model()))
    descriptor = model.graph.initializers["w"].const_value.file.descriptor
    os.fstat(descriptor)
    del model
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


# --- the walk


def test_numbers_of_fields_are_those_of_onnx():
    messages = {
        "model": onnx.ModelProto,
        "graph": onnx.GraphProto,
        "function": onnx.FunctionProto,
        "node": onnx.NodeProto,
        "attribute": onnx.AttributeProto,
        "tensor": onnx.TensorProto,
    }
    types = {kind.DESCRIPTOR.name: name for name, kind in messages.items()}
    for name, kind in messages.items():
        holds = {
            field.number: types[field.message_type.name]
            for field in kind.DESCRIPTOR.fields
            if field.message_type is not None and field.message_type.name in types
        }
        # defaults of a function's attributes stay parsed
        if name == "function":
            del holds[11]
        assert wire.MESSAGES.get(name, {}) == holds


def test_deep_nesting_is_left_to_protobuf(low):
    data = b""
    for _ in range(5000):
        data = field(5, field(6, field(1, data)))
    assert wire.skeleton(field(7, data), "x") is None


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, (1 << 31) - 1, (1 << 63)])
def test_numbers_on_the_wire(value):
    encoded = wire.encoded_varint(value)
    assert wire.varint(b"x" + encoded + b"y", 1) == (value, 1 + len(encoded))


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 11])
def test_what_is_no_number_on_the_wire(data):
    with pytest.raises(ValueError, match="varint"):
        wire.varint(data, 0)


# --- writing


@pytest.mark.parametrize("model", [in_all_places(), of_every_type(), described()])
def test_tensors_are_written_as_they_come_into_the_same_file(
    tmp_path, monkeypatch, low, model
):
    loaded = load(written(tmp_path, model))
    save(loaded, tmp_path / "one.onnx")
    with monkeypatch.context() as patch:
        patch.setattr(wire, "LEAST", NEVER)
        save(loaded, tmp_path / "other.onnx")
    assert (tmp_path / "one.onnx").read_bytes() == (
        tmp_path / "other.onnx"
    ).read_bytes()


def negated(block, start):
    return -block


def test_a_computed_tensor_is_never_whole(tmp_path, monkeypatch, low):
    loaded = load(written(tmp_path, raw_model()))
    weight = loaded.graph.initializers["w"]
    set_tensor(weight, DerivedTensor(weight.const_value, negated, ir.DataType.FLOAT))

    def whole(self):
        raise AssertionError("it was asked for as a whole")

    monkeypatch.setattr(DerivedTensor, "tobytes", whole)
    monkeypatch.setattr(DerivedTensor, "numpy", whole)
    save(loaded, tmp_path / "out.onnx")
    (kept,) = onnx.load(tmp_path / "out.onnx").graph.initializer
    assert numpy_helper.to_array(kept).tolist() == [[-1, -2], [-3, -4]]


def test_lists_of_numbers_stay_lists(tmp_path, low):
    save(load(written(tmp_path, small())), tmp_path / "out.onnx")
    (kept,) = onnx.load(tmp_path / "out.onnx").graph.initializer
    assert list(kept.float_data) == [1, 2, 3, 4]


def test_a_tensor_that_fails_while_it_is_written_leaves_nothing(tmp_path, low):
    path = written(tmp_path, raw_model())
    loaded = load(path)
    path.write_bytes(b"")
    with pytest.raises(RefusedError, match="was written to while it was in use"):
        save(loaded, tmp_path / "out.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_the_length_of_a_file_counts_what_was_left_out(tmp_path, monkeypatch, low):
    longer = tensor("longer", range(1000), (1000,))
    loaded = load(written(tmp_path, raw_model(longer)))
    save(loaded, tmp_path / "out.onnx")
    length = (tmp_path / "out.onnx").stat().st_size
    monkeypatch.setattr(save_module, "LIMIT", length + 1)
    save(loaded, tmp_path / "out.onnx")
    monkeypatch.setattr(save_module, "LIMIT", length)
    with pytest.raises(RefusedError, match="exceeds protobuf's 2 GiB"):
        save(loaded, tmp_path / "out.onnx")
