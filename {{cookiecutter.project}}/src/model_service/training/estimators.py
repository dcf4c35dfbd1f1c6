"""What can be fitted, by the name in `service.toml`, and the baselines that every candidate must beat.

Each estimator gives an ONNX graph that the parity check must prove. Baselines: the last value, the last one of the same
season, and an autoregression of the target alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pkgutil import resolve_name
from typing import Any, Protocol

import numpy as np
import onnx
from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import ElasticNetCV, RidgeCV
from sklearn.model_selection import TimeSeriesSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from model_service import features, periods
from model_service.arrays import Floats, Integers
from model_service.contract import Contract
from model_service.errors import ServiceError
from model_service.mistakes import why_not_callable
from model_service.training import Cases

OPSET = {"": 18, "ai.onnx.ml": 3}
Settings = Mapping[str, Any]


class Estimator(Protocol):
    """What `train.estimator` may name as module:Class; a search gives its `space`'s settings to the constructor."""

    def fit(self, inputs: Floats, change: Floats, seed: int) -> Any:
        """Fits inputs float64 [n, F] to the change [n] over one horizon; gives what has `predict`, [n, F] to [n]."""

    def graph(self, fitted: Any, width: int) -> onnx.ModelProto:
        """The same as ONNX: one input, float or double [N, width], and one output, [N] or [N, 1]; opset 18 at most."""


@dataclass(frozen=True)
class Sklearn:
    """An estimator of scikit-learn: `make` gives a new one from a seed and settings, `space` holds what to search."""

    make: Callable[..., Any]
    space: Mapping[str, Sequence[Any]]
    is_tree: bool = False
    settings: Settings = field(default_factory=dict)

    def fit(self, inputs: Floats, change: Floats, seed: int) -> Any:
        return self.make(seed, **self.settings).fit(inputs, change)

    def graph(self, fitted: Any, width: int) -> onnx.ModelProto:
        """Linear models run in double. Trees compare in float32, as scikit-learn does."""
        from skl2onnx import convert_sklearn  # slow to import, and the workers of a backtest need none
        from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

        kind = FloatTensorType if self.is_tree else DoubleTensorType
        made: onnx.ModelProto = convert_sklearn(
            fitted, initial_types=[("inputs", kind([None, width]))], target_opset=OPSET
        )
        return made


def _ridge(_: int, alpha: float | None = None) -> Any:
    # Without a search the penalty is chosen by leave-one-out on the rows of the fit alone: never with later data.
    return make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 4, 13) if alpha is None else [alpha]))


def _elastic_net(_: int, l1_ratio: float = 0.5) -> Any:
    # Here by folds of those rows, each later than what is fitted on.
    net = ElasticNetCV(l1_ratio=l1_ratio, alphas=30, cv=TimeSeriesSplit(4), max_iter=5_000, tol=1e-3)
    return make_pipeline(StandardScaler(), net)


def _forest(seed: int, **settings: Any) -> Any:
    usual = {"n_estimators": 100, "min_samples_leaf": 5, "max_features": 0.3}
    return RandomForestRegressor(**{**usual, **settings}, random_state=seed)


def _boosting(seed: int, **settings: Any) -> Any:
    usual = {"n_estimators": 100, "learning_rate": 0.05, "max_depth": 3, "min_samples_leaf": 8}
    return GradientBoostingRegressor(**{**usual, "subsample": 0.6, "max_features": 0.3, **settings}, random_state=seed)


