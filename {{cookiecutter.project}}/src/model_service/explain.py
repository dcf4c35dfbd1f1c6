"""What each input did to a forecast: contributions that, with the base, sum to what the model's graph answers.

They rest on explain.json, written at training from the fitted estimator: `linear` has a centre and weights a horizon,
`trees` its nodes, `permutation`, for an estimator of one's own, a reference row. All are Shapley values of the modelled
change. In the target's unit they are those times `scale`: 1, or for log_difference the logarithmic mean of base and
forecast, which shares a product out without a rest.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from model_service import features, forecasting
from model_service.arrays import Floats, Integers
from model_service.artifact import Model
from model_service.contract import Contract
from model_service.errors import ServiceError

FILE = "explain.json"
SAYS = {
    "linear": "exact: weight times distance from the mean of the training rows",
    "trees": "path-dependent TreeSHAP, exact: an unknown input follows both branches, by the training rows in each",
    "permutation": "Shapley values of the graph, estimated by 16 orders of the inputs, an unknown one being its mean in"
    " training; their sum is exact",
}
TOLERANCE = 1e-5  # of the graph in single precision against the explanation in double
LARGEST = float(np.finfo(np.float32).max)
ORDERS = 8  # each taken forwards and backwards
STEPS_A_SECOND = 5e7  # of `work`, on a slow core
Changes = tuple[Floats, Floats]  # base [N, H] or [1, H], contributions [N, H, F], of the modelled change


class NotExplained(ServiceError):
    """The model has no explain.json."""


@dataclass(frozen=True)
class Explained:
    """N rows, H horizons, F inputs: value, base and scale [N, H], contributions [N, H, F]; all but scale in the
    target's unit, `value = base + contributions.sum(axis=2)`. contributions / scale: of the modelled change."""

    value: Floats
    base: Floats
    scale: Floats
    contributions: Floats


@dataclass(frozen=True)
class Leaves:
    """The paths of one horizon's trees: L leaves, each bounded by at most D inputs; unused places bound nothing.

    value: [L]. place: input of each bound, [L, D]. low, high: the bound, low < input <= high. share: of the training
    rows that reached the splits on that input, how many went on to the leaf (a product along the path). offset: of all.
    """

    offset: float
    value: Floats
    place: Integers
    low: Floats
    high: Floats
    share: Floats

    @property
    def base(self) -> float:
        """What the trees give on average of the rows that they were fitted on."""
        return self.offset + float(self.value @ self.share.prod(axis=1))

    @property
    def work(self) -> int:
        """Steps of one explanation."""
        return self.place.size * _points(self.place.shape[1])[0].size

    def contributions(self, row: Floats) -> Floats:
        """Shapley values [F] of one row [F].

        A leaf gives input i: value (o_i - s_i) sum over subsets of the others of Shapley's weight times o of those in
        the subset times s of those that are not, where o is 1 if the row keeps the bound. The sum is the integral over
        t from 0 to 1 of the product of t o + (1 - t) s: a polynomial, so a Gauss-Legendre rule with D / 2 points is
        exact. Steps: leaves x depth x depth / 2.
        """
        single = np.clip(row, -LARGEST, LARGEST).astype(np.float32)[self.place]  # as the graph has it
        kept = ((self.low < single) & (single <= self.high)).astype(np.float64)
        total = np.zeros(self.place.shape)
        for point, weight in zip(*_points(self.place.shape[1]), strict=True):
            factor = (1 - point) * self.share + point * kept
            total += (weight * factor.prod(axis=1))[:, None] / factor
        total *= (kept - self.share) * self.value[:, None]
        return np.bincount(self.place.ravel(), total.ravel(), row.size).astype(np.float64, copy=False)


