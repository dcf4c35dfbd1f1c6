"""The fred source against a stand-in that is true to FRED: what it loads, asks for, refuses and hides."""

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psycopg
import pytest
from conftest import ROOT, SAMPLE
from desk import GDP, HEAD, Service, moment
from fake_fred import KEY, SAMPLES, Fred, Snapshot, rows_of, sample
from fake_web import Nth, serving
from hypothesis import given, settings
from hypothesis import strategies as st

from model_service.contract import Series
from model_service.errors import UsageError
from model_service.loader import DELETED, Cell, Payload, Reject, SourceError, Window, run
from model_service.loader.sources import fred as source
from model_service.loader.web import Client
from model_service.store.connection import connect
from model_service.store.provider import Pace

SOURCE = """
[source.{name}]
kind = "fred"
base_url = "{url}"
requests_per_second = {rate}
tries = {tries}
{more}
"""
SERIES = '[series.{}]\nsource = "{}"\nfrequency = "{}"\nunit = "1"\nrelease_lag_days = 1\n{}\n'
MONTHS = {"2016-01-01": "1", "2016-02-01": "2"}


@dataclass
class Desk(Service):
    fred: Fred
    url: str
    root: Path
    names: tuple[str, ...] = ("A",)
    frequency: str = "month"
    rules: str = ""
    more: str = ""
    also: str = ""
    rate: float = 1000
    tries: int = 2
    dataset: str = "fred"
    said: list[str] = field(default_factory=list)

    @property
    def toml(self) -> str:
        source = SOURCE.format(
            name=self.dataset, url=self.fred.base_url, rate=self.rate, tries=self.tries, more=self.more
        )
        series = "".join(SERIES.format(name, self.dataset, self.frequency, self.rules) for name in self.names)
        return HEAD.format(target=self.names[0]) + source + series + self.also


@pytest.fixture
def fred(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fred]:
    monkeypatch.setenv("FRED_API_KEY", KEY)
    with serving(Fred()) as fred:
        yield fred


@pytest.fixture
def desk(fred: Fred, url: str, tmp_path: Path) -> Desk:
    return Desk(fred, url, tmp_path)


# ---- vintages ----


def test_five_thousand_vintages_load_to_the_answers_worked_out_by_hand(desk: Desk) -> None:
    """On day n the value of day n - 1 comes out as n - 1, and the one before is revised upwards by a half.

    On day 1999 the value of day 10 is withdrawn: right after the last vintage of the first request.
    """
    days = [f"{date(2000, 1, 1) + timedelta(days=number)}" for number in range(5_001)]
    rows = [(days[n], days[n + 1], days[n + 1], f"{n}") for n in range(4_999)]
    rows += [(days[n], days[n + 2], days[1_998] if n == 10 else "9999-12-31", f"{n}.5") for n in range(4_999)]
    desk.fred.series["A"] = [*rows, (days[4_999], days[5_000], "9999-12-31", "4999")]
    desk.frequency = "day"
    desk.load()
    assert [one["status"] for one in desk.fred.log] == [200] * 4
    assert desk.count("observation") == 5_000 + 4_999 + 1  # each first, each revised but the last, one withdrawn
    first = desk.known(days[3])
    assert first == {days[0]: 0.5, days[1]: 1.5, days[2]: 2}
    for n in (1_997, 1_998, 1_999, 2_000, 3_996, 3_997, 3_998, 5_000):
        known = desk.known(days[n])
        assert len(known) == n - (n >= 1_999)
        assert (known[days[n - 1]], known[days[n - 2]], known[days[0]]) == (n - 1, n - 2 + 0.5, 0.5)
        assert known.get(days[10]) == (10.5 if n < 1_999 else None)
    assert {one[1] for one in desk.held() if one[0] == days[11]} == {days[12], days[13]}  # no vintage was invented


def test_more_vintages_than_one_request_may_have_are_refused_by_the_stand_in(desk: Desk) -> None:
    days = [f"{date(2000, 1, 1) + timedelta(days=number)}" for number in range(2_002)]
    desk.fred.series["A"] = [(day, day, "9999-12-31", "1") for day in days]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "VINTAGES", 2_001)
        says = desk.refused()
    assert "There are 2001 vintage dates" in says