ESTIMATORS = {
    "ridge": Sklearn(_ridge, {"alpha": np.logspace(0, 4, 13).tolist()}),
    "elastic_net": Sklearn(_elastic_net, {"l1_ratio": [0.1, 0.3, 0.5, 0.7, 0.9, 0.95]}),
    "random_forest": Sklearn(
        _forest,
        {"max_features": [0.1, 0.2, 0.3, 0.5], "min_samples_leaf": [3, 5, 10, 20], "max_depth": [4, 8, None]},
        is_tree=True,
    ),
    "gradient_boosting": Sklearn(
        _boosting,
        {"learning_rate": [0.02, 0.05, 0.1], "n_estimators": [100, 200, 400], "max_depth": [1, 2, 3, 4],
         "min_samples_leaf": [4, 8, 16], "max_features": [0.1, 0.3, 0.6]},
        is_tree=True,
    ),
}  # fmt: skip
FEWEST_CASES = 60
LAGS = 6  # of the autoregression


@dataclass(frozen=True)
class Fitted:
    """One fitted estimator a horizon, on the change that the target's transform names."""

    contract: Contract
    kind: Estimator
    estimators: list[Any]
    settings: Settings

    @property
    def chosen(self) -> dict[str, Any]:
        """The settings in force; `alpha`, one a horizon, where the fit itself chose the penalty."""
        last = [one[-1] for one in self.estimators if hasattr(one, "steps")]
        alpha = [float(one.alpha_) for one in last if hasattr(one, "alpha_")]
        return {**({"alpha": alpha} if alpha else {}), **self.settings}

    def predict(self, inputs: Floats) -> Floats:
        """Inputs float64 [n, F] to forecasts float64 [n, H] in the target's unit."""
        chosen = inputs[:, column_places(self.contract)]
        changes = np.column_stack([one.predict(chosen) for one in self.estimators])
        return features.invert_transform(self.contract.target.transform, changes, inputs[:, :1])


def missing(contract: Contract) -> str:
    """Why the estimator of `train.estimator` cannot be had, and what to do; empty when it can."""
    return "" if contract.train.estimator in ESTIMATORS else why_not_callable(contract.train.estimator)


def build(contract: Contract, settings: Settings) -> Estimator:
    """The estimator of `train.estimator` with `settings`; what `missing` would tell is raised here as it comes."""
    name = contract.train.estimator
    if name in ESTIMATORS:
        return replace(ESTIMATORS[name], settings=settings)
    made: Estimator = resolve_name(name)(**settings)
    return made


def column_places(contract: Contract) -> list[int]:
    """Places among the inputs of the declared features, in their order: what an estimator sees."""
    names = features.inputs(contract)
    return [names.index(name) for name in features.feature_names(contract)]


def space(contract: Contract) -> Mapping[str, Sequence[Any]]:
    """Settings that a search may try, each with its values; one's own class may name none."""
    return getattr(ESTIMATORS.get(contract.train.estimator) or build(contract, {}), "space", {})


def fit(table: Cases, truth: Floats, settings: Settings | None = None) -> Fitted:
    """Fits each horizon on the cases whose inputs are complete and whose label, `truth` [n, H], is known.

    Raises ServiceError when fewer than `FEWEST_CASES` are.
    """
    contract, places, fitted = table.contract, column_places(table.contract), []
    kind = build(contract, settings or {})
    for label in truth.T:
        change = features.apply_transform(contract.target.transform, label, table.anchor)
        usable = table.complete & ~np.isnan(change)
        if usable.sum() < FEWEST_CASES:
            raise ServiceError(
                f"only {usable.sum()} complete cases to fit on (at least {FEWEST_CASES}): load more history"
            )
        fitted.append(kind.fit(table.inputs[usable][:, places], change[usable], contract.train.seed))
    return Fitted(contract, kind, fitted, settings or {})


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
            design[place] = [1, *features.apply_transform(transform, tail[1:], tail[:-1])[::-1]]
    ahead = []
    for label in truth.T:
        change = features.apply_transform(transform, label, table.anchor)
        usable = ~np.isnan(change) & ~np.isnan(design).any(axis=1)
        weights, *_ = np.linalg.lstsq(design[usable], change[usable], rcond=None)
        ahead.append(design[block] @ weights)
    return features.invert_transform(transform, np.column_stack(ahead), table.anchor[block, None])
