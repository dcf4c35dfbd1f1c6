"""Dates as providers write them: strptime's directives, and %q for the quarter (2016-Q2 is %Y-Q%q).

A text may name a day, a week (%G-W%V), a month, a quarter or a year; it is UTC unless it says otherwise (%z).
"""

import re
from contextlib import suppress
from datetime import UTC, date, datetime, time
from functools import lru_cache

from model_service import periods


def checked(format: str) -> str:
    """`format`, or ValueError: a directive that strptime does not know, or no year."""
    sample = date(2001, 2, 3).strftime(format.replace("%q", "1"))
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
    number = periods.ordinal(frequency, moment(text, format).date())
    return number, _midnight(periods.date_of(frequency, number))


@lru_cache(maxsize=4096)
def known_from(text: str, format: str) -> datetime:
    """UTC. A day means its 00:00; a week, month, quarter or year the first day after it. Raises ValueError."""
    found, named = moment(text, format), grain(format)
    if named != "day":
        return _midnight(periods.end(named, periods.ordinal(named, found.date())))
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time.min, UTC)
