"""Queries of a warehouse: rows of series, period, value and, where the warehouse keeps it, since when that was known.

`fetch` runs one query in one read-only transaction and writes its rows down as they come; `parse` reads these lines.
With a cursor, a load asks for what the column says was changed since the last one, and for an overlap before that,
because what is stamped earlier may be committed later.
"""

import json
import math
import os
import re
import tempfile
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Annotated, Any, cast
from urllib.parse import quote

import sqlalchemy as sa
from pydantic import Field, model_validator
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.pool import NullPool

from model_service import digests, periods
from model_service.contract import Series
from model_service.errors import ServiceError, UsageError
from model_service.loader import ALWAYS, Ask, Cell, Payload, Reject, Seen, SourceError, parse_value
from model_service.loader.sources import _sql as rows
from model_service.mistakes import Section, did_you_mean
from model_service.store.connection import KEEPALIVES

PARSER_VERSION = 1

DAY = "%Y-%m-%d"
PORTION = 5_000  # rows that are asked for at a time
SHOWN = 1_000  # characters of a bad row
EAST = timezone(timedelta(hours=14))  # where each day begins first
FEW = 16  # periods in a page of `SeenAt`: with the microseconds of any year they fit in 64 bits
# The types that a column may have, by its key, and what to do about another one.
FITS = {
    "series_column": ({"text", "integer"}, "cast it in the query"),
    "time_column": ({"date", rows.LOCAL, "text"}, "in the query, CAST(... AT TIME ZONE 'UTC' AS date)"),
    "value_column": ({"integer", "float", "decimal", "text"}, "cast it in the query"),
    "known_from_column": ({"date", rows.ZONED, "text"}, "name its zone in the query, ... AT TIME ZONE 'UTC'"),
}


class Cursor(Section):
    """Column that says when a row was changed: a moment, a day, or a number that only grows.

    `overlap`: seconds, or numbers, that are asked for again. `start`: where the first load begins, of the same type.
    """

    column: str
    overlap: Annotated[float, Field(ge=0, le=1e9)]
    start: datetime | date | int

    def place(self, stood: str | None) -> Any:
        """Where it stood, as a value of the column's type; at first the start."""
        if stood is None:
            return self.start
        return int(stood) if isinstance(self.start, int) else type(self.start).fromisoformat(stood)

    def since(self, stood: str | None) -> Any:
        """From where on to ask: the overlap before where it stood, and not before the start."""
        back: Any = -math.ceil(self.overlap) if isinstance(self.start, int) else timedelta(seconds=-self.overlap)
        place = self.place(stood)
        return place + max(back, self.start - place)  # of days, a part of one takes back a whole one

    def follows(self, place: Any) -> bool:
        """Whether it goes on to a row's place: not to NULL, nor into the future, where a wrong clock hid the rest."""
        if not isinstance(place, date):
            return place is not None
        when = place if isinstance(place, datetime) else datetime.combine(place, time.min)
        return (when if when.tzinfo else when.replace(tzinfo=EAST)) <= datetime.now(UTC)


class Options(Section):
    """Keys of a `[source.*]` table with kind = "sql"; docs/sql.md explains each."""

    url_variable: str
    query: str
    series_column: str = "series"
    time_column: str = "time"
    value_column: str = "value"
    known_from_column: str | None = None
    keys: dict[str, str] = Field(default_factory=dict)
    cursor: Cursor | None = None
    complete: bool = False
    timeout_seconds: Annotated[float, Field(gt=0, le=1e6)] = 600.0
    before: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> "Options":
        if not re.fullmatch("[A-Z][A-Z0-9_]*", self.url_variable):
            raise ValueError("url_variable: names an environment variable, such as WAREHOUSE_URL, that holds the URL")
        asked = set(sa.text(self.query).compile().params)
        if unknown := sorted(asked - {"cursor"}):
            raise ValueError(
                f"query: there is no parameter :{unknown[0]}, only :cursor; a plain colon is written \\\\:"
            )
        if bool(asked) != bool(self.cursor):
            raise ValueError("query and cursor go together: WHERE changed_at >= :cursor, and cursor = { column = ... }")
        if self.complete and (self.cursor or self.known_from_column):
            raise ValueError("complete: only a query of all there is, as it is now, shows what has vanished")
        return self


