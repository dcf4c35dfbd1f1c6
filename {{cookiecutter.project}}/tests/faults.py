"""Faults to plant in a training of the made-up world, each with the rule of the gate that must name it.

A fault changes what the providers tell, the contract, the code while it trains, the model that came out, or what
serving reads; everything else is the real pipeline. The second of two trainings has it; the first became champion.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import world as w
from onnx import TensorProto, helper, numpy_helper
from sklearn.linear_model import LinearRegression
from world import World

from model_service import artifact, features
from model_service.arrays import Floats
from model_service.features import History
from model_service.registry import Registered
from model_service.training import Cases, backtest, estimators, probes
from model_service.training.gate import Rule
from model_service.training.probes import Candidate

Rules = dict[str, Rule]
LATER = 1  # months between the trainings


@dataclass(frozen=True)
class Fault:
    """rule: that must block. sizes: how large it is planted, in a unit of its own. plant: from seed and size."""

    rule: str
    sizes: tuple[float, ...]
    plant: Callable[[int, float], Rules]


@lru_cache(maxsize=4)
def champion(seed: int) -> Registered:
    first = w.world(seed)
    return w.registered(first, w.candidate(first))


@lru_cache(maxsize=4)
def clean(seed: int) -> tuple[World, Candidate]:
    second = w.world(seed, later=LATER)
    return second, w.candidate(second)


def told(change: Callable[[dict[str, Floats], float, int], dict[str, Floats]], **train: Any) -> Any:
    """A fault in what the providers tell of all times."""

    def plant(seed: int, size: float) -> Rules:
        second = w.world(seed, later=LATER, change=lambda made: change(dict(made), size, seed), **train)
        return w.judged(w.candidate(second), champion(seed), second)

    return plant


def held(change: Callable[[World, float, int], World]) -> Any:
    """A fault in the rows of the store, or in the contract."""

    def plant(seed: int, size: float) -> Rules:
        second = change(w.world(seed, later=LATER), size, seed)
        return w.judged(w.candidate(second), champion(seed), second)

    return plant


def code(during: Callable[[float], AbstractContextManager[Any]]) -> Any:
    """A fault in the code that trains."""

    def plant(seed: int, size: float) -> Rules:
        before, second = champion(seed), w.world(seed, later=LATER)
        with during(size):
            return w.judged(w.candidate(second), before, second)

    return plant


def model(after: Callable[[Candidate, float], bytes]) -> Any:
    """A fault in the graph that came out."""

    def plant(seed: int, size: float) -> Rules:
        second, made = clean(seed)
        return w.judged(replace(made, **dict.fromkeys(("graph", "again"), after(made, size))), champion(seed), second)

    return plant


def serving(change: Callable[[World, float], World]) -> Any:
    """A fault on the serving path alone."""

    def plant(seed: int, size: float) -> Rules:
        second, made = clean(seed)
        return w.judged(made, champion(seed), change(second, size))

    return plant


# ---- What the providers tell ----


def future(made: dict[str, Floats], size: float, seed: int) -> dict[str, Floats]:
    """A series that is the target's own change over the next three months, but for noise of `size`."""
    ahead = np.append(made["TARGET"][3:] - made["TARGET"][:-3], np.zeros(3))
    return made | {"INSIDER": ahead + size * np.random.default_rng(seed).normal(size=len(ahead))}


def turned(made: dict[str, Floats], size: float, _: int) -> dict[str, Floats]:
    """Two drivers are told `size` times as large and with the other sign, in the last third of the backtest."""
    for name in ("SURVEY", "RATE"):
        made[name] = np.where(np.arange(w.MONTHS) < 240, made[name], -size * made[name])
    return made


# ---- What the store holds, and what is declared ----


def newest(world: World, name: str, change: Callable[[float], float], months: int = 1) -> World:
    """The newest months of a series changed, in all their vintages."""
    first = max(day for day, _, _ in world.rows[name]) - 31 * (months - 1) - 1
    rows = [(day, known, change(value) if day > first and value is not None else value)
            for day, known, value in world.rows[name]]  # fmt: skip
    return replace(world, rows=world.rows | {name: rows})


def other_unit(name: str) -> Callable[[World, float, int], World]:
    return lambda world, size, _: newest(world, name, lambda value: value * size)


