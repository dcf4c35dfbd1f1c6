"""The sdmx source against a stand-in that is true to its providers: what it loads, asks for, and refuses."""

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from conftest import ROOT
from desk import HEAD, Service
from fake_sdmx import SAMPLES, Sdmx, Values, _history
from fake_web import Nth, serving
from hypothesis import given, settings
from hypothesis import strategies as st

from model_service import contract as contracts
from model_service.contract import Series
from model_service.errors import UsageError
from model_service.loader import DELETED, MISSING, Ask, Cell, Payload, Reject, SourceError, Window
from model_service.loader.sources import sdmx as source
from model_service.loader.sources._sdmx import CSV, JSON

SOURCE = """
[source.sdmx]
kind = "sdmx"
provider = "{face}"
base_url = "{url}"
requests_per_second = 1000
tries = 2
keys = {{ {keys} }}
{more}
"""
SERIES = '[series.{}]\nsource = "sdmx"\nfrequency = "{}"\nunit = "1"\nrelease_lag_days = 1\n{}\n'
KEYS = {  # a key as each provider has them
    "ecb": "LFSI/M.I9.UNEHRT",
    "oecd": "OECD.SDD.TPS,DSD_LFS@DF_IALFS_UNE_M,1.0/USA.M.UNE_LF_M.PT_LF",
    "imf": "IMF.STA,QNEA,7.0.0/USA.B1GQ.V.SA.Q",
    "bis": "BIS/WS_CBPOL/1.0/M.US.368",
    "eurostat": "prc_hicp_minr/M.RCH_A.CP00.EL",
}
MONTHS = {"2016-01": "1", "2016-02": "2"}
MARCH = "2016-03-02T15:30:00+01:00"


@dataclass
class Desk(Service):
    sdmx: Sdmx
    url: str
    root: Path
    names: tuple[str, ...] = ("A",)
    keys: dict[str, str] = field(default_factory=dict)
    frequency: str = "month"
    more: str = ""
    rules: str = ""
    also: str = ""
    said: list[str] = field(default_factory=list)

    def key(self, name: str = "A") -> str:
        return self.keys.get(name, KEYS[self.sdmx.face])

    def publish(self, when: str, values: Values, deleted: tuple[str, ...] | None = (), name: str = "A") -> None:
        self.sdmx.publish(self.key(name), when, values, deleted)

    @property
    def toml(self) -> str:
        keys = ", ".join(f'{name} = "{self.key(name)}"' for name in self.names)
        text = HEAD.format(target=self.names[0])
        text += SOURCE.format(face=self.sdmx.face, url=self.sdmx.base_url, keys=keys, more=self.more)
        return text + "".join(SERIES.format(name, self.frequency, self.rules) for name in self.names) + self.also

    def states(self) -> list[tuple[str, str, float | None, int]]:
        """Every stored row, to the minute: period, known from (UTC), value, state."""
        rows = self.rows(
            "SELECT valid_time, known_from AT TIME ZONE 'UTC', value, state FROM observation ORDER BY 1, 2"
        )
        return [(f"{valid:%Y-%m-%d}", f"{known:%Y-%m-%d %H:%M}", value, state) for valid, known, value, state in rows]


@pytest.fixture
def sdmx() -> Iterator[Sdmx]:
    with serving(Sdmx()) as sdmx:
        yield sdmx


