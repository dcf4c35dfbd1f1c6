"""A fitted model in the forms that serve: one ONNX graph, from inputs to forecasts in the target's unit, with proof
that it agrees; and, as explain.json, what `explain` needs to know: numbers alone, by places of the model's inputs.
"""

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any

import joblib
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor

from model_service import artifact
from model_service.arrays import Floats
from model_service.errors import ServiceError
from model_service.training.estimators import OPSET, Fitted, Sklearn, column_places

PARITY = 1e-5
ROWS = 100_000
AT_ONCE = 500_000  # numbers in one block of rows, so that memory stays flat


def graph(fitted: Fitted, width: int) -> bytes:
    """ONNX bytes: `features` float64 [N, width] to `forecast` float64 [N, H].

    Raises ServiceError when an estimator gives no graph that fits in.
    """
    try:
        return _graph(fitted, width)
    except Exception as error:
        name = fitted.contract.train.estimator
        raise ServiceError(
            f"{name} gives no ONNX graph that can serve ({error}): mend its `graph`, or choose another train.estimator"
        ) from error


def _graph(fitted: Fitted, width: int) -> bytes:
    places = column_places(fitted.contract)
    constants = [numpy_helper.from_array(np.array(places), "places"), numpy_helper.from_array(np.array([0]), "first"),
                 numpy_helper.from_array(np.array([-1, 1]), "column")]  # fmt: skip
    nodes, outputs = [helper.make_node("Gather", ["features", "places"], ["chosen"], axis=1)], []
    for number, estimator in enumerate(fitted.estimators):
        part = onnx.compose.add_prefix(fitted.kind.graph(estimator, len(places)), f"h{number}_").graph
        (source,), (made,), change = part.input, part.output, f"change{number}"
        nodes.append(helper.make_node("Cast", ["chosen"], [source.name], to=source.type.tensor_type.elem_type))
        nodes += part.node
        constants += part.initializer
        nodes.append(helper.make_node("Cast", [made.name], [f"{change}_cast"], to=TensorProto.DOUBLE))
        nodes.append(helper.make_node("Reshape", [f"{change}_cast", "column"], [change]))
        outputs.append(change)
    nodes.append(helper.make_node("Concat", outputs, ["changes"], axis=1))
    nodes += _back(fitted.contract.target.transform)
    whole = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("features", TensorProto.DOUBLE, [None, width])],
        [helper.make_tensor_value_info("forecast", TensorProto.DOUBLE, [None, len(outputs)])],
        constants,
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in OPSET.items()]
    model = helper.make_model(whole, opset_imports=opsets, producer_name="model_service", ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def parity(fitted: Fitted, onnx_bytes: bytes, inputs: Floats, seed: int) -> float:
    """Largest error of the graph against the fitted model, as a share of max(abs(fitted), std of the target).

    Rows: `inputs` [n, F]; each input at its extremes, 10 times its range and both zeros; draws over all ranges and 10
    times as far; and at each node of a tree its threshold and the neighbours of that in float32.
    """
    session, spread = artifact.session(onnx_bytes), inputs[:, 0].std()  # the anchor: the target's own values

    def off(rows: Floats) -> float:
        expected = fitted.predict(rows)
        made = session.run(["forecast"], {"features": rows})[0]
        with np.errstate(invalid="ignore", over="ignore"):
            found = np.abs(made - expected) / np.maximum(np.abs(expected), spread)
        found = np.where(made == expected, 0, found)  # of infinities too
        return float(np.where(np.isnan(found), np.inf, found).max())

    probes = _blocks(_probes(fitted, onnx_bytes, inputs, np.random.default_rng(seed)))
    worst = joblib.Parallel(joblib.cpu_count(), prefer="threads")(joblib.delayed(off)(rows) for rows in probes)
    return float(max(worst))


def _blocks(parts: Iterable[Floats]) -> Iterator[Floats]:
    held, size = [], 0
    for part in parts:
        held.append(part)
        size += part.size
        if size >= AT_ONCE:
            yield np.concatenate(held)
            held, size = [], 0
    if held:
        yield np.concatenate(held)


def _probes(fitted: Fitted, onnx_bytes: bytes, inputs: Floats, rng: np.random.Generator) -> Iterator[Floats]:
    low, high = inputs.min(axis=0), inputs.max(axis=0)
    middle, half = (low + high) / 2, (high - low) / 2
    yield inputs
    special = np.array([low, high, middle - 10 * half, middle + 10 * half, 0 * low, np.full_like(low, -0.0)])
    for place, values in enumerate(special.T):
        rows = inputs[rng.integers(len(inputs), size=len(values))]
        rows[:, place] = values
        yield rows
    yield np.where(rng.random((200, inputs.shape[1])) < 0.5, low, high)
    places, start = column_places(fitted.contract), inputs[len(inputs) // 2]
    for node in onnx.load_from_string(onnx_bytes).graph.node:
        if node.op_type == "TreeEnsembleRegressor":
            yield from _edges(node, places, start)
    for _ in range(ROWS // 1000):
        wide = rng.choice([1.0, 10.0], (1000, 1))
        yield middle + half * wide * rng.uniform(-1, 1, (1000, inputs.shape[1]))


def _edges(node: onnx.NodeProto, places: list[int], start: Floats) -> Iterator[Floats]:
    """For each node of the trees rows that reach it and stand on its threshold, or next to it."""
    has = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    thresholds = has.get("nodes_values") or numpy_helper.to_array(has["nodes_values_as_tensor"]).tolist()
    names = list(zip(has["nodes_treeids"], has["nodes_nodeids"], strict=True))
    at = {name: number for number, name in enumerate(names)}
    todo = [(number, start) for number, (_, inner) in enumerate(names) if inner == 0]
    while todo:
        number, row = todo.pop()
        if has["nodes_modes"][number] == b"LEAF":
            continue
        place, single = places[has["nodes_featureids"][number]], np.float32(thresholds[number])
        rows = np.tile(row, (4, 1))
        above, below = (np.nextafter(single, np.float32(end)) for end in (np.inf, -np.inf))
        rows[:, place] = [thresholds[number], single, above, below]
        yield rows
        for turn, value in (("true", min(row[place], float(below))), ("false", max(row[place], float(above)))):
            there = row.copy()
            there[place] = value
            todo.append((at[names[number][0], has[f"nodes_{turn}nodeids"][number]], there))


def _back(transform: str) -> list[onnx.NodeProto]:
    """From the modelled change back to the target's unit; the anchor is the first input."""
    if transform == "level":
        return [helper.make_node("Identity", ["changes"], ["forecast"])]
    anchor = helper.make_node("Gather", ["features", "first"], ["anchor"], axis=1)
    if transform == "difference":
        return [anchor, helper.make_node("Add", ["anchor", "changes"], ["forecast"])]
    grow = helper.make_node("Exp", ["changes"], ["growth"])
    return [anchor, grow, helper.make_node("Mul", ["anchor", "growth"], ["forecast"])]


def explanation(fitted: Fitted, inputs: Floats) -> dict[str, Any]:
    """What explain.json holds, by the estimator's kind; inputs [n, F]: the complete rows that the model learnt from."""
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