def fetch(options: Options, ask: Ask) -> Iterator[Payload]:
    """One payload: the rows of the query; none when there is nothing after the cursor. Memory: a portion of the rows.

    Raises SourceError: no login, query refused, columns that do not fit, no row at all; UsageError: a window, no URL.
    """
    if ask.window != ALWAYS:
        raise UsageError("--from and --to choose what became known when: here the query says that, leave them out")
    if unknown := options.keys.keys() - ask.series.keys():
        raise UsageError(f"keys: {', '.join(sorted(unknown))} is no series of this source")
    if len({options.keys.get(name, name) for name in ask.series}) < len(ask.series):
        raise UsageError("keys: one key stands for two series")
    dataset, cursor = next((one.source for one in ask.series.values()), "sql"), options.cursor
    # Another query, or a cursor of another type, begins anew.
    query = [options.query, rows.type_of(cursor.start)] if cursor else []
    part = f"{cursor.column} of query {digests.of_json(query)[-12:]}" if cursor else ""
    stood = ask.positions().get(part)
    since = cursor.since(stood) if cursor else None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        count, greatest = _keep(dataset, options, since, path)
        if count:
            moves = {part: (stood, str(max(cursor.place(stood), greatest)))} if cursor else {}  # never back
            name = f"query/{since}" if cursor else "query"
            yield Payload(name, path, "application/jsonl", None, complete=options.complete, moves=moves)
        elif stood is None:
            raise SourceError(f"{dataset}: the query gives no row")


def _keep(dataset: str, options: Options, since: Any, path: Path) -> tuple[int, Any]:
    """Writes the rows into the file; gives their count and the greatest cursor."""
    count, cursor, checked = 0, options.cursor, cast(rows.Types, {})
    greatest: Any = cursor.start if cursor else None
    with _answer(dataset, options, since) as result, path.open("w", encoding="utf-8", newline="\n") as file:
        names = list(result.keys())
        for types, row in rows.written(names, result, file):
            if types is not checked:
                _check(dataset, names, types, options)
                checked = types
            count += 1
            if cursor and cursor.follows(place := row[names.index(cursor.column)]):
                greatest = max(place, greatest)
    return count, greatest


def _check(dataset: str, names: list[str], types: rows.Types, options: Options) -> None:
    """Raises SourceError for a column that is not there, or there twice, or of a type that it cannot have."""
    wanted = [(key, getattr(options, key), *FITS[key]) for key in FITS if getattr(options, key)]
    if cursor := options.cursor:
        wanted.append(("cursor", cursor.column, {str(rows.type_of(cursor.start))}, "give its start in the same type"))
    if len(types) < len(names):
        raise SourceError(f"{dataset}: the query gives a column twice: {', '.join(names)}")
    for key, column, fits, advice in wanted:
        if column not in types:
            there = f"{did_you_mean(column, names)} (there are {', '.join(names)})"
            raise SourceError(f"{dataset}: the query gives no column {column!r}, the {key}{there}")
        if (found := types[column]) and found not in fits:
            raise SourceError(f"{dataset}: {key} {column!r} is {found}, not {' or '.join(sorted(fits))}: {advice}")


@contextmanager
def _answer(dataset: str, options: Options, since: Any) -> Iterator[sa.CursorResult[Any]]:
    """The query's rows, as they come, in one transaction that only reads.

    Raises SourceError with what the database says, whatever kind of error it is: a driver may repeat the URL in any.
    """
    if not (given := os.environ.get(options.url_variable)):
        raise UsageError(f"{options.url_variable} is not set: it holds the URL of the warehouse, see docs/sql.md")
    engine, failed = _engine(options.url_variable, given), f"{options.url_variable} lets nobody in"
    try:
        with engine.connect() as connection:
            failed = "the query fails"
            if connection.dialect.name == "postgresql":
                connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
                settled = "SELECT set_config('statement_timeout', :ms, true), set_config('TimeZone', 'UTC', true)"
                connection.execute(sa.text(settled), {"ms": f"{options.timeout_seconds * 1000:.0f}"})
            for statement in options.before:
                connection.exec_driver_sql(statement)
            connection.execution_options(stream_results=True)
            asked = {} if since is None else {"cursor": since}
            yield connection.execute(sa.text(options.query), asked).yield_per(PORTION)
    except ServiceError:
        raise
    except Exception as error:
        raise SourceError(f"{dataset}: {failed}: {_says(error, given, engine.url)}") from None


def _engine(variable: str, given: str) -> sa.Engine:
    """Raises UsageError, which shows nothing of `given` but its beginning: it holds a password."""
    own: dict[str, Any] = {}
    try:
        url = sa.make_url(given)
        if url.drivername in {"postgres", "postgresql", "postgresql+psycopg"}:
            url = url.set(drivername="postgresql+psycopg")
            # Without a password in the URL, libpq would send the one of our own database, PGPASSWORD.
            own = {"connect_timeout": 10, **KEEPALIVES, **({} if url.password else {"password": ""})}
        settled = {key: value for key, value in own.items() if key not in url.query}
        return sa.create_engine(url, poolclass=NullPool, connect_args=settled)
    except (NoSuchModuleError, ModuleNotFoundError):
        hint = f"nothing here reads {url.drivername}: name its dialect in requirements/sql.in, and `make lock setup`"
    except (ArgumentError, ValueError):
        hint = "it is no URL, such as postgresql://USER:PASSWORD@HOST:5432/DATABASE"
    raise UsageError(f"{variable}: {hint}")


