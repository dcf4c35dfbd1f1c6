"""Offers a service requests, as many as it takes or at a rate of one's own, and counts what comes back."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

TICK = 0.002
END_SECONDS = 30.0  # for the last answers, which are not counted


def posted(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def got(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


@dataclass
class Tally:
    """What came of `offered` requests."""

    offered: int = 0
    answers: Counter[int] = field(default_factory=Counter)  # by status
    took: Counter[int] = field(default_factory=Counter)  # good ones, by tenths of a millisecond since they were due
    unsaid: int = 0  # 429 and 503 that do not say when to ask again
    broken: int = 0  # connections that ended
    seconds: float = 0.0
    waited: float = 0.0  # of the seconds, those in which the server's event loop was ready and had no processor

    def quantile(self, share: float) -> float:
        """Seconds."""
        left = share * self.took.total()
        for tenths in sorted(self.took):
            left -= self.took[tenths]
            if left <= 0:
                return tenths / 10_000
        return 0.0

    @property
    def rate(self) -> float:
        """Good answers a second that the machine gave to the server."""
        return self.answers[200] / (self.seconds - self.waited)


class Line(asyncio.Protocol):
    """A connection: one request at a time."""

    def __init__(self, load: "Load") -> None:
        self.load = load
        self.due = 0.0  # when the request it is at should have been sent
        self._came = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.load.freed(self)

    def ask(self, due: float) -> None:
        self.due = due
        self.transport.write(next(self.load.requests))

    def data_received(self, data: bytes) -> None:
        self._came += data
        head, found, body = self._came.partition(b"\r\n\r\n")
        if not found:
            return
        lower = head.lower()
        length = int(lower.partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        self._came = b""
        self.load.told(int(head[9:12]), time.monotonic() - self.due, b"retry-after:" in lower)
        self.load.freed(self)

    def connection_lost(self, _: Exception | None) -> None:
        self.load.lost(self)


class Load:
    """Asks the server at `port`, whose process is `pid`, for what `requests` gives, on at most `most` connections."""

    def __init__(self, port: int, pid: int, requests: Iterator[bytes], most: int) -> None:
        self.port, self.pid, self.requests, self.most = port, pid, requests, most
        self.tally = Tally()
        self._idle: deque[Line] = deque()
        self._due: deque[float] = deque()
        self._lines: set[Line] = set()
        self._open = False
        self._greedy = False

    async def take(self, seconds: float) -> Tally:
        """As many as it answers."""
        self._greedy = True
        return await self._run(seconds, lambda _: None)

    async def offer(self, rate: float, seconds: float) -> Tally:
        """`rate` a second, whether it keeps up or not."""
        began = time.monotonic()

        def due(now: float) -> None:
            while self.tally.offered < (now - began) * rate:
                self._due.append(began + self.tally.offered / rate)
                self.tally.offered += 1

        return await self._run(seconds, due)

    async def _run(self, seconds: float, due: Callable[[float], None]) -> Tally:
        self._open, began, waited = True, time.monotonic(), self._waited()
        loop = asyncio.get_running_loop()
        for _ in range(self.most):
            self._lines.add((await loop.create_connection(lambda: Line(self), "127.0.0.1", self.port))[1])
        while (now := time.monotonic()) < began + seconds:
            due(now)
            while self._due and self._idle:
                self._idle.popleft().ask(self._due.popleft())
            await asyncio.sleep(TICK)
        self.tally.seconds, self.tally.waited = time.monotonic() - began, self._waited() - waited
        self._open = False
        while len(self._idle) < len(self._lines) and time.monotonic() < began + seconds + END_SECONDS:
            await asyncio.sleep(TICK)
        for line in [*self._lines]:
            line.transport.close()
        return self.tally

    def _waited(self) -> float:
        """Seconds the main thread waited for a processor; 0 where Linux does not say."""
        told = Path(f"/proc/{self.pid}/schedstat")
        return int(told.read_text().split()[1]) / 1e9 if told.exists() else 0.0

    def told(self, status: int, took: float, again: bool) -> None:
        if self._open:
            self.tally.answers[status] += 1
            self.tally.took[int(took * 10_000)] += status == 200
            self.tally.unsaid += status in {429, 503} and not again

    def freed(self, line: Line) -> None:
        if self._greedy and self._open:
            self.tally.offered += 1
            line.ask(time.monotonic())
        else:
            self._idle.append(line)

    def lost(self, line: Line) -> None:
        self.tally.broken += self._open
        self._lines.discard(line)
        if line in self._idle:
            self._idle.remove(line)
