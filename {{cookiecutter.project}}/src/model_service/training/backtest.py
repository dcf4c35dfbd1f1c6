"""Rolling origins as they were lived: refitted every year on what was known then, judged by what came true."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import joblib
import numpy as np
from threadpoolctl import threadpool_limits

from model_service import features, periods
from model_service.arrays import Flags, Floats, Integers
from model_service.contract import Contract
from model_service.training import Cases, cases, estimators, search

P = TypeVar("P")
T = TypeVar("T")
WORTH = 4.0  # seconds of work from which on processes are started
LEVELS = (0.8, 0.95)
FEWEST_ERRORS = 24  # an interval from fewer realized errors would be a guess
STEP = 0.005  # by which a miss moves a level: that of Gibbs and Candès, not one that suits some data


@dataclass(frozen=True)
class Backtest:
    """m origins, H horizons, L interval levels; NaN where a truth is not yet known or an interval not yet possible.

    places: the origins' indices among the cases. forecast, truth: [m, H]. baseline: name to [m, H].
    lower, upper: [m, H, L], in the target's unit. searches: the choice of settings of each refit, one a year.
    """

    table: Cases
    places: Integers
    forecast: Floats
    truth: Floats
    baseline: dict[str, Floats]
    lower: Floats
    upper: Floats
    searches: list[search.Choice]

    @property
    def scored(self) -> Flags:
        """The origins whose truth is known at every horizon and for which every forecast could be made; a model that
        makes none of complete inputs is judged there, too."""
        known = ~np.isnan([self.truth, *self.baseline.values()]).any(axis=(0, 2))
        return np.asarray(known & self.table.complete[self.places])

    def coverage(self) -> dict[str, list[float]]:
        """Share of truths inside the intervals, by level, one a horizon; 0 where no interval could be judged."""
        truth = self.truth[:, :, None]
        judged = ~np.isnan(truth) & ~np.isnan(self.lower)
        inside = judged & (truth >= self.lower) & (truth <= self.upper)
        shares = inside.sum(axis=0) / np.maximum(judged.sum(axis=0), 1)
        return {str(level): shares[:, number].tolist() for number, level in enumerate(LEVELS)}

    def spread(self, forecast: Floats) -> list[dict[str, Any]]:
        """Intervals around a forecast made now, as offsets, from the errors of `forecast` [m, H] that are known now."""
        now = _intervals(self.table, self.places, forecast)[-1]
        return [
            {"horizon": horizon, "level": level, "lower": float(low), "upper": float(high)}
            for horizon, ends in zip(self.table.contract.target.horizons, now, strict=True)
            for level, (low, high) in zip(LEVELS, ends, strict=True)
        ]


def run(table: Cases, say: Callable[[str], None] = lambda _: None) -> Backtest:
    """Backtest from `train.first_origin` to the last case; truth is what is known at the last case."""
    places = np.arange(table.first_backtest, len(table.origin) - 1)
    year = periods.year(table.contract.series[table.contract.target.series].frequency)
    blocks = [places[start : start + year] for start in range(0, len(places), year)]
    parts, searches, done = [], [], 0
    for block, (part, choice) in zip(blocks, _mapped(partial(_block, _light(table)), blocks), strict=True):
        parts.append(part)
        searches.append(choice)
        done += len(block)
        say(f"backtest {done}/{len(places)} origins" + (f", settings {choice.settings}" if choice.settings else ""))
    made = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    forecast = made.pop("model")
    truth = table.labels(int(table.origin[-1]))[places]
    ends = forecast[:, :, None, None] + _intervals(table, places, forecast)[:-1]
    return Backtest(table, places, forecast, truth, made, ends[..., 0], ends[..., 1], searches)


def _light(table: Cases) -> Cases:
    """All of it that a worker needs."""
    target = table.contract.target.series
    return replace(table, rows={}, held={target: table.held[target]})


def _mapped(work: Callable[[P], T], parts: list[P]) -> Iterator[T]:
    """`work` of each part, in order; on all cores where the first has shown that starting processes is worth it."""
    begun = time.monotonic()
    yield work(parts[0])
    rest, cores = parts[1:], min(joblib.cpu_count(), len(parts) - 1)
    if cores < 2 or (time.monotonic() - begun) * len(rest) < WORTH:
        yield from map(work, rest)
    else:
        task = joblib.delayed(_on_one_thread)
        yield from joblib.Parallel(cores, return_as="generator")(task(work, one) for one in rest)


def _on_one_thread(work: Callable[[P], T], part: P) -> T:
    with threadpool_limits(1):  # as in `train`: sums in another order are other bytes
        return work(part)


def _block(table: Cases, block: Integers) -> tuple[dict[str, Floats], search.Choice]:
    """Forecasts of model and baselines at the block's cases, [len(block), H], and the choice of the model's settings.

    Settings are chosen and all is fitted on what was known at the block's first case. NaN where inputs are missing.
    """
    known = table.labels(int(table.origin[block[0]]))
    known[block[0] :] = np.nan
    choice = search.choose(table, known)
    fitted = estimators.fit(table, known, choice.settings)
    made = np.full((len(block), known.shape[1]), np.nan)
    usable = table.complete[block]
    if usable.any():
        made[usable] = fitted.predict(table.inputs[block][usable])
    return {"model": made} | estimators.baselines(table, known, block), choice


def offsets(errors: Floats, before: Floats) -> Floats:
    """Interval offsets [L, 2] at an origin, for one horizon; NaN from too few errors.

    errors: at the origins before it, NaN where not yet realized. before: the offsets that were given there, [n, L, 2].
    Split-conformal quantiles, the ceil((n+1) q)-th smallest, at levels that adapt: each miss beyond those due raises
    the level by STEP, each one short of them lowers it (Gibbs, Candès 2021, adaptive conformal inference). Errors come
    in bursts, as in a recession: intervals of a fixed level would stay too narrow ever after.
    """
    realized = ~np.isnan(errors)
    count = int(realized.sum())
    if count < FEWEST_ERRORS:
        return np.full((len(LEVELS), 2), np.nan)
    judged = realized & ~np.isnan(before[:, 0, 0])
    known = errors[judged, None]
    missed = (known < before[judged, :, 0]) | (known > before[judged, :, 1])
    levels = LEVELS + STEP * (missed - (1 - np.array(LEVELS))).sum(axis=0)
    levels = np.maximum.accumulate(np.clip(levels, 0, 1))  # the wider interval holds the narrower one
    rank = np.minimum(np.ceil((count + 1) * (1 + levels) / 2).astype(int), count) - 1
    ordered = np.sort(errors[realized])
    return np.stack([ordered[count - 1 - rank], ordered[rank]], axis=1)


def _intervals(table: Cases, places: Integers, forecast: Floats) -> Floats:
    """Offsets [m + 1, H, L, 2] at each origin, from the errors that were known there; last, from those known now."""
    found = np.full((len(places) + 1, forecast.shape[1], len(LEVELS), 2), np.nan)
    for number, place in enumerate([*places, len(table.origin) - 1]):
        errors = (table.labels(int(table.origin[place]))[places] - forecast)[:number]
        for horizon, one in enumerate(errors.T):
            found[number, horizon] = offsets(one, found[:number, horizon])
    return found


def leaked(table: Cases, places: list[int]) -> list[int]:
    """Origins at which a forecast changes when every value not known there is set to 1e9: there must be none.

    Each is made as the backtest makes the first of a block. What is known is worked out here from the rows and the
    contract alone, not by the code under test.
    """
    until, pairs = periods.instant(int(table.origin[-1])), []
    for place in places:
        origin = int(table.origin[place])
        poison = {name: _poisoned(table.contract, name, rows, origin) for name, rows in table.rows.items()}
        pairs += [(_light(one), origin) for one in (table, cases(table.contract, poison, until))]
    made = list(_mapped(_forecast_at, pairs))
    return [place for place, known, poisoned in zip(places, made[::2], made[1::2], strict=True) if known != poisoned]


def _forecast_at(asked: tuple[Cases, int]) -> list[bytes]:
    table, origin = asked
    place = int(np.searchsorted(table.origin, origin))
    return [made.tobytes() for made in _block(table, np.array([place]))[0].values()]


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
