"""Measures of readability, held by a ratchet: `python tools/dev/check_structure.py`.

The product is the installed source: every file below `passes`, `runtime`, `frontends`
and `tools`, without `tools/dev`. `structure.toml` holds the recorded value of each
measure; a value worse than the recorded one fails the command, unless it is within
the limit that the measure sets itself.

    --write          record the values of now; refused where one is worse
    --list MEASURE   print every place that counts against a measure
    --by-file        print the files with the most AST nodes per line
"""

from __future__ import annotations

import argparse
import ast
import gc
import io
import re
import signal
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TypeGuard

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
RECORD = "tools/dev/structure.toml"
COMMAND = "python tools/dev/check_structure.py"

PACKAGE = "onnx_opt"
PRODUCT_FOLDERS = ("passes", "runtime", "frontends", "tools")
DEVELOPER_FOLDER = "tools/dev"
OTHER_FOLDERS = ("tests", "examples")
SHARED_MODULES = "passes._core"

NODES_PER_LINE = 9
COLUMNS = 100
COMMENT_PERCENT = 2
PLACES_SHOWN = 10
FILES_SHOWN = 20

RELATIVE_WORDS = frozenset(
    ("what", "whether", "how", "of", "who", "where", "which", "when", "why", "that")
)
DIRECTIVE = re.compile(r"#\s*(noqa\b|type:)", re.IGNORECASE)

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
ComprehensionNode = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


# --- source files ---------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """One Python file; `path` is relative to the root, with forward slashes."""

    path: str
    text: str

    @cached_property
    def lines(self) -> list[str]:
        # str.splitlines would split at form feeds too, unlike ast and tokenize
        return [line.rstrip("\n") for line in io.StringIO(self.text)]

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, filename=self.path)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    @cached_property
    def comments(self) -> dict[int, str]:
        """Comments that have a line to themselves, by line number."""
        found: dict[int, str] = {}
        # tokenizing is slow, and most files have no such comment
        if not any(line.lstrip().startswith("#") for line in self.lines):
            return found
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            row, column = token.start
            if token.type != tokenize.COMMENT:
                continue
            if not self.lines[row - 1][:column].strip():
                found[row] = token.string
        return found

    @property
    def module(self) -> str:
        """Dotted name below the root package: `passes` for `passes/__init__.py`."""
        path = PurePosixPath(self.path)
        if path.name == "__init__.py":
            return ".".join(path.parent.parts)
        return ".".join(path.with_suffix("").parts)

    @property
    def package(self) -> tuple[str, ...]:
        """Parts of the package that relative imports start from."""
        return PurePosixPath(self.path).parent.parts


@dataclass(frozen=True)
class Project:
    """The files of a repository by role."""

    product: list[Source]
    developer: list[Source]
    other: list[Source]

    @cached_property
    def imports(self) -> list[Import]:
        """Imports of the project's own modules, in product and developer files."""
        sources = self.product + self.developer
        modules = {source.module for source in sources}
        found: list[Import] = []
        for source in sources:
            found.extend(imports_of(source, modules))
        return found


def read_project(root: Path) -> Project:
    """Read the files below a root folder; they are parsed on first use."""
    product = []
    developer = []
    for source in read_folders(root, PRODUCT_FOLDERS):
        if source.path.startswith(f"{DEVELOPER_FOLDER}/"):
            developer.append(source)
        else:
            product.append(source)
    return Project(product, developer, list(read_folders(root, OTHER_FOLDERS)))


def read_folders(root: Path, folders: Sequence[str]) -> Iterator[Source]:
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            yield Source(name, path.read_text(encoding="utf-8"))


# --- imports --------------------------------------------------------------------


@dataclass(frozen=True)
class Import:
    """An import of one of the project's own modules."""

    source: Source
    line: int
    module: str


def imports_of(source: Source, modules: set[str]) -> Iterator[Import]:
    for node in source.nodes:
        if isinstance(node, ast.Import):
            targets = plain_targets(node, modules)
        elif isinstance(node, ast.ImportFrom):
            targets = from_targets(node, source, modules)
        else:
            continue
        for target in sorted(targets):
            yield Import(source, node.lineno, target)


def plain_targets(node: ast.Import, modules: set[str]) -> set[str]:
    """Modules that an `import a.b` statement names."""
    names = {below_package(alias.name) for alias in node.names}
    return {name for name in names if name in modules}


