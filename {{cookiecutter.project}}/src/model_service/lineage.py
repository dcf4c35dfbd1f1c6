"""From an observation or a load: back to the bytes, forward to the models and forecasts that were made of it."""

import json
import zlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from model_service import periods
from model_service.contract import Contract
from model_service.errors import ServiceError, UsageError
from model_service.listing import Row, fetch
from model_service.mistakes import did_you_mean
from model_service.store import raw, read
from model_service.store.connection import Connection

# Rows behind the inputs at a pair of clocks: of each series the last values known then, as far back as inputs reach.
# A row that says "missing" or "deleted" among them counts too: without it there would be an older value. The loads
# `also` count as if they had been held then, where what they read or say again was.
USED = """
SELECT i.name AS series, (k.valid_time AT TIME ZONE 'UTC')::date AS period, k.value, k.known_from, k.load_id
FROM unnest(%(names)s::text[], %(reach)s::integer[]) AS i (name, reach) JOIN series s USING (name)
CROSS JOIN LATERAL (
    SELECT *, count(value) OVER (ORDER BY valid_time DESC) - (value IS NOT NULL)::integer AS newer FROM (
        SELECT DISTINCT ON (o.valid_time) o.valid_time, o.known_from, o.load_id, o.value FROM observation o
        WHERE o.series_id = s.series_id AND o.known_from <= %(known_at)s AND (%(loads)s::jsonb ->> s.dataset)::bigint >=
        CASE WHEN o.load_id = ANY(%(also)s) THEN (SELECT origin FROM load WHERE load_id = o.load_id) ELSE o.load_id END
        ORDER BY o.valid_time DESC, o.known_from DESC, o.load_id DESC) known) k
WHERE k.newer < i.reach ORDER BY i.name, k.valid_time DESC
"""
# Series of which training at a pair of clocks read rows of the loads `of`: every vintage known then, each to its latest
# load. With `wrong`, a load that those `of` correct: where it had that one, and now would read theirs.
TRAINED_ON = """
SELECT DISTINCT s.name FROM series s JOIN observation o USING (series_id)
CROSS JOIN LATERAL (SELECT (%(loads)s::jsonb ->> s.dataset)::bigint AS held) version
WHERE o.load_id = ANY(%(of)s) AND s.name = ANY(%(names)s) AND o.known_from <= %(known_at)s
AND (%(series)s::text IS NULL OR
     (s.name, o.valid_time, o.known_from) = (%(series)s, %(valid_time)s::timestamptz, %(known_from)s::timestamptz))
AND CASE WHEN %(wrong)s::bigint IS NULL THEN o.load_id <= held AND NOT EXISTS (
    SELECT FROM observation n WHERE n.series_id = o.series_id AND n.valid_time = o.valid_time
    AND n.known_from = o.known_from AND n.load_id > o.load_id AND n.load_id <= held)
ELSE %(wrong)s <= held AND held < o.load_id END
ORDER BY 1
"""
CELL = """
SELECT s.dataset, s.unit, o.valid_time, o.value, o.state, o.known_from, o.load_id
FROM observation o JOIN series s USING (series_id)
WHERE s.name = %(name)s AND o.valid_time = %(valid_time)s AND o.known_from <= %(known_at)s
AND o.load_id <= (%(loads)s::jsonb ->> s.dataset)::bigint ORDER BY o.known_from DESC, o.load_id DESC LIMIT 1
"""
FORECASTS = """
SELECT f.model_digest, f.series, f.known_at, f.data_version, v.loads, min(f.made_at) AS made_at
FROM forecast f JOIN data_version v ON v.version = f.data_version GROUP BY 1, 2, 3, 4, 5 ORDER BY made_at
"""
# The load, and those that say again what it said.
SAID_BY = """
SELECT load_id FROM load WHERE load_id = %(load)s
OR kind = 'late' AND split_part(load_key, ' ', 1) = (SELECT load_key FROM load WHERE load_id = %(load)s)
"""
# The load's later corrections, and what they made others say again.
CORRECTED_BY = """
WITH correction AS (
    SELECT c.load_id, c.kind FROM load c JOIN load l ON c.origin IN (l.load_id, l.origin) AND c.load_id > l.load_id
    WHERE l.load_id = %(load)s AND c.kind = 'correction' AND c.status <> 'blocked')
SELECT * FROM correction
UNION SELECT load_id, kind FROM load WHERE replay_for IN (SELECT load_id FROM correction)
ORDER BY 1
"""