@pytest.fixture
def desk(sdmx: Sdmx, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(source, "POLL_SECONDS", 0.01)
    return Desk(sdmx, url, tmp_path)


# ---- a history with deletions ----


def test_an_ecb_history_with_deletions_loads_to_the_answers_worked_out_by_hand(desk: Desk) -> None:
    """The kept answer: January and February come in March; June deletes January, revises February and has March
    missing; September deletes February, gives March and April. Deletions stand behind all the rest of the answer."""
    desk.sdmx.bodies[desk.key()] = (SAMPLES / "ecb_history.json").read_bytes()
    (result,) = desk.load()
    assert (result["fetched"], result["new"], result["deleted"]) == (8, 4, 2)
    assert desk.states() == [
        ("2016-01-01", "2016-03-02 14:30", 10.1, 0),
        ("2016-01-01", "2016-06-01 13:30", None, DELETED),
        ("2016-02-01", "2016-03-02 14:30", 10.2, 0),
        ("2016-02-01", "2016-06-01 13:30", 10.3, 0),
        ("2016-02-01", "2016-09-07 13:30", None, DELETED),
        ("2016-03-01", "2016-06-01 13:30", None, MISSING),
        ("2016-03-01", "2016-09-07 13:30", 10.4, 0),
        ("2016-04-01", "2016-09-07 13:30", 10.5, 0),
    ]
    assert desk.known("2016-03-02T14:29") == {}
    assert desk.known("2016-03-02T14:30") == {"2016-01-01": 10.1, "2016-02-01": 10.2}
    assert desk.known("2016-06-01T13:29") == {"2016-01-01": 10.1, "2016-02-01": 10.2}
    assert desk.known("2016-06-01T13:30") == {"2016-02-01": 10.3}
    assert desk.known("2016-09-07T13:30") == {"2016-03-01": 10.4, "2016-04-01": 10.5}


def test_a_history_is_asked_for_whole_and_then_from_where_it_stood(desk: Desk) -> None:
    desk.publish(MARCH, MONTHS)
    desk.load()
    desk.sdmx.now = "2017-02-01T00:00:00+00:00"
    desk.publish("2016-04-01T09:00:00+00:00", {"2016-02": "2.5", "2016-03": "3"}, ("2016-01",))
    (result,) = desk.load()
    first, second = desk.sdmx.log
    assert first["Accept"] == second["Accept"] == "application/vnd.sdmx.data+json;version=1.0.0-wd"
    assert (first["includeHistory"], second["includeHistory"]) == ("true", "true")
    assert "updatedAfter" not in first
    assert second["updatedAfter"] == "2016-03-02T13:30:00+00:00"  # an hour before it had changed last
    assert second["If-Modified-Since"] == "Wed, 02 Mar 2016 14:30:00 GMT"
    assert (result["fetched"], result["changed"], result["new"], result["deleted"], result["same"]) == (5, 1, 1, 1, 2)
    assert desk.known("2016-03-31") == {"2016-01-01": 1, "2016-02-01": 2}
    assert desk.known() == {"2016-02-01": 2.5, "2016-03-01": 3}


def test_what_is_deleted_and_stated_at_one_moment_is_stated(desk: Desk) -> None:
    desk.publish(MARCH, MONTHS)
    desk.publish("2016-04-01T09:00:00+00:00", {"2016-02": "2.5"}, ("2016-01", "2016-02"))
    desk.load()
    assert desk.known() == {"2016-02-01": 2.5}


def test_a_history_that_ends_with_the_series_ends_every_period(desk: Desk) -> None:
    desk.publish(MARCH, MONTHS)
    desk.publish("2016-04-01T09:00:00+00:00", {}, None)
    desk.load()
    assert desk.known("2016-03-31") == {"2016-01-01": 1, "2016-02-01": 2}
    assert desk.known("2016-04-01T09:00") == {}


def test_a_series_that_ends_later_is_asked_for_whole_for_only_that_names_its_periods(desk: Desk) -> None:
    desk.publish(MARCH, MONTHS)
    desk.load()
    desk.publish("2016-04-01T09:00:00+00:00", {}, None)
    desk.load()
    assert ["updatedAfter" in one for one in desk.sdmx.log] == [False, True, False]
    assert desk.known() == {}
    assert desk.known("2016-03-31") == {"2016-01-01": 1, "2016-02-01": 2}


@pytest.mark.parametrize("before", ["snapshots", "updates"])
def test_a_history_that_is_asked_for_later_comes_whole(desk: Desk, before: str) -> None:
    desk.publish(MARCH, MONTHS)
    desk.sdmx.nothing = "304"
    desk.more = f'reads = "{before}"'
    desk.load()
    assert desk.known("2016-03-31") == {}
    desk.more = ""
    desk.load()
    assert desk.known("2016-03-31") == {"2016-01-01": 1, "2016-02-01": 2}


# ---- changes since ----


@pytest.fixture
def oecd(desk: Desk) -> Desk:
    desk.sdmx.face, desk.sdmx.now = "oecd", "2016-03-03T00:00:00+00:00"
    return desk


def test_changes_and_deletions_since_the_last_load(oecd: Desk) -> None:
    oecd.publish(MARCH, MONTHS | {"2016-03": "3"})
    oecd.load()
    oecd.publish("2016-04-01T09:00:00+00:00", {"2016-02": "2.5", "2016-04": "4"}, ("2016-01",))
    (result,) = oecd.load()
    assert oecd.sdmx.log[1]["updatedAfter"] == "2016-03-02T13:30:00+00:00"
    assert (result["new"], result["changed"], result["deleted"], result["vanished"]) == (1, 1, 1, 0)
    assert oecd.known() == {"2016-02-01": 2.5, "2016-03-01": 3, "2016-04-01": 4}


def test_a_deletion_of_the_whole_series_is_followed_by_a_snapshot(oecd: Desk) -> None:
    oecd.more = "max_vanished = 1"
    oecd.publish(MARCH, MONTHS)
    oecd.load()
    oecd.publish("2016-04-01T09:00:00+00:00", {}, None)
    oecd.publish("2016-04-01T10:00:00+00:00", {"2016-03": "3"})
    oecd.load()
    assert ["updatedAfter" in one for one in oecd.sdmx.log] == [False, True, False]
    assert oecd.known() == {"2016-03-01": 3}


def test_the_next_changes_are_asked_for_from_where_the_last_ones_stood(oecd: Desk) -> None:
    oecd.publish(MARCH, MONTHS)
    for month in (4, 5):
        oecd.load()
        oecd.publish(f"2016-0{month}-01T09:00:00+00:00", {f"2016-0{month - 1}": f"{month - 1}"})
    oecd.load()
    asked = [one.get("updatedAfter", "") for one in oecd.sdmx.log]
    assert asked == ["", "2016-03-02T13:30:00+00:00", "2016-04-01T08:00:00+00:00"]


def test_a_load_that_a_check_blocks_does_not_move_where_it_stands(oecd: Desk) -> None:
    oecd.publish(MARCH, MONTHS)
    oecd.load()
    oecd.publish("2016-04-01T09:00:00+00:00", {"2016-03": "9"})
    oecd.also = '[[check]]\nname = "few"\naction = "block"\nsql = "SELECT value FROM latest WHERE value > 5"\n'
    assert [one["outcome"] for one in oecd.load()] == ["blocked"]
    oecd.also = ""
    assert [one["outcome"] for one in oecd.load()] == ["loaded"]
    assert oecd.known() == {"2016-01-01": 1, "2016-02-01": 2, "2016-03-01": 9}


# ---- snapshots ----


@pytest.fixture
def bis(desk: Desk) -> Desk:
    desk.sdmx.face, desk.more = "bis", "max_vanished = 1"
    return desk


def test_a_snapshot_is_known_from_the_time_of_loading_and_what_the_next_one_lacks_has_vanished(bis: Desk) -> None:
    bis.publish(MARCH, MONTHS)
    bis.load()
    assert {known for _, known, _ in bis.held()} == {f"{datetime.now(UTC):%Y-%m-%d}"}
    bis.publish("2016-04-01T09:00:00+00:00", {"2016-02": "2.5"}, ("2016-01",))
    (result,) = bis.load()
    assert (result["changed"], result["vanished"]) == (1, 1)
    assert bis.known() == {"2016-02-01": 2.5}


def test_a_snapshot_that_was_not_changed_is_not_sent(bis: Desk) -> None:
    bis.sdmx.nothing = "304"
    bis.publish(MARCH, MONTHS)
    bis.load()
    assert bis.load() == []
    assert [one["status"] for one in bis.sdmx.log] == ["200", "304"]
    assert bis.sdmx.log[1]["If-Modified-Since"] == "Wed, 02 Mar 2016 14:30:00 GMT"


def test_a_snapshot_that_lacks_too_much_is_blocked_and_nothing_vanishes(bis: Desk) -> None:
    bis.more = ""
    bis.publish(MARCH, MONTHS)
    bis.load()
    bis.publish("2016-04-01T09:00:00+00:00", {}, ("2016-01",))
    assert [one["outcome"] for one in bis.load()] == ["blocked"]
    assert bis.known() == {"2016-01-01": 1, "2016-02-01": 2}


def test_what_could_not_be_read_has_not_vanished(bis: Desk) -> None:
    bis.publish(MARCH, MONTHS)
    bis.load()
    bis.publish("2016-04-01T09:00:00+00:00", {"2016-01": "n/a"})
    (result,) = bis.load()
    assert (result["quarantined"], result["vanished"]) == (1, 0)
    assert bis.rows("SELECT rule, raw FROM quarantine") == [("number", "n/a")]
    assert bis.known() == {"2016-01-01": 1, "2016-02-01": 2}


def test_kept_bytes_are_read_again_without_the_provider(bis: Desk) -> None:
    bis.rules = "range = [0, 1.5]"
    bis.publish(MARCH, MONTHS)
    (result,) = bis.load()
    assert bis.known() == {"2016-01-01": 1}
    bis.rules, asked = "", len(bis.sdmx.log)
    bis.again(result["load_id"], "retry", "the range was too small")
    assert bis.known() == {"2016-01-01": 1, "2016-02-01": 2}
    assert len(bis.sdmx.log) == asked


# ---- the faces of "nothing new" ----

FACES = ["304", "404", "204", "empty", "blank row", "header"]


@pytest.mark.parametrize("face", ["ecb", "oecd", "bis", "imf", "eurostat"])
@pytest.mark.parametrize("nothing", FACES)
def test_an_answer_without_observations_is_nothing_new_of_a_key_that_gave_some(
    desk: Desk, face: str, nothing: str
) -> None:
    desk.sdmx.face, desk.sdmx.nothing = face, nothing
    desk.publish(MARCH, MONTHS)
    desk.load()
    if face == "eurostat":
        desk.sdmx.releases[desk.key()][0].values = {}
    assert desk.load() == []
    assert desk.rows("SELECT outcome FROM attempt ORDER BY attempt_id") == [("done",), ("nothing new",)]
    assert desk.known() == {"2016-01-01": 1, "2016-02-01": 2}
    said = nothing if nothing.isdigit() else "200"
    if face == "eurostat" and said in {"304", "404"}:
        said = "400"  # its way to say that there are no results
    assert [one["status"] for one in desk.sdmx.log] == ["200", said]


@pytest.mark.parametrize("face", ["ecb", "oecd", "bis", "imf", "eurostat"])
@pytest.mark.parametrize("nothing", FACES[1:])
def test_an_answer_without_observations_is_an_unknown_key_where_it_never_gave_any(
    desk: Desk, face: str, nothing: str
) -> None:
    desk.sdmx.face, desk.sdmx.nothing = face, nothing
    assert desk.refused() == (
        f"A: 127.0.0.1 has nothing under {KEYS[face]}, and never gave anything:"
        " check keys.A, codes are renamed and move to other dataflows"
    )


def test_another_key_of_the_same_series_has_to_prove_itself_anew(desk: Desk) -> None:
    desk.publish(MARCH, MONTHS)
    desk.load()
    desk.keys["A"] = "LFSI/M.I9.OTHER"
    assert "LFSI/M.I9.OTHER, and never gave anything" in desk.refused()


def test_a_dataset_that_died_silently_is_called_frozen(desk: Desk) -> None:
    """The code is well-formed, the provider answers 200 with nothing: that it ended is seen by its age alone."""
    desk.publish(MARCH, MONTHS)
    desk.load()
    desk.sdmx.nothing = "empty"
    assert desk.load() == []
    assert [one["status"] for one in desk.sdmx.log] == ["200", "200"]
    assert desk.said[-1].startswith("sdmx: frozen: fetched without anything new")


# ---- answers that are too large ----


@pytest.fixture
def eurostat(desk: Desk) -> Desk:
    desk.sdmx.face = "eurostat"
    return desk


def test_an_answer_that_is_prepared_is_waited_for(eurostat: Desk) -> None:
    eurostat.publish(MARCH, MONTHS)
    eurostat.sdmx.queue = ["SUBMITTED", "PROCESSING", "AVAILABLE"]
    eurostat.load()
    paths = [one["path"].removeprefix("/eurostat/api/dissemination") for one in eurostat.sdmx.log]
    ticket = "98de05ea-540a-43d3-903b-7c9e14faf808"
    status, data = f"/1.0/async/status/{ticket}", f"/1.0/async/data/{ticket}"
    assert paths == ["/sdmx/2.1/data/prc_hicp_minr/M.RCH_A.CP00.EL/", status, status, status, data]
    assert eurostat.sdmx.log[-1]["format"] == "SDMX-CSV"
    assert eurostat.known() == {"2016-01-01": 1, "2016-02-01": 2}


@pytest.mark.parametrize("state", ["EXPIRED", "UNKNOWN_REQUEST", "ERROR"])
def test_an_answer_that_will_not_be_prepared_is_said(eurostat: Desk, state: str) -> None:
    eurostat.publish(MARCH, MONTHS)
    eurostat.sdmx.queue = ["SUBMITTED", state]
    says = eurostat.refused()
    assert (
        says == f"A: 127.0.0.1 prepares {KEYS['eurostat']} and is at {state}: run again, or give it more queue_seconds"
    )


def test_an_answer_that_is_prepared_for_too_long_is_not_waited_for(eurostat: Desk) -> None:
    eurostat.publish(MARCH, MONTHS)
    eurostat.more, eurostat.sdmx.queue = "queue_seconds = 0.001", ["PROCESSING"] * 100
    assert "is at PROCESSING" in eurostat.refused()


def test_an_answer_that_was_prepared_and_holds_nothing(eurostat: Desk) -> None:
    eurostat.publish(MARCH, MONTHS)
    eurostat.sdmx.queue = ["NO_RESULTS"]
    assert "never gave anything" in eurostat.refused()


def test_an_answer_that_is_too_big_is_asked_for_in_halves(eurostat: Desk) -> None:
    values = {f"{year}-{month:02}": f"{year}.{month}" for year in range(1998, 2018) for month in range(1, 13)}
    eurostat.publish(MARCH, {"1850-06": "0"} | values)
    eurostat.sdmx.cells = 100
    (result,) = eurostat.load()
    halves = [(one.get("startPeriod", ""), one.get("endPeriod", ""), one["status"]) for one in eurostat.sdmx.log]
    middle = (1900 + datetime.now(UTC).year) // 2
    assert halves[:3] == [("", "", "413"), ("", f"{middle}", "200"), (f"{middle + 1}", "", "413")]
    assert sum(status == "413" for _, _, status in halves) >= 3
    assert result["new"] == 241
    assert eurostat.known() == {f"{period}-01": float(text) for period, text in values.items()} | {"1850-06-01": 0}


def test_a_year_that_is_too_big_is_said(eurostat: Desk) -> None:
    eurostat.publish(MARCH, MONTHS)
    eurostat.sdmx.cells = 1
    assert "finds prc_hicp_minr/M.RCH_A.CP00.EL too big, even a year of it" in eurostat.refused()


# ---- what each provider is asked ----


def test_each_provider_is_asked_in_its_own_way(desk: Desk) -> None:
    asked = {}
    for face in KEYS:
        desk.sdmx.face = face
        desk.publish(MARCH, MONTHS)
        (payload,) = source.fetch(options(desk), Ask(desk.root, series=desk.contract.series))
        assert payload.complete == (face != "ecb")
        one = desk.sdmx.log[-1]
        rest = {name: text for name, text in one.items() if name not in {"path", "fault", "status", "Accept"}}
        asked[face] = (one["path"], one["Accept"], rest)
    csv1 = "application/vnd.sdmx.data+csv;version=1.0.0"
    assert asked == {
        "ecb": ("/service/data/LFSI/M.I9.UNEHRT", source.HISTORY, {"includeHistory": "true"}),
        "oecd": (f"/public/rest/data/{KEYS['oecd']}", "application/vnd.sdmx.data+csv;version=2.0", {}),
        "imf": (f"/external/sdmx/2.1/data/{KEYS['imf']}", "application/vnd.sdmx.data+csv", {}),
        "bis": ("/api/v2/data/dataflow/BIS/WS_CBPOL/1.0/M.US.368", csv1, {}),
        "eurostat": ("/eurostat/api/dissemination/sdmx/2.1/data/prc_hicp_minr/M.RCH_A.CP00.EL/", csv1,
                     {"format": "SDMX-CSV", "compressed": "false"}),
    }  # fmt: skip


def options(desk: Desk) -> source.Options:
    return source.Options.model_validate(desk.contract.source["sdmx"].options)


def test_a_preset_gives_what_is_not_given(desk: Desk) -> None:
    keys = {"A": "F/K"}
    oecd = source.Options.model_validate({"provider": "oecd", "keys": keys, "requests_per_second": 0.005})
    assert (oecd.base_url, oecd.requests_per_second, oecd.reads) == (
        "https://sdmx.oecd.org/public/rest", 0.005, "updates")  # fmt: skip
    assert source.Options.model_validate({"provider": "oecd", "keys": keys}).requests_per_second <= 60 / 3600
    ecb = source.Options.model_validate({"provider": "ecb", "keys": keys, "reads": "snapshots"})
    assert (ecb.accept, ecb.reads) == ("text/csv", "snapshots")


def test_any_endpoint_by_its_url(desk: Desk) -> None:
    desk.sdmx.face = "imf"
    desk.publish(MARCH, MONTHS)
    contract = desk.declared(desk.toml.replace('provider = "imf"\n', ""))
    desk.load(contract)
    assert desk.known() == {"2016-01-01": 1, "2016-02-01": 2}
    assert desk.sdmx.log[-1]["Accept"] == "application/vnd.sdmx.data+csv;version=1.0.0"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('provider = "ecb"', 'provider = "ebc"'), "did you mean 'ecb'?"),
        (('A = "LFSI/M.I9.UNEHRT"', 'A = "LFSI.M.I9.UNEHRT"'), "must be a dataflow and a key in it"),
        (
            ('A = "LFSI/M.I9.UNEHRT"', 'B = "LFSI/M.I9.UNEHRT"'),
            "each series of this source needs one, and no other: A, B",
        ),
        (("tries = 2", 'path = "/data"'), "must be a path with {flow} and {key}"),
        (("tries = 2", 'reads = "vintages"'), "'history', 'updates' or 'snapshots'"),
        (("tries = 2", 'acept = "text/csv"'), "did you mean 'accept'?"),
    ],
)
def test_a_wrong_key_of_the_source(desk: Desk, change: tuple[str, str], says: str) -> None:
    assert change[0] in desk.toml
    with pytest.raises(UsageError, match=re.escape(says)):
        desk.load(desk.declared(desk.toml.replace(*change)))
    assert desk.sdmx.log == []


