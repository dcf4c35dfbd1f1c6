"""Work that the event loop must not wait for: a thread each, a bounded number at a time, and a bounded line behind.

Who gives a work up frees its slot at once. The thread is told to stop, which a run of the model does at its next node;
one that cannot be stopped is left alone. Once as many are lost as there are slots no more are started, until one ends.
"""

import _thread
import asyncio
import contextlib
import contextvars
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import onnxruntime
from prometheus_client import Counter

from model_service import artifact
from model_service.serving import door
from model_service.serving.edge import Problem

T = TypeVar("T")
INFINITY = float("inf")


class Overloaded(Problem):
    """429: the line is full, or does not move."""

    headers = {"Retry-After": "1"}

    def __init__(self, detail: str) -> None:
        super().__init__(429, f"{detail}: ask again, and less often")


class Unavailable(Exception):
    """An answer cannot be made; the message is the reason, as a degraded answer and the metrics name it."""


class Interrupted(Unavailable):
    """A run of the model was ended."""

    def __init__(self) -> None:
        super().__init__("model_timeout")


class Interrupter:
    """Ends a run of the model that lasts longer than `seconds`, at its next node; there is one run at a time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.took = 0.0  # seconds, the last run
        self._since = INFINITY
        self._options = onnxruntime.RunOptions()
        self._lock = threading.Lock()  # or the watcher could end the next run in place of one that just ended
        self._ended = threading.Event()

    def start(self) -> None:
        """Raises RuntimeError where the machine gives no more threads."""
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def run(self, job: Callable[[], T]) -> T:
        """`job`, which asks the model, in this thread; raises Interrupted, and what `job` raises."""
        artifact.interrupt.set(self._options)
        self._since = time.monotonic()
        try:
            return job()
        except Exception:
            if self._options.terminate:
                raise Interrupted from None
            raise
        finally:
            with self._lock:
                self.took, self._since = time.monotonic() - self._since, INFINITY
                if self._options.terminate:
                    self._options = onnxruntime.RunOptions()

    def stop(self) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(self.seconds / 4):
            with self._lock:
                if time.monotonic() - self._since > self.seconds:
                    self._options.terminate = True


class Slots:
    """`capacity` works at a time, `line` behind them, none of which waits longer than `patience` seconds."""

    def __init__(self, capacity: int, line: int, patience: float, unanswered: Counter) -> None:
        self.capacity, self.line, self.patience = capacity, line, patience
        self.busy = self.waiting = 0
        self.lost = 0  # threads that go on though nobody waits for them
        self._free = asyncio.Semaphore(capacity)
        self._unanswered = unanswered

    async def submit(self, job: Callable[[], T]) -> T:
        """What `job` gives, made in a thread with a copy of this context; to cancel it gives the job up.

        Raises Full, Unable where no thread is to be had, and what `job` raises.
        """
        await self._enter()
        self.busy += 1
        try:
            return await self._run(job)
        finally:
            self.busy -= 1
            self._free.release()

    async def _enter(self) -> None:
        if self._free.locked() and self.waiting >= self.line:
            self._unanswered.labels("line_full").inc()
            raise Overloaded(f"{self.line} requests are in line")
        self.waiting += 1
        try:
            async with asyncio.timeout(self.patience):
                await self._free.acquire()
        except TimeoutError:
            self._unanswered.labels("line_slow").inc()
            raise Overloaded(f"no turn within {self.patience:g} seconds") from None
        finally:
            self.waiting -= 1

    async def _run(self, job: Callable[[], T]) -> T:
        if self.lost >= self.capacity:
            raise Unavailable("threads_lost")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        options, context = onnxruntime.RunOptions(), contextvars.copy_context()
        context.run(artifact.interrupt.set, options)

        def settle(settled: Callable[[], None]) -> None:
            if done.done():
                self.lost -= 1
            else:
                settled()

        def work() -> None:
            try:
                made = job()
            except BaseException as error:
                outcome: Callable[[], None] = lambda error=error: done.set_exception(error)  # type: ignore[misc]  # noqa: E731
            else:
                outcome = lambda: done.set_result(made)  # noqa: E731
            with contextlib.suppress(RuntimeError):  # the loop has ended before it
                loop.call_soon_threadsafe(settle, outcome)

        # Not of a pool: that would wait for a lost thread when the process ends. Nor by `threading`: it waits until the
        # thread has begun, for ever where that finds no memory for it, and the event loop with it.
        try:
            _thread.start_new_thread(context.run, (work,))
        except RuntimeError:  # the machine gives no more
            raise Unavailable("threads_lost") from None
        try:
            return await done
        except asyncio.CancelledError:
            if done.cancelled():
                self.lost += 1
            options.terminate = True
            raise


async def run_within(slots: Slots, seconds: float, late: str, job: Callable[[], T]) -> T:
    """`job` in a slot; raises Unable, `late` when it takes longer than `seconds`, and Full."""
    try:
        async with asyncio.timeout(seconds):
            return await slots.submit(job)
    except TimeoutError:
        raise Unavailable(late) from None


async def in_time(answer: Coroutine[Any, Any, T]) -> T:
    """`answer`; raises Unable where this request's time ends before."""
    try:
        return await door.in_time(answer)
    except TimeoutError:
        raise Unavailable("timeout") from None
