"""What was answered: counted and written as a line each, a few at a time, which costs a fraction of one by one."""

import asyncio
import atexit
import logging
import sys
import time
from typing import Any

from model_service.telemetry import Json, request_id
from model_service.telemetry.metrics import Metrics

FEW = 8
WAIT_SECONDS = 0.05  # for more to come
QUIET = frozenset({"/livez", "/readyz", "/metrics"})  # asked every few seconds: their good answers are not news


class Requests:
    """Lines go past the logging module, which takes longer than a prediction, where `log` would say them."""

    def __init__(self, service: str, log: logging.Logger, metrics: Metrics) -> None:
        self._json, self._log, self._metrics = Json(service), log, metrics
        self._waiting: list[tuple[float, str | None, str, str, str, int, int]] = []
        metrics.settle = self.flush  # a scrape counts all that was answered before it
        atexit.register(self.flush)

    def put(self, method: str, path: str, route: str, status: int, nanoseconds: int) -> None:
        """`route`: the template of the path."""
        if not self._waiting:
            asyncio.get_running_loop().call_later(WAIT_SECONDS, self.flush)
        self._waiting.append((time.time(), request_id.get(), method, path, route, status, nanoseconds))
        if len(self._waiting) >= FEW:
            self.flush()

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        lines = []
        for at, identifier, method, path, route, status, nanoseconds in waiting:
            self._metrics.request(method, route, status, nanoseconds / 1e9)
            level = logging.DEBUG if route in QUIET and status < 400 else logging.INFO
            if self._log.isEnabledFor(level):
                line = self._json.line(at, level, f"{method} {path[:1000]} {status}", self._log.name, identifier)
                lines.append(self._json.text(line | _fields(method, path, status, nanoseconds)))
        if lines:
            sys.stdout.write("\n".join(lines) + "\n")
            sys.stdout.flush()


def _fields(method: str, path: str, status: int, nanoseconds: int) -> dict[str, Any]:
    return {
        "http.request.method": method,
        "url.path": path[:1000],
        "http.response.status_code": status,
        "event.duration": nanoseconds,
    }
