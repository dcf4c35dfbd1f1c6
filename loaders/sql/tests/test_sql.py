"""The sql source against a real PostgreSQL: what it loads, leaves, refuses and hides; and SQLite as another dialect."""

import io
import json
import logging
import math
import re
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
import sqlalchemy
from conftest import ROOT, SAMPLE
from desk import GDP, HEAD, Service
from hypothesis import given, settings
from hypothesis import strategies as st
from warehouse import PASSWORD, Warehouse, running

from model_service.contract import Series
from model_service.errors import UsageError
from model_service.loader import MISSING, Cell, Payload, Reject, SourceError, Window, run
from model_service.loader.sources import _sql as rows
from model_service.loader.sources import sql as source
from model_service.mistakes import validate

SOURCE = '[source.warehouse]\nkind = "sql"\nurl_variable = "WAREHOUSE_URL"\n'
SERIES = '[series.{}]\nsource = "{}"\nfrequency = "{}"\nunit = "1"\nrelease_lag_days = 1\n'
ALL = "SELECT series, time, value FROM macro.data ORDER BY 1, 2"
CHANGED = "SELECT * FROM macro.data WHERE changed >= :cursor ORDER BY changed, series, time"
CURSOR = '{{ column = "changed", overlap = {}, start = {} }}'


@pytest.fixture(scope="session")
def server_of_others() -> Iterator[Warehouse]:
    with running() as found:
        yield found


@pytest.fixture
def warehouse(server_of_others: Warehouse, monkeypatch: pytest.MonkeyPatch) -> Iterator[Warehouse]:
    """With macro.data, which is empty, and its URL in WAREHOUSE_URL."""
    monkeypatch.setenv("WAREHOUSE_URL", server_of_others.url())
    columns = "series text, time date, value numeric, known_from timestamptz, changed timestamptz"
    server_of_others.run(f"CREATE TABLE macro.data ({columns})")  # type: ignore[arg-type]
    yield server_of_others
    server_of_others.run("DROP TABLE macro.data CASCADE")


@dataclass
class Desk(Service):
    url: str
    root: Path
    query: str = ALL
    more: str = ""
    also: str = ""
    names: tuple[str, ...] = ("A",)
    frequency: str = "month"
    said: list[str] = field(default_factory=list)

    @property
    def toml(self) -> str:
        text = HEAD.format(target=self.names[0]) + SOURCE + f"query = {json.dumps(self.query)}\n{self.more}\n"
        return text + "".join(SERIES.format(name, "warehouse", self.frequency) for name in self.names) + self.also

    def quarantined(self) -> list[tuple[str, str]]:
        return self.rows("SELECT rule, detail FROM quarantine ORDER BY quarantine_id")


@pytest.fixture
def desk(warehouse: Warehouse, url: str, tmp_path: Path) -> Desk:
    return Desk(url, tmp_path)


@pytest.fixture
def changing(desk: Desk) -> Desk:
    """One that asks for what was changed since."""
    desk.query, desk.more = CHANGED, "cursor = " + CURSOR.format(3600, "2000-01-01T00:00:00Z")
    return desk


def put(warehouse: Warehouse, *cells: tuple[str, Any, str | None], series: str = "A") -> None:
    """Rows of (period, value, changed)."""
    for time, value, changed in cells:
        warehouse.run("INSERT INTO macro.data VALUES (%s, %s, %s, NULL, %s)", series, time, value, changed)


def retype(warehouse: Warehouse, column: LiteralString) -> None:
    """Gives the column of the cursor another type."""
    cast: LiteralString = "ALTER TABLE macro.data ALTER changed TYPE " + column + " USING NULL"
    warehouse.run(cast)


# ---- what it brings ----


def test_a_query_brings_its_rows_known_from_the_time_of_loading(desk: Desk, warehouse: Warehouse) -> None:
    put(warehouse, ("2016-01-31", "1.5", None), ("2016-02-01", 2, None))
    (result,) = desk.load()
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    assert desk.held() == [("2016-01-01", today, 1.5), ("2016-02-01", today, 2)]
    assert (result["file"], result["fetched"], result["new"]) == ("query", 2, 2)
    assert desk.load()[0]["outcome"] == "nothing new"


def test_a_column_says_since_when_a_value_was_known(desk: Desk, warehouse: Warehouse) -> None:
    desk.query, desk.more = "SELECT * FROM macro.data", 'known_from_column = "known_from"'
    for known, value in (("2016-02-05 23:30-05", 1), ("2016-03-04", 1.5)):
        warehouse.run("INSERT INTO macro.data VALUES ('A', '2016-01-01', %s, %s)", value, known)
    desk.load()
    assert desk.held() == [("2016-01-01", "2016-02-06", 1), ("2016-01-01", "2016-03-04", 1.5)]
    assert desk.known(at="2016-03-01") == {"2016-01-01": 1}


