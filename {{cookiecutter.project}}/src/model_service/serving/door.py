"""What every request passes first: its time begins, and it is sent away if it has waited for long or the end is near.

The end, on SIGTERM: for `drain_seconds` the service says at /readyz that it is not ready, and goes on answering; then
it takes no more, lets those inside finish and the audit trail ship; then the server stops. Its listening socket stays
open until then, so that nobody waits for an answer that does not come: BentoML's supervisor would hold on to it.
"""

import asyncio
import contextvars
import logging
import os
import signal
import threading
import time
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar

from prometheus_client import Counter

from model_service.contract import END_SECONDS
from model_service.telemetry import PROBES

log = logging.getLogger(__name__)

T = TypeVar("T")

WATCHED_SECONDS = 30.0  # who did not ask for readiness for so long does not wait to be told
STEP_SECONDS = 0.05
SAYS = {
    "line_slow": (HTTPStatus.TOO_MANY_REQUESTS, "it waited for too long in line: ask again, and less often"),
    "stopping": (HTTPStatus.SERVICE_UNAVAILABLE, "this replica is about to stop: ask again"),
}
deadline: contextvars.ContextVar[float] = contextvars.ContextVar("deadline")


def left() -> float:
    """Seconds until this request must be answered."""
    return deadline.get() - time.monotonic()


async def in_time(work: Coroutine[Any, Any, T]) -> T:
    """`work`; raises TimeoutError where this request's time ends before.

    What does not wait for anything is done at once, without a timer: that would cost a tenth of a prediction.
    """
    try:
        waits = work.send(None)
    except StopIteration as ended:
        made: T = ended.value
        return made
    async with asyncio.timeout(left()):
        return await _resumed(work, waits)


@types.coroutine
def _resumed(begun: Coroutine[Any, Any, T], waits: Any) -> Generator[Any, Any, T]:
    """Goes on with what has taken its first step: `yield from`, as PEP 380 spells it out."""
    while True:
        try:
            sent = yield waits
        except BaseException as error:
            step = partial(begun.throw, error)
        else:
            step = partial(begun.send, sent)
        try:
            waits = step()
        except StopIteration as ended:
            made: T = ended.value
            return made


class Door:
    """`seconds`: for each request. `stop`: what is to be done between the last answer and the server's end."""

    def __init__(self, seconds: float, drain: float, unanswered: Counter, stop: Callable[[], Awaitable[None]]) -> None:
        self.seconds, self.drain = seconds, drain
        self.inside = 0
        self.crowd = self._entered = 0  # that came in the last turn of the loop, and in this
        self.stopping = False  # not ready, but answers
        self.asked = -WATCHED_SECONDS  # when somebody asked for readiness
        self._closed = False
        self._turn: float | None = None  # when it began
        self._before: float | None = None  # the one before it, in which those of this turn came in
        self._unanswered, self._stop = unanswered, stop
        self._ends: asyncio.Task[None] | None = None

    def enter(self, path: str) -> tuple[int, str] | None:
        """Lets a request in, to be followed by `leave`; or status and detail of a refusal."""
        now = time.monotonic()
        if self._turn is None:  # all that the loop takes up in one turn came in before it
            asyncio.get_running_loop().call_soon(self._turned)
            self._turn = now
        deadline.set((self._before or self._turn) + self.seconds)
        self.inside += 1
        self._entered += 1
        if not self._closed and now - self._turn < self.seconds / 2 or path in PROBES:
            return None
        reason = "stopping" if self._closed else "line_slow"
        self._unanswered.labels(reason).inc()
        return SAYS[reason]

    def leave(self) -> None:
        self.inside -= 1

    def _turned(self) -> None:
        before, self._turn = self._turn, None
        self.crowd, self._entered = self._entered, 0
        asyncio.get_running_loop().call_soon(self._passed)
        self._before = before

    def _passed(self) -> None:
        self._before = None

    def watch(self) -> None:
        """Puts itself before the server's own handler of SIGTERM, where the loop is of the main thread."""
        before = signal.getsignal(signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread() or not callable(before):
            return
        loop = asyncio.get_running_loop()

        def told(number: int, frame: types.FrameType | None) -> None:
            if self.stopping:  # for the second time
                before(number, frame)
            else:
                context = contextvars.Context()  # not that of whichever request is interrupted
                loop.call_soon_threadsafe(self._begin, lambda: before(number, None), context=context)

        signal.signal(signal.SIGTERM, told)

    def _begin(self, end: Callable[[], None]) -> None:
        if not self.stopping:
            self.stopping = True
            self._ends = asyncio.create_task(self._end(end))

    async def _end(self, end: Callable[[], None]) -> None:
        watched = time.monotonic() - self.asked < WATCHED_SECONDS
        drain = self.drain if watched else 0.0
        bound = drain + self.seconds + END_SECONDS
        last = threading.Timer(bound, os._exit, [1])
        last.daemon = True
        last.start()
        log.info("stopping: not ready for %g seconds, the end within %g", drain, bound)
        await asyncio.sleep(drain)
        self._closed = True
        until = time.monotonic() + self.seconds
        while self.inside and time.monotonic() < until:
            await asyncio.sleep(STEP_SECONDS)
        try:
            await self._stop()
        finally:
            end()
