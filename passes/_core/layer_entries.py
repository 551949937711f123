"""Values of single layers: entries `PATTERN=VALUE` of a pass's option `layers`."""

from __future__ import annotations

from pathlib import Path

from ... import UsageError
from . import toml


def read_entries(
    option: str, texts: tuple[str, ...], kind: str, example: str
) -> list[tuple[str, str]]:
    """Pairs of pattern and value; an entry `@file.toml` stands for those of a file's [layers].

    `option`: pass and option, as `quant.layers`. `kind`, `example`: of a value, for messages.
    Errors: UsageError for an entry or a file that cannot be read.
    """
    entries: list[tuple[str, str]] = []
    for text in texts:
        if text.startswith("@"):
            path = Path(text[1:])
            entries += _read_table(option, path, example)
            continue
        # from the right: names may hold equal signs, values do not
        pattern, equals, value = text.rpartition("=")
        if not (pattern and equals):
            raise UsageError(
                option,
                f"'{text}' is not PATTERN={kind}",
                f'for example: layers=["*conv1*={example}"]',
            )
        entries.append((pattern, value))
    return entries


def _read_table(option: str, path: Path, example: str) -> list[tuple[str, str]]:
    """The table [layers] of a file, in its order."""
    where = f"{option} @{path}"
    fix = f'a table [layers] with lines like "*conv1*" = "{example}"'
    try:
        text = path.read_text(encoding="utf-8")
        content = toml.loads(text)
    # errors of decoding too: the file may be anything
    except (OSError, UnicodeDecodeError, toml.TOMLDecodeError) as error:
        problem = f"cannot be read ({error})"
        raise UsageError(
            where,
            problem,
            f"give a TOML file with {fix}",
        ) from None
    table = content.get("layers")
    values = table.values() if isinstance(table, dict) else [None]
    if table is None or not all(isinstance(value, str) for value in values):
        raise UsageError(
            where,
            "has no table [layers] of texts",
            f"write {fix}",
        )
    return list(table.items())
