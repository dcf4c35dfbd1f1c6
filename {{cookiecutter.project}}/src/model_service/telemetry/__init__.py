"""What the service tells about itself: metrics, the audit trail, and here its log lines.

They go to stdout, one JSON object each, with the field names of the Elastic Common Schema.
"""

import json
import logging
import logging.config
import os
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


def encoded(made: Mapping[str, Any]) -> bytes:
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
        self.secrets = _secrets()

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
        text = encoded(line).decode()
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text


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
