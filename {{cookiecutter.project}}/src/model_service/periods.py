"""Calendar periods as whole numbers: the day, week, month, quarter or year that a date lies in.

Ordinals of one frequency are consecutive, so periods are compared, counted and shifted by plain arithmetic.
Weeks start on Monday. An unknown frequency is a ValueError.
"""

from datetime import date

FREQUENCIES = ("day", "week", "month", "quarter", "year")  # from fine to coarse

_SEASON = {"day": 7, "week": 52, "month": 12, "quarter": 4, "year": 1}
_MONTHS = {"month": 1, "quarter": 3, "year": 12}


def ordinal(frequency: str, day: date) -> int:
    """Number of the period that `day` lies in."""
    if frequency == "day":
        return day.toordinal()
    if frequency == "week":
        return (day.toordinal() - 1) // 7  # 0001-01-01 was a Monday
    return (day.year * 12 + day.month - 1) // _months(frequency)


def date_of(frequency: str, number: int) -> date:
    """First day of the period `number`. Raises ValueError outside the years 1 to 9999."""
    if frequency == "day":
        return date.fromordinal(number)
    if frequency == "week":
        return date.fromordinal(number * 7 + 1)
    year, month = divmod(number * _months(frequency), 12)
    return date(year, month + 1, 1)


def start(frequency: str, day: date) -> date:
    """First day of the period that `day` lies in."""
    return date_of(frequency, ordinal(frequency, day))


def end(frequency: str, number: int) -> date:
    """First day after the period `number`."""
    return date_of(frequency, number + 1)


def season(frequency: str) -> int:
    """Periods after which the calendar repeats: a year of them, a week of days."""
    if frequency not in _SEASON:
        raise _unknown(frequency)
    return _SEASON[frequency]


def _months(frequency: str) -> int:
    if frequency not in _MONTHS:
        raise _unknown(frequency)
    return _MONTHS[frequency]


def _unknown(frequency: str) -> ValueError:
    return ValueError(f"unknown frequency {frequency!r} (known: {', '.join(FREQUENCIES)})")
