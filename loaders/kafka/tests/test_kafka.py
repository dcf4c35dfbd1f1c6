"""The kafka source against the client library's own mock broker: what it loads, where it goes on, what it refuses."""

import io
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro
import psycopg
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from desk import HEAD, Service
from fake_web import Answer, serving
from hypothesis import given, settings
from hypothesis import strategies as st

from model_service.contract import Series
from model_service.errors import ServiceError, UsageError
from model_service.loader import DELETED, MISSING, Cell, Payload, Reject, SourceError, Window, run
from model_service.loader.sources import kafka as source
from model_service.loader.sources._kafka import Message
from model_service.store import ledger, provider, raw
from model_service.store.connection import connect

SOURCE = """
[source.prices]
kind = "kafka"
servers = "{servers}"
topic = "{topic}"
time = {{ field = "day" }}
timeout_seconds = 3
batch_seconds = 0.1
{more}
"""
SERIES = '[series.{}]\nsource = "prices"\nfrequency = "day"\nunit = "1"\nrelease_lag_days = 0\n{}\n'
PUBLISHED = 'known_from = { field = "published" }'
KEY = r"key = '(?P<series>\w+)\|(?P<time>[\d-]+)'"
JUNE = datetime(2026, 6, 1, tzinfo=UTC)


@dataclass
class Broker:
    """A cluster in this process: real sockets and protocol, four partitions a topic, at most 5 MB in each."""

    producer: Producer
    servers: str

    def send(self, value: Any, key: str | None = None, partition: int = 0, at: datetime | None = None) -> None:
        body = value if value is None or isinstance(value, bytes) else json.dumps(value).encode()
        when = {"timestamp": int(at.timestamp() * 1000)} if at else {}
        self.producer.produce("prices", body, key, partition, **when)
        assert self.producer.flush(10) == 0

    def price(self, series: str, day: int, value: Any, partition: int = 0, **more: Any) -> None:
        at = more.pop("at", None)
        self.send({"series": series, "day": f"2026-01-{day:02}", "value": value, **more}, None, partition, at)


@pytest.fixture
def broker() -> Iterator[Broker]:
    producer = Producer({"bootstrap.servers": "none", "test.mock.num.brokers": 1, "log_level": 3})
    found = producer.list_topics("prices", timeout=10).brokers.values()
    yield Broker(producer, ",".join(f"{one.host}:{one.port}" for one in found))


@dataclass
class Desk(Service):
    servers: str
    url: str
    root: Path
    more: str = ""
    rules: str = ""
    topic: str = "prices"
    said: list[str] = field(default_factory=list)

    @property
    def toml(self) -> str:
        source = SOURCE.format(servers=self.servers, topic=self.topic, more=self.more)
        return HEAD.format(target="A") + source + "".join(SERIES.format(name, self.rules) for name in "AB")

    def places(self) -> dict[str, int]:
        return {part: int(stands.split("@")[0]) for part, stands in self.rows("SELECT part, stands FROM position")}

    def values(self, name: str = "A") -> list[tuple[int, float | None, int]]:
        """Every stored row of a series in the order of what was known: day of January, value, state."""
        return [
            (valid.day, value, state)
            for valid, value, state in self.rows(
                "SELECT valid_time, value, state FROM observation JOIN series USING (series_id) WHERE name = %s"
                " ORDER BY known_from, load_id", name,
            )
        ]  # fmt: skip

    def days(self, at: str = "", name: str = "A") -> dict[int, float]:
        """What the store answers as of then, or of now, by day of January."""
        return {int(day[8:]): value for day, value in self.known(at or f"{datetime.now(UTC)}", name).items()}

    def quarantined(self) -> list[tuple[str, int, str]]:
        """Partition, offset and rule of each."""
        rows = self.rows("SELECT file, line, rule FROM quarantine ORDER BY quarantine_id")
        return [(file.rsplit("/", 1)[0], line, rule) for file, line, rule in rows]


@pytest.fixture
def desk(broker: Broker, url: str, tmp_path: Path) -> Desk:
    return Desk(broker.servers, url, tmp_path)


# ---- where it goes on ----


