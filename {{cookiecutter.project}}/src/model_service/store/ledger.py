"""The load transaction: ledger row, rows, quarantine, counts and watermark commit together or not at all.

Only what changed is stored, against what was known just before a row's own `known_from`. A vintage that arrives after a
later one would show through wherever the later one was found unchanged; so the later ones are replayed from their kept
bytes over the touched cells, in the same transaction, each with a ledger row of its own.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from model_service.contract import Series
from model_service.errors import ServiceError
from model_service.loader import Cell, Reject
from model_service.store.read import name_of

Connection = psycopg.Connection[Any]
Records = Iterable[Cell | Reject]
Reparse = Callable[[str, dict[str, str]], AbstractContextManager[Records]]

STAGE = """
CREATE TEMP TABLE stage (line bigint, series_id integer, valid_time timestamptz, known_from timestamptz,
    value double precision, series text, raw text, rule text, detail text) ON COMMIT DROP;
CREATE TEMP TABLE stated (LIKE stage) ON COMMIT DROP;
CREATE TEMP TABLE verdict (line bigint, series_id integer, valid_time timestamptz, known_from timestamptz,
    value double precision, held double precision, outcome text) ON COMMIT DROP;
"""
STAGE_TYPES = ["int8", "int4", "timestamptz", "timestamptz", "float8", "text", "text", "text", "text"]

# What is held for a cell is what was known at the row's own known_from; a vintage's first statement stays in force.
JUDGE = """
INSERT INTO verdict
SELECT s.line, s.series_id, s.valid_time, s.known_from, s.value, h.value,
       CASE WHEN h.state IS NULL THEN 'new'
            WHEN h.state = 0 AND h.value = s.value THEN 'same'
            WHEN h.known_from = s.known_from OR EXISTS (
                SELECT FROM stated t WHERE t.series_id = s.series_id AND t.valid_time = s.valid_time
                AND t.known_from = s.known_from) THEN 'conflict'
            ELSE 'changed' END
FROM stage s
LEFT JOIN (
    SELECT DISTINCT ON (o.series_id, o.valid_time) o.series_id, o.valid_time, o.known_from, o.value, o.state
    FROM observation o JOIN stage k USING (series_id, valid_time)
    WHERE k.known_from = %(known_from)s AND o.known_from <= %(known_from)s AND k.rule IS NULL
    ORDER BY o.series_id, o.valid_time, o.known_from DESC, o.load_id DESC
) h USING (series_id, valid_time)
WHERE s.rule IS NULL AND s.known_from = %(known_from)s
"""

INSERT = """
INSERT INTO observation (series_id, valid_time, known_from, load_id, value, state)
SELECT series_id, valid_time, known_from, %s, value, 0 FROM verdict WHERE outcome = %s AND known_from = %s
ORDER BY series_id, valid_time
"""


@dataclass(frozen=True)
class Entry:
    """What makes a load the load that it is; `load_key` covers bytes, request, mapping and parser."""

    dataset: str
    load_key: str
    request: dict[str, str]
    payload_sha256: str
    rules_hash: str
    parser_version: int
    started_at: datetime


@dataclass(frozen=True)
class Counts:
    load_id: int
    fetched: int
    new: int
    changed: int
    same: int
    deleted: int
    quarantined: int


def committed(connection: Connection, load_key: str) -> bool:
    return connection.execute("SELECT FROM load WHERE load_key = %s", [load_key]).fetchone() is not None


def turn(connection: Connection, dataset: str, file: str, sha256: str) -> int:
    """How often the bytes of that file were replaced so far; what is held as its newest counts as not replaced."""
    loads = connection.execute(
        "SELECT payload_sha256 FROM load WHERE dataset = %s AND request->>'file' = %s AND replay_for IS NULL"
        " ORDER BY load_id",
        [dataset, file],
    ).fetchall()
    changes = sum(one != other for one, other in zip(loads, loads[1:], strict=False))
    return int(changes + (bool(loads) and loads[-1] != (sha256,)))


def series_ids(connection: Connection, dataset: str, series: Mapping[str, Series]) -> dict[str, int]:
    """Registers what is new; raises ServiceError when a series changed its dataset, frequency or unit."""
    for name, one in series.items():
        connection.execute(
            "INSERT INTO series (dataset, name, frequency, unit) VALUES (%s, %s, %s, %s) ON CONFLICT (name) DO NOTHING",
            [dataset, name, one.frequency, one.unit],
        )
    ids = {}
    for identity, name, *held in connection.execute(
        "SELECT series_id, name, dataset, frequency, unit FROM series WHERE name = ANY(%s)", [list(series)]
    ):
        declared = [dataset, series[name].frequency, series[name].unit]
        if held != declared:
            raise ServiceError(
                f"series {name} is held as {held}, service.toml says {declared}: give the new one a new name"
            )
        ids[name] = identity
    return ids


def commit(
    connection: Connection,
    entry: Entry,
    ids: Mapping[str, int],
    records: Records,
    reparse: Reparse,
) -> Counts:
    """Stores one payload's records; `reparse(sha256, request)` opens those of kept bytes. All in one transaction."""
    with connection.transaction():
        counts = _store(connection, entry, ids, records, reparse)
        if counts.new or counts.changed:
            for later in _later(connection, entry, counts.load_id):
                _replay(connection, entry.dataset, later, counts.load_id, ids, reparse)
        connection.execute(
            "INSERT INTO watermark (dataset, cursor, load_id) VALUES (%s, %s, %s)"
            " ON CONFLICT (dataset) DO UPDATE SET cursor = excluded.cursor, load_id = excluded.load_id",
            [entry.dataset, entry.request["file"], counts.load_id],
        )
        _name_data_version(connection)
    return counts


