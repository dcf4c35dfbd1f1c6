"""More than can be answered, work that hangs, and the end: who is sent away, and that slots come free again."""

import asyncio
import collections
import contextvars
import itertools
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import offered
import pytest
from fastapi import Request
from prometheus_client import CollectorRegistry, Counter
from psycopg.conninfo import make_conninfo
from serving import HANGS, HOLE, POISON, make_project, serve, wait_for
from test_service import problem

from model_service import artifact
from model_service.contract import Contract, Serving
from model_service.serving import body, door, predictor, slots
from model_service.serving.cache import Cache
from model_service.serving.door import Door
from model_service.serving.edge import Problem
from model_service.serving.slots import Interrupter, Overloaded, Slots, Unavailable
from model_service.telemetry import PROBES

LATE = 5.0  # beyond any time that is asked for, and what a crowded machine adds


def counter(*labels: str) -> Counter:
    return Counter("x", "", labels, registry=CollectorRegistry())


def some(capacity: int, line: int = 9, patience: float = LATE) -> Slots:
    return Slots(capacity, line, patience, counter("reason"))


class Gate:
    """Work that waits until it is let go, and cannot be stopped."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.begun: list[int] = []

    def job(self, number: int) -> Callable[[], int]:
        def work() -> int:
            self.begun.append(number)
            self.opened.wait(60)
            return number

        return work


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


def test_a_run_is_not_ended_for_the_one_before_it() -> None:
    class Slow:
        """Options of a run that are told to end as the run ends by itself."""

        ended = False

        @property
        def terminate(self) -> bool:
            return self.ended

        @terminate.setter
        def terminate(self, value: bool) -> None:
            late.set()
            begun.wait(0.5)
            self.ended = value

    late, begun = threading.Event(), threading.Event()
    interrupter = Interrupter(1.0)
    interrupter._options = Slow()  # type: ignore[assignment]
    interrupter.start()

    def second() -> bool:
        begun.set()
        time.sleep(0.2)
        return bool(artifact.interrupt.get().terminate)  # type: ignore[union-attr]

    def scene() -> bool:
        interrupter.run(lambda: late.wait(LATE))
        return interrupter.run(second)

    assert not contextvars.copy_context().run(scene)
    interrupter.stop()


def test_so_many_at_a_time_so_many_in_line_and_the_rest_is_sent_away() -> None:
    async def scene() -> None:
        gate, ours = Gate(), some(2, line=3)
        tasks = []
        for number in range(5):
            tasks.append(asyncio.create_task(ours.submit(gate.job(number))))
            await asyncio.sleep(0)
        await until(lambda: len(gate.begun) == 2)
        assert (ours.busy, ours.waiting) == (2, 3)
        with pytest.raises(Overloaded, match="3 requests are in line") as raised:
            await ours.submit(gate.job(5))
        assert raised.value.status == 429 and "Retry-After" in raised.value.headers
        gate.opened.set()
        assert await asyncio.gather(*tasks) == [0, 1, 2, 3, 4]
        assert (ours.busy, ours.waiting, ours.lost) == (0, 0, 0)

    asyncio.run(scene())


def test_the_line_keeps_its_order() -> None:
    async def scene() -> None:
        gate, ours = Gate(), some(1)
        tasks = []
        for number in range(5):
            tasks.append(asyncio.create_task(ours.submit(gate.job(number))))
            await asyncio.sleep(0)
        gate.opened.set()
        await asyncio.gather(*tasks)
        assert gate.begun == [0, 1, 2, 3, 4]

    asyncio.run(scene())


def test_nobody_waits_in_line_for_longer_than_patience() -> None:
    async def scene() -> None:
        gate, ours = Gate(), some(1, patience=0.05)
        first = asyncio.create_task(ours.submit(gate.job(1)))
        await until(lambda: gate.begun)
        with pytest.raises(Overloaded, match="no turn within"):
            await ours.submit(gate.job(2))
        gate.opened.set()
        assert await first == 1 and gate.begun == [1]

    asyncio.run(scene())


def test_work_that_is_given_up_frees_its_slot_and_lost_threads_are_bounded() -> None:
    async def scene() -> None:
        gate, ours = Gate(), some(2)
        for number in range(2):
            with pytest.raises(Unavailable, match="too long"):
                await slots.run_within(ours, 0.05, "too long", gate.job(number))
            assert (ours.busy, ours.lost) == (0, number + 1)  # the thread goes on
        assert not ours._free.locked()
        with pytest.raises(Unavailable, match="threads_lost"):
            await ours.submit(gate.job(3))
        gate.opened.set()
        await until(lambda: ours.lost == 0)
        assert await ours.submit(lambda: 8) == 8

    asyncio.run(scene())


def test_whatever_work_raises_comes_back() -> None:
    def fails() -> None:
        raise ZeroDivisionError("by nought")

    with pytest.raises(ZeroDivisionError, match="by nought"):
        asyncio.run(some(1).submit(fails))


@contextmanager
def asked(folder: Path, seconds: float) -> Iterator[tuple[predictor.Predictor, np.ndarray, list[float]]]:
    """A predictor of the made-up model, a row, and what it gives."""
    made = make_project(folder)
    cache = Cache(1_000_000, counter("cache", "outcome"))
    model = artifact.load(folder / "build" / "model")
    yield (
        (one := predictor.Predictor(model, Serving(), some(2), cache, seconds, entrance()[0])),
        np.array([[*made.instance.values()]]),
        made.expected,
    )
    one.stop()


def test_a_model_that_hangs_is_ended_whether_in_the_loop_or_in_a_thread(tmp_path: Path) -> None:
    async def scene(one: predictor.Predictor, row: np.ndarray, expected: list[float]) -> None:
        assert (await one.predict(row))[0].tolist() == pytest.approx(expected)
        hung = row.copy()
        hung[0, 1] = HANGS
        for _ in range(3):  # the first in the loop, then in a slot; the others in a slot at once
            with pytest.raises(Unavailable, match="model_timeout"):
                await one.predict(hung)
            assert one.slots.busy == 0
        await until(lambda: one.slots.lost == 0)  # the runs themselves have ended
        assert (await one.predict(row))[0].tolist() == pytest.approx(expected)
        poisoned = row.copy()
        poisoned[0, 1] = 2 * POISON
        with pytest.raises(Unavailable, match="model_failed"):
            await one.predict(poisoned)

    with asked(tmp_path, 0.8) as (one, row, expected):
        asyncio.run(scene(one, row, expected))


def test_a_run_that_lasts_holds_up_the_loop_only_once(tmp_path: Path) -> None:
    async def scene(one: predictor.Predictor, row: np.ndarray) -> None:
        beats: list[float] = []

        async def heart() -> None:
            while True:
                beats.append(time.monotonic())
                await asyncio.sleep(0.01)

        hung = row.copy()
        hung[0, 1] = HANGS
        beating = asyncio.create_task(heart())
        await asyncio.sleep(0.05)
        for _ in range(2):
            with pytest.raises(Unavailable):
                await one.predict(hung)
        beating.cancel()
        gaps = np.diff(beats)
        assert (gaps > 0.24).sum() == 1 and len(beats) > 20

    with asked(tmp_path, 1.0) as (one, row, _):
        asyncio.run(scene(one, row))


async def in_one_turn(one: predictor.Predictor, rows: list[np.ndarray]) -> list[Any]:
    """What comes of each, asked after a turn in which as many came."""
    for _ in rows:
        one.door.enter("/v1/predict")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return await asyncio.gather(*map(one.predict, rows), return_exceptions=True)


def test_who_comes_in_the_same_turn_is_answered_by_one_run_each_as_if_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(one: predictor.Predictor, row: np.ndarray) -> None:
        rows = [row + number / 8 for number in range(12)] + [np.vstack([row, 2 * row])]
        alone = [await one.predict(few) for few in rows]
        sizes: list[int] = []
        ask = one.model.predict
        monkeypatch.setattr(one.model, "predict", lambda given: sizes.append(len(given)) or ask(given))
        together = await in_one_turn(one, rows)
        assert sizes == [14]
        for made, due in zip(together, alone, strict=True):
            assert made.tolist() == due.tolist()
        large = np.repeat(row, predictor.FEW + 1, axis=0)
        await in_one_turn(one, [large, large])
        assert sizes[1:] == [predictor.FEW + 1] * 2  # nothing is won by joining these

    with asked(tmp_path, 2.0) as (one, row, _):
        asyncio.run(scene(one, row))


def test_a_row_that_the_model_fails_at_fails_alone_among_those_of_its_turn(tmp_path: Path) -> None:
    async def scene(one: predictor.Predictor, row: np.ndarray, expected: list[float]) -> None:
        poisoned, hung = row.copy(), row.copy()
        poisoned[0, 1], hung[0, 1] = 2 * POISON, HANGS
        for bad, reason in ((poisoned, "model_failed"), (hung, "model_timeout")):
            before, failed, after = await in_one_turn(one, [row, bad, row])
            assert isinstance(failed, Unavailable) and str(failed) == reason
            for made in (before, after):
                assert made[0].tolist() == pytest.approx(expected)

    with asked(tmp_path, 0.8) as (one, row, expected):
        asyncio.run(scene(one, row, expected))


def entrance(seconds: float = 2.0) -> tuple[Door, Counter]:
    async def nothing() -> None: ...

    unanswered = counter("reason")
    return Door(seconds, 0.0, unanswered, nothing), unanswered


def test_work_is_given_up_where_a_requests_time_ends_and_is_told_so() -> None:
    async def scene() -> None:
        heard: list[str] = []

        async def work(*waits: float) -> str:
            try:
                for seconds in waits:
                    await asyncio.sleep(seconds)
            except BaseException as error:
                heard.append(type(error).__name__)
                raise
            return "done"

        ours, _ = entrance(3.0)
        ours.enter("/v1/predict")
        assert [await door.in_time(work(*waits)) for waits in ((), (0.01,), (0, 0.01, 0))] == ["done"] * 3
        with pytest.raises(ZeroDivisionError):
            await door.in_time(slots.run_within(some(1), 9, "late", lambda: 1 // 0))
        for waits in ((60,), (0.01, 60)):
            with pytest.raises(TimeoutError):
                await door.in_time(work(*waits))
        assert heard == ["CancelledError"] * 2

    asyncio.run(scene())


@pytest.mark.parametrize(("held_up", "status"), [(0.8, 429), (0.0, 408)])
def test_a_body_that_comes_while_the_loop_is_held_up_is_not_called_late(held_up: float, status: int) -> None:
    async def scene() -> None:
        ours, _ = entrance(0.5)
        ours.enter("/v1/predict")

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(0.4 if held_up else 60)
            return {"type": "http.request", "body": b"{}"}

        asyncio.get_running_loop().call_later(0.1, time.sleep, held_up)
        with pytest.raises(Problem) as raised:
            await body.read(Request({"type": "http", "headers": []}, receive))
        assert raised.value.status == status

    asyncio.run(scene())


def test_who_waited_half_its_time_for_the_loop_is_sent_away_and_probes_are_not() -> None:
    async def scene() -> None:
        ours, unanswered = entrance(0.2)
        assert ours.enter("/v1/predict") is None
        time.sleep(0.12)  # one answer takes long, the next came in meanwhile
        refused = ours.enter("/v1/predict")
        assert refused and refused[0] == 429
        assert [ours.enter(path) for path in sorted(PROBES)] == [None] * 5
        assert door.left() < 0.1
        assert unanswered.labels("line_slow")._value.get() == 1
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert ours.enter("/v1/predict") is None and door.left() > 0.1  # the next turn
        for _ in range(8):
            ours.leave()
        assert ours.inside == 0

    asyncio.run(scene())


def test_who_came_while_the_loop_was_held_up_has_waited_since() -> None:
    async def scene() -> None:
        ours, _ = entrance(1.0)
        ours.enter("/v1/predict")
        time.sleep(0.2)  # an answer takes long; the next request comes, and is taken up in the next turn
        await asyncio.sleep(0)
        ours.enter("/v1/predict")
        assert door.left() < 0.85
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        ours.enter("/v1/predict")  # in a turn of its own
        assert door.left() > 0.85

    asyncio.run(scene())


def test_a_database_that_hangs_takes_no_more_than_its_slots_and_probes_answer(tmp_path: Path) -> None:
    made = make_project(tmp_path, timeout_seconds=1.0, concurrency=2, queue=3)
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections and never says a word
        url = f"postgresql://reader@127.0.0.1:{mute.getsockname()[1]}/x"
        with serve(made, "uvicorn", DATABASE_URL=url) as server, ThreadPoolExecutor(20) as pool:
            ask = lambda day: httpx.get(f"{server.url}/v1/forecast?as_of=2016-07-{day:02}", timeout=30)  # noqa: E731
            asked = [pool.submit(ask, day) for day in range(1, 21)]
            for path in ("/livez", "/metrics", "/v2/health/live"):
                assert httpx.get(server.url + path, timeout=30).status_code == 200
            assert httpx.post(f"{server.url}/v1/predict", json={"instances": [made.instance]}).status_code == 200
            found = [one.result() for one in asked]
            assert {one.status_code for one in found} <= {429, 503}
            for one in found:
                problem(one, one.status_code)
            told = server.metrics()
            reasons = ("line_full", "line_slow", "database_timeout", "threads_lost", "timeout")
            assert sum(told[f'unanswered_total{{reason="{one}"}}'] for one in reasons) == 20
            assert told['unanswered_total{reason="database_timeout"}'] >= 2
            wait_for(lambda: server.metrics()['slots_busy{kind="database"}'] == 0)
            wait_for(lambda: server.metrics()['slots_lost{kind="database"}'] == 0)


@pytest.mark.parametrize(
    ("value", "reason"), [(HANGS, "model_timeout"), (HOLE, "model_not_finite"), (2 * POISON, "model_failed")]
)
def test_what_the_model_cannot_answer_is_503(tmp_path: Path, value: float, reason: str) -> None:
    made = make_project(tmp_path, timeout_seconds=0.5)
    strange, counted = made.instance | {made.inputs[1]: value}, f'unanswered_total{{reason="{reason}"}}'
    with serve(made, "uvicorn") as server:
        for path in ("/v1/predict", "/v1/explain"):
            before = server.metrics()[counted]
            problem(httpx.post(f"{server.url}{path}", json={"instances": [strange]}, timeout=30), 503)
            assert server.metrics()[counted] == before + 1
            good = httpx.post(f"{server.url}{path}", json={"instances": [made.instance]}, timeout=30)
            assert good.status_code == 200


class Caller(threading.Thread):
    """Opens one connection after the other and asks for what it is told to, until none is to be had any more."""

    def __init__(self, port: int, request: bytes) -> None:
        super().__init__(daemon=True)
        self.port, self.request = port, request
        self.seen: list[tuple[float, float, str]] = []  # when, how long, status line or error
        self.start()

    def run(self) -> None:
        while True:
            began = time.monotonic()
            try:
                with socket.create_connection(("127.0.0.1", self.port), 30) as connection:
                    connection.settimeout(30)
                    connection.sendall(self.request)
                    said = connection.recv(100).decode("latin-1")[9:12]
            except OSError as error:
                said = type(error).__name__
            self.seen.append((began, time.monotonic() - began, said))
            if said == "ConnectionRefusedError":
                return
            time.sleep(0.02)


@pytest.mark.parametrize("way", ["uvicorn", "bentoml"])
def test_before_the_end_it_is_not_ready_then_it_drains_and_no_connection_hangs(tmp_path: Path, way: str) -> None:
    made = make_project(tmp_path, drain_seconds=1.0)
    with serve(made, way) as server:
        port = int(server.url.rpartition(":")[2])
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        ready, model = (Caller(port, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
                        for path in ("/readyz", "/v1/model"))  # fmt: skip
        wait_for(lambda: ready.seen and model.seen)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(20)
        for one in (ready, model):
            one.join(30)
            assert not one.is_alive() and max(took for _, took, _ in one.seen) < LATE
        unready = next(when for when, _, said in ready.seen if said == "503")
        refused = [when for when, _, said in model.seen if said != "200"]
        assert unready < refused[0]  # told first
        served = [said for when, _, said in model.seen if unready < when < unready + 0.5]
        assert served and set(served) == {"200"}  # and served meanwhile
        assert time.monotonic() - began < 15


def test_nobody_who_did_not_ask_for_readiness_is_waited_for(tmp_path: Path) -> None:
    made = make_project(tmp_path, drain_seconds=20.0)
    with serve(made, "uvicorn") as server:
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 15


def test_of_three_times_what_it_can_answer_it_answers_most_of_what_it_can(
    tmp_path: Path, loaded: Any, contract: Contract
) -> None:
    """Per second in which its event loop had a processor; what it can is measured first; the median of three rounds."""
    made = make_project(tmp_path, queue=16, timeout_seconds=10.0)
    since = datetime(2016, 7, 1, tzinfo=UTC)

    def requests() -> Iterator[bytes]:  # each as of another time: nothing comes out of the cache
        for number in numbers:
            yield offered.got(f"/v1/forecast?as_of={since + timedelta(seconds=number):%Y-%m-%dT%H:%M:%SZ}")

    numbers, url = itertools.count(), make_conninfo(loaded.info.dsn, password=loaded.info.password)
    with serve(made, "uvicorn", DATABASE_URL=url) as server, asyncio.Runner() as runner:
        port, pid = int(server.url.rpartition(":")[2]), server.process.pid

        def load(most: int) -> offered.Load:
            return offered.Load(port, pid, requests(), most)

        runner.run(load(8).take(2))  # warms up
        shares, rounds = [], []
        for _ in range(3):  # in turn: the machine is another's, too
            wait_for(
                lambda: not any(server.metrics()[f'slots_{what}{{kind="database"}}'] for what in ("busy", "waiting"))
            )
            can = runner.run(load(8).take(4)).rate
            thrice = load(200)
            probes = runner.run(probed(thrice.offer(3 * can, 4), server.url))
            rounds.append(thrice.tally)
            shares.append(thrice.tally.rate / can)
            print(f"{can:.0f} a second, thrice offered {thrice.tally.rate:.0f}: {dict(thrice.tally.answers)},"
                  f" p99 {thrice.tally.quantile(0.99):.2f} s, probes {max(probes):.2f} s")  # fmt: skip
            assert len(probes) > 2
    assert sorted(shares)[1] >= 0.8, shares
    answers = sum((tally.answers for tally in rounds), collections.Counter())
    assert answers.keys() <= {200, 429, 503} and answers[429]
    assert sum(tally.unsaid + tally.broken for tally in rounds) == 0


async def probed(load: Any, url: str) -> list[float]:
    """Seconds that each probe took, beside what is offered."""
    task, took = asyncio.create_task(load), []
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        while not task.done():
            for path in ("/livez", "/metrics"):
                began = time.monotonic()
                assert (await client.get(path)).status_code == 200
                took.append(time.monotonic() - began)
            await asyncio.sleep(0.2)
    await task
    return took
