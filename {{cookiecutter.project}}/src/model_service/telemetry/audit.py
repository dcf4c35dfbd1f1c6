"""The audit trail: one document per answer, shipped to Elasticsearch in bulk and never on the way of a request."""

import contextlib
import hashlib
import json
import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Mapping
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from prometheus_client import Counter

from model_service import settings
from model_service.contract import Contract
from model_service.errors import ServiceError, UsageError
from model_service.telemetry import to_json

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

log = logging.getLogger(__name__)

TEMPLATE = "model-audit"
SMALL, FEW = 10, 8  # rows of a small record; of which so many are written out at a time
BATCH, BATCH_BYTES = 500, 5_000_000  # of one request
MAX_QUEUED_BYTES = 64_000_000
LINGER_SECONDS = 0.5
BACK_OFF_SECONDS = (0.5, 30.0)
FLUSH_SECONDS = 5.0
TIMEOUT_SECONDS = 10.0
RETRY = frozenset({408, 429, 500, 502, 503, 504})
Document = tuple[str, str, bytes]  # index, id, body


class Audit:
    """A queue bounded in bytes and a thread that empties it; without ELASTICSEARCH_URL it takes nothing.

    A document's id comes from request id and content, and its index from its time: sending it again is harmless.
    """

    def __init__(self, url: str | None, outcome: Counter) -> None:
        self.url = url
        self._outcome = outcome
        self._fresh: deque[tuple[str, datetime, Mapping[str, Any]]] = deque()
        self._queue: deque[Document] = deque()
        self._bytes = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)

    def start(self) -> None:
        if self.url:
            self._thread.start()

    def put(self, identifier: str, when: datetime, document: Mapping[str, Any], small: bool = False) -> None:
        """Queues the document, or counts it as dropped when the queue is full. Never waits, never raises.

        Small ones are written out a few at a time, which costs a fraction of one by one.
        """
        if not self.url:
            return
        self._fresh.append((identifier, when, document))
        if not small or len(self._fresh) >= FEW:
            self._write()

    def _write(self) -> None:
        with contextlib.suppress(IndexError):  # another thread was faster
            while self._fresh:
                self._queued(*self._fresh.popleft())

    def _queued(self, identifier: str, when: datetime, document: Mapping[str, Any]) -> None:
        body = to_json(document)
        content = hashlib.sha256(body).hexdigest()[:16]
        stamp = b'{"@timestamp":"%s",' % when.isoformat(timespec="microseconds").encode()
        item = (f"{TEMPLATE}-{when.year}.{when.month:02}", f"{identifier}-{content}", stamp + body[1:])
        with self._lock:
            if self._stopping.is_set() or self._bytes + len(item[2]) > MAX_QUEUED_BYTES:
                self._outcome.labels("dropped").inc()
                return
            self._queue.append(item)
            self._bytes += len(item[2])

    def stop(self) -> None:
        """Ships what is queued, for at most FLUSH_SECONDS, once; the rest is counted as dropped."""
        if not self.url or not self._thread.is_alive() or self._stopping.is_set():
            return
        self._deadline = time.monotonic() + FLUSH_SECONDS
        self._stopping.set()
        self._thread.join(FLUSH_SECONDS + 1)
        self._write()  # what came since is counted, too
        if self._queue:
            log.error("audit documents dropped at stop", extra={"ecs": {"event.count": len(self._queue)}})
            self._outcome.labels("dropped").inc(len(self._queue))

    def _run(self) -> None:
        import elasticsearch  # noqa: F401 -- takes a second: now, not beside the first requests

        client: Elasticsearch | None = None
        wait = BACK_OFF_SECONDS[0]
        while self._fresh or self._queue or not self._stopping.is_set():
            if len(self._queue) < BATCH:
                self._stopping.wait(LINGER_SECONDS)
            self._write()
            if not (batch := self._batch()):
                continue
            try:
                client = client or connect(str(self.url))
                self._settle(batch, self._ship(client, batch))
                wait = BACK_OFF_SECONDS[0]
            except Exception as error:  # whatever it is, the documents stay queued and the thread lives
                waiting = {"ecs": {"event.count": len(self._queue)}}
                log.warning("the audit store does not take documents: %s", type(error).__name__, extra=waiting)
                if self._stopping.is_set():
                    wait = BACK_OFF_SECONDS[0]
                    if time.monotonic() + wait > self._deadline:
                        return
                    time.sleep(wait)
                self._stopping.wait(wait * random.uniform(0.5, 1.0))  # noqa: S311
                wait = min(wait * 2, BACK_OFF_SECONDS[1])

    def _batch(self) -> list[Document]:
        """The oldest documents, as many as go into one request."""
        room = BATCH_BYTES
        with self._lock:
            batch = list(islice(self._queue, BATCH))
        for number, (_, _, body) in enumerate(batch):
            room -= len(body)
            if room < 0:
                return batch[: max(number, 1)]
        return batch

    def _ship(self, client: "Elasticsearch", batch: list[Document]) -> list[int]:
        """Sends the batch, in halves where it is too large as a whole; returns one HTTP status per document."""
        from elasticsearch import ApiError

        lines: list[Any] = []
        for index, identifier, body in batch:
            lines += [b'{"create":{"_index":"%s","_id":"%s"}}' % (index.encode(), identifier.encode()), body]
        try:
            answer = client.bulk(operations=lines, filter_path="items.*.status,items.*.error.type")
        except ApiError as error:
            if error.status_code != 413:
                raise
            half = len(batch) // 2
            return [*self._ship(client, batch[:half]), *self._ship(client, batch[half:])] if half else [413]
        return [item["create"]["status"] for item in answer["items"]]

    def _settle(self, batch: list[Document], statuses: list[int]) -> None:
        """Takes settled documents off the queue; those to be tried again go to its end. Raises if any has to wait."""
        again = []
        for document, status in zip(batch, statuses, strict=True):
            outcome = "stored" if status < 300 else "duplicate" if status == 409 else "rejected"
            if status in RETRY:
                again.append(document)
            else:
                self._outcome.labels(outcome).inc()
        with self._lock:
            for _ in batch:
                self._bytes -= len(self._queue.popleft()[2])
            for document in again:
                self._queue.append(document)
                self._bytes += len(document[2])
        if again:
            raise ServiceError(f"{len(again)} documents to be sent again")


