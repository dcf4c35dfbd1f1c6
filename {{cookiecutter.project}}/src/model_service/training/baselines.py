"""What every candidate must beat: last value, seasonal, and an autoregression of the target alone."""

from collections.abc import Mapping

import numpy as np

from model_service import features, periods
from model_service.contract import Contract
from model_service.features import Floats, History, Integers
from model_service.training.dataset import Cases

LAGS = 6
Own = tuple[list[Floats], Floats]


def own_changes(contract: Contract, held: Mapping[str, History], table: Cases) -> Own:
    """The target's values known at each origin, and its last `LAGS` changes there: float64 [n, LAGS]."""
    transform = "difference" if contract.target.transform == "level" else contract.target.transform
    known = [held[contract.target.series].at(int(origin))[1] for origin in table.origin]
    lags = np.full((len(known), LAGS), np.nan)
    for place, values in enumerate(known):
        if values.size > LAGS:
            tail = values[-LAGS - 1 :]
            lags[place] = features.change(transform, tail[1:], tail[:-1])[::-1]
    return known, lags


def forecasts(contract: Contract, table: Cases, own: Own, truth: Floats, places: range) -> dict[str, Floats]:
    """Each baseline's forecasts at the cases of `places`, fitted on labels `truth` [n, H]: float64 [len(places), H]."""
    known, lags = own
    season = periods.season(contract.series[contract.target.series].frequency)
    horizons = contract.target.horizons
    chosen = np.array(places)
    back = [season * -(-horizon // season) - horizon for horizon in horizons]
    seasonal = [[_nth_last(known[place], steps) for steps in back] for place in places]
    return {
        "last_value": np.repeat(table.anchor[chosen, None], len(horizons), axis=1),
        "seasonal": np.array(seasonal),
        "ar": np.column_stack([_ar(contract, table, lags, truth[:, n], chosen) for n in range(len(horizons))]),
    }


def _nth_last(values: Floats, steps: int) -> float:
    return float(values[-1 - steps]) if values.size > steps else float("nan")


def _ar(contract: Contract, table: Cases, lags: Floats, truth: Floats, chosen: Integers) -> Floats:
    """Direct autoregression by least squares: the change over the horizon on the last `LAGS` changes and a constant."""
    transform = "difference" if contract.target.transform == "level" else contract.target.transform
    change = features.change(transform, truth, table.anchor)
    usable = ~np.isnan(change) & ~np.isnan(lags).any(axis=1)
    design = np.column_stack([np.ones(len(lags)), lags])
    weights, *_ = np.linalg.lstsq(design[usable], change[usable], rcond=None)
    ahead = design[chosen] @ weights
    base = table.anchor[chosen]
    made: Floats = base * np.exp(ahead) if transform == "log_difference" else base + ahead
    return made
