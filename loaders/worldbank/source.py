"""World Bank, API v2: an indicator of a country as it is now, or as every archived version had it.

Database 57 archives the World Development Indicators: each version, named by its month, is a vintage, known from the
first day after that month. It is loaded version by version; what is held is not asked for again. Of the other databases
only what is current is to be had: each load is a complete snapshot of our own, known from the time of loading.
"""

import html
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, Field

from model_service import periods
from model_service.contract import Series
from model_service.errors import UsageError
from model_service.loader import MISSING, Ask, Cell, Payload, Reject, Seen, SourceError, parse_value
from model_service.loader.web import Client, Url, Web, shown

PARSER_VERSION = 1

ARCHIVE = 57  # the database whose fourth dimension is the version
VERSION = "%Y%m"
NO_DATA = "160"  # number of the refusal by which the archive says so
PER_PAGE = 1_000  # of 32,500 that are allowed: large pages are those that fail
READS = 3  # of an answer that changes while it is read
SHOWN = 1_000  # characters of a bad row
MESSAGE = re.compile(r"<wb:message\b[^>]*?\bid=\"([^\"]*)\"(?:[^>]*?\bkey=\"([^\"]*)\")?[^>]*>([^<]*)")
# How the World Bank writes a period, how strptime reads that, and the dates to ask for to get such periods.
FORMS = {
    "year": (r"\d{4}", "%Y", ""),
    "quarter": (r"\d{4}Q[1-4]", "%YQ%q", "1900Q1:{}Q4"),
    "month": (r"\d{4}M(0[1-9]|1[0-2])", "%YM%m", "1900M01:{}M12"),
}

Row = dict[str, Any]
Asked = tuple[str, str, str] | None  # country, indicator and version that rows must be of


def _id(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9]{2,3}/[A-Za-z0-9._-]+", text):
        raise ValueError("COUNTRY/INDICATOR, such as USA/NY.GDP.MKTP.KD")
    return text.upper()


class Options(Web):
    """Keys of a `[source.*]` table with kind = "worldbank"; docs/worldbank.md explains each."""

    base_url: Url = "https://api.worldbank.org/v2"
    requests_per_second: Annotated[float, Field(gt=0)] = 2.0
    database: Annotated[int, Field(ge=1)] = 2
    ids: dict[str, Annotated[str, AfterValidator(_id)]]


class Nothing(SourceError):
    """The archive has no such data."""


class Unsteady(SourceError):
    """An answer that may be another one when it is asked for again."""


class Page(NamedTuple):
    """One document of an answer; the pages of one state of the data agree in `pages`, `total` and `updated`."""

    page: int
    pages: int
    total: int
    updated: str
    rows: list[Row]


def fetch(options: Options, ask: Ask) -> Iterator[Payload]:
    """Payloads of one series each: how it is now, or how each version of the archive has it that is not held.

    Raises SourceError before the first payload: no such country or indicator, provider down, answer that is none;
    UsageError for a series without an id, or held under another one, or of a frequency that the World Bank lacks.
    """
    if misfits := options.ids.keys() ^ ask.series.keys():
        raise UsageError(
            f"ids: each series of this source needs one, and no other has one: {', '.join(sorted(misfits))}"
        )
    if odd := [name for name, one in ask.series.items() if one.frequency not in FORMS]:
        raise UsageError(f"{', '.join(odd)}: the World Bank has years, quarters and months")
    with Client(options, ask.pace, {}) as client, tempfile.TemporaryDirectory() as folder:
        if options.database == ARCHIVE:
            yield from _versions(client, options.ids, ask, Path(folder))
        elif ask.window.holds(datetime.now(UTC)):
            yield from _current(client, options, ask, Path(folder))


def _current(client: Client, options: Options, ask: Ask, folder: Path) -> Iterator[Payload]:
    """All series are read before the first one is handed on: one that is unknown stops them all."""
    for name, one in ask.series.items():
        country, indicator = options.ids[name].split("/")
        query: dict[str, Any] = {"source": options.database}
        if dates := FORMS[one.frequency][2]:  # without it years are given
            query["date"] = dates.format(datetime.now(UTC).year)
        answer = _read(client, name, f"country/{country}/indicator/{indicator}", query, (country, indicator, ""))
        (folder / name).write_bytes(answer)
    for name in ask.series:
        yield Payload(f"{name}/now", folder / name, "application/json", None, (name,), complete=True)


