"""What lies before the batches, and the whole of it: a file parsed, its bytes kept, a load as a process."""

import os
import re
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from load_report import row
from load_store import FIRST, LATEST, SERIES, names
from model_service import settings
from model_service.contract import Contract
from model_service.loader import Payload, checks, run
from model_service.store import observations, raw
from model_service.store.connection import connect


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
    (source, options), series = run.sources.reader(declared, "bench"), declared.of_source("bench")
    with connect(url, "loader") as connection:
        ids = observations.series_ids(connection, "bench", series)
        begun = time.perf_counter()
        sha256 = raw.sha256_of(path)
        raw.keep(connection, path, sha256, "text/csv")
        kept = time.perf_counter() - begun
    begun = time.perf_counter()
    found = source.parse(Payload(path.name, path, "text/csv", LATEST), options, series)
    good = sum(len(batch) for batch, _ in checks.check_cells(found, ids, series, LATEST))
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
        'kind = "csv"',
        'path = "*.csv"',
        'layout = "long"',
        'date = { column = "date", format = "%Y-%m-%d" }',
        'vintage = { from = "file_name", format = "%Y-%m-%d" }',
    ]
    for name in names():
        lines += [f"[series.{name}]", 'source = "bench"', 'frequency = "day"', 'unit = "index"', "release_lag_days = 0"]
    lines += ["[target]", f'series = "{names()[0]}"', "horizons = [1]", "[[feature]]", f'series = "{names()[0]}"']
    return head + "\n".join(lines) + "\n"
