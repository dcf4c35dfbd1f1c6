"""What each input did to a forecast: the parts sum to the whole, and are Shapley's values by their definition."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import world as worlds
from serving import make_project
from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor

from model_service import artifact, explain, features, forecasting
from model_service.arrays import Floats
from model_service.contract import Contract
from model_service.errors import ServiceError
from model_service.store import read
from model_service.training import estimators, serialize

BOOSTED = {"n_estimators": 40, "max_depth": 3}
FOREST = {"n_estimators": 20, "max_depth": 6}


def fitted(contract: Contract, estimator: str, settings: dict[str, Any]) -> tuple[estimators.Fitted, Floats]:
    """An estimator fitted to changes that know of products and thresholds, and the inputs that it was fitted on."""
    train = contract.train.model_copy(update={"estimator": estimator})
    contract = contract.model_copy(update={"train": train})
    draws = np.random.default_rng(1)
    inputs = draws.normal(size=(300, len(features.inputs(contract)))) + 10
    kind, places = estimators.build(contract, settings), estimators.column_places(contract)
    moved = 0.02 * (inputs[:, places[0]] - 10) * (inputs[:, places[1]] > 10) + 0.01 * draws.normal(size=300)
    made = [kind.fit(inputs[:, places], moved * ahead, 1) for ahead in contract.target.horizons]
    return estimators.Fitted(contract, kind, made, settings), inputs


def explainer(made: estimators.Fitted, inputs: Floats) -> explain.Explainer:
    """Over the model's own files, as serving reads them."""
    declared = made.contract
    card = {"inputs": features.inputs(declared), "horizons": list(declared.target.horizons),
            "target": {"transform": declared.target.transform}}  # fmt: skip
    texts = {"card.json": card, "golden.json": {}, "held.json": {}}
    texts[explain.FILE] = serialize.explanation(made, inputs)
    files = {name: json.dumps(text).encode() for name, text in texts.items()}
    graph = serialize.graph(made, inputs.shape[1])
    return explain.Explainer(artifact.Model(files | {"model.onnx": graph}, "1"))


def shapley(worth: Callable[[frozenset[int]], float], players: int) -> list[float]:
    """By the definition, over every set of the other players."""
    shares = []
    for one in range(players):
        others, total = [each for each in range(players) if each != one], 0.0
        for size in range(players):
            weight = math.factorial(size) * math.factorial(players - size - 1) / math.factorial(players)
            for chosen in map(frozenset, itertools.combinations(others, size)):
                total += weight * (worth(chosen | {one}) - worth(chosen))
        shares.append(total)
    return shares


def expected(tree: Any, row: Floats, known: frozenset[int], node: int = 0) -> float:
    """What a tree of scikit-learn gives when only some inputs are known: the others follow both branches."""
    left, right = tree.children_left[node], tree.children_right[node]
    if left < 0:
        return float(tree.value[node, 0, 0])
    if tree.feature[node] in known:
        side = left if np.float32(row[tree.feature[node]]) <= tree.threshold[node] else right
        return expected(tree, row, known, side)
    counts = tree.weighted_n_node_samples
    return sum(counts[side] / counts[node] * expected(tree, row, known, side) for side in (left, right))


@pytest.mark.parametrize("make", [
    GradientBoostingRegressor(n_estimators=15, max_depth=4, random_state=1),
    RandomForestRegressor(n_estimators=10, max_depth=7, random_state=1),
])  # fmt: skip
def test_contributions_of_trees_are_shapleys_values_by_their_definition(make: Any) -> None:
    draws = np.random.default_rng(2)
    inputs = draws.integers(-4, 5, size=(150, 6)).astype(np.float64)
    made = make.fit(inputs, inputs[:, 0] * inputs[:, 1] + np.sin(3 * inputs[:, 2]))
    trees = [one.tree_ for one in np.ravel(made.estimators_)]
    weight = made.learning_rate if hasattr(made, "learning_rate") else 1 / len(trees)
    written = serialize._trees(made, list(range(6)))
    found = explain.leaves(written["offset"], written["nodes"])
    for row in draws.integers(-4, 4, size=(3, 6)) + 0.5:  # on thresholds
        due = np.sum(
            [shapley(lambda known, tree=tree, row=row: expected(tree, row, known), 6) for tree in trees], axis=0
        )
        assert found.contributions(row) == pytest.approx(weight * due, abs=1e-12)
        assert found.base + found.contributions(row).sum() == pytest.approx(made.predict(row[None, :])[0], abs=1e-12)


