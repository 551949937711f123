"""External data that lies elsewhere, is no file, or is not as long as it should be."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from .case import EITHER, QUICK, Case, small

SECRET = b"precious bytes!!"

LOCATIONS = (
    "../secret.bin",
    "a/../../secret.bin",
    "./../secret.bin",
    "folder/../../secret.bin",
    "folder/../folder/../../secret.bin",
    "..",
    ".",
    "/",
    "//",
    "",
    "/etc/passwd",
    "//etc/passwd",
    "/dev/zero",
    "/dev/stdin",
    "/proc/self/environ",
    "/proc/self/mem",
    "link.bin",
    "link_to_link.bin",
    "linked_folder/secret.bin",
    "broken_link.bin",
    "loop_link.bin",
    "hard.bin",
    "fifo.bin",
    "folder",
    "socket.bin",
    "missing.bin",
    "folder/missing.bin",
    "m.onnx/w.bin",
    "w.bin\0.txt",
    "\0",
    "w\n.bin",
    "\x1b[31mw.bin",
    "C:\\Windows\\win.ini",
    "..\\secret.bin",
    "file:///etc/passwd",
    "http://example.org/w.bin",
    "~/w.bin",
    "$HOME/w.bin",
    "%2e%2e/secret.bin",
    "‮nib.w",
    "x" * 300,
    "folder/" * 2000,
)

KEYS: dict[str, dict[str, str]] = {
    "an offset beyond the file": {"offset": "17"},
    "an offset that leaves too little": {"offset": "1"},
    "a negative offset": {"offset": "-1"},
    "an offset of 2^63": {"offset": str(2**63)},
    "an offset of 2^64": {"offset": str(2**64)},
    "an offset that is no number": {"offset": "abc"},
    "an offset in hexadecimal": {"offset": "0x10"},
    "an offset that is a fraction": {"offset": "0.0"},
    "an offset in other digits": {"offset": "٠"},
    "an offset of 5,000 digits": {"offset": "9" * 5000},
    "an offset with a blank": {"offset": " 0"},
    "a length of nothing": {"length": "0"},
    "a length beyond the file": {"length": "17"},
    "a length too short": {"length": "15"},
    "a negative length": {"length": "-1"},
    "a length of 2^62": {"length": str(2**62)},
    "a length that is no number": {"length": "abc"},
}


def external_tensor(entries: list[tuple[str, str]]) -> TensorProto:
    """Four floats that lie somewhere else."""
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries:
        tensor.external_data.add(key=key, value=value)
    return tensor


def make_traps(folder: Path) -> None:
    """Links, FIFOs and a sound data file in the folder; a secret above it."""
    secret = folder.parent / "secret.bin"
    secret.write_bytes(SECRET)
    (folder / "w.bin").write_bytes(bytes(16))
    (folder / "folder").mkdir()
    (folder / "link.bin").symlink_to(secret)
    (folder / "link_to_link.bin").symlink_to("link.bin")
    (folder / "linked_folder").symlink_to("..")
    (folder / "broken_link.bin").symlink_to("nowhere")
    (folder / "loop_link.bin").symlink_to("loop_link.bin")
    os.link(secret, folder / "hard.bin")
    os.mkfifo(folder / "fifo.bin")


def in_initializer(model: onnx.ModelProto, tensor: TensorProto) -> None:
    """An initializer that nothing reads."""
    model.graph.initializer.append(tensor)


def in_constant(model: onnx.ModelProto, tensor: TensorProto) -> None:
    """The value of a Constant."""
    model.graph.node.append(helper.make_node("Constant", [], ["k"], value=tensor))


def in_function(model: onnx.ModelProto, tensor: TensorProto) -> None:
    """A Constant of a function."""
    constant = helper.make_node("Constant", [], ["k"], value=tensor)
    opsets = [helper.make_opsetid("", 21)]
    function = helper.make_function("f", "hold", [], ["k"], [constant], opsets)
    model.functions.append(function)
    model.opset_import.add(domain="f", version=1)
    model.graph.node.append(helper.make_node("hold", [], ["z"], domain="f"))


PLACES: tuple[Callable[[onnx.ModelProto, TensorProto], None], ...] = (
    in_initializer,
    in_constant,
    in_function,
)


def _case(
    name: str,
    place: Callable[[onnx.ModelProto, TensorProto], None],
    entries: list[tuple[str, str]],
    codes: frozenset[int] = frozenset({3}),
    **changes: object,
) -> Case:
    model = small()
    tensor = external_tensor(entries)
    for field, value in changes.items():
        setattr(tensor, field, value)
    place(model, tensor)
    where = place.__name__.removeprefix("in_")
    return Case(
        f"external: {name}, in a {where}",
        {"m.onnx": model.SerializeToString()},
        ("m.onnx", *QUICK),
        codes,
        prepare=make_traps,
    )


def cases() -> Iterator[Case]:
    """External data of initializers, constants and functions."""
    for place in PLACES:
        for location in LOCATIONS:
            shown = location.encode("unicode_escape").decode()[:60]
            yield _case(f"at '{shown}'", place, [("location", location)])
        for what, more in KEYS.items():
            entries = [("location", "w.bin"), *more.items()]
            yield _case(what, place, entries)
        yield _case("a key twice", place, [("location", "w.bin")] * 2)
        yield _case("no location", place, [("offset", "0")])
        yield _case("text", place, [("location", "w.bin")], data_type=8)
        twice = [("location", "w.bin")]
        yield _case("and inline", place, twice, raw_data=bytes(16))
        # not hostile: what other tools add is passed over
        extra = [("location", "w.bin"), ("checksum", "0"), ("basepath", "/etc")]
        yield _case("other keys", place, extra, EITHER)
        yield _case("sound", place, [("location", "w.bin")], EITHER)
