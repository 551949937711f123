"""The page of an account: data as JSON, then the scripts that show it, all in one HTML file.

Nothing of an account is markup: its JSON has no `<`, and the scripts insert it as text. The page's
own policy names its scripts by their hashes and forbids every request.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..console import escaped, finite
from .advice import advice_by_reason

Kind = Literal["run", "bench", "inspect", "diff", "explain"]
"""Subjects of pages; each has a script of its name."""

ASSETS = Path(__file__).parent / "assets"

STYLES = ("page.css", "plots.css", "graph.css", "heat.css")

PLOTTED: tuple[Kind, ...] = ("run", "bench", "inspect", "diff", "explain")
"""Pages with plots."""


class Library(NamedTuple):
    """A library in a page: its name, files of its code and licence, and the pages it is on."""

    name: str
    code: str
    licence: str
    kinds: tuple[Kind, ...]


LIBRARIES = (
    Library("D3", "d3.min.js", "d3.LICENSE.txt", PLOTTED),
    Library("Observable Plot", "plot.min.js", "plot.LICENSE.txt", PLOTTED),
    Library("dagre", "dagre.min.js", "dagre.LICENSE.txt", ("inspect", "diff")),
)

SHARED = ("dom.js", "format.js", "table.js", "figure.js", "layers.js", "sections.js")
"""Scripts of every page."""

WITH_GRAPH = ("fold.js", "graph.js")
"""Scripts of pages with a graph."""


def page_of(
    account: Mapping[str, Any], kind: Kind, graph: Mapping[str, Any] | None = None
) -> str:
    """The HTML of an account; `graph`: of `inspect` and `diff`, as `_report.graph` gives it."""
    data = {
        "kind": kind,
        "account": finite(account),
        "graph": graph,
        "advice": advice_by_reason(_passes_of(account)),
        "libraries": _licences(kind),
    }
    scripts = _scripts(kind)
    title = html.escape(escaped(title_of(account, kind)))
    policy = _policy(scripts)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{title}</title>",
        f"<style>{_joined(STYLES)}</style></head>",
        "<body><noscript>This page is drawn by scripts that it brings along: allow them, or read "
        "the JSON of the run.</noscript>",
        '<main id="page"></main>',
        f'<script type="application/json" id="data">{as_data(data)}</script>',
        *(f"<script>{script}</script>" for script in scripts),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def as_data(value: Any) -> str:
    """JSON that can stand inside of a script element: no text in it ends the element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c")


def title_of(account: Mapping[str, Any], kind: Kind) -> str:
    """Title of the page: what it is of, by its file."""
    if kind == "bench":
        names = [_file_name(row["model"]) for row in account["models"]]
        return f"{', '.join(names)}: latency"
    if kind == "diff":
        first = _file_name(account["a"]["path"])
        second = _file_name(account["b"]["path"])
        return f"{first} and {second}: differences"
    if kind == "explain":
        first = _file_name(account["a"]["path"])
        second = _file_name(account["b"]["path"])
        return f"{first} and {second}: what they look at"
    about = account["model"]
    name = _file_name(about["path"])
    if not name:
        name = about["name"] or "model"
    if kind == "inspect":
        return f"{name}: its parts"
    return f"{name}: onnx-opt"


def _file_name(path: Any) -> str:
    return Path(str(path)).name if path else ""


def _passes_of(account: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    found: Sequence[Mapping[str, Any]] = account.get("passes", ())
    return found


def _scripts(kind: Kind) -> list[str]:
    libraries = [each.code for each in LIBRARIES if kind in each.kinds]
    own = [*SHARED]
    if kind in ("inspect", "diff"):
        own += WITH_GRAPH
    names = [*libraries, *own, f"{kind}.js", "main.js"]
    return [_script(name) for name in names]


def _script(name: str) -> str:
    """Code of a script, without the line that names its source map: it is not in the page."""
    lines = _asset(name).splitlines()
    return "\n".join(line for line in lines if "sourceMappingURL" not in line)


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _joined(names: Sequence[str]) -> str:
    return "\n".join(_asset(name) for name in names)


def _licences(kind: Kind) -> list[dict[str, str]]:
    return [
        {"name": each.name, "licence": _asset(each.licence)}
        for each in LIBRARIES
        if kind in each.kinds
    ]


def _policy(scripts: Sequence[str]) -> str:
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src {hashes}"


def _digest(script: str) -> str:
    found = hashlib.sha256(script.encode())
    return base64.b64encode(found.digest()).decode()
