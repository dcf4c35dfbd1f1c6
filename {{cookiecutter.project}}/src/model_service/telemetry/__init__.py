"""What the service tells about itself: metrics, the audit trail, and here its log lines.

They go to stdout, one JSON object each, with the field names of the Elastic Common Schema.
"""

import asyncio
import atexit
import contextlib
import json
import logging
import logging.config
import os
import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import msgspec

if TYPE_CHECKING:
    from model_service.telemetry.metrics import Metrics

FEW = 8  # lines of requests that are written at a time
WAIT_SECONDS = 0.05  # for more to come
# Asked every few seconds: their good answers are not news.
PROBES = frozenset({"/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


def to_json(made: Mapping[str, Any]) -> bytes:
    """As JSON, with null for what it has no number for, and text of what it has no type for."""
    try:
        return msgspec.json.encode(made, enc_hook=str)
    except UnicodeEncodeError:  # half a surrogate pair, which UTF-8 has no bytes for, goes as an escape
        return json.dumps(made, default=str).encode()


class Json(logging.Formatter):
    """A record as ECS; `extra={"ecs": {...}}` adds fields. Passwords of the environment never reach a line."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self.service = service
        self.process = os.getpid()
        self.secrets = {secret: json.dumps(secret, ensure_ascii=False)[1:-1] for secret in _secrets()}

    def format(self, record: logging.LogRecord) -> str:
        line = self.line(record.created, record.levelno, record.getMessage(), record.name, request_id.get())
        line |= getattr(record, "ecs", {})
        if record.exc_info and record.exc_info[0]:
            line["error.type"] = record.exc_info[0].__name__
            line["error.stack_trace"] = self.formatException(record.exc_info)
        return self.text(line)

    def line(self, at: float, level: int, message: str, logger: str, identifier: str | None) -> dict[str, Any]:
        """What every line has; `at` in seconds since 1970."""
        line: dict[str, Any] = {
            "@timestamp": datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds"),
            "log.level": logging.getLevelName(level).lower(),
            "message": message,
            "ecs.version": "8.11.0",
            "service.name": self.service,
            "log.logger": logger,
            "process.pid": self.process,
        }
        if identifier:
            line["http.request.id"] = identifier
        return line

    def text(self, line: dict[str, Any]) -> str:
        """As JSON; secrets are taken out of its texts alone: a number or a name that is alike is none."""
        text = to_json(line).decode()
        for secret, written in self.secrets.items():
            if written in text:
                texts = {name: one for name, one in line.items() if isinstance(one, str) and name != "@timestamp"}
                line |= {name: one.replace(secret, "***") for name, one in texts.items()}
                text = to_json(line).decode()
        return text


class Requests:
    """What was answered: counted and written as a line each, a few at a time, which costs a fraction of one by one.

    Lines go past the logging module, which takes longer than a prediction, where `log` would say them.
    """

    def __init__(self, service: str, log: logging.Logger, metrics: "Metrics") -> None:
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
            level = logging.DEBUG if route in PROBES and status < 400 else logging.INFO
            if self._log.isEnabledFor(level):
                path = path[:1000]
                line = self._json.line(at, level, f"{method} {path} {status}", self._log.name, identifier)
                line |= {"http.request.method": method, "url.path": path}
                line |= {"http.response.status_code": status, "event.duration": nanoseconds}
                lines.append(self._json.text(line))
        if lines:
            with contextlib.suppress(OSError):  # of a full disk, say, metrics must still tell
                sys.stdout.write("\n".join(lines) + "\n")
                sys.stdout.flush()


def configure(service: str) -> None:
    """Sends every logger of the process, those of uvicorn and BentoML too, through one handler to stdout."""
    plain: dict[str, Any] = {"handlers": [], "propagate": True, "level": "NOTSET"}
    stdout = {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "json"}
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": Json, "service": service}},
        "handlers": {"stdout": stdout},
        "root": {"level": os.environ.get("LOG_LEVEL", "").upper() or "INFO", "handlers": ["stdout"]},
        "loggers": {
            "uvicorn": plain,
            "uvicorn.error": plain,
            "uvicorn.access": plain | {"propagate": False},  # the service writes its own access line
            "bentoml": plain,
            "circus": plain | {"level": "WARNING"},
            "elastic_transport": plain | {"level": "ERROR"},
        },
    }
    logging.config.dictConfig(config)
    logging.captureWarnings(True)
    sys.excepthook = lambda kind, error, _: logging.critical("%s: %s", kind.__name__, error, exc_info=error)


def _secrets() -> list[str]:
    """Passwords of the configured URLs, as written there and decoded, PostgreSQL's own variable, and callers' keys."""
    found = {os.environ.get("PGPASSWORD")}
    found |= {pair.partition("=")[2].strip() for pair in os.environ.get("API_KEYS", "").split(",")}
    for name in ("DATABASE_URL", "ELASTICSEARCH_URL"):
        try:
            password = urlsplit(os.environ.get(name, "")).password or ""
        except ValueError:
            continue
        found |= {password, unquote(password)}
    return sorted((secret for secret in found if secret), key=len, reverse=True)
