"""Loads read again from the bytes that were kept of them, each by the rules it was read by then."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Any

import psycopg

from model_service.contract import Series
from model_service.loader import Cell, Payload, Reject, batches, checks
from model_service.loader.sources import Kind
from model_service.store import ledger, quarantine, raw
from model_service.store.observations import Batches, Said

Connection = psycopg.Connection[Any]


@contextmanager
def records(
    connection: Connection,
    row: Mapping[str, Any],
    source: Kind,
    options: Any,
    series: Mapping[str, Series],
    wanted: quarantine.Wanted | None = None,
) -> Iterator[Iterator[Cell | Reject]]:
    """What the kept bytes of `row`, a load, give; `wanted` limits it to what was quarantined."""
    request = row["request"]
    vintage = datetime.fromisoformat(request["vintage"]) if request["vintage"] else None
    with raw.opened(connection, row["payload_sha256"]) as (path, media_type):
        found = source.parse(Payload(request["file"], path, media_type, vintage), options, series)
        if wanted is not None:
            found = (one for one in found if (one.line, one.series) in wanted or (one.line, None) in wanted)
        yield found


def said(
    connection: Connection,
    entry: ledger.Entry,
    source: Kind,
    options: Any,
    series: Mapping[str, Series],
    ids: Mapping[str, int],
    since: datetime | None = None,
    only: int | None = None,
) -> Iterator[Said]:
    """What others than the load that the entry corrects said of its scope, or what `only` the one said.

    `options` and `series` serve loads that recorded no rules.
    """
    but = entry.corrects if only is None else None
    for row in ledger.said(connection, entry.dataset, entry.scope, since, but, only):
        own_options, own_series = options, series
        if row["rules"]:
            own_options = source.Options.model_validate(row["rules"]["options"])
            own_series = {
                name: Series(source=entry.dataset, unit="", release_lag_days=0, **rules)
                for name, rules in row["rules"]["series"].items()
                if name in ids
            }
        known = row["request"]["vintage"]
        yield Said(
            load_id=row["load_id"],
            rank=row["rank"],
            known=datetime.fromisoformat(known) if known else row["observed_at"],
            scope=row["scope"],
            complete=row["complete"],
            cells=partial(_cells, connection, row, source, own_options, own_series, ids),
        )


@contextmanager
def _cells(
    connection: Connection,
    row: Mapping[str, Any],
    source: Kind,
    options: Any,
    series: Mapping[str, Series],
    ids: Mapping[str, int],
) -> Iterator[Batches]:
    names = {number: name for name, number in ids.items()}
    wanted = quarantine.settled(connection, row["rank"]) if row["kind"] == "retry" else None
    with records(connection, row, source, options, series, wanted) as found:
        columns = batches(found, ids, row["observed_at"])
        yield (cells for cells, _ in checks.sift(columns, names, series, row["observed_at"]))
