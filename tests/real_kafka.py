"""What only a real broker can show of the kafka source; runs among a project's own tests, see test_kafka.py."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import NewPartitions
from kafka_broker import Broker as Cluster
from test_kafka import Broker, Desk

PASSWORD = "a-word-that-shows-nowhere"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    one = Cluster()
    yield one
    one.remove()


@pytest.fixture
def broker(cluster: Cluster) -> Iterator[Broker]:
    cluster.make("prices", 2)
    yield Broker(Producer({"bootstrap.servers": cluster.servers}), cluster.servers)
    cluster.admin.delete_topics(["prices"])["prices"].result(30)
    while "prices" in cluster.admin.list_topics(timeout=10).topics:
        time.sleep(0.1)


@pytest.fixture
def desk(broker: Broker, url: str, tmp_path: Path) -> Desk:
    return Desk(broker.servers, url, tmp_path)


def test_messages_that_retention_took_are_named_with_the_way_on(cluster: Cluster, broker: Broker, desk: Desk) -> None:
    broker.price("A", 1, 1)
    desk.load()
    for day in range(2, 8):
        broker.price("A", day, day)
    cluster.forget("prices", 0, 4)
    says = desk.refused()
    assert says.startswith(
        "prices/0: messages 1 to 3 are gone, the broker keeps them no longer. What was loaded stands;"
    )
    assert says.endswith('to go on from 4, write resume = { "prices/0" = 4 } in the table of this source')
    desk.more = 'resume = { "prices/0" = 4 }'
    desk.load()
    assert desk.days() == {1: 1, 5: 5, 6: 6, 7: 7}


def test_a_topic_that_is_not_there_is_named_and_not_made(cluster: Cluster, broker: Broker, desk: Desk) -> None:
    desk.topic = "prises"
    assert desk.refused().startswith(f"{cluster.servers}: topic 'prises': ")
    assert "prises" not in cluster.admin.list_topics(timeout=10).topics


def test_a_partition_that_was_added_is_read_from_its_beginning(cluster: Cluster, broker: Broker, desk: Desk) -> None:
    broker.price("A", 1, 1)
    desk.load()
    cluster.admin.create_partitions([NewPartitions("prices", 3)])["prices"].result(30)
    while len(cluster.admin.list_topics("prices", timeout=10).topics["prices"].partitions) < 3:
        time.sleep(0.1)
    broker.producer = Producer({"bootstrap.servers": cluster.servers})
    broker.price("A", 2, 2, partition=2)
    desk.load()
    assert desk.places() == {"prices/0": 1, "prices/2": 1}


def test_of_transactions_what_was_committed_is_read(cluster: Cluster, broker: Broker, desk: Desk) -> None:
    plain = broker.producer
    broker.producer = Producer({"bootstrap.servers": cluster.servers, "transactional.id": "t"})
    broker.producer.init_transactions(30)
    for day, ends in enumerate(("commit_transaction", "abort_transaction", "commit_transaction"), 1):
        broker.producer.begin_transaction()
        broker.price("A", day, day)
        getattr(broker.producer, ends)(30)
    desk.load()
    assert desk.days() == {1: 1, 3: 3}
    assert desk.load() == []  # what follows the last message is a mark of its transaction
    broker.producer = plain
    broker.price("A", 4, 4)
    desk.load()
    assert desk.days() == {1: 1, 3: 3, 4: 4}


def test_a_broker_that_was_killed_is_read_on(cluster: Cluster, broker: Broker, desk: Desk) -> None:
    broker.price("A", 1, 1)
    desk.load()
    broker.price("A", 2, 2)
    cluster.restart()
    desk.load()
    assert (desk.days(), desk.places()) == ({1: 1, 2: 2}, {"prices/0": 2})


def test_a_login_that_holds_and_one_that_does_not(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(password=PASSWORD)
    try:
        cluster.make("prices", 1)
        broker = Broker(Producer({"bootstrap.servers": cluster.servers, **cluster.login}), cluster.servers)
        broker.price("A", 1, 1)
        desk = Desk(cluster.servers, url, tmp_path, more='security = "sasl_plaintext"\nmechanism = "PLAIN"')
        monkeypatch.setenv("KAFKA_USERNAME", "me")
        monkeypatch.setenv("KAFKA_PASSWORD", f"not-{PASSWORD}")
        says = desk.refused()
        assert "uthentication failed" in says
        monkeypatch.setenv("KAFKA_PASSWORD", PASSWORD)
        desk.load()
        assert desk.days() == {1: 1}
        tables = [str(desk.rows(f"SELECT * FROM {name}")) for name in ("attempt", "load", "position", "quarantine")]  # noqa: S608
        assert not any(PASSWORD in one for one in (says, *capfd.readouterr(), *desk.said, *tables))
    finally:
        cluster.remove()
