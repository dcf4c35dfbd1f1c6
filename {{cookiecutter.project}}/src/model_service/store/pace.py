"""Turns at a provider: one budget for all copies of the loader that share the database."""

from dataclasses import dataclass
from typing import Any

import psycopg

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
    """Each call is one statement, on an autocommitting connection a transaction of its own: no copy waits for another.

    Without a connection there is no budget.
    """

    connection: psycopg.Connection[Any] | None = None

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
