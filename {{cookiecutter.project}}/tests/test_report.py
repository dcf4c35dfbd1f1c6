"""The report of a training is a page that anybody can open, read and keep, whatever was in the data."""

import json
import re
from collections import Counter
from html.parser import HTMLParser
from typing import Any

import pytest

from model_service.training import page

HORIZONS, ORIGINS = [1, 3, 6], 60
EVIL = "<script>alert(1)</script>\"><img src=//evil.example/x onerror='alert(2)'>&$title"


def made_up(**changes: Any) -> dict[str, Any]:
    """A report as a training writes it, of figures without meaning."""
    horizons, origins = changes.pop("horizons", HORIZONS), changes.pop("origins", ORIGINS)
    months = [f"{2000 + month // 12}-{month % 12 + 1:02}-01" for month in range(origins + 40)]
    rows = [[4 + (place + ahead) % 7 / 10 for ahead in horizons] for place in range(origins)]
    names = [f"IN{number}.level.lag0" for number in range(changes.pop("series", 3))]
    report = {
        "description": "One that was made up",
        "card": {
            "service": "made-up",
            "target": {"series": "RATE", "unit": "percent", "frequency": "month", "transform": "difference"},
            "estimator": "ridge",
            "inputs": names,
            "input_range": {name: [-1.0, 1.0] for name in names},
            "horizons": horizons,
            "trained_as_of": {"known_at": "2016-07-29T23:59:59.999999Z", "data_version": "sha256:" + "0" * 64},
            "metrics": {
                "rmse": {name: [0.2] * len(horizons) for name in ("model", "last_value", "ar")},
                "coverage": {"0.8": [0.81] * len(horizons), "0.95": [0.94] * len(horizons)},
                "origins": {"scored": origins, "real": 1, "pseudo": origins - 1, "first": months[0], "last": months[9]},
                "slices": [{"slice": "all", "says": "2000-01 to 2004-12", "cases": origins,
                            "rmse": [[0.2, 0.1, 0.3]] * len(horizons), "ratio": [0.8] * len(horizons)}],
            },
        },
        "gate": [{"name": "better_than_ar", "ok": True, "figure": 0.01, "limit": 0.05, "says": "p-value",
                  "overruled": False}],
        "forecast": [
            {"horizon": ahead, "valid_time": "2016-07-01", "value": 4.7,
             "intervals": [{"level": 0.8, "lower": 4.6, "upper": 4.9}, {"level": 0.95, "lower": 4.5, "upper": 5.0}]}
            for ahead in horizons
        ],
        "backtest": {
            "origins": [f"{month}T00:00:00Z" for month in months[:origins]],
            "valid_time": [[months[place + ahead] for ahead in horizons] for place in range(origins)],
            "truth": [*rows[:-2], *[[None] * len(horizons)] * 2],
            "forecast": {name: [[value + shift for value in row] for row in rows]
                         for name, shift in (("model", 0.1), ("last_value", 0.3), ("ar", 0.2))},
            "lower": {"0.8": [[3.0] * len(horizons)] * origins, "0.95": [[2.0] * len(horizons)] * origins},
            "upper": {"0.8": [[6.0] * len(horizons)] * origins, "0.95": [[7.0] * len(horizons)] * origins},
        },
        "series": {
            name.split(".")[0]: {"unit": "percent", "frequency": "month", "release_lag_days": 7, "first": months[0],
                                 "last": months[-1], "values": 98, "vintages": 2, "revised": 3, "revision": 0.4}
            for name in names
        },
        "vintages": [{"vintage": "2016-06-29", "known": [4.7] * len(horizons), "revised": [4.8] * len(horizons)}],
        "loads": [{"load_id": 1, "dataset": "made_up", "file": "a.csv", "kind": "fetch", "status": "committed",
                   "new": 98, "changed": 3, "deleted": 0}],
    }  # fmt: skip
    return report | changes


