"""save() and check_output(): whole or not at all, streamed, nothing of others touched."""

import os
import stat
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_opt import OnnxOptError, RefusedError, UsageError
from onnx_opt.frontends._onnx_io import save as save_module
from onnx_opt.frontends.onnx_file import check_output, load, save
from onnx_opt.passes._core.lazy import DerivedTensor, set_tensor

ROWS = 64


def model_of(*names: str, fill: float = 1.0) -> ir.Model:
    """MatMuls by (64, 64) float32 weights (16 KiB each), each full of `fill` plus its index, and
    one small bias.
    """
    lines = "\n".join(
        f"h{i + 1} = MatMul (h{i}, {name})" for i, name in enumerate(names)
    )
    model = ir.from_onnx_text(f"""<ir_version: 10, opset_import: ["" : 21]>
        stack (float[N, {ROWS}] h0) => (float[N, {ROWS}] y) <float[1] small = {{0.5}}> {{
            {lines}
            y = Add (h{len(names)}, small)
        }}""")
    for i, name in enumerate(names):
        value = next(
            v for n in model.graph for v in n.inputs if v is not None and v.name == name
        )
        value.const_value = ir.Tensor(
            np.full((ROWS, ROWS), fill + i, np.float32), name=name
        )
        value.shape, value.type = (
            ir.Shape((ROWS, ROWS)),
            ir.TensorType(ir.DataType.FLOAT),
        )
        model.graph.register_initializer(value)
    return model


def names_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def weight(path: Path, name: str = "a") -> np.ndarray:
    return load(path).graph.initializers[name].const_value.numpy()


@pytest.mark.parametrize("external", [False, True])
def test_a_file_for_the_run_alone_is_like_any_other(external, tmp_path):
    names = ["m.onnx", "m.onnx.data"] if external else ["m.onnx"]
    path = tmp_path / "m.onnx"
    written = save(model_of("a", "b"), path, external=external, durable=False)
    assert sorted(each.name for each in written) == names
    assert names_in(tmp_path) == names
    assert weight(path, "b")[0, 0] == 2


def test_large_weights_of_a_file_for_the_run_are_streamed(tmp_path, monkeypatch):
    monkeypatch.setattr(save_module, "SCRATCH_LIMIT", ROWS * ROWS * 4)
    model = model_of("a", "b")
    save(model, tmp_path / "run.onnx", durable=False)
    save(model, tmp_path / "result.onnx")
    assert names_in(tmp_path) == ["result.onnx", "run.onnx", "run.onnx.data"]
    assert not save_module.is_split(model)
    assert save_module.is_split(load(tmp_path / "run.onnx"))


def test_a_session_keeps_the_files_that_a_later_save_replaces(tmp_path):
    path = tmp_path / "m.onnx"
    save(model_of("a"), path, external=True, durable=False)
    before = load(path).graph.initializers["a"].const_value
    mapped = before.numpy()
    save(model_of("a", fill=7.0), path, external=True, durable=False)
    assert mapped[0, 0] == 1
    assert weight(path)[0, 0] == 7


def test_what_cannot_be_written_for_the_run_leaves_nothing(tmp_path):
    model = model_of("a", "b")

    def fail(block, start):
        raise OSError(28, "No space left on device")

    source = model.graph.initializers["b"]
    set_tensor(source, DerivedTensor(source.const_value, fail, ir.DataType.FLOAT))
    with pytest.raises(OnnxOptError, match="writing failed"):
        save(model, tmp_path / "m.onnx", external=True, durable=False)
    assert names_in(tmp_path) == []


def test_one_file_by_default(tmp_path):
    model = model_of("a")
    assert save(model, tmp_path / "m.onnx") == [tmp_path / "m.onnx"]
    assert names_in(tmp_path) == ["m.onnx"]
    assert weight(tmp_path / "m.onnx")[0, 0] == 1
    onnx.checker.check_model(tmp_path / "m.onnx", full_check=True)


