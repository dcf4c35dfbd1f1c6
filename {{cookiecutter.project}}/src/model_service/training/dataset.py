"""Cases to learn from, one an origin: inputs as they were known there, labels as known at a later time."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from model_service import features, periods
from model_service.contract import Contract
from model_service.features import Floats, History, Integers


@dataclass(frozen=True)
class Cases:
    """n origins, one at the start of each of the target's periods, and the time of the training itself as the last.

    origin: microseconds since 1970. inputs: float64 [n, F]. last: ordinal of the last period known of the target.
    anchor: the value there. real: whether every series was read from a real vintage rather than a masked one.
    """

    origin: Integers
    inputs: Floats
    last: Integers
    anchor: Floats
    real: npt.NDArray[np.bool_]
    complete: npt.NDArray[np.bool_]


def cases(contract: Contract, held: Mapping[str, History], until: datetime) -> Cases:
    """Every origin up to `until`, at which something of the target was known."""
    target = held[contract.target.series]  # some origins after its last period still saw something new
    end = features.microseconds(until)
    starts = [_start(target, ordinal) for ordinal in range(int(target.period.min()), int(target.period.max()) + 4)]
    origins = [start for start in starts if start < end] + [end]
    rows = []
    for origin in origins:
        known = {name: one.at(origin) for name, one in held.items()}
        first, values = known[contract.target.series]
        if values.size:
            real = all(origin >= one.first_vintage for one in held.values())
            rows.append((features.row(contract, known), origin, first + values.size - 1, values[-1], real))
    table = np.array([row[0] for row in rows])
    columns = [np.array([row[place] for row in rows]) for place in range(1, 5)]
    return Cases(columns[0], table, columns[1], columns[2], columns[3], ~np.isnan(table).any(axis=1))


def labels(contract: Contract, held: Mapping[str, History], table: Cases, at: int) -> Floats:
    """What the target came to at each horizon, in its unit: float64 [n, H], NaN where not yet known at `at`."""
    first, values = held[contract.target.series].at(at)
    place = table.last[:, None] + np.array(contract.target.horizons)[None, :] - first
    inside = (place >= 0) & (place < values.size)
    found = np.full(place.shape, np.nan)
    found[inside] = values[place[inside]]
    return found


def first_backtest(contract: Contract, table: Cases) -> int:
    """Index of the first origin of the backtest."""
    start = datetime.combine(contract.train.first_origin, datetime.min.time(), UTC)
    return int(np.searchsorted(table.origin, features.microseconds(start)))


def _start(target: History, ordinal: int) -> int:
    day = periods.date_of(target.frequency, ordinal)
    return features.microseconds(datetime.combine(day, datetime.min.time(), UTC))