def test_a_real_time_period_is_closed_and_what_ends_is_gone_from_the_next_day_on(desk: Desk) -> None:
    desk.fred.series["A"] = [
        ("2016-01-01", "2016-02-05", "2016-03-03", "1"),
        ("2016-01-01", "2016-03-04", "2016-04-01", "1.5"),
        ("2016-02-01", "2016-03-04", "9999-12-31", "2"),
    ]
    desk.load()
    assert desk.held() == [
        ("2016-01-01", "2016-02-05", 1),
        ("2016-01-01", "2016-03-04", 1.5),
        ("2016-01-01", "2016-04-02", None),
        ("2016-02-01", "2016-03-04", 2),
    ]
    assert desk.known("2016-04-01") == {"2016-01-01": 1.5, "2016-02-01": 2}
    assert desk.known("2016-04-02") == {"2016-02-01": 2}


def test_a_point_says_that_a_value_is_missing(desk: Desk) -> None:
    desk.fred.publish("A", {"2016-03-01": {"2016-01-01": ".", "2016-02-01": "2"}, "2016-04-01": {"2016-01-01": "1",
                      "2016-02-01": "."}})  # fmt: skip
    desk.load()
    assert desk.known("2016-03-01") == {"2016-02-01": 2}
    assert desk.known("2016-04-01") == {"2016-01-01": 1}
    assert desk.rows("SELECT DISTINCT state FROM observation WHERE value IS NULL") == [(1,)]  # missing, not deleted


def test_a_value_that_is_no_text_goes_to_quarantine(desk: Desk) -> None:
    """JSON can write half of a character, and NUL; the store takes neither."""
    desk.fred.publish("A", {"2016-03-01": {"2016-01-01": "\ud83d", "2016-02-01": "2", "2016-03-01": "\0"}})
    desk.load()
    assert desk.known() == {"2016-02-01": 2}
    found = desk.rows("SELECT rule, raw FROM quarantine ORDER BY raw")
    assert found == [("number", "?"), ("number", "\N{REPLACEMENT CHARACTER}")]


def test_what_is_held_is_not_fetched_again(desk: Desk) -> None:
    desk.fred.publish("A", {"2016-02-05": {"2016-01-01": "1"}})
    desk.load()
    assert len(desk.fred.log) == 2
    assert desk.load() == []
    assert [one["path"] for one in desk.fred.log[2:]] == ["/fred/series/vintagedates"]
    desk.fred.publish("A", {"2016-02-05": {"2016-01-01": "1"}, "2016-03-04": MONTHS})
    (result,) = desk.load()
    asked = desk.fred.asked("observations")[-1]
    assert (asked["realtime_start"], asked["realtime_end"]) == ("2016-02-04", "2016-03-04")
    assert (result["fetched"], result["same"], result["new"]) == (2, 1, 1)
    assert desk.held() == [("2016-01-01", "2016-02-05", 1), ("2016-02-01", "2016-03-04", 2)]


def test_what_was_added_to_a_day_after_it_was_loaded_is_not_lost(desk: Desk) -> None:
    desk.fred.publish("A", {"2016-02-05": {"2015-12-01": "0", "2016-01-01": "1"}})
    desk.load()
    desk.fred.publish("A", {"2016-02-05": {"2015-12-01": "9", "2016-01-01": "1", "2016-02-01": "2"}, "2016-03-04": {
                      "2015-12-01": "9", "2016-01-01": "1", "2016-02-01": "2", "2016-03-01": "3"}})  # fmt: skip
    desk.load()
    assert desk.known("2016-02-05") == {"2015-12-01": 0, "2016-01-01": 1, "2016-02-01": 2}
    assert desk.rows("SELECT rule, raw FROM quarantine") == [("vintage_conflict", "9")]