def _store(connection: Connection, entry: Entry, ids: Mapping[str, int], records: Records, reparse: Reparse) -> Counts:
    connection.execute(STAGE)
    fetched = _stage(connection, ids, records, entry.started_at)
    _state(connection, entry.dataset, None, ids, reparse)
    load_id, inserted = _insert(connection)
    same = connection.execute("SELECT count(*) FROM verdict WHERE outcome = 'same'").fetchone()
    quarantined = connection.execute(
        """
        INSERT INTO quarantine (load_id, file, line, series, raw, rule, detail)
        SELECT %(load)s, %(file)s, line, series, raw, rule, detail FROM stage WHERE rule IS NOT NULL
        UNION ALL
        SELECT %(load)s, %(file)s, line, s.name, v.value::text, 'vintage_conflict',
               'this vintage already gave ' || coalesce(held::text, 'nothing') || '; the first statement stays in force'
        FROM verdict v JOIN series s USING (series_id) WHERE outcome = 'conflict'
        ORDER BY line
        """,
        {"load": load_id, "file": entry.request["file"]},
    ).rowcount
    counts = Counts(load_id, fetched, inserted["new"], inserted["changed"], same[0] if same else 0, 0, quarantined)
    _write_ledger(connection, entry, counts, None)
    return counts


