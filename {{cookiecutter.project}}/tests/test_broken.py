"""A named list of faults, and a judge: every request gets the right value, a stand-in that says so, or 503; in time.

The faults come by process, socket and file, none by a flag of the service. The control takes the guards away. In time:
within `timeout_seconds` and a tenth of a second, of which the machine's share is taken off: see `Spent`.
FAULTS=425 requests are made under a fault; a thread's wait for a processor is read from Linux.
"""

import asyncio
import contextlib
import json
import os
import random
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import psycopg
import pytest
from conftest import SAMPLE, databases
from psycopg.conninfo import conninfo_to_dict
from serving import Project, Server, challenge, make_project, serve, wait_for
from test_telemetry import Store

from model_service import artifact, forecasting
from model_service.contract import Contract
from model_service.loader import run
from model_service.store.connection import connect
from model_service.telemetry.metrics import REASONS

SECONDS, SLACK = 1.0, 0.1
HANGS_SECONDS = 4.0  # what is mute, or hangs: so much longer that a crowded machine is no excuse
PATIENCE = 20.0  # of the caller
MODEL = ("model raises", "model hangs", "model gives NaN")
STORE = ("store refuses", "store is mute", "store is slow", "store is empty")
AUDIT = ("Elasticsearch refuses", "Elasticsearch is mute")
CHALLENGER = {
    "challenger is wrong": "compared",
    "challenger raises": "model_failed",
    "challenger hangs": "model_timeout",
}
FILE, MEMORY, AHEAD = "model file corrupt", "memory used up", "clock jumps ahead"
MACHINE = ("disk full", MEMORY, AHEAD, "clock jumps back")
APART = {*CHALLENGER, *AUDIT, *MACHINE} - {MEMORY}  # no answer depends on these
ALLOWED = {"right", "degraded", "503", "429", "404"}
EACH = max(25, -(-int(os.environ.get("FAULTS", "425")) // 17))
JSON = {"content-type": "application/json"}
Stores = tuple[str, Callable[[bool], None]]


class Found(NamedTuple):
    verdict: str
    lasted: float  # seconds
    others: float  # of which those were not the service's


class Spent:
    """Seconds since it was made, and how many of them were not the service's.

    Those are what threads of both processes waited for a processor though they were ready to run, and what the host
    took from all: only a crowded machine does that, never the service; and what this process worked itself. A service
    that sleeps, or waits for a lock or a socket, is not ready to run.
    """

    def __init__(self, process: int) -> None:
        self.process = process
        self._began, self._waits, self._taken = time.monotonic(), self._waited(), self._others()

    def _waited(self) -> dict[Path, int]:
        """Of every thread, in nanoseconds: the second figure of schedstat."""
        found = {}
        for process in (self.process, os.getpid()):
            for thread in Path(f"/proc/{process}/task").iterdir():
                with contextlib.suppress(OSError):  # it has ended
                    found[thread] = int((thread / "schedstat").read_text().split()[1])
        return found

    @staticmethod
    def _others() -> float:
        stolen = int(Path("/proc/stat").read_text().split(maxsplit=9)[8])
        return time.process_time() + stolen / os.sysconf("SC_CLK_TCK")

    def seconds(self) -> tuple[float, float]:
        """All, and those that were not the service's."""
        lasted = time.monotonic() - self._began
        waits = sum(now - self._waits.get(thread, 0) for thread, now in self._waited().items())
        return lasted, min(lasted, waits / 1e9 + self._others() - self._taken)


class Wire:
    """A TCP way to a server that can be cut: `fault` is what happens to those who come."""

    def __init__(self, to: dict[str, Any]) -> None:
        self.to, self.fault = to, ""
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        fault = self.fault
        with near, contextlib.suppress(OSError):  # one of the two went away
            if fault.endswith("mute"):
                near.settimeout(HANGS_SECONDS)
                while near.recv(4096):
                    pass
            if fault and not fault.endswith("slow"):
                return
            with self._far() as far:
                while ready := select.select([near, far], [], [], 20)[0]:
                    for one in ready:
                        if not (data := one.recv(65_536)):
                            return
                        if fault and one is far:
                            time.sleep(1.0)
                        (far if one is near else near).sendall(data)

    def _far(self) -> socket.socket:
        host, port = self.to.get("host", "127.0.0.1"), self.to.get("port", 5432)
        if not host.startswith("/"):
            return socket.create_connection((host, int(port)))
        far = socket.socket(socket.AF_UNIX)
        far.connect(f"{host}/.s.PGSQL.{port}")
        return far


@dataclass
class Judge:
    """What a request was answered, and whether it may be."""

    made: Project
    expected: dict[str, Any]  # of a forecast, without faults
    server: Server
    callers: httpx.AsyncClient  # in one thread: where many wait for a processor at once, their waits do not add up
    empty: bool = False  # the store: then there is nothing as of any time
    rows: int = 1

    async def one(self, number: int) -> Found:
        """Asks; every request has inputs, or an as-of, of its own."""
        kind = ("/v1/predict", "/v1/predict", "/v1/forecast", "as of", "/v1/explain")[number % 5]
        headers = {"X-Request-ID": f"r-{number}"}
        instance = self.made.instance | {self.made.inputs[0]: random.Random(number).uniform(-9, 9)}
        content = json.dumps({"instances": [instance] * self.rows})
        at = datetime(2016, 7, 1, tzinfo=UTC) + timedelta(seconds=number)
        spent = Spent(self.server.process.pid)
        try:
            if kind in ("/v1/predict", "/v1/explain"):
                response = await self.callers.post(kind, content=content, headers=headers | JSON)
            else:
                clocks = {"as_of": at.isoformat()} if kind == "as of" else {}
                response = await self.callers.get("/v1/forecast", params=clocks, headers=headers)
        except httpx.HTTPError as error:
            return Found(f"no answer: {type(error).__name__}", *spent.seconds())
        lasted, others = spent.seconds()
        if lasted - others > SECONDS + SLACK:
            return Found(f"late: {lasted - others:.2f} s", lasted, others)
        return Found(self._verdict(kind, instance, at, headers["X-Request-ID"], response), lasted, others)

    def _verdict(self, kind: str, instance: Any, at: datetime, sent: str, response: httpx.Response) -> str:
        body = response.json()
        if response.headers["x-request-id"] != sent:
            return "the answer of another request"
        if response.status_code in {429, 503}:  # 429: the loop was held up for half of its time
            whole = body["request_id"] == sent and "retry-after" in response.headers
            return str(response.status_code) if whole else f"an unfit {response.status_code}"
        if response.status_code == 404 and kind == "as of":
            return "404" if self.empty else "404 though there are data"
        if response.status_code != 200:
            return f"{response.status_code}: {body['detail']}"
        if kind in ("/v1/predict", "/v1/explain"):
            due = np.array([*instance.values()]) @ self.made.weights
            told = (body.get("predictions") or body["explanations"])[-1]
            found = [told[f"horizon_{one}"] for one in self.made.horizons]
            found = [one if kind == "/v1/predict" else one["value"] for one in found]
            return "right" if found == pytest.approx(due.tolist()) else "wrong"
        if degraded := body["degraded"]:
            fits = kind != "as of" and degraded["reason"] in REASONS and degraded["source"] == "last_forecast"
            return f"degraded: {degraded['reason']}" if fits else "wrongly degraded"
        if kind == "as of" and body["as_of"]["known_at"] != forecasting.utc_text(at):
            return "wrong as-of"
        same = body["forecasts"] == self.expected["as of" if kind == "as of" else "now"]["forecasts"]
        return "right" if same else "wrong"


@dataclass
class Bench:
    """The service, and every way to break what it stands on."""

    judge: Judge
    store: Wire
    audit: Wire
    fault: Path
    swap: Callable[[bool], None]
    runner: asyncio.Runner
    asked: int = 0

    def plant(self, fault: str) -> None:
        self.store.fault = fault if fault in STORE and "empty" not in fault else ""
        self.audit.fault = fault if fault in AUDIT else ""
        self.fault.write_text(fault, "utf-8")
        self.swap(fault == "store is empty")
        self.judge.empty = fault == "store is empty"
        self.judge.rows = 200 if fault == MEMORY else 1
        time.sleep(0.3)

    def ask(self, count: int) -> list[Found]:
        numbers = range(self.asked, self.asked + count)
        self.asked += count
        return self.runner.run(self._all(numbers))

    def challenged(self, fault: str) -> float:
        """How often the challenger was asked with this outcome."""
        return self.judge.server.metrics().get(f'shadow_questions_total{{outcome="{CHALLENGER.get(fault)}"}}', 0.0)

    def is_right(self) -> bool:
        return {found.verdict for found in self.ask(5)} == {"right"}

    async def _all(self, numbers: Iterable[int]) -> list[Found]:
        ten = asyncio.Semaphore(10)

        async def one(number: int) -> Found:
            async with ten:
                return await self.judge.one(number)

        return list(await asyncio.gather(*map(one, numbers)))


@pytest.fixture(scope="module")
def stores(server: str, contract: Contract) -> Iterator[Stores]:
    """URL of a database that holds the sample, and what puts an empty one in its place."""
    with databases(server, contract) as make, psycopg.connect(server, autocommit=True) as admin:
        url = make()
        place, other = (str(conninfo_to_dict(one)["dbname"]) for one in (url, make()))
        aside = f"{place}_aside"

        def rename(old: str, new: str) -> None:
            sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
            admin.execute(sql, [old])
            admin.execute(f'ALTER DATABASE "{old}" RENAME TO "{new}"')

        run.load(contract, url, SAMPLE, lambda _: None)
        swapped = False

        def swap(empty: bool) -> None:
            nonlocal swapped
            if empty != swapped:
                for old, new in ((place, aside), (other, place)) if empty else ((place, other), (aside, place)):
                    wait_for(lambda old=old, new=new: not attempt(rename, old, new))
                swapped = empty

        yield url, swap
        swap(False)


def attempt(action: Any, *words: str) -> Exception | None:
    try:
        action(*words)
    except psycopg.Error as error:
        return error
    return None


@contextmanager
def bench(folder: Path, stores: Stores, contract: Contract, **environment: str) -> Iterator[Bench]:
    made = make_project(folder, timeout_seconds=SECONDS, concurrency=16)
    challenge(made)
    url, swap = stores
    (folder / "fault").write_text("", "utf-8")
    model = artifact.load(folder / "build" / "model")
    with connect(url) as connection:
        times = {"now": None, "as of": datetime(2016, 7, 1, tzinfo=UTC)}
        expected = {name: forecasting.answer(contract, model, connection, at, None, None) for name, at in times.items()}
    if environment.pop("CORRUPT", ""):
        damage(folder / "build" / "model" / "model.onnx")
    known = conninfo_to_dict(url)
    kept = Store(lambda _: 201)
    with (
        closing((data := Wire(known)).listener),
        closing((trail := Wire({"port": kept.url.rpartition(":")[2]})).listener),
    ):
        login = f"postgresql://{known.get('user', 'postgres')}:{known.get('password', '')}@127.0.0.1:{data.port}"
        where = {"DATABASE_URL": f"{login}/{known['dbname']}?sslmode=disable", "FAULT": str(folder / "fault"),
                 "ELASTICSEARCH_URL": f"http://127.0.0.1:{trail.port}"}  # fmt: skip
        where["HANGS_SECONDS"] = str(HANGS_SECONDS)
        with serve(made, "broken", **where, **environment) as server, asyncio.Runner() as runner:
            callers = httpx.AsyncClient(base_url=server.url, timeout=PATIENCE)
            yield Bench(Judge(made, expected, server, callers), data, trail, folder / "fault", swap, runner)
            runner.run(callers.aclose())


def damage(path: Path) -> None:
    """Another weight in the graph: it still loads, and answers."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path))
    for node in graph.graph.initializer:
        if node.name == "weights":
            node.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(node) + 0.5, "weights"))
    onnx.save(graph, str(path))


def wrong(fault: str, found: list[Found]) -> list[str]:
    """What may not be; beside a fault that no answer depends on half of them must be made, however crowded it is."""
    kinds = [one.verdict.partition(":")[0] for one in found]
    bad = [one.verdict for one, kind in zip(found, kinds, strict=True) if kind not in ALLOWED]
    unmade = [one.verdict for one in found if one.verdict not in {"right", "degraded: no_data", *bad}]
    return bad + (unmade if fault in APART and len(unmade) > len(found) / 2 else [])


def tell(fault: str, found: list[Found]) -> None:
    counted, bad = dict(Counter(one.verdict for one in found)), len(wrong(fault, found))
    longest = max(found, key=lambda one: one.lasted - one.others)
    alone = longest.lasted - longest.others
    took = f"the longest {alone:.2f} s and {longest.others:.2f} s of others"
    print(f"\n{fault}: {bad} of {len(found)} wrong, {took}, {counted}")


def test_under_every_fault_each_request_is_answered_right_or_says_so_and_in_time(
    tmp_path: Path, stores: Stores, contract: Contract
) -> None:
    table: dict[str, list[Found]] = {}
    with bench(tmp_path / "sound", stores, contract) as one:
        wait_for(one.is_right)  # the other control: without a fault all is right
        wait_for(lambda: one.judge.server.metrics()["shadow_loaded"] == 1)
        for fault in (*MODEL, *STORE, *CHALLENGER, *AUDIT, *MACHINE):
            one.plant(fault)
            before = one.challenged(fault)
            table[fault] = one.ask(EACH)
            wait_for(
                lambda before=before, fault=fault: fault not in CHALLENGER or one.challenged(fault) > before
            )  # met
            one.plant("")
            wait_for(one.is_right)  # it mends by itself
    with bench(tmp_path / "damaged", stores, contract, CORRUPT="1") as one:
        table[FILE] = one.ask(EACH)
        assert httpx.get(f"{one.judge.server.url}/readyz").status_code == 503
    for fault, found in table.items():
        tell(fault, found)
    assert {fault: wrong(fault, found) for fault, found in table.items() if wrong(fault, found)} == {}
    assert sum(map(len, table.values())) >= 300
    for fault in (*MODEL, *STORE, FILE):  # it was met
        assert any(one.verdict != "right" for one in table[fault]), fault


def test_without_its_guards_the_judge_sees_failures(tmp_path: Path, stores: Stores, contract: Contract) -> None:
    table: dict[str, list[Found]] = {}
    machine = [fault for fault in MACHINE if fault != AHEAD]
    with bench(tmp_path / "spans", stores, contract, UNGUARDED="spans") as one:
        wait_for(one.is_right)
        one.plant(AHEAD)
        table[AHEAD] = one.ask(10)
    with bench(tmp_path / "sound", stores, contract, UNGUARDED="all") as one:
        wait_for(one.is_right)
        wait_for(lambda: one.judge.server.metrics()["shadow_loaded"] == 1)
        easy = (*STORE, "model raises", "model gives NaN", *CHALLENGER)
        for fault in (*easy, *machine, *AUDIT, "model hangs"):  # the worst last
            one.plant(fault)
            table[fault] = one.ask(20 if fault == MEMORY else 5)
    with bench(tmp_path / "damaged", stores, contract, UNGUARDED="all", CORRUPT="1") as one:
        table[FILE] = one.ask(5)
    for fault, found in table.items():
        tell(fault, found)
    assert {fault for fault, found in table.items() if not wrong(fault, found)} == set()
