"""Calendar periods as whole numbers, and the dates by which providers name them.

Ordinals of one frequency are consecutive, so periods are compared, counted and shifted by plain arithmetic.
Weeks start on Monday; of weekdays a Friday lasts to Monday. An unknown frequency is a ValueError.

Dates are written with strptime's directives, and %q for the quarter (2016-Q2 is %Y-Q%q). A text may name a day, a week
(%G-W%V), a month, a quarter or a year; it is UTC unless it says otherwise (%z).
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache

FREQUENCIES = ("day", "weekday", "week", "month", "quarter", "half_year", "year")  # from fine to coarse

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_SEASON = {"day": 7, "weekday": 5, "week": 52, "month": 12, "quarter": 4, "half_year": 2, "year": 1}
_YEAR = _SEASON | {"day": 365, "weekday": 261}
_MONTHS = {"month": 1, "quarter": 3, "half_year": 6, "year": 12}


def ordinal(frequency: str, day: date) -> int:
    """Number of the period that `day` lies in."""
    if frequency == "day":
        return day.toordinal()
    if frequency == "weekday":
        return (day.toordinal() - 1) // 7 * 5 + min(day.weekday(), 4)
    if frequency == "week":
        return (day.toordinal() - 1) // 7  # 0001-01-01 was a Monday
    return (day.year * 12 + day.month - 1) // _of(_MONTHS, frequency)


def date_of(frequency: str, number: int) -> date:
    """First day of the period `number`. Raises ValueError outside the years 1 to 9999."""
    if frequency == "day":
        return date.fromordinal(number)
    if frequency == "weekday":
        return date.fromordinal(number // 5 * 7 + number % 5 + 1)
    if frequency == "week":
        return date.fromordinal(number * 7 + 1)
    year, month = divmod(number * _of(_MONTHS, frequency), 12)
    return date(year, month + 1, 1)


def start(frequency: str, day: date) -> date:
    """First day of the period that `day` lies in."""
    return date_of(frequency, ordinal(frequency, day))


def end(frequency: str, number: int) -> date:
    """First day after the period `number`."""
    return date_of(frequency, number + 1)


def season(frequency: str) -> int:
    """Periods after which the calendar repeats: a year of them, a week of days or weekdays."""
    return _of(_SEASON, frequency)


def year(frequency: str) -> int:
    """Whole periods in a year."""
    return _of(_YEAR, frequency)


def _of(periods: Mapping[str, int], frequency: str) -> int:
    if frequency not in periods:
        raise ValueError(f"unknown frequency {frequency!r} (known: {', '.join(FREQUENCIES)})")
    return periods[frequency]


def checked(format: str) -> str:
    """`format`, or ValueError: a directive that strptime does not know, or no year."""
    sample = datetime(2001, 2, 3, tzinfo=UTC).strftime(format.replace("%q", "1"))
    if moment(sample, format).year != 2001:
        raise ValueError(f"{format!r} names no year")
    return format


def grain(format: str) -> str:
    """Frequency of the period that a text in `format` names."""
    used = set(re.findall("%(.)", format.replace("%%", "")))
    if used & set("djcx"):
        return "day"
    if used & set("VUW"):
        return "day" if used & set("uwaA") else "week"
    return "month" if used & set("mbB") else "quarter" if "q" in used else "year"


@lru_cache(maxsize=65_536)
def microseconds(instant: datetime) -> int:
    """Since 1970, of an aware datetime."""
    return (instant - EPOCH) // timedelta(microseconds=1)


def instant(microseconds: int) -> datetime:
    """The aware datetime, UTC, of microseconds since 1970."""
    return EPOCH + timedelta(microseconds=microseconds)


@lru_cache(maxsize=4096)
def moment(text: str, format: str) -> datetime:
    """First moment of what `text` names, on the clock it is written in. Raises ValueError."""
    tries = [(text, format, 0)]
    if "%q" in format:
        tries = [(text, format.replace("%q", str(quarter)), 3 * quarter - 2) for quarter in range(1, 5)]
    elif grain(format) == "week":
        tries = [(f"{text} 1", f"{format} %w", 0)]  # strptime takes a week only with a day of it
    for given, pattern, month in tries:
        with suppress(ValueError):
            found = datetime.strptime(given, pattern)
            return found.replace(month=month) if month else found
    raise ValueError(f"{text!r} is not a date in the format {format!r}")


@lru_cache(maxsize=4096)
def period(text: str, format: str, frequency: str) -> tuple[int, datetime]:
    """(ordinal, first instant in UTC) of the period of `frequency` that a date lies in. Raises ValueError."""
    number = ordinal(frequency, moment(text, format).date())
    return number, _midnight(date_of(frequency, number))


@lru_cache(maxsize=4096)
def known_from(text: str, format: str) -> datetime:
    """UTC. A day means its 00:00; a week, month, quarter or year the first day after it. Raises ValueError."""
    found, named = moment(text, format), grain(format)
    if named != "day":
        return _midnight(end(named, ordinal(named, found.date())))
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time.min, UTC)
