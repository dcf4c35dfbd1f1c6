"""The outermost layer of a request: its id, the limit of its body, its metrics and its log line."""

import asyncio
import contextlib
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model_service.serving.problems import Problem
from model_service.telemetry.logs import request_id
from model_service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

SANE = re.compile(r"[A-Za-z0-9._-]{1,128}")
QUIET = frozenset({"/livez", "/readyz", "/metrics"})  # asked every few seconds: their good answers are not news
DRAIN_SECONDS = 1.0


class Edge:
    """Wraps an ASGI app; whoever reads a body above `limit` bytes gets Problem 413 raised."""

    def __init__(self, app: ASGIApp, metrics: Metrics, limit: int) -> None:
        self.app = app
        self.metrics = metrics
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = time.perf_counter_ns()
        given = Headers(scope=scope).get("x-request-id", "")
        token = request_id.set(identifier := given if SANE.fullmatch(given) else uuid.uuid4().hex)
        status = 499  # the caller went away before there was an answer

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = identifier
            await send(message)

        try:
            await self.app(scope, self._bounded(receive), answer)
        except ClientDisconnect:
            pass
        except Exception:  # already answered by 500; the server has nothing to add
            log.exception("request failed")
        finally:
            self._record(scope, status, time.perf_counter_ns() - started)
            request_id.reset(token)

    def _bounded(self, receive: Receive) -> Receive:
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen <= self.limit:
                return message
            # Reads on for a moment: a caller that is still sending would see a broken connection, not the answer.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_SECONDS):
                    while (await receive()).get("more_body", False):
                        pass
            raise Problem(413, f"the body is larger than {self.limit} bytes: send fewer instances at a time")

        return bounded

    def _record(self, scope: Scope, status: int, nanoseconds: int) -> None:
        path: str = scope["path"]
        route = str(getattr(scope.get("route"), "path", path if status < 400 else "unmatched"))
        self.metrics.request(scope["method"], route, status, nanoseconds / 1e9)
        fields = {
            "http.request.method": scope["method"],
            "url.path": path[:1000],
            "http.response.status_code": status,
            "event.duration": nanoseconds,
        }
        level = logging.DEBUG if route in QUIET and status < 400 else logging.INFO
        log.log(level, "%s %s %d", scope["method"], path[:1000], status, extra={"ecs": fields})
