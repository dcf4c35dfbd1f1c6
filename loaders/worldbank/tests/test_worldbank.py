"""The worldbank source against a stand-in that is true to the World Bank: what it loads, asks for and refuses."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import SAMPLE
from desk import HEAD, Service, moment
from fake_web import Nth, serving
from fake_worldbank import SAMPLES, WorldBank, sample
from hypothesis import given, settings
from hypothesis import strategies as st

from model_service import forecasting
from model_service.contract import Series
from model_service.errors import UsageError
from model_service.loader import DELETED, MISSING, VALUE, Cell, Payload, Reject, SourceError, Window
from model_service.loader.sources import worldbank as source
from model_service.store import read
from model_service.store.connection import connect

SOURCE = """
[source.bank]
kind = "worldbank"
base_url = "{url}"
database = {database}
requests_per_second = 1000
tries = 2
{more}
[source.bank.ids]
"""
SERIES = '[series.{}]\nsource = "bank"\nfrequency = "{}"\nunit = "1"\nrelease_lag_days = 1\n'
GDP = "USA/NY.GDP.MKTP.KD"
YEARS = {"2023": 1.5, "2024": 3.17253034260248}


@dataclass
class Desk(Service):
    bank: WorldBank
    url: str
    root: Path
    ids: dict[str, str] = field(default_factory=lambda: {"A": GDP})
    frequency: str = "year"
    database: int = 2
    more: str = ""
    also: str = ""
    said: list[str] = field(default_factory=list)

    @property
    def toml(self) -> str:
        text = HEAD.format(target=next(iter(self.ids)))
        text += SOURCE.format(url=self.bank.base_url, database=self.database, more=self.more)
        text += "".join(f'{name} = "{wanted}"\n' for name, wanted in self.ids.items())
        return text + "".join(SERIES.format(name, self.frequency) for name in self.ids) + self.also


@pytest.fixture
def bank() -> Iterator[WorldBank]:
    with serving(WorldBank()) as bank:
        yield bank


@pytest.fixture
def desk(bank: WorldBank, url: str, tmp_path: Path) -> Desk:
    return Desk(bank, url, tmp_path)


# ---- what is current: a complete snapshot of our own, each time ----


def test_current_values_are_known_from_the_time_of_loading_and_are_not_rounded(desk: Desk) -> None:
    desk.bank.current[GDP] = YEARS
    desk.load()
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    assert desk.held() == [("2023-01-01", today, 1.5), ("2024-01-01", today, 3.17253034260248)]
    (asked,) = desk.bank.log
    assert asked["path"] == "/v2/country/USA/indicator/NY.GDP.MKTP.KD"
    assert (asked["source"], asked["format"], "date" in asked) == ("2", "json", False)
    assert [one["outcome"] for one in desk.load()] == ["nothing new"]


def test_what_is_revised_and_what_vanishes_shows_in_the_next_snapshot(desk: Desk) -> None:
    desk.bank.current[GDP] = {f"{year}": float(year) for year in range(1990, 2025)}
    desk.load()
    desk.bank.current[GDP] = {f"{year}": float(year) for year in range(1991, 2025)} | {"2024": 7, "2025": 8}
    (result,) = desk.load()
    assert {name: result[name] for name in ("new", "changed", "same", "vanished")} == {
        "new": 1, "changed": 1, "same": 33, "vanished": 1
    }  # fmt: skip
    now = desk.known()
    assert (now["2024-01-01"], now["2025-01-01"], "1990-01-01" in now) == (7, 8, False)
    assert desk.rows("SELECT valid_time::date, state FROM observation WHERE state = %s", DELETED) == [
        (date(1990, 1, 1), DELETED)
    ]


def test_a_snapshot_that_lacks_most_of_what_was_held_is_blocked(desk: Desk) -> None:
    desk.bank.current[GDP] = YEARS
    desk.load()
    desk.bank.current[GDP] = {}
    desk.bank.current["JPN/NY.GDP.MKTP.KD"] = YEARS  # the indicator is known; of the country there is nothing
    assert [one["outcome"] for one in desk.load()] == ["blocked"]
    assert desk.known() == {"2023-01-01": 1.5, "2024-01-01": 3.17253034260248}


@pytest.mark.parametrize(
    ("frequency", "form", "values", "periods"),
    [
        ("year", None, {"2013": 1, "2013Q1": 9, "2013M01": 9}, ["2013-01-01"]),
        ("quarter", "1900Q1:{}Q4", {"2013": 9, "2013Q1": 1, "2013Q4": 2}, ["2013-01-01", "2013-10-01"]),
        ("month", "1900M01:{}M12", {"2013": 9, "2012M01": 1, "2012M12": 2}, ["2012-01-01", "2012-12-01"]),
    ],
)
def test_years_quarters_and_months_are_asked_for_as_the_series_has_them(
    desk: Desk, frequency: str, form: str | None, values: dict[str, float], periods: list[str]
) -> None:
    desk.ids, desk.frequency, desk.database = {"A": "usa/UNEMPSA_"}, frequency, 15
    desk.bank.current["USA/UNEMPSA_"] = values
    desk.load()
    assert [period for period, _, _ in desk.held()] == periods
    assert desk.bank.log[0].get("date") == (form and form.format(datetime.now(UTC).year))
    assert desk.bank.log[0]["source"] == "15"


def test_null_is_a_value_that_is_missing_and_says_nothing_of_what_is_to_come(desk: Desk) -> None:
    desk.bank.current[GDP] = YEARS | {"2022": None, "2027": None}
    desk.load()
    states = desk.rows("SELECT extract(year FROM valid_time)::int, state FROM observation ORDER BY 1")
    assert states == [(2022, MISSING), (2023, VALUE), (2024, VALUE)]
    assert desk.rows("SELECT count(*) FROM quarantine") == [(0,)]


def test_nothing_is_not_unknown(desk: Desk) -> None:
    """[{"total": 0}, null]: the series is known, it has no values; that is a snapshot too."""
    desk.bank.current = {GDP: YEARS, "JPN/NY.GDP.MKTP.KD": YEARS, "JPN/SP.POP.TOTL": YEARS}
    desk.ids = {"A": GDP, "B": "USA/SP.POP.TOTL"}
    assert [(one["outcome"], one["fetched"]) for one in desk.load()] == [("loaded", 2), ("loaded", 0)]
    desk.ids = {"A": GDP, "C": "USA/NY.NO.SUCH"}
    assert desk.refused() == (
        "C: the World Bank refuses, 175: Invalid format: The indicator was not found. It may have been deleted or"
        " archived. (check ids.C, its frequency, and database)"
    )


def test_a_window_that_does_not_hold_today_asks_for_nothing_that_is_current(desk: Desk) -> None:
    desk.bank.current[GDP] = YEARS
    assert desk.load(window=Window(last=date(2020, 1, 1))) == []
    assert desk.bank.log == []
    assert len(desk.load(window=Window(first=date(2020, 1, 1)))) == 1


# ---- the archive: each version a vintage ----


@pytest.fixture
def archive(desk: Desk) -> Desk:
    """Three versions: 2022 is revised in the second, 2023 comes with the third."""
    desk.database = 57
    desk.bank.versions = {
        "202304": {GDP: {"2021": 1.0, "2022": 2.0}},
        "202312": {GDP: {"2021": 1.0, "2022": 2.5}},
        "202404": {GDP: {"2021": 1.0, "2022": 2.5, "2023": 3.0}},
    }
    return desk


def test_each_version_is_a_vintage_known_from_the_first_day_after_its_month(archive: Desk) -> None:
    assert [one["file"] for one in archive.load()] == ["A/202304", "A/202312", "A/202404"]
    assert archive.held() == [
        ("2021-01-01", "2023-05-01", 1),
        ("2022-01-01", "2023-05-01", 2),
        ("2022-01-01", "2024-01-01", 2.5),
        ("2023-01-01", "2023-05-01", None),  # null: the year had begun
        ("2023-01-01", "2024-05-01", 3),
    ]
    assert archive.known("2023-04-30") == {}
    assert archive.known("2023-12-31") == {"2021-01-01": 1, "2022-01-01": 2}
    assert archive.known("2024-01-01") == {"2021-01-01": 1, "2022-01-01": 2.5}
    asked = archive.bank.asked("version/202312")
    assert [one["path"] for one in asked] == [
        "/v2/sources/57/country/USA/series/NY.GDP.MKTP.KD/time/all/version/202312/data"
    ]


def test_a_version_is_known_when_its_month_is_over_and_not_before(archive: Desk) -> None:
    archive.bank.versions[f"{datetime.now(UTC):%Y%m}"] = {GDP: {"2021": 99.0}}
    assert len(archive.load()) == 3
    assert "99" not in str(archive.held())


def test_what_is_held_is_not_asked_for_again(archive: Desk) -> None:
    archive.load()
    archive.bank.log.clear()
    assert archive.load() == []
    assert [one["path"] for one in archive.bank.log] == ["/v2/sources/57/version/data"]
    archive.bank.versions["202407"] = {GDP: {"2021": 1.0, "2022": 2.5, "2023": 3.5}}
    assert [one["file"] for one in archive.load()] == ["A/202407"]
    assert len(archive.bank.asked("/time/all/")) == 1


def test_a_load_that_was_stopped_goes_on_where_it_stood(archive: Desk) -> None:
    archive.bank.faults = Nth(5, "maintenance")  # versions, country, series, the first version, the second
    with pytest.raises(SourceError, match="no answer of the World Bank's"):
        archive.load()
    assert {known for _, known, _ in archive.held()} == {"2023-05-01"}  # whole, and nothing of the second
    archive.bank.log.clear()
    assert [one["file"] for one in archive.load()] == ["A/202312", "A/202404"]
    assert archive.bank.asked("version/202304") == []
    assert archive.known("2024-05-01") == {"2021-01-01": 1, "2022-01-01": 2.5, "2023-01-01": 3}


def test_a_window_of_versions_and_the_others_later_give_the_same_history(
    archive: Desk, new_database: Callable[[], str]
) -> None:
    archive.load()
    twin = Desk(archive.bank, new_database(), archive.root, database=57)
    archive.bank.log.clear()
    twin.load(window=Window(date(2023, 12, 1), date(2024, 1, 1)))
    assert [one["path"].split("/")[-2] for one in archive.bank.asked("/time/all/")] == ["202312"]
    twin.load(window=Window(first=date(2024, 1, 2)))
    twin.load()
    for at in ("2023-05-01", "2024-01-01", "2024-05-01"):
        assert twin.known(at) == archive.known(at) != {}


def test_another_id_needs_another_name(archive: Desk) -> None:
    """Its versions that are held would stay as they are, and only later ones be of the other indicator."""
    archive.load()
    archive.ids["A"] = "USA/SP.POP.TOTL"
    assert archive.refused(UsageError) == (
        f"ids: A was loaded as {GDP}, and that stays: give another indicator another name"
    )


def test_a_series_that_joins_later_gets_its_own_versions(archive: Desk) -> None:
    archive.load()
    for version in archive.bank.versions.values():
        version["USA/SP.POP.TOTL"] = {"2021": 331.9}
    archive.ids["B"] = "USA/SP.POP.TOTL"
    assert [one["file"] for one in archive.load()] == ["B/202304", "B/202312", "B/202404"]


@pytest.mark.parametrize("silent", [False, True])
def test_what_a_version_does_not_have_is_not_asked_for_for_ever(archive: Desk, silent: bool) -> None:
    """Refused as 160 or null throughout; before a version that has it, it is settled; after, it may come yet."""
    versions = archive.bank.versions
    versions |= {"199704": {"USA/OLD": {"1990": 1}}, "202407": {"USA/OLD": {"1990": 1}}}
    archive.bank.silent = {"199704", "202407"} if silent else set()
    assert [one["file"] for one in archive.load()] == ["A/202304", "A/202312", "A/202404"]
    assert archive.known("2024-12-01") == {"2021-01-01": 1, "2022-01-01": 2.5, "2023-01-01": 3}  # not gone
    archive.bank.log.clear()
    assert archive.load() == []
    assert [one["path"].split("/")[-2] for one in archive.bank.asked("/time/all/")] == ["202407"]
    versions["202407"][GDP] = {"2021": 1.0, "2022": 2.5, "2023": 3.5}
    assert [one["file"] for one in archive.load()] == ["A/202407"]


def test_null_in_a_version_is_missing_and_in_the_years_after_it_nothing(archive: Desk) -> None:
    archive.bank.versions["202304"][GDP] = {"2021": None, "2022": 2.0}
    archive.bank.versions["202404"][GDP]["2024"] = 4.0  # so the one before says null of 2023, and of 2024
    archive.load()
    rows = archive.rows(
        "SELECT extract(year FROM valid_time)::int, state FROM observation WHERE known_from < '2023-06-01' ORDER BY 1"
    )
    assert rows == [(2021, MISSING), (2022, VALUE), (2023, MISSING)]


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("USA/NO.SUCH", "B: the World Bank refuses, 160: Data not found.: The provided parameter value is not valid"),
        ("XYZ/SP.POP.TOTL", "B: the World Bank refuses, 160: Data not found."),
    ],
)
def test_a_series_or_country_that_the_archive_does_not_know_stops_it_before_anything_is_loaded(
    archive: Desk, wanted: str, says: str
) -> None:
    archive.ids["B"] = wanted
    assert archive.refused().startswith(says)
    assert archive.bank.asked("/time/all/") == []


def test_a_version_that_is_no_month(archive: Desk) -> None:
    archive.bank.versions["latest"] = {GDP: YEARS}
    assert archive.refused() == ("database 57 lists 'LATEST' as a version, which is no month")


def test_the_sample_loads_to_what_its_files_say(desk: Desk) -> None:
    """Both vintages of a series of the csv sample, months and quarters, value by value."""
    vintages = sample(SAMPLE / "data/us-macro")
    assert sorted(vintages) == ["201606", "201607"]
    for version, series in vintages.items():
        desk.bank.versions[version] = {f"USA/{name}": values for name, values in series.items()}
    desk.ids, desk.database, desk.frequency = {"GDPC1": "USA/GDPC1"}, 57, "quarter"
    desk.load()
    for at, version in (("2016-07-01", "201606"), ("2016-08-01", "201607")):
        expected = {
            f"{one[:4]}-{int(one[5]) * 3 - 2:02}-01": value for one, value in vintages[version]["GDPC1"].items()
        }
        assert desk.known(at, "GDPC1") == expected
        assert len(expected) > 100


# ---- another source in the same service ----

CSV = """
[source.files]
kind = "csv"
path = "own.csv"
layout = "long"
date = { column = "month", format = "%Y-%m" }
vintage = { column = "known", format = "%Y-%m-%d" }
[series.OWN]
source = "files"
frequency = "month"
unit = "1"
release_lag_days = 1
[[feature]]
series = "OWN"
"""


def test_series_of_two_sources_join_in_one_row_by_what_was_known_of_each(desk: Desk) -> None:
    desk.ids, desk.database, desk.frequency, desk.also = {"A": "USA/X"}, 57, "month", CSV
    desk.bank.versions = {
        "202304": {"USA/X": {"2023M01": 1.0, "2023M02": 2.0}},
        "202305": {"USA/X": {"2023M01": 1.0, "2023M02": 2.5, "2023M03": 3.0}},
    }
    (desk.root / "own.csv").write_text(
        "known,month,series,value\n2023-03-10,2023-01,OWN,10\n2023-05-20,2023-02,OWN,20\n", "utf-8"
    )
    assert [one["outcome"] for one in desk.load()] == ["loaded"] * 3
    with connect(desk.url) as connection:
        version = read.data_version(connection, None)
        rows = [
            forecasting.known_inputs(desk.contract, connection, moment(at), version).row[-2:].tolist()
            for at in ("2023-05-02", "2023-05-21", "2023-06-01")
        ]
    assert rows == [[2, 10], [2, 20], [3, 20]]


# ---- pages ----


def test_long_answers_come_in_pages_however_many_rows_the_provider_allows(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.bank.current[GDP] = {f"{year}": float(year) for year in range(1990, 2001)}
    monkeypatch.setattr(source, "PER_PAGE", 4)
    desk.load()
    assert [(one["page"], one["per_page"]) for one in desk.bank.log] == [("1", "4"), ("2", "4"), ("3", "4")]
    assert [value for _, _, value in desk.held()] == list(range(1990, 2001))
    desk.bank.most = 3  # and it gives less than was asked for
    desk.bank.current[GDP] = {f"{year}": float(year) for year in range(1990, 2002)}
    desk.load()
    assert [one["page"] for one in desk.bank.log[3:]] == ["1", "2", "3", "4"]
    assert len(desk.held()) == 12


@pytest.fixture
def paged(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    desk.bank.current[GDP] = {f"{year}": float(year) for year in range(1990, 2001)}
    monkeypatch.setattr(source, "PER_PAGE", 4)
    return desk


def test_when_lastupdated_changes_between_pages_the_read_begins_anew(paged: Desk) -> None:
    paged.bank.faults = {"updated": 1}
    paged.load()
    assert [(one["page"], one["fault"]) for one in paged.bank.log] == [
        ("1", ""), ("2", "updated"), ("1", ""), ("2", ""), ("3", "")
    ]  # fmt: skip
    assert [value for _, _, value in paged.held()] == list(range(1990, 2001))


def test_what_changes_whenever_it_is_read_is_said_and_not_loaded(paged: Desk) -> None:
    paged.bank.faults = {"updated": 99}
    assert paged.refused() == (
        "A: the World Bank changed it while it was read, 3 times; nothing of it was loaded, run again later"
    )
    assert [one["page"] for one in paged.bank.log] == ["1", "2"] * 3


def test_rows_that_are_lost_on_the_way_are_missed(paged: Desk) -> None:
    paged.bank.faults = {"a row less": 1}
    paged.load()
    assert [one["page"] for one in paged.bank.log] == ["1", "2", "3"] * 2
    paged.bank.faults = {"a row less": 99}
    assert "of 11 rows the World Bank sent 8, 3 times" in paged.refused()


# ---- what goes wrong at the provider: one clear line, nothing half-loaded ----


@pytest.fixture
def two(desk: Desk) -> Desk:
    """Two series, of which the first one could be loaded."""
    desk.ids = {"A": GDP, "B": "USA/SP.POP.TOTL"}
    desk.bank.current = {GDP: YEARS, "USA/SP.POP.TOTL": YEARS}
    return desk


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("invalid", "B: the World Bank refuses, 120: Invalid value: The provided parameter value is not valid (check"),
        ("invalid and null", "B: the World Bank refuses, 175: Invalid format: The indicator was not found. It may"),
        ("missing page", 'B: the World Bank answers 404: "<!DOCTYPE html> <html>'),
        ("maintenance", "B: this is no answer of the World Bank's: \"<!DOCTYPE html> <html>"),
        ("cut", 'B: this is no answer of the World Bank\'s: "[{\\"page\\":1'),
        ("another shape", 'B: this is no answer of the World Bank\'s: "[{\\"page\\":1'),
    ],
)
def test_an_error_inside_status_200_and_a_body_that_is_no_answer(
    two: Desk, monkeypatch: pytest.MonkeyPatch, fault: str, says: str
) -> None:
    monkeypatch.setattr(two.bank, "faults", Nth(2, fault))
    assert two.refused().startswith(says)
    assert [one["fault"] for one in two.bank.log] == ["", fault]  # it does not help to ask again
    two.load()
    assert len(two.held("A")) == len(two.held("B")) == 2


def test_xml_though_json_was_asked_for_is_asked_for_again_and_said_when_it_stays(two: Desk) -> None:
    two.bank.faults = {"xml": 2}
    two.load()
    assert [one["fault"] for one in two.bank.log] == ["xml", "xml", "", ""]
    two.bank.faults = {"xml": 99}
    assert two.refused() == (
        "A: the World Bank answers in XML, though JSON was asked for, 3 times; nothing of it was loaded, run again"
        " later"
    )


def test_an_answer_for_another_series_is_not_believed(two: Desk) -> None:
    two.bank.faults = {"another series": 1}
    two.load()
    assert [one["fault"] for one in two.bank.log] == ["another series", "", ""]
    two.bank.faults = {"another series": 99}
    assert "A: the World Bank answers for something else than USA/NY.GDP.MKTP.KD, 3 times" in two.refused()


def test_an_answer_for_another_country_of_the_archive_is_not_believed(archive: Desk) -> None:
    archive.bank.faults = {"another series": 99}
    assert "A: database 57 knows no country USA" in archive.refused()
    archive.bank.faults = Nth(4, "another series")  # versions, country, series, the first version
    archive.load()
    assert [one["fault"] for one in archive.bank.asked("version/202304")] == ["another series", ""]
    assert len(archive.held()) == 5


def test_502_passes_or_is_said(two: Desk) -> None:
    two.bank.faults = {"bad gateway": 1}
    two.load()
    assert [one["status"] for one in two.bank.log] == [502, 200, 200]
    two.bank.faults = {"bad gateway": 99}
    assert two.refused() == "127.0.0.1 answers 502, 2 times; try again later"


def test_a_provider_that_is_down(two: Desk) -> None:
    with serving(WorldBank()) as gone:
        two.bank.url = gone.url
    says = two.refused()
    assert says.startswith("127.0.0.1 cannot be reached: ")
    assert says.endswith("; try again later")


@pytest.mark.parametrize(
    ("keys", "frequency", "says"),
    [
        ("", "year", "ids: each series of this source needs one, and no other has one: A"),
        ('A = "USA/X"\nB = "USA/X"', "year", "and no other has one: B"),
        ('A = "NY.GDP.MKTP.KD"', "year", "COUNTRY/INDICATOR, such as USA/NY.GDP.MKTP.KD"),
        ('A = "USA/X/Y"', "year", "COUNTRY/INDICATOR"),
        ('A = "USA/X"', "day", "A: the World Bank has years, quarters and months"),
    ],
)
def test_a_wrong_declaration_is_said_before_anything_is_asked(desk: Desk, keys: str, frequency: str, says: str) -> None:
    source = SOURCE.format(url=desk.bank.base_url, database=2, more="") + keys + "\n" + SERIES.format("A", frequency)
    with pytest.raises(UsageError, match=re.escape(says)):
        desk.load(desk.declared(HEAD.format(target="A") + source))
    assert desk.bank.log == []


# ---- the parser ----


def parsed(content: bytes, folder: Path, frequency: Any = "year", vintage: str = "") -> list[Cell | Reject]:
    path = folder / "page"
    path.write_bytes(content)
    series = {"A": Series(source="bank", frequency=frequency, unit="1", release_lag_days=0)}
    payload = Payload("A/now", path, "application/json", moment(vintage) if vintage else None)
    return list(source.parse(payload, source.Options(ids={"A": GDP}), series))


@pytest.mark.parametrize(
    ("name", "frequency", "vintage", "cells"),
    [
        ("years.json", "year", "", [("2026-01", math.nan), ("2025-01", 3.17253034260248), ("2024-01", math.nan),
                                    ("2023-01", -0.486542459803047)]),
        ("quarters.json", "quarter", "", [("2013-04", 12500000000.5), ("2013-01", 12400000000.0)]),
        ("months.json", "month", "", [("2012-03", 8.2), ("2012-02", 8.3), ("2012-01", 8.0)]),
        ("version.json", "year", "1997-05-01", [("1997-01", math.nan), ("1996-01", math.nan), ("1995-01", 9500.0),
                                                ("1975-01", 9620.0)]),
        ("nothing.json", "year", "", []),
    ],
)  # fmt: skip
def test_a_recorded_answer_gives_these_cells(
    tmp_path: Path, name: str, frequency: str, vintage: str, cells: list[tuple[str, float]]
) -> None:
    found = parsed((SAMPLES / name).read_bytes(), tmp_path, frequency, vintage)
    assert str([(f"{one.valid_time:%Y-%m}", one.value) for one in found]) == str(cells)
    assert all(isinstance(one, Cell) and one.state == (MISSING if one.value != one.value else VALUE) for one in found)
    assert {one.known_from for one in found if isinstance(one, Cell)} <= {moment(vintage) if vintage else None}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "invalid_value.json",
            "A: the World Bank refuses, 120: Invalid value: The provided parameter value is not valid",
        ),
        ("not_found.json", "A: the World Bank refuses, 175: Invalid format: The indicator was not found."),
        ("no_data.xml", "A: the World Bank refuses, 160: Data not found.: The provided parameter value is not valid"),
        ("data.xml", "A: the World Bank answers in XML"),
        ("maintenance.html", "A: this is no answer of the World Bank's"),
    ],
)
def test_kept_bytes_that_are_no_data_are_refused(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(SourceError, match=re.escape(says)):
        parsed((SAMPLES / name).read_bytes(), tmp_path)


BAD = {
    "text": ({"value": "n/a"}, "number"),
    "true": ({"value": True}, "number"),
    "too large": ({"value": 10**400}, "finite"),
    "infinite": ({"value": math.inf}, "finite"),
    "not a number": ({"value": math.nan}, "finite"),
    "a month among years": ({"date": "2025M01"}, "date"),
    "a month that is none": ({"date": "2025M13"}, "date"),
    "no year": ({"date": "0000"}, "date"),
    "no period": ({"date": None}, "date"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_row_goes_to_quarantine_and_the_others_do_not(tmp_path: Path, bad: str) -> None:
    head, rows = json.loads((SAMPLES / "years.json").read_bytes())
    change, rule = BAD[bad]
    rows = [rows[1] | change, rows[3], rows[3]]
    found = parsed(json.dumps([head, rows]).encode(), tmp_path)
    assert [(one.line, one.rule) for one in found if isinstance(one, Reject)] == [(1, rule), (3, "duplicate")]
    assert [(one.value, one.raw) for one in found if isinstance(one, Cell)] == [(-0.486542459803047,) * 2]


years = st.integers(1900, 2040).map(str)
numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70)


@settings(deadline=None)
@given(st.dictionaries(years, numbers, max_size=30), st.integers(1, 9), st.sampled_from(["", "2024-05-01"]))
def test_whatever_is_published_is_read_as_it_is_in_pages_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, values: Mapping[str, float | None], size: int, vintage: str
) -> None:
    """The stand-in's own answers, of both shapes, page after page: every value, and null but of what is to come."""
    bank = WorldBank({GDP: values}, {"202404": {GDP: values}}, silent={"202404"}, most=size)
    path = "/v2/country/USA/indicator/NY.GDP.MKTP.KD"
    if vintage:
        path = "/v2/sources/57/country/USA/series/NY.GDP.MKTP.KD/time/all/version/202404/data"
    asked = f"{path}?format=json&per_page=99&page="
    pages = [bank.answer(f"{asked}{number}", {})[2] for number in range(1, -(-len(values) // size) + 1)]
    found = parsed(b"\n".join(pages or [(SAMPLES / "nothing.json").read_bytes()]), tmp_path_factory.getbasetemp(),
                   vintage=vintage)  # fmt: skip
    until = vintage or bank.updated
    expected = {year: value for year, value in values.items() if value is not None or f"{year}-01-01" < until}
    cells = {f"{one.valid_time:%Y}": None if one.state else one.value for one in found if isinstance(one, Cell)}
    assert cells == {year: value if value is None else float(value) for year, value in expected.items()}
    assert len(found) == len(cells)


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(0, 900), st.booleans(), st.sampled_from(["years.json", "version.json"]))
def test_whatever_the_bytes_are_they_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, place: int, replace: bool, name: str
) -> None:
    whole = (SAMPLES / name).read_bytes()
    content = whole[:place] + junk + whole[place + replace * len(junk) :]
    for one in (content, junk):
        try:
            parsed(one, tmp_path_factory.getbasetemp())
        except SourceError as refusal:
            assert "\n" not in str(refusal)