def _says(error: Exception, given: str, url: sa.URL) -> str:
    """What the database or its driver says, in one line, without the login in any of its forms."""
    lines = str(getattr(error, "orig", None) or error).splitlines()
    says = " ".join(" ".join(line for line in lines if not re.match(r"LINE \d+: |\s*\^", line)).split())
    values = [one for value in url.query.values() for one in ([value] if isinstance(value, str) else value)]
    hidden = {given, url.render_as_string(False), *(one for one in values if len(one) > 5)}  # short ones are no secret
    if plain := str(url.password or ""):
        hidden |= {plain, quote(plain, safe=""), repr(plain)[1:-1], *re.findall("://[^:@/]*:([^@]*)@", given)}
    for secret in sorted(hidden, key=len, reverse=True):
        says = says.replace(secret, "***")
    return says[:300] or type(error).__name__


def parse(payload: Payload, options: Options, series: Mapping[str, Series]) -> Iterator[Cell | Reject]:
    """Cells in the order of the rows; `line` is that of the kept file. NULL is a value that is missing, known as such.

    Memory: 4 to 30 bytes a cell. Raises SourceError for bytes that are no rows, or have no such column.
    """
    names, seen = {options.keys.get(one, one): one for one in series}, SeenAt() if options.known_from_column else Seen()
    try:
        for line, row in rows.read(payload.path):
            key = row[options.series_column]
            if name := None if key is None else names.get(str(key)):
                yield _cell(name, line, row, options, series[name].frequency, seen)
            else:
                says = f"{str(key)!r} is no key of a series{did_you_mean(str(key), [*names])}"
                yield Reject(None, line, _raw(row), "series", "the key is NULL" if key is None else says)
    except KeyError as error:
        raise SourceError(f"{payload.name}: there is no column {error} in what was kept") from None
    except ValueError as error:
        raise SourceError(f"{payload.name}: {error}") from None


class SeenAt:
    """As `Seen`, where each row may have a vintage of its own: 12 bytes a cell, in pages of a series' periods."""

    def __init__(self) -> None:
        self._pages: dict[tuple[str, int], tuple[array[int], array[int]]] = {}

    def line(self, series: str, known_from: datetime | None, period: int, line: int) -> int:
        """Earlier line with this key; 0 when there was none, and then `line` is noted."""
        number, place = divmod(period, FEW)
        key = place + FEW * (periods.microseconds(known_from) if known_from else 0)
        keys, lines = self._pages.setdefault((series, number), (array("q"), array("I")))
        at = bisect_left(keys, key)
        if at < len(keys) and keys[at] == key:
            return lines[at]
        keys.insert(at, key)
        lines.insert(at, line)
        return 0


def _cell(
    name: str, line: int, row: Mapping[str, Any], options: Options, frequency: str, seen: Seen | SeenAt
) -> Cell | Reject:
    try:
        when, known = _moment(row, options.time_column), None
        if when.tzinfo:
            raise ValueError(f"{options.time_column} has a time zone, and a period is a date")
        period, valid_time = periods.period(f"{when.date()}", DAY, frequency)
        if options.known_from_column and not (known := _moment(row, options.known_from_column, UTC)).tzinfo:
            raise ValueError(f"{options.known_from_column} has no time zone")
    except (ValueError, OverflowError) as error:
        return Reject(name, line, _raw(row), "date", str(error))
    value, state, rule, detail = parse_value(row[options.value_column], None)
    if not rule and (first := seen.line(name, known, period, line)):
        rule, detail = "duplicate", f"line {first} already gave {name} for the period of {valid_time:%Y-%m-%d}"
    if rule:
        return Reject(name, line, _raw(row), rule, detail, valid_time)
    return Cell(name, valid_time, known, value, line, state, row[options.value_column])


def _moment(row: Mapping[str, Any], column: str, zone: tzinfo | None = None) -> datetime:
    """With its zone, if it has one; a day is its 00:00 in `zone`. Raises ValueError."""
    if not isinstance(text := row[column], str):
        raise ValueError(f"{column} is NULL")
    found = datetime.fromisoformat(text)
    return found.replace(tzinfo=zone) if len(text) == 10 else found.astimezone(zone) if found.tzinfo else found


def _raw(row: Mapping[str, Any]) -> str:
    return json.dumps([*row.values()], ensure_ascii=False)[:SHOWN]