@cache
def _points(depth: int) -> tuple[Floats, Floats]:
    """Points and weights on [0, 1] that integrate a polynomial of a degree below `depth` exactly."""
    points, weights = np.polynomial.legendre.leggauss((depth + 1) // 2)
    return (points + 1) / 2, weights / 2


def leaves(offset: float, nodes: Mapping[str, list[Any]]) -> Leaves:
    """From the nodes of trees, each before its left child and that right after it.

    place: input of the split, -1 of a leaf. right: the other child. number: threshold or value. rows: that reached it.
    """
    place, right = np.array(nodes["place"], np.int64), np.array(nodes["right"], np.int64)
    number, rows = np.array(nodes["number"]), np.array(nodes["rows"], np.float64)
    at = np.array(nodes["roots"], np.int64)  # the nodes of one depth, and what was asked on the way to each
    asked, low, high, share = (np.empty((at.size, 0), kind) for kind in (np.int64, *[np.float64] * 3))
    found: list[tuple[Floats, ...]] = []
    while at.size:
        done = place[at] < 0
        found.append((number[at[done]], asked[done], low[done], high[done], share[done]))
        at, asked, low, high, share = (part[~done] for part in (at, asked, low, high, share))
        known = asked == place[at][:, None]
        where = np.where(known.any(axis=1), known.argmax(axis=1) if known.size else 0, asked.shape[1])
        more = [np.pad(part, ((0, 0), (0, 1)), constant_values=fill)
                for part, fill in ((asked, 0), (low, -np.inf), (high, np.inf), (share, 1.0))]  # fmt: skip
        each, sides = np.arange(at.size), []
        for child, side, meet in ((at + 1, 2, np.minimum), (right[at], 1, np.maximum)):
            there = [part.copy() for part in more]
            there[0][each, where] = place[at]
            there[side][each, where] = meet(there[side][each, where], number[at])
            there[3][each, where] *= rows[child] / rows[at]
            sides.append((child, *there))
        at, asked, low, high, share = (np.concatenate(pair) for pair in zip(*sides, strict=True))
    depth = max((part[1].shape[1] for part in found), default=1) or 1
    padded = [
        np.concatenate([np.pad(part[column], ((0, 0), (0, depth - part[column].shape[1])), constant_values=fill)
                        for part in found])
        for column, fill in ((1, 0), (2, -np.inf), (3, np.inf), (4, 1.0))
    ]  # fmt: skip
    return Leaves(offset, np.concatenate([part[0] for part in found]), *padded)


class Explainer:
    """Explains `model`; `most` rows are to be explained in one request of `seconds`.

    Raises NotExplained, for a model that was trained before there were explanations.
    """

    def __init__(self, model: Model) -> None:
        if model.explain is None:
            raise NotExplained(f"model {model.version} was trained before there were explanations: train it again")
        self.model = model
        made = json.loads(model.explain)
        self.method: str = made["method"]
        self._deviation: float = made["deviation"]
        self._transform: str = model.card["target"]["transform"]
        make: dict[str, Callable[[Any], Callable[[Floats], Changes]]] = {
            "linear": self._linear,
            "trees": self._trees,
            "permutation": self._permutation,
        }
        self._work = 1
        self._changes = make[self.method](made["horizons"])

    def most(self, limit: int, seconds: float) -> int:
        """How many rows may be asked at a time: `limit`, or fewer where the work takes longer."""
        return max(1, min(limit, int(seconds * STEPS_A_SECOND / self._work)))

    def explain(self, rows: Floats) -> Explained:
        """Of inputs float64 [N, F]; raises ServiceError when the explanation is not of this graph."""
        value, anchor = self.model.predict(rows), rows[:, :1]
        with np.errstate(over="ignore", invalid="ignore"):
            base, parts = self._changes(rows)
            total = parts.sum(axis=2)
            start, scale = features.invert_transform(self._transform, base, anchor), np.ones_like(total)
            if self._transform == "log_difference":
                scale = start * np.where(total == 0, 1, np.expm1(total) / np.where(total == 0, 1, total))
            contributions = parts * scale[:, :, None]
            rest = value - contributions.sum(axis=2)
            size = np.maximum(np.abs(contributions).max(axis=2, initial=self._deviation), np.abs(value))
            off = np.abs(rest - start) / size
        if (off[np.isfinite(value) & np.isfinite(rest)] > TOLERANCE).any():  # extreme inputs overflow in the sum
            raise ServiceError(f"the explanation of model {self.model.version} does not fit its graph")
        return Explained(value, rest, scale, contributions)  # the base takes what single precision rounds

    def _linear(self, horizons: list[dict[str, Any]]) -> Callable[[Floats], Changes]:
        base = np.array([[one["base"] for one in horizons]])
        center, weights = (np.array([one[part] for one in horizons]) for part in ("center", "weights"))
        self._work = weights.size
        return lambda rows: (base, (rows[:, None, :] - center) * weights)

    def _trees(self, horizons: list[dict[str, Any]]) -> Callable[[Floats], Changes]:
        made = [leaves(one["offset"], one["nodes"]) for one in horizons]
        base = np.array([[one.base for one in made]])
        self._work = sum(one.work for one in made)
        return lambda rows: (base, np.array([[one.contributions(row) for one in made] for row in rows]))

    def _permutation(self, horizons: list[dict[str, Any]]) -> Callable[[Floats], Changes]:
        reference = np.array(horizons[0]["reference"])
        draws = np.random.default_rng(1)
        orders = [draws.permutation(reference.size) for _ in range(ORDERS)]
        orders += [order[::-1] for order in orders]
        self._work = 100 * len(orders) * reference.size

        def changes(rows: Floats) -> Floats:
            return features.apply_transform(self._transform, self.model.predict(rows), rows[:, :1])

        def one(row: Floats, base: Floats) -> Floats:
            found = np.zeros((base.shape[1], row.size))
            for order in orders:  # from the reference, one input after the other takes the row's value
                steps = np.where(np.tri(row.size, dtype=bool)[:, np.argsort(order)], row, reference)
                found[:, order] += np.diff(changes(steps), axis=0, prepend=base).T
            return found / len(orders)

        def all_of(rows: Floats) -> Changes:
            base = changes(reference[None, :])
            return base, np.array([one(row, base) for row in rows])

        return all_of


def inputs_by_series(contract: Contract) -> dict[str, list[int]]:
    """Places of the inputs made of each series; also `calendar`, and `A+B` of a function of one's own of both."""
    of = {features.anchor(contract): contract.target.series}
    for feature in contract.feature:
        of |= dict.fromkeys(feature.names, "calendar" if feature.calendar else "+".join(feature.series))
    found: dict[str, list[int]] = {}
    for place, name in enumerate(features.inputs(contract)):
        found.setdefault(of[name], []).append(place)
    return found


def by_horizon(model: Model, made: Explained, row: int) -> list[dict[str, Any]]:
    """Of one row, for each of the model's horizons, as it is answered."""
    return [
        {
            "value": value,
            "base": base,
            "scale": scale,
            "contributions": dict(zip(model.inputs, contributions, strict=True)),
        }
        for value, base, scale, contributions in zip(
            *(part[row].tolist() for part in (made.value, made.base, made.scale, made.contributions)), strict=True
        )
    ]


def of_forecast(
    contract: Contract, explainer: Explainer, known: forecasting.KnownInputs, wanted: list[int]
) -> dict[str, Any]:
    """The forecast's answer with what each series did to it in place of its intervals; raises InputsMissing."""
    model = explainer.model
    body = forecasting.answer_from(contract, model, known, wanted)
    made = dict(zip(model.horizons, by_horizon(model, explainer.explain(known.row[None, :]), 0), strict=True))
    places = {name: [model.inputs[place] for place in found] for name, found in inputs_by_series(contract).items()}
    explained = []
    for one in body["forecasts"]:
        part = made[one["horizon"]]
        series = {name: sum(part["contributions"][each] for each in found) for name, found in places.items()}
        explained.append({"horizon": one["horizon"], "valid_time": one["valid_time"], **part, "series": series})
    return {
        **{name: value for name, value in body.items() if name not in {"forecasts", "degraded"}},
        "method": explainer.method,
        "explanations": explained,
    }
