"""What was forecast, judged by what came true; when to train again; and every past answer at once."""

import csv
import io
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
import serving
from conftest import Run
from desk import moment

from model_service import artifact, batch, doctor, features, forecasting, live, registry, retrain
from model_service import contract as contracts
from model_service.contract import Contract
from model_service.loader import run as loading
from model_service.store import read
from model_service.store.connection import connect

TOML = """
[service]
name = "desk"
[image]
repository = "desk"
base = "python"
[source.office]
kind = "csv"
path = "*.csv"
layout = "long"
date = { column = "month", format = "%Y-%m" }
value_column = "value"
vintage = { from = "file_name", format = "%Y-%m-%d" }
[series.RATE]
source = "office"
frequency = "month"
unit = "percent"
release_lag_days = 7
[series.OTHER]
source = "office"
frequency = "month"
unit = "percent"
release_lag_days = 7
[target]
series = "RATE"
horizons = [1, 3]
[[feature]]
series = "RATE"
transform = "difference"
[train]
first_origin = "2000-01-01"
"""
PAST = {f"2015-{month:02}": 5 + month % 2 / 10 for month in range(1, 13)}


@dataclass
class Office:
    """A store of one small series, with a made-up champion that was trained on what was published in January 2016."""

    url: str
    root: Path
    contract: Contract

    def publish(self, day: str, values: Mapping[str, float], series: str = "RATE") -> None:
        """Loads a vintage."""
        lines = ["series,month,value", *(f"{series},{month},{value}" for month, value in values.items())]
        (self.root / f"{day}.csv").write_text("\n".join(lines) + "\n")
        assert loading.load(self.contract, self.url, self.root, print)[-1]["outcome"] == "loaded"
        (self.root / f"{day}.csv").unlink()

    def promote(self, trained: str = "2016-01-31", **card: Any) -> str:
        """A new champion with the given values in its card; returns its digest."""
        inputs, horizons = features.inputs(self.contract), list(self.contract.target.horizons)
        weights = np.array([[1.0, 1.0], [0.5, 0.25], [0.1, 0.1]])[: len(inputs)]
        files = serving._files(serving.Project(self.root, inputs, horizons, weights), self.contract)
        with connect(self.url, "loader") as connection:
            version = read.data_version(connection)
            clocks = {"known_at": f"{trained}T23:59:59.999999Z", "data_version": version.version}
            made = json.loads(files["card.json"]) | {"trained_as_of": clocks, "loads": version.loads}
            made |= {"metrics": {"rmse": {"model": [0.1, 0.2]}}, "inputs_known_until": f"{trained}T00:00:00Z"}
            made |= {"input_range": {inputs[0]: [4.5, 5.5], inputs[1]: [-0.5, 0.5]}, **card}
            files["card.json"] = json.dumps(made).encode()
            texts = {name: content.decode() for name, content in files.items() if name != "model.onnx"}
            digest = artifact.write(self.root / "model", files, "1")
            connection.execute(
                "WITH made AS (INSERT INTO model (digest, files, onnx) VALUES (%s, %s, %s) RETURNING version)"
                " INSERT INTO promotion (version, action, who, reason)"
                " SELECT version, 'promote', 'me', 'test' FROM made",
                [digest, json.dumps(texts), files["model.onnx"]],
            )
        return digest

    def tell(self, made: str, month: str, value: float, **more: Any) -> None:
        """A forecast that was recorded on a day, by its own clock the same unless `known_at` says otherwise."""
        row = {"made_at": made, "known_at": made, "valid_time": f"{month}-01", "value": value, "model_digest": "any"}
        row |= {"data_version": "x", "series": "RATE", "horizon": 1, "intervals": "[]", "hindsight": False, **more}
        with psycopg.connect(self.url) as owner:
            names = ", ".join(row)
            owner.execute(
                f"INSERT INTO forecast ({names}) VALUES ({', '.join(['%s'] * len(row))})",  # noqa: S608
                list(row.values()),
            )

    def errors(self, version: int | None = None) -> dict[int, dict[str, Any]]:
        with connect(self.url) as connection:
            return {one["horizon"]: one for one in live.errors(self.contract, connection, version)}

    def reasons(self, now: str, **limits: float) -> dict[str, bool]:
        """Which reasons to train again hold on a day, by limits that nothing else reaches."""
        far = {"new_loads": 99, "drift_share": 0.99, "live_rmse_ratio": 99.0, "age_days": 999.0}
        contract = self.contract.model_copy(update={"retrain": contracts.Retrain.model_validate(far | limits)})
        with connect(self.url) as connection:
            return {one.name: one.train for one in retrain.reasons(contract, connection, moment(now))}