def from_targets(node: ast.ImportFrom, source: Source, modules: set[str]) -> set[str]:
    """Modules that a `from a import b` statement names: `a.b` if a module, else `a`."""
    base = import_base(node, source)
    if base is None:
        return set()
    targets = set()
    for alias in node.names:
        inner = f"{base}.{alias.name}".lstrip(".")
        if inner in modules:
            targets.add(inner)
        elif base in modules:
            targets.add(base)
    return targets


def import_base(node: ast.ImportFrom, source: Source) -> str | None:
    """Dotted name after `from`, below the root package; empty for that package."""
    if node.level == 0:
        return below_package(node.module or "")
    kept = len(source.package) - (node.level - 1)
    if kept < 0:
        return None
    parts = list(source.package[:kept])
    if node.module:
        parts.append(node.module)
    return ".".join(parts)


def below_package(name: str) -> str | None:
    """Part of an absolute name below the root package; None for a foreign name."""
    head, _, rest = name.partition(".")
    return rest if head == PACKAGE else None


# --- readings -------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A place that counts against a measure; the heaviest is the worst."""

    path: str
    line: int
    text: str
    weight: float = 0

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Reading:
    """The present value of a measure and its places, the worst first."""

    value: float
    places: list[Place]


def reading(value: float, places: list[Place]) -> Reading:
    def order(place: Place) -> tuple[float, str, int]:
        return (-place.weight, place.path, place.line)

    return Reading(value, sorted(places, key=order))


def count(places: list[Place]) -> Reading:
    """A measure whose value is its number of places."""
    return reading(len(places), places)


# --- AST nodes per line ---------------------------------------------------------


@dataclass(frozen=True)
class Density:
    """AST nodes and lines of code in function bodies."""

    nodes: int = 0
    lines: int = 0

    def __add__(self, other: Density) -> Density:
        return Density(self.nodes + other.nodes, self.lines + other.lines)

    @property
    def ratio(self) -> float:
        return round(self.nodes / self.lines, 2) if self.lines else 0.0

    @property
    def excess(self) -> float:
        """Nodes above the limit, which make long dense functions the worst."""
        return self.nodes - NODES_PER_LINE * self.lines


def nodes_per_line(project: Project) -> Reading:
    total = Density()
    places = []
    for source in project.product:
        for function in outermost_functions(source.tree):
            density = body_density(function, source)
            total += density
            if density.excess > 0:
                places.append(dense_place(function, source, density))
    return reading(total.ratio, places)


def dense_place(function: FunctionNode, source: Source, density: Density) -> Place:
    text = f"{function.name}: {density.nodes} nodes in {density.lines} lines"
    return Place(source.path, function.lineno, text, density.excess)


def outermost_functions(parent: ast.AST) -> Iterator[FunctionNode]:
    """Functions and methods that are not nested in another function."""
    for child in ast.iter_child_nodes(parent):
        if isinstance(child, FunctionNode):
            yield child
        elif not isinstance(child, ast.expr):
            yield from outermost_functions(child)


def body_density(function: FunctionNode, source: Source) -> Density:
    body = function.body
    if docstring(function) is not None:
        body = body[1:]
    if not body:
        return Density()
    nodes = 0
    skipped = set(source.comments)
    for statement in body:
        for node in ast.walk(statement):
            nodes += 1
            skipped.update(docstring_rows(node))
    rows = range(first_row(body[0]), last_row(body[-1]) + 1)
    return Density(nodes, code_lines(source, rows, skipped))


def code_lines(source: Source, rows: range, skipped: set[int]) -> int:
    found = 0
    for row in rows:
        if row not in skipped and source.lines[row - 1].strip():
            found += 1
    return found


def docstring(node: ast.AST) -> ast.Expr | None:
    """The docstring statement of a function or class."""
    if not isinstance(node, FunctionNode | ast.ClassDef):
        return None
    first = node.body[0]
    return first if is_string_statement(first) else None


def docstring_rows(node: ast.AST) -> range:
    statement = docstring(node)
    if statement is None:
        return range(0)
    return range(statement.lineno, last_row(statement) + 1)


def is_string_statement(node: ast.AST) -> TypeGuard[ast.Expr]:
    if not isinstance(node, ast.Expr):
        return False
    return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def first_row(statement: ast.stmt) -> int:
    """First line of a statement, with the decorators that `lineno` leaves out."""
    rows = [statement.lineno]
    if isinstance(statement, FunctionNode | ast.ClassDef):
        rows.extend(decorator.lineno for decorator in statement.decorator_list)
    return min(rows)


