"""The CPU that runs ONNX Runtime: its name, its instructions, and whether 8-bit products saturate.

A latency, and what integer kernels compute, are facts about one machine: these words stand beside
them. Whether products saturate is measured, not looked up: a system can hide instructions from
programs, and a build of ONNX Runtime can leave out the kernels that use them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import OnnxOptError
from ..passes._core.targets import ARM, X86, Target

if TYPE_CHECKING:
    from .worker import Worker

UNKNOWN = "unknown"

_MACHINES = {"x86_64": X86, "amd64": X86, "arm64": ARM, "aarch64": ARM}
_CPUINFO = Path("/proc/cpuinfo")
_SYSCTL_SECONDS = 10
"""Seconds that a call of sysctl may take. Chosen by hand; not measured."""
_TRADEMARKS = re.compile(r"\((?:R|TM|C)\)", re.IGNORECASE)


@dataclass(frozen=True)
class _Feature:
    """An instruction set, and its names: here, for people, in Linux, in macOS and in numpy.

    `exact`: it adds products of 8 bits in 32.
    """

    name: str
    words: str
    linux: str
    macos: str = ""
    numpy: str = ""
    exact: bool = False


_FEATURES = {
    X86: (
        _Feature("avx2", "AVX2", "avx2", "AVX2", "AVX2"),
        # BW: the kernels multiply bytes and add words
        _Feature("avx512", "AVX-512", "avx512bw", "AVX512BW", "AVX512BW"),
        _Feature(
            "avx512_vnni",
            "AVX-512 VNNI",
            "avx512_vnni",
            "AVX512VNNI",
            "AVX512VNNI",
            exact=True,
        ),
        _Feature("avx_vnni", "AVX-VNNI", "avx_vnni", exact=True),
        _Feature("avx_vnni_int8", "AVX-VNNI-INT8", "avx_vnni_int8", exact=True),
        _Feature("amx_int8", "AMX", "amx_int8", exact=True),
    ),
    ARM: (
        _Feature("neon", "NEON", "asimd", "hw.optional.neon", "ASIMD"),
        _Feature(
            "dot_product",
            "dot product",
            "asimddp",
            "hw.optional.arm.FEAT_DotProd",
            "ASIMDDP",
            exact=True,
        ),
        _Feature("i8mm", "i8mm", "i8mm", "hw.optional.arm.FEAT_I8MM", exact=True),
    ),
}
_NEEDS = {"avx512_vnni": "avx512", "amx_int8": "avx512"}
"""Features that no CPU has without another one: where that is hidden, so are these."""

_ARM_CORES = {
    "0xd03": "Cortex-A53",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse N1",
    "0xd40": "Neoverse V1",
    "0xd41": "Cortex-A78",
    "0xd42": "Cortex-A78AE",
    "0xd49": "Neoverse N2",
    "0xd4f": "Neoverse V2",
    "0xd84": "Neoverse V3",
    "0xd8e": "Neoverse N3",
}
"""Arm's own cores by part number, all that Linux tells of most (MIDR_EL1 in Arm's manuals)."""


@dataclass(frozen=True)
class Hardware:
    """A CPU, as far as it matters to integer kernels.

    `cpu`: its name, or "unknown". `architecture`: "x86-64", "arm64", or the system's own word.
    `integer`: those of its instruction sets that ONNX Runtime has 8-bit kernels for. `saturates`:
    True if these cut the sum of two 8-bit products to 16 bits; None where it was not measured.
    `provider`: what runs the models; beside a GPU's the CPU is only its host.
    """

    cpu: str
    architecture: str
    integer: tuple[str, ...]
    saturates: bool | None
    provider: str = "cpu"

    @property
    def label(self) -> str:
        """Words for people: `AMD EPYC 7B12, AVX2 without VNNI (8-bit products saturate)`."""
        name = "unknown CPU"
        if self.cpu != UNKNOWN:
            name = " ".join(_TRADEMARKS.sub("", self.cpu).split())
        label = f"{name}, {self._products()}"
        if self.provider == "cpu":
            return label
        return f"{self.provider} provider, host {label}"

    def _products(self) -> str:
        """Instructions that multiply 8-bit values, and what becomes of the products."""
        widest = self.architecture
        exact_ones = []
        # the table has the narrow ones first
        for feature in _FEATURES.get(self.architecture, ()):
            if feature.name not in self.integer:
                continue
            if feature.exact:
                exact_ones.append(feature.words)
            else:
                widest = feature.words
        exact = ", ".join(exact_ones)
        if self.saturates:
            lacks = " without VNNI" if self.architecture == X86 else ""
            return f"{widest}{lacks} (8-bit products saturate)"
        if exact or self.saturates is None:
            return exact or widest
        return f"{widest} (8-bit products exact)"

    def to_json(self) -> dict[str, Any]:
        """Give `cpu`, `integer`, `saturates` and `label` as JSON values."""
        return {
            "cpu": self.cpu,
            "integer": list(self.integer),
            "saturates": self.saturates,
            "label": self.label,
        }


def hardware(worker: Worker | None, provider: str = "cpu") -> Hardware:
    """Describe this machine's CPU.

    `worker` measures it, once a process; None: nothing is measured. Never an error: what cannot be
    found out is "unknown" or None.
    """
    return described(
        architecture=machine_architecture(),
        cpu=cpu_name(),
        integer=instruction_sets(),
        saturates=_measured_in(worker),
        provider=provider,
    )


def described(
    architecture: str,
    cpu: str,
    integer: Iterable[str],
    saturates: bool | None,
    provider: str = "cpu",
) -> Hardware:
    """Describe a CPU, without instructions that the measurement shows not to be used."""
    unused = set()
    if saturates:
        features = _FEATURES.get(architecture, ())
        unused = {feature.name for feature in features if feature.exact}
    kept = tuple(name for name in integer if name not in unused)
    return Hardware(
        cpu,
        architecture,
        kept,
        saturates,
        provider,
    )


# measured

_PRODUCTS = """
<ir_version: 8, opset_import: ["" : 13]>
products (uint8[3, 2] rows, uint8[1, 2, 3, 3] image)
    => (int32[3, 16] integer, uint8[3, 16] matmul, uint8[1, 16, 3, 3] conv)