def connect(url: str) -> "Elasticsearch":
    """The official client: credentials stand in the URL, ELASTICSEARCH_CA names a CA file, TLS is verified."""
    from elasticsearch import Elasticsearch

    options = {"ca_certs": authority} if (authority := os.environ.get("ELASTICSEARCH_CA")) else {}
    return Elasticsearch(url, request_timeout=TIMEOUT_SECONDS, max_retries=0, **options)  # type: ignore[arg-type]


def install(_: Contract) -> str:
    """Puts the index template of the audit trail in place; returns its name.

    Raises UsageError without ELASTICSEARCH_URL, ServiceError when the server is away or refuses.
    """
    url = os.environ.get("ELASTICSEARCH_URL")
    if not url:
        raise UsageError("ELASTICSEARCH_URL is not set: it names the server that keeps the audit trail")
    from elasticsearch import ApiError, TransportError

    template = json.loads((settings.root() / "ops" / "elasticsearch" / "audit-template.json").read_text("utf-8"))
    try:
        connect(url).indices.put_index_template(name=TEMPLATE, **template)
    except ApiError as error:
        raise ServiceError(f"Elasticsearch refused the template: {error.message} ({error.status_code})") from None
    except (TransportError, ValueError) as error:
        raise ServiceError(f"Elasticsearch does not answer ({type(error).__name__}): check ELASTICSEARCH_URL") from None
    return TEMPLATE