def exchanged(world: World, size: float, _: int) -> World:
    """The newest values of target and index, each told as the other's."""
    last = {name: world.rows[name][-1][2] for name in ("TARGET", "INDEX")}
    world = newest(world, "TARGET", lambda _: last["INDEX"] or 0, int(size))
    return newest(world, "INDEX", lambda _: last["TARGET"] or 0, int(size))


def stopped(name: str) -> Callable[[World, float, int], World]:
    """A series ends `size` months early."""

    def change(world: World, size: float, _: int) -> World:
        end = max(day for day, _, _ in world.rows[name]) - 30.4 * size + 1
        return replace(world, rows=world.rows | {name: [row for row in world.rows[name] if row[0] < end]})

    return change


def burst(world: World, size: float, seed: int) -> World:
    """`size` of the index's values of two years are missing, none of the newest."""
    days = sorted({day for day, _, _ in world.rows["INDEX"]})[-28:-6]
    gone = np.random.default_rng(seed).choice(days, int(size), replace=False).tolist()
    rows = [(day, known, None if day in gone else value) for day, known, value in world.rows["INDEX"]]
    return replace(world, rows=world.rows | {"INDEX": rows})


def backwards(name: str, way: str) -> Callable[[World, float, int], World]:
    """The direction that is declared is not the one that holds."""

    def change(world: World, _: float, __: int) -> World:
        declared = tuple(
            one.model_copy(update={"direction": way}) if name in one.names[0] else one for one in world.contract.feature
        )
        return replace(world, contract=world.contract.model_copy(update={"feature": declared}))

    return change


def without(name: str) -> Callable[[World, float, int], World]:
    return lambda world, _, __: w.only(world, without=name)


def short(world: World, size: float, _: int) -> World:
    """Only `size` origins could be scored."""
    month = features.day(sorted({day for day, _, _ in world.rows["TARGET"]})[-int(size)])
    train = world.contract.train.model_copy(update={"first_origin": month})
    return replace(world, contract=world.contract.model_copy(update={"train": train}))


def twin(world: World, size: float, seed: int) -> World:
    """The survey once more, but for noise of `size`."""
    rng = np.random.default_rng(seed)
    rows = [(day, known, value and value + size * rng.normal()) for day, known, value in world.rows["SURVEY"]]
    declared = w.contract([*world.contract.series, "TWIN"])
    return replace(world, contract=declared, rows=world.rows | {"TWIN": rows})


def unpenalized(seed: int, size: float) -> Rules:
    """Twin inputs, and an estimator without a penalty: their weights grow large and take each other back."""
    kind = estimators.ESTIMATORS["ridge"]
    plain = replace(kind, make=lambda *_: LinearRegression()) if hasattr(kind, "make") else lambda _: LinearRegression()
    with patch.dict(estimators.ESTIMATORS, ridge=plain):
        return held(twin)(seed, size)  # type: ignore[no-any-return]


def noisy(seed: int, size: float) -> Rules:
    second = w.world(seed, later=LATER, noise=int(size))
    return w.judged(w.candidate(second), champion(seed), second)


def powerless(seed: int, size: float) -> Rules:
    """Nothing but noise is declared; there is no champion yet."""
    second = w.world(seed, later=LATER, noise=int(size))
    declared = second.contract.model_copy(update={"feature": second.contract.feature[-int(size) :]})
    second = replace(second, contract=declared)
    return w.judged(w.candidate(second), None, second)


# ---- The code that trains ----


def early(size: float) -> AbstractContextManager[Any]:
    """Before the first vintage, values count as known `size` days before their release."""
    honest = History.known_rows

    def known_rows(self: History, origin: int) -> Any:
        return honest(self, np.where(origin < self.first_vintage, origin + int(size * features.DAY), origin))

    return patch.object(History, "known_rows", known_rows)


def foreseen(size: float) -> AbstractContextManager[Any]:
    """Labels are those known `size` days later."""
    honest = Cases.labels
    return patch.object(Cases, "labels", lambda self, at: honest(self, at + int(size * features.DAY)))


def relabelled(change: Callable[[Floats, float, bool], Floats]) -> Callable[[float], AbstractContextManager[Any]]:
    """Fits on changed changes [k, H], those of the cases whose labels are known; told whether the fit is the last."""
    honest = estimators.fit

    def during(size: float) -> AbstractContextManager[Any]:
        def fit(table: Cases, truth: Floats, *more: Any) -> Any:
            known, made = ~np.isnan(truth).any(axis=1), truth.copy()
            last = bool(known.sum() > len(known) - 12)
            anchor = table.anchor[known, None]
            made[known] = anchor + change(truth[known] - anchor, size, last)
            return honest(table, made, *more)

        return patch.object(estimators, "fit", fit)

    return during