def test_external_on_request_keeps_small_tensors_inline(tmp_path):
    assert save(model_of("a", "b"), tmp_path / "m.onnx", external=True) == [
        tmp_path / "m.onnx.data",
        tmp_path / "m.onnx",
    ]
    assert (tmp_path / "m.onnx.data").stat().st_size == 2 * ROWS * ROWS * 4
    initializers = load(tmp_path / "m.onnx").graph.initializers
    assert isinstance(initializers["a"].const_value, ir.ExternalTensor)
    assert not isinstance(initializers["small"].const_value, ir.ExternalTensor)
    onnx.checker.check_model(tmp_path / "m.onnx", full_check=True)


def test_external_follows_the_model_and_the_size(tmp_path, monkeypatch):
    save(model_of("a"), tmp_path / "m.onnx", external=True)
    assert len(save(load(tmp_path / "m.onnx"), tmp_path / "n.onnx")) == 2
    assert (
        len(save(load(tmp_path / "m.onnx"), tmp_path / "inline.onnx", external=False))
        == 1
    )
    monkeypatch.setattr(save_module, "INLINE_LIMIT", 1000)
    assert len(save(model_of("a"), tmp_path / "large.onnx")) == 2


def test_more_than_protobuf_holds_is_refused_inline(tmp_path, monkeypatch):
    monkeypatch.setattr(save_module, "LIMIT", 1000)
    with pytest.raises(RefusedError, match="2 GiB"):
        save(model_of("a"), tmp_path / "m.onnx")
    assert names_in(tmp_path) == []


def test_the_model_in_memory_is_unchanged(tmp_path):
    save(model_of("a"), tmp_path / "m.onnx", external=True)
    model = load(tmp_path / "m.onnx")
    before = {n: v.const_value for n, v in model.graph.initializers.items()}
    for external in (True, False):
        save(model, tmp_path / "n.onnx", external=external)
        assert {n: v.const_value for n, v in model.graph.initializers.items()} == before


def test_a_pair_of_another_model_stays_whole(tmp_path):
    (tmp_path / "m.onnx.data").write_bytes(b"somebody else's")
    assert (
        save(model_of("a"), tmp_path / "m.onnx", external=True)[0].name
        == "m.onnx.1.data"
    )
    assert (tmp_path / "m.onnx.data").read_bytes() == b"somebody else's"


def test_saving_again_leaves_one_pair(tmp_path):
    for fill in (1, 2, 3):
        save(model_of("a", fill=fill), tmp_path / "m.onnx", external=True)
        assert len(names_in(tmp_path)) == 2
        assert weight(tmp_path / "m.onnx")[0, 0] == fill
    save(model_of("a", fill=4), tmp_path / "m.onnx")
    assert names_in(tmp_path) == ["m.onnx"]


def test_in_place_while_the_weights_are_read_from_the_old_file(tmp_path):
    save(model_of("a", "b"), tmp_path / "m.onnx", external=True)
    model = load(tmp_path / "m.onnx")
    value = model.graph.initializers["a"]
    set_tensor(
        value,
        DerivedTensor(
            value.const_value, lambda block, start: block * 10, ir.DataType.FLOAT
        ),
    )
    save(model, tmp_path / "m.onnx")
    assert weight(tmp_path / "m.onnx")[0, 0] == 10
    assert weight(tmp_path / "m.onnx", "b")[0, 0] == 2
    assert (
        value.const_value.numpy()[0, 0] == 10
    )  # the model in memory still reads its old file


def test_the_weights_file_itself_is_never_the_target(tmp_path):
    save(model_of("a"), tmp_path / "m.onnx", external=True)
    data = (tmp_path / "m.onnx.data").read_bytes()
    with pytest.raises(UsageError, match="weights file"):
        save(load(tmp_path / "m.onnx"), tmp_path / "m.onnx.data")
    assert (tmp_path / "m.onnx.data").read_bytes() == data