class Seen(HTMLParser):
    """What a browser makes of a page: its tags, the ids, what it refers to, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.refers: list[str] = []
        self.charts: list[dict[str, str | None]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags[tag] += 1
        self.ids.update([given["id"]] if given.get("id") else [])
        self.refers += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href", "srcset"}]
        self.refers += [one for value in given.values() for one in re.findall(r"url\((.*?)\)", value or "")]
        if tag == "svg" and "aria-hidden" not in given:
            self.charts.append(given)

    def handle_data(self, data: str) -> None:
        self.text += data
        self.refers += re.findall(r"(?:url\(|@import )(\S+)", data)

    @property
    def outside(self) -> list[str]:
        return [one for one in self.refers if not one.startswith(("#", "data:"))]


@pytest.fixture(scope="module")
def plain() -> str:
    return page.page(made_up())


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(plain: str) -> None:
    seen = Seen(plain)
    assert seen.outside == []
    assert not seen.tags.keys() & {"script", "iframe", "object", "embed", "base", "form"}


@pytest.mark.parametrize("more", ['<img src="//e/a.png">', "<style>@import x</style>", '<p style="color: url(//e/x)">'])
def test_what_a_page_would_fetch_is_found(plain: str, more: str) -> None:
    assert len(Seen(plain + more).outside) == 1


def everywhere(value: Any) -> Any:
    """`value` with EVIL for every text that data, service.toml or a person can bring."""
    if isinstance(value, dict):
        kept = {"valid_time", "origins", "frequency", "first", "last", "vintage"}
        return {name: part if name in kept else everywhere(part) for name, part in value.items()}
    if isinstance(value, list):
        return [everywhere(part) for part in value]
    return EVIL if isinstance(value, str) else value


def hostile() -> dict[str, Any]:
    report = everywhere(made_up(live=[{"by": "someone"}]))
    report["card"]["input_range"] = {EVIL: [0.0, 1.0]}
    report["series"] = {EVIL: report["series"]["IN0"]}
    report["card"]["overruled"] = {"rules": [EVIL], "reason": EVIL}
    report["gate"][0] |= {"ok": False, "overruled": True}
    return report


def test_text_from_data_and_people_stays_text(plain: str) -> None:
    seen = Seen(page.page(hostile()))
    assert set(seen.tags) - {"details", "summary"} == set(Seen(plain).tags)
    assert seen.outside == []
    assert seen.text.count(EVIL) > 20


def test_text_that_became_a_part_of_the_page_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "ENVIRONMENT", page.ENVIRONMENT.overlay(autoescape=False))
    seen = Seen(page.page(hostile()))
    assert {"script", "img"} <= set(seen.tags) and seen.outside


def test_the_same_report_gives_the_same_page_also_when_read_back(plain: str) -> None:
    assert page.page(json.loads(json.dumps(made_up()))) == plain


def test_charts_keep_to_themselves_and_say_what_they_show(plain: str) -> None:
    seen = Seen(plain)
    assert len(seen.charts) == 2 * len(HORIZONS)
    assert all(chart["role"] == "img" and "orizon" in (chart["aria-label"] or "") for chart in seen.charts)
    assert [name for name, times in seen.ids.items() if times > 1] == []
    assert {one.removeprefix("#") for one in seen.refers if one.startswith("#")} <= set(seen.ids)


def test_a_page_of_a_thousand_series_stays_small() -> None:
    large = page.page(made_up(series=1000, horizons=list(range(1, 25)), origins=900))
    assert len(large.encode()) < 500_000
    assert "20 of 1000" in large


def test_the_first_lines_say_what_the_gate_said(plain: str) -> None:
    rule = made_up()["gate"][0]
    failed, waived = rule | {"ok": False}, rule | {"name": "coverage_0.8", "ok": False, "overruled": True}
    assert "Passed the gate, all 1 rules." in plain
    assert "BLOCKED by the gate: better_than_ar, coverage_0.8." in page.page(made_up(gate=[failed, waived]))
    report = made_up(gate=[rule, waived])
    report["card"]["overruled"] = {"rules": ["coverage_0.8"], "reason": "crisis"}
    assert "Passed, overruled because 'crisis': coverage_0.8." in Seen(page.page(report)).text


def test_a_training_that_went_wrong_has_a_page_too() -> None:
    report, nan = made_up(), float("nan")
    unknown = [[None] * len(HORIZONS)] * ORIGINS
    report["backtest"] |= {"truth": unknown, "lower": dict.fromkeys(("0.8", "0.95"), unknown)}
    report["card"]["metrics"]["rmse"] = dict.fromkeys(("model", "last_value", "ar"), [0.0, nan, float("inf")])
    report["gate"][0] |= {"ok": False, "figure": nan, "limit": float("inf")}
    assert "BLOCKED by the gate: better_than_ar" in page.page(report)


def test_few_vintages_are_said_to_be_few(plain: str) -> None:
    few = "Only 2 vintages are held"
    assert few in plain
    many = made_up()
    many["series"]["IN0"]["vintages"] = 40
    assert few not in page.page(many)
    assert "No vintage" in page.page(made_up(vintages=[]))


def test_what_was_found_besides_has_a_section_of_its_own(plain: str) -> None:
    assert "Live errors" not in plain
    shown = Seen(page.page(made_up(live=[{"horizon": 1, "n": 12, "coverage": {"0.8": 0.83}}], search=[]))).text
    assert "Live errors" in shown and "0.8: 0.83" in shown
    assert "What the search tried" in shown and "Nothing yet." in shown


def test_the_champion_stands_beside_the_model_on_the_origins_that_both_have(plain: str) -> None:
    common = {"origins": 200, "model": [0.13, 0.23, 0.42], "champion": [0.14, 0.24, 0.43]}
    shown = Seen(page.page(made_up(champion={"version": 7, "common": common, "later": {"origins": 0}}))).text
    assert "no champion" in plain and "no champion" not in shown
    assert "champion 7" in shown and "200 origins" in shown and "champion 0.43" in shown
