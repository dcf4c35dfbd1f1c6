"""Services of the tests' own: one that reads a source and is looked into, and a small dataset written by hand."""

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest

from model_service import contract as contracts
from model_service.contract import Contract
from model_service.errors import ServiceError
from model_service.loader import SourceError, run
from model_service.store import raw, read
from model_service.store.connection import connect

Cell = tuple[int, int]  # series, month
Values = Mapping[Cell, float]
NONE: Values = {}
CELLS = [(series, month) for series in range(2) for month in range(3)]
ORIGIN = datetime(2010, 1, 1, tzinfo=UTC)

HEAD = """
[service]
name = "desk"
[image]
repository = "desk"
base = "python"
[train]
first_origin = "2000-01-01"
[target]
series = "{target}"
horizons = [1]
[[feature]]
series = "{target}"
"""
TOML = """
[source.{name}]
kind = "csv"
path = "*.csv"
layout = "long"
delimiter = ";"
date = {{ column = "month", format = "{dates}" }}
value_column = "{column}"
decimal = "{decimal}"
complete = {complete}
{vintage}
{more}
[series.{name}_0]
source = "{name}"
frequency = "{frequency}"
unit = "percent"
release_lag_days = 7
[series.{name}_1]
source = "{name}"
frequency = "{frequency}"
unit = "percent"
release_lag_days = 7
"""
GDP = """
[source.files]
kind = "csv"
path = "data/us-macro/*.csv"
layout = "wide"
date = { column = "Date", format = "%m/%d/%y" }
vintage = { from = "file_name", format = "%Y-%m-%d" }
[series.GDPC1]
source = "files"
frequency = "quarter"
unit = "billions"
release_lag_days = 30
"""


def moment(text: str) -> datetime:
    """Of a day its beginning; UTC where it names no offset."""
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


class Service:
    """A service that reads a source into a database of its own, as `load` does, by a service.toml of `toml`."""

    url: str
    root: Path
    said: list[str]

    @property
    def toml(self) -> str:
        raise NotImplementedError

    @property
    def contract(self) -> Contract:
        return self.declared(self.toml)

    def declared(self, text: str) -> Contract:
        path = self.root / "service.toml"
        path.write_text(text, "utf-8")
        return contracts.load(path)

    def load(self, contract: Contract | None = None, **how: Any) -> list[dict[str, Any]]:
        return run.load(contract or self.contract, self.url, self.root, self.said.append, **how)

    def again(self, load: int, kind: str, reason: str) -> dict[str, Any]:
        """Reads the bytes that were kept of a load again."""
        return run.reprocess(self.contract, self.url, load, kind, reason, self.said.append)

    def refused(self, kind: type[ServiceError] = SourceError, **how: Any) -> str:
        """What a load that cannot be says, in one line; nothing of it is in the store, and no place was moved."""
        before = self._brought()
        with pytest.raises(kind) as refusal:
            self.load(**how)
        assert self._brought() == before
        assert "\n" not in str(refusal.value)
        return str(refusal.value)

    def _brought(self) -> tuple[int, int, list[Any]]:
        return self.count("load"), self.count("observation"), self.rows("SELECT * FROM position ORDER BY dataset, part")

    def rows(self, sql: LiteralString, *given: Any) -> list[Any]:
        with psycopg.connect(self.url) as connection:
            return connection.execute(sql, given).fetchall()

    def count(self, table: LiteralString) -> int:
        return int(self.rows(f"SELECT count(*) FROM {table}")[0][0])

    def held(self, name: str = "A") -> list[tuple[str, str, float | None]]:
        """Every stored row of a series: period, known from, value."""
        rows = self.rows(
            "SELECT valid_time, known_from, value FROM observation JOIN series USING (series_id)"
            " WHERE name = %s ORDER BY 1, 2", name,
        )  # fmt: skip
        return [(f"{valid:%Y-%m-%d}", f"{known:%Y-%m-%d}", value) for valid, known, value in rows]

    def known(self, at: str = "2100-01-01", name: str = "A") -> dict[str, float]:
        """What the store answers as of then, by the first day of each period."""
        with connect(self.url) as connection:
            loads = read.data_version(connection, None).loads
            found = read.as_of(connection, [name], moment(at), loads)[name].tolist()
        return {f"{period}"[:10]: value for period, value in found if value is not None and value == value}

    def kept(self) -> list[bytes]:
        """The kept bytes, in no order that means anything."""
        with connect(self.url, "loader") as connection:
            found = []
            for (sha256,) in self.rows("SELECT DISTINCT sha256 FROM raw_object ORDER BY 1"):
                with raw.opened(connection, sha256) as (path, _):
                    found.append(path.read_bytes())
        return found

    def everything(self) -> dict[str, str]:
        """All that the store holds, as text: each table, and the kept bytes."""
        tables = self.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'raw_object'")
        shown = {table: str(self.rows(f"SELECT * FROM {table}")) for (table,) in tables}
        return shown | {"kept": "\n".join(one.decode("utf-8", "replace") for one in self.kept())}


