"""Rows on their way into `observation`: staged as they came, judged against what was known, stored where they differ.

Only what changed is stored, against what was known just before a row's own `known_from`. A vintage that arrives after a
later one would show through wherever the later one was found unchanged; so what the later ones stated about the touched
cells is read again from their kept bytes, and stored too. A vintage's first statement about a cell stays in force.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg

from model_service.contract import Series
from model_service.errors import ServiceError
from model_service.periods import instant, microseconds
from model_service.store import judge as sql
from model_service.store import wire
from model_service.store.connection import Connection

Cells = npt.NDArray[np.void]  # of dtype CELLS
Batches = Iterable[Cells]

# Times in microseconds since 1970, UTC; state 0 value, 1 missing, 2 deleted: the value is then NaN.
CELLS = np.dtype([("line", "i8"), ("series_id", "i4"), ("valid_time", "i8"), ("known_from", "i8"), ("value", "f8"),
                  ("state", "i2")])  # fmt: skip
OUTCOMES = ("new", "changed", "same", "deleted", "conflict", "vanished")
EMPTY_RANGE = (2**62, -(2**62))  # an empty range of time


def series_ids(connection: Connection, dataset: str, series: Mapping[str, Series]) -> dict[str, int]:
    """Registers what is new; raises ServiceError when a series changed its dataset, frequency or unit."""
    connection.execute(
        "INSERT INTO series (dataset, name, frequency, unit) SELECT %s, * FROM"
        " unnest(%s::text[], %s::text[], %s::text[]) AS declared (name, frequency, unit)"
        " WHERE name NOT IN (SELECT name FROM series) ON CONFLICT DO NOTHING",
        [dataset, list(series), [one.frequency for one in series.values()], [one.unit for one in series.values()]],
    )
    ids = {}
    for identity, name, *held in connection.execute(
        "SELECT series_id, name, dataset, frequency, unit FROM series WHERE name = ANY(%s)", [list(series)]
    ):
        declared = [dataset, series[name].frequency, series[name].unit]
        if held != declared:
            says = f"series {name} is held as {held}, service.toml says {declared}"
            raise ServiceError(f"{says}: give the new one a new name, or load into a new store (embedded: .local/)")
        ids[name] = identity
    return ids


@dataclass(frozen=True)
class Statement:
    """A committed load that said something about the dataset: whose bytes, as of when, and how to read them again."""

    load_id: int
    rank: int
    known: datetime
    scope: list[str]
    complete: bool
    cells: Callable[[], Batches]


@dataclass
class Landing:
    """One payload's cells within its load transaction; `landed` counts them by what they turned out to be.

    statements_since: what other loads said at that moment or later. newest: the latest moment that any speaks of.
    scope: ids of the series that the payload speaks of. complete: the moment at which it holds all there is of them.
    before: what was said by the load that this one corrects, the load itself first.
    vintage: the one moment that all cells speak of, where the payload has one.
    """

    connection: Connection
    load_id: int
    statements_since: Callable[[datetime], Iterable[Statement]]
    newest: datetime | None = None
    scope: list[int] = field(default_factory=list)
    complete: datetime | None = None
    before: list[Statement] = field(default_factory=list)
    vintage: datetime | None = None
    fetched: int = 0
    moments: set[int] = field(default_factory=set)
    landed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    _series: set[int] = field(default_factory=set)
    _first: int = EMPTY_RANGE[0]
    _last: int = EMPTY_RANGE[1]
    _sorted: bool = True
    _recalled: bool = False
    _held: tuple[int, int] | None = None
    _since: datetime | None = None

    def stage(self, batches: Batches) -> None:
        """Writes the cells into a table of this transaction's own, and notes what they speak of."""
        self.connection.execute(sql.TABLES)
        self._held = self._find_held()
        end = (-1, 0)
        for cells in batches:
            if not len(cells):
                continue
            self.fetched += len(cells)
            self.moments |= _distinct(cells["known_from"])
            if self._held:
                cells = self._stored(cells, *self._held)  # noqa: PLW2901
                if not len(cells):
                    continue
            series, valid_time = cells["series_id"], cells["valid_time"]
            self._series |= _distinct(series)
            self._first, self._last = min(self._first, int(valid_time.min())), max(self._last, int(valid_time.max()))
            ahead = (series[1:] > series[:-1]) | (series[1:] == series[:-1]) & (valid_time[1:] > valid_time[:-1])
            self._sorted &= bool(ahead.all()) and end < (int(series[0]), int(valid_time[0]))
            end = (int(series[-1]), int(valid_time[-1]))
            wire.copy_in(self.connection, "stage", cells)
        if self._held and self.vintage and self.moments - {microseconds(self.vintage)}:
            raise ServiceError(f"a payload of {self.vintage} has cells of other moments; nothing was committed")
        if len(self.moments) > 50:
            self.connection.execute("CREATE INDEX ON stage (known_from); CREATE INDEX ON verdict (known_from)")
        self.connection.execute("ANALYZE stage")

    def land(self) -> None:
        """Judges the stage, moment by moment, and stores what is new, changed, deleted or vanished."""
        if self.before:
            self._read(self.before, "old")
        about: dict[str, Any] = {}
        if self._series:
            about = {"series": sorted(self._series), "first": instant(self._first), "last": instant(self._last)}
        moments = [instant(known) for known in sorted(self.moments)]
        once = self._sorted or len(moments) == 1  # each cell
        if not self._series:
            pass
        elif not self.before and self.newest is None and once:
            order = "" if self._sorted else " ORDER BY series_id, valid_time"
            self.landed["new"] += self.connection.execute(sql.FIRST + order, [self.load_id]).rowcount
            gone = self.connection.execute("SELECT count(*) FROM stage WHERE state = 2").fetchone() or (0,)
            self.landed["same"] += gone[0]
        elif not self.before and (self.newest is None or moments[0] > self.newest):
            self.connection.execute(sql.MERGE.format("off"))
            self._land(sql.LAND_ONE if once else sql.LAND_SEVERAL, known=moments[0], **about)
            self.connection.execute(sql.MERGE.format("on"))
        else:
            for known in moments:
                self._judge(known, about)
                self._land(sql.LAND_JUDGED, known=known)
        if self.complete and (self.newest or self.before) and self._held != EMPTY_RANGE:
            self._vanish(self.complete)
        if self.before:
            self._withdraw()
        wanted = sum(self.landed[name] for name in ("new", "changed", "deleted", "vanished"))
        lie = "SELECT count(*), min(known_from) FROM observation WHERE load_id = %s"
        found, self._since = self.connection.execute(lie, [self.load_id]).fetchone() or (0, None)
        if found != wanted:
            raise ServiceError(f"load {self.load_id}: {found} rows lie there, not {wanted}; nothing was committed")

    def _find_held(self) -> tuple[int, int] | None:
        """First and last period of which anything is held; None where the cells may contradict what was said."""
        if self.vintage is None or self.before or (self.newest and self.vintage <= self.newest):
            return None
        held = self.connection.execute(sql.RANGE, [self.scope]).fetchone() if self.newest else None
        return (microseconds(held[0]), microseconds(held[1])) if held and held[0] else EMPTY_RANGE

    def _stored(self, cells: Cells, first: int, last: int) -> Cells:
        """Stores what can be judged as it comes: values of periods before and after all that is held, and those of a
        block of cells that differ from what is held. Returns the other cells.
        """
        valued = cells["state"] == 0
        store, changed = valued & ((cells["valid_time"] < first) | (cells["valid_time"] > last)), 0
        inside, done = valued & ~store, store.copy()
        if not self.complete and sql.is_block(cells[inside]):
            new, same = sql.in_force(self.connection, cells[inside])
            store[inside], done, changed = ~same, valued, int((~(new | same)).sum())
            self.landed["same"] += int(same.sum())
        if store.any():
            stored = cells[store]
            stored["line"] = self.load_id
            self.landed["new"] += wire.copy_in(self.connection, sql.DIRECT, stored) - changed
            self.landed["changed"] += changed
        rest: Cells = cells[~done]
        return rest

    def _judge(self, known: datetime, about: Mapping[str, Any]) -> None:
        """Fills the verdict of one moment, of which or after which other loads may have spoken."""
        self._do(sql.MATCH, known=known, **about)
        if self.newest and known <= self.newest and self._do(sql.NEWS, known=known).rowcount:
            self._recall(known)
            self._do(sql.CONFLICT, known=known)

    def _land(self, statement: str, **asked: Any) -> None:
        for outcome, count in self._do(statement, **asked).fetchall():
            self.landed[outcome] += count

    def conflicts(self) -> Iterator[tuple[int, str, datetime, str, str]]:
        """Line, series, valid_time, value and detail of each cell that contradicts its vintage's first statement."""
        yield from self.connection.execute(sql.CONFLICTS).fetchall()

    def late(self, draw: Callable[[], int]) -> dict[int, tuple[int, int]]:
        """Stores what later vintages said of the cells that this load touched.

        Returns {load that said it: (load that brings its rows, number of rows)}; `draw` gives a new load's number.
        """
        since = self._since
        if since is None or self.newest is None or self.newest <= since:
            return {}
        self.connection.execute(sql.TOUCH, [self.load_id])
        self._recall(since)
        origins = self.connection.execute("SELECT DISTINCT load_id FROM stated ORDER BY 1").fetchall()
        numbers = {origin: draw() for (origin,) in [*origins, (self.load_id,)]}
        self.connection.execute("CREATE INDEX ON touched (series_id, valid_time); ANALYZE touched")
        for known, withdrawn in self.connection.execute(sql.LATER, {"since": since}).fetchall():
            self._do(sql.INSERT_LATE, known=known, origins=list(numbers), lates=list(numbers.values()))
            if withdrawn:
                self._do(sql.RESTORE, known=known, late=numbers[self.load_id])
        counted = "SELECT load_id, count(*) FROM observation WHERE load_id = ANY(%s) GROUP BY 1"
        counts = dict(self.connection.execute(counted, [list(numbers.values())]).fetchall())
        return {origin: (late, counts[late]) for origin, late in numbers.items() if late in counts}

    def _vanish(self, known: datetime) -> None:
        if self.newest and known <= self.newest:
            self._recall(known)
        # What was stored as it came lies outside of what was held.
        first, last = map(instant, self._held) if self._held else ("-infinity", "infinity")
        about = {"series": self.scope, "first": first, "last": last, "known": known}
        self.landed["vanished"] += self._do(sql.VANISH, **about).rowcount

    def _withdraw(self) -> None:
        for known in self._said_before():
            if known != self.complete:  # there, what the bytes lack has vanished
                self._recall(known)
                self.landed["vanished"] += self._do(sql.WITHDRAW, known=known).rowcount

    def _said_before(self) -> list[datetime]:
        """The moments that the load to be corrected spoke of."""
        if not self.before:
            return []
        moments = "SELECT DISTINCT known_from FROM old ORDER BY 1"
        return [known for (known,) in self.connection.execute(moments).fetchall()]

    def _recall(self, since: datetime) -> None:
        """Reads again what other loads said from `since` on about the cells in question; once is enough."""
        if self._recalled:
            return
        self._recalled = True
        if self.complete or self.before:
            self.connection.execute(sql.CELLS_ALL, [self.scope])
        else:
            self.connection.execute(sql.CELLS_STAGED)
        for said in self.statements_since(min([since, *self._said_before()])):
            self._read([said], "again")
            asked = {"load": said.load_id, "rank": said.rank, "known": said.known, "scope": said.scope}
            self.connection.execute(sql.REMEMBER, asked)
            if said.complete:
                self.connection.execute(sql.REMEMBER_ABSENT, asked)
            self.connection.execute("DROP TABLE again")
        self.connection.execute("CREATE INDEX ON stated (known_from, series_id, valid_time, rank); ANALYZE stated")

    def _read(self, loads: list[Statement], into: str) -> None:
        self.connection.execute(f"CREATE TEMP TABLE {into} (LIKE stage) ON COMMIT DROP")
        for said in loads:
            for cells in said.cells():
                wire.copy_in(self.connection, into, cells)

    def _do(self, statement: str, **asked: Any) -> psycopg.Cursor[Any]:
        own = {"load": self.load_id, "rank": self.before[0].rank if self.before else self.load_id}
        return self.connection.execute(statement, own | asked)


def _distinct(column: npt.NDArray[np.integer[Any]]) -> set[int]:
    """Its values; they mostly come in runs, so that sorting all of them would be the slower way."""
    return set(column[np.flatnonzero(np.diff(column, prepend=column[0] - 1))].tolist())
