"""From a backtest to what the gate judges: a table of losses, which knows nothing of time series."""

import json
from datetime import datetime
from typing import Any

import numpy as np

from model_service import features, periods
from model_service.arrays import Flags, Floats
from model_service.artifact import trained_at
from model_service.contract import Contract
from model_service.forecasting import as_model, utc_text
from model_service.registry import Registered
from model_service.training import gate
from model_service.training.backtest import Backtest

BAND = (0.05, 0.95)  # of resampled blocks: the confidence interval of an error


def rules(tested: Backtest) -> list[gate.Rule]:
    """The gate's rules on the model's own losses and coverage."""
    contract = tested.table.contract
    coverage = {level: min(shares) for level, shares in tested.coverage().items()}
    return gate.judge(contract.gate, losses(tested), coverage, contract.train.seed)


def against(tested: Backtest, champion: Registered) -> gate.Rule:
    """Not worse than the champion by its stored out-of-sample forecasts; without any, by its answers since then."""
    contract = tested.table.contract
    stored = stored_forecasts(tested, champion)
    made = later_answers(tested, champion) if np.isnan(stored).all() else stored
    limits = contract.gate
    return gate.not_worse(losses(tested, made), limits.max_champion_ratio, limits.level, contract.train.seed)


def losses(tested: Backtest, champion: Floats | None = None) -> gate.Losses:
    """Squared errors at the scored origins; champion: its forecasts [m, H] at the backtest's origins."""
    scored, horizons = tested.scored, tested.table.contract.target.horizons

    def squared(forecast: Floats) -> Floats:
        return np.asarray((forecast - tested.truth)[scored] ** 2)

    return gate.Losses(
        np.flatnonzero(scored) // block(tested.table.contract),
        tuple(f"h{horizon}" for horizon in horizons),
        squared(tested.forecast),
        {name: squared(forecast) for name, forecast in tested.baseline.items()},
        {name: inside for name, (_, inside) in slices(tested).items()},
        None if champion is None else squared(champion),
    )


def block(contract: Contract) -> int:
    """Origins resampled together: a year's, twelve at most; a horizon's, by which the errors of neighbours overlap."""
    return max(min(12, periods.year(contract.series[contract.target.series].frequency)), *contract.target.horizons)


def slices(tested: Backtest) -> dict[str, tuple[str, Flags]]:
    """What each slice of the scored origins is, and which they are: thirds of the time, and of the target's level.

    The level is the last value known at the origin: one that was not known there would be hindsight.
    """
    table, places = tested.table, tested.places[tested.scored]
    level = table.anchor[places]
    low, high = np.quantile(level, [1 / 3, 2 / 3])
    series = table.contract.target.series
    found = {
        "level_low": (f"{series} at most {low:.4g}", level <= low),
        "level_middle": (f"{series} above {low:.4g}, at most {high:.4g}", (level > low) & (level <= high)),
        "level_high": (f"{series} above {high:.4g}", level > high),
    }
    for number, part in enumerate(np.array_split(np.arange(len(places)), min(3, len(places)))):
        first, last = (periods.instant(int(table.origin[places[end]])) for end in (part[0], part[-1]))
        found[f"period{number + 1}"] = (f"{first:%Y-%m} to {last:%Y-%m}", np.isin(np.arange(len(places)), part))
    return {name: one for name, one in sorted(found.items()) if one[1].any()}


def metrics(tested: Backtest) -> dict[str, Any]:
    """The card's figures: errors by horizon, coverage, origins, and the model's errors by slice with their bounds."""
    table, scored, cases, seed = tested.table, tested.scored, losses(tested), tested.table.contract.train.seed
    origins, real = table.origin[tested.places], table.real[tested.places]
    first, last = (periods.instant(int(origins[scored][end])) for end in (0, -1))
    everything = {"all": (f"{first:%Y-%m} to {last:%Y-%m}", np.ones(len(cases.block), dtype=bool))}
    return {
        "rmse": {name: _rmse(loss).tolist() for name, loss in {"model": cases.model, **cases.baseline}.items()},
        "coverage": tested.coverage(),
        "origins": {"scored": int(scored.sum()), "real": int(real.sum()), "pseudo": int((~real).sum()),
                    "first": f"{first:%Y-%m-%d}", "last": f"{last:%Y-%m-%d}"},
        "slices": [
            {"slice": name, "says": says, "cases": int(inside.sum()), **_errors(cases, inside, seed)}
            for name, (says, inside) in (everything | slices(tested)).items()
        ],
    }  # fmt: skip


