"""SDMX: series of the ECB, the OECD, the IMF, the BIS, Eurostat, and of whoever else answers in SDMX-CSV.

Of each series one key of one dataflow is asked for. A provider that tells its history (`includeHistory`) says of each
data set since when it held; SDMX-CSV has no place for that, so a history comes as SDMX-JSON. Any other answer is a
snapshot, known from the time of loading, or what was changed and deleted since the last one (`updatedAfter`).

An answer without observations has several faces; it is "nothing new" only of a key that gave some before.
"""

import math
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from httpx import Response
from pydantic import AfterValidator, Field, model_validator

from model_service import periods
from model_service.contract import Series
from model_service.errors import UsageError
from model_service.loader import ALWAYS, DELETED, MISSING, Ask, Cell, Payload, Reject, SourceError, parse_value
from model_service.loader.sources._sdmx import CSV, JSON, Row, rows
from model_service.loader.web import Client, Web, shown

PARSER_VERSION = 1

HISTORY = "application/vnd.sdmx.data+json;version=1.0.0-wd"
OVERLAP = timedelta(hours=1)  # asked for again: a change may show later than it is stamped
FIRST_YEAR = 1900  # where halving begins; what is older stays in the first half
POLL_SECONDS = 5.0  # between two looks at an answer that is being prepared
WAITING = {"SUBMITTED", "PROCESSING", "DATA_NOT_YET_AVAILABLE"}
SHOWN = 1_000  # characters of a bad cell

PRESETS: dict[str, dict[str, Any]] = {
    "ecb": {"base_url": "https://data-api.ecb.europa.eu/service", "accept": CSV, "reads": "history",
            "requests_per_second": 2},
    "oecd": {"base_url": "https://sdmx.oecd.org/public/rest", "accept": "application/vnd.sdmx.data+csv;version=2.0",
             "reads": "updates", "requests_per_second": 0.016},  # 60 an hour; it has been 20
    "imf": {"base_url": "https://api.imf.org/external/sdmx/2.1", "accept": "application/vnd.sdmx.data+csv"},
    "bis": {"base_url": "https://stats.bis.org/api/v2", "path": "/data/dataflow/{flow}/{key}"},
    "eurostat": {"base_url": "https://ec.europa.eu/eurostat/api/dissemination", "path": "/sdmx/2.1/data/{flow}/{key}/",
                 "query": {"format": "SDMX-CSV", "compressed": "false"}},
}  # fmt: skip
PERIODS = {  # how a period is written, and that as a format; a half-year is written by its first quarter
    "year": (r"\d{4}", "%Y"),
    "half_year": (r"\d{4}-S[12]", "%Y-Q%q"),
    "quarter": (r"\d{4}-Q[1-4]", "%Y-Q%q"),
    "month": (r"\d{4}-M?\d\d", "%Y-%m"),
    "week": (r"\d{4}-W\d\d", "%G-W%V"),
    "day": (r"\d{4}-\d\d-\d\d", "%Y-%m-%d"),
}


def _key(text: str) -> str:
    if not re.fullmatch(r"[^\s?#]+/[^\s?#/]+", text):
        raise ValueError('must be a dataflow and a key in it, such as "EXR/D.USD.EUR.SP00.A"')
    return text


def _path(text: str) -> str:
    if not text.startswith("/") or "{flow}" not in text or "{key}" not in text:
        raise ValueError('must be a path with {flow} and {key}, such as "/data/{flow}/{key}"')
    return text


class Options(Web):
    """Keys of a `[source.*]` table with kind = "sdmx"; docs/sdmx.md explains each."""

    provider: Literal["ecb", "oecd", "imf", "bis", "eurostat"] | None = None
    keys: dict[str, Annotated[str, AfterValidator(_key)]]
    reads: Literal["history", "updates", "snapshots"] = "snapshots"
    accept: str = "application/vnd.sdmx.data+csv;version=1.0.0"
    path: Annotated[str, AfterValidator(_path)] = "/data/{flow}/{key}"
    query: dict[str, str] = Field(default_factory=dict)
    requests_per_second: Annotated[float, Field(gt=0)] = 1.0
    queue_seconds: Annotated[float, Field(gt=0)] = 900.0

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        return {**PRESETS.get(str(given.get("provider")), {}), **given}


