"""Each check of service.toml once silent and once red, by `load` and `doctor` on a project of two series."""

import json
import math
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from model_service.cli import main
from model_service.contract import Series
from model_service.loader import MISSING, VALUE, Cell, checks, parse_value

TOML = """
check = [{checks}]
[service]
name = "small"
[image]
repository = "localhost/small"
base = "python"
[source.shop]
kind = "csv"
path = "data/*.csv"
layout = "wide"
date = {{ column = "Month", format = "%Y-%m" }}
vintage = {{ from = "file_name", format = "%Y-%m-%d" }}
{source}
[series.A]
source = "shop"
frequency = "month"
unit = "pieces"
release_lag_days = 10
{a}
[series.B]
source = "shop"
frequency = "month"
unit = "pieces"
release_lag_days = 10
{b}
[target]
series = "A"
horizons = [1]
[[feature]]
series = "A"
[train]
first_origin = "2020-01-01"
"""
NEWEST = "load_id = (SELECT max(load_id) FROM load)"
STEADY: list[float | str] = [100 + n + n % 3 for n in range(36)]  # steps of 2, 2 and -1
RISING = '{{ name = "rising", action = "{}", sql = """{}""" }}'
LOW = "SELECT series, valid_time, value FROM latest WHERE value < 100 AND series LIKE 'A%' -- 100 %\n;"
JUNE, JULY = date(2023, 6, 15), date(2023, 7, 15)


class Small:
    """A project with the series A and B, months that end before each file's day, and a database of its own."""

    def __init__(self, root: Path, url: str, said: pytest.CaptureFixture[str]) -> None:
        self.root, self.url, self.said = root, url, said
        (root / "data").mkdir()

    def declare(self, a: str = "", b: str = "", source: str = "", checks: str = "") -> None:
        (self.root / "service.toml").write_text(TOML.format(a=a, b=b, source=source, checks=checks))

    def file(self, day: date, a: list[Any] = STEADY, b: list[Any] = STEADY) -> None:
        """A file of that day: the last value of each is of the month before; "" is a gap."""
        last = day.year * 12 + day.month - 2
        months = [f"{(last - n) // 12}-{(last - n) % 12 + 1:02}" for n in reversed(range(len(a)))]
        lines = [f"{month},{one},{other}" for month, one, other in zip(months, a, b, strict=True)]
        (self.root / f"data/{day}.csv").write_text("\n".join(["Month,A,B", *lines]) + "\n")

    def run(self, *words: str) -> tuple[int, str]:
        """Exit code, and all that was said."""
        self.said.readouterr()
        code = main(list(words))
        return code, "".join(self.said.readouterr())

    def rows(self, sql: str) -> list[Any]:
        with psycopg.connect(self.url) as connection:
            return connection.execute(sql).fetchall()

    def failed(self) -> list[tuple[str, str]]:
        """Rule and subject of the newest load's checks that failed."""
        return self.rows(f"SELECT rule, subject FROM check_result WHERE NOT ok AND {NEWEST}")