def _errors(cases: gate.Losses, inside: Flags, seed: int) -> dict[str, Any]:
    """One a horizon: RMSE with its lower and upper bound, and relative to the best baseline."""
    own, best = cases.model[inside], np.min([loss[inside].mean(axis=0) for loss in cases.baseline.values()], axis=0)
    bounds = np.sqrt(np.quantile(gate.resampled(own, cases.block[inside], seed), BAND, axis=0))
    return {
        "rmse": np.array([_rmse(own), *bounds]).T.tolist(),
        "ratio": (_rmse(own) / np.sqrt(np.maximum(best, gate.TINY))).tolist(),
    }


def _rmse(losses: Floats) -> Floats:
    return np.asarray(np.sqrt(losses.mean(axis=0)))


def stored(tested: Backtest) -> dict[str, Any]:
    """What the next training compares itself with: the forecasts at the scored origins, none fitted on its own case."""
    origins = tested.table.origin[tested.places][tested.scored]
    return {
        "horizons": list(tested.table.contract.target.horizons),
        "origins": [utc_text(periods.instant(int(origin))) for origin in origins],
        "forecast": tested.forecast[tested.scored].tolist(),
    }


def stored_forecasts(tested: Backtest, champion: Registered) -> Floats:
    """The champion's out-of-sample forecasts at the backtest's origins: float64 [m, H], NaN where it stored none."""
    kept = json.loads(champion.files.get("backtest.json", b"{}"))
    if not kept or not _same_target(tested, champion):
        return np.full(tested.forecast.shape, np.nan)
    place = {datetime.fromisoformat(origin): number for number, origin in enumerate(kept["origins"])}
    rows = [place.get(periods.instant(int(origin)), -1) for origin in tested.table.origin[tested.places]]
    made = np.vstack([kept["forecast"], np.full(len(kept["horizons"]), np.nan)])
    return _columns(tested, made[rows], kept["horizons"])


def later_answers(tested: Backtest, champion: Registered) -> Floats:
    """The champion's answers at origins after its training: float64 [m, H]; NaN elsewhere, or without its inputs."""
    table, names = tested.table, features.inputs(tested.table.contract)
    model = as_model(champion)
    made = np.full((len(tested.places), len(model.horizons)), np.nan)
    if set(model.inputs) <= set(names) and _same_target(tested, champion):
        trained = periods.microseconds(trained_at(model.card))
        rows = table.inputs[tested.places][:, [names.index(name) for name in model.inputs]]
        later = (table.origin[tested.places] > trained) & ~np.isnan(rows).any(axis=1)
        if later.any():
            made[later] = model.predict(rows[later])
    return _columns(tested, made, model.horizons)


def comparison(tested: Backtest, champion: Registered) -> dict[str, Any]:
    """RMSE of both by horizon: on the common origins, and apart on those after the champion's training."""
    parts = {"common": stored_forecasts(tested, champion), "later": later_answers(tested, champion)}
    found: dict[str, Any] = {"version": champion.version}
    for name, made in parts.items():
        table = losses(tested, made)
        rows = ~np.isnan(table.champion).any(axis=1)  # type: ignore[arg-type]
        found[name] = {"origins": int(rows.sum())}
        if rows.any():
            found[name] |= {"model": _rmse(table.model[rows]).tolist(),
                            "champion": _rmse(table.champion[rows]).tolist()}  # type: ignore[index]  # fmt: skip
    return found


def _same_target(tested: Backtest, champion: Registered) -> bool:
    contract, was = tested.table.contract, json.loads(champion.files["card.json"])["target"]
    return bool(was["series"] == contract.target.series and was["unit"] == contract.series[was["series"]].unit)


def _columns(tested: Backtest, made: Floats, horizons: list[int]) -> Floats:
    """Columns in the order of the declared horizons; NaN for one that the champion has not."""
    gone = np.full(len(made), np.nan)
    wanted = tested.table.contract.target.horizons
    return np.column_stack([made[:, horizons.index(one)] if one in horizons else gone for one in wanted])