def last_row(statement: ast.stmt) -> int:
    return statement.end_lineno or statement.lineno


# --- the other measures ---------------------------------------------------------


def long_lines(project: Project) -> Reading:
    places = []
    for source in project.product + project.developer + project.other:
        for row, line in enumerate(source.lines, start=1):
            if len(line) > COLUMNS:
                text = f"{len(line)} columns"
                places.append(Place(source.path, row, text, len(line)))
    return count(places)


def comment_lines_percent(project: Project) -> Reading:
    comments = 0
    lines = 0
    places = []
    for source in project.product:
        found = explaining_comments(source)
        comments += found
        lines += len(source.lines)
        missing = len(source.lines) * COMMENT_PERCENT / 100 - found
        if missing > 0:
            text = f"{found} comment lines of {len(source.lines)} lines"
            places.append(Place(source.path, 1, text, missing))
    percent = round(100 * comments / lines, 2) if lines else 0.0
    return reading(percent, places)


def explaining_comments(source: Source) -> int:
    """Number of comment-only lines that are no directive to a tool."""
    found = 0
    for comment in source.comments.values():
        if not DIRECTIVE.match(comment):
            found += 1
    return found


def relative_clause_docstrings(project: Project) -> Reading:
    places = []
    for source in project.product:
        for node in source.nodes:
            if is_string_statement(node):
                text = string_text(node)
                if first_word(text) in RELATIVE_WORDS:
                    heading = text.splitlines()[0]
                    places.append(Place(source.path, node.lineno, heading))
    return count(places)


def string_text(node: ast.Expr) -> str:
    assert isinstance(node.value, ast.Constant)
    return str(node.value.value).strip()


def first_word(text: str) -> str:
    word = re.match(r"\w+", text)
    return word.group().lower() if word else ""


def nested_conditionals(project: Project) -> Reading:
    places = []
    for source in project.product:
        for node in source.nodes:
            if isinstance(node, ast.IfExp) and holds_conditional(node):
                text = "conditional expression with another one inside"
                places.append(Place(source.path, node.lineno, text))
    return count(places)


def holds_conditional(outer: ast.IfExp) -> bool:
    found = [node for node in ast.walk(outer) if isinstance(node, ast.IfExp)]
    return len(found) > 1


def long_comprehensions(project: Project) -> Reading:
    places = []
    for source in project.product:
        for node in source.nodes:
            if not isinstance(node, ComprehensionNode):
                continue
            loops = len(node.generators)
            conditions = sum(len(loop.ifs) for loop in node.generators)
            if loops > 1 or conditions > 1:
                text = f"comprehension with {loops} for and {conditions} if"
                place = Place(source.path, node.lineno, text, loops + conditions)
                places.append(place)
    return count(places)


def private_imports(project: Project) -> Reading:
    places = []
    for found in project.imports:
        own = found.source.package[0]
        folder, *inner = found.module.split(".")
        if folder != own and is_private(inner) and not is_shared(found.module):
            text = f"imports {found.module}"
            places.append(Place(found.source.path, found.line, text))
    return count(places)


def is_private(parts: Sequence[str]) -> bool:
    return any(part.startswith("_") for part in parts)


def is_shared(module: str) -> bool:
    return module == SHARED_MODULES or module.startswith(f"{SHARED_MODULES}.")


def duplicate_classes(project: Project) -> Reading:
    by_name: dict[str, dict[str, int]] = defaultdict(dict)
    for source in project.product:
        for node in source.nodes:
            if isinstance(node, ast.ClassDef):
                by_name[node.name].setdefault(source.path, node.lineno)
    places = []
    for name, lines in by_name.items():
        if len(lines) > 1:
            places.append(duplicate_place(name, lines))
    return count(places)


def duplicate_place(name: str, lines: dict[str, int]) -> Place:
    (path, line), *others = lines.items()
    also = ", ".join(f"{other}:{row}" for other, row in others)
    return Place(path, line, f"class {name}, also at {also}", len(lines))


# --- import cycles --------------------------------------------------------------


