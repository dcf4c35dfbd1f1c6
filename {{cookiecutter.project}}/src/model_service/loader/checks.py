"""What a cell and a load must satisfy; what does not is quarantined, or blocks, marks or warns."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg

from model_service import periods
from model_service.contract import Action, Check, Contract, Limit, Parts, Series
from model_service.loader import VALUE, Cell, Reject, batches
from model_service.periods import instant, microseconds
from model_service.store.connection import Connection
from model_service.store.observations import Cells

Mask = npt.NDArray[np.bool_]
DAY = 86_400_000_000
TIMEOUT_SECONDS = 30.0  # of a check in SQL; then it counts as failed
SHOWN = 3  # offending rows of it in the detail
SHOWN_RAW = 1000  # characters of a refused cell

# What was known at %(known)s. A condition on `series` goes down to the index: the name is among the distinct columns.
LATEST = """
WITH held AS NOT MATERIALIZED (
    SELECT DISTINCT ON (o.series_id, n.name, o.valid_time)
           o.series_id, n.name AS series, o.valid_time, o.known_from, o.load_id, o.value, o.state
    FROM observation o JOIN series n USING (series_id) WHERE o.known_from <= %(known)s
    ORDER BY o.series_id, n.name, o.valid_time, o.known_from DESC, o.load_id DESC
), latest AS NOT MATERIALIZED (
    SELECT series_id, series, valid_time, known_from, load_id, value FROM held WHERE state = 0
)"""
# A series' figures. A change is judged where the load had a hand in it; the usual one is the median of all but noughts.
FIGURES = f"""
{LATEST}, steps AS (
    SELECT series, valid_time, value, row_number() OVER past AS number, value - lag(value) OVER past AS step,
           %(load)s::bigint IS NULL OR %(load)s IN (load_id, lag(load_id) OVER past) AS ours
    FROM latest WHERE series = ANY(%(names)s) WINDOW past AS (PARTITION BY series_id ORDER BY valid_time)
), revised AS (
    SELECT l.series, percentile_cont(0.5) WITHIN GROUP (ORDER BY abs(l.value - p.value)) AS revision
    FROM latest l JOIN LATERAL (
        SELECT p.value FROM observation p WHERE p.series_id = l.series_id AND p.valid_time = l.valid_time
        AND (p.known_from, p.load_id) < (l.known_from, l.load_id) ORDER BY p.known_from DESC, p.load_id DESC LIMIT 1) p
        ON p.value IS NOT NULL
    WHERE l.series = ANY(%(shift)s) AND l.load_id = %(load)s GROUP BY 1
)
SELECT s.series, min(valid_time), max(valid_time), count(*),
       percentile_cont(0.5) WITHIN GROUP (ORDER BY nullif(abs(step), 0)),
       (array_agg(step ORDER BY abs(step) DESC) FILTER (WHERE ours AND step IS NOT NULL))[1],
       (array_agg(valid_time ORDER BY abs(step) DESC) FILTER (WHERE ours AND step IS NOT NULL))[1],
       count(*) + 1 - coalesce(max(number) FILTER (WHERE step <> 0), 1), max(revision)
FROM steps s LEFT JOIN revised r USING (series) GROUP BY 1 HAVING bool_or(ours) ORDER BY 1
"""  # noqa: S608
SUMS = f"""
{LATEST}
SELECT count(*) OVER (), valid_time, whole, parts FROM (
    SELECT valid_time, sum(value) FILTER (WHERE series = %(whole)s) AS whole,
           sum(value) FILTER (WHERE series <> %(whole)s) AS parts
    FROM latest WHERE series = ANY(%(names)s) GROUP BY 1
    HAVING count(*) = cardinality(%(names)s) AND (%(load)s::bigint IS NULL OR bool_or(load_id = %(load)s))) s
