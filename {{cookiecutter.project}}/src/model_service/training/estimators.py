"""What can be fitted, by the name in `service.toml`; each has an ONNX export that the parity check has proven."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from model_service import features
from model_service.contract import Contract
from model_service.errors import ServiceError
from model_service.features import Floats
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
            raise ServiceError(f"only {usable.sum()} complete cases to fit on (at least {FEWEST_CASES}): load more history")
        estimator = ESTIMATORS[contract.train.estimator](contract.train.seed)
        estimators.append(estimator.fit(columns(contract, table.inputs[usable]), change[usable]))
    return Fitted(contract, estimators)
