"""FRED, and ALFRED for its vintages, API v1: every value with since when the world knew it.

Of a series, `fetch` asks for the vintage dates that are not held yet, and then for the values of these dates. FRED
gives a value with its real-time period, closed at both ends and cut to the one that was asked for. So the first request
of a series begins at the beginning of FRED's time, where nothing is cut. Each later one begins in what is held: what
begins with it is not news but cut, and `parse` leaves it out. No vintage is invented, and none is lost.
"""

import html
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any

from httpx import Response
from pydantic import Field

from model_service import periods
from model_service.contract import Series
from model_service.errors import UsageError
from model_service.loader import DELETED, Ask, Cell, Payload, Reject, Seen, SourceError, parse_value
from model_service.loader.web import Client, Url, Web, shown

PARSER_VERSION = 1

KEY = "FRED_API_KEY"
DAY = "%Y-%m-%d"
BEGINNING, END = "1776-07-04", "9999-12-31"  # of FRED's real time
VINTAGES = 1_998  # new ones of one request; it holds two more at most, and 2,000 are allowed
DATES, ROWS = 10_000, 100_000  # of one page
SHOWN = 1_000  # characters of a bad row

Row = dict[str, Any]


class Options(Web):
    """Keys of a `[source.*]` table with kind = "fred"; docs/fred.md explains each."""

    base_url: Url = "https://api.stlouisfed.org/fred"
    requests_per_second: Annotated[float, Field(gt=0)] = 1.9  # bursts above 2 are cut off
    ids: dict[str, str] = Field(default_factory=dict)


def fetch(options: Options, ask: Ask) -> Iterator[Payload]:
    """Payloads of one series: its vintages up to the window's end that are not held, or how it is now if it has none.

    Raises SourceError before the first payload: no series of that id, bad key, provider down, answer that is none;
    UsageError for a window that has a beginning, or a series that was loaded under another id.
    """
    if ask.window.first:
        raise UsageError("--from leaves out vintages, and those of FRED build on one another: give --to alone")
    if not (key := os.environ.get(KEY)):
        raise UsageError(f"{KEY} is not set: FRED gives a key for nothing, see docs/fred.md")
    if unknown := options.ids.keys() - ask.series.keys():
        raise UsageError(f"ids: {', '.join(sorted(unknown))} is no series of this source")
    ids, stood = {name: options.ids.get(name, name) for name in ask.series}, ask.positions()
    if other := [f"{name} was loaded as {stood[name]}" for name, one in ids.items() if stood.get(name, one) != one]:
        raise UsageError(f"ids: {', '.join(other)}, and that stays: give another series of FRED's another name")
    with Client(options, ask.pace, {"api_key": key}) as client, tempfile.TemporaryDirectory() as folder:
        news = {name: _vintages(client, name, ids[name], ask) for name in ids}
        for name, dates in news.items():
            if dates is None:
                path, moves = Path(folder) / "now", {name: (stood.get(name), ids[name])}
                _observations(client, name, ids[name], {}, path)
                yield Payload(f"{name}/now", path, "application/json", None, (name,), complete=True, moves=moves)
            else:
                yield from _windows(client, name, ids[name], dates, ask, Path(folder))


def _vintages(client: Client, name: str, series_id: str, ask: Ask) -> list[str] | None:
    """Vintage dates of the series that are not held, up to the window's end; None: the series has no vintages."""
    held = ask.newest(name)
    first, last = f"{held:%Y-%m-%d}" if held else BEGINNING, f"{ask.window.last or END}"
    dates: list[str] = []
    while True:
        query = {"series_id": series_id, "realtime_start": first, "realtime_end": END, "limit": DATES}
        answer = client.get("/series/vintagedates", query | {"offset": len(dates), "file_type": "json"})
        if answer.status_code == 400 and not dates:  # so are a series that is none, and a key that is none
            now = {"series_id": series_id, "limit": 1, "file_type": "json"}
            _page(name, client.get("/series/observations", now), "observations")
            return None
        page = _page(name, answer, "vintage_dates")
        dates += page["vintage_dates"]
        if len(dates) >= page["count"] or not page["vintage_dates"]:
            return [day for day in dates if (not held or day > first) and day <= last]


def _windows(client: Client, name: str, series_id: str, dates: list[str], ask: Ask, folder: Path) -> Iterator[Payload]:
    """One payload for each VINTAGES dates; they build on one another, so none follows one that was not loaded."""
    path, held = folder / "window", ask.newest(name)
    # The last day that is held is read again: FRED may have added to it after it was loaded.
    first = f"{held - timedelta(days=1):%Y-%m-%d}" if held else BEGINNING
    for start in range(0, len(dates), VINTAGES):
        last = dates[start : start + VINTAGES][-1]
        _observations(client, name, series_id, {"realtime_start": first, "realtime_end": last}, path)
        until, moves = periods.known_from(last, DAY), {name: (ask.positions().get(name), series_id)}
        yield Payload(f"{name}/{first}/{last}", path, "application/json", None, (name,), until=until, moves=moves)
        if ask.newest(name) == held:
            return
        held, first = ask.newest(name), last