<int8[2, 16] columns = {%COLUMNS%}, int8[16, 2, 1, 1] kernels = {%COLUMNS%},
 float one = {1}, float step = {512}, uint8 zero = {0}, int8 weight_zero = {0}>
{
    integer = MatMulInteger (rows, columns)
    matmul = QLinearMatMul (rows, one, zero, columns, one, weight_zero, step, zero)
    conv = QLinearConv (image, one, zero, kernels, one, weight_zero, step, zero)
}
""".replace("%COLUMNS%", ", ".join(["127"] * 32))
"""A model with two products 255 * 127 in each kernel that may add them in 16 bits, as fused QDQ
layers do.
"""

_EXACT = {"integer": 2 * 255 * 127, "matmul": 127, "conv": 127}
"""Outputs of that model where nothing saturates: `integer` as it is, the others in steps of 512."""

_measured: bool | None = None


def _measured_in(worker: Worker | None) -> bool | None:
    global _measured
    if _measured is None and worker is not None:
        with contextlib.suppress(OnnxOptError):
            _measured = worker.call("products_saturate", products_model())
    return _measured


@functools.cache
def products_model() -> bytes:
    """Make the model that `products_saturate` runs."""
    import onnx.parser

    serialized: bytes = onnx.parser.parse_model(_PRODUCTS).SerializeToString()
    return serialized


def products_saturate(model: bytes) -> bool:
    """Return whether ONNX Runtime's CPU provider, in this process, cuts sums of 8-bit products."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 4
    session = ort.InferenceSession(
        model,
        settings,
        providers=["CPUExecutionProvider"],
    )
    feeds = {}
    for info in session.get_inputs():
        feeds[info.name] = np.full(info.shape, 255, np.uint8)
    outputs = session.run(None, feeds)
    for info, values in zip(session.get_outputs(), outputs, strict=True):
        if np.any(values != _EXACT[info.name]):
            return True
    return False


# told by the system


def machine_architecture() -> str:
    """Name of the machine's architecture: "x86-64", "arm64", or the system's own word."""
    machine = platform.machine() or UNKNOWN
    return _MACHINES.get(machine.lower(), machine)