@pytest.fixture
def small(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Small:
    monkeypatch.setenv("PROJECT_ROOT", str(tmp_path))
    monkeypatch.setenv("DATABASE_URL", url)
    return Small(tmp_path, url, capsys)


def put(values: list[Any], place: int, value: Any) -> list[Any]:
    return [*values[:place], value, *values[place + 1 :]]


ALLOWED = "allowed = [" + ", ".join(map(str, STEADY)) + "]"
CELLS = {
    "range": ("range = [100, 137]", "+250.0", "250 is outside the range [100, 137]"),  # both ends are good
    "allowed": (ALLOWED, "99.5", "99.5 is not among the allowed values 100,"),
}


@pytest.mark.ml_test("data-1", sabotage=True)
@pytest.mark.parametrize("rule", CELLS)
def test_a_cell_that_breaks_its_rule_is_quarantined_and_the_others_load(small: Small, rule: str) -> None:
    declared, bad, says = CELLS[rule]
    small.declare(a=declared)
    small.file(JUNE)
    assert small.run("load")[0] == 0
    assert small.rows("SELECT * FROM quarantine") == []
    small.file(JULY, a=put(STEADY, 4, bad), b=put(STEADY, 4, bad))
    assert small.run("load")[0] == 0
    ((*cell, detail),) = small.rows("SELECT series, line, raw, rule, valid_time, detail FROM quarantine")
    assert cell == ["A", 6, bad, rule, datetime(2020, 11, 1, tzinfo=UTC)]
    assert says in detail
    assert len(small.rows(f"SELECT FROM observation WHERE value = {bad}")) == 1  # B has no such rule
    assert small.rows(f"SELECT fetched, quarantined FROM load WHERE {NEWEST}") == [(72, 1)]


def test_a_missing_value_is_none_that_is_not_allowed() -> None:
    declared = {"source": "s", "frequency": "month", "unit": "u", "release_lag_days": 1, "allowed": [1]}
    told, now = Cell("A", datetime(2020, 1, 1, tzinfo=UTC), None, math.nan, 1, MISSING), datetime.now(UTC)
    ((good, refused),) = checks.check_cells([told], {"A": 1}, {"A": Series.model_validate(declared)}, now)
    assert (len(good), refused) == (1, [])


def test_a_cell_that_breaks_two_rules_is_one_cell_by_the_first(small: Small) -> None:
    small.declare(a=f"range = [0, 200]\n{ALLOWED}")
    small.file(JUNE, a=put(STEADY, 4, 250))
    assert small.run("load")[0] == 0
    assert small.rows("SELECT line, rule FROM quarantine") == [(6, "range")]
    assert small.rows("SELECT fetched, new, quarantined FROM load") == [(72, 71, 1)]


def test_what_a_rule_refused_stays_out_when_the_bytes_are_read_again_under_other_rules(small: Small) -> None:
    small.declare(a="range = [0, 200]")
    small.file(JULY, a=put(STEADY, 4, 250))
    assert small.run("load")[0] == 0
    small.declare()
    (small.root / "data" / f"{JULY}.csv").unlink()
    small.file(JUNE, a=put(STEADY, 5, 111))  # of the same month something else: what July said is asked again
    assert small.run("load")[0] == 0
    assert small.rows("SELECT FROM observation WHERE value = 250") == []


LOADS = {
    "jump": ("jump = 10", put(STEADY, 20, 160), STEADY, "changes by 40 in 2022-03-01, 20.0 times its usual 2"),
    "flat": ("flat = 6", STEADY[:30] + [7] * 6, STEADY, "the newest 6 values are the same, up to 2023-06-01"),
    "shift": ("shift = 5", [value * 2 for value in STEADY], STEADY, "times its usual change of"),  # type: ignore[operator]
    "max_missing": ("max_missing = 0.05", [100, *[""] * 5, *STEADY], [*[""] * 6, *STEADY], "4 of 42 periods"),
    "parts": ('parts = { series = ["B"], tolerance = 0.5 }', STEADY, put(STEADY, 3, 105), "off by 2 at most"),
}


@pytest.mark.ml_test("monitor-2", sabotage=True)
@pytest.mark.parametrize("rule", LOADS)
@pytest.mark.parametrize("action", ["mark", "warn", "block"])
def test_a_load_that_fails_a_check_is_marked_said_or_blocked(small: Small, rule: str, action: str) -> None:
    declared, a, b, says = LOADS[rule]
    if action != "mark":  # which is the default
        table = declared if rule == "parts" else declared.replace(" = ", " = { limit = ") + " }"
        declared = table.replace(" }", f', action = "{action}" }}')
    small.declare(a=declared)
    small.file(JUNE)
    assert small.run("load")[0] == 0
    assert small.failed() == []
    assert rule in {"shift", *(name for (name,) in small.rows("SELECT rule FROM check_result WHERE ok"))}
    small.file(JULY, a=a, b=b)
    code, said = small.run("load")
    assert code == (3 if action == "block" else 0)
    assert f"{action}: {rule} of A: " in said
    assert says in said
    assert small.failed() == [(rule, "A")]
    status = {"mark": "marked", "warn": "committed", "block": "blocked"}[action]
    assert small.rows(f"SELECT status FROM load WHERE {NEWEST}") == [(status,)]
    assert bool(small.rows(f"SELECT FROM observation WHERE {NEWEST}")) == (action != "block")


def test_a_blocked_load_leaves_no_rows_and_loads_when_it_is_mended(small: Small) -> None:
    small.declare(a='range = [0, 500]\njump = { limit = 10, action = "block" }')
    small.file(JUNE, a=put(put(STEADY, 20, 160), 4, 501))
    tables = ("observation", "quarantine", "watermark", "data_version")
    held = "SELECT " + ", ".join(f"(SELECT count(*) FROM {table})" for table in tables)
    for attempts in (1, 2):  # the same again is tried again
        assert small.run("load")[0] == 3
        assert small.rows(held) == [(0, 0, 0, 0)]
        assert small.rows("SELECT status, new, quarantined FROM load") == [("blocked", 71, 1)] * attempts
        assert small.failed() == [("jump", "A")]
    code, said = small.run("doctor")
    assert code == 0
    assert f"look  loads: load 2 of data/{JUNE}.csv was blocked" in said
    assert "freshness: shop: nothing has been loaded yet" in said
    small.file(JUNE)
    code, said = small.run("load")
    assert code == 0
    assert "1 of 1 payloads loaded" in said
    assert small.rows(held) == [(72, 0, 1, 1)]
    assert "ok    loads: none was blocked or marked" in small.run("doctor")[1]


@pytest.mark.ml_test("monitor-2")
def test_what_was_blocked_loads_when_the_rule_is_mended(small: Small) -> None:
    small.declare(a='jump = { limit = 10, action = "block" }')
    small.file(JUNE, a=put(STEADY, 20, 160))
    assert small.run("load")[0] == 3
    small.declare(a='jump = { limit = 50, action = "block" }')
    assert small.run("load")[0] == 0
    assert small.rows("SELECT count(*) FROM observation") == [(72,)]


def test_an_old_vintage_is_judged_by_what_was_known_on_its_day(small: Small) -> None:
    small.declare(a="jump = 10")
    small.file(JULY)
    assert small.run("load")[0] == 0
    small.file(JUNE, a=put(STEADY, 20, 160))
    assert "changes by 40 in 2022-02-01" in small.run("load")[1]
    small.file(JUNE - timedelta(days=30))
    assert small.run("load")[0] == 0
    assert small.failed() == []


def test_a_load_answers_for_what_it_brought_alone(small: Small) -> None:
    small.declare(a='jump = 10\nparts = { series = ["B"], tolerance = 1 }', checks=RISING.format("warn", LOW))
    first, second = put(put(STEADY, 20, 160), 4, 99), [*STEADY[1:], 136]
    small.file(JUNE, a=first)
    for day in (JULY, JULY + timedelta(days=1)):
        small.file(day, a=[*first[1:], 136], b=second)
    assert small.run("load")[0] == 0
    failed = "SELECT rule FROM check_result JOIN load USING (load_id) WHERE NOT ok AND known_last = '{}' ORDER BY 1"
    assert small.rows(failed.format(JUNE)) == [("check",), ("jump",), ("parts",)]
    assert small.rows(failed.format(JULY)) == [("check",)]  # of rules in SQL nobody knows whom they speak of
    assert small.failed() == []  # it brought nothing


def test_a_change_from_what_a_load_revised_to_the_next_value_is_its_doing(small: Small) -> None:
    small.declare(a="jump = 30")
    rising = [*STEADY[:20], 160, *(float(value) + 80 for value in STEADY[21:])]  # by 20 times the usual 2, twice
    small.file(JUNE, a=rising)
    assert small.run("load")[0] == 0
    assert small.failed() == []
    small.file(JUNE + timedelta(days=1), a=put(rising, 20, 122))
    assert "changes by 79 in 2022-03-01" in small.run("load")[1]


def test_a_revision_is_measured_from_the_value_that_it_revises(small: Small) -> None:
    small.declare(a="shift = 5")
    for days, times in enumerate((1, 2, 2.01)):
        small.file(JUNE + timedelta(days=days), a=[float(value) * times for value in STEADY])
    assert "mark: shift of A: " in small.run("load")[1]
    assert small.failed() == []  # the newest revises by little what the one before had doubled


def test_a_change_of_a_series_that_seldom_moves_is_measured_by_those_it_made(small: Small) -> None:
    small.declare(a="jump = 5")
    small.file(JUNE, a=[1.0] * 12 + [1.25] * 12 + [1.5] * 12)
    small.file(JULY, a=[1.0] * 11 + [1.25] * 12 + [1.5] * 12 + [3.5])
    assert "jump of A: changes by 2 in 2023-06-01, 8.0 times its usual 0.25" in small.run("load")[1]


@pytest.mark.parametrize(("action", "code"), [("warn", 0), ("block", 3)])
def test_a_rule_in_sql_names_the_rows_that_offend(small: Small, action: str, code: int) -> None:
    small.declare(checks=RISING.format(action, LOW))
    small.file(JUNE)
    assert small.run("load")[0] == 0
    assert small.failed() == []
    small.file(JULY, a=put(put(STEADY, 4, 99), 5, 98), b=put(STEADY, 7, 50))
    found, said = small.run("load")
    assert found == code
    assert f"{action}: check of rising: 2 offending rows: A, 2020-11-01 00:00:00+00:00, 99.0; A, 2020-12" in said
    assert small.failed() == [("check", "rising")]


WRITE = "INSERT INTO resource (dataset, name, mark, rules_hash) VALUES ('x', 'x', 'x', 'x')"
WRITES = {
    "a statement": ("DELETE FROM latest", "syntax error"),
    "a second statement": (f"SELECT 1) o; {WRITE}; SELECT 1 FROM (SELECT 1", "multiple commands"),
    "within another": (f"WITH w AS ({WRITE} RETURNING 1) SELECT * FROM w", "must be at the top level"),
    "a function": ("SELECT public.writes()", "read-only transaction"),
    "a sequence": ("SELECT nextval(pg_get_serial_sequence('load', 'load_id'))", "read-only transaction"),
    "leave to write": ("SELECT set_config('transaction_read_only', 'off', true)", "read-write mode"),
    "no such column": ("SELECT volume FROM latest", 'column "volume" does not exist'),
}  # fmt: skip


@pytest.mark.parametrize("way", WRITES)
def test_a_rule_in_sql_cannot_write(small: Small, way: str) -> None:
    sql, says = WRITES[way]
    with psycopg.connect(small.url) as owner:
        owner.execute(f"CREATE FUNCTION public.writes() RETURNS bigint LANGUAGE sql AS $${WRITE} RETURNING 1::bigint$$")
    small.declare(checks=RISING.format("warn", sql))
    small.file(JUNE)
    code, said = small.run("load")
    assert code == 0
    assert "check of rising: cannot be judged: " in said
    assert says in said
    assert small.rows("SELECT count(*) FROM observation") == [(72,)]
    assert small.rows("SELECT FROM resource WHERE dataset = 'x'") == []


def test_a_rule_in_sql_that_cannot_be_judged_blocks_where_it_would_block(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "TIMEOUT_SECONDS", 0.05)
    small.declare(checks=RISING.format("block", "SELECT pg_sleep(600)"))
    small.file(JUNE)
    code, said = small.run("load")
    assert code == 3
    assert "cannot be judged: canceling statement due to statement timeout" in said
    assert small.rows("SELECT count(*) FROM observation") == [(0,)]


TWICE = ", ".join([RISING.format("mark", "SELECT 1")] * 2)
MISTAKES = {
    "a part that is none": (
        {"a": 'parts = { series = ["BB"], tolerance = 1 }'},
        "series.A.parts.series: 'BB' is not declared; did you mean 'B'?",
    ),
    "an action that is none": (
        {"a": 'jump = { limit = 5, action = "bloc" }'},
        "series.A.jump.action: Input should be 'block', 'mark' or 'warn' (given: 'bloc'); did you mean 'block'?",
    ),
    "a key of a limit": ({"a": "jump = { limt = 5 }"}, "series.A.jump.limt: unknown key; did you mean 'limit'?"),
    "a rule": ({"a": "jumps = 5"}, "series.A.jumps: unknown key; did you mean 'jump'?"),
    "an empty range": ({"a": "range = [2, 1]"}, "series.A: range: 2 is above 1"),
    "an endless range": ({"a": "range = [0, inf]"}, "series.A.range.1: Input should be a finite number"),
    "two of one name": ({"checks": TWICE}, "check: a name stands there twice: rising"),
    "a key of a check": ({"checks": '{ name = "x", sgl = "" }'}, "check.0.sgl: unknown key; did you mean 'sql'?"),
    "the cadence": ({"source": "cadence_day = 3"}, "cadence_day: unknown key; did you mean 'cadence_days'?"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_check_is_named_with_its_mend(small: Small, mistake: str) -> None:
    declared, says = MISTAKES[mistake]
    small.declare(**declared)
    small.file(JUNE)
    code, said = small.run("load")
    assert code == 2
    assert says in said


def test_doctor_checks_again_what_is_in_force(small: Small) -> None:
    small.declare()
    small.file(JUNE, a=put(STEADY, 20, 160), b=put(STEADY, 3, 501))
    assert small.run("load")[0] == 0
    assert "ok    checks: 0 hold" in small.run("doctor")[1]
    small.declare(a="jump = 10", b="range = [0, 200]")
    code, said = small.run("doctor")
    assert code == 0
    assert "look  checks: jump of A: changes by 40 in 2022-02-01" in said
    small.declare(a='jump = { limit = 10, action = "block" }')
    code, said = small.run("doctor")
    assert code == 1
    assert "BAD   checks: jump of A" in said


def test_doctor_says_what_waits_in_quarantine(small: Small) -> None:
    small.declare(a="range = [0, 200]")
    small.file(JUNE, a=put(STEADY, 3, 250), b=put(STEADY, 3, "n/a"))
    assert small.run("load")[0] == 0
    assert "look  quarantine: waiting: 1 by rule number, 1 by rule range" in small.run("doctor")[1]
    small.file(JUNE, a=put(STEADY, 4, 180))  # the same vintage with another value
    assert small.run("load")[0] == 0
    assert "1 by rule range, 1 by rule vintage_conflict" in small.run("doctor")[1]
    with psycopg.connect(small.url) as owner:
        owner.execute("INSERT INTO quarantine_action (quarantine_id, action, who, reason)"
                      " SELECT quarantine_id, 'drop', 'me', 'wrong' FROM quarantine")  # fmt: skip
    assert "ok    quarantine: nothing waits in it" in small.run("doctor")[1]


SINCE = "the newest value became known"
FRESHNESS = {
    "fresh": (40, STEADY, "", f"fresh; {SINCE} 40 days ago, expected every 31 days"),
    "late": (50, STEADY, "", f"late; {SINCE} 50 days ago, expected every 31 days"),
    "late by its own cadence": (40, STEADY, "cadence_days = 14", f"late; {SINCE} 40 days ago, expected every 14 days"),
    "frozen": (100, STEADY, "", f"frozen: fetched without anything new; {SINCE} 100 days ago"),
    "discontinued": (40, STEADY[:32] + [""] * 4, "", f"fresh; {SINCE} 40 days ago, expected every 31 days; "
                                                     "discontinued (1): B"),
}  # fmt: skip


@pytest.mark.parametrize("state", FRESHNESS)
def test_load_and_doctor_say_what_is_not_fresh(small: Small, state: str) -> None:
    days, b, source, says = FRESHNESS[state]
    small.declare(source=source)
    small.file(datetime.now(UTC).date() - timedelta(days=days), b=b)
    code, said = small.run("load", "--json")
    assert code == 0
    assert (f"shop: {says}" in said) == (state != "fresh")
    ((result, *_), _) = json.JSONDecoder().raw_decode(said)
    assert result["stale"] == {name: int(state.startswith(name)) for name in ("late", "frozen", "discontinued")}
    code, said = small.run("doctor")
    assert code == 0
    assert f"{'ok   ' if state == 'fresh' else 'look '} freshness: shop: {says}" in said
    assert ("discontinued" in said) == (state == "discontinued")


def test_a_source_that_is_read_without_anything_new_is_frozen_and_one_that_is_not_read_is_late(small: Small) -> None:
    small.declare()
    small.file(datetime.now(UTC).date() - timedelta(days=100))
    assert small.run("load")[0] == 0
    with psycopg.connect(small.url) as owner:
        owner.execute("UPDATE attempt SET finished_at = finished_at - interval '90 days'")
    assert f"late; {SINCE} 100 days ago" in small.run("doctor")[1]
    assert "nothing new" in small.run("load")[1]
    assert f"frozen: fetched without anything new; {SINCE} 100 days ago" in small.run("doctor")[1]


def test_a_series_whose_newest_values_were_taken_back_is_discontinued(small: Small) -> None:
    small.declare(source="complete = true\nmax_vanished = 0.5")
    for days, b in ((41, STEADY), (40, [*STEADY[:32], *[""] * 4])):
        small.file(datetime.now(UTC).date() - timedelta(days=days), b=b)
    assert "discontinued (1): B" in small.run("load")[1]


def test_doctor_warns_of_too_many_chunks(small: Small) -> None:
    small.declare()
    with psycopg.connect(small.url) as owner:
        if not owner.execute("SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'").fetchone():
            pytest.skip("needs TimescaleDB: TEST_DATABASE_URL")
        small.file(JUNE)
        assert small.run("load")[0] == 0
        assert "ok    chunks: 1 of at most 100" in small.run("doctor")[1]
        owner.execute("SELECT set_chunk_time_interval('observation', INTERVAL '1 day')")
        owner.execute(
            "INSERT INTO observation (series_id, valid_time, known_from, load_id, value)"
            " SELECT 1, TIMESTAMPTZ '1900-01-01' + n * INTERVAL '3 days', now(), 1, 1 FROM generate_series(1, 79) n"
        )
    said = small.run("doctor")[1]
    assert "look  chunks: 80 of at most 100" in said
    assert "set_chunk_time_interval" in said


@pytest.mark.parametrize(
    ("raw", "value"),
    [("1.5", 1.5), (" -1e3 ", -1000), (7, 7), (0, 0), (0.1, 0.1), (Decimal("0.1"), 0.1), (2**63, 2**63)],
)
def test_numbers_of_any_type_are_values(raw: Any, value: float) -> None:
    assert parse_value(raw) == parse_value(raw, None, "") == (value, VALUE, "", "")


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        *(
            (raw, "number")
            for raw in ("", "n/a", "1,5", "1_000", "\u0661\u0662", "\uff11", None, True, False, [1], b"1")
        ),
        (Decimal("sNaN"), "number"),
        *((raw, "finite") for raw in ("nan", "-inf", "1e999", 10**400, math.nan, math.inf, Decimal("NaN"))),
        (Decimal("1e400"), "finite"),
    ],
    ids=lambda one: repr(one)[:12],
)
def test_what_is_no_number_or_not_finite_is_told_apart_and_is_not_missing(raw: Any, rule: str) -> None:
    value, state, *said = parse_value(raw)
    details = {"number": "not a number", "finite": "neither NaN nor infinity is a value"}
    assert (math.isnan(value), state, said) == (True, VALUE, [rule, details[rule]])


@pytest.mark.parametrize(("raw", "missing"), [(None, [None]), ("", ["", "NaN"]), ("NaN", ["", "NaN"]), (".", ["."])])
def test_what_a_source_calls_missing_is_missing_and_rejected_by_one_that_does_not(raw: Any, missing: list[Any]) -> None:
    value, *said = parse_value(raw, *missing)
    assert (math.isnan(value), said) == (True, [MISSING, "", ""])
    assert parse_value(raw, "-")[1] == VALUE and parse_value(raw, "-")[2] in {"number", "finite"}
