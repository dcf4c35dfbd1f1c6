"""What was loaded, by whom, under which rules, and what came of it; of the shape of a row it knows nothing."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.rows import dict_row

from model_service.digests import of_code, of_json
from model_service.errors import ServiceError, UsageError
from model_service.store.connection import Connection


def vintage_of(request: Mapping[str, str]) -> datetime | None:
    """Since when the world knew all of a payload (UTC), where its name or its provider said so."""
    return datetime.fromisoformat(request["vintage"]) if request["vintage"] else None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What makes a load the load that it is; `load_key` covers bytes, request, rules and parser.

    kind: `fetch`, or what is read again from kept bytes of `origin`: `correction`, `retry` (of what was quarantined).
    observed_at (UTC) dates the cells that no vintage does.
    """

    dataset: str
    load_key: str
    request: dict[str, str]
    payload_sha256: str
    rules: dict[str, Any]
    rules_hash: str
    parser_version: int
    code_version: str
    started_at: datetime
    observed_at: datetime
    scope: list[str]
    complete: bool = False
    kind: str = "fetch"
    origin: int | None = None
    known_first: datetime | None = None
    known_last: datetime | None = None
    who: str | None = None
    reason: str | None = None

    @property
    def moment(self) -> datetime:
        """Since when the payload as a whole was known."""
        return vintage_of(self.request) or self.observed_at

    @property
    def corrects(self) -> int | None:
        """The load whose place this one takes."""
        return self.origin if self.kind == "correction" else None


@dataclass(frozen=True)
class Counts:
    """fetched = new + changed + same + deleted + quarantined, in parsed cells; `vanished` are tombstones besides."""

    fetched: int
    new: int = 0
    changed: int = 0
    same: int = 0
    deleted: int = 0
    quarantined: int = 0
    vanished: int = 0


@contextmanager
def claim(connection: Connection, dataset: str) -> Iterator[str | None]:
    """Claims the dataset for this connection: yields None, or who holds it when another copy is at it."""
    key = [f"dataset:{dataset}"]
    row = connection.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", key).fetchone()
    if row and row[0]:
        try:
            yield None
        finally:
            if not connection.closed:
                connection.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", key)
        return
    holder = connection.execute(
        "SELECT runner || ' since ' || started_at FROM attempt WHERE finished_at IS NULL"
        " AND attempt_id = (SELECT max(attempt_id) FROM attempt WHERE dataset = %s)",
        [dataset],
    ).fetchone()
    yield holder[0] if holder else "another copy"


@contextmanager
def attempt(connection: Connection, dataset: str, runner: str) -> Iterator[dict[str, str]]:
    """A row around the run, so that one that failed or died stays visible; the caller sets `outcome` and `detail`."""
    row = connection.execute(
        "INSERT INTO attempt (dataset, runner) VALUES (%s, %s) RETURNING attempt_id", [dataset, runner]
    ).fetchone()
    ended = {"outcome": "done", "detail": ""}
    try:
        yield ended
    except BaseException as error:
        ended |= {"outcome": "failed", "detail": str(error) or type(error).__name__}
        raise
    finally:
        if not connection.closed:
            connection.execute(
                "UPDATE attempt SET finished_at = clock_timestamp(), outcome = %s, detail = %s WHERE attempt_id = %s",
                [ended["outcome"], ended["detail"], row[0] if row else None],
            )


def committed(connection: Connection, load_key: str) -> bool:
    return connection.execute("SELECT FROM load WHERE load_key = %s", [load_key]).fetchone() is not None


def times_replaced(connection: Connection, dataset: str, file: str, sha256: str) -> int:
    """How often the bytes of that file were replaced so far; what is held as its newest counts as not replaced."""
    loads = connection.execute(
        "SELECT payload_sha256 FROM load WHERE dataset = %s AND request->>'file' = %s AND kind = 'fetch'"
        " AND status <> 'blocked' ORDER BY load_id",
        [dataset, file],
    ).fetchall()
    changes = sum(one != other for one, other in zip(loads, loads[1:], strict=False))
    return int(changes + (bool(loads) and loads[-1] != (sha256,)))