def import_cycles(project: Project) -> Reading:
    edges = import_edges(project)
    places = []
    for component in components(edges):
        cycle = shortest_cycle(component, edges)
        found = edges[cycle[0]][cycle[1]]
        text = f"{' -> '.join(cycle)} ({len(component)} modules import one another)"
        place = Place(found.source.path, found.line, text, len(component))
        places.append(place)
    return count(places)


Edges = dict[str, dict[str, Import]]
"""The first import of each module by each module."""


def import_edges(project: Project) -> Edges:
    edges: Edges = {source.module: {} for source in project.product}
    for found in project.imports:
        importer = found.source.module
        if importer not in edges or found.module not in edges:
            continue
        if importer != found.module:
            edges[importer].setdefault(found.module, found)
    return edges


def components(edges: Edges) -> list[list[str]]:
    """Strongly connected components of more than one module."""
    reached = {module: reachable(module, edges) for module in edges}
    found = []
    seen: set[str] = set()
    for module in edges:
        if module in seen or module not in reached[module]:
            continue
        component = [other for other in reached[module] if module in reached[other]]
        seen.update(component)
        found.append(sorted(component))
    return found


def reachable(start: str, edges: Edges) -> set[str]:
    """Modules that a module imports, directly or through others."""
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        for target in edges[waiting.pop()]:
            if target not in reached:
                reached.add(target)
                waiting.append(target)
    return reached


def shortest_cycle(component: list[str], edges: Edges) -> list[str]:
    cycles = [cycle_through(module, edges) for module in component]
    return min(cycles, key=len)


def cycle_through(start: str, edges: Edges) -> list[str]:
    """Shortest path from a module of a component back to itself, breadth first."""
    paths = [[start]]
    seen = set()
    for path in paths:
        for target in sorted(edges[path[-1]]):
            if target == start:
                return [*path, start]
            if target not in seen:
                seen.add(target)
                paths.append([*path, target])
    raise AssertionError(f"{start} is in no cycle")


# --- the ratchet ----------------------------------------------------------------


@dataclass(frozen=True)
class Measure:
    """A number that may only get better, and the advice for one that got worse."""

    read: Callable[[Project], Reading]
    fix: str
    limit: float | None = 0
    higher_is_better: bool = False

    def is_worse(self, now: float, recorded: float) -> bool:
        """True if a value fell behind the recorded one; within the limit any value may stand."""
        if self.higher_is_better:
            allowed = recorded if self.limit is None else min(recorded, self.limit)
            return now < allowed
        allowed = recorded if self.limit is None else max(recorded, self.limit)
        return now > allowed

    @property
    def asked(self) -> str:
        """The limit as the table shows it."""
        if self.limit is None:
            return ""
        return f"at {'least' if self.higher_is_better else 'most'} {self.limit}"


MEASURES = {
    "nodes_per_line": Measure(
        nodes_per_line,
        "give each step of these functions its own line and name",
        limit=NODES_PER_LINE,
    ),
    "long_lines": Measure(long_lines, f"break these lines at {COLUMNS} columns"),
    "comment_lines_percent": Measure(
        comment_lines_percent,
        "say why on a line of its own where the code cannot",
        limit=COMMENT_PERCENT,
        higher_is_better=True,
    ),
    "relative_clause_docstrings": Measure(
        relative_clause_docstrings,
        "begin these docstrings with a noun phrase or an imperative",
    ),
    "nested_conditionals": Measure(
        nested_conditionals, "write these as if statements or as a function"
    ),
    "long_comprehensions": Measure(
        long_comprehensions, "write these as loops or name a part of them"
    ),
    "import_cycles": Measure(
        import_cycles, "move the shared part to a module that imports neither"
    ),
    "private_imports": Measure(
        private_imports,
        "import from a public module, or move the shared part to one",
    ),
    "duplicate_classes": Measure(
        duplicate_classes, "give each of these classes a name of its own", limit=None
    ),
}


def measure(root: Path) -> dict[str, Reading]:
    """Read every measure of the repository at a root folder."""
    project = read_project(root)
    readings = {}
    with collection_paused():
        for name, each in MEASURES.items():
            readings[name] = each.read(project)
    return readings