def test_keys_of_the_warehouse_are_given_names(desk: Desk, warehouse: Warehouse) -> None:
    put(warehouse, ("2016-01-01", 1, None), series="us.houst")
    put(warehouse, ("2016-01-01", 2, None), series="B")
    warehouse.run("INSERT INTO macro.data VALUES ('4711', '2016-01-01', 3)")
    desk.names, desk.more = ("A", "B", "C"), 'keys = { A = "us.houst", C = "4711" }'
    desk.load()
    assert [desk.known(name=name) for name in desk.names] == [{"2016-01-01": 1}, {"2016-01-01": 2}, {"2016-01-01": 3}]
    desk.query = "SELECT 4711 AS series, DATE '2016-02-01' AS time, 4 AS value"
    desk.load()
    assert desk.known(name="C")["2016-02-01"] == 4


def test_null_is_a_value_that_is_missing(desk: Desk, warehouse: Warehouse) -> None:
    put(warehouse, ("2016-01-01", 1, None), ("2016-02-01", None, None))
    desk.load()
    assert desk.known() == {"2016-01-01": 1}
    assert desk.rows("SELECT state FROM observation WHERE value IS NULL") == [(MISSING,)]


def test_colons_and_percent_signs_of_a_query_are_its_own(desk: Desk, warehouse: Warehouse) -> None:
    put(warehouse, ("2016-01-01", 1, None), ("2016-02-01", 2, None))
    like = (
        "SELECT series, time::date, value FROM macro.data WHERE series LIKE '%A%' AND 12 % 5 = 2 AND ' \\:x' <> 'a:b'"
    )
    desk.query = like + " ORDER BY time -- all of it"
    desk.load()
    assert desk.known() == {"2016-01-01": 1, "2016-02-01": 2}
    assert desk.query.endswith("it")


def test_deletions_come_by_a_complete_query_alone(changing: Desk, warehouse: Warehouse) -> None:
    put(warehouse, ("2016-01-01", 1, "2016-03-01 10:00Z"), ("2016-02-01", 2, "2016-03-01 10:00Z"))
    changing.load()
    warehouse.run("DELETE FROM macro.data WHERE time = '2016-01-01'")
    changing.load()
    assert changing.known() == {"2016-01-01": 1, "2016-02-01": 2}  # the cursor cannot see it
    changing.query, changing.more = ALL, "complete = true\nmax_vanished = 1"
    changing.load()
    assert changing.known() == {"2016-02-01": 2}


def test_a_query_without_a_row_is_refused_and_so_deletes_nothing(desk: Desk, warehouse: Warehouse) -> None:
    desk.more = "complete = true\nmax_vanished = 1"
    assert desk.refused() == "warehouse: the query gives no row"
    put(warehouse, ("2016-01-01", 1, None))
    desk.load()
    warehouse.run("DELETE FROM macro.data")
    assert desk.refused() == "warehouse: the query gives no row"


# ---- the cursor ----


def late_commit(desk: Desk, warehouse: Warehouse) -> dict[str, float]:
    """What is known after a load during which a row was written, with a smaller cursor, that was committed after it."""
    put(warehouse, ("2016-01-01", 1, "2016-03-01 10:00Z"))
    with psycopg.connect(warehouse.admin) as slow:
        slow.execute("INSERT INTO macro.data VALUES ('A', '2016-02-01', 2, NULL, '2016-03-01 10:30Z')")
        put(warehouse, ("2016-03-01", 3, "2016-03-01 11:00Z"))
        desk.load()
        assert desk.known() == {"2016-01-01": 1, "2016-03-01": 3}  # the control: it was not to be seen
    desk.load()
    return desk.known()


def test_what_is_committed_after_a_load_with_a_smaller_cursor_comes_with_the_next_one(
    changing: Desk, warehouse: Warehouse
) -> None:
    assert late_commit(changing, warehouse) == {"2016-01-01": 1, "2016-02-01": 2, "2016-03-01": 3}
    assert changing.rows("SELECT request->>'file' FROM load ORDER BY load_id") == [
        ("query/2000-01-01 00:00:00+00:00",),
        ("query/2016-03-01 10:00:00+00:00",),
    ]


def test_without_an_overlap_it_would_be_lost(changing: Desk, warehouse: Warehouse) -> None:
    """Sabotage: the overlap is what brings it."""
    changing.more = "cursor = " + CURSOR.format(0, "2000-01-01T00:00:00Z")
    assert late_commit(changing, warehouse) == {"2016-01-01": 1, "2016-03-01": 3}


@pytest.mark.parametrize(("comparison", "brought"), [(">=", True), (">", False)])
def test_a_row_exactly_at_the_cursor(changing: Desk, warehouse: Warehouse, comparison: str, brought: bool) -> None:
    changing.more = "cursor = " + CURSOR.format(0, "2000-01-01T00:00:00Z")
    changing.query = CHANGED.replace(">=", comparison)
    put(warehouse, ("2016-01-01", 1, "2016-03-01 10:00Z"))
    changing.load()
    put(warehouse, ("2016-02-01", 2, "2016-03-01 10:00Z"))
    changing.load()
    assert ("2016-02-01" in changing.known()) == brought