def test_a_window_is_refused(desk: Desk) -> None:
    with pytest.raises(UsageError, match="--from and --to choose vintages"):
        desk.load(window=Window(last=date(2016, 1, 1)))


# ---- what goes wrong at the provider: one clear line, nothing half-loaded ----


@pytest.fixture
def two(desk: Desk) -> Desk:
    """Two series, of which the first one could be loaded."""
    desk.names, desk.keys = ("A", "B"), {"A": "LFSI/M.I9.UNEHRT", "B": "LFSI/M.DE.UNEHRT"}
    desk.publish(MARCH, MONTHS, name="A")
    desk.publish(MARCH, MONTHS, name="B")
    return desk


def test_an_unknown_key_is_found_before_anything_is_loaded(two: Desk) -> None:
    del two.sdmx.releases["LFSI/M.DE.UNEHRT"]
    assert two.refused().startswith("B: 127.0.0.1 has nothing under LFSI/M.DE.UNEHRT")
    assert [one["status"] for one in two.sdmx.log] == ["200", "404"]


def test_a_wrong_number_of_dots_is_said_out_of_the_page_in_html(two: Desk) -> None:
    two.keys["B"] = "LFSI/M.DE.S.UNEHRT"
    assert two.refused() == (
        "B: 127.0.0.1 refuses LFSI/M.DE.S.UNEHRT, 400: HTTP Status 400 – Bad Request Message Not enough key values in"
        " query, expecting 3 got 4 (check keys.B: its codes, and its number of dots)"
    )
    assert two.sdmx.log[-1]["status"] == "400"


