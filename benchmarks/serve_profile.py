"""Where the time of a request goes: microseconds of the processor by stage, of a server that is under load.

`uvicorn --factory serve_profile:ours` (or `bare`) serves the same app, its stages replaced by ones that look at the
thread's clock, which costs about half a microsecond each; GET /profile tells what was spent since it was last asked.
"""

import json
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from importlib import import_module
from typing import Any

Stage = tuple[str, str, tuple[str, ...]]  # what it is called, the module or class that holds its functions, and these
MAIN = threading.get_ident()
CHECK, MODEL, AUDIT, LOG, ENCODE = (
    "body: decode and check", "model: ONNX Runtime", "audit record", "log line and metrics", "answer: encode",
)  # fmt: skip
APP, SERVER, ASIDE = "framework: the rest of the app", "server: uvicorn and socket", "other threads"
STAGES = (CHECK, MODEL, AUDIT, LOG, ENCODE, APP, SERVER, ASIDE)
OURS: tuple[Stage, ...] = (
    (CHECK, "model_service.serving.body:Inputs", ("rows", "out_of_range", "names_out_of_range")),
    (CHECK, "model_service.serving.runtime:Runtime", ("_finite",)),
    (MODEL, "model_service.artifact:Model", ("predict",)),
    (AUDIT, "model_service.serving.runtime:Runtime", ("record_answer",)),
    (LOG, "model_service.telemetry:Requests", ("put", "flush")),
    (ENCODE, "model_service.serving.routes", ("as_json",)),
)
BARE: tuple[Stage, ...] = (
    (CHECK, "json", ("loads",)),
    (CHECK, "fastapi._compat.v2:ModelField", ("validate",)),
    (MODEL, "onnxruntime:InferenceSession", ("run",)),
    (ENCODE, "fastapi._compat.v2:ModelField", ("serialize_json",)),
)


class Running:
    """An awaitable whose every step, from one wait to the next, is `timed`."""

    def __init__(self, timed: Callable[[Callable[..., Any]], Callable[..., Any]], made: Any) -> None:
        self._send, self._throw = timed(made.send), timed(made.throw)

    def __await__(self) -> Generator[Any, Any, Any]:
        step, given = self._send, None
        while True:
            try:
                waits = step(given)
            except StopIteration as ended:
                return ended.value
            try:
                step, given = self._send, (yield waits)
            except BaseException as error:
                step, given = self._throw, error


class Clock:
    """Nanoseconds by stage in the main thread; a part of a stage is its own, a stage within another is that one's."""

    def __init__(self) -> None:
        self.requests = 0
        self._spent = dict.fromkeys(STAGES, 0)
        self._open: list[tuple[str, int]] = []
        self._since = self._now()

    @staticmethod
    def _now() -> tuple[int, int]:
        return time.thread_time_ns(), time.process_time_ns()

    def _to(self, stage: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Makes of a function one whose time counts for `stage`, and not for the one that calls it."""

        def timed(function: Callable[..., Any]) -> Callable[..., Any]:
            def run(*given: Any, **named: Any) -> Any:
                if threading.get_ident() != MAIN or (self._open and self._open[-1][0] not in (APP, stage)):
                    return function(*given, **named)
                begun = time.thread_time_ns()
                self._open.append((stage, 0))
                try:
                    return function(*given, **named)
                finally:
                    lasted = time.thread_time_ns() - begun
                    self._spent[stage] += lasted - self._open.pop()[1]
                    if self._open:
                        outer, inner = self._open[-1]
                        self._open[-1] = outer, inner + lasted

            return run

        return timed

    def watch(self, stages: tuple[Stage, ...]) -> None:
        """Puts timed functions in the place of those of `stages`."""
        for stage, where, names in stages:
            module, _, kind = where.partition(":")
            owner = getattr(import_module(module), kind) if kind else import_module(module)
            for name in names:
                setattr(owner, name, self._to(stage)(getattr(owner, name)))

    def around(self, app: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        """`app`, timed, and /profile."""
        whole, server = self._to(APP), self._to(SERVER)

        async def timed(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
            elif scope["path"] == "/profile":
                headers = [(b"content-type", b"application/json")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": json.dumps(self.told()).encode()})
            else:
                self.requests += 1

                async def took() -> Any:
                    return await Running(server, receive())

                async def sent(message: Any) -> None:
                    await Running(server, send(message))

                await Running(whole, app(scope, took, sent))

        return timed

    def told(self) -> dict[str, float]:
        """Microseconds a request, by stage; begins anew."""
        before, self._since = self._since, self._now()
        (main, whole), count = (now - then for now, then in zip(self._since, before, strict=True)), self.requests
        spent, self._spent, self.requests = self._spent, dict.fromkeys(STAGES, 0), 0
        spent[SERVER] = main - sum(spent[one] for one in STAGES if one != SERVER)
        spent[ASIDE] = whole - main
        return {stage: one / 1e3 / max(count, 1) for stage, one in spent.items()}


def ours() -> Callable[..., Awaitable[None]]:
    """The service's app."""
    clock = Clock()
    clock.watch(OURS)
    return clock.around(import_module("model_service.serving.app").app)


def bare() -> Callable[..., Awaitable[None]]:
    """The reference's."""
    clock = Clock()
    clock.watch(BARE)
    return clock.around(import_module("reference_app").app)
