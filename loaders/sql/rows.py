"""Typed rows as lines of JSON, written and read: exact, compact, and to be read by a person.

An object of column and type stands before the first row and wherever a type changes, an array for each row. Text,
booleans, integers and floats are JSON's own (and NaN, Infinity); decimals, days and moments, with their offset where
they have one, are texts; NULL is null. The same rows give the same bytes.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, TextIO

ZONED, LOCAL = "timestamp with time zone", "timestamp"
NAMES = {str: "text", bool: "boolean", int: "integer", float: "float", Decimal: "decimal", date: "date"}
KNOWN = {None, ZONED, LOCAL, *NAMES.values()}

_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str).encode

Types = dict[str, str | None]  # column to type, None for as long as it was NULL


def type_of(value: Any) -> str | None:
    """None for NULL. Raises TypeError for what is neither text nor number nor time."""
    if type(value) is datetime:
        return ZONED if value.tzinfo else LOCAL
    if value is not None and type(value) not in NAMES:
        raise TypeError(f"a {type(value).__name__} cannot be kept: leave its column out, or cast it to text or number")
    return NAMES.get(type(value))


def written(names: Sequence[str], rows: Iterable[Sequence[Any]], file: TextIO) -> Iterator[tuple[Types, Sequence[Any]]]:
    """Writes each row and yields it, with the types of the columns so far. Raises TypeError as `type_of` does."""
    types: Types = dict.fromkeys(names)
    fitting: set[tuple[str | None, ...]] = set()  # what rows are of, that need no new line of types
    for row in rows:
        found = tuple(map(type_of, row))
        if found not in fitting:
            now = {name: new or types[name] for name, new in zip(names, found, strict=True)}
            if now != types or not fitting:
                types, fitting = now, set()
                file.write(_json(types) + "\n")
            fitting.add(found)
        file.write(_json(list(row)) + "\n")
        yield types, row


def read(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, row by column, its cells as JSON has them). Raises ValueError for a line that was not written so."""
    types: Types = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                found = json.loads(line)
                if isinstance(found, dict) and set(found.values()) <= KNOWN:
                    types = found
                    continue
            except (ValueError, TypeError, RecursionError):
                found = None
            if not isinstance(found, list) or not types or len(found) != len(types):
                raise ValueError(f"line {number} is no row that was kept")
            yield number, dict(zip(types, found, strict=True))
