"""Answers made before, by all that they are made of; and each is made once, however many ask for it at a time."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

from prometheus_client import Counter

T = TypeVar("T")
MOST = 4096


@dataclass
class Flight:
    """An answer in the making, and how many wait for it."""

    task: asyncio.Task[Any]
    callers: int = 0


class Cache:
    """The answers used last: at most MOST, and `size` bytes. `requests` counts what was asked for by its outcome."""

    def __init__(self, size: int, requests: Counter) -> None:
        self.size, self.held = size, 0
        self._kept: OrderedDict[Hashable, tuple[Any, int, float]] = OrderedDict()  # answer, bytes, until when
        self._flights: dict[Hashable, Flight] = {}
        self._requests = requests

    async def get(
        self,
        kind: str,
        key: Hashable,
        make: Callable[[], Awaitable[T]],
        size: Callable[[T], int],
        seconds: float = float("inf"),
    ) -> T:
        """The answer to `key`, kept for `seconds`; raises what `make` raises, which is not kept.

        `make` goes on for as long as anybody waits for it, and is cancelled when the last one has left.
        """
        value, _, until = self._kept.get(key, (None, 0, 0.0))
        if time.monotonic() < until:
            self._kept.move_to_end(key)
            self._requests.labels(kind, "hit").inc()
            return value  # type: ignore[no-any-return]
        flight = self._flights.get(key)
        self._requests.labels(kind, "joined" if flight else "miss").inc()
        if flight is None:
            flight = self._flights[key] = Flight(asyncio.create_task(self._fly(key, make, size, seconds)))
        flight.callers += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.callers -= 1
            if (flight.task.done() or not flight.callers) and self._flights.get(key) is flight:
                del self._flights[key]
                flight.task.cancel()

    async def _fly(
        self, key: Hashable, make: Callable[[], Awaitable[T]], size: Callable[[T], int], seconds: float
    ) -> T:
        made = await make()
        self.held -= self._kept.pop(key, (None, 0, 0.0))[1]
        if (large := size(made)) <= self.size:
            self.held += large
            self._kept[key] = made, large, time.monotonic() + seconds
        while self.held > self.size or len(self._kept) > MOST:
            self.held -= self._kept.popitem(last=False)[1][1]
        return made