@pytest.mark.parametrize(
    ("column", "start", "overlap", "places"),
    [
        ("timestamptz", "2000-01-01T00:00:00Z", 7200, ["2016-03-01 09:00Z", "2016-03-01 10:00Z", "2016-03-01 08:30Z"]),
        ("timestamp", "2000-01-01T00:00:00", 7200, ["2016-03-01 09:00", "2016-03-01 10:00", "2016-03-01 08:30"]),
        ("date", "2000-01-01", 86_401, ["2016-02-28", "2016-03-02", "2016-02-29"]),
        ("bigint", "0", 5, ["9007199254740991", "9007199254740999", "9007199254740994"]),
    ],
)
def test_a_cursor_is_a_moment_a_day_or_a_number(
    changing: Desk, warehouse: Warehouse, column: LiteralString, start: str, overlap: int, places: list[str]
) -> None:
    retype(warehouse, column)
    changing.more = "cursor = " + CURSOR.format(overlap, start)
    first, newest, late = places
    put(warehouse, ("2016-01-01", 1, first), ("2016-03-01", 3, newest))
    changing.load()
    put(warehouse, ("2016-02-01", 2, late))
    assert [one["fetched"] for one in changing.load()] == [
        2 if column != "timestamptz" and column != "timestamp" else 3
    ]
    assert changing.known() == {"2016-01-01": 1, "2016-02-01": 2, "2016-03-01": 3}


def test_nothing_new_is_no_load_and_does_not_move_it(changing: Desk, warehouse: Warehouse) -> None:
    put(warehouse, ("2016-01-01", 1, "2016-03-01 10:00Z"))
    changing.load()
    (stands,) = changing.rows("SELECT stands FROM position")
    assert [one["outcome"] for _ in range(2) for one in changing.load()] == [
        "loaded",
        "nothing new",
    ]  # the overlap, once
    warehouse.run("DELETE FROM macro.data")
    assert changing.load() == []
    assert changing.rows("SELECT stands FROM position") == [stands] == [("2016-03-01 10:00:00+00:00",)]


def test_a_load_that_was_blocked_does_not_move_it(changing: Desk, warehouse: Warehouse) -> None:
    changing.also = '[[check]]\nname = "no"\naction = "block"\nsql = "SELECT value FROM latest WHERE value > 1"\n'
    put(warehouse, ("2016-01-01", 2, "2016-03-01 10:00Z"))
    assert changing.load()[0]["outcome"] == "blocked"
    assert changing.count("position") == 0
    changing.also = ""
    changing.load()
    assert changing.known() == {"2016-01-01": 2}


def test_another_query_begins_anew(changing: Desk, warehouse: Warehouse) -> None:
    """Or the past of a series that it names now, and did not before, would never come."""
    put(warehouse, ("2016-01-01", 1, "2016-03-01 10:00Z"))
    put(warehouse, ("2015-01-01", 2, "2015-03-01 10:00Z"), series="B")
    changing.query = CHANGED.replace("WHERE", "WHERE series = 'A' AND")
    changing.load()
    changing.names, changing.query = ("A", "B"), CHANGED.replace("WHERE", "WHERE series IN ('A', 'B') AND")
    changing.load()
    assert changing.known(name="B") == {"2015-01-01": 2}


@pytest.mark.parametrize(
    ("column", "start", "zone"),
    [
        ("timestamptz", "2000-01-01T00:00:00Z", UTC),
        ("timestamp", "2000-01-01T00:00:00", timezone(timedelta(hours=-11))),
        ("date", "2000-01-01", timezone(timedelta(hours=-11))),
    ],
)
def test_a_clock_that_is_wrong_does_not_hide_what_follows(
    changing: Desk, warehouse: Warehouse, column: LiteralString, start: str, zone: timezone
) -> None:
    retype(warehouse, column)
    changing.more = "cursor = " + CURSOR.format(0, start)
    put(warehouse, ("2016-01-01", 1, "2999-01-01 00:00Z"))
    changing.load()
    put(warehouse, ("2016-02-01", 2, f"{datetime.now(zone)}"))
    changing.load()
    assert changing.known() == {"2016-01-01": 1, "2016-02-01": 2}


@pytest.mark.parametrize(
    ("column", "start"),
    [("timestamptz", "0001-01-01T00:00:00Z"), ("timestamp", "0001-01-01T00:00:00"), ("date", "0001-01-01")],
)
def test_it_may_start_where_the_calendar_does(
    changing: Desk, warehouse: Warehouse, column: LiteralString, start: str
) -> None:
    retype(warehouse, column)
    changing.more = "cursor = " + CURSOR.format(3600, start)
    for month in ("01", "02"):
        put(warehouse, (f"2016-{month}-01", 1, "0001-01-01 00:00Z"))
        changing.load()
    assert changing.known() == {"2016-01-01": 1, "2016-02-01": 1}


def test_a_row_whose_cursor_is_null_does_not_move_it(changing: Desk, warehouse: Warehouse) -> None:
    changing.query = CHANGED.replace("changed >= :cursor", "(changed >= :cursor OR changed IS NULL)")
    put(warehouse, ("2016-01-01", 1, None))
    changing.load()
    assert changing.rows("SELECT stands FROM position") == [("2000-01-01 00:00:00+00:00",)]


# ---- how it asks ----


def options(**more: Any) -> source.Options:
    given = {"url_variable": "WAREHOUSE_URL", "query": ALL, **more}
    return validate(source.Options, given, "service.toml, [source.warehouse]")


