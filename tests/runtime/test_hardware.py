"""The CPU by name, its instructions, and what its 8-bit products really do."""

import platform
import subprocess
import sys

import numpy as np
import onnx.parser
import onnxruntime
import pytest
from onnx_opt.passes._core.targets import TARGETS
from onnx_opt.runtime import hardware as module
from onnx_opt.runtime.hardware import (
    ARM,
    UNKNOWN,
    X86,
    Hardware,
    covers,
    described,
    hardware,
    linux_flags,
    linux_name,
    machine_architecture,
    products_model,
    products_saturate,
    seen,
)
from onnx_opt.runtime.worker import Worker, WorkerDied

SERVER = """processor\t: 0
vendor_id\t: GenuineIntel
model\t\t: 207
model name\t: Intel(R) Xeon(R)  Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu sse4_2 avx2 avx512f avx512bw avx_vnni avx512_vnni amx_tile amx_int8

processor\t: 1
model name\t: another
flags\t\t: fpu
"""
RASPBERRY = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b

Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""
ALL_X86 = ("avx2", "avx512", "avx512_vnni", "avx_vnni", "amx_int8")


# names and flags, from text


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        ("", ""),
        ("processor\t: 0\nflags\t: avx2\n", ""),
        (SERVER, "Intel(R) Xeon(R)  Platinum 8481C CPU @ 2.70GHz"),
        (RASPBERRY, "Arm Cortex-A76"),
        (RASPBERRY.replace("0xd0b", "0xfff"), "CPU implementer 0x41 part 0xfff"),
        (
            "Model\t\t: Raspberry Pi 5 Model B Rev 1.0\n",
            "Raspberry Pi 5 Model B Rev 1.0",
        ),
    ],
)
def test_the_name_in_cpuinfo(cpuinfo, name):
    assert linux_name(cpuinfo) == name


def test_flags_are_those_of_the_first_processor():
    assert linux_flags("no colon") == set()
    assert linux_flags(SERVER) >= {"avx2", "avx512bw", "avx512_vnni", "amx_int8"}
    assert {"asimd", "asimddp"} <= linux_flags(RASPBERRY)


@pytest.mark.parametrize(
    ("architecture", "told", "by_numpy", "names"),
    [
        (X86, set(), {}, ()),
        ("riscv64", {"avx2"}, {"AVX2": True}, ()),
        (X86, {"avx2", "avx512bw", "avx512_vnni", "avx_vnni", "amx_int8"}, {}, ALL_X86),
        (
            X86,
            {"avx2", "avx512bw", "avx512_vnni", "amx_int8"},
            {"AVX2": True, "AVX512BW": False, "AVX512VNNI": False},
            ("avx2",),
        ),
        (X86, {"avx512_vnni", "amx_int8"}, {}, ()),
        (
            X86,
            set(),
            {"AVX2": True, "AVX512BW": True, "AVX512VNNI": True},
            ("avx2", "avx512", "avx512_vnni"),
        ),
        (X86, {"avx2", "avx_vnni"}, {"AVX2": True}, ("avx2", "avx_vnni")),
        (ARM, {"asimd", "asimddp", "i8mm"}, {}, ("neon", "dot_product", "i8mm")),
        (
            ARM,
            {"hw.optional.arm.FEAT_DotProd"},
            {"ASIMD": True},
            ("neon", "dot_product"),
        ),
    ],
)
def test_what_is_hidden_from_programs_is_not_there(architecture, told, by_numpy, names):
    assert seen(architecture, told, by_numpy) == names


# labels


@pytest.mark.parametrize(
    ("architecture", "cpu", "integer", "saturates", "label"),
    [
        (
            X86,
            "Intel(R) Xeon(R) Gold 6230 CPU @ 2.10GHz",
            ("avx2", "avx512", "avx512_vnni"),
            False,
            "Intel Xeon Gold 6230 CPU @ 2.10GHz, AVX-512 VNNI",
        ),
        (
            X86,
            "AMD EPYC 7B12",
            ("avx2",),
            True,
            "AMD EPYC 7B12, AVX2 without VNNI (8-bit products saturate)",
        ),
        (
            X86,
            "Xeon Skylake",
            ("avx2", "avx512"),
            True,
            "Xeon Skylake, AVX-512 without VNNI (8-bit products saturate)",
        ),
        (
            X86,
            UNKNOWN,
            (),
            True,
            "unknown CPU, x86-64 without VNNI (8-bit products saturate)",
        ),
        (X86, UNKNOWN, (), False, "unknown CPU, x86-64 (8-bit products exact)"),
        (X86, UNKNOWN, (), None, "unknown CPU, x86-64"),
        (X86, "Core i5-12400", ("avx2", "avx_vnni"), False, "Core i5-12400, AVX-VNNI"),
        (X86, "Core", ("avx2",), False, "Core, AVX2 (8-bit products exact)"),
        (X86, "Core", ("avx2",), None, "Core, AVX2"),
        (
            ARM,
            "Apple M2",
            ("neon", "dot_product", "i8mm"),
            False,
            "Apple M2, dot product, i8mm",
        ),
        (
            ARM,
            "Arm Cortex-A53",
            ("neon",),
            False,
            "Arm Cortex-A53, NEON (8-bit products exact)",
        ),
        ("riscv64", UNKNOWN, (), False, "unknown CPU, riscv64 (8-bit products exact)"),
    ],
)
def test_labels(architecture, cpu, integer, saturates, label):
    machine = Hardware(cpu, architecture, integer, saturates)
    assert machine.label == label
    assert machine.to_json() == {
        "cpu": cpu,
        "integer": list(integer),
        "saturates": saturates,
        "label": label,
    }