def shuffled(changes: Floats, size: float, _: bool) -> Floats:
    """A share of `size` of the labels stands at other cases."""
    rng = np.random.default_rng(len(changes))
    chosen = np.flatnonzero(rng.random(len(changes)) < size)
    changes[chosen] = changes[rng.permutation(chosen)]
    return changes


def shuffled_at_one_horizon(changes: Floats, size: float, last: bool) -> Floats:
    changes[:, 1] = size * shuffled(changes[:, 1:].copy(), 1, last)[:, 0]
    return changes


def wild(changes: Floats, size: float, last: bool) -> Floats:
    """The last fit alone, which no backtest sees, learns changes `size` times as large."""
    return changes * size if last else changes


def wild_at_one_horizon(changes: Floats, size: float, last: bool) -> Floats:
    changes[:, 1] = wild(changes[:, 1], size, last)
    return changes


def unseeded(changes: Floats, size: float, _: bool) -> Floats:
    return changes + size * np.random.default_rng().normal(size=changes.shape)


def collapsed(size: float) -> AbstractContextManager[Any]:
    """Where the target stands high, forecasts are off by `size` times its usual monthly change, up or down in turn."""
    honest = estimators.Fitted.predict

    def predict(self: estimators.Fitted, inputs: Floats) -> Floats:
        high = inputs[:, :1] > 10.2
        return honest(self, inputs) + np.where(high, size * 0.2 * np.sign(np.sin(100 * inputs[:, :1])), 0)

    return patch.object(estimators.Fitted, "predict", predict)


def narrow(size: float) -> AbstractContextManager[Any]:
    honest = backtest._intervals
    return patch.object(backtest, "_intervals", lambda *asked: size * honest(*asked))


# ---- The graph that came out ----


def edited(change: Callable[[Any, float], None]) -> Callable[[Candidate, float], bytes]:
    def after(made: Candidate, size: float) -> bytes:
        graph = onnx.load_from_string(made.graph)
        change(graph.graph, size)
        return bytes(graph.SerializeToString())

    return after


def swapped(graph: Any, size: float) -> None:
    """Two columns change places on their way into the estimators."""
    places = next(one for one in graph.initializer if one.name == "places")
    order = numpy_helper.to_array(places).copy()
    order[[0, int(size)]] = order[[int(size), 0]]
    places.CopyFrom(numpy_helper.from_array(order, "places"))


def other_weight(graph: Any, size: float) -> None:
    """Forecasts are `size` of the target's unit too high."""
    graph.node.append(helper.make_node("Add", ["forecast_", "shift"], ["forecast"]))
    for node in list(graph.node)[:-1]:
        node.output[:] = ["forecast_" if name == "forecast" else name for name in node.output]
    graph.initializer.append(numpy_helper.from_array(np.array([size]), "shift"))


def single(graph: Any, _: float) -> None:
    """It wants float32, as many exports do."""
    graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        node.input[:] = ["wide" if name == "features" else name for name in node.input]
    graph.node.insert(0, helper.make_node("Cast", ["features"], ["wide"], to=TensorProto.DOUBLE))


def renamed(graph: Any, _: float) -> None:
    graph.node.append(helper.make_node("Identity", ["forecast"], ["prediction"]))
    graph.output[0].name = "prediction"


def wider(graph: Any, size: float) -> None:
    graph.input[0].type.tensor_type.shape.dim[1].dim_value += int(size)


def heavy(graph: Any, size: float) -> None:
    graph.initializer.append(numpy_helper.from_array(np.zeros(int(size * 1e6)), "ballast"))


