"""Memory of the service at half of what it can take, for MINUTES=120; and p99, errors, and the audit trail.

Every kind of request, good and bad, with metrics, log and audit trail on, which goes to an Elasticsearch where Docker
is there. It grows if it is 99 % sure that the line through its memory rises by more than ROOM over the last three
quarters of the time: the line of Theil and Sen through the medians of BLOCKS equal parts, so that neither a burst nor a
single step tips it; ROOM, as allocators take a megabyte or so of the system at a time. 500,000 requests that leave 8
bytes each are more than that. APP=module:app serves another app. Writes build/bench/soak.json.
"""

import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
from load_report import report, row
from serve_run import Failed, counted, elasticsearch, wait_for

HERE = Path(__file__).resolve().parent
OUT = Path(os.environ.get("OUT", HERE.parent / "build/bench"))
MINUTES = float(os.environ.get("MINUTES") or 120)
APP = os.environ.get("APP", "model_service.serving.app:app")
CONNECTIONS, CAPACITY_SECONDS, BLOCKS, ROOM = 16, 10, 24, 2.0
Sample = tuple[float, float]  # seconds, megabytes


@contextmanager
def served(source: Path, **environment: str) -> Iterator[tuple[int, int]]:
    """Port and process of a server as the container's; its log goes nowhere."""
    from serving import answers, free_port, started_by_the_image

    port = free_port()
    words = [APP if word == "model_service.serving.app:app" else word for word in started_by_the_image(port)]
    command = [sys.executable, "-m", *words, "--app-dir", str(source)]
    env = os.environ | {"PROJECT_ROOT": str(source), "PORT": str(port), **environment}
    started = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: started.poll() is not None or answers(f"http://127.0.0.1:{port}/readyz"), 60, APP)
        if started.poll() is not None:
            sys.exit(f"{APP} ended")
        yield port, started.pid
    finally:
        started.terminate()
        started.wait(30)