def test_messages_are_loaded_and_each_partition_is_read_on_from_where_it_stands(broker: Broker, desk: Desk) -> None:
    broker.price("A", 1, 1.5)
    broker.price("A", 2, 2.5)
    broker.price("B", 1, 7, partition=2)
    assert [one["file"] for one in desk.load()] == ["prices/0/0-1", "prices/2/0-0"]
    assert (desk.places(), desk.days(), desk.days(name="B")) == (
        {"prices/0": 2, "prices/2": 1},
        {1: 1.5, 2: 2.5},
        {1: 7},
    )
    assert desk.load() == []
    broker.price("A", 3, 3.5)
    assert [one["file"] for one in desk.load()] == ["prices/0/2-2"]
    assert desk.days() == {1: 1.5, 2: 2.5, 3: 3.5}
    assert desk.rows("SELECT sum(fetched), sum(new) FROM load") == [(4, 4)]


def test_what_the_group_committed_has_no_say(broker: Broker, desk: Desk) -> None:
    broker.price("A", 1, 1)
    broker.price("A", 2, 2)
    other = Consumer({"bootstrap.servers": broker.servers, "group.id": "model-service", "enable.auto.commit": False})
    other.commit(offsets=[TopicPartition("prices", 0, 2)], asynchronous=False)
    desk.load()
    assert desk.days() == {1: 1, 2: 2}
    assert other.committed([TopicPartition("prices", 0)], timeout=5)[0].offset == 2
    other.close()


def test_a_batch_ends_after_so_many_rows(broker: Broker, desk: Desk) -> None:
    desk.more = "batch_rows = 3"
    for day in range(1, 9):
        broker.price("A", day, day)
    desk.load()
    files = [file for (file,) in desk.rows("SELECT request->>'file' FROM load ORDER BY load_id")]
    assert files == ["prices/0/0-2", "prices/0/3-5", "prices/0/6-7"]
    assert desk.days() == {day: day for day in range(1, 9)}


def test_a_topic_that_is_to_be_read_again_is_read_again_and_nothing_is_doubled(broker: Broker, desk: Desk) -> None:
    desk.more = "batch_rows = 1"
    for day in (1, 2, 3):
        broker.price("A", day, day)
    desk.load()
    with psycopg.connect(desk.url, autocommit=True) as owner:
        owner.execute("DELETE FROM position")
    assert [one["outcome"] for one in desk.load()] == ["nothing new"] * 3
    assert (desk.places(), desk.values()) == ({"prices/0": 3}, [(1, 1, 0), (2, 2, 0), (3, 3, 0)])


# ---- late, repeated, out of order ----


def test_repeated_and_late_messages(broker: Broker, desk: Desk) -> None:
    broker.price("A", 2, 20)
    broker.price("A", 2, 20)
    broker.price("A", 2, 21)
    desk.load()
    broker.price("A", 2, 21)
    broker.price("A", 1, 10)  # of a period before
    desk.load()
    assert desk.values() == [(2, 20, 0), (2, 21, 0), (1, 10, 0)]
    assert desk.rows("SELECT fetched, new, changed, same FROM load ORDER BY load_id") == [(3, 1, 1, 1), (2, 1, 0, 1)]


def test_vintages_out_of_order_answer_as_if_they_had_come_in_order(broker: Broker, desk: Desk) -> None:
    desk.more = PUBLISHED
    broker.price("A", 1, 3, published="2026-03-03")
    broker.price("A", 1, 1, published="2026-03-01")
    desk.load()
    broker.price("A", 1, 2, published="2026-03-02")
    broker.price("A", 1, 2, published="2026-03-02", partition=1)  # by another way, once more
    desk.load()
    answers = [desk.days(f"2026-03-0{day}T12:00") for day in (1, 2, 3)]
    assert answers == [{1: 1}, {1: 2}, {1: 3}]


def test_a_message_is_known_from_its_timestamp_but_not_before_the_one_ahead_of_it(broker: Broker, desk: Desk) -> None:
    began = datetime.now(UTC)
    stamps = [JUNE, JUNE - timedelta(days=9), JUNE + timedelta(days=1), datetime(2200, 1, 1, tzinfo=UTC)]
    for number, at in enumerate(stamps):
        broker.price("A", 1, number, at=at)
        desk.load()
    known = [one for (one,) in desk.rows("SELECT known_from FROM observation ORDER BY value")]
    assert known[:3] == [JUNE, JUNE + timedelta(microseconds=1), JUNE + timedelta(days=1)]
    assert began < known[3] < datetime.now(UTC)  # nobody reads what is not there yet