@pytest.fixture
def office(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Office:
    (tmp_path / "service.toml").write_text(TOML)
    monkeypatch.setenv("PROJECT_ROOT", str(tmp_path))
    monkeypatch.setenv("DATABASE_URL", url)
    made = Office(url, tmp_path, contracts.load(tmp_path / "service.toml"))
    made.publish("2016-01-20", PAST)
    made.promote()
    return made


def test_horizons_that_service_toml_has_since_the_training_are_said_and_change_no_answer(
    office: Office, run: Run
) -> None:
    asked = ("forecast", "--json", "--as-of", "2016-01-31")
    code, before, said = run(*asked)
    assert (code, said) == (0, "")
    assert "ok    declaration: model 1 was trained for what service.toml says" in run("doctor")[1]
    text = (office.root / "service.toml").read_text()
    (office.root / "service.toml").write_text(text.replace("horizons = [1, 3]", "horizons = [12, 1]"))
    says = (
        "service.toml no longer fits model 1: horizons 1, 3 -> 1, 12 since it was trained; run `train`, or restore"
        " service.toml\n"
    )
    assert run(*asked) == (0, before, says)
    assert run("forecast", "--all", "--to", "csv", "--as-of", "2016-01-31")[2].endswith(says)
    assert f"look  declaration: {says}" in run("doctor")[1]
    office.contract = contracts.load(office.root / "service.toml")
    assert office.reasons("2016-02-01") == {"declaration": True}


def spread(centre: float, width: float) -> str:
    return json.dumps([{"level": 0.8, "lower": centre - width, "upper": centre + width}])


def lived(office: Office) -> None:
    """January comes out at 5.0 and is revised to 5.2, February at 5.1; both were forecast a month ahead."""
    office.tell("2016-01-25", "2016-01", 5.3, intervals=spread(5.05, 0.1))
    office.tell("2016-02-25", "2016-02", 5.0, intervals=spread(5.0, 0.2))
    office.publish("2016-02-20", {"2016-01": 5.0})
    office.publish("2016-03-20", {"2016-01": 5.2, "2016-02": 5.1})


@pytest.mark.ml_test("model-2")
def test_live_errors_by_first_and_by_latest_release_are_those_worked_out_by_hand(office: Office) -> None:
    lived(office)
    one, three = office.errors()[1], office.errors()[3]
    assert one["n"] == 2
    assert one["rmse_first"] == pytest.approx(((0.3**2 + 0.1**2) / 2) ** 0.5)
    assert one["rmse_latest"] == pytest.approx(0.1)
    assert one["coverage"] == {"0.8": 0.5}  # January's 5.2 lies outside 4.95 to 5.15, its first 5.0 inside
    assert one["rmse_expected"] == 0.1
    assert (three["n"], three["rmse_first"], three["rmse_latest"], three["coverage"]) == (0, None, None, {})


def no_evidence(office: Office) -> None:
    """Forecasts that were not ahead, or were told already; each would change the figures."""
    office.tell("2016-01-24", "2016-01", 9.0, hindsight=True)  # its model had seen more
    office.tell("2016-01-26", "2016-01", 9.0)  # a repeated run
    office.tell("2016-02-10", "2016-01", 9.0, data_version="y")  # the same again, after data were corrected
    office.tell("2016-01-20", "2015-11", 9.0)  # at the very moment that it came out
    office.tell("2016-03-25", "2015-12", 9.0, known_at="2016-01-05")  # as of then, but made when it was out
    office.tell("2016-01-05", "2015-10", 9.0, known_at="2016-03-25")  # as of a time when it was out
    office.tell("2016-02-25", "2016-04", 9.0)  # not out yet


def test_what_was_not_ahead_or_was_told_already_is_no_evidence(office: Office) -> None:
    lived(office)
    before = office.errors()
    no_evidence(office)
    assert office.errors() == before


@pytest.mark.parametrize(
    ("guard", "without"),
    [
        ("hindsight IS NOT TRUE", "true"),
        ("greatest(made_at, known_at)", "known_at"),
        ("SELECT DISTINCT ON (horizon, valid_time)", "SELECT"),
        ("known_at), forecast_id", "known_at) DESC"),
    ],
    ids=["hindsight", "told in time", "once", "the first"],
)
@pytest.mark.ml_test("model-2", sabotage=True)
@pytest.mark.ml_test("monitor-7", sabotage=True)
def test_without_a_guard_what_is_no_evidence_counts(
    office: Office, monkeypatch: pytest.MonkeyPatch, guard: str, without: str
) -> None:
    lived(office)
    before = office.errors()
    no_evidence(office)
    assert guard in live.TOLD
    monkeypatch.setattr(live, "TOLD", live.TOLD.replace(guard, without))
    assert office.errors() != before


def test_a_correction_of_the_data_changes_the_truth_and_not_what_was_told(office: Office) -> None:
    lived(office)
    office.publish("2016-04-20", {"2016-01": 5.3})
    assert office.errors()[1]["rmse_latest"] == pytest.approx((0.1**2 / 2) ** 0.5)
    assert office.errors()[1]["rmse_first"] == pytest.approx(((0.3**2 + 0.1**2) / 2) ** 0.5)


def test_a_value_that_was_taken_back_is_no_truth(office: Office) -> None:
    lived(office)
    path = office.root / "service.toml"
    path.write_text(path.read_text().replace('kind = "csv"', 'kind = "csv"\ncomplete = true\nmax_vanished = 1.0'))
    office.contract = contracts.load(path)
    office.publish("2016-04-20", {"2016-02": 5.1})
    assert office.errors()[1]["n"] == 1


def half_a_year(office: Office, off: float) -> None:
    """Six forecasts a month ahead, by the champion, each off by as much; then the truth."""
    with connect(office.url) as connection:
        digest = registry.champion(connection).digest  # type: ignore[union-attr]
    months = [f"2016-{month:02}" for month in range(1, 7)]
    for month in months:
        office.tell("2016-02-01", month, 5.0 + off, model_digest=digest)
    office.publish("2016-07-20", dict.fromkeys(months, 5.0))


@pytest.mark.ml_test("monitor-7")
@pytest.mark.parametrize(("off", "state"), [(0.14, "ok"), (0.16, "look")])
def test_doctor_says_when_live_errors_have_outgrown_the_backtest(office: Office, off: float, state: str) -> None:
    half_a_year(office, off)
    with connect(office.url) as connection:
        found = [
            one for one in doctor.examine(office.contract, connection, moment("2016-08-01")) if one["check"] == "live"
        ]
    assert [one["state"] for one in found] == [state, "ok"]
    says = f"horizon 1: RMSE of 6 forecasts {off} by latest, {off} by first release; 0.1 expected, {off * 10:.2f} times"
    decayed = "; decayed, the limit is 1.5: see `train --if-needed`" if state == "look" else ""
    assert found[0]["says"] == says + decayed
    assert found[1]["says"] == "horizon 3: no forecast has met its truth yet"


@pytest.mark.parametrize(("horizon", "few"), [(1, 5), (3, 17)])
def test_five_errors_that_do_not_overlap_are_too_few_to_judge_a_model_by(
    office: Office, horizon: int, few: int
) -> None:
    months = [f"{2016 + number // 12}-{number % 12 + 1:02}" for number in range(few)]
    for month in months:
        office.tell("2016-01-25", month, 9.0, horizon=horizon)
    office.publish("2018-01-20", dict.fromkeys(months, 5.0))
    found = office.errors()[horizon]
    assert (found["n"], found["ratio"]) == (few, None)


def test_what_lies_far_back_says_nothing_of_today(office: Office) -> None:
    months = [f"{year}-{month:02}" for year in (2016, 2017) for month in range(1, 13)]
    for month in months:
        office.tell("2016-01-25", month, 9.0 if month < "2017" else 5.1)
    office.publish("2018-01-20", dict.fromkeys(months, 5.0))
    assert (office.errors()[1]["n"], office.errors()[1]["ratio"]) == (12, pytest.approx(1.0))


def test_one_model_is_judged_by_its_own_forecasts(office: Office) -> None:
    lived(office)
    assert office.errors(1)[1]["n"] == 0  # none of them was its
    half_a_year(office, 0.1)
    assert (office.errors(1)[1]["n"], office.errors()[1]["n"]) == (6, 6)
    assert office.errors(2) == {}


NOTHING = {"new_data": False, "drift": False, "decay": False, "age": False}


def test_nothing_new_is_no_reason_however_old_the_model_is(office: Office) -> None:
    assert office.reasons(in_days(999), new_loads=1, age_days=1) == NOTHING


def test_new_data_are_a_reason_only_where_the_model_reads_them(office: Office) -> None:
    office.publish("2016-02-20", {"2016-01": 7.0}, series="OTHER")
    assert office.reasons("2016-03-01", new_loads=1) == NOTHING
    office.publish("2016-02-21", {"2016-01": 5.0})
    assert office.reasons("2016-03-01", new_loads=1) == NOTHING | {"new_data": True}
    assert office.reasons("2016-03-01", new_loads=2) == NOTHING
    assert office.reasons("2016-02-20", new_loads=1) == NOTHING  # not out yet on that day


@pytest.mark.parametrize(("value", "drifts"), [(5.4, False), (6.0, True)])
def test_inputs_outside_their_range_in_training_are_a_reason(office: Office, value: float, drifts: bool) -> None:
    office.publish("2016-02-20", {"2016-01": value})
    assert office.reasons("2016-03-01", drift_share=0.9) == NOTHING | {"drift": drifts}


@pytest.mark.parametrize(("off", "decays"), [(0.12, False), (0.14, True)])
def test_live_errors_above_those_of_the_backtest_are_a_reason(office: Office, off: float, decays: bool) -> None:
    half_a_year(office, off)
    assert office.reasons("2016-08-01", live_rmse_ratio=1.3) == NOTHING | {"decay": decays}


@pytest.mark.ml_test("monitor-4")
def test_age_is_a_reason_once_there_is_anything_new(office: Office) -> None:
    office.publish("2016-02-20", {"2016-01": 5.0})
    assert office.reasons(in_days(29), age_days=30) == NOTHING
    assert office.reasons(in_days(32), age_days=30) == NOTHING | {"age": True}


@pytest.mark.ml_test("monitor-4", sabotage=True)
def test_a_clock_that_stands_hides_the_age(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    office.publish("2016-02-20", {"2016-01": 5.0})
    stands = retrain.LAST.replace("greatest(m.created_at, r.finished_at)", "m.created_at + interval '30 days'")
    monkeypatch.setattr(retrain, "LAST", stands)
    assert office.reasons(in_days(32), age_days=30) == NOTHING


def in_days(number: int) -> str:
    """The day so long after the model was registered, which is today."""
    return f"{datetime.now(UTC) + timedelta(days=number):%Y-%m-%d}"


def refused(office: Office, known_at: str, finished: str = "today") -> None:
    """A training that the gate refused, on all that was loaded."""
    with connect(office.url, "loader") as connection:
        connection.execute(
            "INSERT INTO training_run (seconds, who, outcome, finished_at, known_at, data_version, parameters, figures,"
            " gate, provenance) VALUES (1, 'me', 'blocked', %s, %s, %s, '{}', '{}', '[]', '{}')",
            [finished, known_at, read.data_version(connection).version],
        )


def test_what_a_refused_training_has_read_is_not_new(office: Office) -> None:
    office.publish("2016-02-20", {"2016-01": 5.0})
    refused(office, "2016-02-28")
    assert office.reasons("2016-03-01", new_loads=1) == NOTHING
    office.publish("2016-03-20", {"2016-02": 5.0})
    assert office.reasons("2016-04-01", new_loads=1) == NOTHING | {"new_data": True}
    refused(office, "2016-03-28")
    assert office.reasons("2016-04-01", new_loads=1) == NOTHING


def test_age_counts_from_a_refused_training_too(office: Office) -> None:
    refused(office, "2016-01-31", in_days(10))
    office.publish("2016-02-20", {"2016-01": 5.0})
    assert office.reasons(in_days(32), age_days=30) == NOTHING
    assert office.reasons(in_days(42), age_days=30) == NOTHING | {"age": True}


def test_a_model_that_no_longer_fits_the_declaration_is_a_reason(office: Office) -> None:
    target = office.contract.target.model_copy(update={"series": "OTHER"})
    office.contract = office.contract.model_copy(update={"target": target})
    assert office.reasons("2016-03-01") == {"declaration": True}


def test_a_schedule_trains_for_a_reason_and_then_has_none(run: Run, project: Path, url: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    assert run("load")[0] == 0
    code, output, messages = run("train", "--if-needed", "--json")
    assert (code, json.loads(output)["reasons"][0]["name"]) == (0, "champion")
    assert "train  champion: there is none yet" in messages
    code, output, messages = run("train", "--if-needed", "--json")
    assert (code, json.loads(output)["trained"]) == (0, False)
    assert [one["train"] for one in json.loads(output)["reasons"]] == [False] * 4
    assert "stay   new_data: 0 loads brought something" in messages
    assert "the same data would only give the same model again" in messages
    assert run("train", "--if-needed", "--as-of", "2016-07-01")[0] == 2


@pytest.fixture
def past(office: Office) -> Office:
    """Three vintages, of which the model saw the first."""
    office.publish("2016-02-20", {"2016-01": 5.0})
    office.publish("2016-02-27", {"2016-01": 5.2}, series="OTHER")  # no input of the model
    office.publish("2016-03-20", {"2016-01": 5.2, "2016-02": 5.1})
    return office


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_all_past_answers_at_once_are_the_single_answers(run: Run, past: Office) -> None:
    code, output, messages = run("forecast", "--all", "--to", "csv")
    assert code == 0
    rows = table(output)
    assert [(row["known_at"][:10], row["horizon"]) for row in rows] == [
        (day, horizon) for day in ("2016-01-20", "2016-02-20", "2016-03-20") for horizon in ("1", "3")
    ]
    assert "forecast 3/3 as-of times" in messages
    with connect(past.url) as connection:
        for row in rows:
            body = forecasting.answer(
                past.contract,
                forecasting.champion(connection),
                connection,
                datetime.fromisoformat(row["known_at"]),
                row["data_version"],
                [int(row["horizon"])],
            )
            one, clocks = body["forecasts"][0], body["as_of"]
            assert (row["known_at"], row["data_version"]) == (clocks["known_at"], clocks["data_version"])
            assert (row["valid_time"], float(row["value"])) == (one["valid_time"], one["value"])
            assert (float(row["lower_0.8"]), float(row["upper_0.8"])) == tuple(
                one["intervals"][0][end] for end in ("lower", "upper")
            )
            assert row["inputs_known_until"] == body["inputs_known_until"]
            assert (row["model_digest"], row["hindsight"]) == (body["model"]["digest"], str(body["hindsight"]))
            assert json.loads(row["loads"]) == {"office": 4}
    assert [row["hindsight"] for row in rows] == ["True"] * 2 + ["False"] * 4
    assert run("forecast", "--all", "--to", "csv", "--as-of", "2016-01-01")[:2] == (1, "")  # nothing was known then
    assert table(run("forecast", "--all", "--to", "csv", "--as-of", "2016-02-25", "--horizon", "3")[1]) == [
        rows[1],
        rows[3],
    ]


def test_there_is_no_past_answer_before_the_first_vintage_of_every_series(run: Run, past: Office) -> None:
    (past.root / "service.toml").write_text(f'{TOML}[[feature]]\nseries = "OTHER"\n')
    past.contract = contracts.load(past.root / "service.toml")
    past.promote(input_range={})
    assert run("forecast", "--as-of", "2016-02-20")[0] == 1
    days = [row["known_at"][:10] for row in table(run("forecast", "--all", "--to", "csv", "--horizon", "1")[1])]
    assert days == ["2016-02-27", "2016-03-20"]


def test_a_table_is_appended_to_once_and_is_no_live_evidence(run: Run, past: Office) -> None:
    count = "SELECT count(*), count(*) FILTER (WHERE hindsight) FROM forecast"
    before = past.errors()
    for told in (6, 0):
        code, output, _ = run("forecast", "--all", "--to", "table", "--json")
        assert (code, json.loads(output)) == (0, {"appended": told})
        with psycopg.connect(past.url) as owner:
            assert owner.execute(count).fetchone() == (6, 2)
    assert past.errors() == before
    assert run("forecast", "--record", "--as-of", "2016-02-20")[0] == 0  # told already, by the batch
    with psycopg.connect(past.url) as owner:
        assert owner.execute(count).fetchone() == (6, 2)


def test_parquet_holds_what_csv_does_in_types(run: Run, past: Office) -> None:
    from pyarrow import parquet

    assert run("forecast", "--all", "--to", "parquet", "--out", str(past.root / "all.parquet"))[0] == 0
    assert run("forecast", "--all", "--to", "csv", "--out", str(past.root / "all.csv"))[0] == 0
    typed = parquet.read_table(past.root / "all.parquet").to_pylist()
    plain = table((past.root / "all.csv").read_text())
    assert [row["value"] for row in typed] == [float(row["value"]) for row in plain]
    assert [row["known_at"] for row in typed] == [datetime.fromisoformat(row["known_at"]) for row in plain]
    assert list(typed[0]) == list(plain[0])


def stopped(path: Path, _: Any) -> None:
    path.write_text("half of")
    raise KeyboardInterrupt


def test_a_stop_leaves_what_was_there(run: Run, past: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    (past.root / "out").mkdir()
    out = past.root / "out" / "all.parquet"
    out.write_text("what was there")
    monkeypatch.setattr(batch, "_parquet", stopped)
    assert run("forecast", "--all", "--to", "parquet", "--out", str(out))[0] == 130
    assert [path.read_text() for path in out.parent.iterdir()] == ["what was there"]


def test_without_pyarrow_it_says_where_it_is(run: Run, past: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, _, messages = run("forecast", "--all", "--to", "parquet", "--out", str(past.root / "x"))
    assert code == 1
    assert "as-of times" not in messages  # it says so before the work
    assert "--to parquet needs pyarrow, of requirements/train.txt" in messages


@pytest.mark.parametrize(
    "words",
    [
        "--all",
        "--to csv",
        "--all --to parquet",
        "--all --to table --out x",
        "--out x",
        "--all --to csv --record",
        "--all --to csv --out no/x",
    ],
)
def test_words_that_do_not_fit_together_are_refused(run: Run, office: Office, words: str) -> None:
    code, _, messages = run("forecast", *words.split())
    assert code == 2
    assert "--to" in messages or "no folder" in messages


def test_every_load_tells_the_champions_forecast_and_a_load_of_nothing_new_does_not(run: Run, office: Office) -> None:
    (office.root / "2016-02-20.csv").write_text("series,month,value\nRATE,2016-01,5.0\n")
    for told in (2, 2):
        assert run("load")[0] == 0
        with psycopg.connect(office.url) as owner:
            rows = owner.execute("SELECT valid_time::date::text, hindsight FROM forecast ORDER BY horizon").fetchall()
        assert len(rows) == told
    assert rows == [("2016-02-01", False), ("2016-04-01", False)]
