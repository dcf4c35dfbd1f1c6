"""One definition of a feature, for training, backtest and serving: from the vintages of series to rows of inputs.

At an origin only what was known counts. From the store's first vintage of a series on, that is what the vintages say;
before it, the oldest vintage masked by the declared release lag (pseudo-real-time). Lags count from the last value
known at the origin, so a series that is published later simply reaches less far (ragged edge).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pkgutil import resolve_name

import numpy as np

from model_service import periods
from model_service.arrays import Flags, Floats, Integers
from model_service.contract import Contract, Series
from model_service.errors import ServiceError
from model_service.inputs import Feature

Snapshot = tuple[int, Floats]
Rows = Mapping[str, list[tuple[int, int, float | None]]]
EPOCH = date(1970, 1, 1)
DAY = 86_400_000_000
CELLS = 500_000  # origins times rows that are looked at in one go


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
    the declared lag alone. value: NaN where missing or deleted. by_day: days without a value are no gaps.
    """

    period: Integers
    known: Integers
    released: Integers
    value: Floats
    by_day: bool = False

    @property
    def first_vintage(self) -> int:
        """Microseconds since 1970 of the oldest vintage; the far future for an empty series."""
        return int(self.known.min()) if self.known.size else np.iinfo(np.int64).max

    def known_rows(self, origin: int | Integers) -> Flags:
        """Which rows [n] were known at `origin`, superseded ones included; of origins [m, 1]: [m, n]."""
        first = self.first_vintage
        masked = (self.known == first) & (self.released <= origin)
        return np.where(origin >= np.int64(first), self.known <= origin, masked)

    def at(self, origin: int) -> Snapshot:
        """The series as known at `origin`: ordinal of its first period, and values up to the last known one.

        Gaps are NaN; the last value is never NaN. Empty when nothing was known.
        """
        rows = np.flatnonzero(self.known_rows(origin))
        period, newest = self.period[rows], np.ones(rows.size, dtype=bool)
        newest[:-1] = period[1:] != period[:-1]
        found = self.value[rows]
        newest &= ~np.isnan(found)
        period = period[newest]
        if not period.size:
            return 0, np.empty(0)
        first = int(period[0])
        values = np.full(int(period[-1]) - first + 1, np.nan)
        values[period - first] = found[newest]
        return first, values

    def up_to(self, origin: int) -> "History":
        """The periods up to the last known at `origin`, with all their vintages, later ones too."""
        first, values = self.at(origin)
        kept = self.period < first + values.size
        return replace(self, **{part: getattr(self, part)[kept] for part in ("period", "known", "released", "value")})

    def last_values(self, origins: Sequence[int], many: int) -> Floats:
        """float64 [many, n]: the last value known at each of n origins, the one a period before it, and so on.

        Of a series by day those before it count that there are: markets close, and a week has seven days.
        """
        found = np.full((many, len(origins)), np.nan)
        some = max(1, CELLS // max(1, self.period.size))  # so that memory stays flat
        for begin in range(0, len(origins), some):
            known = self.known_rows(np.array(origins[begin : begin + some])[:, None])
            known[:, :-1] &= ~known[:, 1:] | (self.period[1:] != self.period[:-1])  # the newest of each period
            known &= ~np.isnan(self.value)
            if self.by_day:
                back = known[:, ::-1].cumsum(axis=1)[:, ::-1] - 1
            else:
                back = np.where(known, self.period, 0).max(axis=1, initial=0, keepdims=True) - self.period
            place, row = np.nonzero(known & (back < many))
            found[back[place, row], begin + place] = self.value[row]
        return found


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
        series.frequency in {"day", "weekday"},
    )


def histories(contract: Contract, rows: Rows) -> dict[str, History]:
    """The series that the contract's target and features need, from rows of `store.read.vintages`."""
    return {name: history(contract.series[name], rows[name]) for name in reach(contract)}


def reach(contract: Contract) -> dict[str, int]:
    """The series that the inputs and the target are made of, and of each how many of its last values the inputs are."""
    found = {contract.target.series: 1}
    for feature in contract.feature:
        found |= {name: max(found.get(name, 0), feature.reach) for name in feature.series}
    return found


