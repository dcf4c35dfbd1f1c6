"""Reads by both clocks, decoded in the client: 20 M rows = 2,000 series x 1,000 periods x 10 vintages.

One series of 730 values and a panel of 100 series x 250 periods: after VACUUM (ANALYZE), right after one more vintage
was loaded, and after what the loader does then by itself. The reference is the same read, decoded alike, of a plain
table that holds current values only, with an index of the same kind; in turn. Writes build/bench/asof.json.

HELD, ONE and PANEL change the number of rows and of reads; --quick is a run to see that it works.
"""

import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import load_report
import load_store
import load_timed
import numpy as np
import psycopg
from model_service.loader import run
from model_service.store import read
from model_service.store.connection import connect

HELD = int(os.environ.get("HELD", "2000000" if load_store.QUICK else "20000000"))
READS = {name: int(os.environ.get(name, default)) for name, default in (("ONE", "300"), ("PANEL", "60"))}
PERIODS = HELD // load_store.SERIES // load_store.VINTAGES
SHAPES = {  # what: series, periods, reads, goal in ms
    "one series of {} values": (1, min(730, PERIODS), READS["ONE"], 5),
    "panel of 100 series x {} periods": (100, min(250, PERIODS), READS["PANEL"], 100),
}
CURRENT = """
SELECT s.name, c.packed FROM series s CROSS JOIN LATERAL (
    SELECT string_agg(timestamptz_send(valid_time) || float8send(value), '' ORDER BY valid_time) AS packed
    FROM current WHERE series_id = s.series_id AND valid_time BETWEEN %s AND %s) c
WHERE s.name = ANY(%s)
"""
Read = Callable[[list[str], datetime, datetime], Any]


def current(connection: psycopg.Connection[Any]) -> Read:
    """The same values from the table of current ones."""

    def get(names: list[str], first: datetime, last: datetime) -> Any:
        rows = connection.execute(CURRENT, [first, last, names], binary=True)
        return {name: np.frombuffer(packed, [("valid_time", ">i8"), ("value", ">f8")]) for name, packed in rows}

    return get


def measure(reads: list[Read], series: int, periods: int, count: int) -> list[list[float]]:
    """Milliseconds of each read, one kind after the other, of other series and periods each time."""
    chosen = random.Random(1)
    found: list[list[float]] = [[] for _ in reads]
    for turn in range(count + 5):
        names = chosen.sample(load_store.names(), series)
        first = load_store.FIRST + timedelta(days=chosen.randrange(PERIODS - periods + 1))
        for one, times in zip(reads, found, strict=True):
            begun = time.perf_counter()
            values = one(names, first, first + timedelta(days=periods - 1))
            if turn >= 5:  # plans are made and kept in the first five
                times.append((time.perf_counter() - begun) * 1e3)
            if [len(values[name]) for name in names] != [periods] * series:
                raise SystemExit(f"{series} series of {periods} periods were asked for, others came")
    return found


def known_then(connection: psycopg.Connection[Any]) -> Read:
    """As of a vintage in the middle, at the newest data version: half of what lies there is read over."""
    known, loads = load_store.vintage(load_store.VINTAGES // 2), read.data_version(connection).loads
    return lambda names, first, last: read.as_of(connection, names, known, loads, first, last)


def compared(url: str, when: str, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    say(when)
    against = "the same read of a plain table of current values"
    for what, (series, periods, count, goal) in SHAPES.items():
        with connect(url) as connection:
            ours, other = measure([known_then(connection), current(connection)], series, periods, count)
        name, bound = f"{what.format(periods)}, {when}", None if when == "right after a load" else goal
        middle = statistics.median(ours), statistics.median(other)
        high = [statistics.quantiles(times, n=20)[-1] for times in (ours, other)]
        yield load_report.row(f"{name}, p50", middle[0], "ms", against, middle[1], bound, least=False)
        yield load_report.row(f"{name}, p95", high[0], "ms", against, high[1])


def settle(url: str) -> list[dict[str, Any]]:
    """What the loader does after COMMIT, as the loader; says which tables it did not reach."""
    said: list[str] = []
    with connect(url, "loader") as connection:
        begun = connection.execute("SELECT clock_timestamp()").fetchone()
        seconds = -time.perf_counter()
        run.renew(connection, said.append)
        seconds += time.perf_counter()
        missed = connection.execute(
            "SELECT count(*) FILTER (WHERE last_vacuum IS NULL OR last_vacuum < %s), count(*) FROM pg_stat_user_tables"
            " WHERE n_live_tup > 0 AND (relname = 'observation' OR relname LIKE '_hyper%%')",
            begun,
        ).fetchone()
    for line in said:
        print(line, file=sys.stderr)
    tables = f"{missed[1] - missed[0]} of {missed[1]} tables that hold rows" if missed else ""
    return [load_report.row(f"VACUUM (ANALYZE) by the loader, {tables}", seconds, "s")]


@contextmanager
def store(server: load_store.Server, say: Callable[[str], None]) -> Iterator[str]:
    declared = load_store.contract()
    url = server.make("asof", declared, server.timescale)
    server.admin("ALTER SYSTEM SET autovacuum = off", "SELECT pg_reload_conf()")  # it would settle at times of its own
    load_store.fill(url, declared, PERIODS, say)
    with psycopg.connect(url, autocommit=True) as owner:
        say("current values")
        owner.execute(
            "CREATE TABLE current AS SELECT DISTINCT ON (series_id, valid_time) series_id, valid_time, value, state"
            " FROM observation ORDER BY series_id, valid_time, known_from DESC, load_id DESC"
        )
        owner.execute("CREATE UNIQUE INDEX ON current (series_id, valid_time) INCLUDE (value, state)")
        owner.execute("VACUUM (ANALYZE) current")
        owner.execute("GRANT SELECT ON current TO model_reader")
    yield url


def main() -> None:
    """Measures, prints and writes; a missed goal is reported, never a failure."""
    rows: list[dict[str, Any]] = []
    begun = time.monotonic()

    def say(text: str) -> None:
        print(f"\r[{time.monotonic() - begun:5.0f} s] {text:70}", end="", file=sys.stderr, flush=True)

    with load_store.server() as server, store(server, say) as url:
        rows += compared(url, "settled", say)
        say("one more vintage")
        with load_timed.ready():
            load_timed.ours(
                url,
                load_store.contract(),
                load_timed.prepared(PERIODS, load_store.LATEST, load_store.VINTAGES),
                load_store.LATEST,
            )
        rows += compared(url, "right after a load", say)
        rows += settle(url)
        rows += compared(url, "after the loader's VACUUM", say)
    load_report.report(load_store.OUT / "asof.json", rows)


if __name__ == "__main__":
    main()
