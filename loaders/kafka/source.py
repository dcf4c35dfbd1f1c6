"""Topics of Kafka: records in JSON or Avro, mapped to series, time and value.

A partition is read on from where the last committed load left it. Its place moves by compare-and-set in the transaction
of the rows, so that a message counts once, whoever reads and whatever dies. Partitions are assigned, not subscribed to,
and nothing is committed to the broker: no group has a say, and no rebalance takes a partition away.
"""

import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import confluent_kafka as kafka
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from model_service.contract import Series
from model_service.errors import UsageError
from model_service.loader import ALWAYS, Ask, Payload, SourceError
from model_service.loader.sources._kafka import Message, Options, parse, schema_of
from model_service.loader.web import Client, Web, shown

PARSER_VERSION = 1
STREAMS = True
MEDIA_TYPE = "application/x-ndjson"
BATCH_BYTES = 8_000_000
TURN_SECONDS = 300.0  # then a stream is opened anew: partitions may have been added
AT_ONCE = 1_000  # messages taken from the client's queue
BUSY = 10  # times as long a batch may wait while there are as many: the other partitions' are filled first
LOG = logging.getLogger(__name__)  # of the client library; what matters of it is raised as well
LOG.addHandler(logging.NullHandler())


@dataclass
class Part:
    """A partition: its place in the store, the next message's offset, and what waits to be loaded, since when.

    `known` dates its last message: that one's timestamp, but not before the message ahead of it, which readers got
    first, nor after it was read.
    """

    topic: str
    number: int
    stood: str | None
    offset: int
    known: int
    high: int
    since: float = 0.0
    size: int = 0
    waiting: list[Message] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.topic}/{self.number}"

    def take(self, message: kafka.Message) -> None:
        now, stamp, offset = time.time_ns() // 1000, message.timestamp()[1], message.offset() or 0
        self.known = max(self.known + 1, min(stamp * 1000, now) if stamp > 0 else now)
        self.since = self.since if self.waiting else time.monotonic()
        self.waiting.append(Message(offset, stamp, self.known, message.key(), message.value()))
        self.size, self.offset = self.size + len(message), offset + 1

    def give(self, schemas: Mapping[str, str], options: Options, series: Mapping[str, Series], path: Path) -> Payload:
        """What waits, as a payload that moves the partition; nothing waits then."""
        head = json.dumps({"schemas": schemas}).encode()
        path.write_bytes(b"\n".join([head, *(message.line() for message in self.waiting)]))
        name, stands = f"{self.name}/{self.waiting[0].offset}-{self.offset - 1}", f"{self.offset}@{self.known}"
        payload = Payload(name, path, MEDIA_TYPE, None, moves={self.name: (self.stood, stands)})
        # Where a key has one partition, no other one said anything of its series: then nothing there is out of order.
        spoken = {one.series for one in parse(payload, options, series) if one.series}
        self.stood, self.waiting, self.size = stands, [], 0
        return replace(payload, series=tuple(sorted(spoken)))


def fetch(options: Options, ask: Ask) -> Iterator[Payload]:
    """What the topics hold beyond what was loaded, in batches of one partition; with `ask.until`, what comes in a turn.

    Raises SourceError: broker down, login refused, no such topic, messages that were not read are gone.
    """
    if ask.window != ALWAYS:
        raise UsageError("--from and --to choose vintages, and a topic is read by its offsets: leave them out")
    try:
        schemas = {"": (ask.root / options.schema_file).read_text("utf-8")} if options.schema_file else {}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"schema_file = {options.schema_file!r} cannot be read: {error}") from None
    if schemas and schema_of(schemas[""]) is None:
        raise UsageError(f"schema_file = {options.schema_file!r} is no Avro schema")
    trouble, at_once = list[KafkaError](), min(AT_ONCE, options.batch_rows)
    with closing(_consumer(options, trouble)) as consumer, tempfile.TemporaryDirectory() as folder:
        parts = {part.name: part for part in _parts(consumer, options, ask, trouble)}
        consumer.assign([TopicPartition(one.topic, one.number, one.offset) for one in parts.values()])
        heard = began = time.monotonic()
        while not ask.until or not (ask.until.is_set() or time.monotonic() > began + TURN_SECONDS):
            messages = consumer.consume(at_once, 0.05)
            for message in messages:
                problem, name = message.error(), f"{message.topic()}/{message.partition()}"
                if problem is None:
                    _learn(message.value(), schemas, options, ask)
                    parts[name].take(message)
                elif problem.code() == KafkaError._PARTITION_EOF:  # up to `high` are marks of transactions, or nothing
                    parts[name].high = min(parts[name].high, parts[name].offset)
                else:
                    _parts(consumer, options, ask, trouble)  # says it better where the place is out of range
                    raise SourceError(f"{name}: {problem.str()}; what was loaded before stands")
            for part in parts.values():
                full = len(part.waiting) >= options.batch_rows or part.size >= BATCH_BYTES
                old = time.monotonic() > part.since + options.batch_seconds * (BUSY if len(messages) == at_once else 1)
                if part.waiting and (full or old or (not ask.until and part.offset >= part.high)):
                    yield part.give(schemas, options, ask.series, Path(folder) / "messages")
                    if ask.positions().get(part.name) != part.stood:
                        return  # it was not loaded, so that nothing behind it can be
            if not ask.until and all(part.offset >= part.high and not part.waiting for part in parts.values()):
                return
            if not messages and trouble and time.monotonic() > heard + options.timeout_seconds:
                _numbers(consumer, options, options.topic[0], trouble)
            elif messages or not trouble:
                heard = time.monotonic()


