"""A model gets through on evidence alone; each rule is seen to block what it is there for."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from model_service import artifact, features, forecasting, registry, settings
from model_service.contract import Contract, Gate
from model_service.errors import Blocked, ServiceError
from model_service.features import History
from model_service.loader import run as loading
from model_service.store import read
from model_service.store.connection import connect
from model_service.training import Cases, backtest, cases, estimators, gate, run, serialize

VINTAGE = features.microseconds(datetime(2016, 6, 29, tzinfo=UTC))


@pytest.fixture(scope="module")
def loaded(server: str, contract: Contract) -> Iterator[psycopg.Connection[Any]]:
    """The sample, loaded once for this module."""
    from psycopg.conninfo import make_conninfo

    from model_service.store.migrate import migrate

    name = f"test_training_{datetime.now(UTC):%H%M%S%f}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    url = make_conninfo(server, dbname=name)
    migrate(url, contract)
    loading.load(contract, url, settings.root(), print)
    with connect(url, "loader") as connection:
        yield connection
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def table(loaded: psycopg.Connection[Any], contract: Contract) -> Cases:
    at = run.newest_knowledge(loaded)
    return cases(contract, forecasting.known_inputs(contract, loaded, at, read.data_version(loaded)).rows, at)


def test_the_sample_loads_to_the_counts_worked_out_by_hand(loaded: psycopg.Connection[Any]) -> None:
    found = loaded.execute(
        "SELECT fetched, new, changed, same, deleted, quarantined FROM load ORDER BY load_id"
    ).fetchall()
    assert found == [(8653, 8653, 0, 0, 0, 0), (8676, 23, 85, 8568, 0, 0)]


def month_of(text: str) -> int:
    year, month = map(int, text.split("-"))
    return year * 12 + month - 1


def test_before_the_first_vintage_an_origin_sees_only_what_its_release_lag_allows(table: Cases) -> None:
    origin = features.microseconds(datetime(2010, 3, 1, tzinfo=UTC))
    first, values = table.held["UNRATE"].at(origin)
    assert first + values.size - 1 == month_of("2010-01")  # February ended yesterday and is out a week later


def test_from_the_first_vintage_on_an_origin_sees_that_vintage(table: Cases) -> None:
    june = table.held["PAYEMS"].at(VINTAGE)
    july = table.held["PAYEMS"].at(features.microseconds(datetime(2016, 7, 30, tzinfo=UTC)))
    assert june[1].size + 1 == july[1].size
    assert june[1][-1] != july[1][-2]  # May was revised in July


def test_a_feature_is_worked_out_from_the_last_value_known(contract: Contract) -> None:
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    by_name = {feature.names[0]: feature for feature in contract.feature}
    lags = features._lags(by_name["UNRATE.difference.lag0"], np.append([0.0, 0.5], values))
    assert lags[:4] == [8.0, 4.0, 2.0, 1.0]
    deviation = contract.feature[0].model_copy(update={"transform": "deviation", "span": 4, "lags": (0, 1)})
    assert features._lags(deviation, values) == [16.0 - 7.5, 8.0 - 3.75]
    growth = contract.feature[0].model_copy(update={"transform": "log_difference", "span": 3, "lags": (0,)})
    assert features._lags(growth, values) == pytest.approx([np.log(8.0)])


def test_labels_known_at_an_origin_end_where_the_target_does(table: Cases) -> None:
    place = 200
    known = table.labels(int(table.origin[place]))
    assert np.isnan(known[place]).all()
    assert not np.isnan(known[place - 6]).any()


def test_no_forecast_sees_the_future(table: Cases) -> None:
    assert backtest.leaked(table, [200, len(table.origin) - 1]) == []


def a_month_early(history: History, origin: int) -> Any:
    return history.released <= origin + 31 * features.DAY


def later_vintages_too(history: History, origin: int) -> Any:
    return history.released <= origin


@pytest.mark.parametrize(("leak", "found"), [(a_month_early, [200, -3]), (later_vintages_too, [-3])])
def test_a_planted_leak_is_found(table: Cases, monkeypatch: pytest.MonkeyPatch, leak: Any, found: list[int]) -> None:
    monkeypatch.setattr(History, "known_rows", leak)
    origins = len(table.origin)
    assert backtest.leaked(table, [200, origins - 3]) == [place % origins for place in found]


def test_a_backtest_that_fits_on_the_future_is_found(table: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Cases.labels
    monkeypatch.setattr(Cases, "labels", lambda self, at: honest(self, at + 400 * features.DAY))
    assert backtest.leaked(table, [200]) == [200]


def test_a_label_from_the_future_is_found(table: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Cases.labels
    late = features.microseconds(datetime(2016, 7, 30, tzinfo=UTC))
    monkeypatch.setattr(Cases, "labels", lambda self, _: honest(self, late))
    assert backtest.leaked(table, [200]) == [200]


def losses(advantage: float, *, cases: int = 240, seed: int = 3) -> gate.Losses:
    """Squared errors of a model that is better by `advantage`, with errors that hang together over neighbours."""
    rng = np.random.default_rng(seed)
    smooth = np.convolve(rng.normal(size=cases + 11), np.ones(12) / 12, "valid")
    baseline = np.exp(smooth)[:, None] * np.ones((1, 2))
    model = np.exp(np.convolve(rng.normal(size=cases + 11), np.ones(12) / 12, "valid") - advantage)[:, None]
    return gate.Losses(np.arange(cases) // 12, model * np.ones((1, 2)), {"last_value": baseline})


@pytest.mark.parametrize(
    ("advantage", "passes"), [(0.5, True), (0.0, False), (-0.5, False)], ids=["better", "equal", "worse"]
)
def test_only_a_better_model_passes(advantage: float, passes: bool) -> None:
    rules = {rule.name: rule.ok for rule in gate.judge(Gate(), losses(advantage), {"h1": 0}, {"0.8": 0.8}, 1)}
    assert rules["better_than_last_value"] is passes


def test_a_model_without_advantage_passes_about_as_rarely_as_the_level_says() -> None:
    passed = sum(gate.better_than(losses(0.0, seed=seed), "last_value", 0.05, 1).ok for seed in range(100))
    assert passed <= 15  # 5 expected; blocks of finite length let a few more through


def test_too_few_blocks_are_no_evidence() -> None:
    rules = {rule.name: rule.ok for rule in gate.judge(Gate(), losses(0.5, cases=108), {"h1": 0}, {"0.8": 0.8}, 1)}
    assert rules["evidence"] is False


def test_one_bad_horizon_blocks() -> None:
    made = losses(0.5)
    made.model[:, 1] = made.baseline["last_value"][:, 1] * 1.1
    rules = {rule.name: rule for rule in gate.judge(Gate(), made, {"h1": 0, "h6": 1}, {"0.8": 0.8}, 1)}
    assert rules["rmse_ratio_h1"].ok
    assert not rules["rmse_ratio_h6"].ok
    assert rules["rmse_ratio_h6"].figure == pytest.approx(1.1**0.5)


@pytest.mark.parametrize(("share", "passes"), [(0.66, True), (0.64, False)])
def test_intervals_that_cover_too_little_block(share: float, passes: bool) -> None:
    rules = {rule.name: rule.ok for rule in gate.judge(Gate(), losses(0.5), {"h1": 0}, {"0.8": share}, 1)}
    assert rules["coverage_0.8"] is passes


def fitted(table: Cases, estimator: str) -> estimators.Fitted:
    train = table.contract.train.model_copy(update={"estimator": estimator})
    chosen = replace(table, contract=table.contract.model_copy(update={"train": train}))
    model = estimators.fit(chosen, table.labels(int(table.origin[-1])))
    serialize.round_thresholds(model)
    return model


def parity(model: estimators.Fitted, graph: bytes, table: Cases) -> float:
    return serialize.parity(model, graph, table.inputs[table.complete], 1)


@pytest.mark.parametrize("estimator", list(estimators.ESTIMATORS))
def test_the_graph_answers_as_the_fitted_model_does(table: Cases, estimator: str) -> None:
    model = fitted(table, estimator)
    assert parity(model, serialize.graph(model, table.inputs.shape[1]), table) <= serialize.PARITY


def test_thresholds_that_were_not_rounded_are_found(table: Cases) -> None:
    model = fitted(table, "gradient_boosting")
    for tree in serialize._trees(model):
        tree.threshold[:] = np.nextafter(tree.threshold.astype(np.float32), np.float32(np.inf))
    graph = serialize.graph(model, table.inputs.shape[1])
    for tree in serialize._trees(model):
        tree.threshold[:] = np.nextafter(tree.threshold.astype(np.float32), np.float32(-np.inf))
    assert parity(model, graph, table) > serialize.PARITY


def copied(folder: Path) -> Path:
    (folder / "service.toml").write_bytes((settings.root() / "service.toml").read_bytes())
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


def test_an_answer_names_both_clocks_and_says_what_is_hindsight(
    trained: Path, loaded: psycopg.Connection[Any], contract: Contract
) -> None:
    at = forecasting.parse_as_of("2016-07-01")
    body = forecasting.by_champion(contract, loaded, at, None, None)
    assert body["as_of"] == {
        "known_at": "2016-07-01T23:59:59.999999Z",
        "data_version": read.data_version(loaded).version,
    }
    assert body["inputs_known_until"] == "2016-06-29T00:00:00Z"
    assert body["hindsight"] is True
    assert [one["valid_time"] for one in body["forecasts"]] == ["2016-06-01", "2016-08-01", "2016-11-01"]
    for one in body["forecasts"]:
        assert 3 < one["value"] < 7
        narrow, wide = one["intervals"]
        assert wide["lower"] <= narrow["lower"] < one["value"] < narrow["upper"] <= wide["upper"]


def test_a_model_is_not_asked_for_what_it_was_not_trained_on(
    trained: Path, loaded: psycopg.Connection[Any], contract: Contract
) -> None:
    other = contract.model_copy(update={"target": contract.target.model_copy(update={"series": "PAYEMS"})})
    with pytest.raises(ServiceError, match=r"no longer fits model \d+: target, inputs changed"):
        forecasting.by_champion(other, loaded, None, None, None)
    fewer = contract.model_copy(update={"feature": contract.feature[:-1]})
    with pytest.raises(ServiceError, match="inputs changed"):
        forecasting.by_champion(fewer, loaded, None, None, None)


@pytest.mark.parametrize("text", ["2016-07-01", "20160701"])
def test_a_plain_date_means_the_end_of_that_day(text: str) -> None:
    assert forecasting.parse_as_of(text) == datetime(2016, 7, 1, 23, 59, 59, 999999, tzinfo=UTC)


def test_what_has_no_logarithm_is_missing_not_infinite() -> None:
    assert np.isnan(features.change("log_difference", np.array([0.0]), np.array([1.0]))).all()


def test_before_the_first_known_value_the_first_usable_date_is_named(
    trained: Path, loaded: psycopg.Connection[Any], contract: Contract
) -> None:
    with pytest.raises(forecasting.NoDataYet, match="first usable date is 2016-06-29"):
        forecasting.by_champion(contract, loaded, forecasting.parse_as_of("2016-06-28"), None, None)


def test_what_the_gate_refuses_is_not_registered(
    trained: Path, loaded: psycopg.Connection[Any], contract: Contract, tmp_path: Path
) -> None:
    before = registry.champion(loaded)
    other = contract.model_copy(update={"target": contract.target.model_copy(update={"series": "INDPRO"})})
    with pytest.raises(Blocked, match=r"better_than_ar: .* limit 0\.05"):
        run.train(other, loaded, copied(tmp_path), run.newest_knowledge(loaded), print)
    assert registry.champion(loaded) == before
    assert "Gate: BLOCKED" in (tmp_path / "build" / "report.md").read_text()


def test_promotions_and_rollbacks_are_rows_with_who_and_why(
    trained: Path, loaded: psycopg.Connection[Any], contract: Contract, tmp_path: Path
) -> None:
    first = registry.champion(loaded)
    earlier = run.train(contract, loaded, copied(tmp_path), forecasting.parse_as_of("2016-07-01"), print)
    assert registry.champion(loaded).version == earlier["version"] != first.version  # type: ignore[union-attr]
    assert registry.rollback(loaded, "too early") == first.version  # type: ignore[union-attr]
    with pytest.raises(ServiceError, match="no earlier champion"):
        registry.rollback(loaded, "one more")
    row = loaded.execute("SELECT action, reason, previous FROM promotion ORDER BY promotion_id DESC LIMIT 1").fetchone()
    assert row == ("rollback", "too early", earlier["version"])
    body = forecasting.answer(
        contract, artifact.load(tmp_path / "build" / "model"), loaded, forecasting.parse_as_of("2016-07-01"), None, [1]
    )
    assert body["hindsight"] is False
