"""Findings of a search, kept in a folder so that an interrupted one goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ... import __version__
from ...runtime.data_files import data_files
from .._run.cache import Cache
from .._run.provenance import sha256_of
from .choices import FormChoice, Menu
from .engines import TrialEngine
from .trial import RecipeTrial, Task

MOST = 100_000
"""Entries of a folder that are kept."""


def key_of(sha256: str, task: Task) -> str:
    """Key of a search: another one with the same key may take its findings."""
    facts = [
        __version__,
        sha256,
        task.target,
        _content_of(task.data, task.model.parent),
        _content_of(task.labelled, task.model.parent),
        str(task.metric),
        task.metric_output,
        task.seed,
    ]
    text = json.dumps(facts)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _content_of(data: Any, folder: Path) -> list[str]:
    """Names and digests of the files of data; of data that only code tells its words."""
    files = data_files(data, folder)
    if files is None:
        return [str(data)]
    return [f"{file.name} {sha256_of(file.path)}" for file in files]


@dataclasses.dataclass
class RememberingEngine:
    """An engine whose trials are kept, one by one as they end, and not run again."""

    engine: TrialEngine
    cache: Cache
    key: str

    def run(self, task: Task, recipes: Sequence[str]) -> Iterator[RecipeTrial]:
        known: dict[str, RecipeTrial] = {}
        for recipe in recipes:
            facts = self.cache.read(self._key(recipe))
            if facts is not None:
                # of another version's fields
                with contextlib.suppress(TypeError):
                    known[recipe] = RecipeTrial(**facts)
        new = [recipe for recipe in recipes if recipe not in known]
        fresh = iter(self.engine.run(task, new))
        for recipe in recipes:
            if recipe in known:
                yield known[recipe]
                continue
            trial = next(fresh)
            # kept at once: a search may be interrupted
            self.cache.write(self._key(recipe), dataclasses.asdict(trial))
            yield trial

    def close(self) -> None:
        self.engine.close()

    def _key(self, recipe: str) -> str:
        text = f"{self.key}:{recipe}"
        return hashlib.sha256(text.encode()).hexdigest()


def remembered_menu(cache: Cache, key: str) -> Menu | None:
    """The menu that an earlier search made; None where there is none."""
    facts = cache.read(f"menu-{key}")
    if facts is None:
        return None
    try:
        menu: dict[str, list[FormChoice]] = {}
        for name, choices in facts["menu"].items():
            menu[name] = [FormChoice(*each) for each in choices]
        return menu
    except (KeyError, TypeError, AttributeError):
        return None


def remember_menu(cache: Cache, key: str, menu: Menu) -> None:
    """Keep a menu."""
    plain: dict[str, Any] = {}
    for name, choices in menu.items():
        plain[name] = [dataclasses.astuple(choice) for choice in choices]
    cache.write(f"menu-{key}", {"menu": plain})


def cache_in(folder: Path) -> Cache:
    """The cache of a folder."""
    return Cache(folder, MOST)
