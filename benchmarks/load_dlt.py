"""dlt to the same server, in an environment of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from load_report import row
from load_store import FIRST, LATEST, SERIES, SIZE, Server, names
from load_timed import ours, prepared, ready
from model_service.contract import Contract
from model_service.loader import Cell

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
