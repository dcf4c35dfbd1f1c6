"""An input means the same everywhere and never the future; what is fitted on inputs answers the same as a graph."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import onnx
import pytest
from sklearn.dummy import DummyRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from model_service import contract as contracts
from model_service import features, forecasting, periods, settings
from model_service.contract import ESTIMATORS, Contract
from model_service.errors import ServiceError, UsageError
from model_service.features import History
from model_service.inputs import Feature
from model_service.store import read
from model_service.training import Cases, backtest, cases, estimators, evaluate, run, search, serialize

VINTAGE = periods.microseconds(datetime(2016, 6, 29, tzinfo=UTC))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in training: sums in another order are other bits."""
    with threadpool_limits(1):
        yield


def month_of(text: str) -> int:
    year, month = map(int, text.split("-"))
    return year * 12 + month - 1


def test_before_the_first_vintage_an_origin_sees_only_what_its_release_lag_allows(table: Cases) -> None:
    origin = periods.microseconds(datetime(2010, 3, 1, tzinfo=UTC))
    first, values = table.held["UNRATE"].at(origin)
    assert first + values.size - 1 == month_of("2010-01")  # February ended yesterday and is out a week later


def test_from_the_first_vintage_on_an_origin_sees_that_vintage(table: Cases) -> None:
    june = table.held["PAYEMS"].at(VINTAGE)
    july = table.held["PAYEMS"].at(periods.microseconds(datetime(2016, 7, 30, tzinfo=UTC)))
    assert june[1].size + 1 == july[1].size
    assert june[1][-1] != july[1][-2]  # May was revised in July


def inputs_of(contract: Contract, *features_: dict[str, Any], **series: list[float]) -> list[float]:
    """Inputs without the anchor, from the last values of each series, all known long ago."""
    declared = contract.model_copy(update={"feature": tuple(Feature.model_validate(one) for one in features_)})
    held = {}
    for name, values in {contract.target.series: [1.0], **series}.items():
        periods_ = np.arange(24000, 24000 + len(values))  # from 2000-01 on
        held[name] = History(periods_, np.zeros(len(values), int), np.zeros(len(values), int), np.array(values))
    return features.rows(declared, held, [1])[0, 1:].tolist()


@pytest.mark.ml_test("data-4")
def test_a_feature_is_worked_out_from_the_last_value_known(contract: Contract) -> None:
    values = [1.0, 2.0, 4.0, 8.0, 16.0]

    def made(**declared: Any) -> list[float]:
        return inputs_of(contract, {"series": "PAYEMS", **declared}, PAYEMS=values)

    assert made(transform="level", lags=[0, 4]) == [16.0, 1.0]
    assert made(transform="difference", lags=[0, 1, 2, 3]) == [8.0, 4.0, 2.0, 1.0]
    assert made(transform="difference", span=4) == [15.0]
    assert made(transform="mean", window=4, lags=[1]) == [3.75]
    assert made(transform="deviation", window=4, lags=[0, 1]) == [16.0 - 7.5, 8.0 - 3.75]
    assert made(transform="log_difference", span=3) == pytest.approx([np.log(8.0)])
    assert np.isnan(made(transform="difference", lags=[4])).all()  # too little is known


def test_the_season_is_that_of_the_last_period_known(contract: Contract) -> None:
    assert inputs_of(contract, {"calendar": "year"}) == [0.0, 1.0]  # January
    sine, cosine = inputs_of(contract, {"calendar": "year"}, **{contract.target.series: [1.0] * 7})
    assert abs(sine) < 0.03 and cosine == pytest.approx(-1, abs=0.01)  # July


def spread(first: Any, second: Any) -> float:
    return float(first[-1] - second.mean())


@pytest.mark.ml_test("data-6")
def test_a_function_of_ones_own_gets_the_last_values_oldest_first(contract: Contract) -> None:
    own = {"own": "test_features:spread", "series": ["PAYEMS", "HOUST"], "window": 2}
    assert inputs_of(contract, own, PAYEMS=[1.0, 2.0, 5.0], HOUST=[3.0, 1.0, 2.0]) == [3.5]
    assert np.isnan(inputs_of(contract, own, PAYEMS=[1.0, 2.0, 5.0], HOUST=[2.0])).all()