def watermark(connection: Connection, dataset: str) -> int | None:
    """The load that the dataset's watermark stands at."""
    row = connection.execute("SELECT load_id FROM watermark WHERE dataset = %s", [dataset]).fetchone()
    return row[0] if row else None


def next_load_id(connection: Connection) -> int:
    """A load's number; gaps are legal. Drawn while the dataset is claimed: within it, numbers follow commits."""
    row = connection.execute("SELECT nextval(pg_get_serial_sequence('load', 'load_id'))").fetchone()
    return int(row[0]) if row else 0


def write(connection: Connection, load_id: int, entry: Entry, counts: Counts, status: str = "committed") -> None:
    """The load's row. A blocked load's key is its own, so that it can be run again."""
    row = {**vars(entry), **vars(counts), "load_id": load_id, "status": status}
    row |= {"request": json.dumps(entry.request), "rules": json.dumps(entry.rules)}
    if status == "blocked":
        row["load_key"] = f"{entry.load_key} blocked {load_id}"
    names = ", ".join(row)
    values = ", ".join(f"%({name})s" for name in row)
    connection.execute(f"INSERT INTO load ({names}) VALUES ({values})", row)  # noqa: S608


def write_late(connection: Connection, load_id: int, said_by: int, cause: int, rows: int) -> None:
    """The row of a load that repeats what an earlier one said, because `cause` made it news again."""
    connection.execute(
        """
        INSERT INTO load (load_id, load_key, dataset, request, payload_sha256, rules, rules_hash, parser_version,
            code_version, started_at, observed_at, scope, kind, origin, replay_for, known_first, known_last,
            fetched, new, changed, same, quarantined)
        SELECT %(load)s, load_key || ' late for ' || %(cause)s, dataset, request, payload_sha256, rules, rules_hash,
            parser_version, %(code)s, clock_timestamp(), observed_at, scope, 'late',
            CASE kind WHEN 'correction' THEN origin ELSE load_id END, %(cause)s, known_first, known_last,
            %(rows)s, 0, %(rows)s, 0, 0
        FROM load WHERE load_id = %(said_by)s
        """,
        {"load": load_id, "said_by": said_by, "cause": cause, "rows": rows, "code": of_code()},
    )


def write_checks(connection: Connection, load_id: int, results: Iterable[Any]) -> None:
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO check_result (load_id, rule, subject, action, ok, figure, bound, detail)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
            [(load_id, r.rule, r.subject, r.action, r.ok, r.figure, r.bound, r.detail) for r in results],
        )


def mark(connection: Connection, dataset: str, name: str, rules_hash: str) -> str:
    """How it looked when it was last read; "" when it never was, or under other rules."""
    row = connection.execute(
        "SELECT mark, rules_hash FROM resource WHERE dataset = %s AND name = %s ORDER BY resource_id DESC LIMIT 1",
        [dataset, name],
    ).fetchone()
    return str(row[0]) if row and row[1] == rules_hash else ""


def remember(connection: Connection, dataset: str, name: str, mark: str, rules_hash: str) -> None:
    connection.execute(
        "INSERT INTO resource (dataset, name, mark, rules_hash) VALUES (%s, %s, %s, %s)",
        [dataset, name, mark, rules_hash],
    )


def first_hand(connection: Connection, load_id: int) -> dict[str, Any]:
    """The row of a load that was fetched and committed; raises UsageError for any other number."""
    cursor = connection.cursor(row_factory=dict_row)
    found = cursor.execute(
        "SELECT load_id, load_key, dataset, request, payload_sha256, scope, complete, kind, status, origin,"
        " coalesce(observed_at, started_at) AS observed_at FROM load WHERE load_id = %s",
        [load_id],
    ).fetchone()
    if found is None:
        raise UsageError(f"there is no load {load_id}: see `load list`")
    if found["kind"] != "fetch":
        raise UsageError(f"load {load_id} is a {found['kind']}: name load {found['origin']}, which fetched the bytes")
    if found["status"] == "blocked":
        raise UsageError(f"load {load_id} was blocked and brought nothing: mend what blocked it and run `load`")
    return found