def test_rows_come_in_portions_of_one_snapshot(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "PORTION", 10)
    warehouse.run("INSERT INTO macro.data SELECT 'A', '2016-01-01', n FROM generate_series(1, 100) n")
    with source._answer("warehouse", options(query="SELECT value FROM macro.data"), None) as result:
        found = iter(result)
        values = [next(found)[0] for _ in range(2)]
        running = "SELECT query, backend_xmin IS NOT NULL FROM pg_stat_activity WHERE usename = 'reader'"
        ((query, snapshot),) = warehouse.run(running)
        assert (re.sub("c_.*", "c", query), snapshot) == ('FETCH FORWARD 10 FROM "c', True)
        warehouse.run("UPDATE macro.data SET value = -1")
        warehouse.run("DELETE FROM macro.data WHERE value IS NOT NULL")
        values += [value for (value,) in found]
    assert sorted(values) == list(range(1, 101))


def test_it_cannot_write(desk: Desk, warehouse: Warehouse) -> None:
    warehouse.run(
        "CREATE FUNCTION macro.writes() RETURNS int SECURITY DEFINER LANGUAGE sql AS"
        " 'INSERT INTO macro.data VALUES (''A'') RETURNING 1'"
    )
    try:
        desk.query = "SELECT 'A' AS series, DATE '2016-01-01' AS time, macro.writes() AS value"
        assert desk.refused().startswith("warehouse: the query fails: cannot execute INSERT in a read-only transaction")
        desk.query = "DELETE FROM macro.data RETURNING *"
        assert desk.refused().startswith("warehouse: the query fails: ")
        assert warehouse.run("SELECT count(*) FROM macro.data") == [(0,)]
    finally:
        warehouse.run("DROP FUNCTION macro.writes")


def test_a_query_that_takes_too_long_is_ended(desk: Desk) -> None:
    desk.query, desk.more = (
        "SELECT 'A' AS series, DATE '2016-01-01' AS time, pg_sleep(60) AS value",
        "timeout_seconds = 0.2",
    )
    assert desk.refused() == "warehouse: the query fails: canceling statement due to statement timeout"


def test_a_query_that_fails_names_what_the_database_says(desk: Desk) -> None:
    desk.query = "SELECT series, time, valu FROM macro.data"
    says = desk.refused()
    assert says.startswith('warehouse: the query fails: column "valu" does not exist')
    assert 'Perhaps you meant to reference the column "data.value"' in says
    desk.query = (
        "SELECT 'A' AS series, DATE '2016-01-01' AS time, 1 / (50000 - n) AS value FROM generate_series(1, 99999) n"
    )
    assert desk.refused() == "warehouse: the query fails: division by zero"  # after ten portions


def test_statements_go_before_the_query(desk: Desk, warehouse: Warehouse) -> None:
    put(warehouse, ("2016-01-01", 1, None))
    desk.query, desk.more = ALL.replace("macro.", ""), "before = [\"SET LOCAL search_path = 'macro'\"]"
    desk.load()
    assert desk.known() == {"2016-01-01": 1}


def test_a_dry_run_does_nothing_and_says_what_it_would(changing: Desk, warehouse: Warehouse) -> None:
    put(warehouse, ("2016-01-01", 1, "2016-03-01 10:00Z"))
    (result,) = changing.load(dry=True)
    assert (result["outcome"], result["new"]) == ("would load", 1)
    assert [changing.count(table) for table in ("load", "raw_object", "observation", "position")] == [0] * 4


def test_a_window_is_refused(desk: Desk) -> None:
    for window in (Window(first=date(2016, 1, 1)), Window(last=date(2016, 1, 1))):
        with pytest.raises(UsageError, match="--from and --to .* leave them out"):
            desk.load(window=window)


