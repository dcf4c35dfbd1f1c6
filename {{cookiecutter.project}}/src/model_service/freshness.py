"""Is what we hold as new as it should be: each dataset against its cadence, each series against the rest of it."""

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta

from model_service import periods
from model_service.contract import CADENCE_DAYS, Contract
from model_service.store.connection import Connection

STATES = ("late", "frozen", "discontinued")
GRACE_DAYS = 3  # at least, and half the cadence: weekends, holidays
FROZEN_AFTER = 3  # cadences over which fetching brought nothing new
SHOWN = 10  # names in a line
DISCONTINUED_AFTER = 3  # periods that others of its dataset went on


@dataclass(frozen=True)
class Freshness:
    """newest: when the newest value became known. fetched: when the source was last read to its end. UTC."""

    dataset: str
    newest: datetime | None
    fetched: datetime | None
    cadence: timedelta
    now: datetime
    discontinued: tuple[str, ...]

    @property
    def frozen(self) -> bool:
        """It is fetched, but has been the same for several cadences."""
        return bool(self.newest and self.fetched and self.fetched - self.newest > FROZEN_AFTER * self.cadence)

    @property
    def late(self) -> bool:
        """Nothing new became known for longer than cadence and grace; what is frozen is called so."""
        grace = max(timedelta(days=GRACE_DAYS), self.cadence / 2)
        return bool(self.newest and not self.frozen and self.now - self.newest > self.cadence + grace)

    @property
    def states(self) -> dict[str, int]:
        """How much there is of each of STATES: 0 or 1, and the number of discontinued series."""
        return {"late": int(self.late), "frozen": int(self.frozen), "discontinued": len(self.discontinued)}

    @property
    def ok(self) -> bool:
        return self.newest is not None and not any(self.states.values())

    @property
    def says(self) -> str:
        if self.newest is None:
            return "nothing has been loaded yet: run `load`"
        state = "frozen: fetched without anything new" if self.frozen else "late" if self.late else "fresh"
        since = f"the newest value became known {(self.now - self.newest).days} days ago"
        names = [*self.discontinued[:SHOWN], *["..."] * (len(self.discontinued) > SHOWN)]
        stopped = f"; discontinued ({len(self.discontinued)}): {', '.join(names)}" if names else ""
        return f"{state}; {since}, expected every {self.cadence.total_seconds() / 86_400:g} days{stopped}"


def of(connection: Connection, contract: Contract, dataset: str, now: datetime) -> Freshness:
    newest, fetched = connection.execute(
        "SELECT (SELECT max(known_last) FROM load WHERE dataset = %(dataset)s AND status <> 'blocked'"
        " AND new + changed + deleted + vanished > 0), (SELECT max(finished_at) FROM attempt"
        " WHERE dataset = %(dataset)s AND outcome IN ('done', 'nothing new'))",
        {"dataset": dataset},
    ).fetchone() or (None, None)
    stopped = _discontinued(connection, contract, dataset, newest) if newest else ()
    return Freshness(dataset, newest, fetched, timedelta(days=contract.cadence_days(dataset)), now, stopped)


def _discontinued(connection: Connection, contract: Contract, dataset: str, newest: datetime) -> tuple[str, ...]:
    """Series whose next value was due several periods before others of the dataset had their last."""
    series, found = contract.of_source(dataset), []
    for name, last in connection.execute(
        "SELECT n.name, last.valid_time FROM series n CROSS JOIN LATERAL (SELECT valid_time FROM observation o"
        " WHERE o.series_id = n.series_id AND 0 = (SELECT state FROM observation k WHERE k.series_id = o.series_id"
        " AND k.valid_time = o.valid_time ORDER BY k.known_from DESC, k.load_id DESC LIMIT 1)"
        " ORDER BY valid_time DESC LIMIT 1) last WHERE n.name = ANY(%s) ORDER BY 1",
        [list(series)],
    ):
        declared = series[name]
        ended = periods.end(declared.frequency, periods.ordinal(declared.frequency, last.date()))
        published = datetime.combine(ended, time.min, UTC) + timedelta(days=declared.release_lag_days)
        if newest - published > timedelta(days=max(GRACE_DAYS, DISCONTINUED_AFTER * CADENCE_DAYS[declared.frequency])):
            found.append(name)
    return tuple(found)


def quarantined(connection: Connection) -> dict[str, int]:
    """Cells by the rule that put them into quarantine, where nothing was done about them yet."""
    return dict(
        connection.execute(
            "SELECT rule, count(*) FROM quarantine q WHERE NOT EXISTS ("
            "SELECT FROM quarantine_action a WHERE a.quarantine_id = q.quarantine_id) GROUP BY 1 ORDER BY 1"
        ).fetchall()
    )
