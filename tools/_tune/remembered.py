"""Findings of a search, kept in a folder so that an interrupted one goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ... import __version__
from ...passes._core.output_errors import OutputErrors
from ...runtime.data_files import data_files
from .._run.cache import Cache
from .._run.provenance import sha256_of
from .choices import FormChoice
from .engines import TrialEngine
from .menu import FoundMenu
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


def key_of_errors(sha256: str, task: Task) -> str:
    """Key of what forms of weights lose: the metric and the labels do not matter to that."""
    facts = [
        __version__,
        sha256,
        task.target,
        _content_of(task.data, task.model.parent),
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


def _remembered_menu(cache: Cache, key: str) -> FoundMenu | None:
    """The menu that an earlier search made; None where there is none."""
    facts = cache.read(key)
    if facts is None:
        return None
    try:
        menu: dict[str, list[FormChoice]] = {}
        for name, choices in facts["menu"].items():
            menu[name] = [FormChoice(*each) for each in choices]
        return FoundMenu(
            str(facts["before"]),
            float(facts["loss"]),
            menu,
            dict(facts["sensitivity"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _remember_menu(cache: Cache, key: str, found: FoundMenu) -> None:
    """Keep a menu."""
    plain: dict[str, Any] = {}
    for name, choices in found.menu.items():
        plain[name] = [dataclasses.astuple(choice) for choice in choices]
    facts = {
        "before": found.before,
        "loss": found.loss,
        "menu": plain,
        "sensitivity": dict(found.sensitivity),
    }
    cache.write(key, facts)


@dataclasses.dataclass(frozen=True)
class KeptMenus:
    """Menus of a model, kept as they are found and not looked for again."""

    cache: Cache
    key: str

    def __call__(self, name: str, make: Callable[[], FoundMenu]) -> FoundMenu:
        text = f"{self.key}:{name}"
        key = f"menu-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        found = _remembered_menu(self.cache, key)
        if found is None:
            found = make()
            _remember_menu(self.cache, key, found)
        return found


@dataclasses.dataclass(frozen=True)
class KeptErrors:
    """Errors of forms at the outputs, kept as they are found and not looked for again.

    They are sums over data: those of shards add up (`OutputErrors.merged`).
    """

    cache: Cache
    key: str

    def __call__(self, name: str, make: Callable[[], OutputErrors]) -> OutputErrors:
        text = f"{self.key}:{name}"
        key = f"errors-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        facts = self.cache.read(key)
        # an entry of another version is none
        with contextlib.suppress(KeyError, TypeError, ValueError):
            if facts is not None:
                return OutputErrors.from_dict(facts)
        errors = make()
        self.cache.write(key, errors.as_dict())
        return errors


def cache_in(folder: Path) -> Cache:
    """The cache of a folder."""
    return Cache(folder, MOST)