@pytest.mark.ml_test("data-6", sabotage=True)
def test_a_function_of_ones_own_that_fails_is_named(contract: Contract) -> None:
    with pytest.raises(ServiceError, match=r"feature PAYEMS\.unable3: test_features:unable failed: ZeroDivisionError"):
        inputs_of(contract, {"own": "test_features:unable", "series": "PAYEMS", "window": 3}, PAYEMS=[1.0])


def unable(_: Any) -> float:
    return 1 / 0


def every_kind(contract: Contract) -> Contract:
    """The sample with every kind of feature, of series by month, quarter and day."""
    also = [
        {"series": "GDPC1", "transform": "log_difference", "lags": [0, 1]},
        {"series": "UNRATE", "transform": "mean", "window": 13, "lags": [0, 3]},
        {"series": "STOCKS", "transform": "deviation", "window": 20},
        {"calendar": "year"},
        {"own": "test_features:spread", "series": ["STOCKS", "UNRATE"], "window": 7, "direction": "down"},
    ]
    daily = contract.series["PAYEMS"].model_copy(update={"frequency": "day", "release_lag_days": 0})
    return contract.model_copy(
        update={
            "series": {**contract.series, "STOCKS": daily},
            "feature": (*contract.feature, *(Feature.model_validate(one) for one in also)),
        }
    )


@pytest.fixture(scope="module")
def stocks() -> list[tuple[int, int, float | None]]:
    """Five days a week, each value known at the next midnight; nothing was stored of it before 2015."""
    first, last = date(1990, 1, 1).toordinal(), date(2016, 7, 29).toordinal()
    days = [one - features.EPOCH.toordinal() for one in range(first, last) if date.fromordinal(one).weekday() < 5]
    since = (date(2015, 1, 1) - features.EPOCH).days
    values = np.random.default_rng(1).normal(size=len(days)).cumsum()
    return [(day, max(day + 1, since) * features.DAY, float(v)) for day, v in zip(days, values, strict=True)]


@pytest.fixture(scope="module")
def mixed(table: Cases, stocks: Any, loaded: Any) -> Cases:
    """Cases of every kind of feature."""
    contract, at = every_kind(table.contract), periods.instant(int(table.origin[-1]))
    return cases(contract, {**vintages(loaded, contract, at), "STOCKS": stocks}, at)


def vintages(loaded: Any, contract: Contract, at: datetime) -> Any:
    return read.vintages(loaded, features.reach(contract), at, read.data_version(loaded).loads)


def test_series_by_day_and_quarter_feed_a_model_by_month(mixed: Cases) -> None:
    may = date(2010, 5, 1)
    place = int(np.searchsorted(mixed.origin, features.midnight(may)))
    row = dict(zip(features.inputs(mixed.contract), mixed.inputs[place], strict=True))
    product = {features.day(day): value for day, known, value in mixed.rows["GDPC1"] if known <= VINTAGE}
    newest, before = product[date(2010, 1, 1)], product[date(2009, 10, 1)]  # the first quarter came out the day before
    assert row["GDPC1.log_difference.lag0"] == pytest.approx(np.log(newest / before))
    stocks = [value for day, _, value in mixed.rows["STOCKS"] if features.day(day) < may]
    assert row["STOCKS.deviation20.lag0"] == pytest.approx(stocks[-1] - np.mean(stocks[-20:]))  # four weeks: no gaps
    assert backtest.leaked(mixed, [place]) == []