def test_requests_that_are_cut_anywhere_give_the_same_history(
    desk: Desk, new_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stitched: a value that stands on across requests, split or not, is one row, known from when it first was."""
    vintages = {f"2016-{month:02}-10": {f"2015-{n:02}-01": f"{n + (month > n)}" for n in range(1, month)} for month in
                range(2, 13)}  # fmt: skip
    desk.fred.publish("A", vintages)
    whole = list(desk.fred.series["A"])
    desk.load()
    expected = desk.held()
    for size in (1, 2, 5):
        twin = Desk(desk.fred, new_database(), desk.root)
        monkeypatch.setattr(source, "VINTAGES", size)
        desk.fred.series["A"] = [part for row in whole for part in split(row)] if size == 5 else whole
        twin.load()
        assert twin.held() == expected


def split(row: tuple[str, str, str, str]) -> Iterator[tuple[str, str, str, str]]:
    """The same value in two periods, as if it had been stated again in July."""
    period, start, end, value = row
    if start < "2016-07-10" <= end:
        yield period, start, "2016-07-09", value
        yield period, "2016-07-10", end, value
    else:
        yield row


def test_a_series_without_vintages_is_known_from_the_time_of_loading(desk: Desk) -> None:
    desk.fred.publish("A", {"2016-03-01": MONTHS})
    desk.fred.no_vintages.add("A")
    desk.load()
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    assert desk.held() == [("2016-01-01", today, 1), ("2016-02-01", today, 2)]
    desk.fred.publish("A", {"2016-03-01": {"2016-02-01": "2"}})
    desk.more = "max_vanished = 1"
    desk.load()
    assert desk.known("2100-01-01") == {"2016-02-01": 2}


def test_a_blocked_part_is_followed_by_none(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.fred.publish("A", {f"2016-{n:02}-10": {"2016-01-01": f"{n}"} for n in range(2, 8)})
    monkeypatch.setattr(source, "VINTAGES", 2)
    desk.also = '[[check]]\nname = "four"\naction = "block"\nsql = "SELECT value FROM latest WHERE value > 3.5"\n'
    assert [one["outcome"] for one in desk.load()] == ["loaded", "blocked"]
    desk.also = ""
    assert [one["outcome"] for one in desk.load()] == ["loaded", "loaded"]
    assert [value for _, _, value in desk.held()] == [2, 3, 4, 5, 6, 7]


def test_a_window_ends_where_it_is_told_and_has_no_beginning(desk: Desk) -> None:
    desk.fred.publish("A", {f"2016-{n:02}-10": {"2016-01-01": f"{n}"} for n in range(2, 8)})
    desk.load(window=Window(last=date(2016, 4, 9)))
    assert [value for _, _, value in desk.held()] == [2, 3]
    with pytest.raises(UsageError, match="--from leaves out vintages"):
        desk.load(window=Window(first=date(2016, 5, 1)))
    desk.load()
    assert [value for _, _, value in desk.held()] == [2, 3, 4, 5, 6, 7]


def test_long_answers_come_in_pages(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.fred.publish("A", {f"2016-{n:02}-10": {"2016-01-01": f"{n}"} for n in range(2, 13)})
    monkeypatch.setattr(source, "ROWS", 4)
    monkeypatch.setattr(source, "DATES", 4)
    (result,) = desk.load()
    assert [one["offset"] for one in desk.fred.log] == ["0", "4", "8"] * 2
    assert [value for _, _, value in desk.held()] == list(range(2, 13))
    desk.fred.publish("A", {f"2017-{n:02}-10": {"2016-01-01": f"{n}"} for n in range(2, 13)})
    monkeypatch.setattr(desk.fred, "faults", Nth(5, "another count"))
    assert "changed it while it was read" in desk.refused()


# ---- the same series from two kinds of source ----


def test_gdp_from_files_and_from_fred_has_the_same_periods_and_times(desk: Desk) -> None:
    desk.names, desk.frequency, desk.also = ("REAL_GDP",), "quarter", GDP
    desk.more = 'ids = { REAL_GDP = "GDPC1" }'
    desk.fred.publish("GDPC1", sample(SAMPLE / "data/us-macro")["GDPC1"])
    run.load(desk.contract, desk.url, SAMPLE, desk.said.append)
    assert len(desk.held("GDPC1")) > 100
    assert desk.held("REAL_GDP") == desk.held("GDPC1")


@pytest.mark.parametrize("has_vintages", [True, False])
def test_another_id_needs_another_name(desk: Desk, has_vintages: bool) -> None:
    """Its vintages would go on where those of the first one end, as if they were of one series."""
    for name in ("GDP", "GDPC1"):
        desk.fred.publish(name, {"2016-02-05": {"2016-01-01": name[4:] or "9"}})
        desk.fred.no_vintages |= set() if has_vintages else {name}
    desk.more = 'ids = { A = "GDP" }'
    desk.load()
    desk.load()
    asked, desk.more = len(desk.fred.log), 'ids = { A = "GDPC1" }'
    assert desk.refused(UsageError) == (
        "ids: A was loaded as GDP, and that stays: give another series of FRED's another name"
    )
    assert len(desk.fred.log) == asked
    assert desk.known() == {"2016-01-01": 9}


def test_kept_bytes_are_read_again_by_the_kind_of_their_source(desk: Desk) -> None:
    desk.names, desk.frequency, desk.also, desk.rules = ("REAL_GDP",), "quarter", GDP, "range = [0, 16000]"
    desk.more = 'ids = { REAL_GDP = "GDPC1" }'
    desk.fred.publish("GDPC1", sample(SAMPLE / "data/us-macro")["GDPC1"])
    results = run.load(desk.contract, desk.url, SAMPLE, desk.said.append)
    load = next(one["load_id"] for one in results if one["dataset"] == "fred")
    asked, desk.rules = len(desk.fred.log), ""
    desk.again(load, "retry", "the range was too small")
    assert desk.held("REAL_GDP") == desk.held("GDPC1")
    assert len(desk.fred.log) == asked


def test_the_example_of_the_documentation(desk: Desk) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/fred.md").read_text("utf-8"), re.DOTALL)
    example = example.replace('kind = "fred"', f'kind = "fred"\nbase_url = "{desk.fred.base_url}"')
    desk.fred.publish("GDPC1", {"2016-07-29": {"2016-04-01": "16575.1"}})
    desk.fred.publish("SP500", {"2016-07-29": {"2016-07-28": "2170.06"}})
    desk.fred.no_vintages.add("SP500")
    desk.load(desk.declared(HEAD.format(target="REAL_GDP") + example))
    assert desk.held("REAL_GDP") == [("2016-04-01", "2016-07-29", 16575.1)]
    assert desk.held("SP500") == [("2016-07-28", f"{datetime.now(UTC):%Y-%m-%d}", 2170.06)]


# ---- what goes wrong at the provider: one clear line, nothing half-loaded ----


@pytest.fixture
def two(desk: Desk) -> Desk:
    """Two series, of which the first one could be loaded."""
    desk.fred.publish("A", {"2016-03-04": MONTHS})
    desk.fred.publish("B", {"2016-03-04": MONTHS})
    desk.names = ("A", "B")
    return desk


def test_a_bad_key(two: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRED_API_KEY", KEY[::-1])
    says = two.refused()
    assert says.startswith("A: FRED refuses, 400: Bad Request. The value for variable api_key is not registered.")
    assert says.endswith("(check FRED_API_KEY)")
    assert [one["status"] for one in two.fred.log] == [400, 400]  # asked no more than it takes to know


def test_no_key(two: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FRED_API_KEY")
    with pytest.raises(UsageError, match="FRED_API_KEY is not set"):
        two.load()
    assert two.fred.log == []


def test_an_unknown_series_is_found_before_anything_is_loaded(two: Desk) -> None:
    del two.fred.series["B"]
    assert two.refused() == (
        "B: FRED refuses, 400: Bad Request. The series does not exist. (check [series.B] and base_url)"
    )


def test_a_refusal_in_xml(two: Desk) -> None:
    two.fred.faults = {"xml": 2}
    assert two.refused().startswith("A: FRED refuses, 400: Bad Request. The series does not exist. (check")


@pytest.mark.parametrize(
    ("fault", "shown"),
    [("maintenance", "<!DOCTYPE html>"), ("cut", '{\\"realtime_start\\"'), ("another shape", '{\\"count\\": \\"2\\"')],
)
@pytest.mark.parametrize("request_number", [1, 3])
def test_a_body_that_is_no_answer(
    two: Desk, monkeypatch: pytest.MonkeyPatch, fault: str, shown: str, request_number: int
) -> None:
    monkeypatch.setattr(two.fred, "faults", Nth(request_number, fault))
    says = two.refused()
    assert re.match("[AB]: this is no answer of FRED's: ", says)
    assert shown in says
    assert [one["fault"] for one in two.fred.log][request_number - 1 :] == [fault]  # it does not help to ask again
    two.load()
    assert two.held("A") == two.held("B") == [("2016-01-01", "2016-03-04", 1), ("2016-02-01", "2016-03-04", 2)]


def test_a_provider_that_is_down(two: Desk) -> None:
    with serving(Fred()) as gone:
        two.fred.url = gone.url
    says = two.refused()
    assert says.startswith("127.0.0.1 cannot be reached: ")
    assert says.endswith("; try again later")


def test_an_error_that_passes_is_asked_again_and_one_that_stays_is_said(two: Desk) -> None:
    two.fred.faults = {"internal error": 2}
    assert two.refused() == "127.0.0.1 answers 500, 2 times; try again later"
    two.fred.faults = {"internal error": 1}
    two.load()
    assert [one["fault"] for one in two.fred.log] == ["internal error"] * 3 + [""] * 4
    assert two.count("load") == 2


def test_too_many_requests_are_followed_by_the_rest_that_is_asked_for(two: Desk) -> None:
    two.fred.faults, two.fred.retry_after = {"too many requests": 1}, "2"
    two.load()
    first, second = two.fred.log[:2]
    assert (first["status"], first["fault"], second["status"]) == (429, "too many requests", 200)
    assert float(second["at"]) - float(first["at"]) >= 2


def test_a_rest_by_a_date_and_one_that_is_too_long(two: Desk) -> None:
    until = datetime.now(UTC) + timedelta(seconds=3)
    two.fred.faults, two.fred.retry_after = {"too many requests": 1}, f"{until:%a, %d %b %Y %H:%M:%S} GMT"
    two.load()
    assert float(two.fred.log[1]["at"]) - float(two.fred.log[0]["at"]) >= 1
    two.fred.faults, two.fred.retry_after = {"too many requests": 1}, "3600"
    assert two.refused() == "127.0.0.1 answers 429 and asks to be left alone for 3600 seconds: run again after that"


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ('base_url = "ftp://x"', "must be http://"),
        ('base_url = "https://me:secret@x"', "without a login"),
        ('base_url = "https://x/?api_key=1"', "without a query"),
        ("requests_per_secund = 1", "did you mean 'requests_per_second'"),
        ('ids = { B = "GDP" }', "ids: B is no series of this source"),
    ],
)
def test_a_wrong_key_of_the_source(two: Desk, keys: str, says: str) -> None:
    source = f'[source.fred]\nkind = "fred"\n{keys}\n' + SERIES.format("A", "fred", "month", "")
    with pytest.raises(UsageError, match=re.escape(says)):
        two.load(two.declared(HEAD.format(target="A") + source))


# ---- the budget ----


COPY = """
import sys
from pathlib import Path
from model_service import contract
from model_service.loader import run
path = Path(sys.argv[1])
run.load(contract.load(path), sys.argv[2], path.parent, print)
"""


def test_ten_copies_together_stay_within_the_budget_of_the_provider(fred: Fred, url: str, tmp_path: Path) -> None:
    """Ten processes, which ask for their first turn at one moment."""
    copies, fred.limit = [], 10  # of 5: those that are late may meet the next ones
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'pace'::regclass"
    with psycopg.connect(url) as gate:
        gate.execute("LOCK TABLE pace IN EXCLUSIVE MODE")
        for number in range(10):
            fred.publish(f"S{number}", {"2016-03-04": MONTHS})
            (folder := tmp_path / f"{number}").mkdir()
            desk = Desk(fred, url, folder, names=(f"S{number}",), dataset=f"fred{number}", rate=5)
            desk.declared(desk.toml)
            words = [sys.executable, "-c", COPY, folder / "service.toml", url]
            copies.append(subprocess.Popen(words, env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}"}))
        while gate.execute(waiting).fetchone() != (10,):
            assert [copy.poll() for copy in copies] == [None] * 10
            time.sleep(0.05)
        gate.rollback()
    assert [copy.wait(60) for copy in copies] == [0] * 10
    at = sorted(float(one["at"]) for one in fred.log)
    assert [one["status"] for one in fred.log] == [200] * 20
    assert desk.count("observation") == 20
    assert at[-1] - at[0] > 19 / 5 - 1  # the first one may be late


def test_who_asks_faster_than_the_provider_allows_is_cut_off_and_rests(two: Desk) -> None:
    """Sabotage: without a budget of its own, the loader runs into the provider's."""
    two.fred.limit, two.fred.retry_after, two.tries = 3, "1", 6
    two.load()
    assert 429 in [one["status"] for one in two.fred.log]
    assert len(two.held("A")) == len(two.held("B")) == 2


def test_a_rest_is_one_for_all_copies(url: str) -> None:
    with connect(url, "loader") as one, connect(url, "loader") as other:
        assert Pace(one).take("api", 0.001) == 0
        Pace(one).rest("api", 60)
        assert 59 < Pace(other).take("api", 0.001) <= 60
        Pace(other).rest("api", 1)
        assert Pace(one).take("api", 0.001) > 58
        assert Pace(other).take("another", 60) == 0
        assert one.info.transaction_status == other.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


# ---- the key ----


def leaks(desk: Desk, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Where the key shows: what was said, raised and logged, the tables, the kept bytes."""
    with caplog.at_level(logging.DEBUG):
        desk.load()
        errors = []
        for fault in ("too many requests", "maintenance", "the key"):
            desk.fred.faults, desk.fred.retry_after = {fault: 99}, "0"
            desk.fred.publish("A", {"2016-03-04": MONTHS, "2016-04-04": {}, f"2016-05-{len(errors) + 1:02}": MONTHS})
            with pytest.raises(SourceError) as refusal:
                desk.load()
            errors += [str(refusal.value), repr(refusal.getrepr(style="long"))]
    seen = {"said": str(desk.said), "raised": str(errors), "logged": caplog.text, **desk.everything()}
    assert len(seen) > 10
    assert "HTTP Request: GET" in caplog.text  # there was something to be seen
    return [where for where, text in seen.items() if KEY in text]


def test_the_key_shows_nowhere(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.fred.publish("A", {"2016-03-04": MONTHS})
    assert leaks(desk, caplog) == []
    assert {one["api_key"] for one in desk.fred.log} == {KEY}


def test_a_key_in_the_url_would_show(
    desk: Desk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sabotage: the key joins the query where everybody can see it."""
    desk.fred.publish("A", {"2016-03-04": MONTHS})
    plain = Client.get

    def careless(client: Client, path: str, query: Mapping[str, Any], *more: Any) -> Any:
        return plain(client, path, {**query, **client.key}, *more)

    monkeypatch.setattr(Client, "get", careless)
    assert leaks(desk, caplog) == ["logged"]


# ---- the parser ----


def parsed(content: bytes, folder: Path, name: str = "A/x/y") -> list[Cell | Reject]:
    path = folder / "page"
    path.write_bytes(content)
    series = {"A": Series(source="fred", frequency="month", unit="1", release_lag_days=0)}
    options = source.Options()
    return list(source.parse(Payload(name, path, "application/json", None), options, series))


def test_a_recorded_answer_gives_these_cells(tmp_path: Path) -> None:
    found = parsed((SAMPLES / "window.json").read_bytes(), tmp_path)
    brief = [(f"{one.valid_time:%Y-%m}", f"{one.known_from:%m-%d}", one.value, one.state) for one in found]
    assert [str(one) for one in brief] == [
        "('2015-10', '07-29', 16490.7, 0)",  # from May 1 it was cut
        "('2016-01', '05-27', 16508.5, 0)",
        "('2016-01', '06-28', nan, 1)",
        "('2016-01', '07-29', 16525.0, 0)",
        "('2016-04', '07-29', 16575.1, 0)",
        "('2016-04', '07-31', nan, 2)",
    ]


BAD = {
    "text": ({"value": "n/a"}, "number"),
    "grouped": ({"value": "1_000"}, "number"),
    "infinite": ({"value": "1e999"}, "finite"),
    "no value": ({"value": None}, "number"),
    "no such day": ({"date": "2016-02-30"}, "date"),
    "another form of day": ({"realtime_start": "2016-6-1"}, "date"),
    "a day that is none": ({"realtime_end": 5}, "date"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_row_goes_to_quarantine_and_the_others_do_not(tmp_path: Path, bad: str) -> None:
    page = json.loads((SAMPLES / "window.json").read_bytes())
    page["observations"] = page["observations"][2:3] + page["observations"][6:7] * 2
    change, rule = BAD[bad]
    page["observations"][0] |= change
    found = parsed(json.dumps(page).encode(), tmp_path)
    assert [(one.line, one.rule) for one in found if isinstance(one, Reject)] == [(1, rule), (3, "duplicate")]
    assert [(one.value, one.raw) for one in found if isinstance(one, Cell)] == [(16525.0, "16525.0")]


def test_what_goes_on_in_a_bad_row_has_not_ended(tmp_path: Path) -> None:
    content = (SAMPLES / "window.json").read_bytes().replace(b'"2016-06-28"', b'"2016-06-xx"')
    found = parsed(content, tmp_path)
    assert [one.line for one in found if isinstance(one, Reject)] == [6]
    assert [one.state for one in found if isinstance(one, Cell)] == [0, 0, 0, 0]


MONTH = [f"2015-{month:02}-01" for month in range(1, 5)]
snapshots = st.dictionaries(st.sampled_from(MONTH), st.sampled_from(["1", "2.5", "."]))
histories = st.dictionaries(st.dates(date(2016, 1, 1), date(2016, 2, 9)).map(str), snapshots, min_size=1, max_size=8)


@settings(deadline=None)
@given(histories, st.integers(1, 9))
def test_whatever_was_published_is_known_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, history: dict[str, Snapshot], size: int
) -> None:
    """Any history, asked for in requests of any size, gives every vintage of it again."""
    fake, folder = Fred({"A": rows_of(history)}), tmp_path_factory.getbasetemp()
    days = fake._days("A", "0000", "9999")
    cells: list[Cell] = []
    first = source.BEGINNING
    for last in [*days[size - 1 :: size], *days[-1:]]:
        if last > first:
            query = {"series_id": "A", "api_key": KEY, "file_type": "json", "realtime_start": first,
                     "realtime_end": last}  # fmt: skip
            found = parsed(fake.answer(f"/fred/series/observations?{urlencode(query)}", {})[2], folder)
            cells += [one for one in found if isinstance(one, Cell)]
            assert len(cells) == len({(one.valid_time, one.known_from) for one in cells})
            first = last
    for vintage, snapshot in history.items():
        known: dict[str, str] = {}
        for cell in sorted(cells, key=lambda one: one.known_from or moment("0001-01-01")):
            if cell.known_from and cell.known_from <= moment(vintage):
                known[f"{cell.valid_time:%Y-%m-%d}"] = {0: f"{cell.value:g}", 1: ".", DELETED: ""}[cell.state]
        assert {period: text for period, text in known.items() if text} == dict(snapshot)


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(0, 900), st.booleans())
def test_whatever_the_bytes_are_they_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, place: int, replace: bool
) -> None:
    whole = (SAMPLES / "window.json").read_bytes()
    content = whole[:place] + junk + whole[place + replace * len(junk) :]
    for one in (content, junk):
        try:
            parsed(one, tmp_path_factory.getbasetemp())
        except SourceError as refusal:
            assert "\n" not in str(refusal)
