"""The product's own path from parsed batches to COMMIT, and the COPY that it is compared with."""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import numpy as np
from load_store import LATEST, SERIES, SIZE, Server, cells, copy, entry, registered
from model_service.contract import Contract
from model_service.loader import checks, run
from model_service.store import ledger
from model_service.store.connection import connect


def quiet(_: str) -> None:
    """Says nothing: a line per load would break the progress line."""


def ours(
    url: str, declared: Contract, found: Callable[[np.ndarray], Iterator[Any]], known: datetime
) -> tuple[float, dict[str, Any]]:
    """Seconds of the product's own path from parsed batches to COMMIT, and what it counted."""
    with connect(url, "loader") as connection:
        ids = registered(connection, declared)
        one = run.Run(connection, declared, "bench", *run.sources.reader(declared, "bench"), quiet)
        begun = time.perf_counter()
        counted = one._commit(entry(f"{known}", known), found(ids))
        return time.perf_counter() - begun, counted


def prepared(periods: int, known: datetime, like: int) -> Callable[[np.ndarray], Iterator[Any]]:
    """Parsed batches as `loader.batches` would give them; with `ready`, the run takes them as they are."""
    return lambda ids: ((batch, []) for batch in cells(ids, periods, known, like))


@contextmanager
def ready() -> Iterator[None]:
    """Runs get batches instead of records, so that parsing is not timed."""
    original, checks.batches = checks.batches, lambda records, ids, observed_at: records
    try:
        yield
    finally:
        checks.batches = original


def reference(url: str, declared: Contract, periods: int, known: datetime, like: int) -> float:
    with connect(url, "loader") as connection:
        ids, load_id = registered(connection, declared), ledger.next_load_id(connection)
        begun = time.perf_counter()
        copy(connection, cells(ids, periods, known, like), load_id)
        return time.perf_counter() - begun


def paired(
    server: Server, declared: Contract, template: str, periods: int, like: int, what: str, say: Callable[[str], None]
) -> tuple[float, float, int]:
    """Median seconds of ours and of COPY, each in a fresh copy of `template`, in turn; and the number of cells."""
    times: tuple[list[float], list[float]] = ([], [])
    expected, counts = SERIES * periods, dict[str, Any]()
    for turn in range(SIZE["PAIRS"]):
        for which in (turn % 2, 1 - turn % 2):
            say(f"{what}: pair {turn + 1}/{SIZE['PAIRS']}, {'COPY' if which else 'ours'}")
            with server.copy_of(template) as url:
                if which:
                    times[1].append(reference(url, declared, periods, LATEST, like))
                else:
                    with ready():
                        seconds, counts = ours(url, declared, prepared(periods, LATEST, like), LATEST)
                    times[0].append(seconds)
                    if counts["fetched"] != expected or counts["quarantined"]:
                        raise SystemExit(f"{what}: {counts} instead of {expected} good cells")
        shown = ", ".join(f"{counts[name]:,} {name}" for name in ("new", "changed", "same") if counts[name])
        print(f"\n  {shown}: ours {times[0][-1]:.2f} s, COPY {times[1][-1]:.2f} s", file=sys.stderr)
    return statistics.median(times[0]), statistics.median(times[1]), expected
