"""What a serving process holds: the model, the last forecast, and its ways to database and audit trail."""

import asyncio
import contextlib
import contextvars
import gc
import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import psycopg

from model_service import artifact, explain, forecasting, freshness, live, registry, settings
from model_service.contract import Contract
from model_service.errors import ServiceError, UsageError
from model_service.serving.edge import Problem, wrong
from model_service.store import connection as store
from model_service.store import read
from model_service.telemetry import request_id
from model_service.telemetry.audit import Audit
from model_service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

REFRESH_SECONDS = 15.0
DATABASE_THREADS = 4  # also the most connections that one process holds
NO_DATA = (forecasting.NoDataYet, forecasting.InputsMissing, read.UnknownDataVersion)
T = TypeVar("T")
Connection = psycopg.Connection[Any]


class Away(Exception):
    """The database did not answer; the message is the reason that a degraded answer names."""


class Runtime:
    """Made once per process; `start` and `stop` are called by whatever serves the app."""

    def __init__(self, contract: Contract, folder: Path) -> None:
        self.contract = contract
        self.metrics = Metrics(contract.alerts)
        self.audit = Audit(os.environ.get("ELASTICSEARCH_URL"), self.metrics.audit)
        self._folder = folder
        self._model: artifact.Model | None = None
        self._explainer: explain.Explainer | None = None
        self._fault = "the model is not loaded yet"
        self._last: dict[str, Any] | None = None
        self._threads = ThreadPoolExecutor(DATABASE_THREADS, "database")
        self._refresher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Loads the model. One that cannot be loaded does not stop the process: it says so at /readyz."""
        try:
            self._model = await asyncio.to_thread(artifact.load, self._folder)
            log.info("model %s answers; the report of its training is at /report", self._model.digest)
        except ServiceError as error:
            self._fault = str(error)
            log.error("model not loaded: %s", error)
        self.metrics.facts.model = self._model
        self.audit.start()
        self._refresher = asyncio.create_task(self._refresh())
        gc.collect()
        gc.freeze()  # what start-up made stays: full collections need not walk it

    async def stop(self) -> None:
        if self._refresher:
            self._refresher.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self.audit.stop)

    @property
    def model(self) -> artifact.Model:
        """The model; raises Problem 503 when none could be loaded."""
        if self._model is None:
            raise Problem(503, f"no model to answer with: {self._fault}")
        return self._model

    async def report(self) -> bytes:
        """The page about the model's training; raises Problem 404 where none came with the model."""
        try:
            return await asyncio.to_thread((self._folder / artifact.REPORT).read_bytes)
        except OSError:
            says = "no report came with this model: `train` writes one, `make build` packs it beside the model"
            raise Problem(404, says) from None

    async def check(self) -> None:
        """Verifies the files on disk and replays golden examples; raises Problem 503."""
        try:
            await asyncio.to_thread(self.model.check)
        except ServiceError as error:
            log.error("not ready: %s", error)
            raise Problem(503, f"not ready: {error}") from None

    async def forecast(
        self, known_at: datetime | None, data_version: str | None, horizons: list[int] | None
    ) -> dict[str, Any]:
        """Body of /v1/forecast. Without explicit clocks the steps of `serving.fallback` may stand in for the database.

        Raises Problem 404 (before the first value, unknown data version), 422 (horizon), 503 (nothing may stand in).
        """
        model = self.model
        explicit = known_at is not None or data_version is not None
        try:
            wanted = forecasting.trained(model, horizons)
            body = await self._ask(
                lambda connection: forecasting.answer(self.contract, model, connection, known_at, data_version, None)
            )
        except forecasting.UnknownHorizon as error:
            raise wrong([("horizon", error.detail)], trained_horizons=model.horizons) from None
        except NO_DATA as error:
            if explicit:
                raise self._no_data(error) from None
            body = self._stand_in(model, "no_data")
        except Away as away:
            if explicit:
                raise Problem(503, f"an explicit as-of needs the database, and it is away ({away})") from None
            body = self._stand_in(model, str(away))
        else:
            self._last = self._last if explicit else body
        return body | {"forecasts": [part for part in body["forecasts"] if part["horizon"] in wanted]}

    async def explained(
        self, known_at: datetime | None, data_version: str | None, horizons: list[int] | None
    ) -> dict[str, Any]:
        """What each series did to the forecast; nothing stands in for it: where it cannot be made it is not answered.

        Raises Problem 404, 422, 501 and 503.
        """
        model, explainer = self.model, await self.explainer()

        def question(connection: Connection) -> dict[str, Any]:
            known = forecasting.asked(self.contract, model, connection, known_at, data_version)
            return explain.of_forecast(self.contract, explainer, known, wanted)

        try:
            wanted = forecasting.trained(model, horizons)
            return await self._ask(question)
        except forecasting.UnknownHorizon as error:
            raise wrong([("horizon", error.detail)], trained_horizons=model.horizons) from None
        except NO_DATA as error:
            raise self._no_data(error) from None
        except Away as away:
            raise Problem(503, f"a forecast is explained from the database, and it is away ({away})") from None

    async def explainer(self) -> explain.Explainer:
        """Made at the first question, so that no start waits for it; raises Problem 501 for a model without one."""
        if self._explainer is None:
            try:
                self._explainer = await asyncio.to_thread(explain.Explainer, self.model)
            except explain.NotExplained as error:
                raise Problem(501, str(error)) from None
        return self._explainer

    def answered(self, route: str, inputs: Mapping[str, Any], output: Any, count: int, **more: Any) -> None:
        """Counts an answer of `count` predictions, and puts it into the audit trail."""
        self.metrics.predictions.labels(route).inc(count)
        identifier = str(request_id.get())
        document = {
            "service": {"name": self.contract.service.name},
            "http": {"request": {"id": identifier}},
            "route": route,
            "model": self.model.name,
            "image": {"digest": os.environ.get("IMAGE_DIGEST") or None},
            "inputs": inputs,
            "output": output,
        }
        self.audit.put(identifier, datetime.now(UTC), document | more)

    @staticmethod
    def _no_data(error: Exception) -> Problem:
        first = getattr(error, "first_usable", None)
        return Problem(404, str(error), **({"first_usable": first.date().isoformat()} if first else {}))

    def _stand_in(self, model: artifact.Model, reason: str) -> dict[str, Any]:
        if not self.contract.serving.fallback:
            raise Problem(503, f"no forecast can be made ({reason}), and serving.fallback lets nothing stand in for it")
        source = self.contract.serving.fallback[0]  # the artifact holds both kinds, so the first step always succeeds
        held = self._last if source == "last_forecast" and self._last else model.held
        self.metrics.degraded.labels(reason).inc()
        log.warning("degraded answer", extra={"ecs": {"event.reason": reason, "event.action": source}})
        return forecasting.degraded(model, held, reason, source)

    async def _ask(self, question: Callable[[Connection], T]) -> T:
        """`question` with a connection of its own, off the event loop; raises Away within serving.timeout_seconds."""
        seconds = self.contract.serving.timeout_seconds
        work = contextvars.copy_context().run
        future = asyncio.get_running_loop().run_in_executor(self._threads, work, self._connected, question, seconds)
        try:
            return await asyncio.wait_for(future, seconds)
        except TimeoutError:
            raise Away("database_timeout") from None

    @staticmethod
    def _connected(question: Callable[[Connection], T], seconds: float) -> T:
        try:
            url = settings.database_url()
            if not url:
                raise Away("database_not_configured")
            bound, wait = f"-c statement_timeout={seconds * 1000:.0f}", max(1, round(seconds))
            with store.connect(url, "reader", connect_timeout=wait, options=bound) as connection:
                return question(connection)
        except UsageError:
            raise Away("database_not_configured") from None
        except (psycopg.Error, store.DatabaseAway) as error:
            log.warning("database: %s", error)
            raise Away("database_away") from None

    async def _refresh(self) -> None:
        """Keeps what the metrics and a later stand-in need; it never ends, whatever the database does."""
        facts = self.metrics.facts
        while True:
            try:
                seen, body = await self._ask(self._look)
                vars(facts).update(seen, database_up=True)
                self._last = body or self._last
            except Away:
                facts.champion, facts.database_up = None, False
            except Exception:
                log.exception("refresh failed")
            await asyncio.sleep(REFRESH_SECONDS)

    def _look(self, connection: Connection) -> tuple[dict[str, Any], dict[str, Any] | None]:
        champion = registry.champion(connection)
        body = None
        if self._model:
            with contextlib.suppress(*NO_DATA):
                body = forecasting.answer(self.contract, self._model, connection, None, None, None)
        now = datetime.now(UTC)
        seen = {
            "champion": champion.digest if champion else None,
            "fresh": [freshness.of(connection, self.contract, dataset, now) for dataset in self.contract.source],
            "quarantined": freshness.quarantined(connection),
            "live": live.errors(self.contract, connection),
        }
        return seen, body