def slower(made: Candidate, size: float) -> bytes:
    """The same answers, `size` times as slow: nodes that add nothing, as many as that takes on this machine."""
    for count in (8, 16, 32, 64, 128, 256, 512, 1024, 2048):
        graph = onnx.load_from_string(made.graph)
        for number in range(count):
            graph.graph.node.append(helper.make_node("Sin", [f"idle{number - 1}" if number else "features"],
                                                     [f"idle{number}"]))  # fmt: skip
        graph.graph.node.append(helper.make_node("ReduceSum", [f"idle{count - 1}"], ["idle"], keepdims=1))
        graph.graph.node.append(helper.make_node("Mul", ["idle", "nothing"], ["none"]))
        graph.graph.initializer.append(numpy_helper.from_array(np.zeros(1), "nothing"))
        for node in graph.graph.node:
            node.output[:] = ["forecast_" if name == "forecast" else name for name in node.output]
        graph.graph.node.append(helper.make_node("Add", ["forecast_", "none"], ["forecast"]))
        content = bytes(graph.SerializeToString())
        both = [artifact.session(one) for one in (content, made.graph)]
        own, plain = probes._medians(both, made.rows[-1:])
        if own >= size * plain:
            break
    return content


# ---- What serving reads ----


def scaled(world: World, size: float) -> World:
    return replace(world, rows=world.rows | {"SURVEY": [(d, k, v and v * size) for d, k, v in world.rows["SURVEY"]]})


def reordered(world: World, _: float) -> World:
    feature = world.contract.feature
    return replace(
        world, contract=world.contract.model_copy(update={"feature": (feature[1], feature[0], *feature[2:])})
    )


def rounded(world: World, size: float) -> World:
    rows = {name: [(d, k, v and round(v, int(size))) for d, k, v in one] for name, one in world.rows.items()}
    return replace(world, rows=rows)


FAULTS = {
    "values known before their release": Fault("leak", (31, 93), code(early)),
    "labels of the future": Fault("leak", (100, 400), code(foreseen)),
    "target in disguise among the inputs": Fault("too_good", (0.01, 0.03), told(future)),
    "columns swapped in the graph": Fault("onnx_parity", (3, 5), model(edited(swapped))),
    "graph off by a little": Fault("onnx_parity", (0.001, 0.1), model(edited(other_weight))),
    "graph of another dtype": Fault("signature", (1,), model(edited(single))),
    "graph with another output": Fault("signature", (1,), model(edited(renamed))),
    "graph of another width": Fault("signature", (1, -1), model(edited(wider))),
    "graph too large": Fault("size", (3, 5), model(edited(heavy))),
    "graph several times slower": Fault("latency", (3, 5), model(slower)),
    "unit changed in the newest target": Fault("in_range", (100, 10, 0.01), held(other_unit("TARGET"))),
    "unit changed in the newest index": Fault("in_range", (1000, 10, 0.01), held(other_unit("INDEX"))),
    "newest values of two series exchanged": Fault("in_range", (1, 2), held(exchanged)),
    "a driver no longer told": Fault("fresh", (3, 6, 12), held(stopped("SURVEY"))),
    "burst of missing values": Fault("complete", (5, 8, 12), held(burst)),
    "unit changed in serving": Fault("skew", (100, 0.1), serving(scaled)),
    "columns swapped in serving": Fault("skew", (1,), serving(reordered)),
    "serving rounds": Fault("skew", (3, 6), serving(rounded)),
    "shuffled labels": Fault("better_than_last_value", (0.9, 1), code(relabelled(shuffled))),
    "nothing but noise declared": Fault("better_than_ar", (4, 12), powerless),
    "one horizon learns nothing": Fault("rmse_ratio_h3", (2, 3), code(relabelled(shuffled_at_one_horizon))),
    "collapse where the target is high": Fault("slice_level_high", (2, 3), code(collapsed)),
    "drivers change sign": Fault("slice_period3", (2, 4), told(turned)),
    "intervals too narrow": Fault("coverage_0.8", (0.3, 0.4, 0.5), code(narrow)),
    "too few origins": Fault("evidence", (40, 80), held(short)),
    "fits differ": Fault("determinism", (1e-9, 1e-3), code(relabelled(unseeded))),
    "twin inputs without penalty": Fault("perturbation", (0.01, 0.001), unpenalized),
    "direction declared wrongly, up": Fault("directions", (1,), held(backwards("RATE", "up"))),
    "direction declared wrongly, down": Fault("directions", (1,), held(backwards("SURVEY", "down"))),
    "noise features": Fault("useless", (20, 30), noisy),
    "worse than the champion": Fault("champion", (1,), held(without("SURVEY"))),
    "half the labels shuffled": Fault("champion", (0.5, 0.7), code(relabelled(shuffled))),
    "wild change from the champion": Fault("change", (3, -1), code(relabelled(wild))),
    "wild change at one horizon": Fault("change", (3, -1), code(relabelled(wild_at_one_horizon))),
}
