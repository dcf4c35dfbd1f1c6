"""What the copies of a loader share of a provider: up to where it was read, and whose turn it is to ask."""

from collections.abc import Mapping
from dataclasses import dataclass

from model_service.errors import ServiceError
from model_service.store.connection import Connection

TAKE = """
WITH taken AS (
    INSERT INTO pace AS p VALUES (%(provider)s, clock_timestamp() + %(seconds)s * interval '1 second')
    ON CONFLICT (provider) DO UPDATE SET free_at = excluded.free_at WHERE p.free_at <= clock_timestamp()
    RETURNING free_at)
SELECT CASE WHEN EXISTS (SELECT FROM taken) THEN 0 ELSE greatest(0.01, coalesce(
    (SELECT extract(epoch FROM free_at - clock_timestamp()) FROM pace WHERE provider = %(provider)s), 0)) END
"""
REST = """
INSERT INTO pace AS p VALUES (%(provider)s, clock_timestamp() + %(seconds)s * interval '1 second')
ON CONFLICT (provider) DO UPDATE SET free_at = greatest(p.free_at, excluded.free_at)
"""


@dataclass(frozen=True)
class Pace:
    """Turns at a provider, by one budget for all copies; without a connection there is no budget.

    Each call is one statement, on an autocommitting connection a transaction of its own: no copy waits for another.
    """

    connection: Connection | None = None

    def take(self, provider: str, seconds: float) -> float:
        """Takes the turn when it is free, and then nobody has one for so many seconds: 0. Else when to try again."""
        if self.connection is None:
            return 0.0
        row = self.connection.execute(TAKE, {"provider": provider, "seconds": seconds}).fetchone()
        return float(row[0]) if row else 0.0

    def rest(self, provider: str, seconds: float) -> None:
        """Nobody asks for at least so many seconds from now."""
        if self.connection is not None:
            self.connection.execute(REST, {"provider": provider, "seconds": seconds})


def positions(connection: Connection, dataset: str) -> dict[str, str]:
    """Up to where each part of the dataset's source was read: its partitions, or tables."""
    return dict(connection.execute("SELECT part, stands FROM position WHERE dataset = %s", [dataset]).fetchall())


def move(connection: Connection, dataset: str, moves: Mapping[str, tuple[str | None, str]], load_id: int) -> None:
    """Moves parts of a source, in a load's commit, from where they stood, None where nowhere.

    Raises ServiceError when another copy moved one meanwhile.
    """
    for part, (before, after) in moves.items():
        asked = {"dataset": dataset, "part": part, "before": before, "after": after, "load": load_id}
        moved = connection.execute(
            "INSERT INTO position VALUES (%(dataset)s, %(part)s, %(after)s, %(load)s) ON CONFLICT DO NOTHING"
            if before is None
            else "UPDATE position SET stands = %(after)s, load_id = %(load)s"
            " WHERE dataset = %(dataset)s AND part = %(part)s AND stands = %(before)s",
            asked,
        ).rowcount
        if not moved:
            raise ServiceError(f"{dataset}: another copy read {part} meanwhile; nothing was committed")