def observation(
    contract: Contract, connection: Connection, name: str, period: str, known_at: datetime, version: str | None
) -> dict[str, Any]:
    """One value by both clocks: the load, request, bytes, code and rules it came by, and what was made of it.

    Raises UsageError for an unknown series or a period that is none of it, ServiceError when nothing was known of it.
    """
    series = fetch(connection, "SELECT frequency FROM series WHERE name = %s", [name])
    if not series:
        raise UsageError(f"no series {name!r} was ever loaded{did_you_mean(name, contract.series)}")
    clocks = read.data_version(connection, version)
    valid_time = _period(period, series[0]["frequency"])
    asked = {"name": name, "valid_time": valid_time, "known_at": known_at, "loads": json.dumps(clocks.loads)}
    found = fetch(connection, CELL, asked)
    if not found:
        raise ServiceError(f"nothing was known of {name} for {valid_time:%Y-%m-%d} at {known_at.isoformat()}")
    cell = {"series": name, "period": valid_time.date(), **found[0]}
    return {
        "observation": cell | {"state": ("value", "missing", "deleted")[cell["state"]]},
        "as_of": {"known_at": known_at.isoformat(), "data_version": clocks.version},
        "load": files(connection, [cell["load_id"]])[0],
        **_forward(connection, [cell["load_id"]], cell),
    }


def _period(text: str, frequency: str) -> datetime:
    """First instant of the period that is named by a date in it, or as a week, month, quarter or year."""
    order = periods.FREQUENCIES.index
    for pattern in ("%Y-%m-%d", "%G-W%V", "%Y-%m", "%Y-Q%q", "%Y"):
        try:
            _, valid_time = periods.period(text, pattern, frequency)
        except ValueError:
            continue
        if order(periods.grain(pattern)) <= order(frequency):
            return valid_time
    raise UsageError(f"{text!r} names no period of a series by {frequency}: write a day of it, such as 2016-07-15")


def affected(connection: Connection, load_id: int) -> dict[str, Any]:
    """Which models and recorded forecasts rest on what that load said; once it is corrected: on what was wrong of it.

    Raises UsageError when there is no such load.
    """
    load = files(connection, [load_id])
    if not load:
        raise UsageError(f"there is no load {load_id}: see `load list`")
    corrections = fetch(connection, CORRECTED_BY, {"load": load_id})
    of = [row["load_id"] for row in corrections or fetch(connection, SAID_BY, {"load": load_id})]
    return {
        "load": load[0],
        "corrected_by": [row["load_id"] for row in corrections if row["kind"] == "correction"],
        **_forward(connection, of, wrong=load[0] if corrections else None),
    }


def _forward(
    connection: Connection, of: list[int], cell: Row | None = None, wrong: Row | None = None
) -> dict[str, list[Row]]:
    """Models and recorded forecasts that rest on rows of the loads `of`, or on the one row of `cell`, each by its pair.

    With `wrong`, a load that those `of` correct: that would read otherwise, had they been held then. A model read every
    vintage known at its pair; a forecast the last values known then, and its model.
    """
    asked = {part: (cell or {}).get(part) for part in ("series", "valid_time", "known_from")}
    asked |= {"of": of, "wrong": wrong and wrong["load_id"]}
    needed: dict[str, dict[str, int]] = {}
    models, forecasts = [], []
    for row in fetch(connection, "SELECT version, digest, files->>'card.json' AS card FROM model ORDER BY version"):
        card = json.loads(row.pop("card"))
        clocks, inputs = card["trained_as_of"], card["reach"]
        needed[row["digest"]] = inputs
        pair = {"names": list(inputs), "known_at": clocks["known_at"], "loads": json.dumps(card["loads"])}
        if read_there := [one["name"] for one in fetch(connection, TRAINED_ON, asked | pair)]:
            models.append(row | {"trained_as_of": clocks, "series": read_there})
    resting = {row["digest"] for row in models}
    for row in fetch(connection, FORECASTS):
        asked_then = needed.get(row["model_digest"], {}), row["known_at"], row.pop("loads")
        rows = rows_used(connection, *asked_then)
        if wrong:
            had_it = asked_then[2].get(wrong["dataset"], 0) >= wrong["load_id"]
            reads_it = had_it and _values(rows) != _values(rows_used(connection, *asked_then, also=of))
        else:
            reads_it = any(one["load_id"] in of and (not cell or _key(one) == _key(cell)) for one in rows)
        because = ["its inputs"] * reads_it
        because += ["its model"] * (row["model_digest"] in resting)
        if because:
            forecasts.append(row | {"because": because})
    return {"models": models, "forecasts": forecasts}