@pytest.mark.parametrize(
    ("saturates", "kept"),
    [
        (False, ALL_X86),
        (None, ALL_X86),
        (True, ("avx2", "avx512")),
    ],
)
def test_instructions_that_the_kernels_do_not_use_are_not_claimed(saturates, kept):
    assert described(X86, "Xeon", ALL_X86, saturates).integer == kept


def test_beside_a_gpu_the_cpu_is_its_host():
    machine = described(X86, "Xeon", ALL_X86[:2], None, "cuda")
    assert machine.label == "cuda provider, host Xeon, AVX-512"


# measured


def saturates_here():
    """Whether 255 * 127 + 255 * 127 is cut, by another road than the module's."""
    text = """<ir_version: 8, opset_import: ["" : 13]>
    g (uint8[1, 2] x) => (int32[1, 1] y) <int8[2, 1] w = {127, 127}> { y = MatMulInteger (x, w) }"""
    session = onnxruntime.InferenceSession(
        onnx.parser.parse_model(text).SerializeToString()
    )
    found = session.run(None, {"x": np.full((1, 2), 255, np.uint8)})[0][0, 0]
    assert found in (64770, 32767)
    return bool(found == 32767)


def test_the_measurement_is_what_the_kernels_do(worker):
    assert products_saturate(products_model()) is saturates_here()
    assert hardware(worker).saturates is saturates_here()


def test_no_vnni_where_products_saturate(worker):
    machine = hardware(worker)
    assert machine.architecture == machine_architecture()
    if machine.saturates:
        assert "without VNNI (8-bit products saturate)" in machine.label
        assert not {"avx512_vnni", "avx_vnni", "amx_int8"} & set(machine.integer)
    else:
        assert "saturate" not in machine.label


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="/proc/cpuinfo of x86-64",
)
def test_this_cpu_has_a_name(worker):
    command = ["grep", "-m1", "model name", "/proc/cpuinfo"]
    line = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert hardware(worker).cpu == " ".join(line.partition(":")[2].split())


def test_a_cpu_that_nothing_tells_of_is_no_error(monkeypatch, tmp_path):
    module.cpu_name.cache_clear()
    module.instruction_sets.cache_clear()
    try:
        monkeypatch.setattr(module.sys, "platform", "plan9")
        monkeypatch.setattr(module.platform, "machine", lambda: "")
        monkeypatch.setattr(module, "_measured", None)
        found = hardware(None)
        assert found == Hardware(UNKNOWN, UNKNOWN, (), None)
        assert found.label == "unknown CPU, unknown"
    finally:
        module.cpu_name.cache_clear()
        module.instruction_sets.cache_clear()


def test_a_linux_without_cpuinfo_is_no_error(monkeypatch, tmp_path):
    module.cpu_name.cache_clear()
    try:
        monkeypatch.setattr(module.sys, "platform", "linux")
        monkeypatch.setattr(module, "_CPUINFO", tmp_path / "gone")
        assert module.cpu_name() == UNKNOWN
    finally:
        module.cpu_name.cache_clear()


def test_a_worker_that_dies_measures_nothing(monkeypatch):
    class Dead(Worker):
        def call(self, function, *args, **kwargs):
            raise WorkerDied(function, "died", "none")

    monkeypatch.setattr(module, "_measured", None)
    with Dead() as worker:
        assert hardware(worker).saturates is None


def test_it_is_measured_once(monkeypatch):
    class Counted(Worker):
        calls = 0

        def call(self, function, *args, **kwargs):
            Counted.calls += 1
            return super().call(function, *args, **kwargs)

    monkeypatch.setattr(module, "_measured", None)
    with Counted(timeout=60) as worker:
        assert hardware(worker) == hardware(worker) == hardware(None)
    assert Counted.calls == 1


# targets


@pytest.mark.parametrize(
    ("target", "machine", "covered"),
    [
        ("cpu", Hardware("a", X86, (), True), True),
        ("generic", Hardware("a", ARM, (), False), True),
        ("cpu-vnni", Hardware("a", X86, (), False), True),
        ("cpu-vnni", Hardware("a", X86, (), True), False),
        ("cpu-vnni", Hardware("a", ARM, (), False), False),
        ("arm64", Hardware("a", ARM, (), False), True),
        ("arm64", Hardware("a", X86, (), False), False),
    ],
)
def test_which_cpus_a_target_is_made_for(target, machine, covered):
    assert covers(TARGETS[target], machine) is covered
