"""Data files: cut short, pickled, lying about their size, zipped bombs."""

from __future__ import annotations

import io
import pickle
import random
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .case import EITHER, REFUSED, SMALL, Case, parser
from .damage import cut, flipped

OPTIONS = ("--passes", "quant", "--no-bench", "--quiet", "--verify", "never")


class Trap:
    """An object whose unpickling makes a file."""

    def __reduce__(self) -> tuple[object, tuple[str, bytes]]:
        return Path.write_bytes, (Path("unpickled"), b"")  # type: ignore[return-value]


def npy(
    shape: object, data: bytes, dtype: object = "<f4", fortran: bool = False
) -> bytes:
    """An .npy file of any header, true or not."""
    words = (
        f"{{'descr': {dtype!r}, 'fortran_order': {fortran}, 'shape': {shape!r}, }}\n"
    )
    header = words.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def npz(members: dict[str, bytes], compressed: bool = False) -> bytes:
    """A zip archive of .npy files."""
    file = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def sound() -> bytes:
    """An .npz that fits the model."""
    file = io.BytesIO()
    np.savez(file, x=np.ones((8, 4), np.float32))
    return file.getvalue()


def _case(
    name: str,
    content: bytes,
    suffix: str = "npz",
    codes: frozenset[int] = REFUSED,
    seconds: float = 20,
) -> Case:
    data = f"d.{suffix}"
    files = {"m.onnx": parser.parse_model(SMALL).SerializeToString(), data: content}
    return Case(
        f"data: {name} (.{suffix})",
        files,
        ("m.onnx", "--data", data, *OPTIONS),
        codes,
        seconds=seconds,
    )


SHAPES: tuple[object, ...] = (
    (2**62, 4),
    (2**40, 4),
    (2**31, 4),
    (2**63, 4),
    (-1, 4),
    (-(2**63), 4),
    (8, -4),
    (8, 2**62),
    (1.5, 4),
    ("8", 4),
    8,
    None,
    (True, 4),
    (8, 4, 1, 1, 1, 1) * 20,
)

TYPES: tuple[object, ...] = (
    "|O",
    "<f4" * 50,
    "<M8[ns]",
    "|V100",
    "<U9999999",
    [("a", "<f4"), ("b", "|O")],
    ("<f4", (2**30,)),
    "__import__('os').system('true')",
    None,
    17,
)


def cases() -> Iterator[Case]:
    """Damaged, lying and oversized .npy and .npz files, and folders."""
    rng = random.Random(23)
    whole = npy((8, 4), np.ones((8, 4), np.float32).tobytes())
    for suffix, content in (("npz", sound()), ("npy", whole)):
        for number in range(20):
            yield _case(f"cut {number}", cut(content, rng), suffix)
        for number in range(30):
            changed = flipped(content, rng)
            yield _case(f"flip {number}", changed, suffix, EITHER)
    for shape in SHAPES:
        for fortran in (False, True):
            lie = npy(shape, bytes(128), fortran=fortran)
            order = "columns" if fortran else "rows"
            yield _case(f"shape {shape} in {order}"[:60], lie, "npy")
            yield _case(f"shape {shape} in {order}"[:60], npz({"x.npy": lie}))
    for dtype in TYPES:
        lie = npy((8, 4), bytes(128), dtype)
        yield _case(f"type {dtype}"[:40], lie, "npy")
        yield _case(f"type {dtype}"[:40], npz({"x.npy": lie}))
    yield from _pickles()
    yield from _archives()
    yield from _folders()


def _pickles() -> Iterator[Case]:
    trap = pickle.dumps(Trap())
    yield _case("a pickle", trap, "npy")
    yield _case("a pickle", trap, "npz")
    yield _case("a pickle in an archive", npz({"x.npy": trap}))
    yield _case("objects", npy((1,), trap, "|O"), "npy")
    yield _case("objects in an archive", npz({"x.npy": npy((1,), trap, "|O")}))
    yield _case("a torch checkpoint", npz({"data.pkl": trap, "version": b"3"}))