def _stage(connection: Connection, ids: Mapping[str, int], records: Records, now: datetime, into: str = "stage") -> int:
    fetched = 0
    with connection.cursor().copy(f"COPY {into} FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(STAGE_TYPES)
        for record in records:
            fetched += 1
            if isinstance(record, Cell):
                known = record.known_from or now
                copy.write_row((record.line, ids[record.series], record.valid_time, known, record.value, *[None] * 4))
            else:
                head = (record.line, None, None, None, None)
                copy.write_row((*head, record.series, record.raw.replace("\0", "\ufffd"), record.rule, record.detail))
    connection.execute(f"ANALYZE {into}")
    return fetched


def _state(connection: Connection, dataset: str, before: int | None, ids: Mapping[str, int], reparse: Reparse) -> None:
    """Notes which cells earlier loads of the staged vintages stated, also those that were unchanged and left no row."""
    for sha256, request, started_at in connection.execute(
        "SELECT payload_sha256, request, started_at FROM load WHERE dataset = %(dataset)s AND replay_for IS NULL"
        " AND (%(before)s::bigint IS NULL OR load_id < %(before)s)"
        " AND EXISTS (SELECT FROM stage WHERE known_from BETWEEN known_first AND known_last)",
        {"dataset": dataset, "before": before},
    ).fetchall():
        with reparse(sha256, request) as records:
            _stage(connection, ids, (one for one in records if isinstance(one, Cell)), started_at, "stated")


def _insert(connection: Connection) -> tuple[int, dict[str, int]]:
    """Judges the stage, vintage by vintage, and inserts what is new or changed; a recount proves the figures."""
    row = connection.execute("SELECT nextval(pg_get_serial_sequence('load', 'load_id'))").fetchone()
    load_id = int(row[0]) if row else 0
    inserted = {"new": 0, "changed": 0}
    for (known_from,) in connection.execute(
        "SELECT DISTINCT known_from FROM stage WHERE rule IS NULL ORDER BY known_from"
    ).fetchall():
        connection.execute(JUDGE, {"known_from": known_from})
        for outcome in inserted:
            inserted[outcome] += connection.execute(INSERT, [load_id, outcome, known_from]).rowcount
    recount = connection.execute(
        "SELECT count(*) FROM verdict JOIN observation o USING (series_id, valid_time, known_from)"
        " WHERE o.load_id = %s",
        [load_id],
    ).fetchone()
    if recount != (sum(inserted.values()),):
        raise ServiceError(
            f"load {load_id}: {recount} rows found where {inserted} were inserted; nothing was committed"
        )
    return load_id, inserted


def _later(connection: Connection, entry: Entry, load_id: int) -> list[tuple[Any, ...]]:
    """First-hand loads of the dataset that brought a vintage later than one of this load's, oldest first."""
    return connection.execute(
        "SELECT load_id, load_key, request, payload_sha256, rules_hash, parser_version, started_at FROM load"
        " WHERE dataset = %s AND load_id <> %s AND replay_for IS NULL"
        " AND known_last > (SELECT known_first FROM load WHERE load_id = %s) ORDER BY known_last, load_id",
        [entry.dataset, load_id, load_id],
    ).fetchall()


def _replay(
    connection: Connection,
    dataset: str,
    later: tuple[Any, ...],
    cause: int,
    ids: Mapping[str, int],
    reparse: Reparse,
) -> None:
    original, key, request, sha256, rules_hash, parser_version, started_at = later
    connection.execute(
        "CREATE TEMP TABLE touched ON COMMIT DROP AS SELECT series_id, valid_time, min(known_from) AS since"
        " FROM verdict WHERE outcome IN ('new', 'changed') GROUP BY 1, 2"
    )
    connection.execute("DROP TABLE stage, stated, verdict")
    connection.execute(STAGE)
    with reparse(sha256, request) as records:
        _stage(connection, ids, (record for record in records if isinstance(record, Cell)), started_at)
    connection.execute(
        "DELETE FROM stage s WHERE NOT EXISTS (SELECT FROM touched t WHERE t.series_id = s.series_id"
        " AND t.valid_time = s.valid_time AND t.since < s.known_from)"
    )
    _state(connection, dataset, original, ids, reparse)
    load_id, inserted = _insert(connection)
    counted = connection.execute(
        "SELECT count(*), count(*) FILTER (WHERE outcome IN ('same', 'conflict')) FROM verdict"
    )
    fetched, same = counted.fetchone() or (0, 0)
    entry = Entry(dataset, f"{key} replayed for {cause}", request, sha256, rules_hash, parser_version, started_at)
    if fetched:
        _write_ledger(
            connection, entry, Counts(load_id, fetched, **inserted, same=same, deleted=0, quarantined=0), cause
        )
    # What the replay changed is touched for the vintages after it too.
    connection.execute("INSERT INTO verdict SELECT 0, series_id, valid_time, since, NULL, NULL, 'new' FROM touched")
    connection.execute("DROP TABLE touched")


def _write_ledger(connection: Connection, entry: Entry, counts: Counts, replay_for: int | None) -> None:
    connection.execute(
        """
        INSERT INTO load (load_id, load_key, dataset, request, payload_sha256, rules_hash, parser_version, replay_for,
            started_at, fetched, new, changed, same, deleted, quarantined, known_first, known_last)
        SELECT %(load_id)s, %(load_key)s, %(dataset)s, %(request)s, %(payload_sha256)s, %(rules_hash)s,
            %(parser_version)s, %(replay_for)s, %(started_at)s, %(fetched)s, %(new)s, %(changed)s, %(same)s,
            %(deleted)s, %(quarantined)s, min(known_from), max(known_from)
        FROM verdict
        """,
        {**vars(entry), **vars(counts), "request": json.dumps(entry.request), "replay_for": replay_for},
    )


def _name_data_version(connection: Connection) -> None:
    """Names the state that this commit makes current; by the lock, crossing commits see each other."""
    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('data_version', 0))")
    loads = dict(connection.execute("SELECT dataset, max(load_id) FROM load GROUP BY dataset").fetchall())
    connection.execute(
        "INSERT INTO data_version (version, loads) VALUES (%s, %s) ON CONFLICT DO NOTHING",
        [name_of(loads), json.dumps(loads)],
    )
