"""What can be fitted, by the name in `service.toml`, and the baselines that every candidate must beat.

Each estimator has an ONNX export that the parity check has proven. Baselines: the last value, the last one of the same
season, and an autoregression of the target alone.
"""

from collections.abc import Callable
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
from model_service.features import Floats, Integers
from model_service.training import Cases

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


@dataclass(frozen=True)
class Fitted:
    """One estimator a horizon, fitted on the change that the target's transform names."""

    contract: Contract
    estimators: list[Any]

    def predict(self, inputs: Floats) -> Floats:
        """Inputs float64 [n, F] to forecasts float64 [n, H] in the target's unit."""
        chosen = inputs[:, column_places(self.contract)]
        changes = np.column_stack([one.predict(chosen) for one in self.estimators])
        return features.undo(self.contract.target.transform, changes, inputs[:, :1])


def column_places(contract: Contract) -> list[int]:
    """Places among the inputs of the declared features, in their order: what an estimator sees."""
    names = features.inputs(contract)
    return [names.index(name) for name in features.feature_names(contract)]


def fit(table: Cases, truth: Floats) -> Fitted:
    """Fits each horizon on the cases whose inputs are complete and whose label, `truth` [n, H], is known.

    Raises ServiceError when fewer than `FEWEST_CASES` are.
    """
    contract, places, estimators = table.contract, column_places(table.contract), []
    for label in truth.T:
        change = features.change(contract.target.transform, label, table.anchor)
        usable = table.complete & ~np.isnan(change)
        if usable.sum() < FEWEST_CASES:
            raise ServiceError(
                f"only {usable.sum()} complete cases to fit on (at least {FEWEST_CASES}): load more history"
            )
        estimator = ESTIMATORS[contract.train.estimator](contract.train.seed)
        estimators.append(estimator.fit(table.inputs[usable][:, places], change[usable]))
    return Fitted(contract, estimators)


def baselines(table: Cases, truth: Floats, block: Integers) -> dict[str, Floats]:
    """Each baseline's forecasts at the cases of `block`, fitted on labels `truth` [n, H]: float64 [len(block), H]."""
    target = table.contract.target
    season = periods.season(table.contract.series[target.series].frequency)
    back = [season * -(-horizon // season) - horizon for horizon in target.horizons]
    return {
        "last_value": np.repeat(table.anchor[block, None], len(target.horizons), axis=1),
        "seasonal": np.array([[features.nth_last(table.known[place], steps) for steps in back] for place in block]),
        "ar": _autoregression(table, truth, block),
    }


def _autoregression(table: Cases, truth: Floats, block: Integers) -> Floats:
    """Direct, by least squares: the change over the horizon on the target's last `LAGS` changes and a constant."""
    declared = table.contract.target.transform
    transform = "difference" if declared == "level" else declared
    design = np.full((len(table.known), 1 + LAGS), np.nan)
    for place, values in enumerate(table.known):
        if values.size > LAGS:
            tail = values[-LAGS - 1 :]
            design[place] = [1, *features.change(transform, tail[1:], tail[:-1])[::-1]]
    ahead = []
    for label in truth.T:
        change = features.change(transform, label, table.anchor)
        usable = ~np.isnan(change) & ~np.isnan(design).any(axis=1)
        weights, *_ = np.linalg.lstsq(design[usable], change[usable], rcond=None)
        ahead.append(design[block] @ weights)
    return features.undo(transform, np.column_stack(ahead), table.anchor[block, None])
