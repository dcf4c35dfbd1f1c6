"""What the service asks its database: in a slot, with a connection of its own, and in time."""

import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import psycopg

from model_service import forecasting, freshness, live, registry, settings
from model_service.contract import Contract
from model_service.errors import ServiceError, UsageError
from model_service.serving.edge import Problem
from model_service.serving.slots import Slots, Unavailable, run_within
from model_service.store import connection as store
from model_service.store import read

log = logging.getLogger(__name__)

T = TypeVar("T")
NO_DATA = (forecasting.NoDataYet, forecasting.InputsMissing, read.UnknownDataVersion)


class Database:
    """The one of DATABASE_URL; no question takes longer than `seconds`."""

    def __init__(self, contract: Contract, seconds: float) -> None:
        self.contract, self.seconds = contract, seconds

    def ask(self, slots: Slots, question: Callable[[store.Connection], T]) -> Awaitable[T]:
        """What `question` gives; raises Unable and Full."""
        return run_within(slots, self.seconds, "database_timeout", lambda: self._connected(question))

    def _connected(self, question: Callable[[store.Connection], T]) -> T:
        try:
            url = settings.database_url()
            if not url:
                raise Unavailable("database_not_configured")
            bound, wait = f"-c statement_timeout={self.seconds * 1000:.0f}", max(1, round(self.seconds))
            with store.connect(url, "reader", connect_timeout=wait, options=bound) as connection:
                return question(connection)
        except UsageError:
            raise Unavailable("database_not_configured") from None
        except NO_DATA:
            raise
        except (psycopg.Error, ServiceError) as error:  # also of the inputs: one's own function, another service.toml
            reason = "database_away" if isinstance(error, psycopg.Error | store.DatabaseAway) else "inputs_failed"
            log.warning("%s: %s", reason, error)
            raise Unavailable(reason) from None

    def seen(self, connection: store.Connection) -> dict[str, Any]:
        """What the metrics tell of model and data; a question."""
        champion, now = registry.champion(connection), datetime.now(UTC)
        return {
            "champion": champion.digest if champion else None,
            "fresh": [freshness.of(connection, self.contract, dataset, now) for dataset in self.contract.source],
            "quarantined": freshness.quarantined(connection),
            "live": live.errors(self.contract, connection),
        }


def no_data(error: Exception) -> Problem:
    """404 for one of NO_DATA; it names the first usable date, where there is one."""
    first = getattr(error, "first_usable", None)
    return Problem(404, str(error), **({"first_usable": first.date().isoformat()} if first else {}))
