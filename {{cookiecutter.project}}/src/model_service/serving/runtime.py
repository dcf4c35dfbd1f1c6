"""What a serving process holds: the model, the last forecast, and its ways to database and audit trail."""

import asyncio
import gc
import logging
import os
import time
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from model_service import artifact, explain, forecasting
from model_service.arrays import Floats
from model_service.contract import Contract
from model_service.errors import ServiceError
from model_service.serving import door, watchdog
from model_service.serving.cache import Cache
from model_service.serving.database import NO_DATA, Database, no_data
from model_service.serving.edge import Problem, invalid
from model_service.serving.predictor import Predictor
from model_service.serving.shadow import Shadow
from model_service.serving.slots import Overloaded, Slots, Unavailable, in_time, run_within
from model_service.store.connection import Connection
from model_service.telemetry import request_id
from model_service.telemetry.audit import SMALL, Audit
from model_service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

REFRESH_SECONDS = 15.0
FRESH_SECONDS = 1.0  # for how long a forecast of now is one of now
START_SECONDS = 60.0
SHARE = 0.8  # of a request's time that one part of it, database or model, may take
T = TypeVar("T")


class Runtime:
    """Made once per process; `start` and `stop` are called by whatever serves the app."""

    def __init__(self, contract: Contract, folder: Path) -> None:
        self.contract, self._folder, self._share = contract, folder, contract.serving.timeout_seconds * SHARE
        self.metrics = Metrics(contract.alerts)
        self.audit = Audit(os.environ.get("ELASTICSEARCH_URL"), self.metrics.audit)
        limits, unanswered = contract.serving, self.metrics.unanswered
        self.door = door.Door(limits.timeout_seconds, limits.drain_seconds, unanswered, self.stop)
        self._cache = Cache(limits.cache_bytes, self.metrics.cache)
        self._database = Database(contract, self._share)
        patience, most = limits.timeout_seconds / 2, (limits.concurrency, limits.queue)
        self._slots = {kind: Slots(*most, patience, unanswered) for kind in ("database", "model")}
        self._own = Slots(2, 16, patience, unanswered)  # for what no caller waits for in line: readiness, the refresh
        self.metrics.of_slots({kind: partial(getattr, one) for kind, one in self._slots.items()})
        image = os.environ.get("IMAGE_DIGEST") or None
        self._head = {"service": {"name": contract.service.name}, "image": {"digest": image}}
        self.shadow = Shadow(folder / artifact.CHALLENGER, self.metrics.registry, self.audit, self._head, self._share)
        self._predictor: Predictor | None = None
        self._explainer: explain.Explainer | None = None
        self._fault = "the model is not loaded yet"
        self._last: dict[str, Any] | None = None
        self._refresher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Loads the model. One that cannot be loaded does not stop the process: it says so at /readyz."""
        self.door.watch()
        try:
            await run_within(self._own, START_SECONDS, "model_timeout", self._load)
            if says := forecasting.unlike(self.contract, self.model.card, self.model.version):
                log.warning(says)
            log.info("model %s answers; the report of its training is at /report", self.model.digest)
        except (ServiceError, Unavailable) as error:
            self._fault = str(error)
            log.error("model not loaded: %s", error)
        self.audit.start()
        watchdog.start(self._slots | {"service": self._own}, self.contract.serving.timeout_seconds, self.audit.stop)
        self._refresher = asyncio.create_task(self._refresh())
        gc.collect()
        gc.freeze()  # what start-up made stays: full collections need not walk it

    def _load(self) -> None:
        model, limits, slots = artifact.load(self._folder), self.contract.serving, self._slots["model"]
        self._predictor = Predictor(model, limits, slots, self._cache, self._share, self.door)
        self.metrics.facts.model = model
        self.shadow.start(model)

    async def stop(self) -> None:
        """May be called again."""
        if self._refresher:
            self._refresher.cancel()
        if self._predictor:
            self._predictor.stop()
        self.shadow.stop()
        await asyncio.to_thread(self.audit.stop)

    @property
    def predictor(self) -> Predictor:
        """Asks the model; raises Problem 503 when none could be loaded."""
        if self._predictor is None:
            raise Problem(503, f"no model to answer with: {self._fault}")
        return self._predictor

    @property
    def model(self) -> artifact.Model:
        """As `predictor`."""
        return self.predictor.model

    async def report(self) -> bytes:
        """The page about the model's training; raises Problem 404 where none came with the model, and 503."""
        try:
            return await self._aside((self._folder / artifact.REPORT).read_bytes, "the report")
        except OSError:
            says = "no report came with this model: `train` writes one, `make build` packs it beside the model"
            raise Problem(404, says) from None

    async def check(self) -> None:
        """Verifies the files on disk and replays golden examples; raises Problem 503, also before a stop."""
        self.door.asked = time.monotonic()
        if self.door.stopping:
            raise Problem(503, "not ready: about to stop")
        if hung := [kind for kind, slots in self._slots.items() if slots.lost >= slots.capacity]:
            raise Problem(503, f"not ready: as many threads as are allowed for the {hung[0]} hang")
        try:
            await self._aside(self.model.check, "not ready: its examples")
        except ServiceError as error:
            log.error("not ready: %s", error)
            raise Problem(503, f"not ready: {error}") from None

    async def forecast(
        self, known_at: datetime | None, data_version: str | None, horizons: list[int] | None
    ) -> dict[str, Any]:
        """Body of /v1/forecast. Without explicit clocks the steps of `serving.fallback` may stand in for the answer.

        Raises Problem 404 (before the first value, unknown data version), 422 (horizon), 429 and 503.
        """
        model, wanted = self.model, self._wanted(horizons)
        explicit = known_at is not None or data_version is not None
        try:
            body = await in_time(self._forecast(known_at, data_version))
        except NO_DATA as error:
            if explicit:
                raise no_data(error) from None
            body = self._fallback(model, "no_data")
        except Unavailable as unable:
            if explicit:
                raise self._unable(unable, "the forecast of an explicit as-of") from None
            body = self._fallback(model, str(unable))
        return body | {"forecasts": [part for part in body["forecasts"] if part["horizon"] in wanted]}

    async def _forecast(self, known_at: datetime | None, data_version: str | None) -> dict[str, Any]:
        """For all horizons, from the cache or made; raises Unable, Full and NO_DATA."""
        key = ("forecast", self.model.digest, known_at, data_version)
        seconds = float("inf") if known_at and data_version else FRESH_SECONDS
        make = partial(self._make, self._slots["database"], known_at, data_version)
        return await self._cache.get("forecast", key, make, lambda body: len(repr(body)), seconds)

    async def _make(self, ask: Slots, known_at: datetime | None, data_version: str | None) -> dict[str, Any]:
        model = self.model
        known = await self._known(ask, known_at, data_version)
        forecasts = await self.predictor.predict(known.row[None, :])
        try:
            body = forecasting.compose_answer(self.contract, model, known, model.horizons, forecasts)
        except forecasting.NotFinite:
            raise Unavailable("model_not_finite") from None
        self.shadow.put(known.row[None, :], forecasts)
        if known_at is None and data_version is None:
            self._last = body
        return body

    async def _known(self, ask: Slots, known_at: datetime | None, data_version: str | None) -> forecasting.KnownInputs:
        """What the store holds by both clocks, enough for a forecast; raises Unable, Full and NO_DATA."""
        contract, model = self.contract, self.model

        def question(connection: Connection) -> forecasting.KnownInputs:
            return forecasting.read_inputs(contract, model, connection, known_at, data_version)

        known = await self._database.ask(ask, question)
        forecasting.require_complete(contract, known.row, f"at {forecasting.utc_text(known.at)}")
        return known

    async def predict(self, rows: Floats) -> tuple[Floats, list[list[str]]]:
        """Inputs [N, F] to forecasts [N, H], and each row's inputs out of range; raises Problem 422, 429 and 503."""
        predictor, until = self.predictor, time.monotonic() + self._share
        try:
            made = await predictor.predict_in_loop(rows)
        except Unavailable as unable:
            raise self._unable(unable, "the prediction") from None
        if made and made.sound:
            self.shadow.put(rows, made.values)
            return made.values, [[]] * len(rows)
        strange = predictor.inputs.names_out_of_range(rows)
        values = made.values if made else await self._answered(predictor.in_slot(rows, until), "the prediction")
        self.shadow.put(rows, self._finite(values, strange))
        return values, strange

    async def contributions(self, rows: Floats) -> tuple[explain.Explained, list[list[str]]]:
        """As `predict`."""
        explainer, strange = await self.explainer(), self.predictor.inputs.names_out_of_range(rows)
        key = ("explain", self.model.digest, rows.shape, rows.tobytes())
        make = partial(self.predictor.aside, partial(explainer.explain, rows))
        kept = self._cache.get("explain", key, make, lambda it: sum(part.nbytes for part in (rows, *vars(it).values())))
        made = await self._answered(kept, "the explanation")
        self._finite(made.contributions.sum(axis=2) + made.value, strange)
        return made, strange

    async def explained(
        self, known_at: datetime | None, data_version: str | None, horizons: list[int] | None
    ) -> dict[str, Any]:
        """What each series did to the forecast; nothing stands in for it: where it cannot be made it is not answered.

        Raises Problem 404, 422, 429, 501 and 503.
        """
        explainer, wanted, ask = await self.explainer(), self._wanted(horizons), self._slots["database"]

        async def made() -> dict[str, Any]:
            known = await self._known(ask, known_at, data_version)
            return await self.predictor.aside(lambda: explain.of_forecast(self.contract, explainer, known, wanted))

        try:
            return await self._answered(made(), "the explanation")
        except NO_DATA as error:
            raise no_data(error) from None

    def _wanted(self, horizons: list[int] | None) -> list[int]:
        """Those asked for, or all; raises Problem 422."""
        try:
            return forecasting.requested_horizons(self.model, horizons)
        except forecasting.UnknownHorizon as error:
            raise invalid([("horizon", error.detail)], trained_horizons=self.model.horizons) from None

    async def explainer(self) -> explain.Explainer:
        """Made at the first question, so that no start waits for it; raises Problem 501 for a model without one."""
        if self._explainer is None:
            try:
                self._explainer = await self._aside(lambda: explain.Explainer(self.model), "the explanation")
            except explain.NotExplained as error:
                raise Problem(501, str(error)) from None
        return self._explainer

    def record_answer(self, route: str, inputs: Mapping[str, Any], output: Any, count: int, **more: Any) -> None:
        """Counts an answer of `count` predictions, and puts it into the audit trail."""
        self.metrics.predictions.labels(route).inc(count)
        identifier = str(request_id.get())
        document = {
            **self._head, "http": {"request": {"id": identifier}}, "route": route, "model": self.model.name,
            "inputs": inputs, "output": output,
        }  # fmt: skip
        self.audit.put(identifier, datetime.now(UTC), document | more, small=count <= SMALL)

    async def _answered(self, answer: Coroutine[Any, Any, T], what: str) -> T:
        """`answer`, in time; raises Problem 503 where it cannot be made."""
        try:
            return await in_time(answer)
        except Unavailable as unable:
            raise self._unable(unable, what) from None

    def _unable(self, unable: Unavailable, what: str) -> Problem:
        self.metrics.unanswered.labels(str(unable)).inc()
        return Problem(503, f"{what} cannot be made now: {unable}")

    def _finite(self, values: Floats, strange: list[list[str]]) -> Floats:
        """`values` [N, H]; one that is not is the model's failure, Problem 503, where the inputs are as in training;
        else the caller's, Problem 422 that names the instances."""
        wild = np.flatnonzero(~np.isfinite(values).all(axis=1)).tolist()
        if any(not strange[row] for row in wild):
            raise self._unable(Unavailable("model_not_finite"), "the prediction")
        if wild:
            raise invalid((f"instances.{row}", "gives no finite forecast") for row in wild)
        return values

    def _fallback(self, model: artifact.Model, reason: str) -> dict[str, Any]:
        if not self.contract.serving.fallback:
            raise self._unable(Unavailable(reason), "the forecast, for which serving.fallback lets nothing stand in,")
        source = self.contract.serving.fallback[0]  # the artifact holds both kinds, so the first step always succeeds
        held = self._last if source == "last_forecast" and self._last else model.held
        self.metrics.degraded.labels(reason).inc()
        log.warning("degraded answer", extra={"ecs": {"event.reason": reason, "event.action": source}})
        return forecasting.degraded(model, held, reason, source)

    async def _aside(self, job: Callable[[], T], what: str) -> T:
        """What `job` gives, for which no caller waits in line; raises Problem 503 where it cannot be made."""
        return await self._answered(run_within(self._own, self._share, "timeout", job), what)

    async def _refresh(self) -> None:
        """Keeps what the metrics and a later stand-in need; it never ends, whatever the database does."""
        facts = self.metrics.facts
        while True:
            try:
                vars(facts).update(await self._database.ask(self._own, self._database.seen), database_up=True)
                if self._predictor:
                    await self._make(self._own, None, None)
            except (Overloaded, *NO_DATA):
                pass
            except Unavailable as unable:
                if str(unable).startswith("database"):
                    facts.champion, facts.database_up = None, False
            except Exception:
                log.exception("refresh failed")
            await asyncio.sleep(REFRESH_SECONDS)
