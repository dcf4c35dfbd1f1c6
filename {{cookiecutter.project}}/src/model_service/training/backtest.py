"""Rolling origins as they were lived: refitted every year on what was known then, judged by what came true."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from model_service import features, periods
from model_service.contract import Contract
from model_service.features import Flags, Floats, History
from model_service.training import dataset, estimators
from model_service.training.dataset import Cases

LEVELS = (0.8, 0.95)
FEWEST_ERRORS = 24  # an interval from fewer realized errors would be a guess


@dataclass(frozen=True)
class Backtest:
    """m origins, H horizons, L interval levels; NaN where a truth is not yet known or an interval not yet possible.

    places: the origins' indices among the cases. forecast, truth: [m, H]. baseline: name to [m, H].
    lower, upper: [m, H, L], in the target's unit.
    """

    places: range
    forecast: Floats
    truth: Floats
    baseline: dict[str, Floats]
    lower: Floats
    upper: Floats

    @property
    def scored(self) -> Flags:
        """The origins whose truth is known at every horizon and for which every forecast could be made."""
        known = ~np.isnan(self.truth) & ~np.isnan(self.forecast)
        for forecast in self.baseline.values():
            known &= ~np.isnan(forecast)
        return np.asarray(known.all(axis=1))


def run(
    contract: Contract, held: Mapping[str, History], table: Cases, say: Callable[[str], None] = lambda _: None
) -> Backtest:
    """Backtest from `train.first_origin` to the last case; truth is what is known at the last case."""
    end = len(table.origin)
    places = range(dataset.first_backtest(contract, table), end - 1)
    season = periods.season(contract.series[contract.target.series].frequency)
    own = estimators.own_changes(contract, held, table)
    forecast: list[Floats] = []
    baseline: dict[str, list[Floats]] = {}
    for start in range(places.start, places.stop, season):
        block = range(start, min(start + season, places.stop))
        for name, values in _block(contract, held, table, own, block).items():
            (forecast if name == "model" else baseline.setdefault(name, [])).append(values)
        say(f"backtest {block.stop - places.start}/{len(places)} origins")
    made = np.concatenate(forecast)
    truth = dataset.labels(contract, held, table, int(table.origin[-1]))[places.start : places.stop]
    lower, upper = _intervals(contract, held, table, places, made)
    return Backtest(
        places, made, truth, {name: np.concatenate(parts) for name, parts in baseline.items()}, lower, upper
    )


def _block(
    contract: Contract, held: Mapping[str, History], table: Cases, own: estimators.Own, block: range
) -> dict[str, Floats]:
    """Forecasts of model and baselines at the block's cases, fitted on what was known at its first."""
    known = dataset.labels(contract, held, table, int(table.origin[block.start]))
    known[block.start :] = np.nan
    made = {"model": _predict(estimators.fit(contract, table, known), table, block)}
    return made | estimators.baselines(contract, table, own, known, block)


def errors_known(
    contract: Contract, held: Mapping[str, History], table: Cases, places: range, forecast: Floats, at: int
) -> Floats:
    """Errors (truth less forecast) of the backtest as known at `at`: [m, H], NaN where the truth was not known yet."""
    return dataset.labels(contract, held, table, at)[places.start : places.stop] - forecast


def offsets(errors: Floats) -> Floats:
    """Interval offsets [L, 2] from one horizon's realized errors; NaN from too few.

    Split-conformal quantiles: the ceil((n+1) q)-th smallest; from 39 errors on both levels cover what they claim.
    """
    errors = np.sort(errors[~np.isnan(errors)])
    if errors.size < FEWEST_ERRORS:
        return np.full((len(LEVELS), 2), np.nan)
    count = errors.size
    found = []
    for level in LEVELS:
        rank = int(np.ceil((count + 1) * (1 + level) / 2)) - 1
        found.append((errors[max(0, count - 1 - rank)], errors[min(count - 1, rank)]))
    return np.array(found)


def _intervals(
    contract: Contract, held: Mapping[str, History], table: Cases, places: range, forecast: Floats
) -> tuple[Floats, Floats]:
    lower = np.full((*forecast.shape, len(LEVELS)), np.nan)
    upper = lower.copy()
    for number, place in enumerate(places):
        errors = errors_known(contract, held, table, places, forecast, int(table.origin[place]))[:number]
        for horizon in range(forecast.shape[1]):
            found = offsets(errors[:, horizon])
            lower[number, horizon] = forecast[number, horizon] + found[:, 0]
            upper[number, horizon] = forecast[number, horizon] + found[:, 1]
    return lower, upper


def _predict(fitted: estimators.Fitted, table: Cases, block: range) -> Floats:
    """Forecasts at the block's cases; NaN where inputs are missing."""
    made = np.full((len(block), len(fitted.estimators)), np.nan)
    usable = table.complete[block.start : block.stop]
    if usable.any():
        made[usable] = fitted.predict(table.inputs[block.start : block.stop][usable])
    return made


def leaked(contract: Contract, rows: features.Rows, table: Cases, places: list[int]) -> list[int]:
    """Origins at which a forecast changes when every value not known there is set to 1e9: there must be none.

    Each is made as the backtest makes the first of a block. What is known is worked out here from the rows and the
    contract alone, not by the code under test.
    """
    until = features.moment(int(table.origin[-1]))
    found = []
    for place in places:
        poison = {
            name: _poisoned(contract, name, rows[name], int(table.origin[place]))
            for name in features.series_needed(contract)
        }
        made = [_forecast_at(contract, used, until, int(table.origin[place])) for used in (rows, poison)]
        if made[0] != made[1]:
            found.append(place)
    return found


def _forecast_at(contract: Contract, rows: features.Rows, until: datetime, origin: int) -> list[bytes]:
    held = features.histories(contract, rows)
    table = dataset.cases(contract, held, until)
    own = estimators.own_changes(contract, held, table)
    place = int(np.searchsorted(table.origin, origin))
    return [made.tobytes() for made in _block(contract, held, table, own, range(place, place + 1)).values()]


def _poisoned(
    contract: Contract, name: str, rows: list[tuple[int, int, float | None]], origin: int
) -> list[tuple[int, int, float | None]]:
    series = contract.series[name]
    first = min((known for _, known, _ in rows), default=0)

    def was_known(day: int, known: int) -> bool:
        if origin >= first:
            return known <= origin
        end = periods.end(series.frequency, periods.ordinal(series.frequency, features.day(day)))
        return known == first and ((end - features.EPOCH).days + series.release_lag_days) * 86_400_000_000 <= origin

    return [(day, known, value if was_known(day, known) else 1e9) for day, known, value in rows]