@contextmanager
def collection_paused() -> Iterator[None]:
    """Pause garbage collection, which takes half the time while all trees are kept."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def read_record(path: Path) -> dict[str, float]:
    """Read the recorded values; none where there is no file."""
    if not path.exists():
        return {}
    recorded = tomllib.loads(path.read_text(encoding="utf-8"))
    for name, value in recorded.items():
        if name not in MEASURES:
            raise ValueError(f"no measure is called {name}")
        if type(value) not in (int, float):
            raise ValueError(f"{name} is not a number")
    return recorded


def write_record(path: Path, readings: dict[str, Reading]) -> None:
    lines = [f"# Recorded by `{COMMAND} --write`; no value may get worse.\n"]
    for name, found in readings.items():
        lines.append(f"{name} = {figure(found.value)}\n")
    path.write_text("".join(lines), encoding="utf-8")


def worse_measures(
    readings: dict[str, Reading], recorded: dict[str, float]
) -> list[str]:
    worse = []
    for name, value in recorded.items():
        if MEASURES[name].is_worse(readings[name].value, value):
            worse.append(name)
    return worse


# --- the command ----------------------------------------------------------------


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    options = parser().parse_args(arguments)
    try:
        if options.by_file:
            return print_files(root)
        readings = measure(root)
    except SyntaxError as error:
        where = f"{error.filename}:{error.lineno}"
        return fail(where, error.msg, "correct the syntax of this file")
    if options.list:
        return print_places(readings[options.list].places)
    try:
        recorded = read_record(root / RECORD)
    except ValueError as error:
        return fail(RECORD, str(error), "correct or remove this line")
    print_table(readings, recorded)
    return compare(readings, recorded, root, write=options.write)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="check_structure.py", description="Hold measures of readability."
    )
    modes = found.add_mutually_exclusive_group()
    modes.add_argument(
        "--write", action="store_true", help="record the values; never a worse one"
    )
    modes.add_argument(
        "--list",
        metavar="MEASURE",
        choices=MEASURES,
        help=f"print every place of one measure: {', '.join(MEASURES)}",
    )
    modes.add_argument(
        "--by-file", action="store_true", help="print the files with the densest code"
    )
    return found


def compare(
    readings: dict[str, Reading],
    recorded: dict[str, float],
    root: Path,
    *,
    write: bool,
) -> int:
    worse = worse_measures(readings, recorded)
    for name in worse:
        report(name, readings[name], recorded[name])
    if worse and write:
        fix = "make it better first; a worse value is never recorded"
        return fail(RECORD, f"not written, {', '.join(worse)} got worse", fix)
    if worse:
        return 1
    if write:
        write_record(root / RECORD, readings)
        return 0
    missing = [name for name in MEASURES if name not in recorded]
    if missing:
        problem = f"no recorded value of {', '.join(missing)}"
        return fail(RECORD, problem, f"{COMMAND} --write")
    return 0


def report(name: str, found: Reading, recorded: float) -> None:
    """Print the worst places of a measure that got worse, then the error."""
    print(f"\nworst places of {name}:", file=sys.stderr)
    for place in found.places[:PLACES_SHOWN]:
        print(f"  {place}", file=sys.stderr)
    problem = f"{figure(found.value)} is worse than the recorded {figure(recorded)}"
    fail(name, problem, f"{MEASURES[name].fix}; all places: {COMMAND} --list {name}")


def fail(where: str, problem: str, fix: str) -> int:
    print(f"error: {where}: {problem}\n  fix: {fix}", file=sys.stderr)
    return 1


def figure(value: float) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def print_table(readings: dict[str, Reading], recorded: dict[str, float]) -> None:
    print(f"{'measure':<28}{'now':>8}{'recorded':>10}  limit")
    for name, found in readings.items():
        held = figure(recorded[name]) if name in recorded else "-"
        asked = MEASURES[name].asked
        print(f"{name:<28}{figure(found.value):>8}{held:>10}  {asked}".rstrip())


def print_places(places: list[Place]) -> int:
    for place in places:
        print(place)
    return 0


def print_files(root: Path) -> int:
    totals: dict[str, Density] = {}
    for source in read_project(root).product:
        total = Density()
        for function in outermost_functions(source.tree):
            total += body_density(function, source)
        totals[source.path] = total
    ratios = Counter({path: total.ratio for path, total in totals.items()})
    print(f"{'nodes_per_line':>14}{'nodes':>8}{'lines':>8}  file")
    for path, ratio in ratios.most_common(FILES_SHOWN):
        total = totals[path]
        print(f"{figure(ratio):>14}{total.nodes:>8}{total.lines:>8}  {path}")
    return 0


if __name__ == "__main__":
    # a list piped into `head` ends early, without a traceback
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
