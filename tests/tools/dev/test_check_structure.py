"""Each measure of structure on small source trees, and the ratchet on this one."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools" / "dev"))
import check_structure
from check_structure import Reading


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text), encoding="utf-8")
    return root


def read(root: Path, name: str, files: dict[str, str]) -> Reading:
    return check_structure.measure(write_tree(root, files))[name]


def places(found: Reading) -> list[str]:
    return [f"{place.path}:{place.line}" for place in found.places]


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """Path of the record of a tree in `tmp_path`, in a folder that exists."""
    path = tmp_path / "tools" / "dev" / "structure.toml"
    path.parent.mkdir(parents=True)
    return path


def command(root: Path, *arguments: str) -> int:
    return check_structure.main(arguments, root)


# --- nodes per line -------------------------------------------------------------


def test_nodes_per_line_counts_the_body_of_a_function(tmp_path):
    text = '''
        def add(a, b):
            """Sum of two numbers."""
            # a comment-only line

            return a
    '''
    found = read(tmp_path, "nodes_per_line", {"passes/a.py": text})
    # Return, Name, Load
    assert found.value == 3.0
    assert found.places == []


def test_nodes_per_line_counts_a_nested_function_once(tmp_path):
    text = '''
        class Outer:
            def method(self):
                @cached
                def inner():
                    """First line.

                    Last line.
                    """
                    return 1
                return inner
    '''
    found = read(tmp_path, "nodes_per_line", {"runtime/a.py": text})
    # FunctionDef, arguments, Name, Load; Expr, Constant; Return, Constant; then
    # Return, Name, Load: 11 nodes in the lines of @cached, def and two returns
    assert found.value == 2.75


def test_nodes_per_line_counts_a_hash_in_a_string_as_code(tmp_path):
    text = '''
        def text():
            return """
        # no comment
        """
    '''
    found = read(tmp_path, "nodes_per_line", {"tools/a.py": text})
    assert found.value == 0.67


def test_nodes_per_line_names_the_function_with_the_most_excess(tmp_path):
    long = "def long(a):\n" + "    a = a + a + a + a + a\n" * 3
    short = "def short(a):\n    return a + a + a + a + a\n"
    files = {"passes/a.py": short, "passes/b.py": "\n" + long}
    found = read(tmp_path, "nodes_per_line", files)
    assert places(found) == ["passes/b.py:2", "passes/a.py:1"]
    assert found.places[0].text == "long: 63 nodes in 3 lines"


def test_nodes_per_line_leaves_out_code_outside_functions_and_tools_dev(tmp_path):
    dense = "def f(a):\n    return a + a + a + a + a\n"
    files = {"passes/a.py": "x = 1 + 1 + 1 + 1\n", "tools/dev/a.py": dense}
    assert read(tmp_path, "nodes_per_line", files).value == 0.0


def test_by_file_prints_the_densest_file_first(tmp_path, capsys):
    files = {
        "passes/plain.py": "def f():\n    return 1\n",
        "passes/dense.py": "def f(a):\n    return a + a\n",
    }
    assert command(write_tree(tmp_path, files), "--by-file") == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split() for row in rows] == [
        ["7.00", "7", "1", "passes/dense.py"],
        ["2.00", "2", "1", "passes/plain.py"],
    ]


# --- lines and comments ---------------------------------------------------------


def test_long_lines_are_counted_in_every_folder(tmp_path):
    fits = "#" * 100 + "\n"
    long = "#" * 101 + "\n"
    files = {
        "passes/a.py": fits + long,
        "tests/a.py": long,
        "tools/dev/a.py": long,
        "examples/a.py": fits + fits + "#" * 120,
        "docs/a.py": long,
    }
    found = read(tmp_path, "long_lines", files)
    assert found.value == 4
    expected = ["examples/a.py:3", "passes/a.py:2", "tests/a.py:1", "tools/dev/a.py:1"]
    assert places(found) == expected


def test_comment_lines_leave_out_directives_strings_and_trailing_comments(tmp_path):
    text = '''
        # why it is so
            # an indented comment
        # noqa: E501
        # type: ignore
        x = 1  # trailing
        y = """
        # in a string
        """
    '''
    found = read(tmp_path, "comment_lines_percent", {"passes/a.py": text})
    # 2 of 9 lines: the text begins with an empty line
    assert found.value == 22.22
    assert found.places == []


def test_comment_lines_name_the_file_that_misses_most(tmp_path):
    files = {
        "passes/long.py": "x = 1\n" * 60,
        "passes/short.py": "x = 1\n" * 39,
        "passes/told.py": "# why\n",
        "tools/dev/a.py": "# not of the product\n",
    }
    found = read(tmp_path, "comment_lines_percent", files)
    assert found.value == 1.0
    assert places(found) == ["passes/long.py:1", "passes/short.py:1"]


# --- docstrings and expressions -------------------------------------------------


def test_relative_clause_docstrings_are_of_modules_classes_functions_and_fields(
    tmp_path,
):
    text = '''\
        """What this module does."""
        LIMIT = 3
        """How many there may be."""
        class Node:
            """A node."""
            size: int
            """
            Of what size.
            """
            def fits(self):
                """Whether it fits."""
            def name(self):
                """Whatever it is called."""
    '''
    files = {"passes/a.py": text, "tools/dev/a.py": '"""What else."""\n'}
    found = read(tmp_path, "relative_clause_docstrings", files)
    assert found.value == 4
    expected = ["passes/a.py:1", "passes/a.py:3", "passes/a.py:7", "passes/a.py:11"]
    assert places(found) == expected
    assert found.places[2].text == "Of what size."


def test_nested_conditionals_are_found_anywhere_inside(tmp_path):
    text = """\
        a = 1 if x else 2
        b = 1 if x else 2 if y else 3
        c = f(1 if z else 2) if x else 3
        d = [1 if x else 2, 3 if y else 4]
    """
    found = read(tmp_path, "nested_conditionals", {"passes/a.py": text})
    assert found.value == 2
    assert places(found) == ["passes/a.py:2", "passes/a.py:3"]


def test_long_comprehensions_have_two_loops_or_two_conditions(tmp_path):
    text = """\
        a = [x for x in y if x]
        b = [x for y in z for x in y]
        c = {x for x in y if x if x > 1}
        d = {x: x for y in z if y for x in y if x}
        e = sum(x for x in y if x and x > 1)
        f = [[x for x in y] for y in z]
    """
    found = read(tmp_path, "long_comprehensions", {"passes/a.py": text})
    assert found.value == 3
    assert places(found) == ["passes/a.py:4", "passes/a.py:3", "passes/a.py:2"]


def test_duplicate_classes_are_counted_by_name(tmp_path):
    files = {
        "passes/a.py": "class Node: ...\nclass Other: ...\n",
        "runtime/b.py": "\nclass Node: ...\n",
        "tools/dev/c.py": "class Other: ...\n",
    }
    found = read(tmp_path, "duplicate_classes", files)
    assert found.value == 1
    assert str(found.places[0]) == "passes/a.py:1: class Node, also at runtime/b.py:2"


# --- imports --------------------------------------------------------------------


def test_import_cycles_count_imports_in_functions_and_for_type_checking(tmp_path):
    files = {
        "passes/__init__.py": "",
        "passes/a.py": "from . import b\n",
        "passes/b.py": "def f():\n    from onnx_opt.runtime.c import C\n",
        "runtime/c.py": """\
            from typing import TYPE_CHECKING
            if TYPE_CHECKING:
                import onnx_opt.passes.a
        """,
        "runtime/d.py": "from .e import E\n",
        "runtime/e.py": "from ..runtime import d\n",
    }
    found = read(tmp_path, "import_cycles", files)
    assert found.value == 2
    assert places(found) == ["passes/a.py:1", "runtime/d.py:1"]
    cycle = "passes.a -> passes.b -> runtime.c -> passes.a"
    assert found.places[0].text == f"{cycle} (3 modules import one another)"


def test_a_package_is_in_a_cycle_only_by_an_import_of_its_own_names(tmp_path):
    files = {
        "__init__.py": "from .passes import a\n",
        "passes/__init__.py": "from .a import A\nfrom .b import B\n",
        "passes/a.py": "from . import b\nfrom .. import Error\n",
        "passes/b.py": "",
        "runtime/__init__.py": "from .c import C\nNAME = 1\n",
        "runtime/c.py": "from . import NAME\n",
    }
    found = read(tmp_path, "import_cycles", files)
    assert found.value == 1
    assert found.places[0].text.startswith("runtime -> runtime.c -> runtime (2 ")


def test_one_component_is_one_cycle_and_shows_the_shortest(tmp_path):
    files = {
        "tools/a.py": "from . import b\n",
        "tools/b.py": "from . import c\n",
        "tools/c.py": "\nfrom . import a, d\n",
        "tools/d.py": "from . import c\n",
        "tools/leaf.py": "from . import a\n",
    }
    found = read(tmp_path, "import_cycles", files)
    expected = "tools.c -> tools.d -> tools.c (4 modules import one another)"
    assert [str(place) for place in found.places] == [f"tools/c.py:2: {expected}"]


def test_private_imports_cross_a_top_level_folder(tmp_path):
    files = {
        "passes/_base.py": "",
        "passes/_quant/plan.py": "",
        "passes/_core/edit.py": "",
        "passes/prune.py": "from ._base import Pass\n",
        "passes/__init__.py": "",
        "runtime/a.py": """\
            from ..passes._core.edit import replace
            from ..passes import _name_of_no_module, prune
            from ..passes import _base
            def f():
                from ..passes._quant.plan import Plan, plans
        """,
        "tools/dev/b.py": "from onnx_opt.passes._base import Pass\n",
        "tools/dev/c.py": "from onnx_opt.tools._result import Result\n",
        "tools/_result.py": "",
    }
    found = read(tmp_path, "private_imports", files)
    assert found.value == 3
    assert [str(place) for place in found.places] == [
        "runtime/a.py:3: imports passes._base",
        "runtime/a.py:5: imports passes._quant.plan",
        "tools/dev/b.py:1: imports passes._base",
    ]


# --- the ratchet ----------------------------------------------------------------

LONG = "# " + "-" * 99 + "\n"


def test_this_repository_is_no_worse_than_recorded():
    assert check_structure.main([]) == 0


def test_a_worse_value_is_named_with_file_and_line(tmp_path, record, capsys):
    write_tree(tmp_path, {"passes/a.py": "x = 1\n"})
    assert command(tmp_path, "--write") == 0
    write_tree(tmp_path, {"passes/a.py": "x = 1\n" + LONG})
    assert command(tmp_path) == 1
    lines = capsys.readouterr().err.splitlines()
    assert "  passes/a.py:2: 101 columns" in lines
    assert "error: long_lines: 1 is worse than the recorded 0" in lines
    assert lines[-1].startswith("  fix: break these lines at 100 columns;")


def test_fewer_comment_lines_are_worse(tmp_path, record, capsys):
    write_tree(tmp_path, {"passes/a.py": "# why\nx = 1\n"})
    assert command(tmp_path, "--write") == 0
    write_tree(tmp_path, {"passes/a.py": "x = 1\n"})
    assert command(tmp_path) == 1
    error = capsys.readouterr().err
    assert "passes/a.py:1: 0 comment lines of 1 lines" in error
    assert "comment_lines_percent: 0.00 is worse than the recorded 50.00" in error


def test_within_the_limit_values_may_vary(tmp_path, record):
    write_tree(tmp_path, {"passes/a.py": "# why\nx = 1\n"})
    assert command(tmp_path, "--write") == 0
    write_tree(tmp_path, {"passes/a.py": "# why\n" + "x = 1\n" * 9})
    assert command(tmp_path) == 0  # 10 %, where 2 % are asked


def test_write_records_a_better_value_and_refuses_a_worse_one(tmp_path, record, capsys):
    write_tree(tmp_path, {"passes/a.py": LONG * 2})
    assert command(tmp_path, "--write") == 0
    assert "long_lines = 2\n" in record.read_text()

    write_tree(tmp_path, {"passes/a.py": LONG})
    assert command(tmp_path) == 0
    assert "long_lines = 2\n" in record.read_text()
    assert command(tmp_path, "--write") == 0
    better = record.read_text()
    assert "long_lines = 1\n" in better

    write_tree(tmp_path, {"passes/a.py": LONG * 3})
    assert command(tmp_path, "--write") == 1
    assert record.read_text() == better
    assert "not written, long_lines got worse" in capsys.readouterr().err


def test_the_table_shows_now_recorded_and_limit(tmp_path, record, capsys):
    write_tree(tmp_path, {"passes/a.py": LONG})
    command(tmp_path, "--write")
    capsys.readouterr()
    assert command(tmp_path) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["measure", "now", "recorded", "limit"]
    assert rows[1] == ["nodes_per_line", "0.00", "0.00", "at", "most", "9"]
    assert rows[2] == ["long_lines", "1", "1", "at", "most", "0"]
    assert rows[3] == ["comment_lines_percent", "100.00", "100.00", "at", "least", "2"]
    assert rows[-1] == ["duplicate_classes", "0", "0"]


def test_list_prints_every_place(tmp_path, capsys):
    write_tree(tmp_path, {"passes/a.py": LONG * 12})
    assert command(tmp_path, "--list", "long_lines") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"passes/a.py:{row}: 101 columns" for row in range(1, 13)]


def test_a_value_that_is_not_recorded_is_an_error(tmp_path, capsys):
    write_tree(tmp_path, {"passes/a.py": "x = 1\n"})
    assert command(tmp_path) == 1
    assert "error: tools/dev/structure.toml: no recorded value of nodes_per_line" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("lines = 3\n", "no measure is called lines"),
        ('long_lines = "3"\n', "long_lines is not a number"),
        ("long_lines =\n", "Invalid value (at line 1, column 13)"),
    ],
)
def test_a_record_that_is_wrong_is_an_error(tmp_path, record, capsys, text, problem):
    record.write_text(text)
    assert command(tmp_path, "--write") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: tools/dev/structure.toml: {problem}\n  fix: ")
    assert record.read_text() == text


def test_a_file_with_a_syntax_error_is_named(tmp_path, capsys):
    write_tree(tmp_path, {"passes/a.py": "x = 1\ndef f(:\n"})
    assert command(tmp_path) == 1
    assert capsys.readouterr().err.startswith("error: passes/a.py:2: ")