def _versions(client: Client, ids: Mapping[str, str], ask: Ask, folder: Path) -> Iterator[Payload]:
    """Version by version, the oldest first, of every series that does not hold it.

    A version that has nothing of a series is noted with the next one that has: the newest one may get it yet.
    """
    held, path = ask.positions(), folder / "version"
    before = {(part.rpartition("/")[0], stands) for part, stands in held.items() if "/" in stands}
    if other := [f"{name} was loaded as {one}" for name, one in sorted(before) if ids.get(name, one) != one]:
        raise UsageError(f"ids: {', '.join(other)}, and that stays: give another indicator another name")
    wanted = [version for version in sorted(_listed(client, "database 57", "version")) if _is_due(version, ask)]
    news = {name: [version for version in wanted if f"{name}/{version}" not in held] for name in ask.series}
    for name in (name for name in news if news[name]):
        for concept, code in zip(("country", "series"), ids[name].split("/"), strict=True):
            if code not in _listed(client, name, f"{concept}/{code}"):
                raise SourceError(f"{name}: database {ARCHIVE} knows no {concept} {code} (check ids.{name})")
    empty: dict[str, list[str]] = {name: [] for name in news}
    for version in wanted:
        for name in (name for name in news if version in news[name]):
            part, (country, indicator) = f"{name}/{version}", ids[name].split("/")
            place = f"sources/{ARCHIVE}/country/{country}/series/{indicator}/time/all/version/{version}/data"
            try:
                answer = _read(client, name, place, {}, (country, indicator, version))
            except Nothing:
                answer = b""
            if not answer or all(row.get("value") is None for page in _pages(name, answer) for row in page.rows):
                empty[name].append(part)
                continue
            path.write_bytes(answer)
            moves = dict.fromkeys([*empty[name], part], (None, ids[name]))
            empty[name] = []
            known = periods.known_from(version, VERSION)
            yield Payload(part, path, "application/json", known, (name,), complete=True, moves=moves)


def _is_due(version: str, ask: Ask) -> bool:
    """Whether it is asked for, and its month is over: before that it is not known, and may change."""
    try:
        known = periods.known_from(version, VERSION)
    except ValueError:
        raise SourceError(f"database {ARCHIVE} lists {version!r} as a version, which is no month") from None
    return known <= datetime.now(UTC) and ask.window.holds(known)


def _listed(client: Client, name: str, place: str) -> set[str]:
    """Ids that the archive lists there."""
    pages = _pages(name, _read(client, name, f"sources/{ARCHIVE}/{place}/data", {}))
    return {str(row.get("id")).upper() for page in pages for row in page.rows}


def _read(client: Client, name: str, place: str, query: Mapping[str, Any], asked: Asked = None) -> bytes:
    """The pages of an answer as they came, all of one state; what changes meanwhile is read anew, READS times.

    Raises SourceError.
    """
    for _ in range(READS):
        try:
            return _read_once(client, name, place, query, asked)
        except Unsteady as error:
            last = error
    raise SourceError(f"{last}, {READS} times; nothing of it was loaded, run again later")


def _read_once(client: Client, name: str, place: str, query: Mapping[str, Any], asked: Asked) -> bytes:
    contents: list[bytes] = []
    received, first = 0, None
    while first is None or len(contents) < first.pages:
        wanted = {"format": "json", "per_page": PER_PAGE, "page": len(contents) + 1}
        answer = client.get(f"/{place}", {**query, **wanted})
        if answer.status_code != 200:
            raise SourceError(f"{name}: the World Bank answers {answer.status_code}: {shown(answer.content)}")
        page, *more = _pages(name, answer.content)
        first = first or page
        if more or page[:4] != (len(contents) + 1, *first[1:4]) or (page.total and not page.rows):
            raise Unsteady(f"{name}: the World Bank changed it while it was read")
        if asked and not all(_is_of(row, *asked) for row in page.rows):
            raise Unsteady(f"{name}: the World Bank answers for something else than {'/'.join(asked).rstrip('/')}")
        contents.append(answer.content)
        received += len(page.rows)
    if received != first.total:
        raise Unsteady(f"{name}: of {first.total} rows the World Bank sent {received}")
    return b"\n".join(contents)


