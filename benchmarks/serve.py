"""Throughput and p99 of the service, with metrics, access log and audit trail, against bare FastAPI and ONNX Runtime.

Both answer for the same model on one core, asked by `wrk` on the others, in turn: PAIRS=7 times SECONDS=4 a case; the
median of the pairs' ratios judges. The trail goes to a live Elasticsearch, and before the next turn every answer must
be there, once. Writes build/bench/serve.json. Needs wrk, Docker and ELASTICSEARCH_IMAGE.
"""

import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from image import docker
from load_report import report, row

ROOT = Path(__file__).resolve().parents[1]
OUT = Path(os.environ.get("OUT", ROOT / "build/bench"))
PAIRS, SECONDS = int(os.environ.get("PAIRS", "7")), int(os.environ.get("SECONDS", "4"))
ROUTES = ("/v1/predict", "/v1/forecast")
BARE = "bare FastAPI and ONNX Runtime: uvicorn, uvloop, httptools, no access log"
GOAL = 1.5
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
PIN = len(CORES) > 1 and shutil.which("taskset") is not None
SERVER, CLIENT = (["taskset", "-c", ",".join(map(str, one))] if PIN else [] for one in (CORES[:1], CORES[1:]))
SCRIPT = 'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\nwrk.body = [==[{}]==]\n'
Instance = dict[str, Any]
BAD: dict[str, Callable[[Instance], list[Instance]]] = {  # what both must refuse
    "another input": lambda one: [one | {"more": 1.0}],
    "an input too few": lambda one: [dict(list(one.items())[1:])],
    "null": lambda one: [one | {next(iter(one)): None}],
    "text": lambda one: [one | {next(iter(one)): "1"}],
    "true": lambda one: [one | {next(iter(one)): True}],
    "no instance": lambda _: [],
    "too many": lambda one: [one] * 1_001,
}


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with suppress(httpx.TransportError):
            if condition():
                return
        time.sleep(0.1)
    sys.exit(f"{what}: not within {seconds} seconds")


