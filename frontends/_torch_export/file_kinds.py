"""Kinds of files that torch writes, told apart without running what they hold. Needs no torch."""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path

from ... import RefusedError

PICKLE = b"\x80"
"""First byte of a pickle of protocol 2 or later: the format of torch.save before 1.6."""

EXPORT_FUNCTION = (
    "write a function that returns (module, args), and export file.py:function"
)
"""Cure for everything that holds weights, or code, but no exported program."""

_HARMLESS_MODULES = frozenset(
    {
        "torch",
        "torch._utils",
        "torch._tensor",
        "torch.storage",
        "torch.serialization",
        "collections",
        "builtins",
        "__builtin__",
        "_codecs",
        "numpy",
        "numpy.core.multiarray",
        "numpy._core.multiarray",
    }
)
"""Modules that the pickle of a plain state dict takes names from.

It decides which advice an error gives, never whether a file is loaded.
"""


def refuse_other_files(path: Path) -> None:
    """Refuse a file that is not an exported program, naming the kind of file it is.

    Errors: RefusedError.
    """
    where = str(path)
    if path.suffix == ".onnx":
        raise RefusedError(where, "is an ONNX model already", f"onnx-opt {path.name}")
    if path.suffix == ".safetensors":
        raise _checkpoint(where)
    if not zipfile.is_zipfile(path):
        if first_bytes(path)[:1] == PICKLE:
            raise RefusedError(
                where,
                "is a pickle of an old torch.save, which may run any code when it is read",
                f"{EXPORT_FUNCTION}; inside it load the weights with torch.load(…, "
                "weights_only=True)",
            )
        raise RefusedError(where, "is not a .pt2 file", EXPORT_FUNCTION)
    if is_torchscript(path):
        raise RefusedError(
            where,
            "is a TorchScript file, which torch.export cannot trace",
            EXPORT_FUNCTION,
        )
    pickle = _pickle_of(path)
    if pickle is None:
        return
    if holds_only_tensors(pickle):
        raise _checkpoint(where)
    raise RefusedError(
        where,
        "is a pickled module: reading it can run any code, and it fits one version of "
        "the module's source only",
        EXPORT_FUNCTION,
    )


def _checkpoint(where: str) -> RefusedError:
    name = Path(where).name
    return RefusedError(
        where,
        "is a checkpoint: weights without a graph",
        f"{EXPORT_FUNCTION}, with --state-dict {name}; or put it onto an ONNX graph: "
        f"onnx-opt export --onto GRAPH.onnx --state-dict {name} -o OUT.onnx",
    )


def _pickle_of(path: Path) -> bytes | None:
    """The pickle inside an archive of torch.save; None for another archive."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if _below_top(name) == "data.pkl":
                return archive.read(name)
    return None


def _below_top(name: str) -> str:
    """Name in an archive without its top folder, which torch calls after the file."""
    return name.partition("/")[2]


def holds_only_tensors(pickle: bytes) -> bool:
    """True if a pickle names nothing beyond what torch.load(weights_only=True) takes.

    The pickle is read as opcodes and not executed.
    """
    strings: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(pickle):
            if opcode.name == "GLOBAL":
                # its argument is "module name"
                module = str(argument).split(" ")[0]
                if module not in _HARMLESS_MODULES:
                    return False
            elif opcode.name == "STACK_GLOBAL":
                # it takes module and name, the last two strings, from the stack
                if len(strings) < 2 or strings[-2] not in _HARMLESS_MODULES:
                    return False
            elif isinstance(argument, str):
                strings.append(argument)
    except ValueError:
        return False
    return True


def is_torchscript(path: Path) -> bool:
    """True if a file is an archive with TorchScript code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    has_constants = any(_below_top(name) == "constants.pkl" for name in names)
    has_code = any("/code/__torch__" in name for name in names)
    return has_constants or has_code


def first_bytes(path: Path) -> bytes:
    """The first 8 bytes of a file."""
    with path.open("rb") as file:
        return file.read(8)