def day(number: int) -> datetime:
    return ORIGIN + timedelta(days=number)


@dataclass
class Desk:
    """One dataset; a file has the columns `value`, which is loaded, and `right`, which a correction reads instead.

    A bad cell is written with a decimal comma: no number, until the declaration says so.
    """

    url: str
    root: Path
    complete: bool = False
    vintages: bool = True
    more: str = ""
    frequency: str = "month"
    dates: str = "%Y-%m"
    name: str = field(default_factory=lambda: f"d{uuid.uuid4().hex[:8]}")
    said: list[str] = field(default_factory=list)

    def contract(self, column: str = "value", decimal: str = ".") -> Contract:
        vintage = 'vintage = { from = "file_name", format = "%Y-%m-%d" }' if self.vintages else ""
        path = self.root / "service.toml"
        path.write_text(
            (HEAD + TOML).format(
                target=f"{self.name}_0", name=self.name, column=column, decimal=decimal, vintage=vintage,
                more=self.more, complete=str(self.complete).lower(),
                frequency=self.frequency, dates=self.dates,
            )
        )  # fmt: skip
        return contracts.load(path)

    def write(self, at: int, values: Values, bad: Values = NONE, right: Values | None = None) -> None:
        """The only file of the folder; `right` None: the same as `values` and `bad`."""
        for path in self.root.glob("*.csv"):
            path.unlink()
        right = {**values, **bad} if right is None else right
        lines = ["series;month;value;right"]
        for series, month in CELLS:
            cell = (series, month)
            if cell in values or cell in bad or cell in right:
                text = str(values.get(cell, "")) or str(bad.get(cell, "")).replace(".", ",")
                lines.append(f"{self.name}_{series};2000-{month + 1:02};{text};{right.get(cell, '')}")
        stem = f"{day(at):%Y-%m-%d}" if self.vintages else "snapshot"
        (self.root / f"{stem}.csv").write_text("\n".join(lines) + "\n")

    def load(
        self, at: int, values: Values, bad: Values = NONE, right: Values | None = None, **how: Any
    ) -> dict[str, Any]:
        """Publishes a vintage and loads it."""
        self.write(at, values, bad, right)
        return run.load(self.contract(), self.url, self.root, self.said.append, **how)[0]

    def correct(self, load: int) -> dict[str, Any]:
        """Reads the kept bytes again, now from the column that is right."""
        return run.reprocess(
            self.contract(column="right"), self.url, load, "correction", "wrong column", self.said.append
        )

    def retry(self, load: int) -> dict[str, Any]:
        """Reads what was quarantined again, now that commas are declared."""
        return run.reprocess(self.contract(decimal=","), self.url, load, "retry", "commas", self.said.append)

    def known(self, connection: psycopg.Connection[Any], at: datetime, version: str | None = None) -> dict[Cell, float]:
        """What the store answers as of `at`."""
        names = [f"{self.name}_{series}" for series in range(2)]
        loads = read.data_version(connection, version).loads
        found: dict[Cell, float | None] = {}
        for series, rows in enumerate(read.vintages(connection, names, at, loads).values()):
            for valid, _, value in rows:
                found[series, (datetime(1970, 1, 1) + timedelta(days=valid)).month - 1] = value
        return {cell: value for cell, value in found.items() if value is not None}


@dataclass
class Twin:
    """The same history as bare statements: (moment, rank of the load, cell): value, or None for "there is none"."""

    complete: bool
    said: dict[tuple[datetime, int, Cell], float | None] = field(default_factory=dict)
    replayed: dict[int, int] = field(default_factory=dict)  # rank of a replay: the load whose cells it took up

    def state(self, known: datetime, rank: int, values: Values, unsure: Iterable[Cell] = ()) -> None:
        """What a load says; a cell that contradicts an earlier load's word for the same moment does not count."""
        again = {rank} | {one for one, of in self.replayed.items() if of == rank}
        self.said = {key: value for key, value in self.said.items() if key[1] not in again}
        told: dict[Cell, float | None] = dict(values)
        if self.complete:
            told |= {cell: None for cell in CELLS if cell not in values and cell not in unsure}
        for cell, value in told.items():
            first = [rank_ for moment, rank_, other in self.said if (moment, other) == (known, cell) and rank_ < rank]
            if not first or value is None or self.said[known, min(first), cell] == value:
                self.said[known, rank, cell] = value

    def known(self, at: datetime) -> dict[Cell, float]:
        """Of each cell the latest word up to `at`; of several for one moment that of the first load."""
        answer = {}
        for cell in CELLS:
            words = [(moment, -rank) for moment, rank, other in self.said if other == cell and moment <= at]
            if words:
                moment, rank = max(words)
                if (value := self.said[moment, -rank, cell]) is not None:
                    answer[cell] = value
        return answer
