"""One definition of a feature, for training, backtest and serving: from the vintages of a series to a row of inputs.

At an origin only what was known counts. From the store's first vintage of a series on, that is what the vintages say;
before it, the oldest vintage masked by the declared release lag (pseudo-real-time). Lags count from the last value
known at the origin, so a series that is published later simply reaches less far (ragged edge).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import numpy as np
import numpy.typing as npt

from model_service import periods
from model_service.contract import Contract, Feature, Series

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Snapshot = tuple[int, Floats]
Rows = Mapping[str, list[tuple[int, int, float | None]]]
EPOCH = date(1970, 1, 1)
DAY = 86_400_000_000


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970 of an aware datetime."""
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def moment(origin: int) -> datetime:
    """The aware datetime of microseconds since 1970."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=origin)


def day(number: int) -> date:
    """The date of days since 1970-01-01."""
    return EPOCH + timedelta(days=number)


def midnight(of: date) -> int:
    """Microseconds since 1970 of the day's first instant, UTC."""
    return (of - EPOCH).days * DAY


@dataclass(frozen=True)
class History:
    """One series with all its vintages, in the order (period, known); n rows.

    period: ordinal of the period. known: microseconds since 1970 at which the value became known. released: the same by
    the declared lag alone. value: NaN where missing or deleted.
    """

    period: Integers
    known: Integers
    released: Integers
    value: Floats

    @property
    def first_vintage(self) -> int:
        """Microseconds since 1970 of the oldest vintage; the far future for an empty series."""
        return int(self.known.min()) if self.known.size else np.iinfo(np.int64).max

    def known_rows(self, origin: int) -> Flags:
        """Which rows were known at `origin`, superseded ones included."""
        if origin >= self.first_vintage:
            return np.asarray(self.known <= origin)
        return np.asarray((self.known == self.first_vintage) & (self.released <= origin))

    def at(self, origin: int) -> Snapshot:
        """The series as known at `origin`: ordinal of its first period, and values up to the last known one.

        Gaps are NaN; the last value is never NaN. Empty when nothing was known.
        """
        rows = np.flatnonzero(self.known_rows(origin))
        if not rows.size:
            return 0, np.empty(0)
        newest = np.append(self.period[rows][1:] != self.period[rows][:-1], True)
        rows = rows[newest]
        rows = rows[~np.isnan(self.value[rows])]
        if not rows.size:
            return 0, np.empty(0)
        first = int(self.period[rows[0]])
        values = np.full(int(self.period[rows[-1]]) - first + 1, np.nan)
        values[self.period[rows] - first] = self.value[rows]
        return first, values


def history(series: Series, rows: list[tuple[int, int, float | None]]) -> History:
    """From rows (day of valid_time, microseconds of known_from, value) in the order of `store.read.vintages`."""
    days, known, values = zip(*rows, strict=True) if rows else ((), (), ())
    unique, inverse = np.unique(np.array(days, dtype=np.int64), return_inverse=True)
    ordinals = [periods.ordinal(series.frequency, day(int(number))) for number in unique]
    ends = [midnight(periods.end(series.frequency, one)) + series.release_lag_days * DAY for one in ordinals]
    return History(
        np.array(ordinals, dtype=np.int64)[inverse],
        np.array(known, dtype=np.int64),
        np.array(ends, dtype=np.int64)[inverse],
        np.array(values, dtype=np.float64),  # None becomes NaN
    )


def histories(contract: Contract, rows: Rows) -> dict[str, History]:
    """The series that the contract's target and features need, from rows of `store.read.vintages`."""
    return {name: history(contract.series[name], rows[name]) for name in series_needed(contract)}


def series_needed(contract: Contract) -> list[str]:
    """Names of the series that the inputs and the target are made of."""
    return list(dict.fromkeys([contract.target.series, *(feature.series for feature in contract.feature)]))


def anchor(contract: Contract) -> str:
    """Name of the input that carries the target's last known value; forecasts of changes start from it."""
    return f"{contract.target.series}.level.lag0"


def inputs(contract: Contract) -> list[str]:
    """Names of a model's inputs in order, F of them: the anchor first, then the declared features."""
    return list(dict.fromkeys([anchor(contract), *feature_names(contract)]))


def feature_names(contract: Contract) -> list[str]:
    return [name for feature in contract.feature for name in feature.names]


def row(contract: Contract, known: Mapping[str, Snapshot]) -> Floats:
    """The inputs, float64 [F], from the snapshots of one origin; NaN where too little was known."""
    values = {anchor(contract): nth_last(known[contract.target.series][1], 0)}
    for feature in contract.feature:
        values |= zip(feature.names, _lags(feature, known[feature.series][1]), strict=True)
    return np.array([values[name] for name in inputs(contract)])


def change(transform: str, value: Floats, base: Floats) -> Floats:
    """What is modelled, from a value and the one it starts from: itself, the difference, the log's (NaN of 0)."""
    if transform == "level":
        return value
    if transform == "difference":
        return value - base
    with np.errstate(divide="ignore", invalid="ignore"):
        grown = np.log(value) - np.log(base)
    return np.where(np.isfinite(grown), grown, np.nan)


def undo(transform: str, changed: Floats, base: Floats) -> Floats:
    """The value, from what is modelled and the value it starts from: the inverse of `change`."""
    if transform == "level":
        return changed
    made: Floats = base + changed if transform == "difference" else base * np.exp(changed)
    return made


def nth_last(values: Floats, number: int) -> float:
    """The last value for 0, the one before it for 1, and so on; NaN where there are too few."""
    return float(values[-1 - number]) if values.size > number else float("nan")


def _lags(feature: Feature, values: Floats) -> list[float]:
    reach = max(feature.lags) + feature.span + 1
    tail = np.concatenate([np.full(max(0, reach - values.size), np.nan), values[-reach:]])
    if feature.transform == "deviation":
        windows = np.lib.stride_tricks.sliding_window_view(tail, feature.span)
        transformed = windows[:, -1] - windows.mean(axis=1)
    else:
        transformed = change(feature.transform, tail[feature.span :], tail[: -feature.span])
    return [nth_last(transformed, lag) for lag in feature.lags]
