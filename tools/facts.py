"""Facts that a function returns: a mapping with the keys of the command's `--json`."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from .console import WIDTH, finite

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ._report.notebook import NotebookPage

Tables = Callable[[], Sequence["RenderableType"]]


class Facts(Mapping[str, Any]):
    """The `--json` of a command, by key or attribute; prints as the command's tables."""

    def __init__(self, values: Mapping[str, Any], tables: Tables) -> None:
        self._values = dict(values)
        self._tables = tables

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getattr__(self, name: str) -> Any:
        # pickle asks before there are any values
        values = self.__dict__.get("_values", {})
        if name in values:
            return values[name]
        raise AttributeError(f"there is no '{name}'; there are {', '.join(values)}")

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of `--json`: plain numbers, None for what is unknown or not finite."""
        plain: dict[str, Any] = finite(self._values)
        return plain

    def report(self) -> NotebookPage:
        """The page of `bench`, `inspect`, `diff` or `explain`, which a notebook's cell shows.

        Errors: RefusedError for facts without a page.
        """
        from ._report.notebook import NotebookPage
        from ._report.stored import kind_of

        account = self.to_dict()
        return NotebookPage(account, kind_of(account, "facts"))

    def __repr__(self) -> str:
        return f"Facts({', '.join(self._values)})"

    def __str__(self) -> str:
        return as_text(self._tables())

    def _repr_html_(self) -> str:
        return as_html(self._tables())


class FactsList(Sequence[Facts]):
    """Facts in order: by place, as a slice, in a loop; prints as the command's table.

    `name`: of the list in the command's `--json`.
    """

    def __init__(self, name: str, items: Sequence[Facts], tables: Tables) -> None:
        self._name = name
        self._items = tuple(items)
        self._tables = tables

    @overload
    def __getitem__(self, place: int) -> Facts: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Facts]: ...

    def __getitem__(self, place: int | slice) -> Facts | Sequence[Facts]:
        return self._items[place]

    def __len__(self) -> int:
        return len(self._items)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of `--json`."""
        return {self._name: [item.to_dict() for item in self._items]}

    def __repr__(self) -> str:
        return f"FactsList({len(self)} {self._name})"

    def __str__(self) -> str:
        return as_text(self._tables())

    def _repr_html_(self) -> str:
        return as_html(self._tables())


def as_text(parts: Sequence[RenderableType]) -> str:
    """Tables and lines as plain text."""
    from rich.console import Console

    console = Console(
        file=io.StringIO(),
        width=WIDTH,
        highlight=False,
        no_color=True,
        emoji=False,
    )
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    return capture.get()


def as_html(parts: Sequence[RenderableType]) -> str:
    """The same for notebooks, whose font has columns of one width only where asked."""
    from html import escape

    return f"<pre>{escape(as_text(parts))}</pre>"
