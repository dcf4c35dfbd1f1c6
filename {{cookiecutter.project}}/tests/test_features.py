"""An input means the same everywhere and never the future; what is fitted on inputs answers the same as a graph."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from model_service import features
from model_service.contract import Contract
from model_service.features import History
from model_service.training import Cases, backtest, estimators, serialize

VINTAGE = features.microseconds(datetime(2016, 6, 29, tzinfo=UTC))


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


def test_what_has_no_logarithm_is_missing_not_infinite() -> None:
    assert np.isnan(features.change("log_difference", np.array([0.0]), np.array([1.0]))).all()
