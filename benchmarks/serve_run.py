"""Servers on one core, `wrk` on the others, and an Elasticsearch in which every answer must be found, once."""

import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from image import docker
from load_report import row

ROUTES = ("/v1/predict", "/v1/forecast")
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
PIN = len(CORES) > 1 and shutil.which("taskset") is not None
SERVER, CLIENT = (["taskset", "-c", ",".join(map(str, one))] if PIN else [] for one in (CORES[:1], CORES[1:]))
POST = 'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\nwrk.body = [==[{}]==]\n'
Report = list[dict[str, Any]]


class Failed(Exception):
    """A server did not start, or did not answer as it should."""


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with suppress(httpx.TransportError):
            if condition():
                return
        time.sleep(0.1)
    raise Failed(f"{what}: not within {seconds} seconds")


@contextmanager
def server(*command: str, folder: Path, ready: str = "/docs", **environment: str) -> Iterator[str]:
    """URL of a server on the first core, for as long as the block runs; PORT stands for its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {name: port if value == "PORT" else value for name, value in environment.items()} | {"PORT": port}
    with (folder / f"{port}.log").open("wb") as log:
        parts = [*SERVER, *(port if one == "PORT" else one for one in command)]
        started = subprocess.Popen(parts, cwd=folder, stdout=log, stderr=log, env=env)
        try:
            url = f"http://127.0.0.1:{port}"
            said = " ".join(command)
            wait_for(lambda: started.poll() is not None or httpx.get(f"{url}{ready}").is_success, 120, said)
            if started.poll() is not None:
                raise Failed(f"{said} ended:\n{Path(log.name).read_text()[-2_000:]}")
            yield url
        finally:
            started.terminate()
            try:
                started.wait(20)
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait()


@contextmanager
def elasticsearch() -> Iterator[str]:
    image = os.environ.get("ELASTICSEARCH_IMAGE", "docker.elastic.co/elasticsearch/elasticsearch:9.5.3")
    settings = ["discovery.type=single-node", "xpack.security.enabled=false", "ES_JAVA_OPTS=-Xms1g -Xmx1g"]
    options = [part for one in settings for part in ("-e", one)]
    options += ["--cpuset-cpus", ",".join(map(str, CORES[1:]))] if PIN else []  # the server's core is the server's
    container = docker("run", "-d", "--rm", "-p", "127.0.0.1:0:9200", *options, image)
    try:
        url = f"http://{docker('port', container, '9200').splitlines()[0]}"
        wait_for(lambda: httpx.get(url).is_success, 120, "Elasticsearch")
        yield url
    finally:
        docker("rm", "-f", "-v", container)


def wrk(url: str, connections: int, seconds: int, script: Path | None) -> tuple[float, float]:
    """Requests a second, and p99 in ms; raises Failed at an answer that is not good."""
    how = ["-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "--latency"]
    command = [*CLIENT, "wrk", *how, *(["-s", str(script)] if script else []), url]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    if re.search("Non-2xx|Socket errors", said):
        raise Failed(f"{url} did not answer as it should:\n{said}")
    rate = float(re.findall(r"Requests/sec:\s+([\d.]+)", said)[0])
    if not rate:
        raise Failed(f"{url} answered nothing within {seconds} seconds")
    number, unit = re.findall(r"99%\s+([\d.]+)(us|ms|s)\b", said)[0]
    return rate, float(number) * {"us": 1e-3, "ms": 1, "s": 1e3}[unit]


def counted(url: str, name: str, label: str, only: str = "") -> dict[str, int]:
    """A counter of /metrics, summed by the values of a label; `only` those whose labels hold this text."""
    found: dict[str, int] = {}
    for labels, value in re.findall(rf"^{name}{{(.*{only}.*)}} (\S+)$", httpx.get(f"{url}/metrics").text, re.M):
        which = dict(re.findall(r'(\w+)="([^"]*)"', labels))[label]
        found[which] = found.get(which, 0) + int(float(value))
    return found


def answered(ours: str, status: int) -> int:
    """How many questions that go into the trail."""
    found = counted(ours, "http_requests_total", "route", f'status="{status}"')
    return sum(number for route, number in found.items() if route in ROUTES)


def fates(ours: str) -> dict[str, int]:
    """What became of the trail's documents."""
    return counted(ours, "audit_documents_total", "outcome")