def test_a_wrong_number_of_dots_at_eurostat(eurostat: Desk) -> None:
    eurostat.publish(MARCH, MONTHS)
    eurostat.keys["A"] = "prc_hicp_minr/M.RCH_A.CP00"
    assert "400: 150 ERR_QUERY: the key has 3 positions, the dataset 4 dimensions" in eurostat.refused()


def test_a_refusal_in_words(two: Desk) -> None:
    two.sdmx.faults = {"forbidden": 9}
    assert "refuses LFSI/M.I9.UNEHRT, 403: Requests from anonymised networks are not served" in two.refused()


def test_an_accept_that_the_provider_does_not_know(two: Desk) -> None:
    two.more = 'reads = "snapshots"\naccept = "text/plain"'
    assert "406: Not acceptable" in two.refused()


@pytest.mark.parametrize("reads", ["history", "snapshots"])
@pytest.mark.parametrize(("fault", "shown"), [("maintenance", "<!DOCTYPE html>"), ("cut", "")])
@pytest.mark.parametrize("request_number", [1, 2])
def test_a_body_that_is_no_answer(
    two: Desk, monkeypatch: pytest.MonkeyPatch, reads: str, fault: str, shown: str, request_number: int
) -> None:
    two.more = f'reads = "{reads}"'
    monkeypatch.setattr(two.sdmx, "faults", Nth(request_number, fault))
    says = two.refused()
    assert re.match(r"[AB]: (this is no SDMX-(JSON|CSV): |line 3 has \d+ cells, the header 13: it was cut off)", says)
    assert shown in says
    assert [one["fault"] for one in two.sdmx.log] == [""] * (request_number - 1) + [fault]  # asked once
    two.load()
    assert two.known(name="A") == two.known(name="B") == {"2016-01-01": 1, "2016-02-01": 2}


