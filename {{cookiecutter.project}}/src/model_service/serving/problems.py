"""Errors as problem documents (RFC 9457): what was wrong, where, and what to change."""

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from model_service.telemetry.logs import request_id

RETRY_SECONDS = 5
Mistake = tuple[str, str]  # field, what is wrong with it


class Problem(Exception):
    """An answer other than a good one; raise it anywhere below a route. `more` are further members of the document."""

    def __init__(self, status: int, detail: str, mistakes: Sequence[Mistake] = (), **more: Any) -> None:
        super().__init__(detail)
        self.status, self.detail, self.mistakes, self.more = status, detail, mistakes, more


def wrong(mistakes: Sequence[Mistake], **more: Any) -> Problem:
    """422 that names every field and what is wrong with it."""
    return Problem(422, "; ".join(f"{field}: {what}" for field, what in mistakes), mistakes, **more)


def response(path: str, problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """The problem document, with `request_id` and `errors` (field, detail) beside the standard members."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "instance": path,
        "request_id": request_id.get(),
    }
    if problem.mistakes:
        body["errors"] = [{"field": field, "detail": detail} for field, detail in problem.mistakes]
    retry = {"Retry-After": str(RETRY_SECONDS)} if problem.status == HTTPStatus.SERVICE_UNAVAILABLE else {}
    content = json.dumps(body | problem.more, ensure_ascii=False).encode("utf-8", "replace")
    return Response(content, problem.status, {**(headers or {}), **retry}, "application/problem+json")


def install(app: FastAPI) -> None:
    """Makes every error of `app` a problem document: ours, the router's, wrong parameters, and bugs (500)."""

    async def ours(request: Request, error: Any) -> Response:
        return response(request.url.path, error)

    async def routers(request: Request, error: Any) -> Response:
        path = request.url.path
        says = {404: f"there is no {path}: see /docs", 405: f"{path} does not take {request.method}: see /docs"}
        return response(path, Problem(error.status_code, says.get(error.status_code, error.detail)), error.headers)

    async def parameters(request: Request, error: Any) -> Response:
        mistakes = [(".".join(map(str, mistake["loc"][1:])), mistake["msg"]) for mistake in error.errors()]
        return response(request.url.path, wrong(mistakes))

    async def bugs(request: Request, error: Any) -> Response:
        return response(request.url.path, Problem(500, "the service failed; its log names the cause under this id"))

    app.add_exception_handler(Problem, ours)
    app.add_exception_handler(HTTPException, routers)
    app.add_exception_handler(RequestValidationError, parameters)
    app.add_exception_handler(Exception, bugs)
