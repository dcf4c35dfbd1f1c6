"""What a training leaves behind: a registered model, its card, its checksums; or a refusal and nothing else."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import SAMPLE

from model_service import artifact, forecasting, registry
from model_service.contract import Contract
from model_service.errors import Blocked, ServiceError
from model_service.inputs import Feature
from model_service.store import read
from model_service.training import run


@pytest.mark.ml_test("data-1")
def test_the_sample_loads_to_the_counts_worked_out_by_hand(loaded: psycopg.Connection[Any]) -> None:
    found = loaded.execute(
        "SELECT fetched, new, changed, same, deleted, quarantined FROM load ORDER BY load_id"
    ).fetchall()
    assert found == [(8653, 8653, 0, 0, 0, 0), (8676, 23, 85, 8568, 0, 0)]


def by_champion(contract: Contract, connection: psycopg.Connection[Any], *asked: Any) -> dict[str, Any]:
    return forecasting.answer(contract, forecasting.champion(connection), connection, *asked)


def copied(folder: Path) -> Path:
    (folder / "service.toml").write_bytes((SAMPLE / "service.toml").read_bytes())
    return folder


@pytest.fixture(scope="module")
def trained(loaded: psycopg.Connection[Any], contract: Contract, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = copied(tmp_path_factory.mktemp("trained"))
    run.train(contract, loaded, root, run.newest_knowledge(loaded), print)
    return root


def test_training_twice_gives_the_same_model(
    trained: Path, loaded: psycopg.Connection[Any], contract: Contract, tmp_path: Path
) -> None:
    again = run.train(contract, loaded, copied(tmp_path), run.newest_knowledge(loaded), print)
    assert again["digest"] == artifact.load(trained / "build" / "model").digest
    assert again["promoted"] is False


def test_the_card_names_what_the_model_was_made_from(trained: Path, loaded: psycopg.Connection[Any]) -> None:
    card = artifact.load(trained / "build" / "model").card
    assert card["trained_as_of"]["data_version"] == read.data_version(loaded).version
    assert card["loads"] == {"us_macro": 2}
    assert card["metrics"]["origins"]["real"] == 1
    assert {"rule": "determinism", "figure": 0, "limit": 0} in card["gate"]
    assert {"git_commit", "source_hash", "lock_hash", "seed", "data_hash"} <= card.keys()


def test_golden_examples_are_replayed_and_a_changed_file_is_refused(trained: Path, tmp_path: Path) -> None:
    files = {name: (trained / "build" / "model" / name).read_bytes() for name in artifact.FILES}
    artifact.write(tmp_path, files, "1")
    artifact.load(tmp_path).check()
    artifact.write(tmp_path, files | {"golden.json": files["golden.json"].replace(b"4.", b"5.")}, "1")
    with pytest.raises(artifact.ArtifactError, match="golden examples are off"):
        artifact.load(tmp_path).check()
    (tmp_path / "model.onnx").write_bytes(files["model.onnx"][:-1] + b"x")
    with pytest.raises(artifact.ArtifactError, match=r"model\.onnx does not fit SHA256SUMS"):
        artifact.load(tmp_path)


@pytest.mark.ml_test("infra-3")
def test_an_answer_names_both_clocks_and_says_what_is_hindsight(
    trained: Path, loaded: psycopg.Connection[Any], contract: Contract
) -> None:
    at = forecasting.parse_as_of("2016-07-01")
    body = by_champion(contract, loaded, at, None, None)
    assert body["as_of"] == {
        "known_at": "2016-07-01T23:59:59.999999Z",
        "data_version": read.data_version(loaded).version,
    }
    assert body["inputs_known_until"] == "2016-06-29T00:00:00Z"
    assert body["hindsight"] is True
    known = forecasting.parse_as_of(forecasting.champion(loaded).card["inputs_known_until"])
    assert by_champion(contract, loaded, known, None, None)["hindsight"] is False  # it was trained on just that
    assert [one["valid_time"] for one in body["forecasts"]] == ["2016-06-01", "2016-08-01", "2016-11-01"]
    assert by_champion(contract, loaded, at, None, [3, 3])["forecasts"] == body["forecasts"][1:2]  # each once
    for one in body["forecasts"]:
        assert 3 < one["value"] < 7
        narrow, wide = one["intervals"]
        assert wide["lower"] <= narrow["lower"] < one["value"] < narrow["upper"] <= wide["upper"]


@pytest.mark.ml_test("infra-3", sabotage=True)
def test_a_model_is_not_asked_for_what_it_was_not_trained_on(
    trained: Path, loaded: psycopg.Connection[Any], contract: Contract
) -> None:
    other = contract.model_copy(update={"target": contract.target.model_copy(update={"series": "PAYEMS"})})
    with pytest.raises(ServiceError, match=r"no longer fits model \d+: series UNRATE -> PAYEMS; inputs .* since it"):
        by_champion(other, loaded, None, None, None)
    fewer = contract.model_copy(update={"feature": contract.feature[:-1]})
    with pytest.raises(ServiceError, match="inputs -"):
        by_champion(fewer, loaded, None, None, None)


@pytest.mark.parametrize("text", ["2016-07-01", "20160701"])
def test_a_plain_date_means_the_end_of_that_day(text: str) -> None:
    assert forecasting.parse_as_of(text) == datetime(2016, 7, 1, 23, 59, 59, 999999, tzinfo=UTC)


def test_before_the_first_known_value_the_first_usable_date_is_named(
    trained: Path, loaded: psycopg.Connection[Any], contract: Contract
) -> None:
    with pytest.raises(forecasting.NoDataYet, match="first usable date is 2016-06-29"):
        by_champion(contract, loaded, forecasting.parse_as_of("2016-06-28"), None, None)


def test_a_series_of_which_nothing_was_loaded_is_named(loaded: psycopg.Connection[Any], contract: Contract) -> None:
    more = {**contract.series, "RATES": contract.series["UNRATE"]}
    feature = Feature.model_validate({"series": "RATES", "transform": "level"})
    asked = contract.model_copy(update={"series": more, "feature": (*contract.feature, feature)})
    with pytest.raises(forecasting.NoDataYet, match="nothing was loaded of RATES$"):
        forecasting.known_inputs(asked, loaded, run.newest_knowledge(loaded), read.data_version(loaded))


@pytest.mark.parametrize(
    ("value", "width", "shown"), [(1.0847, 0.012, "1.085"), (4.9, 0.3, "4.90"), (10816.85, 80, "10816.85")]
)
def test_a_table_shows_as_many_digits_as_the_intervals_are_sure_of(value: float, width: float, shown: str) -> None:
    ends = {"level": 0.8, "lower": value - width / 2, "upper": value + width / 2}
    one = {"horizon": 1, "valid_time": "2016-07-01", "value": value, "intervals": [ends]}
    head = {"target": "A", "unit": "1", "model": {"version": "1"}, "as_of": {"known_at": "", "data_version": ""}}
    told = forecasting.table({**head, "hindsight": False, "degraded": None, "forecasts": [one]})
    assert f" {shown} " in told.splitlines()[-1]


def test_what_the_gate_refuses_is_not_registered(
    trained: Path, loaded: psycopg.Connection[Any], contract: Contract, tmp_path: Path
) -> None:
    before = registry.champion(loaded)
    other = contract.model_copy(update={"target": contract.target.model_copy(update={"series": "INDPRO"})})
    with pytest.raises(Blocked, match=r"better_than_ar: .* limit 0\.05"):
        run.train(other, loaded, copied(tmp_path), run.newest_knowledge(loaded), print)
    assert registry.champion(loaded) == before
    assert "BLOCKED by the gate: better_than_ar" in (tmp_path / "build" / "report.html").read_text("utf-8")
