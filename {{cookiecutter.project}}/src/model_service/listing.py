"""What was loaded and what was refused: as rows for programs, as tables for people."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from psycopg.rows import dict_row

from model_service.errors import UsageError
from model_service.store.connection import Connection

Row = dict[str, Any]
COUNTS = ("fetched", "new", "changed", "same", "deleted", "quarantined", "vanished")
THEN = {"correction": "corrected", "retry": "replayed", "late": "what a later vintage says repeated"}
SHOWN = 50  # cells in a table for people
QUARANTINED = """
SELECT q.*, a.action, a.load_id AS action_load, a.who, a.reason, a.at, coalesce(l.origin, l.load_id) AS origin
FROM quarantine q JOIN load l ON l.load_id = q.load_id LEFT JOIN quarantine_action a USING (quarantine_id)
"""


def fetch(connection: Connection, statement: str, asked: Any = None) -> list[Row]:
    return connection.cursor(row_factory=dict_row).execute(statement, asked).fetchall()


def loads(connection: Connection, dataset: str | None) -> list[Row]:
    """The ledger, newest first; one dataset's for a name."""
    return fetch(
        connection,
        f"SELECT load_id, dataset, request->>'file' AS file, kind, status, {', '.join(COUNTS)}, committed_at, origin,"  # noqa: S608
        " replay_for FROM load WHERE dataset = coalesce(%s, dataset) ORDER BY load_id DESC",
        [dataset],
    )


def loads_text(rows: list[Row]) -> str:
    head = ("load", "committed", "dataset", "kind", "status", *COUNTS, "file")
    table = [
        (row["load_id"], f"{row['committed_at']:%Y-%m-%d %H:%M}", row["dataset"], row["kind"], row["status"],
         *(f"{row[name]:,}" for name in COUNTS), row["file"])
        for row in rows
    ]  # fmt: skip
    return columns(head, table) if rows else "nothing was loaded"


def load(connection: Connection, load_id: int) -> Row:
    """One load: its row, its checks, its quarantine by rule, and the loads that came of it. Raises UsageError."""
    found = fetch(connection, "SELECT * FROM load WHERE load_id = %s", [load_id])
    if not found:
        raise UsageError(f"there is no load {load_id}: see `load list` (a load that was not committed leaves a gap)")
    checks = "SELECT * FROM check_result WHERE load_id = %s ORDER BY rule, subject"
    refused = f"SELECT rule, count(*) AS cells, count(*) - count(action) AS open FROM ({QUARANTINED}) q"  # noqa: S608
    later = "SELECT load_id, kind, status, new + changed + deleted + vanished AS rows, who, reason FROM load"
    return found[0] | {
        "checks": fetch(connection, checks, [load_id]),
        "quarantine": fetch(connection, f"{refused} WHERE load_id = %s GROUP BY 1 ORDER BY 1", [load_id]),
        "read_again_by": fetch(connection, f"{later} WHERE origin = %s AND kind <> 'late' ORDER BY 1", [load_id]),
        "late_loads": fetch(connection, f"{later} WHERE replay_for = %s ORDER BY 1", [load_id]),
    }


def load_text(row: Row) -> str:
    vintage = f", vintage {row['request']['vintage']}" if row["request"].get("vintage") else ""
    known = f"{row['known_first']:%Y-%m-%d} to {row['known_last']:%Y-%m-%d}" if row["known_first"] else "nothing"
    lines = [
        f"load         {row['load_id']}, {row['kind']}, {row['status']}, {row['committed_at']:%Y-%m-%d %H:%M:%S}",
        f"request      {row['dataset']}: {row['request']['file']}{vintage}{', complete' if row['complete'] else ''}",
        f"bytes        sha256:{row['payload_sha256']}",
        f"counts       {', '.join(f'{row[name]:,} {name}' for name in COUNTS)}",
        f"known from   {known}",
        f"code         {row['code_version'] or 'not recorded'}, parser {row['parser_version']}",
        f"rules        {json.dumps((row['rules'] or {}).get('options'))}",
    ]
    if row["origin"]:
        lines.append(f"reads again  load {row['origin']}{_why(row)}")
    if row["replay_for"]:
        lines.append(f"because of   load {row['replay_for']}, which made its values new again")
    for check in row["checks"]:
        state = "ok" if check["ok"] else check["action"]
        lines.append(f"check        {state:5} {check['rule']} of {check['subject']}: {check['detail']}")
    for rule in row["quarantine"]:
        lines.append(f"quarantine   {rule['rule']}: {rule['cells']:,} cells, {rule['open']:,} of them open")
    for one in row["read_again_by"] + row["late_loads"]:
        by = f"load {one['load_id']}, {one['status']}, {one['rows']:,} rows{_why(one)}"
        lines.append(f"then         {THEN[one['kind']]} by {by}")
    return "\n".join(lines)


