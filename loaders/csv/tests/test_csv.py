"""The csv source: what it reads from good files, what it sends to quarantine, what it refuses whole."""

import csv
import gzip
import io
import math
import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from conftest import ROOT
from conftest import SAMPLE as HOME
from hypothesis import given, settings
from hypothesis import strategies as st

from model_service import contract, mistakes, periods
from model_service.errors import UsageError
from model_service.loader import Ask, Cell, Reject, SourceError, Window
from model_service.loader.sources import csv as source

DOCUMENT = ROOT / "docs/csv.md"
SAMPLE = {
    "path": "data/us-macro/*.csv",
    "layout": "wide",
    "date": {"column": "Date", "format": "%m/%d/%y"},
    "vintage": {"from": "file_name", "format": "%Y-%m-%d"},
}
QUARTERLY = {"GDPC1", "ULCNFB", "A261RX1Q020SBEA"}
WIDE = {"path": "*.csv", "layout": "wide", "date": {"column": "date", "format": "%Y-%m-%d"}}
LONG = {**WIDE, "layout": "long"}


def options(**keys: Any) -> source.Options:
    return mistakes.validate(source.Options, keys, "service.toml, [source.test]")


def series(frequency: contract.Frequency = "month", *names: str) -> dict[str, contract.Series]:
    one = contract.Series(source="test", frequency=frequency, unit="x", release_lag_days=0)
    return dict.fromkeys(names or ("A", "B"), one)


def sample_series() -> dict[str, contract.Series]:
    header = (HOME / "data/us-macro/2016-06-29.csv").read_text("utf-8").splitlines()[0].split(",")
    return series("month", *header[1:]) | series("quarter", *sorted(QUARTERLY))