def fetch(options: Options, ask: Ask) -> Iterator[Payload]:
    """One payload of each series that has news: its history, what was changed since, or all that it is now.

    Raises SourceError before the first payload: key that never gave anything, provider down, refusal, answer that is
    none; UsageError for a window, or where series and keys do not fit.
    """
    if ask.window != ALWAYS:
        raise UsageError("--from and --to choose vintages, and SDMX gives what it has at once: leave them out")
    if odd := options.keys.keys() ^ ask.series.keys():
        raise UsageError(f"keys: each series of this source needs one, and no other: {', '.join(sorted(odd))}")
    places = ask.positions()
    with Client(options, ask.pace, {}) as client, tempfile.TemporaryDirectory() as folder:
        found = [
            Question(client, options, name, key).payload(places, Path(folder) / f"{number}")
            for number, (name, key) in enumerate(options.keys.items())
        ]
        yield from (payload for payload in found if payload)


@dataclass
class Question:
    """What is asked of a provider for one series. `stands`: up to where the answer goes, by the provider's clock."""

    client: Client
    options: Options
    name: str
    key: str
    stands: str = ""

    def payload(self, places: Mapping[str, str], path: Path) -> Payload | None:
        """None where nothing is new. `places`: where the last payloads stood; one without its history told none."""
        history = self.options.reads == "history"
        part = f"{self.name}/{self.key}{' with its history' if history else ''}"
        stood = places.get(part)
        partly = stood is not None and self.options.reads != "snapshots"
        query, since, known = {"includeHistory": "true"} if history else {}, {}, {}
        if stood:
            moment = datetime.fromisoformat(stood)
            known = {"If-Modified-Since": format_datetime(moment, usegmt=True)}
            since = {"updatedAfter": f"{moment - OVERLAP:%Y-%m-%dT%H:%M:%S+00:00}"} if partly else {}
        content = self._ask(query | since, known)
        if partly and any(row.action == "D" and not row.period for row in self._rows(content)):
            partly, content = False, self._ask(query, {})  # the whole series went: which periods, only all of it says
        if content is None:
            if stood:
                return None
            raise SourceError(
                f"{self.name}: {self.client.provider} has nothing under {self.key}, and never gave anything:"
                f" check keys.{self.name}, codes are renamed and move to other dataflows"
            )
        path.write_bytes(content)
        moves = {part: (stood, self.stands)}
        complete, media_type = not (history or partly), JSON if history else CSV
        return Payload(f"{self.name}/{self.key}", path, media_type, None, (self.name,), complete, moves=moves)

    def _ask(
        self, query: Mapping[str, str], more: Mapping[str, str], first: int | None = None, last: int | None = None
    ) -> bytes | None:
        """The bytes of an answer about these years, None where it holds nothing; one too big is asked for in halves."""
        flow, _, key = self.key.rpartition("/")
        path = self.options.path.replace("{flow}", flow).replace("{key}", key)
        years = {name: f"{year}" for name, year in {"startPeriod": first, "endPeriod": last}.items() if year}
        accept = HISTORY if self.options.reads == "history" else self.options.accept
        answer = self.client.get(path, {**self.options.query, **query, **years}, {"Accept": accept, **more})
        self.stands = self.stands or _stands(answer)
        if answer.status_code != 413 or self.options.reads == "history":
            return self._content(answer)
        low, high = first or FIRST_YEAR, last or datetime.now(UTC).year
        if low >= high:
            raise SourceError(f"{self.name}: {self.client.provider} finds {self.key} too big, even a year of it")
        middle = (low + high) // 2
        halves = [self._ask(query, {}, first, middle), self._ask(query, {}, middle + 1, last)]
        return b"\n".join(half for half in halves if half) or None

    def _content(self, answer: Response) -> bytes | None:
        """The answer's bytes, None where it holds nothing; raises SourceError for a refusal."""
        if queued := re.search(rb"<(?:\w+:)?queued>.*?<(?:\w+:)?id>\s*([\w-]+)\s*<", answer.content[:9999], re.DOTALL):
            answer = self._prepared(queued[1].decode())
        no_results = re.search(rb"<faultcode>\s*100\s*<|code=\"100\"", answer.content)  # Eurostat's, and SDMX-ML's
        if answer.status_code in {204, 304, 404} or (answer.status_code == 400 and no_results):
            return None
        if answer.status_code != 200:
            hint = f" (check keys.{self.name}: its codes, and its number of dots)" if answer.status_code == 400 else ""
            says = f"refuses {self.key}, {answer.status_code}: {_says(answer)}{hint}"
            raise SourceError(f"{self.name}: {self.client.provider} {says}")
        return answer.content if list(self._rows(answer.content)) else None

    def _prepared(self, ticket: str) -> Response:
        """An answer that the provider prepares, when it is there; Eurostat does so with large ones."""
        until = time.monotonic() + self.options.queue_seconds
        while True:
            time.sleep(POLL_SECONDS)
            answer = self.client.get(f"/1.0/async/status/{ticket}", {})
            found = re.search(rb"<(?:\w+:)?status>\s*(\w+)\s*<", answer.content)
            status = found[1].decode() if found else f"{answer.status_code}, {_says(answer)}"
            if status in {"AVAILABLE", "NO_RESULTS"}:
                ready = status == "AVAILABLE"
                return self.client.get(f"/1.0/async/data/{ticket}", self.options.query) if ready else Response(204)
            if status not in WAITING or time.monotonic() > until:
                says = f"{self.client.provider} prepares {self.key} and is at {status}"
                raise SourceError(f"{self.name}: {says}: run again, or give it more queue_seconds")

    def _rows(self, content: bytes | None) -> Iterator[Row]:
        return rows(self.name, content or b"", JSON if self.options.reads == "history" else CSV)


