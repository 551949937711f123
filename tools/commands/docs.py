"""`onnx-opt docs [TOPIC]`: the documentation, which is installed with the package."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ..console import emit_json, shared_options, show

FOLDER = Path(__file__).resolve().parents[2] / "docs"
"""Folder of the pages: `docs/` of the repository, and of the installed package."""


@click.command("docs")
@click.argument("topic", required=False)
@shared_options
def command(topic: str | None, as_json: bool, verbosity: int) -> None:
    """Print a page of the documentation, or list the topics."""
    if topic is None:
        _list_topics(as_json)
        return
    text = page_of(topic)
    if as_json:
        emit_json({"topic": topic, "title": title_of(text), "text": text})
        return
    if not sys.stdout.isatty():
        # Markdown as it stands: a pipe, a pager or an editor may want it
        click.echo(text, nl=False)
        return
    from rich.markdown import Markdown

    show(Markdown(text, hyperlinks=False))


def _list_topics(as_json: bool) -> None:
    titles = {topic: title_of(page_of(topic)) for topic in topics()}
    if as_json:
        listed = [{"topic": topic, "title": title} for topic, title in titles.items()]
        emit_json({"topics": listed})
        return
    width = max(map(len, titles))
    for topic, title in titles.items():
        click.echo(f"{topic:<{width}}  {title}")


def topics() -> list[str]:
    """Names of the pages, by the alphabet."""
    return sorted(path.stem for path in FOLDER.glob("*.md"))


def page_of(topic: str) -> str:
    """Markdown of a page. Errors: UsageError for a topic that is not known."""
    known = topics()
    if topic not in known:
        raise _unknown(topic, known)
    return (FOLDER / f"{topic}.md").read_text(encoding="utf-8")


def _unknown(topic: str, known: list[str]) -> Exception:
    from ... import UsageError
    from ...passes._core.nearest import did_you_mean
    from ...passes._core.registry import pass_names

    otherwise = f"the topics are {', '.join(known)}"
    if topic in pass_names():
        otherwise = f"onnx-opt passes {topic}"
    parts = [name for name in known if topic in name]
    fix = did_you_mean(parts[0] if parts else topic, known, otherwise)
    return UsageError("docs", f"there is no page '{topic}'", fix)


def title_of(text: str) -> str:
    """Heading of a page, without the marks of Markdown."""
    return text.partition("\n")[0].removeprefix("# ").replace("`", "")
