"""One run over the sources of `service.toml`: claim, fetch, keep the bytes, parse, commit; one load per payload."""

import hashlib
import json
import os
import socket
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from model_service.contract import Contract, nearest, validate
from model_service.errors import UsageError
from model_service.loader import Cell, Payload, Reject, source
from model_service.store import ledger
from model_service.store.connection import connect

PART_BYTES = 8_000_000
Connection = psycopg.Connection[Any]


def load(contract: Contract, url: str, root: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Loads every source; returns one record per payload: dataset, file, outcome, counts.

    Outcome is `loaded`, `nothing new` (these bytes are committed) or `held` (another copy is at it).
    Raises UsageError for options that this loader does not know, SourceError for what cannot be fetched or split.
    """
    runner = f"{socket.gethostname()}:{os.getpid()}"
    results: list[dict[str, Any]] = []
    for dataset in contract.source:
        options = _options(contract, dataset)
        with connect(url, "loader") as connection, claim(connection, dataset) as holder:
            if holder:
                say(f"{dataset}: {holder} is at it; nothing to do here")
                results.append({"dataset": dataset, "outcome": "held", "by": holder})
            else:
                results += _attempt(connection, contract, dataset, options, root, runner, say)
    return results


@contextmanager
def claim(connection: Connection, dataset: str) -> Iterator[str | None]:
    """Claims the dataset for this connection: yields None, or who holds it when another copy is at it."""
    key = [f"dataset:{dataset}"]
    row = connection.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", key).fetchone()
    if row and row[0]:
        try:
            yield None
        finally:
            if not connection.closed:
                connection.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", key)
        return
    holder = connection.execute(
        "SELECT runner || ' since ' || started_at FROM attempt WHERE dataset = %s AND finished_at IS NULL"
        " ORDER BY attempt_id DESC LIMIT 1",
        [dataset],
    ).fetchone()
    yield holder[0] if holder else "another copy"


def _options(contract: Contract, dataset: str) -> source.Options:
    declared = contract.source[dataset]
    if declared.kind != source.KIND:
        hint = nearest(declared.kind, [source.KIND])
        raise UsageError(
            f"source.{dataset}.kind is {declared.kind!r}, but this project's loader reads {source.KIND!r}{hint}"
        )
    return validate(source.Options, declared.options, f"service.toml, [source.{dataset}]")


def _attempt(
    connection: Connection,
    contract: Contract,
    dataset: str,
    options: source.Options,
    root: Path,
    runner: str,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Runs with an `attempt` row around it, so that what failed or died stays visible."""
    row = connection.execute(
        "INSERT INTO attempt (dataset, runner) VALUES (%s, %s) RETURNING attempt_id", [dataset, runner]
    ).fetchone()
    finish = "UPDATE attempt SET finished_at = clock_timestamp(), outcome = %s, detail = %s WHERE attempt_id = %s"
    number = row[0] if row else None
    try:
        results = [
            _one(connection, contract, dataset, options, payload, say) for payload in source.fetch(options, root)
        ]
    except Exception as error:
        if not connection.closed:
            connection.execute(finish, ["failed", str(error), number])
        raise
    new = any(result["outcome"] == "loaded" for result in results)
    connection.execute(finish, ["done" if new else "nothing new", f"{len(results)} payloads", number])
    return results


def _one(
    connection: Connection,
    contract: Contract,
    dataset: str,
    options: source.Options,
    payload: Payload,
    say: Callable[[str], None],
) -> dict[str, Any]:
    series = contract.of_source(dataset)
    started = datetime.now(UTC)
    sha256 = _keep(connection, payload)
    request = {"file": payload.name, "vintage": payload.vintage.isoformat() if payload.vintage else ""}
    rules = _hash(
        [options.model_dump(mode="json", exclude={"path"}), {name: one.frequency for name, one in series.items()}]
    )
    # Without a vintage, bytes that were replaced and come back are news: what is known changes again.
    turn = 0 if payload.vintage else ledger.turn(connection, dataset, payload.name, sha256)
    key = _hash([dataset, request, sha256, rules, source.PARSER_VERSION, turn])
    result: dict[str, Any] = {"dataset": dataset, "file": payload.name, "sha256": sha256}
    if ledger.committed(connection, key):
        say(f"{payload.name}: nothing new")
        return {**result, "outcome": "nothing new"}

    @contextmanager
    def reparse(kept: str, asked: dict[str, str]) -> Iterator[Iterator[Cell | Reject]]:
        with _kept(connection, kept, asked) as again:
            yield _plausible(source.parse(again, options, series), started)

    records = _plausible(source.parse(payload, options, series), started)
    entry = ledger.Entry(dataset, key, request, sha256, rules, source.PARSER_VERSION, started)
    ids = ledger.series_ids(connection, dataset, series)
    counts = ledger.commit(connection, entry, ids, records, reparse)
    figures = {name: value for name, value in vars(counts).items() if name != "load_id"}
    say(f"{payload.name}: " + ", ".join(f"{value:,} {name}" for name, value in figures.items()))
    return {**result, "outcome": "loaded", **vars(counts)}


def _plausible(records: Iterator[Cell | Reject], now: datetime) -> Iterator[Cell | Reject]:
    """Rejects what cannot be: a period that begins after its value was known, a value known after today."""
    for record in records:
        if isinstance(record, Cell):
            known = record.known_from or now
            if record.valid_time > known or known > now + timedelta(days=1):
                detail = f"period {record.valid_time:%Y-%m-%d} known from {known:%Y-%m-%d}, loaded {now:%Y-%m-%d}"
                record = Reject(record.series, record.line, repr(record.value), "future", detail)  # noqa: PLW2901
        yield record


def _keep(connection: Connection, payload: Payload) -> str:
    """Stores the bytes by hash, in parts, compressed; returns the hash. Bytes that are held already cost nothing."""
    with payload.path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if connection.execute("SELECT FROM raw_object WHERE sha256 = %s LIMIT 1", [sha256]).fetchone():
            return sha256
        file.seek(0)
        with connection.transaction():
            for part, block in enumerate(iter(lambda: file.read(PART_BYTES), b"")):
                connection.execute(
                    "INSERT INTO raw_object (sha256, part, media_type, bytes) VALUES (%s, %s, %s, %s)"
                    " ON CONFLICT DO NOTHING",
                    [sha256, part, payload.media_type, zlib.compress(block)],
                )
    return sha256


@contextmanager
def _kept(connection: Connection, sha256: str, request: dict[str, str]) -> Iterator[Payload]:
    """Kept bytes as a payload again, in a temporary file for as long as the block runs."""
    with tempfile.TemporaryDirectory() as folder:
        path, media_type = Path(folder) / "payload", ""
        with path.open("wb") as file:
            for block, media_type in connection.execute(  # noqa: B007
                "SELECT bytes, media_type FROM raw_object WHERE sha256 = %s ORDER BY part", [sha256]
            ):
                file.write(zlib.decompress(block))
        vintage = datetime.fromisoformat(request["vintage"]) if request["vintage"] else None
        yield Payload(request["file"], path, media_type, vintage)


def _hash(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
