"""What can be fitted, by the name in `service.toml`, and the baselines that every candidate must beat.

Each estimator has an ONNX export that the parity check has proven. Baselines: the last value, the last one of the same
season, and an autoregression of the target alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from model_service import features, periods
from model_service.contract import Contract
from model_service.errors import ServiceError
from model_service.features import Floats, History, Integers
from model_service.training.dataset import Cases

# The penalty is chosen by leave-one-out on the rows of the fit alone, so never with data after its origin.
ESTIMATORS: dict[str, Callable[[int], Any]] = {
    "ridge": lambda seed: make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 4, 13))),
    "gradient_boosting": lambda seed: GradientBoostingRegressor(
        n_estimators=200, learning_rate=0.05, max_depth=3, min_samples_leaf=8, subsample=0.6, max_features=0.3,
        random_state=seed,
    ),
}  # fmt: skip


FEWEST_CASES = 60
LAGS = 6  # of the autoregression
Own = tuple[list[Floats], Floats]


@dataclass(frozen=True)
class Fitted:
    """One estimator a horizon, fitted on the change that the target's transform names."""

    contract: Contract
    estimators: list[Any]

    def predict(self, inputs: Floats) -> Floats:
        """Inputs float64 [n, F] to forecasts float64 [n, H] in the target's unit."""
        anchors = inputs[:, :1]
        changes = np.column_stack([one.predict(columns(self.contract, inputs)) for one in self.estimators])
        transform = self.contract.target.transform
        if transform == "level":
            return changes
        made: Floats = anchors + changes if transform == "difference" else anchors * np.exp(changes)
        return made


def columns(contract: Contract, inputs: Floats) -> Floats:
    """The inputs that are features, in their declared order: what an estimator sees."""
    return inputs[:, column_places(contract)]


def column_places(contract: Contract) -> list[int]:
    names = features.inputs(contract)
    return [names.index(name) for name in features.feature_names(contract)]


def fit(contract: Contract, table: Cases, truth: Floats) -> Fitted:
    """Fits each horizon on the cases whose inputs are complete and whose label, `truth` [n, H], is known.

    Raises ServiceError when fewer than `FEWEST_CASES` are.
    """
    estimators = []
    for number in range(len(contract.target.horizons)):
        change = features.change(contract.target.transform, truth[:, number], table.anchor)
        usable = table.complete & ~np.isnan(change)
        if usable.sum() < FEWEST_CASES:
            raise ServiceError(
                f"only {usable.sum()} complete cases to fit on (at least {FEWEST_CASES}): load more history"
            )
        estimator = ESTIMATORS[contract.train.estimator](contract.train.seed)
        estimators.append(estimator.fit(columns(contract, table.inputs[usable]), change[usable]))
    return Fitted(contract, estimators)


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


def baselines(contract: Contract, table: Cases, own: Own, truth: Floats, places: range) -> dict[str, Floats]:
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
