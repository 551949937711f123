"""Hooks and fixtures of the whole suite."""

import inspect
import itertools
import tempfile
from pathlib import Path

import click.testing
import pytest
from releases import as_release, reason_to_skip, too_old


@pytest.fixture(scope="session")
def _caches():
    with tempfile.TemporaryDirectory() as folder:
        yield (Path(folder, str(number)) for number in itertools.count())


@pytest.fixture(autouse=True)
def _own_cache(_caches, monkeypatch):
    """No test reads or writes the cache of who runs the suite, nor of another test."""
    monkeypatch.setenv("ONNX_OPT_CACHE", str(next(_caches)))


class _Runner(click.testing.CliRunner):
    """The runner of click 8.1 as later ones are: stdout and stderr apart."""

    def __init__(self, **options):
        super().__init__(mix_stderr=False, **options)


if "mix_stderr" in inspect.signature(click.testing.CliRunner).parameters:
    click.testing.CliRunner = _Runner


def pytest_runtest_setup(item):
    """Skip a test that says to need a newer release than is here."""
    for mark in item.iter_markers("needs"):
        package, release, because = mark.args
        old = too_old(package, as_release(release))
        if old is not None:
            pytest.skip(f"{old}: {because}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Skip a test that failed in the words of an older release."""
    if call.excinfo is not None and call.excinfo.typename != "Skipped":
        words = f"{call.excinfo.typename}: {call.excinfo.value}"
        reason = reason_to_skip(words)
        if reason is not None:
            try:
                pytest.skip(reason)
            except pytest.skip.Exception:
                call.excinfo = pytest.ExceptionInfo.from_current()
    return (yield)


def pytest_terminal_summary(terminalreporter):
    """Say on which CPU the suite ran: integer kernels differ from one class of CPUs to another."""
    from onnx_opt.runtime import hardware as of

    measured = of.products_saturate(of.products_model())
    machine = of.described(
        of.machine_architecture(), of.cpu_name(), of.instruction_sets(), measured
    )
    terminalreporter.write_line(f"CPU: {machine.label}")