def parse(payload: Payload, options: Options, series: Mapping[str, Series]) -> Iterator[Cell | Reject]:
    """Cells of one payload, by when they were known. An empty value is one that is missing, known as such.

    What is deleted and stated for the same moment is stated. Memory: all the rows. Raises SourceError for bytes that
    are no such answer, hold two series, or longer periods than the series has.
    """
    name = payload.name.split("/")[0]
    if name not in series:
        raise SourceError(f"{payload.name}: service.toml no longer declares {name}")
    cells: dict[tuple[datetime | None, int], Cell] = {}
    found = rows(name, payload.path.read_bytes(), payload.media_type)
    for row in sorted(found, key=lambda row: (row.known or periods.EPOCH, row.action != "D")):
        line, raw, known = row.line, row.value[:SHOWN], row.known
        if row.action == "D" and not row.period:
            for (_, number), cell in list(cells.items()):
                cells[known, number] = Cell(name, cell.valid_time, known, math.nan, line, DELETED)
            continue
        try:
            number, valid_time = _period(name, row.period, series[name].frequency)
        except ValueError as error:
            yield Reject(name, line, raw, "date", str(error))
            continue
        value, state, rule, detail = parse_value(row.value, "", "NaN")
        if row.action == "D":
            value, state, rule, detail = math.nan, DELETED, "", ""
        if state == MISSING and row.action in "AM" and not row.flagged:
            continue  # to append or merge an empty cell is to leave what is there
        earlier = cells.get((known, number))
        if earlier and DELETED not in (earlier.state, state):
            rule, detail = "duplicate", f"row {earlier.line} already gave the period of {valid_time:%Y-%m-%d}"
        if rule:
            yield Reject(name, line, raw, rule, detail, valid_time)
        else:
            cells[known, number] = Cell(name, valid_time, known, value, line, state, raw)
    yield from cells.values()


def _period(name: str, text: str, frequency: str) -> tuple[int, datetime]:
    """(ordinal, first instant in UTC) of the series' period. Raises ValueError; SourceError where it is in a longer."""
    for grain, (written, format) in PERIODS.items():
        if re.fullmatch(written, text, re.ASCII):
            if periods.FREQUENCIES.index(grain) > periods.FREQUENCIES.index(frequency):
                raise SourceError(f"{name} is by {frequency}, and {text} is a {grain}: mend `frequency` or keys.{name}")
            plain = text.replace("-S1", "-Q1").replace("-S2", "-Q3").replace("-M", "-")
            return periods.period(plain, format, frequency)
    raise ValueError(f"{text[:SHOWN]!r} is no period: 2013, 2013-S1, 2013-Q1, 2013-01, 2013-W01 or 2013-01-01 is one")


def _stands(answer: Response) -> str:
    for name in ("Last-Modified", "Date"):
        with suppress(ValueError):
            return parsedate_to_datetime(answer.headers.get(name, "")).astimezone(UTC).isoformat()
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}+00:00"


def _says(answer: Response) -> str:
    """What a refusal says, out of its HTML, XML or text."""
    return shown(re.sub(rb"(?s)<(head|style|script)\b.*?</\1>|<[^>]*>", b" ", answer.content)).strip('"') or "no reason"
