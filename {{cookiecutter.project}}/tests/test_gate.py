"""A model gets through on evidence alone; each rule is seen to block the fault that it is there for."""

import json
import re
from dataclasses import replace

import faults
import numpy as np
import pytest
import world as w
from faults import FAULTS

from model_service import features, periods
from model_service.arrays import Floats
from model_service.contract import Gate
from model_service.registry import Registered
from model_service.training import backtest, estimators, evaluate, gate, probes, run, search
from model_service.training.gate import Rule
from model_service.training.probes import Candidate

SEED = 1


def losses(advantage: float, *, cases: int = 240, seed: int = 3) -> gate.Losses:
    """Squared errors of a model that is better by `advantage`, with errors that hang together over neighbours."""

    def smooth() -> Floats:
        return np.convolve(rng.normal(size=cases + 11), np.ones(12) / 12, "valid")[:, None] * np.ones((1, 2))

    rng = np.random.default_rng(seed)
    baseline = np.exp(smooth())
    return gate.Losses(np.arange(cases) // 12, ("h1", "h6"), np.exp(smooth() - advantage), {"last_value": baseline})


def judged(made: gate.Losses, share: float = 0.8) -> dict[str, Rule]:
    return {rule.name: rule for rule in gate.judge(Gate(), made, {"0.8": share}, 1)}


@pytest.mark.parametrize(
    ("advantage", "passes"), [(0.5, True), (0.0, False), (-0.5, False)], ids=["better", "equal", "worse"]
)
@pytest.mark.ml_test("model-5", sabotage=True)
def test_only_a_better_model_passes(advantage: float, passes: bool) -> None:
    assert judged(losses(advantage))["better_than_last_value"].ok is passes


def test_a_model_without_advantage_passes_about_as_rarely_as_the_level_says() -> None:
    passed = sum(gate.better_than(losses(0.0, seed=seed), "last_value", 0.05, 1).ok for seed in range(100))
    assert passed <= 15  # 5 expected; blocks of finite length let a few more through


def test_too_few_blocks_are_no_evidence() -> None:
    assert not judged(losses(0.5, cases=108))["evidence"].ok


def test_one_bad_horizon_blocks() -> None:
    made = losses(0.5)
    made.model[:, 1] = made.baseline["last_value"][:, 1] * 1.1
    rules = judged(made)
    assert rules["rmse_ratio_h1"].ok
    assert not rules["rmse_ratio_h6"].ok
    assert rules["rmse_ratio_h6"].figure == pytest.approx(1.1**0.5)


def test_one_bad_slice_blocks_although_the_model_is_better_on_the_whole() -> None:
    made = losses(1.0)
    bad = np.arange(240) < 48
    made.model[bad] = made.baseline["last_value"][bad] * 1.6
    rules = judged(replace(made, slices={"old": bad, "new": ~bad}))
    assert [name for name, rule in rules.items() if not rule.ok] == ["slice_old"]
    assert rules["slice_old"].figure == pytest.approx(1.6**0.5)


@pytest.mark.parametrize(("share", "passes"), [(0.66, True), (0.64, False)])
def test_intervals_that_cover_too_little_block(share: float, passes: bool) -> None:
    assert judged(losses(0.5), share)["coverage_0.8"].ok is passes


@pytest.mark.parametrize(
    ("times", "passes"), [(1.0, True), (1.02, True), (1.2, False)], ids=["equal", "hardly worse", "worse"]
)
def test_a_model_is_not_worse_than_the_champion(times: float, passes: bool) -> None:
    made = losses(0.5)
    assert gate.not_worse(replace(made, champion=made.model / times**2), 1.05, 0.05, 1).ok is passes


def test_a_champion_is_compared_where_it_has_forecasts() -> None:
    made = losses(0.5)
    other = made.model.copy()
    other[:60] = np.nan  # cases that it does not know
    other[:, 1] = np.nan  # a horizon that it does not know
    made.model[:60] *= 100
    assert gate.not_worse(replace(made, champion=other), 1.05, 0.05, 1).ok
    other[:] = np.nan
    rule = gate.not_worse(replace(made, champion=other), 1.05, 0.05, 1)
    assert rule.ok
    assert "not compared" in str(rule)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_a_figure_that_is_no_number_passes_no_limit(odd: float) -> None:
    assert not gate.at_most("any", odd, 1.0, "").ok and not gate.at_least("any", odd, 1.0, "").ok


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_one_loss_that_is_no_number_blocks_every_rule_that_rests_on_it(odd: float) -> None:
    made = losses(0.5)
    made = replace(made, slices={"first": made.block < 5}, champion=made.model.copy())
    names = {"better_than_last_value", "rmse_ratio_h1", "slice_first"}
    rules = judged(made) | {"champion": gate.not_worse(made, 1.05, 0.05, 1)}
    assert all(rules[name].ok for name in {*names, "champion"})
    made.model[7, 0] = odd
    rules = judged(made) | {"champion": gate.not_worse(made, 1.05, 0.05, 1)}
    assert {name for name in {*names, "champion"} if rules[name].ok} == set()


# ---- The whole gate, on a made-up world ----


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault is planted in this process: no other one may do a part of the backtest."""
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the leak test, which refits the model at several origins."""
    monkeypatch.setattr(backtest, "leaked", lambda *_: [])


def blocked(rules: dict[str, Rule]) -> list[str]:
    return [name for name, rule in rules.items() if not rule.ok]


@pytest.fixture(scope="module")
def retrained() -> tuple[Candidate, dict[str, Rule]]:
    second, made = faults.clean(SEED)
    return made, w.judged(made, faults.champion(SEED), second)


@pytest.mark.ml_test("data-2")
@pytest.mark.ml_test("model-5")
@pytest.mark.ml_test("model-6")
@pytest.mark.ml_test("infra-4")
@pytest.mark.ml_test("monitor-3")
@pytest.mark.ml_test("monitor-5")
@pytest.mark.ml_test("monitor-6")
def test_an_honest_retraining_passes_every_rule(retrained: tuple[Candidate, dict[str, Rule]]) -> None:
    assert blocked(retrained[1]) == []
    assert retrained[1]["champion"].figure < 0.05


TWINS = {"useless": "data-2", "slice_level_high": "model-6", "evidence": "infra-4", "skew": "monitor-3",
         "perturbation": "monitor-5", "latency": "monitor-6", "size": "monitor-6"}  # fmt: skip


def every_fault() -> list[object]:
    found = []
    for name, fault in FAULTS.items():
        marks = [pytest.mark.ml_test(TWINS[fault.rule], sabotage=True)] if fault.rule in TWINS else []
        found.append(pytest.param(name, id=name, marks=marks))
    return found


@pytest.mark.parametrize("name", every_fault())
def test_a_planted_fault_is_named(name: str, request: pytest.FixtureRequest) -> None:
    fault = FAULTS[name]
    if fault.rule != "leak":
        request.getfixturevalue("quick")
    assert fault.rule in blocked(fault.plant(SEED, fault.sizes[0]))


def test_a_model_that_makes_no_forecast_where_it_is_hard_is_judged_there_too(monkeypatch: pytest.MonkeyPatch) -> None:
    honest, world = estimators.Fitted.predict, faults.clean(SEED)[0]

    def predict(self: estimators.Fitted, inputs: Floats) -> Floats:
        return np.where(inputs[:, :1] > 10.2, np.nan, honest(self, inputs))

    monkeypatch.setattr(estimators.Fitted, "predict", predict)
    tested = backtest.run(w.cases(world.contract, world.rows, world.at))
    rules = {rule.name: rule for rule in evaluate.rules(tested)}
    assert {"better_than_last_value", "rmse_ratio_h1", "slice_level_high"} <= set(blocked(rules))


def test_a_value_that_is_late_by_no_more_than_its_grace_does_not_block() -> None:
    world = faults.stopped("SURVEY")(w.world(SEED), 2, SEED)
    rule = probes._fresh(w.cases(world.contract, world.rows, world.at))
    assert rule.ok and rule.figure > 0.8


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_settings_whose_forecasts_are_no_numbers_are_not_chosen(odd: float, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, world = estimators.Fitted.predict, w.world(SEED, search=4)
    monkeypatch.setattr(
        estimators.Fitted, "predict", lambda self, rows: honest(self, rows) * (1 if self.settings else odd)
    )
    table = w.cases(world.contract, world.rows, world.at)
    choice = search.choose(table, table.labels(int(table.origin[-1])))
    assert choice.settings
    assert all(np.isfinite(one["loss"]) for one in choice.tried)


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_an_answer_or_an_input_that_is_no_number_is_named(
    odd: float, retrained: tuple[Candidate, dict[str, Rule]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, honest, asked = retrained[0], probes._asked, estimators.Fitted.predict
    table = made.tested.table
    inputs = table.inputs.copy()
    inputs[-1, 2] = odd
    assert not probes._in_range(replace(table, inputs=inputs)).ok
    feature = [one.model_copy(update={"direction": "up"}) for one in table.contract.feature[:2]]
    names = features.inputs(table.contract)
    place, limit = names.index(feature[1].names[0]), made.rows[:, names.index(feature[1].names[0])].max()
    contract = table.contract.model_copy(update={"feature": (*feature, *table.contract.feature[2:])})
    tested = replace(made.tested, table=replace(table, contract=contract))
    far = lambda session, rows: np.where(rows[:, place, None] > limit, odd, honest(session, rows))  # noqa: E731
    monkeypatch.setattr(probes, "_asked", far)
    rules = [probes._perturbation(made), *probes._directions(replace(made, tested=tested))]
    found = {rule.name: rule for rule in rules}
    assert blocked(found) == ["perturbation", "directions"]
    monkeypatch.setattr(estimators.Fitted, "predict", lambda self, rows: asked(self, rows) * odd)
    importance, useless = probes.importance(made.tested, {})
    assert set(useless) == set(importance)


def test_every_rule_has_a_fault_that_it_was_seen_to_name(retrained: tuple[Candidate, dict[str, Rule]]) -> None:
    def kind(name: str) -> str:
        return re.sub(r"^(better_than|rmse_ratio|slice|coverage)_.*", r"\1", name)

    named = {kind(fault.rule) for fault in FAULTS.values()}
    assert named == {kind(name) for name in retrained[1]} | {"directions"}  # which the honest one does not declare


def test_every_rule_is_known_by_name_or_form(retrained: tuple[Candidate, dict[str, Rule]]) -> None:
    form = r"(slice_(level_(low|middle|high)|period[1-3])|rmse_ratio_h\d+|coverage_0\.\d+)"
    plain = {name for name in retrained[1] if not re.fullmatch(form, name)}
    assert plain | {"directions"} == gate.MANDATORY | gate.OTHER


@pytest.mark.usefixtures("quick")
def test_a_first_model_too_slow_for_the_services_own_limit_is_blocked() -> None:
    second, made = faults.clean(SEED)
    alerts = second.contract.alerts.model_copy(update={"latency_seconds": 1e-9})
    contract = second.contract.model_copy(update={"alerts": alerts})
    table = replace(made.tested.table, contract=contract)
    made = replace(made, tested=replace(made.tested, table=table))
    assert blocked(w.judged(made, None, second)) == ["latency"]


@pytest.mark.usefixtures("quick")
def test_the_first_model_answers_to_the_baselines_alone() -> None:
    second, made = faults.clean(SEED)
    rules = w.judged(made, None, second)
    assert blocked(rules) == []
    assert "first model" in str(rules["champion"])
    assert "change" not in rules


def lacking(champion: Registered, **card: object) -> Registered:
    """The champion as an older release registered it, or with another card."""
    kept = {name: content for name, content in champion.files.items() if name != "backtest.json" or card}
    changed = json.loads(kept["card.json"])
    return replace(champion, files=kept | {"card.json": json.dumps(changed | card).encode()})


def test_the_next_training_compares_forecasts_that_were_made_out_of_sample() -> None:
    champion, (second, made) = faults.champion(SEED), faults.clean(SEED)
    stored = evaluate.stored_forecasts(made.tested, champion)
    common = ~np.isnan(stored).any(axis=1)
    assert common.sum() == len(json.loads(champion.files["backtest.json"])["origins"])
    assert np.allclose(stored[common], made.tested.forecast[: len(stored)][common], atol=0.05)
    later = evaluate.later_answers(made.tested, champion)
    trained = periods.microseconds(w.world(SEED).at)
    assert (second.at - w.world(SEED).at).days >= 28
    assert [bool(at > trained) for at in made.tested.table.origin[made.tested.places]] == (
        (~np.isnan(later).any(axis=1)).tolist()
    )


def test_a_champion_that_stored_no_forecasts_is_not_compared_and_the_rule_says_so() -> None:
    champion, (_, made) = faults.champion(SEED), faults.clean(SEED)
    others = [{"series": "OTHER", "unit": "percent"}, {"series": "TARGET", "unit": "share"}]
    for old in (lacking(champion), *(lacking(champion, target=one) for one in others)):
        rule = evaluate.against(made.tested, old)
        assert rule.ok
        assert "not compared" in str(rule)


@pytest.mark.parametrize("other", [{"estimator": "other"}, {"inputs": ["other"]}, {"horizons": [1]}], ids=str)
def test_a_champion_of_another_kind_is_no_measure_of_change_and_time(other: dict[str, object]) -> None:
    champion, (_, made) = faults.champion(SEED), faults.clean(SEED)
    rules = {rule.name: str(rule) for rule in probes.against(made, lacking(champion, **other))}
    assert list(rules) == ["latency"]
    assert "seconds for one row" in rules["latency"]


def test_origins_after_the_champions_training_are_shown_apart() -> None:
    second = w.world(SEED, later=12)
    made = w.candidate(second)
    found = evaluate.comparison(made.tested, faults.champion(SEED))
    assert found["common"]["origins"] > 150
    assert 6 <= found["later"]["origins"] <= 12
    assert found["later"]["champion"] != found["common"]["champion"]
    other = lacking(faults.champion(SEED), target={"series": "OTHER", "unit": "percent"})
    assert evaluate.comparison(made.tested, other) == {
        "version": 1, "common": {"origins": 0}, "later": {"origins": 0}
    }  # fmt: skip


@pytest.mark.usefixtures("quick")
def test_what_depends_on_the_champion_or_on_this_machine_is_not_in_the_card() -> None:
    second, made = faults.clean(SEED)
    apart = {rule.name for rule in run.champion_rules(made, faults.champion(SEED))}
    alone = {rule.name for rule in run.data_rules(made, w.served(second), lambda _: None)}
    assert apart == {"champion", "latency", "change"}
    assert not apart & alone


def test_slices_are_thirds_of_the_time_and_of_the_level(retrained: tuple[Candidate, dict[str, Rule]]) -> None:
    tested = retrained[0].tested
    found = evaluate.slices(tested)
    assert sorted(found) == ["level_high", "level_low", "level_middle", "period1", "period2", "period3"]
    sizes = {name: int(inside.sum()) for name, (_, inside) in found.items()}
    assert max(sizes.values()) - min(sizes.values()) <= 1
    level = tested.table.anchor[tested.places[tested.scored]]
    assert level[found["level_high"][1]].min() > level[found["level_low"][1]].max()


def test_the_bounds_of_an_error_enclose_it(retrained: tuple[Candidate, dict[str, Rule]]) -> None:
    for one in evaluate.metrics(retrained[0].tested)["slices"]:
        assert all(low < own < high for own, low, high in one["rmse"])