def test_a_shared_tensor_is_written_once(tmp_path):
    model = model_of("a", "b")
    model.graph.initializers["b"].const_value = model.graph.initializers[
        "a"
    ].const_value
    save(model, tmp_path / "m.onnx", external=True)
    assert (tmp_path / "m.onnx.data").stat().st_size == ROWS * ROWS * 4
    np.testing.assert_array_equal(
        weight(tmp_path / "m.onnx", "a"), weight(tmp_path / "m.onnx", "b")
    )


def test_shared_inline_tensors_keep_both_names(tmp_path):
    model = model_of("a", "b")
    model.graph.initializers["b"].const_value = model.graph.initializers[
        "a"
    ].const_value
    save(model, tmp_path / "m.onnx")
    assert {"a", "b"} <= set(load(tmp_path / "m.onnx").graph.initializers)


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("boom")],
)
def test_a_failed_write_leaves_the_former_pair(tmp_path, external, error):
    save(model_of("a"), tmp_path / "m.onnx", external=external)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def fail(block, start):
        raise error

    model = model_of("a", "b", fill=5)
    value = model.graph.initializers["b"]
    set_tensor(value, DerivedTensor(value.const_value, fail, ir.DataType.FLOAT))
    with pytest.raises((OnnxOptError, type(error))):
        save(model, tmp_path / "m.onnx", external=external)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(("step", "calls"), [("fsync", 3), ("replace", 1)])
def test_a_failure_at_every_step_leaves_the_former_pair(
    tmp_path, monkeypatch, step, calls
):
    """Steps before the switch: data file, its folder's names, model file; and the rename."""
    save(model_of("a"), tmp_path / "m.onnx", external=True)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    real = getattr(os, step)
    for fatal in range(calls):
        count = iter(range(100))

        def failing(*arguments, fatal=fatal, count=count):
            if next(count) == fatal:
                raise KeyboardInterrupt
            return real(*arguments)

        monkeypatch.setattr(os, step, failing)
        with pytest.raises(KeyboardInterrupt):
            save(model_of("a", fill=9), tmp_path / "m.onnx", external=True)
        monkeypatch.setattr(os, step, real)
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_an_interrupt_just_after_the_rename_leaves_the_new_pair(tmp_path, monkeypatch):
    real = os.replace

    def replace_then_interrupt(source, target):
        real(source, target)
        if str(target).endswith(".onnx"):
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace_then_interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(model_of("a", fill=7), tmp_path / "m.onnx", external=True)
    assert weight(tmp_path / "m.onnx")[0, 0] == 7


def test_the_check_sees_the_whole_model_and_can_stop_it(tmp_path):
    seen = []
    save(
        model_of("a"),
        tmp_path / "m.onnx",
        external=True,
        check=lambda p: seen.append(weight(p)[0, 0]),
    )
    assert seen == [1]

    def refuse(path):
        raise RefusedError("m", "no", "none")

    before = names_in(tmp_path)
    with pytest.raises(RefusedError):
        save(model_of("a", fill=3), tmp_path / "m.onnx", external=True, check=refuse)
    assert names_in(tmp_path) == before
    assert weight(tmp_path / "m.onnx")[0, 0] == 1


@pytest.mark.parametrize("external", [False, True])
def test_a_tensor_that_gives_fewer_bytes_is_an_error_not_a_hole(tmp_path, external):
    model = model_of("a")
    short = ir.LazyTensor(
        lambda: ir.Tensor(np.zeros((ROWS, 3), np.float32)),
        ir.DataType.FLOAT,
        shape=ir.Shape((ROWS, ROWS)),
        name="a",
    )
    model.graph.initializers["a"].const_value = short
    with pytest.raises(OnnxOptError, match="768"):
        save(model, tmp_path / "m.onnx", external=external)
    assert names_in(tmp_path) == []


