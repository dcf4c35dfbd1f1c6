"""Messages of Kafka as they are kept, and what they say: series, time, value. Nothing here needs a broker.

Kept are lines of JSON: first the Avro schemas, {"schemas": {number in the registry, or "" for the file: text}}; then of
each message [offset, timestamp in ms, known from in µs, key, value]; key and value in base64, or null.
"""

import io
import json
import math
import re
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple

import fastavro
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from model_service import periods
from model_service.contract import Series
from model_service.loader import DELETED, Cell, Payload, Reject, SourceError, parse_value
from model_service.loader.web import Url, shown
from model_service.mistakes import Section, did_you_mean

SHOWN = 1_000  # characters of a bad message
EPOCHS = {"epoch_s": 1_000_000, "epoch_ms": 1_000}  # microseconds


class Dated(Section):
    """Field that holds a time: text by `format`, a number since 1970 by epoch_s or epoch_ms, or Avro's own types."""

    field: str
    format: Annotated[str, AfterValidator(lambda one: one if one in EPOCHS else periods.checked(one))] = "%Y-%m-%d"


class Options(Section):
    """Keys of a `[source.*]` table with kind = "kafka"; docs/kafka.md explains each."""

    servers: str
    topic: Annotated[tuple[str, ...], BeforeValidator(lambda one: (one,) if isinstance(one, str) else one)]
    format: Literal["json", "avro"] = "json"
    schema_file: str | None = None
    registry: Url | None = None
    key: re.Pattern[str] = re.compile("")
    series: str = "series"
    time: Dated
    value: str = "value"
    known_from: Dated | None = None
    undeclared: Literal["quarantine", "ignore"] = "quarantine"
    security: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = "plaintext"
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    ca_file: str | None = None
    batch_rows: Annotated[int, Field(gt=0, le=100_000)] = 10_000
    batch_seconds: Annotated[float, Field(gt=0)] = 0.5
    timeout_seconds: Annotated[float, Field(gt=0)] = 30.0
    resume: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_together(self) -> "Options":
        if self.key.pattern and (not (groups := self.key.groupindex.keys()) or groups - {"series", "time"}):
            raise ValueError("key must have (?P<series>...), (?P<time>...) or both, and no other group with a name")
        if (self.format == "avro") != bool(self.schema_file or self.registry):
            raise ValueError('format = "avro" needs `schema_file` or `registry`, and "json" neither')
        return self


class Message(NamedTuple):
    """`timestamp` in milliseconds, `known` in microseconds since 1970."""

    offset: int
    timestamp: int
    known: int
    key: bytes | None
    value: bytes | None

    def line(self) -> bytes:
        return json.dumps([*self[:3], *(None if one is None else b64encode(one).decode() for one in self[3:])]).encode()


class Poison(ValueError):
    """A message that cannot be read as declared: the rule that it breaks, and how."""

    def __init__(self, rule: str, detail: str, series: str | None = None, valid_time: datetime | None = None) -> None:
        super().__init__(detail)
        self.rule, self.series, self.valid_time = rule, series, valid_time


def parse(payload: Payload, options: Options, series: Mapping[str, Series]) -> Iterator[Cell | Reject]:
    """Cells of one payload, in the order of its messages; `line` is a message's offset.

    A message that is null deletes what its key names, a value that is null is missing. Memory: all the messages.
    Raises SourceError for bytes that are no messages.
    """
    try:
        head, *lines = payload.path.read_bytes().split(b"\n")
        schemas = {number: schema_of(text) for number, text in json.loads(head)["schemas"].items()}
        messages = [_message(*json.loads(line)) for line in lines]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        says = shown(payload.path.read_bytes()[:400])
        raise SourceError(f"{payload.name}: these bytes are no kept messages: {says}") from None
    seen: dict[Any, int] = {}
    for one in messages:
        try:
            cell = _cell(one, options, series, schemas)
            if cell and (first := seen.setdefault(cell[:3], one.offset)) != one.offset:
                says = f"message {first} already gave {cell.series} for the period of {cell.valid_time:%Y-%m-%d}"
                raise Poison("duplicate", says, cell.series, cell.valid_time)
        except Poison as bad:
            raw = ((one.key or b"") if one.value is None else one.value)[:SHOWN].decode("utf-8", "backslashreplace")
            yield Reject(bad.series, one.offset, raw, bad.rule, " ".join(str(bad).split())[:300], bad.valid_time)
        else:
            yield from [cell] if cell else []


