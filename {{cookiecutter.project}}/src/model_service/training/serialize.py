"""A fitted model as one ONNX graph, from inputs to forecasts in the target's unit, and proof that they agree."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType
from sklearn.ensemble import GradientBoostingRegressor

from model_service import artifact
from model_service.features import Floats
from model_service.training.estimators import Fitted, column_places

OPSET = {"": 18, "ai.onnx.ml": 3}
PARITY = 1e-5
ROWS = 20_000


def graph(fitted: Fitted, width: int) -> bytes:
    """ONNX bytes: `features` float64 [N, width] to `forecast` float64 [N, H].

    Linear models run in double. Trees compare in float32, as scikit-learn does; see `round_thresholds`.
    """
    nodes, constants = [], [numpy_helper.from_array(np.array(column_places(fitted.contract)), "places")]
    nodes.append(helper.make_node("Gather", ["features", "places"], ["chosen"], axis=1))
    outputs = []
    for number, estimator in enumerate(fitted.estimators):
        part = _part(estimator, len(column_places(fitted.contract)), f"h{number}_")
        is_tree = isinstance(estimator, GradientBoostingRegressor)
        kind = TensorProto.FLOAT if is_tree else TensorProto.DOUBLE
        source, made = part.graph.input[0].name, part.graph.output[0].name
        nodes.append(helper.make_node("Cast", ["chosen"], [source], to=kind))
        nodes += part.graph.node
        constants += part.graph.initializer
        nodes.append(helper.make_node("Cast", [made], [f"change{number}"], to=TensorProto.DOUBLE))
        outputs.append(f"change{number}")
    nodes.append(helper.make_node("Concat", outputs, ["changes"], axis=1))
    nodes += _back(fitted.contract.target.transform)
    constants.append(numpy_helper.from_array(np.array([0]), "first"))
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


def round_thresholds(fitted: Fitted) -> None:
    """Rounds each tree's thresholds down to float32, in place: for float32 inputs `x <= t` keeps its answer exactly."""
    for tree in _trees(fitted):
        single = tree.threshold.astype(np.float32)
        above = single.astype(np.float64) > tree.threshold
        tree.threshold[:] = np.where(above, np.nextafter(single, np.float32(-np.inf)), single)


def parity(fitted: Fitted, onnx_bytes: bytes, inputs: Floats, seed: int) -> float:
    """Largest error of the graph against the fitted model, as a share of max(abs(fitted), std of the target).

    Rows: draws over each input's range, its extremes and 10 times its range, and for trees every threshold with its
    float32 neighbours.
    """
    rows = _probes(fitted, inputs, np.random.default_rng(seed))
    expected = fitted.predict(rows)
    made = artifact.session(onnx_bytes).run(["forecast"], {"features": rows})[0]
    spread = inputs[:, 0].std()  # the anchor: the target's own values
    return float((np.abs(made - expected) / np.maximum(np.abs(expected), spread)).max())


def _probes(fitted: Fitted, inputs: Floats, rng: np.random.Generator) -> Floats:
    low, high = inputs.min(axis=0), inputs.max(axis=0)
    middle, half = (low + high) / 2, (high - low) / 2
    wide = np.ones(ROWS) if fitted.contract.target.transform == "log_difference" else rng.choice([1.0, 10.0], ROWS)
    rows = middle + half * rng.uniform(-1, 1, (ROWS, inputs.shape[1])) * wide[:, None]
    extremes = np.where(rng.random((200, inputs.shape[1])) < 0.5, low, high)
    places = column_places(fitted.contract)
    edges = []
    for tree in _trees(fitted):
        for feature, threshold in zip(tree.feature, tree.threshold, strict=True):
            if feature >= 0:
                single = np.float32(threshold)
                around = (single, np.nextafter(single, np.float32(np.inf)), np.nextafter(single, np.float32(-np.inf)))
                edges += [(places[feature], float(value)) for value in around]
    on_edges = np.tile(np.median(inputs, axis=0), (len(edges), 1))
    for number, (place, value) in enumerate(edges):
        on_edges[number, place] = value
    return np.concatenate([inputs, rows, extremes, np.zeros((1, inputs.shape[1])) + middle, on_edges])


def _part(estimator: Any, width: int, prefix: str) -> onnx.ModelProto:
    kind = FloatTensorType if isinstance(estimator, GradientBoostingRegressor) else DoubleTensorType
    part = convert_sklearn(estimator, initial_types=[("chosen", kind([None, width]))], target_opset=OPSET)
    return onnx.compose.add_prefix(part, prefix)


def _back(transform: str) -> list[onnx.NodeProto]:
    """From the modelled change back to the target's unit; the anchor is the first input."""
    if transform == "level":
        return [helper.make_node("Identity", ["changes"], ["forecast"])]
    anchor = helper.make_node("Gather", ["features", "first"], ["anchor"], axis=1)
    if transform == "difference":
        return [anchor, helper.make_node("Add", ["anchor", "changes"], ["forecast"])]
    grow = helper.make_node("Exp", ["changes"], ["growth"])
    return [anchor, grow, helper.make_node("Mul", ["anchor", "growth"], ["forecast"])]


def _trees(fitted: Fitted) -> list[Any]:
    boosted = [one for one in fitted.estimators if isinstance(one, GradientBoostingRegressor)]
    return [tree.tree_ for one in boosted for tree in one.estimators_.ravel()]