def test_a_weights_file_cut_short_after_loading_is_an_error(tmp_path):
    save(model_of("a", "b"), tmp_path / "m.onnx", external=True)
    model = load(tmp_path / "m.onnx")
    os.truncate(tmp_path / "m.onnx.data", 20_000)
    with pytest.raises(OnnxOptError, match="shorter than expected"):
        save(model, tmp_path / "n.onnx")
    assert names_in(tmp_path) == ["m.onnx", "m.onnx.data"]


def test_permissions_follow_the_umask_and_the_replaced_file(tmp_path):
    old = os.umask(0o027)
    try:
        save(model_of("a"), tmp_path / "m.onnx")
        assert stat.S_IMODE((tmp_path / "m.onnx").stat().st_mode) == 0o640
        (tmp_path / "m.onnx").chmod(0o600)
        for path in save(model_of("a"), tmp_path / "m.onnx", external=True):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(old)


def test_a_link_at_the_target_is_replaced_not_followed(tmp_path):
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "m.onnx").symlink_to("precious")
    save(model_of("a"), tmp_path / "m.onnx")
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert not (tmp_path / "m.onnx").is_symlink()


@pytest.mark.parametrize(("ir_version", "expected"), [(10, 10), (3, 4)])
def test_the_ir_version_rises_only_where_it_must(tmp_path, ir_version, expected):
    model = model_of("a")
    model.ir_version = ir_version
    save(model, tmp_path / "m.onnx")
    assert onnx.load(tmp_path / "m.onnx").ir_version == expected
    assert model.ir_version == ir_version


def test_an_initializer_without_data_is_an_error(tmp_path):
    model = model_of("a")
    model.graph.initializers["a"].const_value = None
    with pytest.raises(OnnxOptError, match="has no data"):
        save(model, tmp_path / "m.onnx")


# --- check_output


def test_good_outputs_pass_and_leave_no_trace(tmp_path):
    check_output(tmp_path / "m.onnx")
    (tmp_path / "other.onnx").write_bytes(b"old")
    check_output(tmp_path / "other.onnx", tmp_path / "input.onnx")
    assert names_in(tmp_path) == ["other.onnx"]
    assert (tmp_path / "other.onnx").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "is a folder"),
        (".", "is a folder"),
        ("folder", "is a folder"),
        ("none/m.onnx", "does not exist"),
        ("file/m.onnx", "does not exist"),
        ("fifo", "not a regular file"),
        ("n" * 300 + ".onnx", "cannot be written"),
        ("a\0b.onnx", "not a file name"),
        ("/proc/m.onnx", "cannot be written"),
        ("/dev/null", "not a regular file"),
    ],
)
def test_bad_outputs_are_usage_errors(tmp_path, monkeypatch, path, reason):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").touch()
    os.mkfifo("fifo")
    with pytest.raises(UsageError, match=reason):
        check_output(path)
    assert names_in(tmp_path) == ["fifo", "file", "folder"]


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
def test_a_folder_without_write_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="cannot be written"):
        check_output(tmp_path / "m.onnx")


def test_the_input_is_only_overwritten_by_force(tmp_path):
    source = tmp_path / "m.onnx"
    source.write_bytes(b"model")
    (tmp_path / "soft.onnx").symlink_to(source)
    os.link(source, tmp_path / "hard.onnx")
    for same in (
        source,
        tmp_path / "soft.onnx",
        tmp_path / "hard.onnx",
        tmp_path / "." / "m.onnx",
    ):
        with pytest.raises(UsageError, match="input model itself"):
            check_output(same, source)
        check_output(same, source, force=True)
    assert source.read_bytes() == b"model"


def test_types_of_tensors_are_written_once(tmp_path):
    model = model_of("a", "b")
    model.graph.initializers["b"].metadata_props["layer"] = "7"
    save(model, tmp_path / "m.onnx")
    written = onnx.load(tmp_path / "m.onnx").graph
    assert {t.name for t in written.initializer} >= {"a", "b"}
    assert {v.name for v in written.value_info} & {"a", "b"} == {"b"}