@functools.cache
def cpu_name() -> str:
    """Name of the CPU in the system's words; "unknown" where it does not tell."""
    name = ""
    # ImportError: Python for Windows can lack its registry module
    with contextlib.suppress(OSError, subprocess.SubprocessError, ImportError):
        if sys.platform == "linux":
            name = linux_name(_read_cpuinfo())
        elif sys.platform == "darwin":
            name = _sysctl("machdep.cpu.brand_string")
        elif sys.platform == "win32":
            name = _windows_name()
    return " ".join(name.split()) or UNKNOWN


def _read_cpuinfo() -> str:
    return _CPUINFO.read_text(encoding="utf-8", errors="replace")


def linux_name(cpuinfo: str) -> str:
    """Name of the CPU in the text of /proc/cpuinfo; empty where it has none."""
    fields = _fields(cpuinfo)
    if fields.get("model name"):
        return fields["model name"]
    implementer = fields.get("cpu implementer", "")
    part = fields.get("cpu part", "")
    # 0x41 is Arm; other makers number their parts anew
    if implementer == "0x41" and part in _ARM_CORES:
        return f"Arm {_ARM_CORES[part]}"
    if part:
        return f"CPU implementer {implementer} part {part}"
    return fields.get("model", "")


def _fields(cpuinfo: str) -> dict[str, str]:
    """First value of each field of /proc/cpuinfo, keys in lower case."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip().lower(), value.strip())
    return fields


def _windows_name() -> str:
    if sys.platform == "win32":
        import winreg

        key = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, key) as opened:
            return str(winreg.QueryValueEx(opened, "ProcessorNameString")[0])
    return ""


def _sysctl(name: str) -> str:
    """Value of a name in macOS' sysctl; empty where it has no such name."""
    done = subprocess.run(
        ["/usr/sbin/sysctl", "-n", name],
        capture_output=True,
        text=True,
        timeout=_SYSCTL_SECONDS,
        check=False,
    )
    return done.stdout.strip()


@functools.cache
def instruction_sets() -> tuple[str, ...]:
    """Names of the CPU's instruction sets for 8-bit kernels, as far as this process sees."""
    told: set[str] = set()
    architecture = machine_architecture()
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if sys.platform == "linux":
            told = linux_flags(_read_cpuinfo())
        elif sys.platform == "darwin":
            told = _macos_flags(architecture)
    return seen(architecture, told, _seen_by_numpy())


def linux_flags(cpuinfo: str) -> set[str]:
    """Flags (arm64: features) of the first processor in the text of /proc/cpuinfo."""
    fields = _fields(cpuinfo)
    words = fields.get("flags") or fields.get("features") or ""
    return set(words.split())


def _macos_flags(architecture: str) -> set[str]:
    if architecture == X86:
        flags = _sysctl("machdep.cpu.leaf7_features")
        return set(flags.upper().split())
    told = set()
    for feature in _FEATURES.get(architecture, ()):
        if feature.macos and _sysctl(feature.macos) == "1":
            told.add(feature.macos)
    return told


def _seen_by_numpy() -> Mapping[str, bool]:
    """Features that numpy found in the CPU, by its own names.

    It asks the CPU itself when it is imported, and so sees what every library of this process sees.
    """
    # numpy promises nothing about this table
    with contextlib.suppress(ImportError, AttributeError):
        module = importlib.import_module("numpy._core._multiarray_umath")
        return dict(module.__cpu_features__)
    return {}


def seen(
    architecture: str, told: set[str], by_numpy: Mapping[str, bool]
) -> tuple[str, ...]:
    """Choose the features that the CPU has: as numpy found; of others as the system tells."""
    names: list[str] = []
    for feature in _FEATURES.get(architecture, ()):
        system_tells = feature.linux in told or feature.macos in told
        # a program may be made to see less than the system: numpy's word counts first
        found = by_numpy.get(feature.numpy, system_tells)
        needed = _NEEDS.get(feature.name)
        if found and (needed is None or needed in names):
            names.append(feature.name)
    return tuple(names)


def covers(target: Target, hardware: Hardware) -> bool:
    """Return whether the target is made for that CPU, so that measurements there tell of it."""
    if not target.cpus:
        return True
    return target.architecture == hardware.architecture and not hardware.saturates
