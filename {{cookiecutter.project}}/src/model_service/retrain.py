"""`train --if-needed`: is there a reason to train again? What a schedule asks."""

import json
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np

from model_service import features, forecasting, live, registry
from model_service.artifact import Model, trained_at
from model_service.contract import Contract
from model_service.store import read
from model_service.store.connection import Connection

SHOWN = 5  # names in a line

# Loads that brought something of the series which neither the champion nor the last training run, be it one that was
# refused, could read at its pair of clocks.
NEW = """
SELECT count(DISTINCT o.load_id) FROM observation o JOIN series s USING (series_id)
WHERE s.name = ANY(%(names)s) AND o.known_from <= %(now)s AND NOT EXISTS (
    SELECT FROM jsonb_to_recordset(%(read)s::jsonb) AS r (known_at timestamptz, loads jsonb)
    WHERE o.known_from <= r.known_at AND o.load_id <= (r.loads ->> s.dataset)::bigint)
"""
LAST = """
SELECT greatest(m.created_at, r.finished_at), r.known_at, v.loads FROM model m
LEFT JOIN (SELECT * FROM training_run ORDER BY run_id DESC LIMIT 1) r ON true
LEFT JOIN data_version v ON v.version = r.data_version WHERE m.version = %s
"""


@dataclass(frozen=True)
class Reason:
    """One figure against its limit of [retrain]; None where there is none."""

    name: str
    train: bool
    figure: float | None
    limit: float | None
    says: str

    def __str__(self) -> str:
        return f"{'train' if self.train else 'stay '}  {self.name}: {self.says}"


def reasons(contract: Contract, connection: Connection, now: datetime) -> list[Reason]:
    """Every reason, those that do not hold included: one that holds is enough. None does where nothing is new."""
    found = registry.champion(connection)
    if found is None:
        return [Reason("champion", True, None, None, "there is none yet")]
    model = forecasting.as_model(found)
    if says := forecasting.unlike(contract, model.card, model.version):
        return [Reason("declaration", True, None, None, says)]
    since, *run = connection.execute(LAST, [found.version]).fetchone() or (now, None, None)
    trained = [model.card["trained_as_of"]["known_at"], model.card["loads"]]
    pairs = [{"known_at": str(at), "loads": loads} for at, loads in (trained, run) if loads is not None]
    asked = {"names": list(features.reach(contract)), "now": now, "read": json.dumps(pairs)}
    new = (connection.execute(NEW, asked).fetchone() or (0,))[0]
    made = [
        _new(contract, new),
        _drift(contract, connection, model, now),
        _decay(contract, connection, found.version),
        _age(contract, (now - since).total_seconds() / 86_400),
    ]
    return made if new else [replace(one, train=False) for one in made]


def _new(contract: Contract, new: int) -> Reason:
    limit = contract.retrain.new_loads
    says = f"{new} loads brought something of its series since the last training, {limit} are enough"
    if not new:
        says += "; the same data would only give the same model again"
    return Reason("new_data", new >= limit, new, limit, says)


def _drift(contract: Contract, connection: Connection, model: Model, now: datetime) -> Reason:
    """Share of input values since the champion's training that lie outside their range in training.

    Of a value drawn as the n in training were, that is 2 / (n + 1) (Wilks 1941, tolerance limits free of distribution).
    """
    held = forecasting.vintages(contract, connection, now, read.data_version(connection))
    after, limit = trained_at(model.card), contract.retrain.drift_share
    known = [held.at(min(day, now)) for day in held.days() if day > after]
    rows = np.array([one.row for one in known if one]).reshape(-1, len(model.inputs))
    low, high = np.array([model.card["input_range"][name] for name in model.inputs]).T
    outside = (rows < low) | (rows > high)
    share = float(outside.mean()) if rows.size else 0.0
    left = [name for name, any_did in zip(model.inputs, outside.any(axis=0), strict=True) if any_did]
    names = f" ({', '.join([*left[:SHOWN], *['...'] * (len(left) > SHOWN)])})" if left else ""
    says = (
        f"{share:.1%} of the inputs at {len(rows)} times since its training lie outside their range there,"
        f" limit {limit:.1%}{names}"
    )
    return Reason("drift", share > limit, share, limit, says)


def _decay(contract: Contract, connection: Connection, version: int) -> Reason:
    limit, errors = contract.retrain.live_rmse_ratio, live.errors(contract, connection, version)
    worst = max((one["ratio"] for one in errors if one["ratio"] is not None), default=None)
    says = f"of its forecasts too few have met their truth ({', '.join(str(one['n']) for one in errors)})"
    if worst is not None:
        says = f"live RMSE is up to {worst:.2f} times that of the backtest, limit {limit:g}"
    return Reason("decay", worst is not None and worst > limit, worst, limit, says)


def _age(contract: Contract, days: float) -> Reason:
    limit = contract.retrain.age_days
    says = f"the last training was {days:.0f} days ago, limit {limit:g}"
    return Reason("age", days > limit, days, limit, says)