ORDER BY abs(whole - parts) DESC LIMIT 1
"""  # noqa: S608


@dataclass(frozen=True)
class Result:
    """One batch check: what was found, and what follows when it is not `ok`."""

    rule: str
    subject: str
    action: Action
    ok: bool
    figure: float | None
    bound: float | None
    detail: str


@dataclass(frozen=True)
class Rule:
    """A rule for cells: which of them break it, and how one of them does."""

    name: str
    broken: Callable[[Cells], Mask]
    says: Callable[[np.void], str]


def check_cells(
    records: Iterable[Cell | Reject], ids: Mapping[str, int], series: Mapping[str, Series], now: datetime
) -> Iterator[tuple[Cells, list[Reject]]]:
    """The records in batches, by column; cells that break a row rule become Rejects. `now` is when they were read."""
    names = {number: name for name, number in ids.items()}
    declared = {number: series[name] for number, name in names.items() if name in series}
    rules = [_future(now), *_range(declared), *_allowed(declared)]
    for cells, raws, rejects in batches(records, ids, now):
        good = np.ones(len(cells), bool)
        for rule in rules:
            broken = good & rule.broken(cells)
            rejects += [_reject(cells[at], raws[at], names, rule) for at in np.flatnonzero(broken)]
            good &= ~broken
        yield cells if good.all() else cells[good], rejects


def as_written(rejects: list[Reject], records: Iterable[Cell | Reject]) -> Iterator[Reject]:
    """The same, each with what the provider wrote where the records say it."""
    told = {(one.line, one.series): one.raw for one in rejects}
    for one in records:
        if isinstance(one, Cell) and one.raw is not None and (one.line, one.series) in told:
            told[one.line, one.series] = str(one.raw)[:SHOWN_RAW]
    yield from (replace(one, raw=told[one.line, one.series]) for one in rejects)


def rules_of(series: Series) -> dict[str, Any]:
    """What of a series' declaration decides which of its cells are good: kept with a load, to read it again alike."""
    return series.model_dump(mode="json", exclude_unset=True, include={"frequency", "range", "allowed"})


def check_load(
    connection: Connection,
    contract: Contract,
    dataset: str,
    load_id: int,
    landed: Mapping[str, int],
    known: datetime | None,
) -> list[Result]:
    """The checks of the whole load, on what is known at `known`, the latest moment that it speaks of."""
    held = sum(landed[name] for name in ("changed", "same", "deleted", "conflict", "vanished"))
    results = [_vanished(landed["vanished"], held, contract.source[dataset].max_vanished, dataset)]
    if known is not None and landed["new"] + landed["changed"] + landed["deleted"] + landed["vanished"]:
        results += run_checks(connection, contract, contract.of_source(dataset), known, load_id)
    return results


def run_checks(
    connection: Connection,
    contract: Contract,
    series: Mapping[str, Series],
    known: datetime | str = "infinity",
    load_id: int | None = None,
) -> list[Result]:
    """Checks of `series`, of sums, and in SQL, on what is known at `known`: all of it, or what a load touched."""
    found: list[Result] = []
    about = {"known": known, "load": load_id}
    if names := [name for name, one in series.items() if one.jump or one.flat or one.shift or one.max_missing]:
        asked = about | {"names": names, "shift": [name for name in names if series[name].shift]}
        for name, *figures in connection.execute(FIGURES, asked).fetchall():
            found += _series(name, series[name], *figures)
    for name, one in contract.series.items():
        if one.parts and not series.keys().isdisjoint([name, *one.parts.series]):
            found += _sum(connection, name, one.parts, about)
    return found + [_sql(connection, check, known) for check in contract.check]


def _vanished(count: int, held: int, limit: float, dataset: str) -> Result:
    """Whether a complete payload lacks more than `limit` of what was held: then it is rather the payload that lacks."""
    share = count / max(held, 1)
    says = f"{count:,} cells held before are not in the payload, {share:.1%} of them (max_vanished = {limit:.1%})"
    return Result("max_vanished", dataset, "block", share <= limit, share, limit, says)


def _future(now: datetime) -> Rule:
    late = microseconds(now) + DAY

    def says(cell: np.void) -> str:
        valid_time, known = instant(int(cell["valid_time"])), instant(int(cell["known_from"]))
        return f"period {valid_time:%Y-%m-%d} known from {known:%Y-%m-%d}, loaded {now:%Y-%m-%d}"

    def broken(cells: Cells) -> Mask:
        return np.asarray((cells["valid_time"] > cells["known_from"]) | (cells["known_from"] > late))

    return Rule("future", broken, says)


def _range(declared: Mapping[int, Series]) -> list[Rule]:
    bounds = np.full((2, max(declared, default=0) + 1), [[-np.inf], [np.inf]])
    for number, one in declared.items():
        bounds[:, number] = one.range or bounds[:, number]

    def broken(cells: Cells) -> Mask:
        low, high = bounds[:, cells["series_id"]]
        return np.asarray((cells["value"] < low) | (cells["value"] > high))  # neither is true of NaN: no value

    def says(cell: np.void) -> str:
        low, high = bounds[:, cell["series_id"]]
        return f"{cell['value']:g} is outside the range [{low:g}, {high:g}]"

    return [Rule("range", broken, says)] if np.isfinite(bounds).any() else []