def test_a_row_beyond_single_precision_goes_the_way_of_the_graph(contract: Contract) -> None:
    made, inputs = fitted(contract, "gradient_boosting", BOOSTED)
    rows = np.where(np.arange(inputs.shape[1]) % 2, 1e300, -1e300)[None, :] * np.ones((2, 1))
    rows[:, 0] = inputs[:2, 0]
    explained = explainer(made, inputs).explain(rows)
    assert explained.base + explained.contributions.sum(axis=2) == pytest.approx(explained.value)


@pytest.mark.parametrize("transform", ["level", "difference", "log_difference"])
@pytest.mark.parametrize(("estimator", "settings"), [
    ("ridge", {}), ("elastic_net", {}), ("random_forest", FOREST), ("gradient_boosting", BOOSTED),
    ("test_explain:Product", {}),
])  # fmt: skip
def test_contributions_and_base_sum_to_the_forecast(
    contract: Contract, estimator: str, settings: dict[str, Any], transform: str
) -> None:
    target = contract.target.model_copy(update={"transform": transform})
    made, inputs = fitted(contract.model_copy(update={"target": target}), estimator, settings)
    ours = explainer(made, inputs)
    rows = np.concatenate([inputs[:20], inputs[:5] * 1.3])
    explained = ours.explain(rows)
    assert explained.value.tolist() == ours.model.predict(rows).tolist()
    off = explained.value - explained.base - explained.contributions.sum(axis=2)
    assert np.abs(off).max() <= 1e-6 * inputs[:, 0].std()
    assert np.abs(explained.contributions).max() > 1e-3  # the control: something is explained
    changes = features.apply_transform(transform, explained.value, rows[:, :1])
    bases = features.apply_transform(transform, explained.base, rows[:, :1])
    modelled = explained.contributions / explained.scale[:, :, None]
    assert bases + modelled.sum(axis=2) == pytest.approx(changes, abs=2e-5)
    assert bases.std(axis=0) == pytest.approx(0, abs=2e-5)  # the base is that of the model, whatever the row


class Product:
    """An estimator of one's own: the change is its first input times the next, and times the one after."""

    def fit(self, inputs: Floats, change: Floats, seed: int) -> "Product":
        return self

    def predict(self, inputs: Floats) -> Floats:
        return np.asarray(0.01 * inputs[:, 0] * inputs[:, 1:3].sum(axis=1))

    def graph(self, fitted: Any, width: int) -> Any:
        import onnx

        return onnx.parser.parse_model(f"""
            <ir_version: 8, opset_import: ["" : 17]>
            product (double[N, {width}] inputs) => (double[N, 1] change)
            <double share = {{0.01}}, int64[1] a = {{0}}, int64[2] b = {{1, 2}}, int64[1] axis = {{1}}>
            {{ first = Gather <axis = 1> (inputs, a)  next = Gather <axis = 1> (inputs, b)
               second = ReduceSum (next, axis)  both = Mul (first, second)  change = Mul (both, share) }}""")


def test_a_linear_model_is_weight_times_distance_from_the_mean(contract: Contract) -> None:
    made, inputs = fitted(contract, "ridge", {})
    places, rows = estimators.column_places(made.contract), inputs[:7]
    scaler, linear = (step for _, step in made.estimators[1].steps)
    due = (rows[:, places] - inputs[:, places].mean(axis=0)) * linear.coef_ / scaler.scale_
    assert explainer(made, inputs).explain(rows).contributions[:, 1, places] == pytest.approx(due)