def parse(payload: Payload, options: Options, series: Mapping[str, Series]) -> Iterator[Cell | Reject]:
    """Cells of one payload; `line` counts the rows. Null is a value that is missing, known as such.

    The archive says null of all that is to come, too: that is no statement. Memory: all the rows. Raises SourceError
    for bytes that are no answer of the World Bank's.
    """
    name = payload.name.split("/")[0]
    if name not in series:
        raise SourceError(f"{payload.name}: service.toml no longer declares {name}")
    frequency, seen, line = series[name].frequency, Seen(), 0
    form, format, _ = FORMS[frequency]
    for page in _pages(name, payload.path.read_bytes()):
        until = f"{payload.vintage:%Y-%m-%d}" if payload.vintage else page.updated
        for line, row in enumerate(page.rows, line + 1):  # noqa: B020
            text = _period(row)
            try:
                if not re.fullmatch(form, text, re.ASCII):
                    raise ValueError(f"{text!r} is no {frequency}")
                period, valid_time = periods.period(text, format, frequency)
            except ValueError as error:
                yield Reject(name, line, json.dumps(row)[:SHOWN], "date", str(error))
                continue
            value, state, rule, detail = parse_value(row.get("value"), None)
            if state == MISSING and f"{valid_time:%Y-%m-%d}" >= until:
                continue
            if not rule and (earlier := seen.line(name, None, period, line)):
                rule, detail = "duplicate", f"row {earlier} already gave the period of {valid_time:%Y-%m-%d}"
            if rule:
                yield Reject(name, line, json.dumps(row.get("value"))[:SHOWN], rule, detail, valid_time)
            else:
                yield Cell(name, valid_time, payload.vintage, value, line, state, row.get("value"))


def _period(row: Row) -> str:
    """As the World Bank writes it: 2025, 2013Q1, 2012M01; in the archive YR2025, YR201201."""
    text = str(row.get("date") or _concepts(row).get("time", "")).removeprefix("YR")
    return f"{text[:4]}M{text[4:]}" if re.fullmatch(r"\d{6}", text) else text


def _is_of(row: Row, country: str, indicator: str, version: str) -> bool:
    """Whether the row is of what was asked for: caches of the provider's have answered for others."""
    if version:
        found = _concepts(row)
        return (found.get("country"), found.get("series"), found.get("version")) == (country, indicator, version)
    about = [row[key].get("id") if isinstance(row.get(key), dict) else None for key in ("indicator", "country")]
    codes = {str(row.get("countryiso3code") or country).upper(), str(about[1]).upper()}
    return str(about[0]).upper() == indicator and country in codes


def _concepts(row: Row) -> dict[str, str]:
    """{concept: id} of a row of the archive."""
    found = row.get("variable")
    listed = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    return {str(one.get("concept")).lower(): str(one.get("id")).upper() for one in listed}


def _pages(name: str, content: bytes) -> Iterator[Page]:
    """The documents of an answer, one after the other; raises Unsteady for data in XML, and SourceError."""
    try:
        text = content.decode("utf-8").lstrip("\ufeff \r\n\t")
        if marked := MESSAGE.search(text):
            raise _refusal(name, marked[1], html.unescape(f"{marked[2] or ''}: {marked[3]}"))
        if text.startswith("<") and "<wb:" in text:
            raise Unsteady(f"{name}: the World Bank answers in XML, though JSON was asked for")
        while True:
            found, end = json.JSONDecoder().raw_decode(text)
            if isinstance(found, list) and found and isinstance(found[0], dict) and "message" in found[0]:
                (said, *_) = found[0]["message"]
                raise _refusal(name, str(said.get("id")), f"{said.get('key')}: {said.get('value')}")
            yield _page(found)
            if not (text := text[end:].lstrip("\ufeff \r\n\t")):
                return
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError):
        says = f"this is no answer of the World Bank's: {shown(content)}"
        raise SourceError(f"{name}: {says}; nothing of it was loaded") from None


def _refusal(name: str, number: str, says: str) -> SourceError:
    says = f"the World Bank refuses, {number}: {' '.join(says.split()).strip(': ')[:300]}"
    kind = Nothing if number == NO_DATA else SourceError
    return kind(f"{name}: {says} (check ids.{name}, its frequency, and database)")


def _page(found: Any) -> Page:
    """The page that a document is: [head, rows], rows null where there is nothing; or head with rows in it.

    Raises what `_pages` catches for what is neither.
    """
    if isinstance(found, list):
        head, rows = found
    else:
        head, source = found, found["source"]
        source = source[0] if isinstance(source, list) else source
        rows = source["data"] if "data" in source else source["concept"][0]["variable"]
    page, pages, total = (int(head[key]) for key in ("page", "pages", "total"))
    rows = [] if rows is None and not total else rows
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError
    return Page(page, pages, total, str(head.get("lastupdated")), rows) if total else Page(1, 1, 0, "", rows)