def test_another_dialect_is_configuration(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite: its days and moments are texts, and its numbers of any type."""
    path = desk.root / "macro.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE data (id INTEGER PRIMARY KEY, series TEXT, time TEXT, value, known TEXT)")
        row = "INSERT INTO data (series, time, value, known) VALUES (?, ?, ?, ?)"
        other.execute(row, ("A", "2016-01-01", 1, "2016-02-05"))
        other.execute(row, ("A", "2016-02-01", 2.5, "2016-03-05T01:00:00+02:00"))
        other.execute(row, ("A", "2016-03-01", "3.5", "2016-04-05 01:00:00"))
    monkeypatch.setenv("WAREHOUSE_URL", f"sqlite:///{path}")
    desk.query = "SELECT * FROM data WHERE id >= :cursor ORDER BY id"
    desk.more = 'known_from_column = "known"\ncursor = { column = "id", overlap = 1, start = 0 }\n'
    desk.more += 'before = ["PRAGMA query_only = on"]'
    desk.load()
    assert desk.held() == [("2016-01-01", "2016-02-05", 1), ("2016-02-01", "2016-03-04", 2.5)]
    assert desk.quarantined() == [("date", "known has no time zone")]
    with sqlite3.connect(path) as other:
        other.execute(row, ("A", "2016-04-01", 4, "2016-05-05"))
    desk.load()
    assert [one["request"]["file"] for (one,) in desk.rows("SELECT to_jsonb(load) FROM load ORDER BY load_id")] == [
        "query/0",
        "query/2",
    ]
    assert desk.known()["2016-04-01"] == 4


# ---- what does not fit ----

NUMBERS = {
    "huge integer": ("9223372036854775807", 2.0**63),
    "more digits than a float has": ("0.1000000000000000055511151231257827", 0.1),
    "float": ("'-0.1'::float8", -0.1),
    "single": ("1.5::real", 1.5),
    "text": ("'1e3'::text", 1000.0),
    "decimal that is none": ("'NaN'::numeric", "finite"),
    "infinite decimal": ("'-Infinity'::numeric", "finite"),
    "infinite float": ("'Infinity'::float8", "finite"),
    "float that is none": ("'NaN'::float8", "finite"),
    "larger than a float": ("1e400::numeric", "finite"),
    "text that is none": ("'n/a'::text", "number"),
    "empty text": ("''::text", "number"),
    "grouped": ("'1_000'::text", "number"),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_at_the_edge(desk: Desk, case: str) -> None:
    literal, expected = NUMBERS[case]
    desk.query = f"SELECT 'A' AS series, DATE '2016-01-01' AS time, {literal} AS value"
    desk.load()
    if isinstance(expected, str):
        assert [rule for rule, _ in desk.quarantined()] == [expected]
    else:
        assert (desk.known(), desk.quarantined()) == ({"2016-01-01": expected}, [])


GOOD = {"series": "'A'", "time": "DATE '2016-01-01'", "value": "1", "known": "TIMESTAMPTZ '2016-02-05 00:00Z'"}
COLUMNS = {
    "boolean": ({"value": "true"}, "value_column 'value' is boolean, not decimal or float or integer or text: cast it"),
    "day as a value": ({"value": "DATE '2016-01-01'"}, "value_column 'value' is date, not"),
    "number as a period": ({"time": "2016"}, "time_column 'time' is integer, not date or text or timestamp: in the"),
    "moment as a period": ({"time": "now()"}, "is timestamp with time zone, not date or text or timestamp: in the"),
    "no time zone": (
        {"known": "TIMESTAMP '2016-02-05'"},
        "known_from_column 'known' is timestamp, not date or text or timestamp with time zone: name its zone in the",
    ),
    "decimal as a key": ({"series": "1.5"}, "series_column 'series' is decimal, not integer or text"),
    "list": ({"value": "ARRAY[1]"}, "the query fails: a list cannot be kept: leave its column out, or cast it"),
    "bytes": ({"more": "'x'::bytea"}, "the query fails: a bytes cannot be kept"),
    "endless moment": ({"known": "'infinity'::timestamptz"}, "the query fails: timestamp too large"),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_a_column_of_another_type_is_refused(desk: Desk, case: str) -> None:
    change, says = COLUMNS[case]
    desk.query = "SELECT " + ", ".join(f"{literal} AS {name}" for name, literal in {**GOOD, **change}.items())
    desk.more = 'known_from_column = "known"'
    found = desk.refused()
    assert found.startswith("warehouse: ")
    assert says in found


def test_a_type_that_changes_on_the_way_is_refused_whole(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    path = desk.root / "macro.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE data (series, time, value)")
        other.execute("INSERT INTO data VALUES ('A', '2016-01-01', 1), ('A', 2016, 1)")
    monkeypatch.setenv("WAREHOUSE_URL", f"sqlite:///{path}")
    desk.query = "SELECT * FROM data"
    assert "time_column 'time' is integer" in desk.refused()


@pytest.mark.parametrize(
    ("query", "says"),
    [
        (
            "SELECT series, time, value AS val FROM macro.data",
            "the query gives no column 'value', the value_column; did you mean",
        ),
        ("SELECT 1 AS series, 2 AS time, 3 AS value, 4 AS value", "gives a column twice: series, time, value, value"),
        ("SET search_path = macro", "the query fails: "),
        ("SELECT 1 AS value; SELECT 2 AS value", "the query fails: cannot insert multiple commands"),
    ],
)
def test_a_query_of_other_columns_is_refused(desk: Desk, warehouse: Warehouse, query: str, says: str) -> None:
    put(warehouse, ("2016-01-01", 1, None))
    desk.query = query
    assert says in desk.refused()


def test_a_cursor_of_another_type_is_refused(changing: Desk, warehouse: Warehouse) -> None:
    put(warehouse, ("2016-01-01", 1, "2016-03-01 10:00Z"))
    changing.more = "cursor = " + CURSOR.format(0, "2000-01-01T00:00:00")
    says = "warehouse: cursor 'changed' is timestamp with time zone, not timestamp: give its start in the same type"
    assert changing.refused() == says
    changing.more = changing.more.replace('"changed"', '"changes"')
    assert "no column 'changes', the cursor; did you mean 'changed'?" in changing.refused()


def test_a_bad_row_goes_to_quarantine_and_the_others_do_not(desk: Desk, warehouse: Warehouse) -> None:
    desk.query, desk.more = "SELECT * FROM macro.data ORDER BY value", 'known_from_column = "known_from"'
    for row in [("A", "2016-01-01", 1, "2016-02-05"), (None, "2016-01-01", 2, "2016-02-05"),
                ("AA", "2016-01-01", 3, "2016-02-05"), ("A", None, 4, "2016-02-05"), ("A", "2016-01-01", 5, None),
                ("A", "2016-01-31", 6, "2016-02-05"), ("A", "2016-01-01", 7, "2016-02-06"),
                ("A", "2016-03-01", 8, "2016-02-05")]:  # fmt: skip
        warehouse.run("INSERT INTO macro.data VALUES (%s, %s, %s, %s)", *row)
    (result,) = desk.load()
    assert (result["fetched"], result["new"], result["changed"], result["quarantined"]) == (8, 1, 1, 6)
    assert desk.held() == [("2016-01-01", "2016-02-05", 1), ("2016-01-01", "2016-02-06", 7)]
    assert sorted(desk.quarantined()) == [
        ("date", "known_from is NULL"),
        ("date", "time is NULL"),
        ("duplicate", "line 2 already gave A for the period of 2016-01-01"),
        ("future", f"period 2016-03-01 known from 2016-02-05, loaded {datetime.now(UTC):%Y-%m-%d}"),
        ("series", "'AA' is no key of a series; did you mean 'A'?"),
        ("series", "the key is NULL"),
    ]
    assert '["A",null,"4"' in str(desk.rows("SELECT raw FROM quarantine")).replace(", ", ",")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "url": ({"url": "postgresql://me:geheim@x/y"}, "url: unknown key"),
    "url as a name": ({"url_variable": "postgresql://me:geheim@x/y"}, "url_variable: names an environment variable"),
    "misspelt": ({"querry": ALL}, "did you mean 'query'"),
    "parameter": ({"query": "SELECT :what"}, "query: there is no parameter :what, only :cursor"),
    "cursor unused": ({"cursor": {"column": "c", "overlap": 1, "start": 0}}, "query and cursor go together"),
    "cursor unknown": ({"query": CHANGED}, "query and cursor go together"),
    "no overlap": ({"query": CHANGED, "cursor": {"column": "c", "start": 0}}, "cursor.overlap: Field required"),
    "overlap": ({"query": CHANGED, "cursor": {"column": "c", "overlap": -1, "start": 0}}, "greater than or equal to 0"),
    "complete": ({"complete": True, "known_from_column": "k"}, "complete: only a query of all there is"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_key_of_the_source(case: str) -> None:
    keys, says = WRONG[case]
    with pytest.raises(UsageError, match=re.escape(says)) as refusal:
        options(**keys)
    assert "geheim" not in str(refusal.value)


def test_keys_that_do_not_fit_the_series(desk: Desk) -> None:
    desk.names = ("A", "B")
    for keys, says in [('C = "c"', "C is no series of this source"), ('A = "B"', "one key stands for two series")]:
        desk.more = f"keys = {{ {keys} }}"
        with pytest.raises(UsageError, match=f"keys: {says}"):
            desk.load()


# ---- the login ----


def closed_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return str(taken.getsockname()[1])


@contextmanager
def told_by(monkeypatch: pytest.MonkeyPatch, fault: str, given: str) -> Iterator[None]:
    """A driver that says a login in an error of its own."""

    def connect(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"cannot use {fault.format(url=given, password=PASSWORD, again=repr(PASSWORD))}, sorry")

    with monkeypatch.context() as patch:
        patch.setattr(sqlalchemy.Engine, "connect", connect)
        yield


def leaks(desk: Desk, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Any:
    """Where a password shows: what was said, raised and logged, the tables, the kept bytes."""
    wrong, put_in = "an0ther-w/rong:one", "WAREHOUSE_URL"
    errors: list[str] = []

    def fails() -> None:
        with pytest.raises((SourceError, UsageError)) as refusal:
            desk.load()
        errors.extend([str(refusal.value), repr(refusal.getrepr(style="long"))])

    with caplog.at_level(logging.DEBUG):
        desk.load()
        for given in (warehouse.url(wrong), warehouse.url(host="127.0.0.1", port=closed_port()),
                      f"postgresql://reader:{PASSWORD}@nowhere:12x/y", f"magic://reader:{wrong}@x/y",
                      "postgresql://reader@/postgres?passfile=x&password=" + wrong):  # fmt: skip
            monkeypatch.setenv(put_in, given)
            fails()
        monkeypatch.setenv(put_in, warehouse.url())
        for fault in ("{url}", "the password {password}", "{again}"):
            with told_by(monkeypatch, fault, warehouse.url()):
                fails()
    seen = {"said": str(desk.said), "raised": "\n".join(errors), "logged": caplog.text, **desk.everything()}
    seen["service.toml"] = (desk.root / "service.toml").read_text("utf-8")
    assert "sorry" in seen["attempt"]  # there was something to be seen
    secrets = [
        PASSWORD,
        repr(PASSWORD)[1:-1],
        wrong,
        *(re.findall(":([^:@]*)@", warehouse.url(one))[0] for one in (PASSWORD, wrong)),
    ]
    return [where for where, text in seen.items() if any(secret in text for secret in secrets)]


def test_the_login_shows_nowhere(
    desk: Desk, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(warehouse, ("2016-01-01", 1, None))
    assert leaks(desk, warehouse, monkeypatch, caplog) == []


def test_what_a_driver_says_would_show_it(
    desk: Desk, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Sabotage: errors are passed on as they come."""
    put(warehouse, ("2016-01-01", 1, None))
    monkeypatch.setattr(source, "_says", lambda error, *_: str(error))
    assert leaks(desk, warehouse, monkeypatch, caplog) == ["raised", "attempt"]


def test_a_wrong_password_is_said_in_one_line(
    desk: Desk, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAREHOUSE_URL", warehouse.url("wrong-password"))
    says = desk.refused()
    assert says.startswith("warehouse: WAREHOUSE_URL lets nobody in: ")
    assert says.endswith('FATAL: password authentication failed for user "reader"')


def test_a_wrong_host_is_said_in_one_line(desk: Desk, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_URL", warehouse.url(host="127.0.0.1", port=closed_port()))
    says = desk.refused()
    assert says.startswith("warehouse: WAREHOUSE_URL lets nobody in: ")
    assert "Connection refused" in says


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "WAREHOUSE_URL is not set"),
        ("", "WAREHOUSE_URL is not set"),
        ("geheim", "WAREHOUSE_URL: it is no URL, such as postgresql://"),
        ("postgresql://me:geheim@host:54x2/db", "WAREHOUSE_URL: it is no URL, such as postgresql://"),
        ("snowflake://me:geheim@account/db", "nothing here reads snowflake: name its dialect in requirements/sql.in"),
        ("mysql+pymysql://me:geheim@host/db", "nothing here reads mysql+pymysql: name its dialect"),
    ],
)
def test_a_url_that_cannot_be_used(desk: Desk, monkeypatch: pytest.MonkeyPatch, given: str | None, says: str) -> None:
    monkeypatch.delenv("WAREHOUSE_URL")
    if given is not None:
        monkeypatch.setenv("WAREHOUSE_URL", given)
    with pytest.raises(UsageError, match=re.escape(says)) as refusal:
        desk.load()
    assert "geheim" not in str(refusal.value)