def _why(row: Row) -> str:
    return f" ({row['who']}: {row['reason']})" if row["reason"] else ""


def quarantined(connection: Connection, unsettled: bool, load_id: int | None, rule: str | None) -> list[Row]:
    """Quarantined cells, oldest first, with what was done about each (`action` None: nothing yet)."""
    return fetch(
        connection,
        f"{QUARANTINED} WHERE (%(load)s::bigint IS NULL OR q.load_id = %(load)s) AND rule = coalesce(%(rule)s, rule)"
        " AND NOT (%(open)s AND a.action IS NOT NULL) ORDER BY quarantine_id",
        {"load": load_id, "rule": rule, "open": unsettled},
    )


def quarantined_text(rows: list[Row]) -> str:
    table = [
        (row["quarantine_id"], row["load_id"], f"{row['file']}:{row['line']}", row["series"] or "",
         f"{row['valid_time']:%Y-%m-%d}" if row["valid_time"] else "", row["rule"], _short(row["raw"]), _done(row))
        for row in rows[:SHOWN]
    ]  # fmt: skip
    if not rows:
        return "nothing is there"
    rules = ", ".join(f"{count:,} {rule}" for rule, count in Counter(row["rule"] for row in rows).most_common())
    shown = f"; the first {SHOWN} are shown, --open, --load and --rule narrow it" if len(rows) > SHOWN else ""
    return f"{columns(('id', 'load', 'line', 'series', 'period', 'rule', 'raw', 'done'), table)}\n{rules}{shown}"


def quarantined_cell(connection: Connection, number: int) -> Row:
    """One quarantined cell; raises UsageError when there is none of that number."""
    found = fetch(connection, f"{QUARANTINED} WHERE quarantine_id = %s", [number])
    if not found:
        raise UsageError(f"nothing is in quarantine as {number}: see `quarantine list`")
    return found[0]


def quarantined_cell_text(row: Row) -> str:
    period = f" of {row['valid_time']:%Y-%m-%d}" if row["valid_time"] else ""
    drop = f"`quarantine drop {row['quarantine_id']}`"
    done = f"open: mend service.toml and `quarantine replay {row['origin']}`, or {drop}"
    if row["action"]:
        done = f"{_done(row)}, {row['at']:%Y-%m-%d %H:%M}{_why(row)}"
    elif row["rule"] == "vintage_conflict":
        done = f"open: {drop}, or `load --correct` the load whose statement is wrong"
    return "\n".join(
        [
            f"cell    {row['quarantine_id']}: {row['series'] or 'the whole line'}{period}",
            f"place   {row['file']}, line {row['line']}, load {row['load_id']}",
            f"rule    {row['rule']}: {row['detail']}",
            f"raw     {row['raw']}",
            f"done    {done}",
        ]
    )


def _done(row: Row) -> str:
    if row["action"] is None:
        return "open"
    return f"replayed by load {row['action_load']}" if row["action"] == "replay" else "dropped"


def _short(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= 24 else plain[:23] + "\N{HORIZONTAL ELLIPSIS}"


def columns(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns as wide as they need to be; figures stand to the right."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [str(cell).replace(",", "").isdigit() for cell in rows[0]]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if at_right else cell.ljust(width)
            for cell, width, at_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    )
