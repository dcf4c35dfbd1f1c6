"""What every request passes: its id, the limit of its body, its metrics and log line, and errors as problem documents.

A problem document (RFC 9457) says what was wrong, where, and what to change.
"""

import asyncio
import contextlib
import logging
import os
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from http import HTTPStatus
from itertools import islice
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from model_service.serving import keys
from model_service.serving.door import Door
from model_service.telemetry import Requests, request_id, to_json
from model_service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

SANE = re.compile(r"[A-Za-z0-9._-]{1,128}")
DRAIN_SECONDS = 1.0
RETRY_SECONDS = 5
MAX_MISTAKES = 20
Mistake = tuple[str, str]  # field, what is wrong with it


class Problem(Exception):
    """An answer other than a good one; raise it anywhere below a route. `more` are further members of the document."""

    headers: Mapping[str, str] = {}

    def __init__(self, status: int, detail: str, mistakes: Sequence[Mistake] = (), **more: Any) -> None:
        super().__init__(detail)
        self.status, self.detail, self.mistakes, self.more = status, detail, mistakes, more


class Unauthorized(Problem):
    """401: says nothing of which keys there are."""

    headers = {"WWW-Authenticate": f'ApiKey header="{keys.HEADER}"'}

    def __init__(self) -> None:
        super().__init__(401, f"a valid API key is required: send it as {keys.HEADER}")


def invalid(mistakes: Iterable[Mistake], **more: Any) -> Problem:
    """422 that names the fields, the first MAX_MISTAKES of them, and what is wrong with each."""
    mistakes = list(islice(mistakes, MAX_MISTAKES))
    return Problem(422, "; ".join(f"{field}: {what}" for field, what in mistakes), mistakes, **more)


def as_json(
    made: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None, kind: str = "application/json"
) -> Response:
    """`made` as the body, with null for what JSON has no number for: an interval of too few errors, say."""
    return Response(to_json(made), status, headers, kind)


def _problem(request: Request, error: Exception) -> Problem:
    """What to answer to ours, the router's, wrong parameters, and bugs."""
    path = request.url.path
    if isinstance(error, Problem):
        return error
    if isinstance(error, HTTPException):
        says = {404: f"there is no {path}: see /docs", 405: f"{path} does not take {request.method}: see /docs"}
        return Problem(error.status_code, says.get(error.status_code, error.detail))
    if isinstance(error, RequestValidationError):
        return invalid((".".join(map(str, mistake["loc"][1:])), mistake["msg"]) for mistake in error.errors())
    if isinstance(error, MemoryError):
        return Problem(503, "there is no memory left for it: ask again, or send less")
    return Problem(500, "the service failed; its log names the cause under this id")


async def _answer(request: Request, error: Exception) -> Response:
    """The problem document, with `request_id` and `errors` (field, detail) beside the standard members.

    Below /v2 it is what the Open Inference Protocol says.
    """
    problem = _problem(request, error)
    headers = dict(getattr(error, "headers", None) or {})
    if problem.status in {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS}:
        headers.setdefault("Retry-After", str(RETRY_SECONDS))
    if f"{request.url.path}/".startswith("/v2/"):
        return as_json({"error": problem.detail}, problem.status, headers)
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "instance": request.url.path,
        "request_id": request_id.get(),
    }
    if problem.mistakes:
        body["errors"] = [{"field": field, "detail": detail} for field, detail in problem.mistakes]
    return as_json(body | problem.more, problem.status, headers, "application/problem+json")


def install(app: FastAPI) -> None:
    """Makes every error of `app` a problem document."""
    for kind in (Problem, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _answer)


class Edge:
    """Wraps the app; whoever reads a body above `limit` bytes gets Problem 413 raised, and 401 who has no key.

    `hot`: paths whose endpoints need the request alone. Without a query they are called from here: FastAPI's way to
    them takes longer than the prediction.
    """

    def __init__(
        self, app: FastAPI, metrics: Metrics, limit: int, allowed: keys.Keys, door: Door, hot: Collection[str]
    ) -> None:
        self.app = app
        self.door = door
        self._requests = Requests(app.title, log, metrics)
        routes = {route.path: route for route in app.routes if isinstance(route, APIRoute)}
        self._paths = frozenset(routes)
        self._hot = {(method, path): routes[path] for path in hot for method in routes[path].methods or ()}
        self.keys = allowed
        self.metrics = metrics
        for name in (*allowed.names, "refused") if allowed.names else ():
            metrics.keys.labels(name)
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = time.perf_counter_ns()
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        token = request_id.set(identifier := given if SANE.fullmatch(given) else os.urandom(16).hex())
        refusal = self.door.enter(scope["path"])
        status = 499  # the caller went away before there was an answer

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", identifier.encode())]
            await send(message)

        try:
            if refusal:
                await (await _answer(Request(scope), Problem(*refusal)))(scope, receive, answer)
            elif not self._known(scope["path"], headers):
                await (await _answer(Request(scope), Unauthorized()))(scope, receive, answer)
            elif (hot := self._hot.get((scope["method"], scope["path"]))) and not scope["query_string"]:
                await self._call(hot, scope, self._bounded(receive), answer)
            else:
                await self.app(scope, self._bounded(receive), answer)
        except ClientDisconnect:
            pass
        except Exception:  # already answered by 500; the server has nothing to add
            log.exception("request failed")
        finally:
            self.door.leave()
            path = scope["path"]
            at_the_edge = path if status < 400 or path in self._paths else "unmatched"  # refused before it was routed
            route = str(getattr(scope.get("route"), "path", at_the_edge))
            self._requests.put(scope["method"], path, route, status, time.perf_counter_ns() - started)
            request_id.reset(token)

    @staticmethod
    async def _call(route: APIRoute, scope: Scope, receive: Receive, send: Send) -> None:
        """What FastAPI does for an endpoint to which no parameters are given, errors included."""
        scope["route"], request = route, Request(scope, receive)
        try:
            response = await route.endpoint(request)
        except ClientDisconnect:
            raise
        except Exception as error:
            await (await _answer(request, error))(scope, receive, send)
            if not isinstance(error, Problem):
                raise
        else:
            await response(scope, receive, send)

    def _known(self, path: str, headers: Mapping[bytes, bytes]) -> bool:
        """Whether the caller has a valid key, where `path` asks for one."""
        if not self.keys.guards(path):
            return True
        owner = self.keys.owner(headers.get(keys.HEADER.encode(), b""))
        self.metrics.keys.labels(owner or "refused").inc()
        return owner is not None

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