def _allowed(declared: Mapping[int, Series]) -> list[Rule]:
    lists = {number: one.allowed for number, one in declared.items() if one.allowed}

    def broken(cells: Cells) -> Mask:
        found = np.zeros(len(cells), bool)
        for number, good in lists.items():
            found |= (cells["series_id"] == number) & (cells["state"] == VALUE) & ~np.isin(cells["value"], good)
        return found

    def says(cell: np.void) -> str:
        good = ", ".join(f"{one:g}" for one in lists[int(cell["series_id"])])
        return f"{cell['value']:g} is not among the allowed values {good}"

    return [Rule("allowed", broken, says)] if lists else []


def _reject(cell: np.void, raw: Any, names: Mapping[int, str], rule: Rule) -> Reject:
    name, valid_time = names[int(cell["series_id"])], instant(int(cell["valid_time"]))
    text = str(float(cell["value"]) if raw is None else raw)[:SHOWN_RAW]
    return Reject(name, int(cell["line"]), text, rule.name, rule.says(cell), valid_time)


def _series(
    name: str,
    declared: Series,
    first: datetime,
    last: datetime,
    count: int,
    usual: float | None,
    step: float | None,
    at: datetime | None,
    alike: int,
    revision: float | None,
) -> Iterator[Result]:
    """usual: median change, None where it never changed. step: the largest change, at the period `at`."""

    def result(rule: str, limit: Limit, ok: bool, figure: float, says: str) -> Result:
        return Result(rule, name, limit.action, ok, figure, limit.limit, f"{says} ({rule} = {limit.limit:g})")

    if declared.jump and usual and step is not None and at is not None:
        times = abs(step) / usual
        says = f"changes by {step:g} in {at:%Y-%m-%d}, {times:.1f} times its usual {usual:g}"
        yield result("jump", declared.jump, times <= declared.jump.limit, times, says)
    if declared.flat:
        says = f"the newest {alike} values are the same, up to {last:%Y-%m-%d}"
        yield result("flat", declared.flat, alike < declared.flat.limit, alike, says)
    if declared.shift and usual and revision is not None:
        times = revision / usual
        says = f"revised by {revision:g} in the median, {times:.1f} times its usual change of {usual:g}"
        yield result("shift", declared.shift, times <= declared.shift.limit, times, says)
    if declared.max_missing:
        due = 1 + periods.ordinal(declared.frequency, last) - periods.ordinal(declared.frequency, first)
        says = f"{due - count} of {due} periods from {first:%Y-%m-%d} to {last:%Y-%m-%d} have no value"
        share = 1 - count / due
        yield result("max_missing", declared.max_missing, share <= declared.max_missing.limit, share, says)


def _sum(connection: Connection, whole: str, parts: Parts, about: Mapping[str, Any]) -> Iterator[Result]:
    asked = {**about, "whole": whole, "names": [whole, *parts.series]}
    for count, valid_time, total, found in connection.execute(SUMS, asked).fetchall():
        gap, names = abs(total - found), " + ".join(parts.series)
        says = f"{total:g} in {valid_time:%Y-%m-%d}, {names} = {found:g}: off by {gap:g} at most, of {count} periods"
        yield Result("parts", whole, parts.action, gap <= parts.tolerance, gap, parts.tolerance, says)


def _sql(connection: Connection, check: Check, known: datetime | str) -> Result:
    """Runs as whoever is connected, but reads only, and not for ever; what it did to the session is rolled back."""
    offending = check.sql.strip().rstrip(";").replace("%", "%%")
    asked = f"{LATEST} SELECT count(*) OVER (), o.* FROM (\n{offending}\n) o LIMIT {SHOWN}"  # noqa: S608
    try:
        with connection.transaction(force_rollback=True):
            connection.execute("SET LOCAL transaction_read_only = on")
            connection.execute(f"SET LOCAL statement_timeout = {TIMEOUT_SECONDS * 1000:.0f}")
            rows = connection.execute(asked, {"known": known}).fetchall()
    except psycopg.Error as error:
        if connection.broken:
            raise
        says = f"cannot be judged: {str(error).splitlines()[0]}"
        return Result("check", check.name, check.action, False, None, 0, says)
    shown = "; ".join(", ".join(map(str, row[1:])) for row in rows)
    count = rows[0][0] if rows else 0
    return Result("check", check.name, check.action, not rows, count, 0, f"{count} offending rows: {shown}"[:300])