def _message(offset: int, timestamp: int, known: int, key: str | None, value: str | None) -> Message:
    if not all(isinstance(one, int) and abs(one) < 2**63 for one in (offset, timestamp, known)):
        raise ValueError
    return Message(offset, timestamp, known, *(one if one is None else b64decode(one) for one in (key, value)))


@lru_cache(maxsize=256)
def schema_of(text: str) -> Any:
    """None for a text that is no Avro schema: messages by it cannot be read."""
    try:
        return fastavro.parse_schema(json.loads(text))
    except (ValueError, KeyError, TypeError, fastavro.schema.SchemaParseException):
        return None


def _cell(one: Message, options: Options, series: Mapping[str, Series], schemas: Mapping[str, Any]) -> Cell | None:
    """What a message says; None: it speaks of a series that is to be ignored. Raises Poison."""
    found = options.key.fullmatch((one.key or b"").decode("utf-8", "replace"))
    told = {name: text for name, text in found.groupdict().items() if text} if found else {}
    if one.value is None and len(told) < 2:
        raise Poison("tombstone", "a null message, and its key does not tell by `key` which series and time it deletes")
    record = None if one.value is None else _record(one.value, options, schemas)
    name = told.get("series") or _field(record, options.series)
    if not isinstance(name, str) or name not in series:
        if options.undeclared == "ignore":
            return None
        raise Poison("series", f"{name!r} is not declared{did_you_mean(str(name), series)}")
    try:
        when = told.get("time") or _field(record, options.time.field)
        valid_time = _period(when, options.time.format, series[name].frequency)
        known = periods.instant(one.known)
        if options.known_from and one.value is not None:
            known = _instant(_field(record, options.known_from.field), options.known_from.format)
    except (ValueError, OverflowError) as error:
        raise error if isinstance(error, Poison) else Poison("date", str(error), name) from None
    if one.value is None:
        return Cell(name, valid_time, known, math.nan, one.offset, DELETED)
    raw = _field(record, options.value)
    value, state, rule, detail = parse_value(raw, None)
    if rule:
        raise Poison(rule, detail, name, valid_time)
    return Cell(name, valid_time, known, value, one.offset, state, raw)


def _record(value: bytes, options: Options, schemas: Mapping[str, Any]) -> Any:
    try:
        if options.format == "json":
            return json.loads(value)
        stream, writer, reader = io.BytesIO(value), schemas.get(""), None
        if options.registry:
            magic, number = stream.read(1), int.from_bytes(stream.read(4), "big")
            writer, reader = schemas.get(f"{number}") if magic == b"\0" else None, writer
        if writer is None:
            raise ValueError(f"no schema of number {number} was found for it" if options.registry else "no schema")
        record = fastavro.schemaless_reader(stream, writer, reader)
        if stream.read(1):
            raise ValueError("bytes are left over: it was written by another schema")
        return record
    except Exception as error:  # a decoder may fail in any way over bytes that are not its own
        raise Poison("message", f"not {options.format}: {error or type(error).__name__}") from None


def _field(record: Any, path: str) -> Any:
    for step in path.split("."):
        if not isinstance(record, dict) or step not in record:
            raise Poison("message", f"it has no field {path!r}")
        record = record[step]
    return record


def _period(raw: Any, form: str, frequency: str) -> datetime:
    """First instant of the period that a time lies in; raises ValueError."""
    if not isinstance(raw, str) or form in EPOCHS:
        raw, form = _instant(raw, form).date().isoformat(), "%Y-%m-%d"
    if periods.FREQUENCIES.index(periods.grain(form)) > periods.FREQUENCIES.index(frequency):
        raise ValueError(f"the series is by {frequency}, and {form!r} names only a {periods.grain(form)}")
    return periods.period(raw, form, frequency)[1]


def _instant(raw: Any, form: str) -> datetime:
    if isinstance(raw, str) and form not in EPOCHS:
        return periods.known_from(raw, form)
    if isinstance(raw, date):
        found = raw if isinstance(raw, datetime) else datetime(raw.year, raw.month, raw.day)
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    if form in EPOCHS and type(raw) in (int, float):
        return periods.EPOCH + timedelta(microseconds=raw * EPOCHS[form])
    raise ValueError(f"{raw!r} is not a time in the format {form!r}")
