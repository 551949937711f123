"""Run a command as on an AVX2 CPU without VNNI: `python tools/dev/without_vnni.py COMMAND…`.

ONNX Runtime then takes the kernels of such a CPU, whose sums of two 8-bit products saturate, in
the command and its children. Nothing is emulated: a small library hides AVX-512, VNNI and AMX from
CPUID (without_vnni.c). That takes a CPU that can make CPUID fault (Intel since Ivy Bridge), Linux
on x86-64 and a C compiler.

Exits as the command does, with 128 + its number where a signal ended it, and with 77 where CPUID
cannot be masked. Nothing is hidden from a statically linked program, nor from one that runs with
other rights than its caller's.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
NOT_POSSIBLE = 77
"""Exit code of test programs where a test cannot run."""
NOT_FOUND = 127
"""Exit code of shells where a command cannot be run."""

_ARCH_PRCTL, _ARCH_GET_CPUID, _ARCH_SET_CPUID = 158, 0x1011, 0x1012


def main(command: list[str]) -> int:
    if not command:
        print("usage: without_vnni.py COMMAND...", file=sys.stderr)
        return 2
    why = why_not()
    if why is not None:
        print(f"without_vnni: not possible here: {why}", file=sys.stderr)
        return NOT_POSSIBLE
    with tempfile.TemporaryDirectory(prefix="without-vnni-") as folder:
        environment = preloading(built(Path(folder)))
        signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for the command
        try:
            code = subprocess.run(command, env=environment, check=False).returncode
        except OSError as error:
            print(f"without_vnni: {command[0]}: {error.strerror}", file=sys.stderr)
            return NOT_FOUND
    return code if code >= 0 else 128 - code


def why_not() -> str | None:
    """Reason why CPUID cannot be masked on this machine; None where it can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"{platform.system()} on {platform.machine()}, not Linux on x86-64"
    call = ctypes.CDLL(None, use_errno=True).syscall
    if (
        call(_ARCH_PRCTL, _ARCH_SET_CPUID, call(_ARCH_PRCTL, _ARCH_GET_CPUID)) != 0
    ):  # as it is
        return f"this CPU or kernel cannot make CPUID fault ({os.strerror(ctypes.get_errno())})"
    if compiler() is None:
        return "no C compiler: neither $CC nor cc, gcc or clang is there"
    return None


def compiler() -> str | None:
    """The C compiler's path."""
    names = filter(None, (os.environ.get("CC"), "cc", "gcc", "clang"))
    return next(filter(None, map(shutil.which, names)), None)


def built(folder: Path) -> Path:
    """The library, compiled into `folder`."""
    library = folder / "without_vnni.so"
    cc = compiler()
    assert cc is not None
    command = [
        cc,
        "-O1",
        "-Wall",
        "-Wextra",
        "-shared",
        "-fPIC",
        "-o",
        library,
        SOURCE,
        "-ldl",
    ]
    subprocess.run(command, check=True)
    return library


def preloading(library: Path) -> dict[str, str]:
    """This process's environment, with the library in front of what is preloaded anyway."""
    others = os.environ.get("LD_PRELOAD", "").split()
    return {**os.environ, "LD_PRELOAD": " ".join([str(library), *others])}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
