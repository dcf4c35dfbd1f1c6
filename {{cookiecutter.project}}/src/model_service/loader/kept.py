"""Loads read again from the bytes that were kept of them, each by the rules it was read by then."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from model_service.contract import Series
from model_service.loader import Cell, Payload, Reject, checks, sources
from model_service.loader.sources import Kind
from model_service.mistakes import validate
from model_service.store import ledger, quarantine, raw
from model_service.store.connection import Connection
from model_service.store.observations import Batches, Statement

Row = Mapping[str, Any]  # of a load


@dataclass(frozen=True)
class Reader:
    """Reads kept bytes of a dataset by a kind of source, its options, and the series that are mapped."""

    connection: Connection
    source: Kind
    options: Any
    series: Mapping[str, Series]

    def records(self, row: Row, wanted: quarantine.Wanted | None = None) -> Iterator[Cell | Reject]:
        """What the kept bytes of a load give; `wanted` limits it to what was quarantined."""
        file, vintage = row["request"]["file"], ledger.vintage_of(row["request"])
        with raw.opened(self.connection, row["payload_sha256"]) as (path, media_type):
            found = self.source.parse(Payload(file, path, media_type, vintage), self.options, self.series)
            if wanted is not None:
                found = (one for one in found if (one.line, one.series) in wanted or (one.line, None) in wanted)
            yield from found

    def statements(
        self, entry: ledger.Entry, ids: Mapping[str, int], since: datetime | None = None, only: int | None = None
    ) -> Iterator[Statement]:
        """What others than the load that the entry corrects said of its scope, or what `only` the one said."""
        but = entry.corrects if only is None else None
        for row in ledger.statements(self.connection, entry.dataset, entry.scope, since, but, only):
            yield Statement(
                load_id=row["load_id"],
                rank=row["rank"],
                known=ledger.vintage_of(row["request"]) or row["observed_at"],
                scope=row["scope"],
                complete=row["complete"],
                cells=partial(self._by_rules(row, entry.dataset, ids)._cells, row, ids),
            )

    def _by_rules(self, row: Row, dataset: str, ids: Mapping[str, int]) -> "Reader":
        """The one that read that load; one that recorded no rules is read as today.

        Raises UsageError for a kind of source that is no longer here, or for options that it no longer takes.
        """
        rules = row["rules"]
        if not rules:
            return self
        source = sources.of(rules["kind"], f"load {row['load_id']}") if "kind" in rules else self.source
        options = validate(source.Options, rules["options"], f"what load {row['load_id']} was read by")
        series = {
            name: Series(source=dataset, unit="", release_lag_days=0, **declared)
            for name, declared in rules["series"].items()
            if name in ids
        }
        return Reader(self.connection, source, options, series)

    def _cells(self, row: Row, ids: Mapping[str, int]) -> Batches:
        wanted = quarantine.settled(self.connection, row["rank"]) if row["kind"] == "retry" else None
        for cells, _ in checks.check_cells(self.records(row, wanted), ids, self.series, row["observed_at"]):
            yield cells