def test_a_zipped_answer_that_ends_early_is_asked_for_again(two: Desk) -> None:
    """Its last value may be half of one, and rows behind it are lost; a snapshot without them would be the news."""
    two.more, two.sdmx.faults = 'reads = "snapshots"', {"zipped without its end": 2}
    says = two.refused()
    assert says.startswith("127.0.0.1 cannot be reached: Compressed file ended before the end-of-stream marker")
    assert says.endswith("; try again later")
    two.sdmx.faults = {"zipped without its end": 1}
    two.load()
    assert [one["status"] for one in two.sdmx.log] == ["200"] * 5
    assert two.known(name="A") == two.known(name="B") == {"2016-01-01": 1, "2016-02-01": 2}


def test_a_provider_that_is_down(two: Desk) -> None:
    with serving(Sdmx()) as gone:
        two.sdmx.url = gone.url
    says = two.refused()
    assert says.startswith("127.0.0.1 cannot be reached: ")
    assert says.endswith("; try again later")


def test_an_error_that_passes_is_asked_again_and_one_that_stays_is_said(two: Desk) -> None:
    two.sdmx.faults = {"internal error": 2}
    assert two.refused() == "127.0.0.1 answers 500, 2 times; try again later"
    two.sdmx.faults = {"internal error": 1}
    two.load()
    assert [one["fault"] for one in two.sdmx.log] == ["internal error"] * 3 + [""] * 2
    assert two.count("load") == 2