def last_reading(connection: Connection, load_id: int) -> tuple[int, str]:
    """The load that says now what that load's bytes say, and the hash of its rules."""
    row = connection.execute(
        "SELECT load_id, rules_hash FROM load WHERE load_id = %(load)s OR origin = %(load)s AND kind = 'correction'"
        " AND status <> 'blocked' ORDER BY load_id DESC LIMIT 1",
        {"load": load_id},
    ).fetchone()
    return row or (load_id, "")


def advance(connection: Connection, dataset: str, cursor: str, load_id: int, expected: int | None) -> None:
    """Moves the watermark from `expected` to this load; raises ServiceError when another copy moved it meanwhile."""
    moved = connection.execute(
        "INSERT INTO watermark (dataset, cursor, load_id) VALUES (%(dataset)s, %(cursor)s, %(load)s)"
        " ON CONFLICT (dataset) DO UPDATE SET cursor = excluded.cursor, load_id = excluded.load_id"
        " WHERE watermark.load_id = %(expected)s",
        {"dataset": dataset, "cursor": cursor, "load": load_id, "expected": expected},
    ).rowcount
    if not moved:
        raise ServiceError(f"{dataset}: another copy went ahead while this one was away; nothing was committed")


def name_data_version(connection: Connection) -> None:
    """Names the state that this commit makes current; by the lock, crossing commits see each other."""
    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('data_version', 0))")
    newest = "SELECT dataset, max(load_id) FROM load WHERE status <> 'blocked' GROUP BY dataset"
    loads = dict(connection.execute(newest).fetchall())
    connection.execute(
        "INSERT INTO data_version (version, loads) VALUES (%s, %s) ON CONFLICT DO NOTHING",
        [of_json(loads), json.dumps(loads)],
    )


def newest(connection: Connection, dataset: str, scope: list[str], but: int | None) -> datetime | None:
    """The latest moment that any committed load said something of the scope about, `but` the one."""
    row = connection.execute(
        "SELECT max(known_last) FROM load WHERE dataset = %s AND status <> 'blocked' AND load_id IS DISTINCT FROM %s"
        " AND coalesce(origin, 0) IS DISTINCT FROM %s AND (scope = '{}' OR scope && %s)",
        [dataset, but, but, scope],
    ).fetchone()
    return row[0] if row else None


def statements(
    connection: Connection,
    dataset: str,
    scope: list[str],
    since: datetime | None,
    but: int | None = None,
    only: int | None = None,
) -> list[dict[str, Any]]:
    """First-hand loads that said something of the scope at `since` or later, oldest first; `rank` is their order.

    `but` leaves out what reads one's bytes, `only` asks for nothing else. Where one was corrected, the last correction
    stands in its place, and in that of what was replayed before.
    """
    cursor = connection.cursor(row_factory=dict_row)
    return cursor.execute(
        """
        SELECT coalesce(c.load_id, l.load_id) AS load_id, l.load_id AS rank, l.kind, l.origin, l.payload_sha256,
               l.request, coalesce(c.rules, l.rules) AS rules, coalesce(l.observed_at, l.started_at) AS observed_at,
               coalesce(c.scope, l.scope) AS scope, coalesce(c.complete, l.complete) AS complete
        FROM load l LEFT JOIN LATERAL (
            SELECT * FROM load c WHERE c.origin = l.load_id AND c.kind = 'correction' AND c.status <> 'blocked'
            ORDER BY c.load_id DESC LIMIT 1) c ON true
        WHERE l.dataset = %(dataset)s AND l.kind IN ('fetch', 'retry') AND l.status <> 'blocked'
        AND (%(but)s::bigint IS NULL OR %(but)s NOT IN (l.load_id, coalesce(l.origin, 0)))
        AND (%(only)s::bigint IS NULL OR %(only)s IN (l.load_id, l.origin))
        AND NOT EXISTS (SELECT FROM load c WHERE l.kind = 'retry' AND c.origin = l.origin AND c.kind = 'correction'
                        AND c.load_id > l.load_id AND c.status <> 'blocked')
        AND (%(since)s::timestamptz IS NULL OR greatest(l.known_last, c.known_last) >= %(since)s)
        AND (l.scope = '{}' OR l.scope && %(scope)s OR c.scope && %(scope)s)
        ORDER BY l.load_id
        """,
        {"dataset": dataset, "scope": scope, "since": since, "but": but, "only": only},
    ).fetchall()