# ---- poison, tombstones, what is missing ----

POISON = {
    "no JSON": (b"\xff\x00{", "message"),
    "no record": (b"[1]", "message"),
    "no field": ({"series": "A", "value": 1}, "message"),
    "text": ({"series": "A", "day": "2026-01-01", "value": "n/a"}, "number"),
    "true": ({"series": "A", "day": "2026-01-01", "value": True}, "number"),
    "grouped": ({"series": "A", "day": "2026-01-01", "value": "1_000"}, "number"),
    "infinite": (b'{"series": "A", "day": "2026-01-01", "value": 1e999}', "finite"),
    "no number": (b'{"series": "A", "day": "2026-01-01", "value": NaN}', "finite"),
    "no such day": ({"series": "A", "day": "2026-02-30", "value": 1}, "date"),
    "a day that is a list": ({"series": "A", "day": [1], "value": 1}, "date"),
    "another series": ({"series": "C", "day": "2026-01-01", "value": 1}, "series"),
    "a series that is a list": ({"series": ["A"], "day": "2026-01-01", "value": 1}, "series"),
    "a period to come": ({"series": "A", "day": "2226-01-01", "value": 1}, "future"),
    "null, with a key that tells nothing": (None, "tombstone"),
    "empty": (b"", "message"),
    "brackets without end": (b"[" * 100_000, "message"),
}


def test_poison_goes_to_quarantine_and_the_others_are_loaded(broker: Broker, desk: Desk) -> None:
    for message, _ in POISON.values():
        broker.send(message, "k", 1)
        broker.price("A", len(desk.said) + 1, 1, partition=1)
    desk.load()
    rules = [rule for _, rule in POISON.values()]
    # A cell that breaks a rule of the store is found last.
    assert sorted(desk.quarantined()) == sorted(("prices/1", 2 * number, rule) for number, rule in enumerate(rules))
    assert desk.places() == {"prices/1": 2 * len(POISON)}
    shown = dict(desk.rows("SELECT line, raw FROM quarantine"))
    assert shown[0] == "\\xff\N{REPLACEMENT CHARACTER}{"
    (sha256,) = desk.rows("SELECT payload_sha256 FROM load")[0]
    with connect(desk.url, "loader") as connection, raw.opened(connection, sha256) as (path, _):
        kept = [source.parse.__globals__["_message"](*json.loads(line)) for line in path.read_bytes().split(b"\n")[1:]]
    sent = [one if one is None or isinstance(one, bytes) else json.dumps(one).encode() for one, _ in POISON.values()]
    assert [one.value for one in kept[::2]] == sent
    assert [one.key for one in kept[::2]] == [b"k"] * len(POISON)


def test_a_null_message_deletes_what_its_key_names(broker: Broker, desk: Desk) -> None:
    desk.more = KEY
    broker.send({"value": 5}, "A|2026-01-01")
    broker.send({"value": 6}, "A|2026-01-02")
    broker.send({"value": None}, "A|2026-01-03")
    desk.load()
    broker.send(None, "A|2026-01-01")
    desk.load()
    assert desk.days() == {2: 6}
    assert desk.values() == [(1, 5, 0), (2, 6, 0), (3, None, MISSING), (1, None, DELETED)]


def test_messages_of_other_series_may_be_left_alone(broker: Broker, desk: Desk) -> None:
    desk.more = 'undeclared = "ignore"'
    broker.price("C", 1, 1)
    broker.price("A", 1, 1)
    desk.load()
    assert (desk.days(), desk.quarantined(), desk.places()) == ({1: 1}, [], {"prices/0": 2})


def test_what_was_refused_is_read_again_when_the_declaration_was_mended(broker: Broker, desk: Desk) -> None:
    desk.more = 'value = "price"'
    broker.price("A", 1, 1)
    desk.load()
    assert desk.quarantined() == [("prices/0", 0, "message")]
    desk.more = ""
    desk.again(1, "retry", "another name")
    assert desk.days() == {1: 1}


