"""A small made-up world for the gate: monthly series, three of which truly drive the target, and their vintages.

Of the same seed a longer stretch begins as the shorter one does, so a later training sees what an earlier one saw.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import numpy as np
from threadpoolctl import threadpool_limits

from model_service import artifact, digests, features, forecasting, periods, settings
from model_service.arrays import Floats
from model_service.contract import Contract
from model_service.registry import Registered
from model_service.store import read
from model_service.training import cases, report, run
from model_service.training.gate import Rule
from model_service.training.probes import Candidate

Change = Callable[[dict[str, Floats]], dict[str, Floats]]
MONTHS = 330
FIRST = 1990 * 12  # ordinal of the first month
SINCE = 276  # month of the store's first vintage
NOW = 300  # month of the first training
LAG_DAYS = 10
FEATURES: list[dict[str, Any]] = [
    {"series": "TARGET", "transform": "difference", "lags": [0, 1, 2]},
    {"series": "INDEX", "transform": "log_difference"},
    {"series": "INDEX", "transform": "log_difference", "span": 3},
    {"series": "SURVEY", "transform": "level", "lags": [0, 2]},
    {"series": "RATE", "transform": "level"},
]


@dataclass(frozen=True)
class World:
    """What a training sees: a contract, rows as `store.read.vintages` gives them, and the time."""

    contract: Contract
    rows: dict[str, list[tuple[int, int, float | None]]]
    at: datetime


def world(
    seed: int, /, *, later: int = 0, effect: float = 1.0, noise: int = 0, change: Change = dict, **train: Any
) -> World:
    """As of `later` months after the first training.

    effect: of the drivers. noise: series that drive nothing. change: of what the providers tell, series added too.
    """
    made = change(values(seed, effect, noise))
    at = datetime.combine(periods.date_of("month", FIRST + NOW + later), datetime.max.time(), UTC) + timedelta(days=19)
    rows = {name: vintages_of(series, seed + place, at) for place, (name, series) in enumerate(made.items())}
    return World(contract(list(made), **train), rows, at)


def values(seed: int, effect: float, noise: int) -> dict[str, Floats]:
    """float64 [MONTHS] a series."""

    def walk(shock: Floats, memory: float) -> Floats:
        made = np.zeros(MONTHS)
        for month in range(1, MONTHS):
            made[month] = memory * made[month - 1] + shock[month]
        return made

    shocks = np.random.default_rng([seed, 1]).normal(size=(MONTHS, 4)).T
    growth, survey, rate = (walk(shock, memory) for shock, memory in zip(shocks[1:], (0.8, 0.85, 0.9), strict=True))
    target = np.full(MONTHS, 10.0)
    for month in range(2, MONTHS):
        pushed = effect * (0.05 * growth[month - 1] + 0.05 * survey[month - 1] - 0.04 * rate[month - 1])
        momentum = 0.3 * (target[month - 1] - target[month - 2]) - 0.02 * (target[month - 1] - 10)
        target[month] = target[month - 1] + momentum + pushed + 0.12 * shocks[0, month]
    others = np.random.default_rng([seed, 2]).normal(size=(noise, MONTHS))
    return {
        "TARGET": target,
        "INDEX": 100 * np.exp(0.003 * growth.cumsum()),
        "SURVEY": 10 * survey,
        "RATE": 3 + rate,
        **{f"NOISE{number}": walk(one, 0.5) for number, one in enumerate(others)},
    }


def vintages_of(series: Floats, seed: int, at: datetime) -> list[tuple[int, int, float | None]]:
    """Each value known since its release, not before the store's first vintage; then revised slightly a month later."""
    start = features.midnight(periods.date_of("month", FIRST + SINCE)) + 14 * features.DAY
    first = series + 0.05 * np.diff(series).std() * np.random.default_rng([seed, 3]).normal(size=MONTHS)
    rows: list[tuple[int, int, float | None]] = []
    for month in range(MONTHS):
        day = periods.date_of("month", FIRST + month)
        released = features.midnight(periods.end("month", FIRST + month)) + LAG_DAYS * features.DAY
        told = [(max(start, released + 31 * features.DAY), float(series[month]))]
        if told[0][0] > start:
            told.insert(0, (max(start, released), float(first[month])))
        rows += [((day - features.EPOCH).days, known, value) for known, value in told]
    return [row for row in rows if row[1] <= periods.microseconds(at)]


def contract(names: list[str], **train: Any) -> Contract:
    declared = {"source": "world", "frequency": "month", "unit": "percent", "release_lag_days": LAG_DAYS}
    more = [{"series": name, "transform": "level"} for name in names[4:]]
    return Contract.model_validate({
        "service": {"name": "world"},
        "image": {"repository": "world", "base": "python"},
        "source": {"world": {"kind": "csv"}},
        "series": dict.fromkeys(names, declared),
        "target": {"series": "TARGET", "transform": "difference", "horizons": [1, 3]},
        "feature": [*FEATURES, *more],
        "train": {"estimator": "ridge", "first_origin": "2001-01-01", "seed": 1, **train},
    })  # fmt: skip


def only(world: World, *, without: str) -> World:
    """The same, but the inputs of one series are not declared."""
    kept = tuple(one for one in world.contract.feature if without not in one.names[0])
    return replace(world, contract=world.contract.model_copy(update={"feature": kept}))


def candidate(world: World) -> Candidate:
    with threadpool_limits(1):
        return run.candidate(cases(world.contract, world.rows, world.at), lambda _: None)


def judged(made: Candidate, champion: Registered | None, serving: World) -> dict[str, Rule]:
    """The gate's rules by name, as a training with a database would have them; serving: what that reads."""
    with threadpool_limits(1):
        rules = [*run.data_rules(made, served(serving), lambda _: None), *run.champion_rules(made, champion)]
    return {rule.name: rule for rule in rules}


def served(world: World) -> Callable[[datetime], Floats]:
    """Serving's path to its inputs, over the world's rows in place of a store."""
    nothing: Any = None

    def stored(_: Any, names: Any, at: datetime, __: Any) -> dict[str, list[tuple[int, int, float | None]]]:
        end = periods.microseconds(at)
        return {name: [row for row in world.rows[name] if row[1] <= end] for name in names}

    def serve(at: datetime) -> Floats:
        with patch.object(read, "vintages", stored):
            return forecasting.known_inputs(world.contract, nothing, at, version()).row

    return serve


def version() -> read.DataVersion:
    return read.DataVersion("sha256:world", {"world": 1})


def registered(world: World, made: Candidate) -> Registered:
    """The candidate as the registry would hold it."""
    card = report.card(made.tested, [], settings.root(), world.at, world.at, version())
    files = report.files(card, made)
    return Registered(1, digests.digest(artifact.sha256sums(files)), files)
