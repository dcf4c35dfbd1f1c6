"""Peak memory of training with 1,000 candidate input series against 100, and how long the sample takes.

Each case is a project of its own in a process of its own: 400 months of made-up series, loaded and trained by the
product's own commands. Memory is the largest sum over the command and its workers, looked at 20 times a second. A gate
that refuses does so after all the work. Writes build/bench/train.json; --quick: 100 series against 20.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from load_report import report, row

OUT = Path(__file__).resolve().parents[1] / "build" / "bench" / "train.json"
MONTHS = 400
MANY, FEW = (100, 20) if "--quick" in sys.argv else (1_000, 100)
LIMIT_MB = 1_500
SERIES = """
[series.{name}]
source = "made_up"
frequency = "month"
unit = "none"
release_lag_days = 10
"""
CONTRACT = """
[service]
name = "made-up"
[image]
repository = "localhost:5000/made-up"
base = "python:3.13-slim"
[train]
estimator = "{estimator}"
first_origin = "1998-01-01"
[source.made_up]
kind = "csv"
path = "data/made_up/*.csv"
layout = "wide"
date = {{ column = "Date", format = "%Y-%m-%d" }}
vintage = {{ from = "file_name", format = "%Y-%m-%d" }}
[target]
series = "Y"
horizons = [1, 3, 6]
"""


def made_up(folder: Path, count: int, estimator: str) -> None:
    """A project of `count` series that are candidates for Y, which follows the first of them a month later."""
    names = [f"S{number}" for number in range(count)]
    features = "".join(f'[[feature]]\nseries = "{name}"\ntransform = "difference"\n' for name in names)
    series = "".join(SERIES.format(name=name) for name in ["Y", *names])
    (folder / "service.toml").write_text(CONTRACT.format(estimator=estimator) + features + series)
    rng = np.random.default_rng(1)
    steps = rng.normal(size=(MONTHS, count))
    followed = 0.5 * np.roll(steps[:, 0], 1) + 0.3 * rng.normal(size=MONTHS)
    values = np.column_stack([followed, steps]).cumsum(axis=0)
    place = folder / "data" / "made_up"
    place.mkdir(parents=True)
    months = [date(1983 + number // 12, number % 12 + 1, 1) for number in range(MONTHS)]
    lines = [",".join([str(month), *map(str, line.round(4))]) for month, line in zip(months, values, strict=True)]
    (place / f"{months[-1]}.csv").write_text("\n".join([",".join(["Date", "Y", *names]), *lines]) + "\n")


def sample(folder: Path, estimator: str) -> None:
    """The project's own contract and data."""
    text = Path("service.toml").read_text("utf-8").splitlines(keepends=True)
    text = [f'estimator = "{estimator}"\n' if line.startswith("estimator = ") else line for line in text]
    (folder / "service.toml").write_text("".join(text), "utf-8")
    shutil.copytree("data", folder / "data")


def trained(folder: Path) -> tuple[float, float]:
    """Seconds and peak megabytes of `train`, after `migrate` and `load`."""
    environment = {**os.environ, "PROJECT_ROOT": str(folder), "PYTHONPATH": "src"}
    environment.pop("DATABASE_URL", None)
    for verb in ("migrate", "load"):
        subprocess.run([sys.executable, "-m", "model_service", verb], env=environment, check=True, capture_output=True)
    begun, peak = time.monotonic(), 0.0
    with (folder / "train.log").open("w") as log:
        command = [sys.executable, "-m", "model_service", "train"]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        while process.poll() is None:
            peak = max(peak, _megabytes(process.pid))
            time.sleep(0.05)
    if process.returncode not in {0, 3}:
        sys.exit((folder / "train.log").read_text())
    return time.monotonic() - begun, peak


def _megabytes(root: int) -> float:
    """Resident memory of a process and its Python children; the embedded database is none of training's."""
    total, todo = 0.0, [root]
    while todo:
        number = todo.pop()
        try:
            name = Path(f"/proc/{number}/comm").read_text()
            pages = int(Path(f"/proc/{number}/statm").read_text().split()[1])
            for thread in Path(f"/proc/{number}/task").iterdir():
                todo += map(int, (thread / "children").read_text().split())
        except (OSError, IndexError):
            continue  # it has ended
        if "postgres" not in name:
            total += pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    return total


def main() -> None:
    """Measures, prints and writes; a missed goal is reported, never a failure."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bench-train-") as scratch:

        def case(name: str, make: Any, *how: Any) -> tuple[float, float]:
            folder = Path(scratch) / name.replace(" ", "-")
            folder.mkdir()
            make(folder, *how)
            print(f"\r{name:70}", end="", file=sys.stderr, flush=True)
            return trained(folder)

        for estimator in ("ridge", "gradient_boosting"):
            seconds, _ = case(f"sample {estimator}", sample, estimator)
            rows.append(row(f"the sample by {estimator}", seconds, "s", goal=20, least=False))
            (fast, few), (slow, many) = (case(f"{n} {estimator}", made_up, n, estimator) for n in (FEW, MANY))
            what = f"{MANY:,} series x {MONTHS} months by {estimator}"
            rows.append(row(f"{what}: peak memory", many, "MB",
                            f"the same with {FEW} series; the goal is {LIMIT_MB} MB and 3 times that", few,
                            goal=min(LIMIT_MB, round(3 * few)), least=False))  # fmt: skip
            rows.append(row(f"{what}: time", slow, "s", f"{FEW} series", fast))
    report(OUT, rows)


if __name__ == "__main__":
    main()