# ---- a load that is not committed ----


def test_behind_a_blocked_batch_nothing_is_loaded(broker: Broker, desk: Desk) -> None:
    desk.more, desk.rules = "batch_rows = 1", 'jump = { limit = 3, action = "block" }'
    for day in range(1, 9):
        broker.price("A", day, day)
    desk.load()
    broker.price("A", 9, 5000)
    assert [one["outcome"] for one in desk.load()] == ["blocked"]
    broker.price("A", 10, 10)
    assert [one["outcome"] for one in desk.load()] == ["blocked"]
    assert (desk.places(), max(desk.days())) == ({"prices/0": 8}, 8)
    desk.rules = ""
    desk.load()
    assert (desk.places(), max(desk.days())) == ({"prices/0": 10}, 10)


def test_a_dry_run_moves_nothing(broker: Broker, desk: Desk) -> None:
    broker.price("A", 1, 1)
    assert [one["outcome"] for one in desk.load(dry=True)] == ["would load"]
    assert (desk.places(), desk.count("load")) == ({}, 0)


@contextmanager
def unclaimed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A claim that holds nobody off, as when a copy was away and does not know that it lost its own."""

    @contextmanager
    def nobody(*_: object) -> Iterator[None]:
        yield None

    with monkeypatch.context() as patched:
        patched.setattr(ledger, "claim", nobody)
        yield


def meddle(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, do: Callable[[], object]) -> None:
    """Does that once, when the next load comes to that function."""
    plain, waiting = getattr(module, name), [do]

    def meddled(*asked: Any) -> Any:
        if waiting:
            waiting.pop()()
        return plain(*asked)

    monkeypatch.setattr(module, name, meddled)


def test_of_two_copies_that_read_the_same_messages_one_commits_them(
    broker: Broker, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where neither claim nor watermark tells, the place of the partition does."""
    broker.price("A", 1, 1)
    broker.price("A", 2, 2)

    def other() -> None:
        broker.price("A", 3, 3)
        desk.load()

    with unclaimed(monkeypatch), monkeypatch.context() as patched:
        patched.setattr(ledger, "advance", lambda *_: None)
        meddle(patched, raw, "keep", other)
        with pytest.raises(ServiceError, match="another copy read prices/0 meanwhile; nothing was committed"):
            desk.load()
    assert (desk.places(), desk.count("load")) == ({"prices/0": 3}, 1)
    assert desk.values() == [(1, 1, 0), (2, 2, 0), (3, 3, 0)]
    assert desk.load() == []


def test_a_copy_whose_claim_is_taken_away_in_the_middle_of_a_batch_commits_nothing_of_it(
    broker: Broker, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.price("A", 1, 1)

    def take_over() -> None:
        desk.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                  " AND pid <> pg_backend_pid()")  # fmt: skip
        desk.load()

    meddle(monkeypatch, ledger, "advance", take_over)
    with pytest.raises(psycopg.OperationalError):
        desk.load()
    assert (desk.places(), desk.count("load"), desk.values()) == ({"prices/0": 1}, 1, [(1, 1, 0)])


