"""What a person asks of the ledger, and does about it: dry runs, corrections, replays, drops, what rests on what."""

import csv
import json
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import Run
from desk import Desk, Values, day

from model_service.cli import _parser
from model_service.errors import ServiceError
from model_service.store import ledger, quarantine
from model_service.store.connection import connect

FIRST, SECOND = "data/us-macro/2016-06-29.csv", "data/us-macro/2016-07-29.csv"
CHECK = """
[[check]]
name = "small"
sql = "SELECT * FROM latest WHERE value > 100"
action = "block"
"""
WHOLE = {(series, month): 10 * series + month for series in range(2) for month in range(3)}


@pytest.fixture
def desk(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A project with two series of three months, whose files the test writes."""
    monkeypatch.setenv("PROJECT_ROOT", str(tmp_path))
    monkeypatch.setenv("DATABASE_URL", url)
    made = Desk(url, tmp_path, name="desk")
    made.contract()
    return made


@pytest.fixture
def sample(project: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's own service.toml and data, and a database."""
    monkeypatch.setenv("DATABASE_URL", url)
    return project


def rows(url: str, sql: str) -> list[Any]:
    with psycopg.connect(url) as connection:
        return connection.execute(sql).fetchall()


def sizes(url: str) -> dict[str, int]:
    names = rows(url, "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
    return {name: rows(url, f'SELECT count(*) FROM "{name}"')[0][0] for (name,) in names}


def answers(url: str) -> list[Any]:
    """What is known at each moment that anything became known at."""
    known = """
        SELECT m.known_from, a.* FROM (SELECT DISTINCT known_from FROM observation) m CROSS JOIN LATERAL (
            SELECT DISTINCT ON (s.name, o.valid_time) s.name, o.valid_time, o.value
            FROM observation o JOIN series s USING (series_id) WHERE o.known_from <= m.known_from
            ORDER BY s.name, o.valid_time, o.known_from DESC, o.load_id DESC) a
        WHERE a.value IS NOT NULL ORDER BY 1, 2, 3"""
    return rows(url, known)


def publish(desk: Desk, vintages: Mapping[int, tuple[Values, Values]]) -> None:
    """All of them at once, each a file: good cells and bad ones (with a decimal comma)."""
    texts = {}
    for number, (good, bad) in vintages.items():
        desk.write(number, good, bad)
        texts |= {path: path.read_text() for path in desk.root.glob("*.csv")}
    for path, text in texts.items():
        path.write_text(text)


def test_the_examples_in_the_help_are_understood() -> None:
    for words in (["load"], ["quarantine"], ["trace"]):
        with pytest.raises(SystemExit):
            _parser().parse_args([*words, "--help"])
    helps = [_parser().format_help()]
    for action in _parser()._subparsers._group_actions[0].choices.values():  # type: ignore[union-attr]
        helps.append(action.format_help())
    examples = re.findall(r"model_service ((?:load|quarantine|trace) .*)", "\n".join(helps))
    examples = [one for one in examples if "[-h]" not in one]
    assert len(examples) == 10
    for example in examples:
        assert _parser().parse_args(shlex.split(example, comments=True))


def test_a_dry_run_says_what_a_load_would_do_and_changes_no_table(run: Run, desk: Desk, url: str) -> None:
    desk.complete = True
    desk.more = "max_vanished = 0.5"
    desk.contract()
    desk.write(0, WHOLE)
    assert run("load")[0] == 0
    desk.write(30, {(0, 0): WHOLE[0, 0], (0, 1): 7, (1, 0): WHOLE[1, 0], (1, 1): WHOLE[1, 1]}, {(0, 2): 1.5})
    before = sizes(url)
    code, output, messages = run("load", "--dry-run")
    assert (code, output) == (0, "1 of 1 payloads would be loaded\n")
    assert "would be 5 fetched, 0 new, 1 changed, 3 same, 0 deleted, 1 quarantined, 1 vanished" in messages
    assert sizes(url) == before
    told = json.loads(run("load", "--dry-run", "--json")[1])[0]
    done = json.loads(run("load", "--json")[1])[0]
    counts = ("fetched", "new", "changed", "same", "deleted", "quarantined", "vanished")
    assert (told["outcome"], done["outcome"]) == ("would load", "loaded")
    assert {name: told[name] for name in counts} == {name: done[name] for name in counts}


def test_a_window_loads_what_became_known_in_it_and_later_loads_go_on(run: Run, sample: Path) -> None:
    assert run("load", "--to", "2016-01-01")[1] == "there is no payload in this window\n"
    code, output, messages = run("load", "--from", "2016-07-01", "--to", "2016-07-31")
    assert (code, output) == (0, "1 of 1 payloads loaded\n")
    assert FIRST not in messages
    code, output, messages = run("load")
    assert (code, output) == (0, "1 of 2 payloads loaded\n")
    assert f"{SECOND}: nothing new" in messages


def test_a_blocked_payload_gives_3_says_why_and_the_others_load(run: Run, desk: Desk, url: str) -> None:
    desk.complete = True
    desk.contract()
    publish(desk, {0: (WHOLE, {}), 30: ({(0, 0): 0}, {}), 60: ({**WHOLE, (0, 0): 5}, {})})
    code, output, messages = run("load")
    assert (code, output) == (3, "2 of 3 payloads loaded\n")
    assert "block: max_vanished of desk: 5 cells held before are not in the payload" in messages
    listed = json.loads(run("load", "list", "--json")[1])
    assert [one["status"] for one in listed] == ["committed", "blocked", "committed"]
    assert rows(url, "SELECT DISTINCT known_from FROM observation ORDER BY 1") == [(day(0),), (day(60),)]
    code, output, _ = run("load", "show", str(listed[1]["load_id"]))
    assert code == 0
    assert "fetch, blocked" in output
    assert "check        block max_vanished of desk: 5 cells" in output
    assert run("load")[0] == 3  # it is run again, not taken for done
    assert run("load", "--dry-run")[0] == 3


def test_another_copy_at_it_is_named_and_nothing_is_asked_of_the_source(run: Run, desk: Desk, url: str) -> None:
    with (
        connect(url, "loader") as other,
        ledger.claim(other, "desk"),
        ledger.attempt(other, "desk", "elsewhere:17"),
    ):
        code, output, messages = run("load")  # there is no file: to look for one would fail
        assert (code, output) == (0, "0 of 0 payloads loaded\n")
        assert "desk: elsewhere:17 since " in messages
        assert json.loads(run("load", "--json")[1])[0]["outcome"] == "held"
    assert "no file matches" in run("load")[2]


def test_the_ledger_lists_and_shows_what_became_of_a_load(run: Run, desk: Desk) -> None:
    assert run("load", "list")[1] == "nothing was loaded\n"
    desk.write(0, {(0, 0): 1, (0, 1): 2}, {(0, 2): 3.5})
    run("load")
    desk.write(60, {(0, 0): 1})
    run("load")
    desk.write(30, {(0, 0): 8})
    run("load")
    code, output, _ = run("load", "list", "--dataset", "desk")
    assert code == 0
    assert re.search(r"^ *1 .* desk +fetch +committed +3 +2 +0 +0 +0 +1 +0  2010-01-01.csv$", output, re.M)
    assert [row["kind"] for row in json.loads(run("load", "list", "--json")[1])] == ["late", "fetch", "fetch", "fetch"]
    output = run("load", "show", "1")[1]
    assert "request      desk: 2010-01-01.csv, vintage 2010-01-01" in output
    assert "counts       3 fetched, 2 new, 0 changed, 0 same, 0 deleted, 1 quarantined, 0 vanished" in output
    assert "quarantine   number: 1 cells, 1 of them open" in output
    assert re.search("bytes        sha256:[0-9a-f]{64}\ncounts", output)
    assert re.search('rules        {.*"value_column": "value"', output)
    assert "then         what a later vintage says repeated by load 4" in run("load", "show", "3")[1]
    assert "because of   load 3" in run("load", "show", "4")[1]
    desk.contract(column="right")
    run("load", "--correct", "1", "--reason", "the other column")
    assert re.search(
        r"then         corrected by load \d, committed, 1 rows \(.*: the other", run("load", "show", "1")[1]
    )
    shown = json.loads(run("load", "show", "1", "--json")[1])
    assert shown["read_again_by"][0]["reason"] == "the other column"
    assert shown["quarantine"] == [{"rule": "number", "cells": 1, "open": 0}]
    assert "reads again  load 1 (" in run("load", "show", str(shown["read_again_by"][0]["load_id"]))[1]


WRONG = {
    "no reason to correct": ("load --correct 1", "--correct LOAD and --reason TEXT go together"),
    "reason without correct": ("load --reason x", "--correct LOAD and --reason TEXT go together"),
    "correct, but dry": ("load --correct 1 --reason x --dry-run", "leave out --dry-run"),
    "window the wrong way": ("load --from 2016-02-01 --to 2016-01-01", "--from 2016-02-01 lies after --to 2016-01-01"),
    "window of no dates": ("load --from soon", "'soon' is no date such as 2016-07-01"),
    "correct an unknown load": ("load --correct 99 --reason x", "there is no load 99: see `load list`"),
    "correct a replay": ("load --correct 2 --reason x", "load 2 is a retry: name load 1, which fetched the bytes"),
    "show an unknown load": ("load show 99", "there is no load 99: see `load list`"),
    "unknown dataset": ("load list --dataset desc", "no source 'desc' in service.toml; did you mean 'desk'?"),
    "unknown cell": ("quarantine show 99", "nothing is in quarantine as 99: see `quarantine list`"),
    "drop an unknown cell": ("quarantine drop 1 99 --reason x", "nothing is in quarantine as 99"),
    "drop without reason": ("quarantine drop 1", "the following arguments are required: --reason"),
    "empty reason": ("quarantine drop 1 --reason ''", "say why"),
    "replay an unknown load": ("quarantine replay 99 --reason x", "there is no load 99: see `load list`"),
    "replay a replay": ("quarantine replay 2 --reason x", "load 2 is a retry: name load 1, which fetched the bytes"),
    "replay twice": ("quarantine replay 1 --reason x", "nothing that load 1 refused waits for a replay"),
    "drop what was replayed": ("quarantine drop 1 --reason x", "was settled before (1: replay by"),
    "trace what": ("trace", "one of the arguments answer --observation --affected is required"),
    "trace an unknown load": ("trace --affected 99", "there is no load 99: see `load list`"),
    "trace a load as of": ("trace --affected 1 --as-of 2016-01-01", "--as-of and --data-version go with --observation"),
    "trace an unknown series": (
        "trace --observation desk_9 2000-01",
        "no series 'desk_9' was ever loaded; did you mean",
    ),
    "trace no period": ("trace --observation desk_0 2000", "'2000' names no period of a series by month"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_wrong_use_is_one_clear_line_and_2(run: Run, desk: Desk, url: str, mistake: str) -> None:
    desk.write(0, {(0, 0): 1}, {(0, 1): 1.5})
    run("load")
    desk.contract(decimal=",")
    assert run("quarantine", "replay", "1", "--reason", "commas")[0] == 0
    before = sizes(url)
    words, says = WRONG[mistake]
    code, output, messages = run(*shlex.split(words))
    assert (code, output) == (2, "")
    assert says in messages.splitlines()[-1]
    assert messages.count("error:") == 1
    assert sizes(url) == before


def test_after_a_replay_every_as_of_answers_as_if_nothing_had_been_refused(
    run: Run, desk: Desk, url: str, new_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    vintages = {
        0: ({(0, 0): 1, (1, 0): 5}, {(0, 1): 2.5}),
        30: ({(0, 0): 1, (0, 1): 3}, {(1, 0): 5.5}),
        60: ({(0, 0): 2, (1, 0): 5}, {(0, 1): 2.5, (0, 2): 9.5}),
    }
    publish(desk, vintages)
    assert run("load")[0] == 0
    wrong = answers(url)
    desk.contract(decimal=",")
    for load in ("3", "1", "2"):
        code, output, messages = run("quarantine", "replay", load, "--reason", "commas are decimal here")
        assert code == 0
        assert f"retry of load {load}" in output
    twin = new_database()
    monkeypatch.setenv("DATABASE_URL", twin)
    assert run("load")[0] == 0
    assert answers(url) == answers(twin) != wrong
    assert len(answers(twin)) == 3 + 3 + 4
    retries = rows(url, "SELECT origin, fetched, quarantined, reason FROM load WHERE kind = 'retry' ORDER BY load_id")
    assert retries == [(3, 2, 0, "commas are decimal here"), (1, 1, 0, "commas are decimal here"),
                       (2, 1, 0, "commas are decimal here")]  # fmt: skip


def test_what_a_replay_refuses_again_can_be_replayed_again(run: Run, desk: Desk) -> None:
    desk.write(0, {(0, 0): 1}, {(0, 1): 1.5, (0, 2): "n/a"})  # type: ignore[dict-item]
    run("load")
    assert [one["raw"] for one in json.loads(run("quarantine", "list", "--open", "--json")[1])] == ["1,5", "n/a"]
    desk.contract(decimal=",")
    assert "1 new" in run("quarantine", "replay", "1", "--reason", "commas")[2]
    left = json.loads(run("quarantine", "list", "--open", "--json")[1])
    assert [(one["raw"], one["load_id"]) for one in left] == [("n/a", 2)]
    code, _, messages = run("quarantine", "drop", "1", "2", "--reason", "theirs")
    assert code == 2
    assert re.search(r"\(1: replay by [^,;]+; 2: replay by [^,;]+, refused again and open as 3\)", messages)
    desk.more = 'missing = ["", "n/a"]'
    desk.contract(decimal=",")
    assert run("quarantine", "replay", "1", "--reason", "n/a is none")[0] == 0
    assert run("quarantine", "list", "--open")[1] == "nothing is there\n"


def test_quarantined_cells_are_listed_shown_and_dropped_in_rows_of_their_own(run: Run, desk: Desk, url: str) -> None:
    desk.write(0, {(0, 0): 1}, {(0, 1): 1.5, (0, 2): 2.5, (1, 0): 3.5})
    run("load")
    held = rows(url, "SELECT * FROM quarantine ORDER BY 1")
    code, output, _ = run("quarantine", "list", "--load", "1", "--rule", "number")
    assert code == 0
    assert re.search(r"^ *1 +1  2010-01-01.csv:3 +desk_0  2000-02-01  number  1,5  open$", output, re.M)
    assert run("quarantine", "list", "--rule", "future")[1] == "nothing is there\n"
    code, output, _ = run("quarantine", "show", "2")
    assert code == 0
    assert "cell    2: desk_0 of 2000-03-01\nplace   2010-01-01.csv, line 4, load 1\nrule    number: not a" in output
    assert "raw     2,5\ndone    open: mend service.toml and `quarantine replay 1`, or `quarantine drop 2`" in output
    code, output, _ = run("quarantine", "drop", "1", "2", "--reason", "test rows of theirs")
    assert (code, output) == (0, "2 dropped\n")
    assert re.search(r"done    dropped, .* \(.+: test rows of theirs\)", run("quarantine", "show", "2")[1])
    assert json.loads(run("quarantine", "show", "2", "--json")[1])["reason"] == "test rows of theirs"
    code, _, messages = run("quarantine", "drop", "3", "2", "--reason", "again")
    assert code == 2
    assert "was settled before (2: drop by " in messages
    assert rows(url, "SELECT quarantine_id, action, reason FROM quarantine_action ORDER BY 1") == [
        (1, "drop", "test rows of theirs"), (2, "drop", "test rows of theirs")]  # fmt: skip
    with (
        connect(url, "loader") as other,
        pytest.raises(ServiceError, match="another copy settled some of these"),
        other.transaction(),
    ):
        quarantine.settle(other, [2, 3], "drop", None, "at the same time")
    assert rows(url, "SELECT count(*) FROM quarantine_action") == [(2,)]
    assert rows(url, "SELECT * FROM quarantine ORDER BY 1") == held
    desk.contract(decimal=",")
    assert "1 fetched, 1 new" in run("quarantine", "replay", "1", "--reason", "commas")[2]  # not what was dropped
    assert run("quarantine", "list", "--open")[1] == "nothing is there\n"


def test_a_correction_takes_up_what_its_load_refused_and_refuses_it_anew(run: Run, desk: Desk) -> None:
    desk.write(0, {(0, 0): 1}, {(0, 1): 1.5}, right={(0, 0): 4, (0, 1): "n/a"})  # type: ignore[dict-item]
    run("load")
    desk.contract(column="right")
    assert run("load", "--correct", "1", "--reason", "column")[0] == 0
    cells = json.loads(run("quarantine", "list", "--json")[1])
    assert [(one["raw"], one["load_id"], one["action_load"]) for one in cells] == [("1,5", 1, 2), ("n/a", 2, None)]


def test_a_correction_that_a_check_blocks_gives_3_and_what_is_known_stays(run: Run, desk: Desk, url: str) -> None:
    desk.more = CHECK
    desk.contract()
    desk.write(0, {(0, 0): 4}, right={(0, 0): 400})
    run("load")
    before = answers(url)
    desk.contract(column="right")
    code, _, messages = run("load", "--correct", "1", "--reason", "column")
    assert code == 3
    blocked = json.loads(run("load", "list", "--json")[1])[0]
    assert f"a check refuses the correction of load 1: see `load show {blocked['load_id']}`" in messages
    assert (blocked["kind"], blocked["status"], answers(url)) == ("correction", "blocked", before)
    assert json.loads(run("trace", "--affected", "1", "--json")[1])["corrected_by"] == []
    desk.more = ""
    desk.contract(column="right")
    assert "1 changed" in run("load", "--correct", "1", "--reason", "the check was wrong")[2]


def test_trace_of_an_observation_names_what_it_came_by(run: Run, desk: Desk, url: str) -> None:
    desk.write(0, {(0, 0): 1, (0, 1): 2})
    run("load")
    desk.write(30, {(0, 0): 7})
    run("load")
    code, output, _ = run("trace", "--observation", "desk_0", "2000-01")
    assert code == 0
    assert "value   desk_0 2000-01-01 7 (percent), known from 2010-01-31\n" in output
    assert re.search(r"load    2 .* 2010-01-31.csv\n +sha256:[0-9a-f]{64}, kept bytes hold the hash\n", output)
    assert re.search(
        r'code    sha256:[0-9a-f]{64}, parser \d+\nrules   {"kind": "csv", .*\n +{"frequency": "month"', output
    )
    assert "no registered model and no recorded forecast rests on it" in output
    for named in ("2000-01-15", "2000-W02"):
        found = json.loads(run("trace", "--observation", "desk_0", named, "--as-of", "2010-01-30", "--json")[1])
        assert (found["observation"]["value"], found["load"]["load_id"]) == (1, 1)
    old = rows(url, "SELECT version FROM data_version ORDER BY ordinal LIMIT 1")[0][0]
    found = json.loads(run("trace", "--observation", "desk_0", "2000-01", "--data-version", old, "--json")[1])
    assert (found["observation"]["value"], found["as_of"]["data_version"]) == (1, old)
    code, _, messages = run("trace", "--observation", "desk_0", "2000-01", "--as-of", "2009-12-31")
    assert code == 1
    assert "nothing was known of desk_0 for 2000-01-01 at 2009-12-31" in messages
    with psycopg.connect(url) as owner:
        owner.execute("UPDATE raw_object SET bytes = 'x'")
    code, output, _ = run("trace", "--observation", "desk_0", "2000-01")
    assert code == 1
    assert "KEPT BYTES DO NOT HOLD THE HASH" in output


def lengthen(project: Path) -> None:
    """The sample by line instead of by column, with the target's share beside its percents; the share is declared."""
    for name in (FIRST, SECOND):
        with (project / name).open() as file:
            lines = list(csv.DictReader(file))
        with (project / name).open("w") as file:
            out = csv.writer(file)
            out.writerow(["Date", "series", "share", "value"])
            declared = re.findall(r"^\[series\.(\w+)\]", (project / "service.toml").read_text(), re.M)
            for line in lines:
                for series in declared:
                    share = round(float(line[series]) / 10, 2) if series == "UNRATE" and line[series] else line[series]
                    out.writerow([line["Date"], series, share, line[series]])
    toml = (project / "service.toml").read_text()
    (project / "service.toml").write_text(toml.replace('layout = "wide"', 'layout = "long"\nvalue_column = "share"'))


def test_after_a_correction_the_old_version_answers_the_old_values_and_what_rested_on_them_is_named(
    run: Run, sample: Path, url: str, new_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lengthen(sample)
    assert run("load")[0] == 0
    assert run("train", "--as-of", "2016-07-01")[0] == 0  # and a forecast is recorded, as of now
    old = run("forecast", "--as-of", "2016-07-01", "--json")[1]
    version = json.loads(old)["as_of"]["data_version"]
    (first,) = rows(url, "SELECT version FROM data_version ORDER BY ordinal LIMIT 1")[0]
    assert run("forecast", "--record", "--as-of", "2016-08-01", "--data-version", first)[0] == 0  # without load 2
    toml = (sample / "service.toml").read_text()
    (sample / "service.toml").write_text(toml.replace('"share"', '"value"'))
    code, output, _ = run("load", "--correct", "1", "--reason", "the share was read for the percents")
    assert code == 0
    assert "`trace --affected 1` says what rests on that" in output
    assert run("load", "--correct", "2", "--reason", "the same")[0] == 0

    clocks = ("--as-of", "2016-07-01", "--data-version", version)
    assert run("forecast", *clocks, "--json")[1] == old
    assert json.loads(run("forecast", "--as-of", "2016-07-01", "--json")[1])["forecasts"][0]["value"] > 4
    cell = ("trace", "--observation", "UNRATE", "2016-05-01", "--json")
    before, after = json.loads(run(*cell, *clocks)[1]), json.loads(run(*cell, "--as-of", "2016-07-01")[1])
    assert (before["observation"]["value"], before["load"]["load_id"]) == (0.47, 1)
    assert (after["observation"]["value"], after["load"]["kind"], after["load"]["origin"]) == (4.7, "correction", 1)
    assert [one["version"] for one in before["models"]] == [1]
    assert before["forecasts"][0]["because"] == ["its inputs", "its model"]
    assert after["models"] == []
    distant = json.loads(run("trace", "--observation", "UNRATE", "1990-01", *clocks, "--json")[1])
    assert distant["forecasts"][0]["because"] == ["its model"]

    found = json.loads(run("trace", "--affected", "1", "--json")[1])
    assert [(one["version"], "UNRATE" in one["series"]) for one in found["models"]] == [(1, True)]
    because = [one["because"] for one in found["forecasts"]]
    assert because == [["its model"], ["its inputs", "its model"], *[["its model"]] * 2]  # of the second load's inputs
    correction = found["corrected_by"][0]
    found = json.loads(run("trace", "--affected", "2", "--json")[1])  # not known yet where the model was trained
    assert (found["models"], [one["because"] for one in found["forecasts"]]) == ([], [["its inputs"]] * 2)

    twin = new_database()
    monkeypatch.setenv("DATABASE_URL", twin)
    assert run("load")[0] == 0
    assert answers(url) == answers(twin)
    monkeypatch.setenv("DATABASE_URL", url)
    assert run("train", "--as-of", "2016-07-01")[0] == 0
    code, output, _ = run("trace", "--affected", "1")
    assert code == 0
    assert f"load {correction} says it right; below is what read it wrong\nmodel   1 (" in output
    assert "model   2 (" not in output
    assert [one["version"] for one in json.loads(run(*cell, *clocks)[1])["models"]] == [1]
    assert "make again: `train` for the models, then `forecast --record`" in output
