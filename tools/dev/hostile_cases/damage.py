"""Bytes gone wrong: files cut short, bytes changed, parts cut out, repeated or put in."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser

from .case import CHECKED, EITHER, QUICK, SMALL, Case, model_case

CUTS = 30
FLIPS = 60
SPLICES = 24

SUBGRAPHS = """
<ir_version: 10, opset_import: ["" : 21]>
branches (bool c, float[4] x) => (float[4] y)
{
    y = If (c) <
        then_branch = t () => (float[4] p) { one = Constant <value = float[1] {1}> ()
                                             p = Add (x, one) },
        else_branch = e () => (float[4] q) { q = Neg (x) }
    >
}
"""
FUNCTIONS = """
<ir_version: 10, opset_import: ["" : 21, "f" : 1]>
calls (float[4] x) => (float[4] y) { h = f.twice (x)
                                     y = f.twice (h) }
<domain: "f", opset_import: ["" : 21]>
twice (a) => (b) { b = Add (a, a) }
"""
TYPES = """
<ir_version: 10, opset_import: ["" : 21]>
kinds (seq(float[2]) s, optional(float[2]) o, string[2] t) => (float[2] y, string[2] u)
{
    y = OptionalGetElement (o)
    u = Identity (t)
}
"""


def seeds() -> dict[str, bytes]:
    """Sound models that between them have every kind of content."""
    texts = {"small": SMALL, "if": SUBGRAPHS, "functions": FUNCTIONS, "types": TYPES}
    protos = {name: parser.parse_model(text) for name, text in texts.items()}
    protos["conv"] = _convolution()
    protos["rich"] = _rich()
    return {name: proto.SerializeToString() for name, proto in protos.items()}


def _convolution() -> onnx.ModelProto:
    float_ = onnx.TensorProto.FLOAT
    weight = np.arange(36, dtype=np.float32).reshape(4, 1, 3, 3)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], group=1),
            helper.make_node("Flatten", ["c"], ["y"], axis=1),
        ],
        "conv",
        [helper.make_tensor_value_info("x", float_, ["N", 1, 4, 4])],
        [helper.make_tensor_value_info("y", float_, ["N", 64])],
        [numpy_helper.from_array(weight, "w")],
    )
    opsets = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _rich() -> onnx.ModelProto:
    model = parser.parse_model(SMALL)
    kinds = onnx.TensorProto
    model.graph.initializer.extend(
        [
            helper.make_tensor("i4", kinds.INT4, [5], [1, 2, 3, 4, 5]),
            helper.make_tensor("text", kinds.STRING, [2], ["a", "b"]),
            helper.make_tensor("half", kinds.BFLOAT16, [2], [1.0, 2.0]),
        ]
    )
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("s", kinds.FLOAT, [2], [7.0, 8.0]),
        helper.make_tensor("i", kinds.INT64, [2], [1, 5]),
        [2, 3],
    )
    model.graph.sparse_initializer.append(sparse)
    model.metadata_props.add(key="a", value="b")
    model.graph.node[0].metadata_props.add(key="x", value="y")
    model.graph.quantization_annotation.add(tensor_name="w")
    return model


def cut(content: bytes, rng: random.Random) -> bytes:
    """The beginning of a file."""
    return content[: rng.randrange(1, len(content))]


def flipped(content: bytes, rng: random.Random) -> bytes:
    """One to four bits or bytes changed."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed))
        # a bit, or any byte
        bit = changed[at] ^ (1 << rng.randrange(8))
        changed[at] = rng.choice([bit, rng.randrange(256)])
    return bytes(changed)


def spliced(content: bytes, rng: random.Random) -> bytes:
    """A part cut out, repeated elsewhere, or foreign bytes put in."""
    changed = bytearray(content)
    at = rng.randrange(len(changed))
    start = rng.randrange(len(changed))
    length = rng.randint(1, 40)
    part = changed[start : start + length]
    what = rng.randrange(3)
    if what == 0:
        del changed[at : at + length]
    elif what == 1:
        changed[at:at] = part
    else:
        changed[at:at] = rng.randbytes(length)
    return bytes(changed)


def cases() -> Iterator[Case]:
    """Damaged models: a run refuses them, or finds nothing wrong and does its work."""
    rng = random.Random(17)
    ways = {"cut": (cut, CUTS), "flip": (flipped, FLIPS), "splice": (spliced, SPLICES)}
    for seed, content in seeds().items():
        for way, (change, count) in ways.items():
            for number in range(count):
                damaged = change(content, rng)
                name = f"damage: {way} {seed} {number}"
                # running models takes a process each: one in six
                options = QUICK if number % 6 else CHECKED
                yield model_case(name, damaged, EITHER, options)
    yield from other_files(seeds()["small"])


def other_files(model: bytes) -> Iterator[Case]:
    """Files that are no ONNX models at all."""
    heads = {
        "empty": b"",
        "PNG": b"\x89PNG\r\n\x1a\n",
        "JPEG": b"\xff\xd8\xff\xe0",
        "zip": b"PK\x03\x04",
        "gzip": b"\x1f\x8b\x08",
        "pickle": b"\x80\x02}q\x00.",
        "HDF5": b"\x89HDF\r\n",
        "PDF": b"%PDF-1.7",
        "ELF": b"\x7fELF",
        "NumPy": b"\x93NUMPY\x01\x00",
        "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
        "HTML": b"<!DOCTYPE html><html>",
        "JSON": b'{"model": 1}',
        "text": b"not a model\n",
    }
    for kind, head in heads.items():
        for tail in (b"", bytes(100), bytes(range(256)), model):
            # an empty file that goes on with a model is one
            is_model = not head and tail == model
            codes = EITHER if is_model else frozenset({3})
            yield model_case(
                f"damage: {kind} and {len(tail)} bytes", head + tail, codes
            )
    for size in (1, 2, 10, 1000, 1 << 20):
        yield model_case(f"damage: {size} zeros", bytes(size))
        noise = random.Random(size).randbytes(size)
        yield model_case(f"damage: {size} random bytes", noise)