def shipped(ours: str) -> bool:
    """Whether the trail of all good answers has left the service."""
    return sum(fates(ours).values()) >= answered(ours, 200)


def delivered(ours: str, store: str) -> None:
    """Waits until all good answers are in the store; stops where one is missing, dropped, or there twice.

    One that was made for a caller who had left meanwhile is there, too.
    """
    found = ""

    def whole() -> bool:
        nonlocal found
        good, left = answered(ours, 200), answered(ours, 499)
        before = fates(ours)
        if (settled := sum(before.values())) >= good:
            httpx.post(f"{store}/_refresh", timeout=60)
            held = httpx.get(f"{store}/model-audit-*/_count").json()["count"]
            found = f"{good} answers, {left} more whose callers had left, {held} documents in the store: {before}"
            return bool(before["stored"] == settled == held <= good + left)
        return False

    try:
        wait_for(whole, 600, "delivery")
    except Failed as late:
        sys.exit(f"{late}; {found}")


@dataclass(frozen=True)
class Side:
    """A server under load: what it is, where it is asked, and by which script of wrk, unless by a plain GET."""

    says: str
    url: str
    script: Path | None = None


class Bench:
    """Compares the service at `ours`, whose trail goes to `store`, with others; `planned`: seconds of wrk in all."""

    def __init__(self, ours: str, store: str, folder: Path, planned: float) -> None:
        self.ours, self.store, self.folder = ours, store, folder
        self._planned, self._done, self._begun = planned, 0.0, time.monotonic()

    def tell(self, what: str) -> None:
        """One line: what runs, and for how long all will still take, when it goes on as it went."""
        passed = time.monotonic() - self._begun
        left = f", {(self._planned / self._done - 1) * passed / 60:.0f} min left" if self._done else ""
        print(f"\r{what + left:100}", end="", file=sys.stderr, flush=True)

    def posted(self, name: str, body: dict[str, Any]) -> Path:
        """A script of wrk that posts `body`."""
        path = self.folder / f"{name}.lua"
        path.write_text(POST.format(json.dumps(body)))
        return path

    def compare(self, name: str, ours: Side, other: Side, connections: int, seconds: int, pairs: int,
                goal: float | None = None) -> Report:  # fmt: skip
        """Ours and the other in turn; where one does not answer as it should, that is the report."""
        try:
            found = [self._pair(f"{name}: pair {turn} of {pairs}", (ours, other), turn % 2, connections, seconds)
                     for turn in range(pairs + 1)][1:]  # fmt: skip  # the first warms up
        except Failed as failed:
            print(f"\n{name}: {failed}", file=sys.stderr)
            return [row(f"{name}: NOT MEASURED", 0.0, "", other.says, 1.0, goal)]
        (speed, others), (tail, theirs) = (
            [statistics.median(pair[side][what] for pair in found) for side in (0, 1)] for what in (0, 1)
        )
        ratios = [pair[0][0] / pair[1][0] for pair in found]
        spread = f"{name}: median ratio of pairs ({min(ratios):.2f} to {max(ratios):.2f})"
        limit = round(theirs, 3) if goal else None
        return [row(f"{name}: requests", speed, "1/s", other.says, others),
                row(spread, statistics.median(ratios), "", "the same", 1.0, goal),
                row(f"{name}: p99", tail, "ms", other.says, theirs, limit, least=False)]  # fmt: skip

    def _pair(self, name: str, sides: tuple[Side, Side], first: int, connections: int,
              seconds: int) -> list[tuple[float, float]]:  # fmt: skip
        """Requests a second and p99 of both; `first`: who begins."""
        made = [(0.0, 0.0)] * 2
        for side in (first, 1 - first):
            self.tell(name)
            made[side] = wrk(sides[side].url, connections, seconds, sides[side].script)
            delivered(self.ours, self.store)
            self._done += seconds
        return made