def test_of_ones_own_estimator_a_product_is_shared_evenly_and_the_rest_gets_nothing(contract: Contract) -> None:
    made, inputs = fitted(contract, "test_explain:Product", {})
    found = explainer(made, inputs).explain(inputs[:1]).contributions[0, 0]
    places = estimators.column_places(made.contract)[:3]
    mean, row = (part[places] for part in (inputs.mean(axis=0), inputs[0]))
    of, halves = row - mean, 0.01 * (row + mean) / 2
    assert found[places] == pytest.approx([of[0] * halves[1:].sum(), of[1] * halves[0], of[2] * halves[0]])
    assert np.count_nonzero(np.abs(found) > 1e-12) == 3


def test_an_explanation_of_another_model_is_refused(contract: Contract) -> None:
    (made, inputs), (other, _) = fitted(contract, "gradient_boosting", BOOSTED), fitted(contract, "ridge", {})
    ours, wrong = explainer(made, inputs), explainer(other, inputs)
    wrong.model = ours.model
    with pytest.raises(ServiceError, match="does not fit its graph"):
        wrong.explain(inputs[:3])


def test_a_model_without_an_explanation_says_so(tmp_path: Path) -> None:
    folder = make_project(tmp_path).root / "build" / "model"
    files = artifact.read(folder)[0]
    del files[explain.FILE]
    with pytest.raises(explain.NotExplained, match="train it again"):
        explain.Explainer(artifact.Model(files, "7"))


def test_much_work_bounds_how_much_may_be_asked(contract: Contract) -> None:
    forest, inputs = fitted(contract, "random_forest", {})
    linear, _ = fitted(contract, "ridge", {})
    assert explainer(linear, inputs).most(1000, 1.0) == 1000
    assert 1 <= explainer(forest, inputs).most(1000, 1.0) < 1000
    assert explainer(forest, inputs).most(1000, 1e-9) == 1


def test_a_training_explains_its_model_and_groups_a_forecast_by_series() -> None:
    made_of = worlds.world(1, estimator="gradient_boosting", first_origin="2013-01-01")  # a short backtest will do
    declared, made = made_of.contract, worlds.candidate(made_of)
    found = worlds.registered(made_of, made)
    ours = explain.Explainer(forecasting.as_model(found))
    held = forecasting.Vintages(declared, read.DataVersion("sha256:x", {}), made_of.rows,
                                features.histories(declared, made_of.rows))  # fmt: skip
    known = held.at(made_of.at)
    assert known is not None
    answer = explain.of_forecast(declared, ours, known, [3])
    (one,) = answer["explanations"]
    assert (answer["method"], one["horizon"]) == ("trees", 3)
    assert set(one["series"]) == {"TARGET", "INDEX", "SURVEY", "RATE"}
    assert one["base"] + sum(one["series"].values()) == pytest.approx(one["value"], abs=1e-9)
    index = [value for name, value in one["contributions"].items() if name.startswith("INDEX.")]
    assert len(index) == 2 and one["series"]["INDEX"] == pytest.approx(sum(index))
    forecast = forecasting.answer_from(declared, ours.model, known, [3])
    assert forecast["forecasts"][0]["value"] == one["value"]


def test_the_calendar_and_functions_of_ones_own_are_groups_too(contract: Contract) -> None:
    data = contract.model_dump(mode="json", exclude_defaults=True)
    first, second = list(contract.series)[:2]
    data["feature"] = [{"calendar": "year"}, {"own": "statistics:fmean", "series": [first, second], "window": 3}]
    groups = explain.inputs_by_series(Contract.model_validate(data))
    assert set(groups) == {contract.target.series, "calendar", f"{first}+{second}"}
    assert sorted(place for places in groups.values() for place in places) == [0, 1, 2, 3]