@contextmanager
def server(*command: str, folder: Path, **environment: str) -> Iterator[str]:
    """URL of a server on the first core, for as long as the block runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (folder / f"{port}.log").open("wb") as log:
        started = subprocess.Popen([*SERVER, *(one.replace("PORT", port) for one in command)], cwd=folder, stdout=log,
                                   stderr=log, env=inherited | environment | {"PORT": port})  # fmt: skip
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(lambda: started.poll() is not None or httpx.get(f"{url}/docs").is_success, 60, " ".join(command))
            if started.poll() is not None:
                sys.exit(f"{' '.join(command)} ended:\n{Path(log.name).read_text()[-2_000:]}")
            yield url
        finally:
            started.terminate()
            started.wait(20)


@contextmanager
def elasticsearch() -> Iterator[str]:
    image = os.environ.get("ELASTICSEARCH_IMAGE", "docker.elastic.co/elasticsearch/elasticsearch:9.5.3")
    settings = ["discovery.type=single-node", "xpack.security.enabled=false", "ES_JAVA_OPTS=-Xms1g -Xmx1g"]
    options = [part for one in settings for part in ("-e", one)]
    container = docker("run", "-d", "--rm", "-p", "127.0.0.1:0:9200", *options, image)
    try:
        url = f"http://{docker('port', container, '9200').splitlines()[0]}"
        wait_for(lambda: httpx.get(url).is_success, 120, "Elasticsearch")
        yield url
    finally:
        docker("rm", "-f", "-v", container)


def wrk(url: str, connections: int, seconds: int, script: Path | None) -> tuple[float, float]:
    """Requests a second, and p99 in ms; stops at an answer that is not good."""
    how = ["-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "--latency"]
    command = [*CLIENT, "wrk", *how, *(["-s", str(script)] if script else []), url]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    if re.search("Non-2xx|Socket errors", said):
        sys.exit(f"{url} did not answer as it should:\n{said}")
    number, unit = re.findall(r"99%\s+([\d.]+)(us|ms|s)\b", said)[0]
    rate = re.findall(r"Requests/sec:\s+([\d.]+)", said)[0]
    return float(rate), float(number) * {"us": 1e-3, "ms": 1, "s": 1e3}[unit]


def counted(url: str, name: str, label: str, only: str = "") -> dict[str, int]:
    """A counter of /metrics, summed by the values of a label; `only` those whose labels hold this text."""
    found: dict[str, int] = {}
    for labels, value in re.findall(rf"^{name}{{(.*{only}.*)}} (\S+)$", httpx.get(f"{url}/metrics").text, re.M):
        which = dict(re.findall(r'(\w+)="([^"]*)"', labels))[label]
        found[which] = found.get(which, 0) + int(float(value))
    return found


def delivered(ours: str, store: str) -> None:
    """Waits until all good answers are in the store; stops where one is missing, dropped, or there twice."""
    good = counted(ours, "http_requests_total", "route", 'status="200"')
    given = sum(number for route, number in good.items() if route in ROUTES)
    wait_for(lambda: sum(counted(ours, "audit_documents_total", "outcome").values()) >= given, 600, "delivery")
    httpx.post(f"{store}/_refresh", timeout=60)
    held = httpx.get(f"{store}/model-audit-*/_count").json()["count"]
    fates = counted(ours, "audit_documents_total", "outcome")
    if (fates["stored"], held) != (given, given):
        sys.exit(f"{given} answers, {held} documents in the store: {fates}")


def compare(name: str, urls: tuple[str, str], settle: Callable[[], None], connections: int, seconds: int,
            goal: float | None = None, script: Path | None = None) -> list[dict[str, Any]]:  # fmt: skip
    """Ours and the other in turn; rows of the report."""
    pairs = []
    for turn in range(PAIRS + 1):  # the first warms up
        print(f"\r{name}: {turn} of {PAIRS}{' ' * 20}", end="", file=sys.stderr)
        pair = {}
        for side in (0, 1) if turn % 2 else (1, 0):
            pair[side] = wrk(urls[side], connections, seconds, script)
            settle()
        pairs += [pair] if turn else []
    (speed, others), (tail, theirs) = (
        [statistics.median(pair[side][what] for pair in pairs) for side in (0, 1)] for what in (0, 1)
    )
    ratios = [pair[0][0] / pair[1][0] for pair in pairs]
    middle = row(f"{name}: median ratio of pairs ({min(ratios):.2f} to {max(ratios):.2f})", statistics.median(ratios),
                 "", "the same", 1.0, goal)  # fmt: skip
    limit = round(theirs, 3) if goal else None
    return [row(f"{name}: requests", speed, "1/s", BARE, others), middle,
            row(f"{name}: p99", tail, "ms", BARE, theirs, limit, least=False)]  # fmt: skip


def main() -> None:
    """Trains, serves, measures and prints; a missed goal is reported, never a failure."""
    if missing := [tool for tool in ("wrk", "docker") if not shutil.which(tool)]:
        sys.exit(f"{' and '.join(missing)} missing: install (Debian, Ubuntu: apt install wrk; macOS: brew install wrk)")
    subprocess.run(["make", "load", "train", "build"], check=True)
    from model_service import settings
    from model_service.serving.bento import stage
    from model_service.store import connection

    source = stage(settings.root()) / "src"
    golden, card = (json.loads((source / "model" / name).read_text()) for name in ("golden.json", "card.json"))
    one = dict(zip(card["inputs"], golden["instances"][0], strict=True))
    rows = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database, store = stack.enter_context(connection.database()), stack.enter_context(elasticsearch())
        ours = stack.enter_context(server(
            sys.executable, "-m", "uvicorn", "--app-dir", str(source), "model_service.serving.app:app", "--port",
            "PORT", "--no-access-log", folder=folder, PROJECT_ROOT=str(source), DATABASE_URL=database,
            ELASTICSEARCH_URL=store))  # fmt: skip
        (folder / "inputs.json").write_text(json.dumps(card["inputs"]))
        (folder / "forecast.json").write_bytes(httpx.get(f"{ours}/v1/forecast").content)
        bare = stack.enter_context(server(
            sys.executable, str(ROOT / "benchmarks/reference_app.py"), folder=folder,
            MODEL=str(source / "model/model.onnx"), INPUTS="inputs.json", FORECAST="forecast.json"))  # fmt: skip
        for what, make in BAD.items():
            said = [httpx.post(f"{url}/v1/predict", json={"instances": make(one)}).status_code for url in (ours, bare)]
            if not {*said} <= {413, 422}:
                sys.exit(f"{what}: both should refuse it, and say {said}")
        for size in (1, 100):
            script = folder / f"{size}.lua"
            script.write_text(SCRIPT.format(json.dumps({"instances": [one] * size})))
            seconds = SECONDS if size == 1 else max(1, SECONDS // 2)  # a hundred rows make a wide trail
            for connections in (1, 16, 64):
                rows += compare(f"/v1/predict, {size} x {len(one)}, {connections} connections",
                                (f"{ours}/v1/predict", f"{bare}/v1/predict"), lambda: delivered(ours, store),
                                connections, seconds, GOAL, script)  # fmt: skip
        rows += compare("/v1/forecast, 16 connections", (f"{ours}/v1/forecast", f"{bare}/v1/forecast"),
                        lambda: delivered(ours, store), 16, SECONDS)  # fmt: skip
    print(file=sys.stderr)
    report(OUT / "serve.json", rows)


if __name__ == "__main__":
    main()