def read(folder: Path, content: str | bytes, keys: dict[str, Any], frequency: contract.Frequency = "month") -> Any:
    """(cells, rejects) of one file in which A and B are mapped."""
    (folder / "x.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    chosen = options(**keys)
    (payload,) = source.fetch(chosen, Ask(folder))
    found = list(source.parse(payload, chosen, series(frequency)))
    return [one for one in found if isinstance(one, Cell)], [one for one in found if isinstance(one, Reject)]


def brief(cells: Iterable[Cell]) -> list[tuple[str, str, float]]:
    return [(cell.series, f"{cell.valid_time:%Y-%m-%d}", cell.value) for cell in cells]


def keyed(found: Iterable[Cell | Reject]) -> set[Any]:
    return {(one.series, one.valid_time, one.known_from, one.value) for one in found if isinstance(one, Cell)}


def day(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


# ---- the sample ----


def test_sample_gives_every_published_value_and_its_vintage() -> None:
    chosen = options(**SAMPLE)
    payloads = list(source.fetch(chosen, Ask(HOME)))
    assert [(one.name, one.vintage, one.media_type) for one in payloads] == [
        ("data/us-macro/2016-06-29.csv", day("2016-06-29"), "text/csv"),
        ("data/us-macro/2016-07-29.csv", day("2016-07-29"), "text/csv"),
    ]
    for payload, expected in zip(payloads, (8653, 8676), strict=True):
        found = list(source.parse(payload, chosen, sample_series()))
        cells = [one for one in found if isinstance(one, Cell)]
        assert (len(cells), len(found)) == (expected, expected)
        assert {cell.known_from for cell in cells} == {payload.vintage}
    last = [cell for cell in cells if cell.series in {"UNRATE", "GDPC1"} and cell.valid_time >= day("2016-04-01")]
    assert sorted(brief(last)) == [
        ("GDPC1", "2016-04-01", 16575.1),  # written in the quarter's last month
        ("UNRATE", "2016-04-01", 5.0),
        ("UNRATE", "2016-05-01", 4.7),
        ("UNRATE", "2016-06-01", 4.9),
    ]


def test_long_and_wide_layout_give_the_same_cells(tmp_path: Path) -> None:
    wide = options(**SAMPLE)
    expected: set[Any] = set()
    with (tmp_path / "all.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["known", "id", "day", "amount"])
        for payload in source.fetch(wide, Ask(HOME)):
            with payload.path.open(newline="") as lines:
                for row in csv.DictReader(lines):
                    writer.writerows([payload.path.stem, name, row["Date"], row[name]] for name in sample_series())
            expected |= keyed(source.parse(payload, wide, sample_series()))
    long = options(
        path="all.csv",
        layout="long",
        date={"column": "day", "format": "%m/%d/%y"},
        vintage={"column": "known", "format": "%Y-%m-%d"},
        series_column="id",
        value_column="amount",
    )
    (payload,) = source.fetch(long, Ask(tmp_path))
    found = list(source.parse(payload, long, sample_series()))
    assert len(found) == len(expected) == 8653 + 8676
    assert keyed(found) == expected


def test_service_toml_maps_the_sample() -> None:
    """Every series has the frequency its column shows, and no release lag claims a value that a vintage lacks."""
    declared = contract.load(HOME / "service.toml")
    if "us_macro" not in declared.source:
        pytest.skip("service.toml no longer maps the sample data/us-macro")
    mapped = declared.of_source("us_macro")
    chosen = mistakes.validate(source.Options, declared.source["us_macro"].options, "service.toml")
    for payload in source.fetch(chosen, Ask(HOME)):
        found = list(source.parse(payload, chosen, mapped))
        assert not [one for one in found if isinstance(one, Reject)]
        assert payload.vintage is not None
        for name, one in mapped.items():
            cells = [cell for cell in found if isinstance(cell, Cell) and cell.series == name]
            ordinals = [periods.ordinal(one.frequency, cell.valid_time) for cell in cells][-60:]
            assert ordinals == list(range(ordinals[0], ordinals[0] + 60)), f"{name}: gaps, so not by {one.frequency}"
            released = periods.end(one.frequency, ordinals[-1] + 1) + timedelta(days=one.release_lag_days)
            assert released > payload.vintage.date(), f"{name}: not yet published on {payload.vintage:%Y-%m-%d}"


def test_examples_of_the_documentation(tmp_path: Path) -> None:
    """An example is a file, named in the text above it, and the service.toml that reads it."""
    blocks = re.findall(r"`(data/\S+)`[^`]*```\n(.*?)```\n```toml\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    read_back = []
    for name, content, toml in blocks:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
        declared = tomllib.loads(toml)
        ((_, keys),) = declared["source"].items()
        assert keys.pop("kind") == "csv"
        mapped = {name: contract.Series(**one) for name, one in declared["series"].items()}
        (payload,) = source.fetch(options(**keys), Ask(tmp_path))
        read_back += list(source.parse(payload, options(**keys), mapped))
    assert [(*one[:2], one.known_from, one.value) for one in read_back if isinstance(one, Cell)] == [
        ("UNRATE", day("2016-04-01"), day("2016-06-29"), 5),
        ("UNRATE", day("2016-05-01"), day("2016-06-29"), 4.7),
        ("GDP", day("2016-04-01"), day("2016-07-29"), 16575.1),
    ]
    assert len(read_back) == 3


# ---- one bad cell or line: quarantined with its rule, the others are read ----


@pytest.mark.parametrize(
    ("text", "decimal", "rule"),
    [
        ("n/a", ".", "number"),
        ("1,5", ".", "number"),
        ("1.5", ",", "number"),
        ("1.234,5", ",", "number"),
        ("1_000", ".", "number"),
        ("\u0661", ".", "number"),
        ("0x10", ".", "number"),
        ("NaN", ".", "finite"),
        ("-inf", ".", "finite"),
        ("1e999", ".", "finite"),
    ],
)
def test_bad_value(tmp_path: Path, text: str, decimal: str, rule: str) -> None:
    content = f"date;A;B\n2020-01-01;{text};2\n2020-02-01;3;4\n"
    cells, rejects = read(tmp_path, content, {**WIDE, "delimiter": ";", "decimal": decimal})
    assert brief(cells) == [("B", "2020-01-01", 2), ("A", "2020-02-01", 3), ("B", "2020-02-01", 4)]
    assert [(one.series, one.line, one.raw, one.rule) for one in rejects] == [("A", 2, text, rule)]


def test_bad_date_rejects_the_cells_of_its_line_that_are_not_missing(tmp_path: Path) -> None:
    cells, rejects = read(tmp_path, "date,A,B\n2020-13-01,1,2\n,,\n2020-02-30,,3\n2020-03-01,4,\n", WIDE)
    assert brief(cells) == [("A", "2020-03-01", 4)]
    assert [(one.series, one.line, one.raw, one.rule) for one in rejects] == [
        ("A", 2, "1", "date"),
        ("B", 2, "2", "date"),
        ("B", 4, "3", "date"),
    ]
    assert "'2020-13-01' is not a date in the format '%Y-%m-%d'" in rejects[0].detail


def test_bad_known_from_is_a_bad_date(tmp_path: Path) -> None:
    keys = {**WIDE, "vintage": {"column": "known", "format": "%Y-%m-%d"}}
    cells, rejects = read(tmp_path, "date,known,A,B\n2020-01-01,soon,1,\n2020-02-01,2020-03-05,2,\n", keys)
    assert [(one.series, one.known_from) for one in cells] == [("A", day("2020-03-05"))]
    assert [(one.series, one.line, one.raw, one.rule) for one in rejects] == [("A", 2, "1", "date")]
    assert "'soon'" in rejects[0].detail


def test_line_with_the_wrong_number_of_cells_counts_one(tmp_path: Path) -> None:
    cells, rejects = read(tmp_path, "date,A,B\n2020-01-01,1\n2020-02-01,2,3,4\n2020-03-01,5,6\n", WIDE)
    assert brief(cells) == [("A", "2020-03-01", 5), ("B", "2020-03-01", 6)]
    assert [(one.series, one.line, one.raw, one.rule) for one in rejects] == [
        (None, 2, "2020-01-01,1", "columns"),
        (None, 3, "2020-02-01,2,3,4", "columns"),
    ]
    assert rejects[1].detail == "4 cells; the header has 3"


@pytest.mark.parametrize("after", ["2020-02-01,3,4\n2020-03-01,5,6\n", '2020-02-01,3,4\n"2020-03-01",5,6\n'])
def test_quote_that_is_not_closed_costs_its_own_line_only(tmp_path: Path, after: str) -> None:
    cells, rejects = read(tmp_path, f'date,A,B\n2020-01-01,"1,2\n{after}', WIDE)
    assert [cell.value for cell in cells] == [3, 4, 5, 6]
    assert [cell.line for cell in cells] == [3, 3, 4, 4]
    assert [(one.line, one.raw, one.rule) for one in rejects] == [(2, '2020-01-01,"1,2', "columns")]


def test_spaces_around_names_and_cells_do_not_count(tmp_path: Path) -> None:
    cells, rejects = read(tmp_path, "date , A,B\n2020-01-01, 1 ,  \n 2020-02-01,2,3\n", WIDE)
    assert brief(cells) == [("A", "2020-01-01", 1), ("A", "2020-02-01", 2), ("B", "2020-02-01", 3)]
    assert rejects == []
    assert {cell.known_from for cell in cells} == {None}  # no vintage declared: the time of loading


def test_line_break_inside_quotes_is_no_new_line(tmp_path: Path) -> None:
    cells, rejects = read(tmp_path, 'date,note,A,B\r\n2020-01-01,"a\r\nb",1,x\r\n2020-02-01,c,2,\r\n', WIDE)
    assert [(cell.value, cell.line) for cell in cells] == [(1, 2), (2, 4)]
    assert [(one.line, one.rule) for one in rejects] == [(2, "number")]


def test_duplicate_keeps_the_first_and_names_its_line(tmp_path: Path) -> None:
    content = "date,A,B\n2020-01-01,bad,2\n2020-01-15,1,2\n2020-01-31,3,\n"
    cells, rejects = read(tmp_path, content, WIDE)
    assert brief(cells) == [("B", "2020-01-01", 2), ("A", "2020-01-01", 1)]  # a rejected cell takes no place
    assert [(one.series, one.line, one.raw, one.rule) for one in rejects] == [
        ("A", 2, "bad", "number"),
        ("B", 3, "2", "duplicate"),
        ("A", 4, "3", "duplicate"),
    ]
    assert "line 2 already gave B" in rejects[1].detail
    assert "line 3 already gave A" in rejects[2].detail


def test_same_period_of_another_vintage_is_no_duplicate(tmp_path: Path) -> None:
    keys = {**WIDE, "vintage": {"column": "known", "format": "%Y-%m-%d"}}
    lines = ["2020-01-01,2020-02-05,1,", "2020-01-01,2020-03-05,1,", "2020-01-01,2020-02-05,1,"]
    cells, rejects = read(tmp_path, "\n".join(["date,known,A,B", *lines]), keys)
    assert [cell.line for cell in cells] == [2, 3]
    assert [(one.line, one.rule) for one in rejects] == [(4, "duplicate")]


def test_unknown_series_of_a_long_file(tmp_path: Path) -> None:
    content = "series,date,value\nA,2020-01-01,1\nAA,2020-01-01,2\nAA,2020-02-01,\nB,2020-01-01,3\n"
    cells, rejects = read(tmp_path, content, LONG)
    assert brief(cells) == [("A", "2020-01-01", 1), ("B", "2020-01-01", 3)]
    assert [(one.series, one.line, one.raw, one.rule) for one in rejects] == [(None, 3, "2", "series")]
    assert rejects[0].detail == "'AA' is not declared; did you mean 'A'?"


def test_nul_never_reaches_the_database(tmp_path: Path) -> None:
    _, rejects = read(tmp_path, b"date,A,B\n2020-01-01,1\x00,\n2020-02-01,\x00\n", WIDE)
    assert [(one.rule, one.raw) for one in rejects] == [("number", "1\u2400"), ("columns", "2020-02-01,\u2400")]


# ---- a file that is refused whole ----


@pytest.mark.parametrize(
    ("header", "parts"),
    [
        ("date,A", ["no column 'B'"]),
        ("Date,A,B", ["no column 'date'; did you mean 'Date'?"]),
        ("date,A,B,A", ["column 'A' stands twice"]),
        ("Date;AB;B", ["no column 'date'", "no column 'A'", "no column 'B'", "`delimiter` (now ',')"]),
        ("dates,A,Bs", ["no column 'date'; did you mean 'dates'?", "no column 'B'; did you mean 'Bs'?"]),
    ],
)
def test_header_that_does_not_fit(tmp_path: Path, header: str, parts: list[str]) -> None:
    with pytest.raises(SourceError) as refused:
        read(tmp_path, f"{header}\n2020-01-01,1,2\n", WIDE)
    assert [part for part in ["x.csv: ", "service.toml", *parts] if part not in str(refused.value)] == []


def test_a_column_that_nothing_asks_for_may_stand_twice(tmp_path: Path) -> None:
    cells, rejects = read(tmp_path, "date,A,flag,B,flag\n2020-01-01,1,p,2,\n", WIDE)
    assert (brief(cells), rejects) == ([("A", "2020-01-01", 1), ("B", "2020-01-01", 2)], [])


def test_header_of_a_long_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no column 'value'; did you mean 'values'"):
        read(tmp_path, "series,date,values\nA,2020-01-01,1\n", LONG)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x.csv: the file is empty"),
        (b"\xef\xbb\xbf", "x.csv: the file is empty"),
        (b"\n \n", "x.csv: the file is empty"),
        (b"date,A,B\n", "x.csv: the file has a header and nothing below it"),
        (b'"date,A,B\n2020-01-01,1,2\n', "x.csv: line 1 is no header"),
        (b"\xef\xbb\xbfdate,A,B\n2020-01-01,1,\xff\n", "x.csv: byte 25 is not utf-8-sig: set `encoding`"),
        (b"date,A,B\n" + b"2020-01-01,1,2\n" * 90_000 + b"\xc3", "x.csv: byte 1350009 is not utf-8-sig"),
    ],
)
def test_file_that_cannot_be_read(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(SourceError) as refused:
        read(tmp_path, content, WIDE)
    assert str(refused.value).startswith(message)


def test_no_file(tmp_path: Path) -> None:
    (tmp_path / ".hidden.csv").write_text("x")
    for path in ("data/*.csv", "*.csv", ["*.csv", "y"]):
        with pytest.raises(SourceError) as refused:
            next(source.fetch(options(**{**WIDE, "path": path}), Ask(tmp_path)))
        assert repr(path if isinstance(path, str) else path[0]) in str(refused.value)
        assert str(tmp_path) in str(refused.value)


def test_files_come_by_vintage_then_name(tmp_path: Path) -> None:
    names = ["a/01-12-2019.csv", "a/02-01-2020.csv", *(f"{folder}/01-03-2020.csv" for folder in "abcdef")]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    vintage = {"from": "file_name", "format": "%d-%m-%Y"}
    chosen = options(**{**WIDE, "path": ["[b-f]/*.csv", "a/*.csv", "*/*2019.csv"], "vintage": vintage})
    assert [one.name for one in source.fetch(chosen, Ask(tmp_path))] == names


def test_a_window_chooses_vintages_by_the_day_they_became_known(tmp_path: Path) -> None:
    for name in ("2016-06-29.csv", "2016-07-29.csv", "2016-08-29.csv"):
        (tmp_path / name).write_text("date,A,B\n2016-01-01,1,2\n")
    chosen = options(**WIDE, vintage={"from": "file_name", "format": "%Y-%m-%d"})
    window = Window(date(2016, 6, 30), date(2016, 7, 29))
    assert [one.name for one in source.fetch(chosen, Ask(tmp_path, window))] == ["2016-07-29.csv"]
    with pytest.raises(UsageError, match="the names of these files hold none"):
        list(source.fetch(options(**WIDE), Ask(tmp_path, window)))


def test_a_file_looks_different_once_it_was_written_again(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("date,A,B\n2016-01-01,1,2\n")
    (first,) = source.fetch(options(**WIDE), Ask(tmp_path))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    (again,) = source.fetch(options(**WIDE), Ask(tmp_path))
    assert first.mark != again.mark


def test_file_name_without_a_vintage(tmp_path: Path) -> None:
    for name in ("2016-06-29.csv", "notes.csv"):
        (tmp_path / name).write_text("x")
    with pytest.raises(SourceError, match="notes.csv: the file's name holds no vintage: 'notes' is not a date"):
        next(source.fetch(options(**{**SAMPLE, "path": "*.csv"}), Ask(tmp_path)))


def test_dates_that_are_coarser_than_the_series(tmp_path: Path) -> None:
    keys = {**WIDE, "date": {"column": "date", "format": "%Y"}}
    with pytest.raises(SourceError, match="A is by month, the date format '%Y' names only a year"):
        read(tmp_path, "date,A,B\n2020,1,2\n", keys)
    assert brief(read(tmp_path, "date,A,B\n2020,1,\n", keys, "year")[0]) == [("A", "2020-01-01", 1)]


def test_zipped_file_and_one_that_was_cut(tmp_path: Path) -> None:
    content = gzip.compress(b"date,A,B\n2020-01-01,1,2\n")
    keys = {**WIDE, "path": "*.gz", "vintage": {"from": "file_name", "format": "%Y-%m"}}
    (tmp_path / "2020-02.csv.gz").write_bytes(content)
    (payload,) = source.fetch(options(**keys), Ask(tmp_path))
    assert (payload.vintage, payload.media_type) == (day("2020-03-01"), "application/gzip")
    cells = source.parse(payload, options(**keys), series())
    assert [one.value for one in cells if isinstance(one, Cell)] == [1, 2]
    payload.path.write_bytes(content[:-9])
    with pytest.raises(SourceError, match="2020-02.csv.gz: cannot be read"):
        list(source.parse(payload, options(**keys), series()))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"delimeter": ";"}, "did you mean 'delimiter'"),
        ({"path": "ftp://example.org/x.csv"}, "below the project's folder"),
        ({"path": "/data/x.csv"}, "below the project's folder"),
        ({"encoding": "utf8-bom"}, "unknown encoding"),
        ({"delimiter": ";;"}, "delimiter"),
        ({"value_column": "v"}, 'only for layout = "long"'),
        ({"date": {"column": "date", "format": "%m/%d"}}, "names no year"),
        ({"date": {"column": "date", "format": "%Y-%K"}}, "is not a date in the format '%Y-%K'"),
        ({"vintage": {"format": "%Y"}}, 'give either from = "file_name" or column'),
        ({"vintage": {"from": "file_name", "column": "known", "format": "%Y"}}, "give either"),
    ],
)
def test_wrong_key(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        options(**{**WIDE, **keys})
    assert "[source.test]" in str(refused.value)
    assert message in str(refused.value)


# ---- dates and periods ----


@pytest.mark.parametrize(
    ("text", "format", "moment"),
    [
        ("2016-06-29", "%Y-%m-%d", "2016-06-29T00:00"),
        ("2016-06-29T12:30+02:00", "%Y-%m-%dT%H:%M%z", "2016-06-29T10:30"),
        ("2016-12", "%Y-%m", "2017-01-01T00:00"),
        ("Feb 16", "%b %y", "2016-03-01T00:00"),
        ("2016-Q4", "%Y-Q%q", "2017-01-01T00:00"),
        ("2016-W01", "%G-W%V", "2016-01-11T00:00"),
        ("2016-W01-3", "%G-W%V-%u", "2016-01-06T00:00"),
        ("2016", "%Y", "2017-01-01T00:00"),
    ],
)
def test_known_from_is_the_day_or_the_first_one_after_the_period(text: str, format: str, moment: str) -> None:
    assert periods.known_from(text, format) == day(moment)


@given(st.sampled_from(periods.FREQUENCIES), st.dates(date(1, 1, 1), date(9998, 12, 31)))
def test_periods_are_consecutive_and_hold_their_days(frequency: str, one: date) -> None:
    number = periods.ordinal(frequency, one)
    first, after = periods.date_of(frequency, number), periods.end(frequency, number)
    assert first == periods.start(frequency, one) <= one < after
    assert periods.ordinal(frequency, first) == number == periods.ordinal(frequency, after) - 1
    assert frequency != "week" or first.weekday() == 0
    assert frequency != "weekday" or first.weekday() < 5


def test_periods_of_known_days() -> None:
    assert [periods.start(name, date(2016, 6, 29)) for name in periods.FREQUENCIES] == [
        date(2016, 6, 29),
        date(2016, 6, 29),
        date(2016, 6, 27),
        date(2016, 6, 1),
        date(2016, 4, 1),
        date(2016, 1, 1),
        date(2016, 1, 1),
    ]
    assert [periods.start("half_year", date(2016, month, 1)).month for month in (6, 7, 12)] == [1, 7, 7]
    assert [periods.season(name) for name in periods.FREQUENCIES] == [7, 5, 52, 12, 4, 2, 1]
    assert periods.start("weekday", date(2016, 7, 3)) == date(2016, 7, 1)  # a Friday lasts to Monday
    for call in (periods.ordinal, periods.start):
        with pytest.raises(ValueError, match="unknown frequency 'hour'"):
            call("hour", date(2016, 1, 1))


# ---- any table, in any dialect ----

FORMATS: dict[contract.Frequency, list[str]] = {
    "day": ["%Y-%m-%d", "%d.%m.%Y", "%m/%d/%y", "%Y%m%d"],
    "weekday": ["%Y-%m-%d", "%d.%m.%Y"],
    "week": ["%Y-%m-%d", "%G-W%V", "%d/%m/%Y"],
    "month": ["%Y-%m-%d", "%Y-%m", "%b %Y", "%m/%d/%y"],
    "quarter": ["%Y-%m-%d", "%Y-Q%q", "%Y-%m", "Q%q %y"],
    "half_year": ["%Y-%m-%d", "%Y-Q%q", "%Y-%m"],
    "year": ["%Y", "%Y-%m-%d", "%y"],
}
NAMES = st.text("ABCäöé ß;,'\"|_", min_size=1, max_size=6).map(str.strip).filter(bool)


@st.composite
def tables(draw: st.DrawFn) -> tuple[dict[str, Any], contract.Frequency, bytes, dict[Any, float]]:
    """(keys of the source, frequency, bytes of a file, the cells it holds by series, first day, vintage)."""
    frequency = draw(st.sampled_from(list(FORMATS)))
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    format = draw(st.sampled_from(FORMATS[frequency]))
    days = draw(st.lists(st.dates(date(1969, 1, 6), date(2068, 12, 30)), min_size=1, max_size=8))
    days = list({periods.ordinal(frequency, one): one for one in days}.values())
    vintages = draw(st.lists(st.dates(date(2000, 1, 1), date(2020, 1, 1)), min_size=1, max_size=2, unique=True))
    decimal, delimiter = draw(st.sampled_from(".,")), draw(st.sampled_from(",;\t|"))
    missing = draw(st.lists(st.sampled_from(["", ".", "NA", "-", "nan", "-999"]), min_size=1, unique=True))
    numbers = st.floats(allow_nan=False, allow_infinity=False).filter(lambda number: number != -999)
    wide = draw(st.booleans())
    expected: dict[Any, float] = {}
    rows = [["when", "known", *(names if wide else ["series", "value"])]]
    for vintage in vintages:
        for one in days:
            values = draw(st.lists(st.none() | numbers, min_size=len(names), max_size=len(names)))
            key = periods.start(frequency, one), vintage
            expected |= {(n, *key): v for n, v in zip(names, values, strict=True) if v is not None}
            cells = [draw(st.sampled_from(missing)) if v is None else repr(v).replace(".", decimal) for v in values]
            dated = [one.strftime(format.replace("%q", str((one.month + 2) // 3))), vintage.isoformat()]
            pairs = zip(names, cells, strict=True)
            rows += [[*dated, *cells]] if wide else [[*dated, name, cell] for name, cell in pairs]
    text = io.StringIO()
    quoting: Literal[0, 1] = csv.QUOTE_ALL if draw(st.booleans()) else csv.QUOTE_MINIMAL
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows(rows)
    encoding = draw(st.sampled_from(["utf-8-sig", "utf-8", "utf-16", "utf-16-le", "latin-1", "cp1252"]))
    keys: dict[str, Any] = {
        "path": draw(st.sampled_from(["x.csv", "x.csv.gz"])),
        "layout": "wide" if wide else "long",
        "date": {"column": "when", "format": format},
        "vintage": {"column": "known", "format": "%Y-%m-%d"},
        "missing": missing,
        "encoding": encoding,
        "delimiter": delimiter,
        "decimal": decimal,
    }
    return keys, frequency, text.getvalue().encode(encoding), expected


@settings(max_examples=150, deadline=None)
@given(tables())
def test_any_table_reads_back_in_any_dialect(tmp_path_factory: pytest.TempPathFactory, table: Any) -> None:
    keys, frequency, content, expected = table
    folder = tmp_path_factory.mktemp("table")
    zipped = keys["path"].endswith(".gz")
    (folder / keys["path"]).write_bytes(gzip.compress(content) if zipped else content)
    (payload,) = source.fetch(options(**keys), Ask(folder))
    names = sorted({name for name, _, _ in expected}) or ["A"]
    if keys["layout"] == "wide" and not expected:
        return  # no mapped name is known to stand in the header
    found = list(source.parse(payload, options(**keys), series(frequency, *names)))
    assert [one for one in found if isinstance(one, Reject)] == []
    cells = [one for one in found if isinstance(one, Cell)]
    known = {(c.series, c.valid_time.date(), c.known_from.date()): c.value for c in cells if c.known_from}
    assert len(cells) == len(known)
    assert known == expected
    assert all(math.copysign(1, value) == math.copysign(1, expected[key]) for key, value in known.items())
    assert Counter(c.valid_time.time().isoformat() for c in cells).keys() <= {"00:00:00"}