def test_a_key_that_matches_two_series_is_refused(bis: Desk) -> None:
    first = (SAMPLES / "sdmx1.csv").read_bytes()
    bis.sdmx.bodies[bis.key()] = first + first.splitlines()[1].replace(b",0000,", b",0001,") + b"\n"
    bis.frequency = "quarter"
    assert bis.refused() == (
        "A: its key matches two series (SECTOR 0000 and 0001) or more: give it a code for every dimension"
    )


def test_a_history_of_two_series_is_refused(desk: Desk) -> None:
    content = (SAMPLES / "ecb_history.json").read_bytes()
    desk.sdmx.bodies[desk.key()] = content.replace(b'"0:0:0"', b'"0:1:0"', 1)
    assert "matches two series (series 0:0:0 and 0:1:0) or more" in desk.refused()


def test_periods_that_are_longer_than_the_series_has_are_refused(desk: Desk) -> None:
    desk.publish(MARCH, {"2016-Q1": "1"})
    assert desk.refused() == "A is by month, and 2016-Q1 is a quarter: mend `frequency` or keys.A"


# ---- the parser ----


def parsed(
    content: bytes, folder: Path, frequency: contracts.Frequency = "month", media_type: str = CSV
) -> list[Cell | Reject]:
    path = folder / "answer"
    path.write_bytes(content)
    series = {"A": Series(source="sdmx", frequency=frequency, unit="1", release_lag_days=0)}
    options = source.Options.model_validate({"provider": "ecb", "keys": {"A": "F/K"}})
    return list(source.parse(Payload("A/F/K", path, media_type, None), options, series))


