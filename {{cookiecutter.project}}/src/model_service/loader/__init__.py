"""From a provider's bytes to rows; here, what a source hands over: payloads, and what was read from them."""

from array import array
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from model_service.errors import ServiceError

_PAGE = 64  # periods in a page of `Seen`


class SourceError(ServiceError):
    """A payload cannot be had, or cannot be read as declared; nothing of it is loaded."""


@dataclass(frozen=True, slots=True)
class Payload:
    """Bytes as they came: `name` says where from ("/" between its parts), `path` where they lie now.

    `vintage` (UTC) is since when the world knew all of it; None: its cells say so, or the time of loading does.
    """

    name: str
    path: Path
    media_type: str
    vintage: datetime | None


class Cell(NamedTuple):
    """One good value. `valid_time` is the first instant of the period, `known_from` None the time of loading; UTC."""

    series: str
    valid_time: datetime
    known_from: datetime | None
    value: float
    line: int


@dataclass(frozen=True, slots=True)
class Reject:
    """One cell, or one line that cannot be split, for quarantine; `raw` holds no NUL, which PostgreSQL refuses."""

    series: str | None
    line: int
    raw: str
    rule: str
    detail: str


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