def _observations(client: Client, name: str, series_id: str, window: Mapping[str, str], to: Path) -> None:
    """Writes the answers as they came, page after page, to the file."""
    received, count = 0, 1
    with to.open("wb") as file:
        while received < count:
            query = {"series_id": series_id, "file_type": "json", "units": "lin", "output_type": 1, **window}
            answer = client.get("/series/observations", query | {"limit": ROWS, "offset": received})
            page = _page(name, answer, "observations")
            if (received and page["count"] != count) or (page["count"] > received and not page["observations"]):
                raise SourceError(f"{name}: FRED changed it while it was read; nothing of that was loaded, run again")
            if any(page.get(key) != day for key, day in window.items()):
                raise SourceError(f"{name}: FRED answers for another real time than {' to '.join(window.values())}")
            received, count = received + len(page["observations"]), page["count"]
            file.write(answer.content)


def parse(payload: Payload, options: Options, series: Mapping[str, Series]) -> Iterator[Cell | Reject]:
    """Cells of one payload, by period; `line` counts the rows. "." is a value that is missing, known as such.

    What ended within the window, without another value from the next day on, is DELETED from that day. Memory: all the
    rows. Raises SourceError for bytes that are no answer of FRED's.
    """
    name = payload.name.split("/")[0]
    if name not in series:
        raise SourceError(f"{payload.name}: service.toml no longer declares {name}")
    number, bad = 0, False
    by_date: dict[str, list[tuple[int, Row]]] = {}
    first = last = ""
    for page in _pages(name, payload.path.read_bytes()):
        first, last = page["realtime_start"], page["realtime_end"]
        for number, row in enumerate(page["observations"], number + 1):  # noqa: B020
            if all(_is_day(row.get(key)) for key in ("date", "realtime_start", "realtime_end")):
                by_date.setdefault(row["date"], []).append((number, row))
            else:
                bad, says = True, "date, realtime_start and realtime_end are days"
                yield Reject(name, number, json.dumps(row)[:SHOWN], "date", says)
    seen = Seen()
    for rows in by_date.values():
        for one in _period(rows, name, series[name].frequency, first, last, seen):
            if not bad or isinstance(one, Reject) or one.state != DELETED:  # what looks ended may go on in the bad row
                yield one


def _period(
    rows: list[tuple[int, Row]], name: str, frequency: str, first: str, last: str, seen: Seen
) -> Iterator[Cell | Reject]:
    """Cells of one period's rows, in an answer about the real time from `first` to `last`, both days included."""
    snapshot = first == last  # how it is today; since when, nobody says
    starts = {row["realtime_start"] for _, row in rows}
    for line, row in rows:
        start, end, raw = row["realtime_start"], row["realtime_end"], str(row.get("value"))
        period, valid_time = periods.period(row["date"], DAY, frequency)
        if snapshot or start > first:
            known = None if snapshot else periods.known_from(start, DAY)
            value, state, rule, detail = parse_value(raw, ".")
            if not rule and (earlier := seen.line(name, known, period, line)):
                rule, detail = "duplicate", f"row {earlier} already gave the period of {valid_time:%Y-%m-%d}"
            if rule:
                yield Reject(name, line, raw[:SHOWN], rule, detail, valid_time)
            else:
                yield Cell(name, valid_time, known, value, line, state, raw)
        if end < last and (after := f"{date.fromisoformat(end) + timedelta(days=1)}") not in starts:
            yield Cell(name, valid_time, periods.known_from(after, DAY), math.nan, line, DELETED)


def _page(name: str, answer: Response, holds: str) -> Row:
    """The document of an answer; raises SourceError for a refusal, in either of FRED's forms, and for what is neither.

    Decided by the body: FRED has sent JSON under the name of XML.
    """
    refused = re.search(rb"<error\b[^>]*\bmessage=\"([^\"]*)\"", answer.content)
    says = html.unescape(refused[1].decode("utf-8", "replace")) if refused else ""
    found: Any = None
    with suppress(ValueError, RecursionError):
        found = json.loads(answer.content)
    if isinstance(found, dict) and not says:
        says = str(found.get("error_message", ""))
    if says or answer.status_code != 200:
        hint = f"check {KEY}" if "api_key" in says else f"check [series.{name}] and base_url"
        says = " ".join(says.split()) or shown(answer.content)
        raise SourceError(f"{name}: FRED refuses, {answer.status_code}: {says[:300]} ({hint})")
    if not _whole(found, holds):
        raise SourceError(f"{name}: this is no answer of FRED's: {shown(answer.content)}; nothing of it was loaded")
    return dict(found)


def _pages(name: str, content: bytes) -> Iterator[Row]:
    """The documents of a payload, one after the other."""
    try:
        text = content.decode("utf-8").lstrip()
        while True:
            page, end = json.JSONDecoder().raw_decode(text)
            if not _whole(page, "observations"):
                raise ValueError
            yield page
            if not (text := text[end:].lstrip()):
                return
    except (ValueError, RecursionError):
        raise SourceError(f"{name}: these bytes are no answer of FRED's: {shown(content)}") from None


def _whole(page: Any, holds: str) -> bool:
    """Whether it is a document of FRED's that holds such a list."""
    if not isinstance(page, dict) or not isinstance(page.get("count"), int) or not isinstance(page.get(holds), list):
        return False
    if holds == "vintage_dates":
        return all(map(_is_day, page[holds]))
    asked = _is_day(page.get("realtime_start")) and _is_day(page.get("realtime_end"))
    return asked and all(isinstance(row, dict) for row in page[holds])


def _is_day(text: Any) -> bool:
    with suppress(ValueError, TypeError):
        return bool(f"{date.fromisoformat(text)}" == text)
    return False
