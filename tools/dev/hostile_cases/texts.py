"""Pipeline texts, recipes and options that are none."""

from __future__ import annotations

import random
from collections.abc import Iterator

from .case import QUICK, USAGE, Case, small

TEXTS = (
    "",
    " ",
    ",",
    ",,",
    "(",
    ")",
    "()",
    "prune(",
    "prune)",
    "prune()(",
    "prune((((((((((",
    "prune(sparsity",
    "prune(sparsity=",
    "prune(sparsity==0.5)",
    "prune(sparsity=0.5",
    "prune(sparsity=0.5))",
    "prune(=0.5)",
    "prune(sparsity=0.5,sparsity=0.6)",
    "prune(sparsity=nan)",
    "prune(sparsity=inf)",
    "prune(sparsity=1e999)",
    "prune(sparsity=-0.1)",
    "prune(sparsity=[0.5])",
    "prune(sparsity='0.5)",
    "prune:sparsity",
    "prune:",
    ":prune",
    "prune::",
    "prune prune",
    "prune;quant",
    "prune|quant",
    "quant(bits=5000000000000000000000000000)",
    "quant(bits=0)",
    "quant(int8,int8)",
    "quant(int9)",
    "\x1b[31mprune",
    "prune\n\nerror: x",
    "pr\u202eune",
    "prüne",
    "os.system",
    "os.nothing.here",
    "builtins.object",
    "onnx_ir.passes.PassBase",
    "__import__",
    "-",
    "--",
    "@",
    "@none.txt",
    "@.",
    "@bad.txt",
    "@fifo",
    "@loop.txt",
    "@huge.txt",
    "@bytes.txt",
    "(" * 10_000,
    "prune," * 10 + "(",
    "prune(" * 3000,
    "prune(include=[" + "a," * 10 + "(",
    "prune(include=" + "[" * 3000,
    "x" * 100_000,
)

RECIPES = {
    "bad.txt": b"prune(\n",
    "loop.txt": b"@loop.txt\n",
    "huge.txt": b"(" * 1_000_000,
    "bytes.txt": b"\xff\xfe\0prune",
}

OPTIONS: tuple[tuple[str, ...], ...] = (
    ("--seed", "x"),
    ("--seed", "9" * 5000),
    ("--threads", "-1"),
    ("--min-sqnr", "abc"),
    ("--max-drop", "nan"),
    ("--target", "\x1b[31mcpu"),
    ("--verify", "maybe"),
    ("--metric", "top1"),
    ("--data", ""),
    ("--data", "nothing:here"),
    ("--data", "\0"),
    ("--resume", "m.onnx"),
    ("--out", "m.onnx"),
    ("--out", "/dev/null"),
    ("--out", "/proc/x.onnx"),
    ("--out", "none/x.onnx"),
    ("--out", "x" * 300),
    ("--out", ""),
    ("--nothing",),
    ("second.onnx",),
)

WORDS = ("prune", "quant", "simplify", "(", ")", ",", "=", ":", "[", "]", "@", "'", '"')
RANDOM = 100


def cases() -> Iterator[Case]:
    """Texts that must be refused as usage, or as data where they name some."""
    model = small().SerializeToString()
    refused = USAGE | {3}
    for index, text in enumerate(TEXTS):
        words = ("m.onnx", "--passes", text, *QUICK[2:])
        title = text.encode("unicode_escape").decode()[:40]
        yield Case(
            f"texts: {index} {title}", {"m.onnx": model, **RECIPES}, words, refused
        )
    for options in OPTIONS:
        title = " ".join(options).encode("unicode_escape").decode()[:40]
        words = ("m.onnx", *QUICK, *options)
        yield Case(f"texts: {title}", {"m.onnx": model}, words, refused)
    rng = random.Random(5)
    for number in range(RANDOM):
        text = "".join(rng.choice(WORDS) for _ in range(rng.randint(2, 12)))
        # some are pipelines
        words = ("m.onnx", "--passes", text, *QUICK[2:])
        title = f"texts: random {number} {text}"
        yield Case(title, {"m.onnx": model}, words, refused | {0})
