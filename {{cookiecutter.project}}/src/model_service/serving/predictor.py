"""The model, asked so that it can fail: in the event loop where it takes but a moment, else in a slot; and in time.

Requests that come in the same turn of the loop are asked together: a run's cost lies in its nodes, hardly in its rows.
"""

import asyncio
import contextlib
import contextvars
import logging
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

import numpy as np

from model_service import artifact, forecasting
from model_service.arrays import Floats
from model_service.contract import Serving
from model_service.serving.body import Inputs
from model_service.serving.cache import Cache
from model_service.serving.door import Door
from model_service.serving.slots import INFINITY, Interrupted, Interrupter, Slots, Unavailable, run_within

log = logging.getLogger(__name__)

T = TypeVar("T")
MOMENT_SECONDS = 0.002
WARY_SECONDS = 60.0
FEW = 10  # rows of a request that is asked together with others


class Prediction(NamedTuple):
    """Forecasts [N, H]. `sound`: all are finite, and all inputs, of these and those beside them, as in training."""

    values: Floats
    sound: bool


class Predictor:
    """Forecasts of `model`; no question takes it longer than `seconds`.

    A run in the event loop that lasts is interrupted by a thread that watches it and made again in a slot, and so are
    the next ones, for WARY_SECONDS: the loop must not wait twice.
    """

    def __init__(
        self, model: artifact.Model, limits: Serving, slots: Slots, cache: Cache, seconds: float, door: Door
    ) -> None:
        self.model, self.slots, self.seconds = model, slots, seconds
        self.inputs = Inputs(model.inputs, model.card.get("input_range", {}), limits)
        self.door, self._cache = door, cache
        self._waiting: list[tuple[Floats, asyncio.Future[Prediction | None]]] = []
        self._row_seconds = _measured(model)
        self._wary = -INFINITY
        self._interrupter = Interrupter(seconds / 4)
        self._interrupter.start()

    async def predict(self, rows: Floats) -> Floats:
        """Inputs [N, F] to forecasts [N, H], whatever they are; raises Unable and Full."""
        until = time.monotonic() + self.seconds
        made = await self.predict_in_loop(rows)
        return made.values if made else await self.in_slot(rows, until)

    async def in_slot(self, rows: Floats, until: float) -> Floats:
        """As `predict`, by `until` (monotonic)."""
        key = ("predict", self.model.digest, rows.shape, rows.tobytes())

        def make() -> Awaitable[Floats]:
            return self.aside(lambda: self.model.predict(rows), until - time.monotonic())

        return await self._cache.get("predict", key, make, lambda made: made.nbytes + rows.nbytes)

    def aside(self, job: Callable[[], T], seconds: float | None = None) -> Awaitable[T]:
        """`job`, which asks the model, in a slot; raises Unable and Full."""
        return run_within(self.slots, seconds or self.seconds, "model_timeout", lambda: _told(job))

    async def predict_in_loop(self, rows: Floats) -> Prediction | None:
        """As `predict`, in this thread; None where that may take more than a moment, or did. Raises Unable."""
        made = None
        if len(rows) <= FEW and self.door.crowd > 1:
            loop = asyncio.get_running_loop()
            if not self._waiting:
                loop.call_soon(self._run_batch, context=contextvars.Context())  # not of one request
            self._waiting.append((rows, future := loop.create_future()))
            made = await future
        return made or self._run_in_loop(rows)

    def _run_batch(self) -> None:
        """Answers all that wait; with None where the model does not take them all, as one of them may be the cause."""
        waiting, self._waiting = self._waiting, []
        parts: list[Prediction | None] = [None] * len(waiting)
        with contextlib.suppress(Exception):  # whatever it is, it comes again for whom it concerns
            if made := self._run_in_loop(np.concatenate([rows for rows, _ in waiting])):
                ends = np.cumsum([len(rows) for rows, _ in waiting[:-1]])
                parts = [Prediction(values, made.sound) for values in np.split(made.values, ends)]
        for part, (_, future) in zip(parts, waiting, strict=True):
            if not future.done():
                future.set_result(part)

    def _run_in_loop(self, rows: Floats) -> Prediction | None:
        if len(rows) * self._row_seconds >= MOMENT_SECONDS or time.monotonic() <= self._wary:
            return None
        try:
            values = self._interrupter.run(lambda: _told(lambda: self.model.predict(rows)))
        except Interrupted:
            return None
        finally:
            if self._interrupter.took > self._interrupter.seconds:
                self._wary = time.monotonic() + WARY_SECONDS
                log.warning("the model took %.2f seconds in the event loop", self._interrupter.took)
        return Prediction(values, bool(np.isfinite(values).all() and not self.inputs.out_of_range(rows).any()))

    def stop(self) -> None:
        self._interrupter.stop()


def _told(job: Callable[[], T]) -> T:
    """`job`; raises Unable for whatever the model raises."""
    try:
        return job()
    except forecasting.NotFinite:
        raise Unavailable("model_not_finite") from None
    except Exception:
        log.exception("the model failed")
        raise Unavailable("model_failed") from None


def _measured(model: artifact.Model) -> float:
    """Seconds a row takes, of a hundred; infinity where the model fails at them."""
    rows = np.resize(np.array(model.golden["instances"], np.float64), (100, len(model.inputs)))
    try:
        model.predict(rows)  # the first run is slower
        started = time.perf_counter()
        model.predict(rows)
    except Exception:
        return INFINITY
    return (time.perf_counter() - started) / len(rows)