DIALECTS: dict[str, tuple[contracts.Frequency, list[str]]] = {
    "ecb": ("day", ["2026-01-01 missing", "2026-01-02 1.1034", "2026-01-05 1.1"]),
    "sdmx1": ("quarter", ["2025-07-01 100.5", "2025-10-01 missing"]),
    "oecd": ("month", ["2025-10-01 deleted", "2025-11-01 4.5"]),
    "imf": ("quarter", ["2020-01-01 21538032000000.0", "2020-04-01 19636731000000.0"]),
    "bis_labels": ("month", ["2025-11-01 3.875", "2025-12-01 missing"]),
    "eurostat": ("month", ["2025-10-01 1.6", "2025-11-01 2.8", "2025-12-01 missing"]),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_gives_its_cells(tmp_path: Path, dialect: str) -> None:
    frequency, expected = DIALECTS[dialect]
    found = parsed((SAMPLES / f"{dialect}.csv").read_bytes(), tmp_path, frequency)
    assert all(isinstance(one, Cell) and one.known_from is None for one in found)
    shown = {0: "{}", MISSING: "missing", DELETED: "deleted"}
    cells = [
        f"{one.valid_time:%Y-%m-%d} {shown[one.state].format(one.value)}" for one in found if isinstance(one, Cell)
    ]
    assert sorted(cells) == expected


WRITTEN: dict[str, tuple[contracts.Frequency, str]] = {
    "2013": ("year", "2013-01-01"),
    "2013-S1": ("half_year", "2013-01-01"),
    "2013-S2": ("half_year", "2013-07-01"),
    "2013-Q1": ("quarter", "2013-01-01"),
    "2013-Q4": ("quarter", "2013-10-01"),
    "2013-01": ("month", "2013-01-01"),
    "2013-M12": ("month", "2013-12-01"),
    "2013-W01": ("week", "2012-12-31"),
    "2013-01-01": ("day", "2013-01-01"),
}


@pytest.mark.parametrize("text", WRITTEN)
def test_every_way_to_write_a_period(tmp_path: Path, text: str) -> None:
    frequency, first = WRITTEN[text]
    (cell,) = parsed(f"KEY,TIME_PERIOD,OBS_VALUE\nF.K,{text},1.00\n".encode(), tmp_path, frequency)
    assert isinstance(cell, Cell)
    assert cell.raw == "1.00"
    assert f"{cell.valid_time:%Y-%m-%d}" == first


BAD = {
    "F.K,2013-13,1": "date",
    "F.K,2013-W54,1": "date",
    "F.K,2013-01-01T,1": "date",
    "F.K,,1": "date",
    "F.K,2013-03,1e999": "finite",
    "F.K,2013-03,1_000": "number",
    "F.K,2013-03,:": "number",
    "F.K,2013-01,2": "duplicate",
}


@pytest.mark.parametrize("row", BAD)
def test_a_bad_row_goes_to_quarantine_and_the_others_do_not(tmp_path: Path, row: str) -> None:
    found = parsed(f"KEY,TIME_PERIOD,OBS_VALUE\nF.K,2013-01,1\n{row}\nF.K,2013-02,2\n".encode(), tmp_path)
    assert [(one.line, one.rule) for one in found if isinstance(one, Reject)] == [(3, BAD[row])]
    assert [one.value for one in found if isinstance(one, Cell)] == [1, 2]


numbers = st.floats(allow_nan=False, allow_infinity=False).map(repr)
tables = st.dictionaries(st.dates(date(1980, 1, 1), date(2020, 1, 1)).map(lambda day: f"{day:%Y-%m}"),
                         st.sampled_from(["", "NaN"]) | numbers, min_size=1, max_size=9)  # fmt: skip


@settings(deadline=None)
@given(tables, st.permutations(["KEY", "FREQ", "REF_AREA", "SECTOR"]), st.booleans(), st.integers(0, 9), st.data())
def test_whatever_is_written_in_any_order_of_columns_is_read(
    tmp_path_factory: pytest.TempPathFactory, table: dict[str, str], before: list[str], labels: bool, cut: int,
    data: st.DataObject,
) -> None:  # fmt: skip
    """Any values, in any order of rows and columns, with labels or without, as one answer or as two halves."""
    fixed = {"KEY": "F.M.DE.0000", "FREQ": "M", "REF_AREA": "DE", "SECTOR": "0000", "TITLE": 'A "title", with; all'}
    after = data.draw(st.permutations(["OBS_VALUE", "OBS_STATUS", "TITLE"]))
    header = [*before, "TIME_PERIOD", *after]
    rows = data.draw(st.permutations(list(table.items())))
    parts = []
    for part in (rows[:cut], rows[cut:]):
        text = io.StringIO()
        writer = csv.writer(text, lineterminator=data.draw(st.sampled_from(["\n", "\r\n"])))
        writer.writerow([f"{name}:Its name: {name}" if labels else name for name in header])
        for period, value in part:
            line = fixed | {"TIME_PERIOD": period, "OBS_VALUE": value, "OBS_STATUS": "A"}
            shown = {name: f"{one}: Its name" if labels and name in ("FREQ", "OBS_STATUS") else one
                     for name, one in line.items()}  # fmt: skip
            writer.writerow([shown[name] for name in header])
        parts.append(text.getvalue().encode())
    found = parsed(b"\n".join(parts), tmp_path_factory.getbasetemp())
    read = {f"{one.valid_time:%Y-%m}": "" if one.state == MISSING else repr(one.value)
            for one in found if isinstance(one, Cell)}  # fmt: skip
    assert read == {period: "" if value == "NaN" else value for period, value in table.items()}


MONTH = [f"2015-{month:02}" for month in range(1, 5)]
news = st.dictionaries(st.sampled_from(MONTH), st.sampled_from(["1", "2.5", " M"]), max_size=4)
dropped = st.none() | st.lists(st.sampled_from(MONTH), unique=True, max_size=2).map(tuple)
histories = st.lists(st.tuples(news, dropped), min_size=1, max_size=7)


@settings(deadline=None)
@given(histories)
def test_whatever_was_published_and_deleted_is_known_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[Mapping[str, str], tuple[str, ...] | None]]
) -> None:
    """Any releases with deletions, told as one history, give the state after each of them again."""
    fake, state, states = Sdmx(), dict[str, str](), []
    for number, (values, gone) in enumerate(history):
        at = datetime(2016, 1, 1, 14, 30, tzinfo=UTC) + timedelta(days=number)
        fake.publish("F/K", at.isoformat(), values, gone)
        state = {} if gone is None else {period: text for period, text in state.items() if period not in gone}
        state = state | dict(values)
        states.append((at, dict(state)))
    content = _history(fake.releases["F/K"], fake.now)
    found = parsed(content, tmp_path_factory.getbasetemp(), media_type=JSON)
    assert all(isinstance(one, Cell) for one in found)
    cells = [one for one in found if isinstance(one, Cell) and one.known_from]
    assert len(cells) == len({(one.valid_time, one.known_from) for one in cells})
    for at, expected in states:
        known: dict[str, str] = {}
        for cell in sorted(cells, key=lambda one: str(one.known_from)):
            if cell.known_from and cell.known_from <= at:
                known[f"{cell.valid_time:%Y-%m}"] = {0: f"{cell.value:g}", MISSING: " M", DELETED: ""}[cell.state]
        assert {period: text for period, text in known.items() if text} == expected


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(0, 900), st.booleans(), st.sampled_from(["ecb_history.json", "oecd.csv"]))
def test_whatever_the_bytes_are_they_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, place: int, replace: bool, name: str
) -> None:
    whole = (SAMPLES / name).read_bytes()
    content = whole[:place] + junk + whole[place + replace * len(junk) :]
    for one in (content, junk):
        try:
            parsed(one, tmp_path_factory.getbasetemp(), media_type=JSON if name.endswith("json") else CSV)
        except SourceError as refusal:
            assert "\n" not in str(refusal)


def test_the_example_of_the_documentation(desk: Desk) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/sdmx.md").read_text("utf-8"), re.DOTALL)
    keys = dict(re.findall(r'^(\w+) = "(\S+/\S+)"$', example, re.MULTILINE))
    desk.sdmx.publish(keys["UNEMPLOYMENT"], MARCH, MONTHS)
    with serving(Sdmx("eurostat")) as other:
        other.publish(keys["INFLATION"], MARCH, MONTHS)
        example = example.replace('provider = "ecb"', f'provider = "ecb"\nbase_url = "{desk.sdmx.base_url}"')
        example = example.replace('provider = "eurostat"', f'provider = "eurostat"\nbase_url = "{other.base_url}"')
        desk.load(desk.declared(HEAD.format(target="UNEMPLOYMENT") + example))
    assert desk.known("2016-03-31", "UNEMPLOYMENT") == {"2016-01-01": 1, "2016-02-01": 2}
    assert desk.known("2016-03-31", "INFLATION") == {}
    assert desk.known(name="INFLATION") == {"2016-01-01": 1, "2016-02-01": 2}