@pytest.mark.parametrize("place", ["next_load_id", "write", "advance", "move", "name_data_version"])
def test_a_load_that_dies_anywhere_leaves_place_and_rows_as_they_were(
    broker: Broker, desk: Desk, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    broker.price("A", 1, 1)
    desk.load()
    broker.price("A", 2, 2)

    def dies(*_: object) -> None:
        raise SourceError("died")

    with monkeypatch.context() as patched:
        patched.setattr(provider if place == "move" else ledger, place, dies)
        assert desk.refused() == "died"
    desk.load()
    assert (desk.places(), desk.values()) == ({"prices/0": 2}, [(1, 1, 0), (2, 2, 0)])


# ---- what the broker keeps no longer, or does not have ----


def test_messages_that_are_gone_before_they_were_read_are_named_with_the_way_on(broker: Broker, desk: Desk) -> None:
    broker.price("A", 1, 1)
    desk.load()
    for _ in range(8):  # the mock keeps 5 MB
        broker.send(b"x" * 900_000)
    broker.price("A", 2, 2)
    says = desk.refused()
    found = re.match(r"prices/0: messages 1 to (\d+) are gone, the broker keeps them no longer\. What was loaded", says)
    assert found
    low = int(found[1]) + 1
    assert f'resume = {{ "prices/0" = {low} }}' in says
    desk.more = f'resume = {{ "prices/0" = {low} }}\nbatch_rows = 5'
    desk.load()
    assert (desk.places(), desk.days()) == ({"prices/0": 10}, {1: 1, 2: 2})
    broker.price("A", 3, 3)
    desk.load()  # and then `resume` does nothing
    assert (desk.places(), desk.days()) == ({"prices/0": 11}, {1: 1, 2: 2, 3: 3})


def test_messages_that_go_while_it_reads_are_named_too(
    broker: Broker, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.price("A", 1, 1)
    desk.load()
    parts = source._parts

    def and_then_they_go(*asked: Any) -> Any:
        found = parts(*asked)
        if not gone:
            gone.append(True)
            for _ in range(8):
                broker.send(b"x" * 900_000)
            found[0].high = 9
        return found

    gone: list[bool] = []
    monkeypatch.setattr(source, "_parts", and_then_they_go)
    assert desk.refused().startswith("prices/0: messages 1 to ")


def test_a_topic_that_was_made_anew_is_said(broker: Broker, desk: Desk) -> None:
    broker.price("A", 1, 1)
    desk.load()
    with psycopg.connect(desk.url, autocommit=True) as owner:
        owner.execute("UPDATE position SET stands = '900@1'")
    assert desk.refused().startswith("prices/0: 900 messages of it were read and it has 1: it was made anew")


def test_a_broker_that_is_down(desk: Desk) -> None:
    desk.servers = "127.0.0.1:1"
    says = desk.refused()
    assert says.startswith("127.0.0.1:1 gives no topics: ")
    assert says.endswith("; check servers and login, or try later")


# ---- following ----


def wait_for(true: Callable[[], bool]) -> None:
    for _ in range(600):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come")


def test_a_stream_is_followed_until_it_is_told_to_end(broker: Broker, desk: Desk) -> None:
    ended = threading.Event()
    broker.price("A", 1, 1)
    found: list[Any] = []
    asked = desk.contract, desk.url, "prices", desk.root, desk.said.append
    thread = threading.Thread(target=lambda: found.extend(run.load_dataset(*asked, until=ended)))
    thread.start()
    try:
        wait_for(lambda: desk.places() == {"prices/0": 1})
        broker.price("A", 2, 2)
        broker.price("B", 2, 2, partition=3)
        wait_for(lambda: desk.places() == {"prices/0": 2, "prices/3": 1})
    finally:
        ended.set()
        thread.join(30)
    assert not thread.is_alive()
    assert [one["file"] for one in found] == ["prices/0/0-0", "prices/0/1-1", "prices/3/0-0"]
    assert desk.rows("SELECT outcome FROM attempt") == [("done",)]


def test_a_backlog_of_one_partition_does_not_hold_up_another(
    broker: Broker, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "AT_ONCE", 20)
    desk.more = "batch_rows = 100"
    for number in range(10_000):
        value = {"series": "A", "day": f"2026-01-{number % 28 + 1:02}", "value": number}
        broker.producer.produce("prices", json.dumps(value), None, 0)
    broker.price("B", 2, 2, partition=3)
    ended = threading.Event()
    asked = desk.contract, desk.url, "prices", desk.root, desk.said.append
    thread = threading.Thread(target=lambda: run.load_dataset(*asked, until=ended))
    thread.start()
    try:
        wait_for(lambda: "prices/3" in desk.places())
        assert desk.places()["prices/0"] < 9_000
    finally:
        ended.set()
        thread.join(30)


def test_a_turn_ends_and_the_next_one_goes_on(broker: Broker, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "TURN_SECONDS", 1.0)
    broker.price("A", 1, 1)
    for day in (2, 3):
        run.load_dataset(desk.contract, desk.url, "prices", desk.root, desk.said.append, until=threading.Event())
        broker.price("A", day, day)
    assert desk.places() == {"prices/0": 2}


# ---- Avro ----

PRICE = {
    "type": "record", "name": "Price",
    "fields": [
        {"name": "series", "type": "string"},
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {"name": "value", "type": ["null", "double", {"type": "bytes", "logicalType": "decimal", "precision": 9,
                                                      "scale": 2}]},
        {"name": "published", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ],
}  # fmt: skip


def avro(schema: Any, number: int | None = None, **record: Any) -> bytes:
    stream = io.BytesIO() if number is None else io.BytesIO(b"\0" + number.to_bytes(4, "big"))
    stream.seek(0, 2)
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema), record)
    return stream.getvalue()


def price(series: str, day: int, value: Any) -> dict[str, Any]:
    return {"series": series, "day": date(2026, 1, day), "value": value, "published": JUNE}


def test_avro_by_a_schema_from_a_file(broker: Broker, desk: Desk) -> None:
    (desk.root / "price.avsc").write_text(json.dumps(PRICE))
    desk.more = f'format = "avro"\nschema_file = "price.avsc"\n{PUBLISHED}'
    for value in (avro(PRICE, **price("A", 1, 1.5)), avro(PRICE, **price("A", 2, Decimal("2.25"))),
                  avro(PRICE, **price("A", 3, None)), avro(PRICE, **price("A", 4, 4.0)) + b"\0", b"\xff"):  # fmt: skip
        broker.send(value)
    desk.load()
    assert desk.days() == {1: 1.5, 2: 2.25}
    assert desk.quarantined() == [("prices/0", 3, "message"), ("prices/0", 4, "message")]
    assert desk.rows("SELECT DISTINCT known_from FROM observation") == [(JUNE,)]
    (desk.root / "price.avsc").unlink()  # the kept bytes bring it along
    desk.more = f'format = "avro"\nschema_file = "price.avsc"\n{PUBLISHED}\nvalue = "value"'
    assert desk.again(1, "correction", "look again")["same"] == 3


@pytest.mark.parametrize("text", [None, "{", '{"type": "price"}'])
def test_a_schema_file_that_is_none(broker: Broker, desk: Desk, text: str | None) -> None:
    desk.more = 'format = "avro"\nschema_file = "price.avsc"'
    if text:
        (desk.root / "price.avsc").write_text(text)
    assert desk.refused(UsageError).startswith("schema_file = 'price.avsc' ")


@dataclass
class Registry:
    """The one request of a schema registry that matters here."""

    schemas: dict[str, Any]
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    status: int = 200
    body: bytes = b""  # said instead of what was asked for
    url: str = ""

    def answer(self, target: str, headers: Mapping[str, str]) -> Answer:
        self.asked.append((target, headers.get("Authorization")))
        if self.body:
            return self.status, {}, self.body
        found = self.schemas.get(target.removeprefix("/schemas/ids/"))
        status = self.status if self.status != 200 else 200 if found else 404
        body = {"schema": json.dumps(found)} if status == 200 else {"error_code": 40403, "message": "Schema not found"}
        return status, {}, json.dumps(body).encode()


@pytest.fixture
def registry(desk: Desk) -> Iterator[Registry]:
    with serving(Registry({"7": PRICE})) as registry:
        desk.more = f'format = "avro"\nregistry = "{registry.url}"'
        yield registry


def test_avro_framed_by_a_registry(
    broker: Broker, desk: Desk, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_REGISTRY_USERNAME", "me")
    monkeypatch.setenv("KAFKA_REGISTRY_PASSWORD", "secret")
    for value in (avro(PRICE, 7, **price("A", 1, 1.5)), avro(PRICE, 8, **price("A", 2, 2.5)),
                  avro(PRICE, **price("A", 3, 3.5)), avro(PRICE, 7, **price("A", 4, 4.5))):  # fmt: skip
        broker.send(value)
    desk.load()
    assert desk.days() == {1: 1.5, 4: 4.5}
    assert desk.quarantined() == [("prices/0", 1, "message"), ("prices/0", 2, "message")]
    assert registry.asked == [(f"/schemas/ids/{number}", "Basic bWU6c2VjcmV0") for number in (7, 8)]


def test_a_schema_of_the_repository_reads_what_another_one_wrote(
    broker: Broker, desk: Desk, registry: Registry
) -> None:
    mine = {"type": "record", "name": "Price", "fields": [
        *PRICE["fields"][:2], {"name": "price", "aliases": ["value"], "type": PRICE["fields"][2]["type"]}]}  # fmt: skip
    (desk.root / "mine.avsc").write_text(json.dumps(mine))
    desk.more += '\nschema_file = "mine.avsc"\nvalue = "price"'
    broker.send(avro(PRICE, 7, **price("A", 1, 1.5)))
    desk.load()
    assert desk.days() == {1: 1.5}


def test_a_registry_that_refuses_or_is_away_loses_nothing(broker: Broker, desk: Desk, registry: Registry) -> None:
    broker.send(avro(PRICE, 7, **price("A", 1, 1.5)))
    registry.status = 401
    assert desk.refused().startswith("the registry answers 401 for schema 7: ")
    registry.status = 503
    assert desk.refused() == "127.0.0.1 answers 503, 6 times; try again later"
    registry.status, registry.body = 200, b"<!DOCTYPE html>we are back soon"
    assert 'the registry answers 200 for schema 7: "<!DOCTYPE html>we are back soon"; check' in desk.refused()
    registry.body = b""
    desk.load()
    assert desk.days() == {1: 1.5}


# ---- declarations and logins ----


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("batch_row = 1", "did you mean 'batch_rows'"),
        ('format = "avro"', "needs `schema_file` or `registry`"),
        ('registry = "http://x"', '"json" neither'),
        ("key = '('", "regular expression"),
        ("key = '.*'", "key must have (?P<series>...)"),
        ('known_from = { field = "x", format = "%d" }', "names no year"),
    ],
)
def test_a_wrong_key_of_the_source(desk: Desk, more: str, says: str) -> None:
    desk.more = more
    with pytest.raises(UsageError, match=re.escape(says)):
        desk.load()


