"""Freed memory of a large process goes back to the system."""

import subprocess
import sys

import pytest
from onnx_opt.passes._core import freed

HOLES = """
from onnx_opt.passes._core import freed

def resident():
    return freed._resident()

# below the size that the allocator maps apart, with every second one freed: the heap stays as long
blocks = [bytearray(100_000) for _ in range(4_000)]
for block in blocks:
    block[::4096] = bytes(len(block[::4096]))
del blocks[::2]
before = resident()
freed.give_back()
print(before - resident())
"""


@pytest.mark.skipif(freed._trim() is None, reason="the allocator is not glibc's")
def test_a_large_process_gives_back_what_it_freed():
    command = [sys.executable, "-c", HOLES]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # 200 MB were freed, in pieces that begin and end inside of pages
    assert int(told) > 150_000_000


def test_a_small_process_keeps_it(monkeypatch):
    asked = []
    monkeypatch.setattr(freed, "_trim", lambda: asked.append)
    monkeypatch.setattr(freed, "_resident", lambda: freed.LARGE)
    freed.give_back()
    assert asked == []
    monkeypatch.setattr(freed, "_resident", lambda: freed.LARGE + 1)
    freed.give_back()
    assert asked == [0]


def test_other_allocators_are_left_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(freed, "_resident", lambda: asked.append(1) or freed.LARGE + 1)
    for trim, count in ((None, 0), (lambda least: None, 1)):
        monkeypatch.setattr(freed, "_trim", lambda trim=trim: trim)
        freed.give_back()
        assert len(asked) == count


CYCLES = """
import gc
from onnx_opt.passes._core import freed

# so that the collector does not come by itself
gc.disable()
for _ in range(400):
    cycle = [bytearray(1_000_000)]
    cycle.append(cycle)
    cycle[0][::4096] = bytes(len(cycle[0][::4096]))
before = freed._resident()
freed.give_back()
print(before - freed._resident())
"""


@pytest.mark.skipif(freed._trim() is None, reason="the allocator is not glibc's")
def test_what_waits_in_cycles_is_given_back_too():
    command = [sys.executable, "-c", CYCLES]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(told) > 300_000_000
