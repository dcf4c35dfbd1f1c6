"""Fills a topic with the vintages of the csv sample: `fill_kafka.py tests/sample/data/us-macro SERVERS TOPIC`.

A message each value and vintage, UNRATE|2016-05-01 its key, so that one series lies in one partition.
"""

import csv
import json
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from zlib import crc32

from confluent_kafka import Producer


def messages(folder: Path) -> Iterator[tuple[str, str]]:
    """(key, value) of each, in the order in which they became known."""
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                period = f"{datetime.strptime(row.pop('Date'), '%m/%d/%y'):%Y-%m-%d}"
                for series, value in row.items():
                    if value:
                        record = {"series": series, "period": period, "value": value, "published": path.stem}
                        yield f"{series}|{period}", json.dumps(record)


def fill(folder: Path, servers: str, topic: str, partitions: int) -> int:
    """Sends all of them; returns how many."""
    producer, count = Producer({"bootstrap.servers": servers, "linger.ms": 50}), 0
    for key, value in messages(folder):
        while True:
            try:
                producer.produce(topic, value, key, crc32(key.split("|")[0].encode()) % partitions)
                break
            except BufferError:
                producer.poll(0.1)
        count += 1
    if left := producer.flush(60):
        raise SystemExit(f"{left} messages were not taken by {servers}")
    return count


if __name__ == "__main__":
    servers, topic = sys.argv[2:4]
    there = Producer({"bootstrap.servers": servers}).list_topics(topic, timeout=30).topics[topic].partitions
    print(fill(Path(sys.argv[1]), servers, topic, len(there)))
