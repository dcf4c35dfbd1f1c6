"""From rows to a model that may be promoted; here the cases to learn from: inputs as they were known at each origin."""

from dataclasses import dataclass
from datetime import datetime

import numpy as np

from model_service import features, periods
from model_service.arrays import Flags, Floats, Integers
from model_service.contract import Contract
from model_service.features import History


@dataclass(frozen=True)
class Cases:
    """n origins, one at the start of each of the target's periods, and the time of the training itself as the last.

    rows, held: what they were read from. inputs: float64 [n, F]. known: n arrays, the target's values known there; by
    day, one without a value has that of the day before it, as baselines count days and markets close.
    origin: microseconds since 1970. last: ordinal of the target's last known period; anchor: the value there.
    real: whether every series was read from a real vintage rather than a masked one.
    """

    contract: Contract
    rows: features.Rows
    held: dict[str, History]
    inputs: Floats
    known: list[Floats]
    origin: Integers
    last: Integers
    anchor: Floats
    real: Flags

    @property
    def complete(self) -> Flags:
        """The origins at which no input is missing."""
        return np.asarray(~np.isnan(self.inputs).any(axis=1))

    @property
    def first_backtest(self) -> int:
        """Index of the first origin of the backtest."""
        return int(np.searchsorted(self.origin, features.midnight(self.contract.train.first_origin)))

    def labels(self, at: int) -> Floats:
        """What the target came to at each horizon, in its unit: float64 [n, H], NaN where not yet known at `at`."""
        first, values = self.held[self.contract.target.series].at(at)
        place = self.last[:, None] + np.array(self.contract.target.horizons)[None, :] - first
        inside = (place >= 0) & (place < values.size)
        found = np.full(place.shape, np.nan)
        found[inside] = values[place[inside]]
        return found


def cases(contract: Contract, rows: features.Rows, until: datetime) -> Cases:
    """Every origin up to `until`, at which something of the target was known."""
    held = features.histories(contract, rows)
    frequency = contract.series[contract.target.series].frequency
    ordinals = held[contract.target.series].period  # some origins after its last one still saw something new
    starts = [
        features.midnight(periods.date_of(frequency, one))
        for one in range(int(ordinals.min()), int(ordinals.max()) + 4)
    ]
    end = periods.microseconds(until)
    origins = [*(start for start in starts if start < end), end]
    seen = [(origin, *held[contract.target.series].at(origin)) for origin in origins]
    seen = [(origin, first, values) for origin, first, values in seen if values.size]
    origin = np.array([origin for origin, _, _ in seen])
    return Cases(
        contract,
        rows,
        held,
        features.rows(contract, held, origin.tolist()),
        [_standing(values) if held[contract.target.series].by_day else values for _, _, values in seen],
        origin,
        np.array([first + values.size - 1 for _, first, values in seen]),
        np.array([values[-1] for _, _, values in seen]),
        origin >= max(one.first_vintage for one in held.values()),
    )


def _standing(values: Floats) -> Floats:
    return values[np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(values.size)))]