def _key(row: Row) -> tuple[Any, ...]:
    return row["series"], row["period"], row["known_from"]


def _values(rows: list[Row]) -> list[tuple[Any, ...]]:
    return [(row["series"], row["period"], row["value"]) for row in rows]


def rows_used(
    connection: Connection, needed: dict[str, int], known_at: datetime, loads: dict[str, int], also: Sequence[int] = ()
) -> list[Row]:
    """The rows behind a forecast by both clocks; `needed` as `reach` of the model's card."""
    asked = {"names": list(needed), "reach": list(needed.values()), "known_at": known_at, "loads": json.dumps(loads)}
    return fetch(connection, USED, asked | {"also": list(also)})


def files(connection: Connection, load_ids: list[int]) -> list[Row]:
    """The loads, and whether the bytes kept of each still have their hash."""
    found = fetch(
        connection,
        "SELECT load_id, dataset, kind, origin, status, request, request->>'file' AS file, payload_sha256 AS sha256,"
        " committed_at, code_version, parser_version, rules FROM load WHERE load_id = ANY(%s) ORDER BY load_id",
        [load_ids],
    )
    for one in found:
        try:
            with raw.opened(connection, one["sha256"]):
                one["hash_holds"] = True
        except (ServiceError, zlib.error):
            one["hash_holds"] = False
    return found


def load_lines(load: Row) -> list[str]:
    state = "kept bytes hold the hash" if load["hash_holds"] else "KEPT BYTES DO NOT HOLD THE HASH"
    of = f", {load['kind']} of load {load['origin']}" if load["origin"] else ""
    return [
        f"load    {load['load_id']} {load['committed_at']:%Y-%m-%d %H:%M} {load['file']}{of}",
        f"        sha256:{load['sha256']}, {state}",
    ]


def _forward_lines(found: dict[str, Any]) -> list[str]:
    lines = []
    for one in found["models"]:
        clocks = one["trained_as_of"]
        lines.append(f"model   {one['version']} ({one['digest']}) read {', '.join(one['series'])}")
        lines.append(f"        as of {clocks['known_at']}, data version {clocks['data_version']}")
    for one in found["forecasts"]:
        lines.append(f"told    {one['series']} on {one['made_at']:%Y-%m-%d %H:%M}, by {' and '.join(one['because'])}")
        lines.append(f"        as of {one['known_at'].isoformat()}, data version {one['data_version']}")
    return lines or ["no registered model and no recorded forecast rests on it"]


def observation_text(found: dict[str, Any]) -> str:
    cell, load, clocks = found["observation"], found["load"], found["as_of"]
    value = f"{cell['value']:g} ({cell['unit']})" if cell["state"] == "value" else cell["state"]
    rules = load["rules"] or {}
    return "\n".join(
        [
            f"value   {cell['series']} {cell['period']} {value}, known from {cell['known_from']:%Y-%m-%d}",
            f"as of   {clocks['known_at']}, data version {clocks['data_version']}",
            *load_lines(load),
            f"code    {load['code_version'] or 'not recorded'}, parser {load['parser_version']}",
            f"rules   {json.dumps({part: rules[part] for part in rules if part != 'series'})}",
            f"        {json.dumps(rules.get('series', {}).get(cell['series']))}",
            *_forward_lines(found),
        ]
    )


def affected_text(found: dict[str, Any]) -> str:
    load = found["load"]
    by = [f"load {one} says it right; below is what read it wrong" for one in found["corrected_by"][-1:]]
    again = ["make again: `train` for the models, then `forecast --record`"] if found["models"] else []
    again = again or ["make again: `forecast --record`"] * bool(found["forecasts"])
    return "\n".join([*load_lines(load), *[f"        {one}" for one in by], *_forward_lines(found), *again])
