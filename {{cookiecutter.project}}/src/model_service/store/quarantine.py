"""What was refused, as it came, with the rule and the reason; and what was done about it, in rows of its own."""

from collections.abc import Collection
from typing import Any

from model_service.errors import ServiceError, UsageError
from model_service.settings import current_user
from model_service.store.connection import Connection

# What was done about cells, None for nothing yet. A later reading of the same bytes may have refused one again.
SETTLED = """
SELECT q.quarantine_id, a.action || ' by ' || a.who || ' on ' || a.at::date || coalesce(', refused again and open as '
    || (SELECT string_agg(n.quarantine_id::text, ', ' ORDER BY n.quarantine_id)
        FROM quarantine n JOIN load later ON later.load_id = n.load_id AND later.origin = coalesce(l.origin, l.load_id)
        WHERE n.quarantine_id > q.quarantine_id AND n.line = q.line AND coalesce(n.series = q.series, true)
        AND NOT EXISTS (SELECT FROM quarantine_action b WHERE b.quarantine_id = n.quarantine_id)), '')
FROM quarantine q JOIN load l USING (load_id) LEFT JOIN quarantine_action a USING (quarantine_id)
WHERE q.quarantine_id = ANY(%s)
"""
Wanted = dict[tuple[int, str | None], int]  # (line, series or None for the whole line): quarantine_id


def keep(connection: Connection, load_id: int, file: str, rejects: list[Any]) -> int:
    """Keeps what was refused: each a record with line, series, valid_time, raw, rule, detail. Returns how many."""
    if not rejects:
        return 0
    with connection.cursor().copy(
        "COPY quarantine (load_id, file, line, series, valid_time, raw, rule, detail) FROM STDIN"
    ) as copy:
        for one in rejects:
            # PostgreSQL's text takes no NUL, and UTF-8 no half of a pair, which JSON may hold.
            raw = one.raw.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
            copy.write_row((load_id, file, one.line, one.series, one.valid_time, raw, one.rule, one.detail))
    return len(rejects)


def waiting(connection: Connection, load_id: int, kind: str = "retry") -> Wanted:
    """What that load, or a later reading of its bytes, quarantined and nothing was done about yet.

    A contradicted vintage stays refused in a retry; a correction takes up all.
    """
    rows = connection.execute(
        "SELECT line, series, quarantine_id FROM quarantine q JOIN load l USING (load_id)"
        " WHERE %(load)s IN (l.load_id, l.origin) AND (rule <> 'vintage_conflict' OR %(kind)s = 'correction')"
        " AND NOT EXISTS (SELECT FROM quarantine_action a WHERE a.quarantine_id = q.quarantine_id)",
        {"load": load_id, "kind": kind},
    )
    return {(line, series): number for line, series, number in rows}


def settled(connection: Connection, load_id: int) -> Wanted:
    """What that load, a retry, took up."""
    rows = connection.execute(
        "SELECT line, series, quarantine_id FROM quarantine JOIN quarantine_action a USING (quarantine_id)"
        " WHERE a.load_id = %s",
        [load_id],
    )
    return {(line, series): number for line, series, number in rows}


def settle(connection: Connection, numbers: Collection[int], action: str, load_id: int | None, reason: str) -> None:
    """Notes, in the caller's transaction, who did what about quarantined cells and why.

    Raises ServiceError when another copy settled one meanwhile.
    """
    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('quarantine_action', 0))")
    noted = connection.execute(
        "INSERT INTO quarantine_action (quarantine_id, action, load_id, who, reason)"
        " SELECT number, %s, %s, %s, %s FROM unnest(%s::bigint[]) AS number WHERE NOT EXISTS ("
        " SELECT FROM quarantine_action a WHERE a.quarantine_id = number)",
        [action, load_id, current_user(), reason, list(numbers)],
    ).rowcount
    if noted != len(numbers):
        raise ServiceError("another copy settled some of these cells meanwhile; nothing was committed: look again")


def drop(connection: Connection, numbers: Collection[int], reason: str) -> None:
    """Settles that these stay out for good; raises UsageError when one is unknown, or was settled before."""
    with connection.transaction():
        held = dict(connection.execute(SETTLED, [list(numbers)]).fetchall())
        if unknown := [str(one) for one in numbers if one not in held]:
            raise UsageError(f"nothing is in quarantine as {', '.join(unknown)}: see `quarantine list`")
        if done := [f"{one}: {held[one]}" for one in numbers if held[one]]:
            raise UsageError(f"was settled before ({'; '.join(done)}): nothing was dropped")
        settle(connection, numbers, "drop", None, reason)
