"""How cells are judged against what was known; the statements that judge and store those staged: see `observations`.

stage: this load's cells. verdict: what follows from each, where other loads may have spoken at its moment or later.
stated: what they said of the same cells then, by rank (the order of the loads that said it first).
"""

import numpy as np
import numpy.typing as npt

from model_service.periods import instant
from model_service.store import wire
from model_service.store.connection import Connection

Cells = npt.NDArray[np.void]
Flags = npt.NDArray[np.bool_]

KEPT = np.dtype([("series_id", "i4"), ("valid_time", "i8"), ("value", "f8"), ("state", "i2")])

TABLES = """
CREATE TEMP TABLE stage (line bigint, series_id integer, valid_time timestamptz, known_from timestamptz,
    value double precision, state smallint) ON COMMIT DROP;
CREATE TEMP TABLE verdict (line bigint, series_id integer, valid_time timestamptz, known_from timestamptz,
    value double precision, state smallint, held double precision, outcome text) ON COMMIT DROP;
CREATE TEMP TABLE stated (series_id integer, valid_time timestamptz, known_from timestamptz,
    value double precision, state smallint, load_id bigint, rank bigint) ON COMMIT DROP;
SET LOCAL work_mem = '64MB'; SET LOCAL jit = off;
"""

# What was known at %(known)s of the series and periods in question, this load's own rows among it.
AS_OF = """
SELECT DISTINCT ON (o.series_id, o.valid_time) o.series_id, o.valid_time, o.known_from, o.value, o.state
FROM observation o
WHERE o.series_id = ANY(%(series)s) AND o.valid_time BETWEEN %(first)s AND %(last)s AND o.known_from <= %(known)s
ORDER BY o.series_id, o.valid_time, o.known_from DESC, o.load_id DESC
"""
# A cell against what was known before it.
OUTCOME = """
CASE WHEN s.state = coalesce({state}, 2) AND (s.state <> 0 OR {value} = s.value) THEN 'same'
     WHEN s.state = 2 THEN 'deleted'
     WHEN coalesce({state}, 2) = 2 THEN 'new'
     ELSE 'changed' END
"""
HELD = OUTCOME.format(state="h.state", value="h.value")
# Of a cell stated at several moments, the statement before stands between it and what is held.
EARLIER = OUTCOME.format(
    state="coalesce(lag(s.state) OVER w, h.state)",
    value="CASE WHEN lag(s.state) OVER w IS NULL THEN h.value ELSE lag(s.value) OVER w END",
)
# Cells of one vintage that are new whatever else comes go there by COPY, a fifth faster than INSERT and without the
# stage; in its binary format no value may be NULL.
DIRECT = "observation (load_id, series_id, valid_time, known_from, value, state)"
RANGE = """
SELECT min(a.valid_time), max(b.valid_time) FROM unnest(%s::integer[]) AS scope (series_id)
CROSS JOIN LATERAL (
    SELECT valid_time FROM observation o WHERE o.series_id = scope.series_id ORDER BY valid_time LIMIT 1) a
CROSS JOIN LATERAL (
    SELECT valid_time FROM observation o WHERE o.series_id = scope.series_id ORDER BY valid_time DESC LIMIT 1) b
"""
# What is in force now, for a vintage that is later than all that is held.
IN_FORCE = """
SELECT series_id, valid_time, coalesce(value, 'NaN'), state FROM (
    SELECT DISTINCT ON (series_id, valid_time) series_id, valid_time, value, state FROM observation
    WHERE series_id = ANY(%s) AND valid_time BETWEEN %s AND %s
    ORDER BY series_id, valid_time, known_from DESC, load_id DESC) newest
ORDER BY series_id, valid_time
"""
# Where nothing was ever said of the series, and each cell is stated once.
FIRST = """
INSERT INTO observation (series_id, valid_time, known_from, load_id, value, state)
SELECT series_id, valid_time, known_from, %s, CASE state WHEN 0 THEN value END, state FROM stage WHERE state <> 2
"""
# What was judged is stored where it says something else than what is held, and is counted.
LAND = """
WITH judged AS MATERIALIZED ({judged}),
stored AS (
    INSERT INTO observation (series_id, valid_time, known_from, load_id, value, state)
    SELECT series_id, valid_time, known_from, %(load)s, CASE state WHEN 0 THEN value END, state
    FROM judged WHERE outcome <> 'same' AND outcome <> 'conflict')
SELECT outcome, count(*) FROM judged GROUP BY outcome
"""
# All moments at once, where each lies above whatever was said before: nothing there can be contradicted.
JUDGED = f"""
SELECT s.series_id, s.valid_time, s.known_from, s.value, s.state, {{outcome}} AS outcome
FROM stage s LEFT JOIN ({AS_OF}) h USING (series_id, valid_time) {{order}}
"""  # noqa: S608
LAND_ONE = LAND.format(judged=JUDGED.format(outcome=HELD, order="ORDER BY s.series_id, s.valid_time"))
LAND_SEVERAL = LAND.format(judged=JUDGED.format(
    outcome=EARLIER,
    order="WINDOW w AS (PARTITION BY s.series_id, s.valid_time ORDER BY s.known_from)"
    " ORDER BY s.series_id, s.valid_time, s.known_from",
))  # fmt: skip
# Of one moment, what the verdict says.
LAND_JUDGED = LAND.format(judged="SELECT * FROM verdict WHERE known_from = %(known)s ORDER BY series_id, valid_time")
# A hash join would read the index of `observation` in as many passes as it makes of its memory.
MERGE = "SET LOCAL enable_hashjoin = {}"
MATCH = f"""
INSERT INTO verdict
SELECT s.line, s.series_id, s.valid_time, s.known_from, s.value, s.state, h.value, {HELD}
FROM stage s LEFT JOIN ({AS_OF}) h USING (series_id, valid_time) WHERE s.known_from = %(known)s
"""  # noqa: S608
NEWS = "SELECT FROM verdict WHERE known_from = %(known)s AND outcome <> 'same' LIMIT 1"
# What was stated there first stays, also that there is no such cell: a complete payload of that moment lacked it.
CONFLICT = """
UPDATE verdict v SET outcome = 'conflict' FROM stated t
WHERE v.outcome <> 'same' AND v.known_from = %(known)s AND t.known_from = %(known)s
AND t.rank < %(rank)s AND t.series_id = v.series_id AND t.valid_time = v.valid_time
"""
# A cell in quarantine has not vanished; where its period could not be read, nothing of its series has.
VANISH = f"""
INSERT INTO observation (series_id, valid_time, known_from, load_id, value, state)
SELECT h.series_id, h.valid_time, %(known)s, %(load)s, NULL, 2 FROM ({AS_OF}) h JOIN series n USING (series_id)
WHERE h.state <> 2 AND NOT EXISTS (SELECT FROM stage s WHERE s.series_id = h.series_id AND s.valid_time = h.valid_time)
AND NOT EXISTS (SELECT FROM stated t WHERE t.series_id = h.series_id AND t.valid_time = h.valid_time
                AND t.known_from = %(known)s AND t.rank < %(rank)s)
AND NOT EXISTS (SELECT FROM quarantine q WHERE q.load_id = %(load)s
                AND coalesce(q.series, n.name) = n.name AND coalesce(q.valid_time, h.valid_time) = h.valid_time)
ORDER BY h.series_id, h.valid_time
"""  # noqa: S608
# What the corrected load had said and its bytes no longer give: what others said then, or what was known before it.
# Where nothing stands at that moment, nothing has to be taken back.
WITHDRAW = """
INSERT INTO observation (series_id, valid_time, known_from, load_id, value, state, status)
SELECT o.series_id, o.valid_time, o.known_from, %(load)s,
       CASE WHEN coalesce(t.state, b.state) = 0 THEN coalesce(t.value, b.value) END, coalesce(t.state, b.state, 2),
       CASE WHEN t.state IS NULL THEN 'withdrawn' END
FROM (SELECT DISTINCT series_id, valid_time, known_from FROM old WHERE known_from = %(known)s) o
JOIN LATERAL (
    SELECT known_from, value, state, status FROM observation p
    WHERE p.series_id = o.series_id AND p.valid_time = o.valid_time AND p.known_from <= o.known_from
    ORDER BY p.known_from DESC, p.load_id DESC LIMIT 1) w ON true
LEFT JOIN LATERAL (
    SELECT value, state FROM stated t WHERE t.series_id = o.series_id AND t.valid_time = o.valid_time
    AND t.known_from = o.known_from ORDER BY rank LIMIT 1) t ON true
LEFT JOIN LATERAL (
    SELECT value, state FROM observation p WHERE p.series_id = o.series_id AND p.valid_time = o.valid_time
    AND p.known_from < o.known_from ORDER BY p.known_from DESC, p.load_id DESC LIMIT 1) b ON true
WHERE CASE WHEN t.state IS NULL THEN w.known_from = o.known_from AND (w.status IS DISTINCT FROM 'withdrawn'
               OR w.state <> coalesce(b.state, 2) OR w.state = 0 AND w.value <> b.value)
           ELSE w.state <> t.state OR w.state = 0 AND w.value <> t.value END
AND NOT EXISTS (SELECT FROM stage s WHERE s.series_id = o.series_id AND s.valid_time = o.valid_time
                AND s.known_from = o.known_from)
AND NOT EXISTS (SELECT FROM quarantine q JOIN series n ON n.name = coalesce(q.series, n.name)
                WHERE q.load_id = %(load)s AND n.series_id = o.series_id
                AND coalesce(q.valid_time, o.valid_time) = o.valid_time)
"""
# The cells that other loads are asked about: those staged, or all that a complete payload or a correction can touch.
CELLS_STAGED = "CREATE TEMP TABLE cells ON COMMIT DROP AS SELECT DISTINCT series_id, valid_time FROM stage"
CELLS_ALL = f"{CELLS_STAGED} UNION SELECT DISTINCT series_id, valid_time FROM observation WHERE series_id = ANY(%s)"  # noqa: S608
CONFLICTS = """
SELECT v.line, s.name, v.valid_time, v.value::text,
       'this vintage already gave ' || coalesce(v.held::text, 'nothing') || '; the first statement stays in force'
FROM verdict v JOIN series s USING (series_id) WHERE v.outcome = 'conflict' ORDER BY v.line
"""
TOUCH = """
CREATE TEMP TABLE touched ON COMMIT DROP AS
SELECT series_id, valid_time, min(known_from) AS since FROM observation WHERE load_id = %s GROUP BY 1, 2
"""
REMEMBER = """
INSERT INTO stated SELECT r.series_id, r.valid_time, r.known_from, r.value, r.state, %(load)s, %(rank)s
FROM again r JOIN cells c USING (series_id, valid_time) JOIN series n USING (series_id)
WHERE NOT EXISTS (SELECT FROM quarantine q WHERE q.load_id = %(load)s AND q.rule = 'vintage_conflict'
                  AND q.line = r.line AND q.series = n.name)
"""
# A complete payload says of every cell of its scope that it lacks: there is none.
REMEMBER_ABSENT = """
INSERT INTO stated SELECT c.series_id, c.valid_time, %(known)s, 'NaN', 2, %(load)s, %(rank)s
FROM cells c JOIN series n USING (series_id)
WHERE n.name = ANY(%(scope)s) AND NOT EXISTS (
    SELECT FROM again r WHERE r.series_id = c.series_id AND r.valid_time = c.valid_time)
AND NOT EXISTS (SELECT FROM quarantine q WHERE q.load_id = %(load)s
                AND coalesce(q.series, n.name) = n.name AND coalesce(q.valid_time, c.valid_time) = c.valid_time)
"""
# Statements in force at one moment that differ from what is known there now: of several the first load's counts, and
# where that is this load nothing is missing.
INSERT_LATE = """
INSERT INTO observation (series_id, valid_time, known_from, load_id, value, state)
SELECT t.series_id, t.valid_time, %(known)s, m.late, CASE t.state WHEN 0 THEN t.value END, t.state
FROM (SELECT DISTINCT ON (series_id, valid_time) * FROM (
          SELECT series_id, valid_time, value, state, load_id, rank FROM stated WHERE known_from = %(known)s
          UNION ALL SELECT series_id, valid_time, value, state, %(load)s, %(rank)s FROM stage
          WHERE known_from = %(known)s) s
      ORDER BY series_id, valid_time, rank) t
JOIN touched c ON c.series_id = t.series_id AND c.valid_time = t.valid_time AND c.since < %(known)s
JOIN LATERAL (
    SELECT value, state FROM observation p WHERE p.series_id = t.series_id AND p.valid_time = t.valid_time
    AND p.known_from <= %(known)s ORDER BY p.known_from DESC, p.load_id DESC LIMIT 1) h ON true
JOIN (SELECT unnest(%(origins)s::bigint[]) AS origin, unnest(%(lates)s::bigint[]) AS late) m ON m.origin = t.load_id
WHERE t.load_id <> %(load)s AND (h.state <> t.state OR t.state = 0 AND h.value <> t.value)
"""
# Where a row was withdrawn, what was known before it is in force; so it changes with that.
LATER = """
SELECT known_from, bool_or(withdrawn) FROM (
    SELECT DISTINCT known_from, false AS withdrawn FROM stated WHERE known_from > %(since)s
    UNION ALL SELECT DISTINCT known_from, true FROM observation o JOIN touched USING (series_id, valid_time)
    WHERE o.status = 'withdrawn' AND o.known_from > %(since)s) s GROUP BY 1 ORDER BY 1
"""
RESTORE = """
INSERT INTO observation (series_id, valid_time, known_from, load_id, value, state, status)
SELECT c.series_id, c.valid_time, %(known)s, %(late)s, b.value, coalesce(b.state, 2), 'withdrawn'
FROM touched c
JOIN LATERAL (
    SELECT value, state, status FROM observation p WHERE p.series_id = c.series_id AND p.valid_time = c.valid_time
    AND p.known_from = %(known)s ORDER BY p.load_id DESC LIMIT 1) w ON w.status = 'withdrawn'
LEFT JOIN LATERAL (
    SELECT value, state FROM observation p WHERE p.series_id = c.series_id AND p.valid_time = c.valid_time
    AND p.known_from < %(known)s ORDER BY p.known_from DESC, p.load_id DESC LIMIT 1) b ON true
WHERE c.since < %(known)s AND (w.state <> coalesce(b.state, 2) OR w.state = 0 AND w.value <> b.value)
"""


def is_block(cells: Cells) -> bool:
    """Whether they are about nearly all periods of their series in a span: all that is held there is then of use."""
    return bool(len(cells)) and np.unique(cells["series_id"]).size * np.unique(cells["valid_time"]).size <= 2 * len(
        cells
    )


def in_force(connection: Connection, cells: Cells) -> tuple[Flags, Flags]:
    """Of values that are later than all that is held: which are new [n], and which are in force already [n]."""
    ends = instant(int(cells["valid_time"].min())), instant(int(cells["valid_time"].max()))
    held = wire.copy_out(connection, IN_FORCE, [np.unique(cells["series_id"]).tolist(), *ends], KEPT)
    held = held[held["state"] != 2]
    times, rank = np.unique(np.concatenate([held["valid_time"], cells["valid_time"]]), return_inverse=True)
    series = np.concatenate([held["series_id"], cells["series_id"]]).astype("i8")
    there, asked = np.split(series * times.size + rank, [len(held)])  # both in one order: of series, then of time
    place = np.searchsorted(there, asked)
    known = np.append(there, -1)[place] == asked
    same = known.copy()
    same[known] = (held["state"] == 0)[place[known]] & (held["value"][place[known]] == cells["value"][known])
    return ~known, same