def _consumer(options: Options, trouble: list[KafkaError]) -> kafka.Consumer:
    settings: dict[str, Any] = {
        "bootstrap.servers": options.servers, "security.protocol": options.security, "group.id": "model-service",
        "enable.auto.commit": False, "auto.offset.reset": "error", "enable.partition.eof": True,
        "isolation.level": "read_committed", "queued.max.messages.kbytes": 16_384, "reconnect.backoff.max.ms": 1_000,
        "error_cb": trouble.append, "logger": LOG,
    }  # fmt: skip
    if options.ca_file:
        settings["ssl.ca.location"] = options.ca_file
    if options.security.startswith("sasl"):
        user, password = (os.environ.get(name) for name in ("KAFKA_USERNAME", "KAFKA_PASSWORD"))
        if not user or not password:
            raise UsageError(f"KAFKA_USERNAME or KAFKA_PASSWORD is not set: {options.security} needs both")
        settings |= {"sasl.mechanism": options.mechanism, "sasl.username": user, "sasl.password": password}
    try:
        return kafka.Consumer(settings)
    except KafkaException as error:
        raise SourceError(f"{options.servers}: {error.args[0].str()}") from None


def _parts(consumer: kafka.Consumer, options: Options, ask: Ask, trouble: list[KafkaError]) -> list[Part]:
    """The partitions, each at its place; raises SourceError where that is out of what the topic has."""
    found, held, seconds = [], ask.positions(), options.timeout_seconds
    patient = Retrying(  # a partition may look for its leader
        stop=stop_after_delay(seconds), wait=wait_random_exponential(0.2, 3), reraise=True,
        retry=retry_if_exception_type(KafkaException),
    )  # fmt: skip
    for topic in options.topic:
        for number in _numbers(consumer, options, topic, trouble):
            name = f"{topic}/{number}"
            try:
                low, high = patient(consumer.get_watermark_offsets, TopicPartition(topic, number), seconds)
            except KafkaException as error:
                raise SourceError(f"{name}: {error.args[0].str()}; try again later") from None
            offset, known = map(int, held[name].split("@")) if name in held else (low, 0)
            if not low <= offset <= high:
                says = f"messages {offset} to {low - 1} are gone, the broker keeps them no longer"
                if offset > high:
                    says = f"{offset} messages of it were read and it has {high}: it was made anew, or lost its end"
                offset = options.resume.get(name, -1)
                if not low <= offset <= high:
                    way = f'resume = {{ "{name}" = {low} }} in the table of this source'
                    raise SourceError(f"{name}: {says}. What was loaded stands; to go on from {low}, write {way}")
            found.append(Part(topic, number, held.get(name), offset, known, high))
    return found


def _numbers(consumer: kafka.Consumer, options: Options, topic: str, trouble: list[KafkaError]) -> list[int]:
    """The partitions of a topic; raises SourceError: nobody answers, login refused, no such topic."""
    trouble.clear()
    try:
        found = consumer.list_topics(topic, timeout=options.timeout_seconds).topics[topic]
    except KafkaException as error:
        consumer.poll(0)  # that fills `trouble`
        says = next((one.str() for one in trouble if one.code() == KafkaError._AUTHENTICATION), error.args[0].str())
        raise SourceError(f"{options.servers} gives no topics: {says}; check servers and login, or try later") from None
    if found.error or not found.partitions:
        raise SourceError(f"{options.servers}: topic {topic!r}: {found.error or 'has no partition'}; check `topic`")
    return sorted(found.partitions)


def _learn(value: bytes | None, schemas: dict[str, str], options: Options, ask: Ask) -> None:
    """Asks the registry for the schema of a message, once: it is kept beside the messages. None of that number: ""."""
    if not options.registry or not value or len(value) < 5 or value[0]:
        return
    if (number := f"{int.from_bytes(value[1:5], 'big')}") in schemas:
        return
    user, password = (os.environ.get(f"KAFKA_REGISTRY_{name}", "") for name in ("USERNAME", "PASSWORD"))
    web, login = Web(base_url=options.registry, requests_per_second=50), f"{user}:{password}" if user else ""
    with Client(web, ask.pace, {}, login) as client:
        answer = client.get(f"/schemas/ids/{number}", {})
    try:
        schemas[number] = "" if answer.status_code == 404 else str(answer.raise_for_status().json()["schema"])
    except Exception:  # whatever it is, it is no schema
        says = f"the registry answers {answer.status_code} for schema {number}: {shown(answer.content)}"
        raise SourceError(f"{says}; check `registry` and KAFKA_REGISTRY_USERNAME, KAFKA_REGISTRY_PASSWORD") from None
