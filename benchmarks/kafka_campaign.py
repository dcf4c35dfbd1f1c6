"""A stream under fire: messages as they were taken by the broker, faults while they are loaded, and a judge."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psycopg
from confluent_kafka import Consumer, Producer
from kafka_broker import Broker

TOPIC, PARTITIONS, SERIES = "stream", 3, 40
FIRST_DAY, DAYS = date(1995, 1, 1), 10_000
TOML = """
[service]
name = "stream"
[image]
repository = "stream"
base = "python"
[train]
first_origin = "2000-01-01"
[target]
series = "S0"
horizons = [1]
[[feature]]
series = "S0"
[source.stream]
kind = "kafka"
servers = "{servers}"
topic = "stream"
time = {{ field = "day" }}
"""
SERIES_TOML = '[series.S{0}]\nsource = "stream"\nfrequency = "day"\nunit = "1"\nrelease_lag_days = 0\n'

# Of the copies that hold a claim in this database; advisory locks are taken for nothing else but within a commit.
TAKE_AWAY = (
    "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


@dataclass
class Feed:
    """Sends messages and keeps what the broker says it took: by partition, offset, what was in it and when it was sent.

    Of a thousand, 50 repeat the message before them, 2 are poison, 20 are of a period long past.
    """

    servers: str
    seed: int = 1
    taken: dict[int, dict[int, tuple[str, str, float | None, float]]] = field(default_factory=lambda: defaultdict(dict))
    failed: list[str] = field(default_factory=list)
    sent: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.producer = Producer({
            "bootstrap.servers": self.servers, "enable.idempotence": True, "linger.ms": 5, "log_level": 0,
            "delivery.timeout.ms": 300_000, "queue.buffering.max.messages": 200_000,
        })  # fmt: skip
        self.last = ("S0", f"{FIRST_DAY}", 0.0)

    def send(self, count: int, per_second: float = 0.0) -> None:
        """Sends so many, evenly where a rate is given, and waits until all are taken."""
        began = time.monotonic()
        for number in range(count):
            if per_second and (ahead := began + number / per_second - time.monotonic()) > 0:
                self.producer.poll(0)
                time.sleep(ahead)
            self._one()
        self.producer.flush(300)

    def _one(self) -> None:
        draw, self.sent = self.random.random(), self.sent + 1
        if draw >= 0.05:
            back = DAYS if draw < 0.07 else 400
            day = FIRST_DAY + timedelta(days=DAYS - 1 - self.random.randrange(back))
            self.last = f"S{self.random.randrange(SERIES)}", f"{day}", float(self.sent)
        series, period, value = self.last
        poison = 0.05 <= draw < 0.052
        body = b"\xff" if poison else json.dumps({"series": series, "day": period, "value": value}).encode()
        said, at = (series, period, None if poison else value), time.time()

        def report(error: Any, message: Any) -> None:
            if error:
                self.failed.append(error.str())
            else:
                self.taken[message.partition()][message.offset()] = (*said, at)

        while True:
            try:
                self.producer.produce(TOPIC, body, series, int(series[1:]) % PARTITIONS, report)
                return
            except BufferError:
                self.producer.poll(0.1)


@dataclass
class Stream:
    """A service that follows the topic with several copies of its loader, on a database of its own."""

    broker: Broker
    url: str
    root: Path
    feed: Feed
    copies: list[subprocess.Popen[bytes]] = field(default_factory=list)
    logs: dict[int, Path] = field(default_factory=dict)
    started: int = 0
    faults: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def __post_init__(self) -> None:
        text = TOML.format(servers=self.broker.servers) + "".join(SERIES_TOML.format(one) for one in range(SERIES))
        (self.root / "service.toml").write_text(text)
        self.run("migrate").wait()

    def run(self, *words: str) -> subprocess.Popen[bytes]:
        env = {**os.environ, "PROJECT_ROOT": str(self.root), "DATABASE_URL": self.url}
        self.started += 1
        with (self.root / f"log{self.started}").open("wb") as log:
            one = subprocess.Popen([sys.executable, "-m", "model_service", *words], env=env, stdout=log, stderr=log)
        self.logs[one.pid] = Path(log.name)
        return one

    def start(self) -> None:
        self.copies.append(self.run("load", "--follow"))

    def rows(self, sql: str, *given: Any) -> list[Any]:
        with psycopg.connect(self.url) as connection:
            return list(connection.execute(sql, given).fetchall())

    def loaded(self) -> int:
        """Messages that were loaded, by where the partitions stand."""
        return sum(int(stands.split("@")[0]) for (stands,) in self.rows("SELECT stands FROM position"))

    def wait(self, count: int) -> None:
        ends = time.monotonic() + 900
        while self.loaded() < count:
            if time.monotonic() > ends:
                raise RuntimeError(f"{self.loaded()} of {count} loaded: {self.tail()}")
            time.sleep(0.02)

    def at_it(self) -> int:
        """Process of the copy that reads."""
        found = self.rows("SELECT runner FROM attempt WHERE finished_at IS NULL ORDER BY attempt_id DESC LIMIT 1")
        return int(found[0][0].split(":")[1]) if found else 0

    def kill(self) -> None:
        """kill -9 of the copy that reads; another one takes its place."""
        mine = [one for one in self.copies if one.pid == self.at_it()] or self.copies[:1]
        mine[0].send_signal(signal.SIGKILL)
        mine[0].wait()
        self.copies.remove(mine[0])
        self.faults["kill -9 of the reading copy"] += 1
        self.start()

    def take_away(self) -> None:
        """The reading copy loses its claim in the middle of what it does: the other one takes over."""
        while not self.rows(TAKE_AWAY):
            time.sleep(0.05)
        self.faults["claim taken away"] += 1

    def rebalance(self) -> None:
        """Somebody joins the loader's group, is given the partitions, and commits their ends."""
        other = Consumer({"bootstrap.servers": self.broker.servers, "group.id": "model-service", "log_level": 0,
                          "auto.offset.reset": "latest"})  # fmt: skip
        other.subscribe([TOPIC])
        ends = time.monotonic() + 10
        while not other.assignment() and time.monotonic() < ends:
            other.poll(0.1)
        self.faults["group rebalanced"] += bool(other.assignment())
        other.close()

    def restart_broker(self) -> None:
        self.broker.restart()
        self.faults["broker killed"] += 1

    def strike(
        self, count: int, rate: float, faults: list[Callable[[], None]], progress: Callable[[int], None]
    ) -> None:
        """Loads so many messages with the faults spread over them; the copies end by a signal."""
        before = self.loaded()
        thread = threading.Thread(target=self.feed.send, args=[count, rate])
        thread.start()
        for _ in range(2):
            self.start()
        for number, fault in enumerate(faults, 1):
            self.wait(before + count * number // (len(faults) + 2))
            time.sleep(random.uniform(0, 0.3))  # noqa: S311
            fault()
            progress(number)
        thread.join()
        self.wait(before + count)
        self.end()

    def end(self) -> None:
        for one in self.copies:
            while "follows its stream" not in self.logs[one.pid].read_text():  # before, a signal just ends it
                time.sleep(0.05)
            one.terminate()
        codes = [one.wait(60) for one in self.copies]
        self.copies.clear()
        if any(codes):
            raise RuntimeError(f"copies ended with {codes}: {self.tail()}")

    def tail(self) -> str:
        return "\n".join(log.read_text()[-2000:] for log in list(self.logs.values())[-3:])

    def judge(self) -> dict[str, int]:
        """Compares what stands with what the broker took: messages lost and doubled, and what is otherwise wrong."""
        lost = doubled = wrong = 0
        read: dict[int, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        for file, fetched in self.rows("SELECT request->>'file', fetched FROM load WHERE status <> 'blocked'"):
            _, partition, span = file.split("/")
            first, last = map(int, span.split("-"))
            wrong += fetched != last - first + 1
            for offset in range(first, last + 1):
                read[int(partition)][offset] += 1
        story: dict[tuple[str, str], list[float]] = defaultdict(list)
        poison = set()
        for partition, taken in self.feed.taken.items():
            counts = read.pop(partition, {})
            lost += sum(not counts.get(offset) for offset in taken)
            doubled += sum(max(0, count - 1) for count in counts.values())
            wrong += len(counts.keys() - taken.keys())
            for offset in sorted(taken):
                series, period, value, _ = taken[offset]
                if value is None:
                    poison.add((partition, offset))
                elif not (told := story[series, period]) or told[-1] != value:
                    told.append(value)
        held: dict[tuple[str, str], list[float]] = defaultdict(list)
        for name, period, value in self.rows(
            "SELECT name, valid_time::date::text, value FROM observation JOIN series USING (series_id)"
            " ORDER BY series_id, valid_time, known_from, load_id"
        ):
            held[name, period].append(value)
        for cell in story.keys() | held.keys():
            said, found = story.get(cell, []), held.get(cell, [])
            if said != found:
                missing, more = len(set(said) - set(found)), len(found) - len(set(found))
                lost, doubled, wrong = lost + missing, doubled + more, wrong + (not missing and not more)
        refused = [(int(file.split("/")[1]), line) for file, line in self.rows("SELECT file, line FROM quarantine")]
        lost, doubled = lost + len(poison - set(refused)), doubled + len(refused) - len(set(refused))
        return {"lost": lost, "doubled": doubled, "wrong": wrong + len(self.feed.failed)}

    def delays(self, seconds: float, per_second: int) -> list[float]:
        """Seconds from sending a message until a reader of the database can see it."""
        self.start()
        self.feed.send(1)
        self.wait(sum(len(taken) for taken in self.feed.taken.values()))
        seen: dict[int, list[tuple[int, float]]] = defaultdict(list)
        before = {part: max(taken, default=-1) for part, taken in self.feed.taken.items()}
        ended = threading.Event()

        def watch() -> None:
            with psycopg.connect(self.url, autocommit=True) as connection:
                while not ended.wait(0.01):
                    found, now = connection.execute("SELECT part, stands FROM position").fetchall(), time.time()
                    for part, stands in found:
                        number, offset = int(part.split("/")[1]), int(stands.split("@")[0])
                        if not seen[number] or seen[number][-1][0] < offset:
                            seen[number].append((offset, now))

        watcher = threading.Thread(target=watch)
        watcher.start()
        self.feed.send(int(seconds * per_second), per_second)
        self.wait(sum(len(taken) for taken in self.feed.taken.values()))
        time.sleep(0.1)
        ended.set()
        watcher.join()
        self.end()
        found = []
        for part, taken in self.feed.taken.items():
            marks = iter(seen[part])
            offset, at = next(marks)
            for number in sorted(one for one in taken if one > before.get(part, -1)):
                while offset <= number:
                    offset, at = next(marks)
                found.append(at - taken[number][3])
        return found