def test_a_warehouse_is_never_sent_the_password_of_this_database(
    desk: Desk, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PGPASSWORD is the loader's; here it would even be right."""
    put(warehouse, ("2016-01-01", 1, None))
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    monkeypatch.setenv("WAREHOUSE_URL", warehouse.url("").replace("reader:@", "reader@"))
    assert "no password supplied" in desk.refused()


# ---- the same data from two kinds of source ----


def test_gdp_from_files_and_from_a_warehouse_has_the_same_periods_and_times(
    desk: Desk, server_of_others: Warehouse
) -> None:
    desk.query = "SELECT * FROM macro.observation WHERE series = 'GDPC1' ORDER BY known_from, period"
    desk.names, desk.frequency, desk.also = ("REAL_GDP",), "quarter", GDP
    desk.more = 'keys = { REAL_GDP = "GDPC1" }\ntime_column = "period"\nknown_from_column = "known_from"'
    server_of_others.fill(SAMPLE / "data/us-macro")
    run.load(desk.contract, desk.url, SAMPLE, desk.said.append)
    assert len(desk.held("GDPC1")) > 100
    assert desk.held("REAL_GDP") == desk.held("GDPC1")


def test_kept_bytes_are_read_again_without_the_warehouse(
    desk: Desk, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(warehouse, ("2016-01-01", 1, None), series="B")
    desk.load()
    assert desk.quarantined() == [("series", "'B' is no key of a series")]
    monkeypatch.delenv("WAREHOUSE_URL")
    desk.names = ("A", "B")
    desk.again(1, "retry", "B was not declared")
    assert desk.known(name="B") == {"2016-01-01": 1}


def test_the_kept_bytes_show_types_and_values_as_they_were(desk: Desk) -> None:
    desk.query = """
        SELECT 'A' AS series, DATE '2016-01-01' AS time, 1.10 AS value, '' AS empty, NULL AS nothing, 0.1::float8 AS f,
            TIMESTAMPTZ '2016-01-01 12:00:00.5+02' AS zoned, TIMESTAMP '2016-01-01 12:00' AS local, true AS flag
        UNION ALL SELECT 'Ä', NULL, 12345678901234567890.123456789, NULL, NULL, '-Infinity', NULL, NULL, NULL"""
    desk.load()
    (kept,) = desk.kept()
    assert kept.decode() == (
        '{"series":"text","time":"date","value":"decimal","empty":"text","nothing":null,"f":"float",'
        '"zoned":"timestamp with time zone","local":"timestamp","flag":"boolean"}\n'
        '["A","2016-01-01","1.10","",null,0.1,"2016-01-01 10:00:00.500000+00:00","2016-01-01 12:00:00",true]\n'
        '["Ä",null,"12345678901234567890.123456789",null,null,-Infinity,null,null,null]\n'
    )


def test_the_example_of_the_documentation(
    desk: Desk, server_of_others: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    example, *_ = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/sql.md").read_text("utf-8"), re.DOTALL)
    sql = "INSERT INTO macro.observation VALUES ('us.houst', '2016-05-01', 1164, '2016-06-17 12:30Z', now())"
    server_of_others.run(sql)
    try:
        desk.load(desk.declared(HEAD.format(target="STARTS") + example))
        assert desk.held("STARTS") == [("2016-05-01", "2016-06-17", 1164)]
    finally:
        server_of_others.run("DELETE FROM macro.observation WHERE series = 'us.houst'")


# ---- rows as bytes, and back ----

ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
CELLS = (
    st.none() | st.text() | st.booleans() | st.integers() | st.floats() | st.decimals() | st.dates() | st.datetimes()
    | st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=ZONES)
)  # fmt: skip


def back(kind: str | None, cell: Any) -> Any:
    """A value from what was kept of it."""
    makes: dict[str | None, Callable[[Any], Any]] = {
        "decimal": Decimal, "date": date.fromisoformat, "timestamp": datetime.fromisoformat,
        "timestamp with time zone": datetime.fromisoformat,
    }  # fmt: skip
    return cell if cell is None else makes.get(kind, lambda same: same)(cell)


@settings(deadline=None)
@given(st.integers(1, 4).flatmap(lambda width: st.lists(st.tuples(*[CELLS] * width), min_size=1, max_size=6)))
def test_any_row_is_kept_to_the_type_and_the_digit(table: list[tuple[Any, ...]]) -> None:
    names, file = [f"c{number}" for number in range(len(table[0]))], io.StringIO()
    assert [row for _, row in rows.written(names, table, file)] == table
    types: dict[str, str | None] = {}
    found = []
    for line in file.getvalue().split("\n")[:-1]:
        kept = json.loads(line)
        if isinstance(kept, dict):
            types = kept
        else:
            found.append(tuple(back(kind, cell) for kind, cell in zip(types.values(), kept, strict=True)))
    assert [[(type(one), repr(one)) for one in row] for row in found] == [
        [(type(one), repr(one)) for one in map(plain, row)] for row in table
    ]
    again = io.StringIO()
    list(rows.written(names, table, again))
    assert again.getvalue() == file.getvalue()


def plain(value: Any) -> Any:
    """Equal, and written alike: a zone is its offset."""
    return datetime.fromisoformat(value.isoformat()) if isinstance(value, datetime) else value


def parsed(content: bytes, folder: Path, **more: Any) -> list[Cell | Reject]:
    path = folder / "rows"
    path.write_bytes(content)
    series = {"A": Series(source="warehouse", frequency="month", unit="1", release_lag_days=0)}
    return list(source.parse(Payload("query", path, "application/jsonl", None), options(**more), series))


VALUES = st.none() | st.integers(-(2**70), 2**70) | st.floats() | st.decimals(allow_nan=True, allow_infinity=True)
KNOWN = st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1), timezones=ZONES)
HISTORY = st.dictionaries(st.tuples(st.integers(0, 2000), KNOWN), VALUES, max_size=10)