def anchor(contract: Contract) -> str:
    """Name of the input that carries the target's last known value; forecasts of changes start from it."""
    return f"{contract.target.series}.level.lag0"


def inputs(contract: Contract) -> list[str]:
    """Names of a model's inputs in order, F of them: the anchor first, then the declared features."""
    return list(dict.fromkeys([anchor(contract), *feature_names(contract)]))


def feature_names(contract: Contract) -> list[str]:
    return [name for feature in contract.feature for name in feature.names]


def rows(contract: Contract, held: Mapping[str, History], origins: Sequence[int]) -> Floats:
    """The inputs at n origins (microseconds since 1970), float64 [n, F]; NaN where too little was known.

    Training, backtest and serving all come here. Each origin is worked out by itself, so one alone gives the same bits.
    Raises ServiceError when a function of one's own fails.
    """
    past = {name: held[name].last_values(origins, many) for name, many in reach(contract).items()}
    columns = {anchor(contract): past[contract.target.series][0]}
    for feature in contract.feature:
        if feature.calendar:
            made = _waves(feature.calendar, contract, held[contract.target.series], origins)
        elif feature.own:
            made = [_by_own(feature, feature.own, [past[name][: feature.window] for name in feature.series])]
        else:
            made = [_transformed(feature, past[feature.series[0]][lag:]) for lag in feature.lags]
        columns |= zip(feature.names, made, strict=True)
    return np.column_stack([columns[name] for name in inputs(contract)])


def apply_transform(transform: str, value: Floats, base: Floats) -> Floats:
    """What is modelled, from a value and the one it starts from: itself, the difference, the log's (NaN of 0)."""
    if transform == "level":
        return value
    if transform == "difference":
        return value - base
    with np.errstate(divide="ignore", invalid="ignore"):
        grown = np.log(value) - np.log(base)
    return np.where(np.isfinite(grown), grown, np.nan)


def invert_transform(transform: str, changed: Floats, base: Floats) -> Floats:
    """The value, from what is modelled and the value it starts from: the inverse of `apply_transform`."""
    if transform == "level":
        return changed
    made: Floats = base + changed if transform == "difference" else base * np.exp(changed)
    return made


def nth_last(values: Floats, number: int) -> float:
    """The last value for 0, the one before it for 1, and so on; NaN where there are too few."""
    return float(values[-1 - number]) if values.size > number else float("nan")


def _transformed(feature: Feature, values: Floats) -> Floats:
    """One input at n origins from `values` [many, n], the newest first."""
    if feature.transform in {"mean", "deviation"}:
        mean: Floats = sum(values[1 : feature.window], start=values[0]) / feature.window
        return mean if feature.transform == "mean" else values[0] - mean
    last: Floats = values[0]
    return last if feature.transform == "level" else apply_transform(feature.transform, last, values[feature.span])


def _waves(cycle: str, contract: Contract, target: History, origins: Sequence[int]) -> list[Floats]:
    """Sine and cosine of the place in the cycle at which the target's last known period begins."""
    angles = []
    for first, values in map(target.at, origins):
        begun = periods.date_of(contract.series[contract.target.series].frequency, first + values.size - 1)
        share = begun.weekday() / 7 if cycle == "week" else (begun.timetuple().tm_yday - 1) / 365.25
        angles.append(2 * math.pi * share)
    return [np.array([wave(angle) for angle in angles]) for wave in (math.sin, math.cos)]


def _by_own(feature: Feature, name: str, values: list[Floats]) -> Floats:
    """What one's own function makes of `values`, one array [window, n] a series, the newest first."""
    function = resolve_name(name)
    series = [np.ascontiguousarray(one[::-1].T) for one in values]
    try:
        return np.array([float(function(*windows)) for windows in zip(*series, strict=True)])
    except Exception as error:
        raise ServiceError(f"feature {feature.names[0]}: {name} failed: {error!r}") from error
