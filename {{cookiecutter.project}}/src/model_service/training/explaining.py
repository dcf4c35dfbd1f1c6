"""What `explain` needs to know of a fitted model, as explain.json: numbers alone, by places of the model's inputs."""

from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import numpy as np
from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor

from model_service.features import Floats
from model_service.training.estimators import Fitted, Sklearn, column_places


def explanation(fitted: Fitted, inputs: Floats) -> dict[str, Any]:
    """By the kind of the estimator; inputs [n, F]: the complete rows that the model learnt from."""
    places, width = column_places(fitted.contract), inputs.shape[1]
    if not isinstance(fitted.kind, Sklearn):
        method, horizons = "permutation", [{"reference": inputs.mean(axis=0).tolist()}]
    elif fitted.kind.is_tree:
        method, horizons = "trees", [_trees(one, places) for one in fitted.estimators]
    else:
        method, horizons = "linear", [_linear(one, places, width) for one in fitted.estimators]
    return {"method": method, "deviation": float(inputs[:, 0].std()), "horizons": horizons}


def _linear(pipeline: Any, places: list[int], width: int) -> dict[str, Any]:
    scaler, linear = (step for _, step in pipeline.steps)
    center, weights = np.zeros(width), np.zeros(width)
    center[places], weights[places] = scaler.mean_, linear.coef_ / scaler.scale_
    return {"base": float(linear.intercept_), "center": center.tolist(), "weights": weights.tolist()}


def _trees(made: RandomForestRegressor | GradientBoostingRegressor, places: list[int]) -> dict[str, Any]:
    if isinstance(made, RandomForestRegressor):
        return {"offset": 0.0, "nodes": _nodes(made.estimators_, 1 / len(made.estimators_), places)}
    offset = float(made.init_.constant_.item())  # the mean that boosting starts from
    return {"offset": offset, "nodes": _nodes(made.estimators_[:, 0], made.learning_rate, places)}


def _nodes(estimators: Iterable[Any], weight: float, places: list[int]) -> dict[str, list[Any]]:
    """As `explain.leaves` takes them; scikit-learn grows in that order, a node's left child right after it."""
    trees = [one.tree_ for one in estimators]
    roots = [0, *accumulate(tree.node_count for tree in trees)][:-1]
    leaf = np.concatenate([tree.children_left < 0 for tree in trees])
    split = np.concatenate([tree.feature for tree in trees])
    right = np.concatenate([tree.children_right + root for tree, root in zip(trees, roots, strict=True)])
    left = np.concatenate([tree.children_left + root for tree, root in zip(trees, roots, strict=True)])
    if not (leaf | (left == np.arange(left.size) + 1)).all():
        raise AssertionError("scikit-learn grew a tree in another order")
    number = np.concatenate([np.where(tree.children_left < 0, tree.value[:, 0, 0] * weight, tree.threshold)
                             for tree in trees])  # fmt: skip
    rows = np.concatenate([tree.weighted_n_node_samples for tree in trees])
    return {
        "roots": roots,
        "place": np.where(leaf, -1, np.array(places)[split]).tolist(),
        "right": np.where(leaf, 0, right).tolist(),
        "number": number.tolist(),
        "rows": rows.astype(int).tolist(),
    }