def requests(source: Path) -> Iterator[bytes]:
    """For ever the same 2,000: nine of ten predict a row."""
    from offered import got, posted

    golden, card = (json.loads((source / "model" / name).read_text("utf-8")) for name in ("golden.json", "card.json"))
    rows = [dict(zip(card["inputs"], instance, strict=True)) for instance in golden["instances"]]

    def body(first: int, count: int) -> bytes:
        return json.dumps({"instances": [rows[(first + one) % len(rows)] for one in range(count)]}).encode()

    made = [posted("/v1/predict", body(number, 1)) for number in range(1_800)]
    made += [posted("/v1/predict", body(number, 100)) for number in range(20)]
    made += [posted("/v1/explain", body(number, 1 + number // len(rows))) for number in range(40)]
    made += [got("/v1/forecast")] * 100
    made += [posted("/v1/predict", b'{"instances": [{}]}'), got("/nowhere"), got("/metrics"), got("/readyz")] * 10
    random.Random(1).shuffle(made)
    return cycle(made)


def memory(pid: int) -> float:
    """Megabytes that are resident."""
    return int(subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], stdout=subprocess.PIPE).stdout or 0) / 1024


def grown(samples: list[Sample]) -> tuple[float, float, float]:
    """Megabytes by which the line rises over the samples, and the bounds of that, each 99 % sure."""
    from scipy.stats import theilslopes

    size = len(samples) / BLOCKS
    blocks = [samples[int(number * size) : int((number + 1) * size)] for number in range(BLOCKS)]
    times, levels = ([statistics.median(one[what] for one in block) for block in blocks] for what in (0, 1))
    line = theilslopes(levels, times, alpha=0.98)
    lasted = samples[-1][0] - samples[0][0]
    return float(line.slope * lasted), float(line.low_slope * lasted), float(line.high_slope * lasted)


async def watched(pid: int, offered: Any) -> tuple[Any, list[Sample]]:
    """What came of the load, and the memory every second beside it."""
    task, began, samples = asyncio.create_task(offered), time.monotonic(), []
    while not task.done():
        samples.append((time.monotonic() - began, memory(pid)))
        print(f"\r{samples[-1][0] / 60:.1f} of {MINUTES:g} minutes, {samples[-1][1]:.1f} MB", end="", file=sys.stderr)
        await asyncio.wait([task], timeout=1)
    return await task, samples


def delivered(url: str, store: str) -> tuple[int, int]:
    """Good answers that belong into the trail, and documents in the store, once all have been shipped."""
    good = counted(url, "http_requests_total", "route", 'status="200"')
    given = sum(number for route, number in good.items() if route.startswith("/v1/") and route != "/v1/model")
    wait_for(lambda: sum(counted(url, "audit_documents_total", "outcome").values()) >= given, 600, "delivery")
    httpx.post(f"{store}/_refresh", timeout=60)
    return given, int(httpx.get(f"{store}/model-audit-*/_count").json()["count"])


def main() -> None:
    """Measures, prints and writes; a missed goal is reported, never a failure."""
    sys.path.append("tests")  # of the project: what its own tests load it with
    if not Path("build/model").is_dir():
        subprocess.run(["make", "load", "train", "build"], check=True, stdout=sys.stderr)
    from model_service import settings
    from model_service.serving.bento import stage
    from model_service.store import connection
    from offered import Load

    source = stage(settings.root()) / "src"
    with ExitStack() as stack, asyncio.Runner() as runner:
        database = stack.enter_context(connection.database())
        store = stack.enter_context(elasticsearch() if shutil.which("docker") else nullcontext(""))
        if store:
            install = [sys.executable, "-m", "model_service", "telemetry", "install"]
            subprocess.run(install, env=os.environ | {"ELASTICSEARCH_URL": store}, check=True, stdout=sys.stderr)
        port, pid = stack.enter_context(served(source, DATABASE_URL=database, ELASTICSEARCH_URL=store))
        url = f"http://127.0.0.1:{port}"
        full = Load(port, pid, requests(source), CONNECTIONS)
        can = sum(runner.run(full.take(CAPACITY_SECONDS)).answers.values()) / full.tally.seconds
        half = Load(port, pid, requests(source), CONNECTIONS)
        tally, samples = runner.run(watched(pid, half.offer(can / 2, MINUTES * 60)))
        sent, stored = delivered(url, store) if store else (0, 0)
    print(file=sys.stderr)
    steady = [one for one in samples if one[0] > samples[-1][0] / 4]
    rise, low, high = grown(steady)
    hours = (steady[-1][0] - steady[0][0]) / 3600
    away = tally.answers[429] + tally.answers[503]
    errors = tally.broken + tally.answers.total() - away - sum(tally.answers[status] for status in (200, 404, 422))
    rows = [
        row("requests a second, half of what it takes", tally.answers.total() / tally.seconds, "1/s",
            "all that it takes", can),
        row("p99 since a request was due", tally.quantile(0.99) * 1000, "ms"),
        row("answers", tally.answers.total(), "answers"),
        row("errors", errors, "answers", goal=0, least=False),
        row("turned away by 429 or 503", away, "answers", goal=0, least=False),
        row("memory after a quarter of the time", steady[0][1], "MB"),
        row("memory at the end", steady[-1][1], "MB"),
        row(f"growth after a quarter, by the line ({low:+.2f} to {high:+.2f})", rise, "MB"),
        row("growth that is 99 % sure", low, "MB", goal=ROOM, least=False),
        row("growth in an hour, by the line", rise / hours, "MB"),
    ]  # fmt: skip
    if store:
        rows.append(row("answers that belong into the audit trail", sent, "answers"))
        rows.append(row("difference from what it holds", abs(sent - stored), "answers", goal=0, least=False))
    report(OUT / "soak.json", rows)
    (OUT / "soak-memory.csv").write_text(
        "".join(f"{seconds:.0f},{megabytes:.1f}\n" for seconds, megabytes in samples), "utf-8"
    )


if __name__ == "__main__":
    try:
        main()
    except Failed as failed:
        sys.exit(str(failed))