def test_a_window_is_refused(desk: Desk) -> None:
    with pytest.raises(UsageError, match="leave them out"):
        desk.load(window=Window(date(2026, 1, 1)))


def test_a_login_comes_from_the_environment_and_shows_nowhere(
    broker: Broker, desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    desk.more = 'security = "sasl_plaintext"\nmechanism = "PLAIN"'
    with pytest.raises(UsageError, match="KAFKA_USERNAME or KAFKA_PASSWORD is not set"):
        desk.load()
    monkeypatch.setenv("KAFKA_USERNAME", "me")
    monkeypatch.setenv("KAFKA_PASSWORD", "very-secret-word")
    with caplog.at_level(logging.DEBUG):
        says = desk.refused()
    seen = {"raised": says, "logged": caplog.text, "said": str(desk.said)} | desk.everything()
    assert [where for where, text in seen.items() if "very-secret-word" in text] == []


def test_the_login_of_a_registry_shows_nowhere(
    broker: Broker, desk: Desk, registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither where it refuses, nor in the schema that is kept beside the messages."""
    monkeypatch.setenv("KAFKA_REGISTRY_USERNAME", "me")
    monkeypatch.setenv("KAFKA_REGISTRY_PASSWORD", "very-secret-word")
    broker.send(avro(PRICE, 7, **price("A", 1, 1.5)))
    errors = []
    with caplog.at_level(logging.DEBUG):
        for registry.status, repeated in ((401, b"very-secret-word is wrong"), (200, json.dumps(
            {"schema": json.dumps(PRICE | {"doc": "very-secret-word"})}).encode())):  # fmt: skip
            registry.body = repeated
            errors.append(desk.refused())
        assert errors == ["127.0.0.1 repeats the key in its answer: it was not kept"] * 2
        registry.body = b""
        desk.load()
    seen = {"raised": str(errors), "logged": caplog.text, "said": str(desk.said)} | desk.everything()
    assert "HTTP Request: GET" in caplog.text  # there was something to be seen
    assert [where for where, text in seen.items() if "very-secret-word" in text or "bWU6dmVyeS" in text] == []


# ---- the parser ----

OPTIONS = source.Options.model_validate(
    {"servers": "x", "topic": "prices", "time": {"field": "t.day"}, "key": r"(?P<series>\w+)"}
)
EVERY = {name: Series(source="prices", frequency="day", unit="1", release_lag_days=0) for name in "AB"}


def parsed(content: bytes, folder: Path, options: source.Options = OPTIONS) -> list[Cell | Reject]:
    path = folder / "messages"
    path.write_bytes(content)
    return list(source.parse(Payload("prices/0/x", path, "", None), options, EVERY))


def kept(messages: list[Message]) -> bytes:
    return b"\n".join([b'{"schemas": {}}', *(one.line() for one in messages)])


good = st.tuples(
    st.sampled_from("AB"), st.dates(date(1900, 1, 1), date(2100, 1, 1)),
    st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**60), 2**60)),
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(st.one_of(good, st.binary(max_size=40)), max_size=30), st.integers(0, 2**60))
def test_each_message_becomes_its_cell_or_its_reject(
    tmp_path_factory: pytest.TempPathFactory, sent: list[Any], first: int
) -> None:
    messages, expected = [], []
    for offset, one in enumerate(sent, first):
        if isinstance(one, bytes):
            messages.append(Message(offset, 0, offset, None, one))
            expected.append((offset, None))
        else:
            series, day, value = one
            record = json.dumps({"t": {"day": f"{day}"}, "value": value})
            messages.append(Message(offset, 0, offset % 2**50, series.encode(), record.encode()))
            expected.append((offset, (series, day, None if value is None else float(value))))
    found = parsed(kept(messages), tmp_path_factory.getbasetemp())
    assert [one.line for one in found] == [offset for offset, _ in expected]
    for one, (_, said) in zip(found, expected, strict=True):
        if said is None:
            assert isinstance(one, Reject)
        else:
            assert isinstance(one, Cell)
            assert (one.series, one.valid_time.date(), None if one.state else one.value) == said


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(0, 200), st.booleans())
def test_whatever_the_bytes_are_they_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, place: int, replace: bool
) -> None:
    whole = kept([Message(n, 1, 1, b"A", b'{"t": {"day": "2026-01-01"}, "value": 1}') for n in range(2)])
    content = whole[:place] + junk + whole[place + replace * len(junk) :]
    for one in (content, junk):
        try:
            parsed(one, tmp_path_factory.getbasetemp())
        except SourceError as refusal:
            assert "\n" not in str(refusal)


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_whatever_an_avro_message_is_it_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes
) -> None:
    options = OPTIONS.model_copy(update={"format": "avro", "schema_file": "x"})
    head = json.dumps({"schemas": {"": json.dumps(PRICE)}}).encode()
    line = Message(5, 1, 1, b"A", junk).line()
    assert [one.line for one in parsed(head + b"\n" + line, tmp_path_factory.getbasetemp(), options)] == [5]


TIMES = {
    "epoch_s": (1767225600, "epoch_s"),
    "epoch_ms": (1767225600000, "epoch_ms"),
    "text": ("01.01.26", "%d.%m.%y"),
    "with a clock": ("2026-01-01T23:30:00+0000", "%Y-%m-%dT%H:%M:%S%z"),
}


@pytest.mark.parametrize("form", TIMES)
def test_times_are_numbers_or_text(tmp_path: Path, form: str) -> None:
    given, pattern = TIMES[form]
    options = OPTIONS.model_copy(
        update={"time": source.Options.model_fields["time"].annotation(field="d", format=pattern)}
    )
    (found,) = parsed(kept([Message(0, 1, 1, b"A", json.dumps({"d": given, "value": 1}).encode())]), tmp_path, options)
    assert isinstance(found, Cell)
    assert str(found.raw) == "1"
    assert found.valid_time == datetime(2026, 1, 1, tzinfo=UTC)


def test_a_time_that_names_less_than_a_period_is_refused(tmp_path: Path) -> None:
    options = OPTIONS.model_copy(
        update={"time": source.Options.model_fields["time"].annotation(field="d", format="%Y-%m")}
    )
    (found,) = parsed(kept([Message(0, 1, 1, b"A", b'{"d": "2026-01", "value": 1}')]), tmp_path, options)
    assert isinstance(found, Reject)
    assert found.detail == "the series is by day, and '%Y-%m' names only a month"
