"""What the service tells about itself: metrics, the audit trail, and here its log lines.

They go to stdout, one JSON object each, with the field names of the Elastic Common Schema.
"""

import json
import logging
import logging.config
import os
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote, urlsplit

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


class Json(logging.Formatter):
    """A record as ECS; `extra={"ecs": {...}}` adds fields. Passwords of the environment never reach a line."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self.service = service
        self.secrets = _secrets()

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "@timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "log.level": record.levelname.lower(),
            "message": record.getMessage(),
            "ecs.version": "8.11.0",
            "service.name": self.service,
            "log.logger": record.name,
            "process.pid": record.process,
        }
        if identifier := request_id.get():
            line["http.request.id"] = identifier
        line |= getattr(record, "ecs", {})
        if record.exc_info and record.exc_info[0]:
            line["error.type"] = record.exc_info[0].__name__
            line["error.stack_trace"] = self.formatException(record.exc_info)
        text = json.dumps(line, ensure_ascii=False, default=str)
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