def differing(mixed: Cases, loaded: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The origins at which serving makes another row than training, of those that the store's vintages reach."""
    honest = read.vintages

    def with_stocks(*asked: Any) -> Any:
        since = periods.microseconds(asked[2])
        return {**honest(*asked), "STOCKS": [row for row in mixed.rows["STOCKS"] if row[1] <= since]}

    monkeypatch.setattr(read, "vintages", with_stocks)
    found = []
    for place in np.flatnonzero(mixed.origin >= VINTAGE):
        at = periods.instant(int(mixed.origin[place]))
        served = forecasting.known_inputs(mixed.contract, loaded, at, read.data_version(loaded))
        if served.row.tobytes() != mixed.inputs[place].tobytes() or served.last != mixed.last[place]:
            found.append(int(place))
    return found


@pytest.mark.ml_test("monitor-3")
def test_training_and_serving_make_the_same_row_bit_for_bit(
    mixed: Cases, loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mixed.complete[-2:].all()
    assert differing(mixed, loaded, monkeypatch) == []
    one_by_one = [features.rows(mixed.contract, mixed.held, [int(one)])[0] for one in mixed.origin]
    assert np.array(one_by_one).tobytes() == mixed.inputs.tobytes()


@pytest.mark.ml_test("monitor-3", sabotage=True)
def test_a_row_that_is_made_otherwise_in_serving_is_found(
    mixed: Cases, loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = features.rows
    monkeypatch.setattr(features, "rows", lambda *asked: np.nextafter(honest(*asked), np.inf))
    assert differing(mixed, loaded, monkeypatch) == np.flatnonzero(mixed.origin >= VINTAGE).tolist()


def test_labels_known_at_an_origin_end_where_the_target_does(table: Cases) -> None:
    place = 200
    known = table.labels(int(table.origin[place]))
    assert np.isnan(known[place]).all()
    assert not np.isnan(known[place - 6]).any()


@pytest.mark.ml_test("data-7")
def test_no_forecast_sees_the_future(table: Cases) -> None:
    assert backtest.leaked(table, [200, len(table.origin) - 1]) == []


def a_month_early(history: History, origin: int) -> Any:
    return history.released <= origin + 31 * features.DAY


def later_vintages_too(history: History, origin: int) -> Any:
    return history.released <= origin


@pytest.mark.ml_test("data-7", sabotage=True)
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
    late = periods.microseconds(datetime(2016, 7, 30, tzinfo=UTC))
    monkeypatch.setattr(Cases, "labels", lambda self, _: honest(self, late))
    assert backtest.leaked(table, [200]) == [200]


def by(table: Cases, estimator: str, **train: Any) -> Cases:
    """The cases, for another estimator."""
    declared = table.contract.train.model_copy(update={"estimator": estimator, **train})
    return replace(table, contract=table.contract.model_copy(update={"train": declared}))


def fitted(table: Cases, estimator: str) -> estimators.Fitted:
    return estimators.fit(by(table, estimator), table.labels(int(table.origin[-1])))


@pytest.fixture(scope="module")
def made(table: Cases) -> Callable[[str], tuple[estimators.Fitted, bytes]]:
    """The model that an estimator makes of the sample, and its graph; each made once."""

    def make(estimator: str) -> tuple[estimators.Fitted, bytes]:
        model = fitted(table, estimator)
        return model, serialize.graph(model, table.inputs.shape[1])

    return cache(make)


def parity(model: estimators.Fitted, graph: bytes, table: Cases) -> float:
    return serialize.parity(model, graph, table.inputs[table.complete], 1)


MISFITS = {
    "a series that is not declared": ('series = "UNRAT"', 2, "'UNRAT' is not declared; did you mean 'UNRATE'?"),
    "the target without a lag": ('series = "UNRATE"\nlags = [0, -1]', 3, "-1 lies after the last value known"),
    "the span of a mean": ('series = "UNRATE"\ntransform = "mean"\nwindow = 9\nspan = 9', 5, "does not go with mean, "),
    "a mean without its window": ('transform = "mean"\nseries = "UNRATE"', 1, "window: is missing: mean needs it"),
    "the window of a change": ('series = "UNRATE"\ntransform = "difference"\nwindow = 3', 4, "takes direction, lags"),
    "two series": ('series = ["UNRATE", "PAYEMS"]', 2, "level takes one: write an entry for each"),
    "an unknown transform": ('series = "UNRATE"\ntransform = "diference"', 3, "did you mean 'difference'?"),
    "an unknown direction": ('series = "UNRATE"\ndirection = "upp"', 3, "did you mean 'up'?"),
    "the direction of a season": ('calendar = "year"\ndirection = "up"', 3, "direction: does not go with calendar"),
    "a function that is not there": ('own = "test_features:spred"\nseries = "UNRATE"\nwindow = 3', 2, "cannot be"),
    "a module that is not there": ('own = "nowhere:at"\nseries = "UNRATE"\nwindow = 3', 2, "write it, or mend the"),
    "no function": ('own = "spread"\nseries = "UNRATE"\nwindow = 3', 2, "write it as module:function"),
}  # fmt: skip


@pytest.mark.ml_test("data-4", sabotage=True)
@pytest.mark.parametrize("misfit", MISFITS)
def test_a_feature_that_cannot_be_is_named_with_line_and_mend(project: Path, misfit: str) -> None:
    declared, line, says = MISFITS[misfit]
    path = project / "service.toml"
    before = path.read_text().rstrip().splitlines()
    path.write_text("\n".join([*before, "[[feature]]", *declared.splitlines()]))
    with pytest.raises(UsageError, match=rf"line {len(before) + line}: feature\.\d+") as refusal:
        contracts.load(path)
    assert says in str(refusal.value)


@pytest.mark.parametrize(
    ("train", "target", "key", "says"),
    [
        ({"first_origin": date(2016, 6, 1)}, {}, "first_origin = ", "one from 1991-02-01 to 2014-09-01, or load more"),
        ({"first_origin": date(1986, 1, 1)}, {}, "first_origin = ", "1986-01-01 leaves 0 complete cases before it"),
        ({}, {"horizons": (1, 700)}, "horizons = ", r"700 periods is longer than the data allow: at most \d+,"),
        ({"estimator": "mine:Own"}, {}, "estimator = ", "'mine:Own' cannot be imported"),
    ],
    ids=["first_origin too late", "first_origin too early", "horizon too long", "estimator that is not there"],
)  # fmt: skip
def test_what_the_data_do_not_allow_is_named_with_line_and_mend(
    table: Cases, train: dict[str, Any], target: dict[str, Any], key: str, says: str
) -> None:
    path = settings.root() / "service.toml"
    line = next(number for number, one in enumerate(path.read_text().splitlines(), 1) if one.startswith(key))
    declared = by(table, **{"estimator": "ridge", **train}).contract
    asked = declared.model_copy(update={"target": declared.target.model_copy(update=target)})
    with pytest.raises(ServiceError, match=rf"^service\.toml line {line}: .*{says}"):
        run.require_enough_data(replace(table, contract=asked), path)


def test_an_input_that_reaches_further_back_than_the_data_is_named_and_not_the_first_origin(table: Cases) -> None:
    path = settings.root() / "service.toml"
    line = next(number for number, one in enumerate(path.read_text().splitlines(), 1) if one.startswith("[[feature]]"))
    first, *others = table.contract.feature
    asked = table.contract.model_copy(update={"feature": (first.model_copy(update={"lags": (0, 5000)}), *others)})
    far = cases(asked, table.rows, periods.instant(int(table.origin[-1])))
    says = r"\S+\.lag5000 needs the last 500\d values, which are there at 0 of"
    with pytest.raises(ServiceError, match=rf"^service\.toml line {line}: feature\.0: {says}"):
        run.require_enough_data(far, path)


def test_a_logarithm_of_a_target_below_zero_is_refused_before_the_backtest(table: Cases) -> None:
    target = table.contract.target.model_copy(update={"transform": "log_difference"})
    asked = replace(table, contract=table.contract.model_copy(update={"target": target}))
    run.require_enough_data(asked, settings.root() / "service.toml")
    few, many = asked.anchor.copy(), asked.anchor.copy()
    few[100], many[::3] = 0, -1  # a negative price of one day is no reason
    run.require_enough_data(replace(asked, anchor=few), settings.root() / "service.toml")
    with pytest.raises(UsageError, match=r"line \d+: target\.transform: .* above 0, and UNRATE has none at \d+ of"):
        run.require_enough_data(replace(asked, anchor=many), settings.root() / "service.toml")
    with pytest.raises(forecasting.InputsMissing, match=r"UNRATE\.level\.lag0: .*needs values above 0"):
        forecasting.require_complete(asked.contract, np.full(len(features.inputs(asked.contract)), -1.0), "now")


def by_stocks(contract: Contract, stocks: Any, frequency: str) -> Cases:
    """Two years of closing prices to forecast, one, five and twenty periods ahead; every fifteenth day is a holiday."""
    rows = [row for number, row in enumerate(stocks[-800:]) if number % 15]
    declared = contract.series["PAYEMS"].model_copy(update={"frequency": frequency, "release_lag_days": 0})
    asked = contract.model_copy(
        update={
            "series": {"STOCKS": declared},
            "target": contract.target.model_copy(update={"series": "STOCKS", "horizons": (1, 5, 20)}),
            "feature": (Feature.model_validate({"series": "STOCKS", "transform": "difference", "lags": [0, 1]}),),
            "train": contract.train.model_copy(update={"first_origin": date(2014, 1, 1)}),
        }
    )
    return cases(asked, {"STOCKS": rows}, datetime(2016, 7, 30, tzinfo=UTC))


def test_five_days_a_week_are_counted_as_such(contract: Contract, stocks: Any) -> None:
    table = by_stocks(contract, stocks, "weekday")
    tested = backtest.run(table)
    assert tested.scored.mean() > 0.75  # a day in fifteen has no truth, at three horizons
    last, ahead = (periods.date_of("weekday", int(table.last[-1]) + more) for more in (0, 1))
    assert (last, ahead) == (date(2016, 7, 28), date(2016, 7, 29))
    assert periods.end("weekday", int(table.last[-1]) + 1) == date(2016, 8, 1)


def test_days_that_are_never_a_weekend_are_refused_as_a_target(contract: Contract, stocks: Any, project: Path) -> None:
    path = project / "service.toml"
    path.write_text(path.read_text().replace("[series.PAYEMS]", '[series.STOCKS]\nfrequency = "day"\n[series.PAYEMS]'))
    run.require_enough_data(by_stocks(contract, stocks, "weekday"), path)
    with pytest.raises(UsageError, match=r"STOCKS\.frequency: it has no weekends: write weekday"):
        run.require_enough_data(by_stocks(contract, stocks, "day"), path)


@pytest.mark.parametrize(
    ("frequency", "horizons", "size"),
    [("month", (1, 6), 12), ("quarter", (1, 4), 4), ("quarter", (1, 8), 8), ("year", (1,), 1), ("weekday", (20,), 20)],
)
def test_blocks_hold_a_year_and_a_horizon(contract: Contract, frequency: str, horizons: Any, size: int) -> None:
    series = contract.series[contract.target.series].model_copy(update={"frequency": frequency})
    target = contract.target.model_copy(update={"horizons": horizons})
    asked = contract.model_copy(update={"series": {contract.target.series: series}, "target": target})
    assert evaluate.block(asked) == size


class Mean:
    """The least that one's own estimator can be: the mean change."""

    space = {"trim": [0.0, 0.1]}

    def __init__(self, trim: float = 0.0) -> None:
        self.trim = trim

    def fit(self, inputs: Any, change: Any, seed: int) -> Any:
        return DummyRegressor().fit(inputs, np.where(np.abs(change) >= self.trim, change, 0))

    def graph(self, fitted: Any, width: int) -> onnx.ModelProto:
        return onnx.parser.parse_model(f"""
            <ir_version: 8, opset_import: ["" : 18]>
            mean (float[N, {width}] inputs) => (float[N, 1] change)
            <float mean = {{{float(fitted.constant_[0, 0])}}}, float nought = {{0.0}}>
            {{ sums = ReduceSum <keepdims = 1> (inputs) none = Mul (sums, nought) change = Add (none, mean) }}""")


class Liar(Mean):
    def graph(self, fitted: Any, width: int) -> onnx.ModelProto:
        fitted.constant_ = fitted.constant_ + 0.001
        made = super().graph(fitted, width)
        fitted.constant_ = fitted.constant_ - 0.001
        return made


class Graphless(Mean):
    def graph(self, fitted: Any, width: int) -> onnx.ModelProto:
        raise NotImplementedError("no converter")


def test_an_estimator_of_ones_own_is_proven_as_the_others_are(table: Cases, made: Any) -> None:
    assert parity(*made("test_features:Mean"), table) <= serialize.PARITY


def test_a_pipeline_of_ones_own_chooses_no_penalty(contract: Contract) -> None:
    own = make_pipeline(StandardScaler(), DummyRegressor())
    assert estimators.Fitted(contract, Mean(), [own], {"trim": 0.1}).chosen == {"trim": 0.1}


def test_a_search_tries_the_settings_that_ones_own_names(table: Cases) -> None:
    choice = search.choose(by(table, "test_features:Mean", search=9), truth_at(table, 250))
    assert [one["settings"] for one in choice.tried][0] == {} and len(choice.tried) == 3


def test_a_graph_that_answers_otherwise_does_not_pass(table: Cases, made: Any) -> None:
    assert parity(*made("test_features:Liar"), table) > serialize.PARITY


def test_an_estimator_without_a_graph_is_refused_with_what_to_do(table: Cases) -> None:
    model = fitted(table, "test_features:Graphless")
    with pytest.raises(
        ServiceError, match=r"Graphless gives no ONNX graph.*no converter.*choose another train.estimator"
    ):
        serialize.graph(model, table.inputs.shape[1])


@pytest.mark.ml_test("infra-2")
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_graph_answers_as_the_fitted_model_does(table: Cases, made: Any, estimator: str) -> None:
    assert parity(*made(estimator), table) <= serialize.PARITY


@pytest.mark.ml_test("infra-2", sabotage=True)
@pytest.mark.parametrize("estimator", ["random_forest", "gradient_boosting"])
def test_one_threshold_that_is_off_by_the_smallest_step_is_found(table: Cases, made: Any, estimator: str) -> None:
    model, whole = made(estimator)
    graph = onnx.load_from_string(whole)
    ensemble = [node for node in graph.graph.node if node.op_type == "TreeEnsembleRegressor"][-1]
    values, modes = ([one for one in ensemble.attribute if one.name == name][0]
                     for name in ("nodes_values", "nodes_modes"))  # fmt: skip
    place = list(modes.strings).index(b"BRANCH_LEQ", len(modes.strings) // 2)
    values.floats[place] = np.nextafter(np.float32(values.floats[place]), np.float32(np.inf))
    assert parity(model, graph.SerializeToString(), table) > serialize.PARITY


def test_what_has_no_logarithm_is_missing_not_infinite() -> None:
    assert np.isnan(features.apply_transform("log_difference", np.array([0.0]), np.array([1.0]))).all()


@pytest.mark.parametrize("estimator", ["ridge", "random_forest"])
def test_the_backtest_is_the_same_on_any_number_of_cores(
    table: Cases, monkeypatch: pytest.MonkeyPatch, estimator: str
) -> None:
    short = by(table, estimator, first_origin=date(2013, 1, 1))
    made = []
    for cores in (1, 2):
        monkeypatch.setattr(joblib, "cpu_count", lambda cores=cores: cores)
        one = backtest.run(short)
        made.append((one.forecast.tobytes(), [choice.settings for choice in one.searches]))
    assert made[0] == made[1]


def test_the_backtest_says_how_far_it_is(table: Cases) -> None:
    said: list[str] = []
    backtest.run(by(table, "ridge", first_origin=date(2014, 1, 1)), said.append)
    assert said == [f"backtest {done}/31 origins" for done in (12, 24, 31)]


def covered(step: float, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Share of errors inside their interval by level, from when they are three times as large as before."""
    monkeypatch.setattr(backtest, "STEP", step)
    errors = np.random.default_rng(1).normal(size=900) * np.where(np.arange(900) < 300, 1, 3)
    given = np.full((len(errors), len(backtest.LEVELS), 2), np.nan)
    for number in range(len(errors)):
        given[number] = backtest.offsets(errors[:number], given[:number])
    inside = (errors[300:, None] >= given[300:, :, 0]) & (errors[300:, None] <= given[300:, :, 1])
    assert (np.diff(given[backtest.FEWEST_ERRORS :], axis=1) * [-1, 1] >= 0).all()  # the wider holds the narrower
    return [float(share) for share in inside.mean(axis=0)]


def test_intervals_widen_after_misses_until_they_cover_what_they_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    adapted, fixed = covered(backtest.STEP, monkeypatch), covered(0.0, monkeypatch)
    assert adapted == pytest.approx(backtest.LEVELS, abs=0.05)
    assert fixed[0] < backtest.LEVELS[0] - 0.1


def test_the_wider_interval_holds_the_narrower_one_however_often_that_was_missed() -> None:
    errors = np.random.default_rng(1).normal(size=100)
    narrow, wide = backtest.offsets(errors, np.tile([[-1e-9, 1e-9], [-9.0, 9.0]], (100, 1, 1)))
    assert wide[0] <= narrow[0] < narrow[1] <= wide[1]


def test_an_interval_is_the_one_that_could_be_given_at_its_origin(table: Cases) -> None:
    places = np.arange(table.first_backtest, len(table.origin) - 1)
    forecast = np.repeat(table.anchor[places][:, None], 3, axis=1)
    found = backtest._intervals(table, places, forecast)
    assert not np.isnan(found[-1]).any()
    for number in (30, 100, len(places) - 5):
        then = replace(table, origin=table.origin[: places[number] + 1])
        np.testing.assert_array_equal(backtest._intervals(then, places[:number], forecast[:number])[-1], found[number])


def truth_at(table: Cases, place: int) -> Any:
    known = table.labels(int(table.origin[place]))
    known[place:] = np.nan
    return known


@pytest.fixture(scope="module")
def searched(table: Cases) -> tuple[search.Choice, list[str]]:
    """What a search chooses among gradient_boosting's settings as of origin 250, and what it said."""
    said: list[str] = []
    return search.choose(by(table, "gradient_boosting", search=4), truth_at(table, 250), said.append), said


def test_a_search_tries_the_usual_settings_and_others_and_shows_what_it_tried(
    table: Cases, searched: tuple[search.Choice, list[str]]
) -> None:
    choice, said = searched
    assert len(choice.tried) == 4 and choice.tried[0]["settings"] == {}
    assert {one["years"] for one in choice.tried} == {1, 2, 4}  # halved twice
    assert choice.settings == min(choice.tried, key=lambda one: (-one["years"], one["loss"]))["settings"]
    assert said[0].startswith("search: 4 trials, best ")
    assert search.choose(by(table, "gradient_boosting", search=4), truth_at(table, 250)) == choice


def test_a_search_forecasts_only_later_than_it_fits(table: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, seen = estimators.fit, []
    monkeypatch.setattr(
        estimators, "fit", lambda table, truth, *more: seen.append(truth) or honest(table, truth, *more)
    )
    search.choose(by(table, "ridge", search=4), truth_at(table, 250))
    ends = sorted({int(np.flatnonzero(~np.isnan(truth[:, 0]))[-1]) for truth in seen})
    assert len(ends) == 4 and ends[-1] < 250 - 12  # each fit ends before the year that it forecasts
    assert np.diff(ends).tolist() == [12, 12, 12]


@pytest.mark.ml_test("model-3")
def test_a_search_chooses_by_nothing_that_comes_later(table: Cases, searched: tuple[search.Choice, list[str]]) -> None:
    origin = int(table.origin[250])
    poison = {name: backtest._poisoned(table.contract, name, rows, origin) for name, rows in table.rows.items()}
    declared = by(table, "gradient_boosting", search=4).contract
    poisoned = cases(declared, poison, periods.instant(int(table.origin[-1])))
    assert search.choose(poisoned, truth_at(poisoned, 250)) == searched[0]


@pytest.mark.ml_test("model-3", sabotage=True)
def test_a_search_that_peeks_is_found(table: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, searched = search.choose, by(table, "ridge", search=4)
    assert backtest.leaked(searched, [250]) == []
    monkeypatch.setattr(search, "choose", lambda table, _: honest(table, table.labels(int(table.origin[-1]))))
    assert backtest.leaked(searched, [250]) == [250]


def test_a_search_that_takes_too_long_goes_on_with_the_best_so_far(table: Cases) -> None:
    said: list[str] = []
    choice = search.choose(by(table, "ridge", search=4, search_seconds=1e-9), truth_at(table, 250), said.append)
    assert choice.settings == {} and choice.cut
    assert said == ["search: stopped after train.search_seconds = 1e-09; goes on with the best so far"]


def test_without_a_search_nothing_is_tried(table: Cases) -> None:
    assert search.choose(table, truth_at(table, 250)) == search.Choice()