@settings(deadline=None)
@given(HISTORY)
def test_what_is_written_is_read_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, history: dict[tuple[int, datetime], Any]
) -> None:
    """Any history: each finite value a cell, each NULL a missing one, the others in quarantine; every one of them."""
    file = io.StringIO()
    table = [
        ("A", date(1900 + month // 12, month % 12 + 1, 15), value, known) for (month, known), value in history.items()
    ]
    list(rows.written(["series", "time", "value", "known"], table, file))
    found = parsed(file.getvalue().encode(), tmp_path_factory.getbasetemp(), known_from_column="known")
    assert len(found) == len(table)
    for one, (_, time, value, known) in zip(found, table, strict=True):
        assert one.valid_time and one.valid_time.date() == time.replace(day=1)
        if value is None:
            assert isinstance(one, Cell) and (one.state, math.isnan(one.value)) == (MISSING, True)
        elif isinstance(one, Cell):
            assert (one.known_from, one.value, one.state) == (known, float(value), 0)
            assert str(one.raw) == str(value)
            assert math.copysign(1, one.value) == math.copysign(1, value)
        else:
            assert one.rule in {"finite", "number"}  # a signalling NaN is no number at all
            assert not Decimal(value).is_finite() or abs(Decimal(value)) > Decimal("1.7e308")


JSON = {type(None), str, bool, int, float}
KEPT = b'{"series":"text","time":"date","value":"decimal"}\n["A","2016-01-01","1.5"]\n["A","2016-02-01",null]\n'


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(0, len(KEPT)), st.booleans())
def test_whatever_the_bytes_are_they_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, place: int, replace: bool
) -> None:
    content = KEPT[:place] + junk + KEPT[place + replace * len(junk) :]
    for one in (content, junk):
        try:
            parsed(one, tmp_path_factory.getbasetemp())
        except SourceError as refusal:
            assert "\n" not in str(refusal)


@settings(deadline=None)
@given(st.lists(st.recursive(CELLS.filter(lambda one: type(one) in JSON), st.lists), min_size=3, max_size=3))
def test_whatever_the_cells_are_they_are_read_or_rejected(
    tmp_path_factory: pytest.TempPathFactory, cells: list[Any]
) -> None:
    for place in range(3):
        row = ["A", "2016-01-01", "1"]
        row[place] = cells[place]
        content = KEPT.splitlines()[0] + b"\n" + json.dumps(row).encode() + b"\n"
        assert len(parsed(content, tmp_path_factory.getbasetemp())) == 1
