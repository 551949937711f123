"""Names that would write over the terminal, or fill it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx

from .case import CHECKED, EITHER, QUICK, Case, spoiled

NAMES = {
    "colours": "\x1b[31mred\x1b[0m",
    "a cleared screen": "\x1b[2J\x1b[H",
    "a title": "\x1b]0;owned\x07",
    "lines": "a\nerror: all is well\n  fix: none",
    "a carriage return": "good\rbad",
    "a NUL": "a\0b",
    "backspaces": "evil\b\b\b\bgood",
    "right to left": "\u202egnp.exe",
    "invisible": "a\u200b\u2066b\u2069",
    "a deletion": "\x7f\x7f",
    "C1 controls": "\x9b31m",
    "markup": "[bold red]x[/]",
    "a broken tag": "[/nothing]",
    "a percent format": "%s%n%d",
    "braces": "{0.__class__}",
    "100,000 letters": "x" * 100_000,
    "a path": "../../../etc/passwd",
    "nothing but blanks": "   ",
}

INSPECT = ("inspect", "m.onnx")
GROUPS = ("inspect", "m.onnx", "--groups")
JSON = ("m.onnx", *QUICK, "--json")
LOUD = ("m.onnx", *QUICK[:-1], "-v")


def _everywhere(name: str) -> Callable[[onnx.ModelProto], None]:
    """A change that gives a name to all that has one; the model stays sound."""

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        renamed = {"x": f"x{name}", "y": f"y{name}", "w": f"w{name}", "h": f"h{name}"}
        for node in graph.node:
            node.name = f"{node.op_type}{name}"
            for names in (node.input, node.output):
                for index, old in enumerate(names):
                    names[index] = renamed.get(old, old)
        for info in (*graph.input, *graph.output, *graph.initializer):
            info.name = renamed.get(info.name, info.name)
        for info in (*graph.input, *graph.output):
            info.type.tensor_type.shape.dim[0].dim_param = f"N{name}"
        graph.name = model.producer_name = model.producer_version = f"g{name}"
        model.doc_string = graph.doc_string = name
        model.metadata_props.add(key=name, value=name)

    return change


def _in_error(name: str) -> dict[str, Callable[[onnx.ModelProto], object]]:
    """Changes whose refusal shows the name."""
    return {
        "a value that is not there": lambda m: m.graph.node[0].input.__setitem__(
            0, name
        ),
        "an operator": lambda m: setattr(m.graph.node[0], "op_type", name),
        "a domain": lambda m: setattr(m.graph.node[0], "domain", name),
        "an attribute": lambda m: m.graph.node[0].attribute.add(name=name, type=2, i=1),
        "a broken tensor": lambda m: m.graph.initializer.add(
            name=name, data_type=1, dims=[3], raw_data=b"x"
        ),
    }


def cases() -> Iterator[Case]:
    """Sound models with such names in every command, and refusals that show them."""
    commands = {
        "inspect": INSPECT,
        "groups": GROUPS,
        "a run": ("m.onnx", *QUICK),
        "a checked run": ("m.onnx", *CHECKED),
        "a run in JSON": JSON,
        "a talking run": LOUD,
    }
    for what, name in NAMES.items():
        content = spoiled(_everywhere(name)).SerializeToString()
        for command, words in commands.items():
            if command == "a checked run" and len(name) < 1000:
                continue
            yield Case(
                f"names: {what} in {command}", {"m.onnx": content}, words, EITHER
            )
        for place, change in _in_error(name).items():
            content = spoiled(change).SerializeToString()
            title = f"names: {what} as {place}"
            yield Case(title, {"m.onnx": content}, ("m.onnx", *QUICK))
