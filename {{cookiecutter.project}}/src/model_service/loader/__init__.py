"""From a provider's bytes to rows; here, what a source hands over: payloads, and what was read from them."""

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import numpy as np

from model_service.contract import Series
from model_service.errors import ServiceError
from model_service.periods import microseconds
from model_service.store.observations import CELLS, Cells
from model_service.store.provider import Pace

VALUE, MISSING, DELETED = 0, 1, 2  # states of an observation
_BATCH = 65_536  # cells; a few MB at a time
_PAGE = 64  # periods in a page of `Seen`


class SourceError(ServiceError):
    """A payload cannot be had, or cannot be read as declared; nothing of it is loaded."""


@dataclass(frozen=True, slots=True)
class Window:
    """Which part of a source is asked for, by the days that its values became known on; both ends included."""

    first: date | None = None
    last: date | None = None

    def holds(self, known_from: datetime) -> bool:
        day = known_from.date()
        return (self.first or day) <= day <= (self.last or day)


ALWAYS = Window()


@dataclass(frozen=True, slots=True)
class Ask:
    """What a source is asked for, and what it may lean on.

    root: folder of service.toml. series: those that are mapped. newest: the last moment (UTC) up to which a series is
    held, None where nothing is; what was fetched counts once it is committed. positions: up to where each part of the
    source was read, as the payloads' `moves` say, likewise. pace: the providers' budgets. mark: how the payload of that
    name looked when it was last read by today's rules, "" when it never was; one that still looks so needs no bytes.
    until: a stream is followed until this is set; None: it ends where it ends now.
    """

    root: Path
    window: Window = ALWAYS
    series: Mapping[str, Series] = field(default_factory=dict)
    newest: Callable[[str], datetime | None] = lambda series: None
    positions: Callable[[], Mapping[str, str]] = dict
    pace: Pace = Pace()
    mark: Callable[[str], str] = lambda name: ""
    until: Event | None = None


@dataclass(frozen=True, slots=True)
class Payload:
    """Bytes as they came: `name` says where from ("/" between its parts), `path` where they lie now.

    `vintage` (UTC) is since when the world knew all of it; None: its cells say so, or the time of loading does.
    `series`: those that it speaks of, () for all that are mapped. `complete`: it holds all there is of them, so what it
    lacks has vanished.
    `until` (UTC): up to then nothing else became known of them; None: as long as its cells say.
    `mark`: how it looks from outside (size and time, ETag); what looks as it did last time is not read again.
    `moves`: part of the source to where it stood (None: nowhere yet) and where it stands once this is committed; a load
    is refused when another copy moved it meanwhile.
    """

    name: str
    path: Path
    media_type: str
    vintage: datetime | None
    series: tuple[str, ...] = ()
    complete: bool = False
    until: datetime | None = None
    mark: str = ""
    moves: Mapping[str, tuple[str | None, str]] = field(default_factory=dict)


class Cell(NamedTuple):
    """One good cell. `valid_time` is the first instant of the period, `known_from` None the time of loading; UTC.

    `value` is NaN where `state` is MISSING or DELETED (the provider says so: it is a cell, not a gap). `raw`: what the
    provider wrote of it, for whom is told why it was refused; without, the number is shown.
    """

    series: str
    valid_time: datetime
    known_from: datetime | None
    value: float
    line: int
    state: int = VALUE
    raw: Any = None


@dataclass(frozen=True, slots=True)
class Reject:
    """One cell, or one line that cannot be split, for quarantine; `valid_time` where the period could be read."""

    series: str | None
    line: int
    raw: str
    rule: str
    detail: str
    valid_time: datetime | None = None


def batches(
    records: Iterable[Cell | Reject], ids: Mapping[str, int], observed_at: datetime
) -> Iterator[tuple[Cells, list[Any], list[Reject]]]:
    """The records by column and what each cell was, in their order; `observed_at` dates those that no vintage does."""
    default = microseconds(observed_at)
    rows: list[tuple[int, int, int, int, float, int]] = []
    raws: list[Any] = []
    rejects: list[Reject] = []
    for record in records:
        if isinstance(record, Cell):
            series, valid_time, known_from, value, line, state, raw = record
            known = default if known_from is None else microseconds(known_from)
            rows.append((line, ids[series], microseconds(valid_time), known, value, state))
            raws.append(raw)
        else:
            rejects.append(record)
        if len(rows) >= _BATCH or len(rejects) >= _BATCH:
            yield np.array(rows, CELLS), raws, rejects
            rows, raws, rejects = [], [], []
    if rows or rejects:
        yield np.array(rows, CELLS), raws, rejects


def parse_value(raw: Any, *missing: str | None) -> tuple[float, int, str, str]:
    """(value, VALUE, "", ""), (NaN, MISSING, "", "") of one of `missing`, or (NaN, VALUE, rule, detail) of a Reject."""
    if raw in missing:
        return math.nan, MISSING, "", ""
    # float() takes 1_000, the digits of other scripts, and True
    plain = raw.isascii() and "_" not in raw if isinstance(raw, str) else type(raw) in (int, float, Decimal)
    try:
        if plain and math.isfinite(value := float(raw)):
            return value, VALUE, "", ""
    except OverflowError:
        pass
    except ValueError:
        plain = False
    rule = ("finite", "neither NaN nor infinity is a value") if plain else ("number", "not a number")
    return math.nan, VALUE, *rule


class Seen:
    """Lines that gave a cell, 4 bytes each in pages: a set of keys would not fit in memory for millions of cells."""

    def __init__(self) -> None:
        self._pages: dict[tuple[str, datetime | None, int], array[int]] = {}

    def line(self, series: str, known_from: datetime | None, period: int, line: int) -> int:
        """Earlier line with this key; 0 when there was none, and then `line` is noted."""
        number, place = divmod(period, _PAGE)
        key = (series, known_from, number)
        page = self._pages.get(key)
        if page is None:
            page = self._pages[key] = array("I", [0]) * _PAGE
        earlier = page[place]
        page[place] = earlier or line
        return earlier