def _archives() -> Iterator[Case]:
    zeros = npy((2**24, 4), bytes(2**28))
    yield _case(
        "256 MB of zeros, deflated",
        npz({"x.npy": zeros}, True),
        codes=EITHER,
        seconds=120,
    )
    header = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{" * 1000
    yield _case("a header of 2 GB", header, "npy")
    long = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**28) + b"{" * 2**28
    yield _case("a header of 256 MB, deflated", npz({"x.npy": long}, True))
    deep = b"\x93NUMPY\x01\x00" + struct.pack("<H", 60000) + b"(" * 60000
    yield _case("a header of parentheses", deep, "npy")
    one = npy((8, 4), bytes(128))
    yield _case("an archive in an archive", npz({"x.npy": npz({"x.npy": one})}))
    yield _case("no members", npz({}))
    yield _case("10,000 members", npz({f"a{i}.npy": one for i in range(10_000)}))
    yield _case("a path as a name", npz({"../../x.npy": one}), codes=EITHER)
    yield _case("an absolute name", npz({"/etc/x.npy": one}), codes=EITHER)
    yield _case("control characters", npz({"\x1b[2Jx.npy": one, "y.npy": one}))
    broken = bytearray(npz({"x.npy": one}))
    broken[14:18] = b"\0\0\0\0"
    yield _case("a wrong checksum", bytes(broken), codes=EITHER)
    method = bytearray(npz({"x.npy": one}))
    at = method.rindex(b"PK\x01\x02")
    method[at + 10 : at + 12] = b"\x63\x00"
    yield _case("an unknown compression", bytes(method))
    encrypted = bytearray(npz({"x.npy": one}))
    at = encrypted.rindex(b"PK\x01\x02")
    encrypted[at + 8] |= 1
    yield _case("encrypted", bytes(encrypted))
    flat = npz({"x.npy": npy((8,), bytes(32))})
    yield _case("too few axes", flat)
    nan = np.full((8, 4), np.nan, np.float32).tobytes()
    yield _case("NaN", npz({"x.npy": npy((8, 4), nan)}))
    yield _case("no samples", npz({"x.npy": npy((0, 4), b"")}))


def _folders() -> Iterator[Case]:
    model = parser.parse_model(SMALL).SerializeToString()
    spec = b"size = [2, 2]\n"
    tensors = {
        "nothing": b"",
        "noise": bytes(range(200)),
        "a tensor of 2^62": b"\x08\x80\x80\x80\x80\x80\x80\x80\x80\x40\x10\x01",
        "a text": b"hello",
    }
    for what, content in tensors.items():
        files = {"m.onnx": model, "test_data_set_0/input_0.pb": content}
        words = ("m.onnx", "--data", ".", *OPTIONS)
        yield Case(f"data: test data that is {what}", files, words)
    specs = {
        "not TOML": b"size = [",
        "no size": b"layout = 'NCHW'\n",
        "huge": b"size = [1000000000, 1000000000]\n",
        "negative": b"size = [-1, -1]\n",
        "of a wrong type": b"size = 'large'\n",
        "of NaN": spec + b"scale = nan\n",
        "of unknown keys": spec + b"sise = 2\n",
        "not UTF-8": b"\xff\xfe",
    }
    for what, content in specs.items():
        files = {"m.onnx": model, "i/preprocess.toml": content, "i/a.png": b"\x89PNG"}
        words = ("m.onnx", "--data", "i", *OPTIONS)
        yield Case(f"data: a specification that is {what}", files, words)
    pictures = {
        "nothing": b"",
        "a head": b"\x89PNG\r\n\x1a\n",
        # width and height of 2^31 - 1
        "a bomb": b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR"
        + 2 * b"\x7f\xff\xff\xff"
        + b"\x08\x02\0\0\0\0\0\0\0",
        "text": b"hello",
    }
    for what, content in pictures.items():
        files = {"m.onnx": model, "i/preprocess.toml": spec, "i/a.png": content}
        words = ("m.onnx", "--data", "i", *OPTIONS)
        yield Case(f"data: a picture that is {what}", files, words)
