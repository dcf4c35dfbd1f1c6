"""A replica that hangs for good, and one that is told to stop while others do not let it: both end, in time."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import onnx
import pytest
from onnx import helper
from serving import Project, Server, make_project, serve, started_by_the_image

from model_service import artifact, contract
from model_service.serving import watchdog
from model_service.telemetry import audit

STUCK = 9.75  # an input in the range of training, at which a single node of the graph takes hours
ONE_NODE = f"""
    <ir_version: 9, opset_import: ["" : 17]>
    stuck (double[N, W] features) => (double never)
    <double stuck = {{{STUCK}}}, int64 many = {{2000000}}, int64 nought = {{0}}, int64 one = {{1}},
     int64[1] last = {{-1}}, int64[3] as_scores = {{1, 1, -1}}, int64[2] axes = {{0, 2}},
     float half = {{0.5}}, float[1] limit = {{0.5}}>
    {{
        same = Equal (features, stuck)
        hits = Cast <to = 7> (same)
        hit = ReduceMax <keepdims = 0> (hits)
        more = Mul (hit, many)
        count = Add (more, one)
        numbers = Range (nought, count, one)
        low = Cast <to = 1> (numbers)
        high = Add (low, half)
        from = Unsqueeze (low, axes)
        to = Unsqueeze (high, axes)
        boxes = Concat <axis = 2> (from, from, to, to)
        scores = Reshape (low, as_scores)
        most = Reshape (count, last)
        apart = NonMaxSuppression (boxes, scores, most, limit)
        shape = Shape (apart)
        length = ReduceMax <keepdims = 0> (shape)
        none = Mul (length, nought)
        never = Cast <to = 11> (none)
    }}"""


@contextmanager
def endless(folder: Path, **serving: float) -> Iterator[tuple[Project, Server, dict[str, float]]]:
    """A project, served, whose model compares two million boxes, each with each, for the instance beside it."""
    made = make_project(folder, **{"timeout_seconds": 0.5} | serving)
    files, _ = artifact.read(folder / "build/model")
    model, more = onnx.load_from_string(files["model.onnx"]), onnx.parser.parse_model(ONE_NODE).graph
    more = onnx.compose.add_prefix_graph(more, "stuck_", rename_inputs=False, rename_outputs=False)
    for node in model.graph.node:
        node.output[:] = ["plain" if name == "forecast" else name for name in node.output]
    model.graph.node.extend(more.node)
    model.graph.node.append(helper.make_node("Add", ["plain", "never"], ["forecast"]))
    model.graph.initializer.extend(more.initializer)
    onnx.checker.check_model(model)
    artifact.write(folder / "build/model", files | {"model.onnx": model.SerializeToString()}, "endless")
    with serve(made, "uvicorn") as server:
        try:
            yield made, server, made.instance | {made.inputs[1]: STUCK}
        finally:
            server.process.kill()  # it would not hear anything else


def ask(url: str, path: str, instance: dict[str, float]) -> int:
    return httpx.post(f"{url}{path}", json={"instances": [instance]}, timeout=30).status_code


def test_a_model_that_never_gives_the_event_loop_back_ends_the_process(tmp_path: Path) -> None:
    with endless(tmp_path, timeout_seconds=2.0) as (made, server, stuck):  # time for the nodes before it
        assert ask(server.url, "/v1/predict", made.instance) == 200
        with pytest.raises(httpx.HTTPError):
            ask(server.url, "/v1/predict", stuck)
        assert server.process.wait(60) == watchdog.EXIT
        assert [line["message"] for line in server.lines() if line["log.level"] == "critical"] == [
            "event loop: hangs for 12 seconds, so this process ends, to be started again"
        ]


def test_threads_that_never_come_back_end_the_process_and_none_is_ended_before(tmp_path: Path) -> None:
    with endless(tmp_path, concurrency=2) as (made, server, stuck):
        assert ask(server.url, "/v1/explain", stuck) == 503
        time.sleep((0.5 + watchdog.HUNG_SECONDS) + 3 * watchdog.TICK_SECONDS)
        assert httpx.get(f"{server.url}/readyz").status_code == 200  # one is left
        assert ask(server.url, "/v1/explain", stuck | {made.inputs[0]: 1.5}) == 503
        answer = httpx.get(f"{server.url}/readyz")
        assert answer.status_code == 503 and "threads" in answer.json()["detail"]
        assert httpx.get(f"{server.url}/livez").status_code == 200
        assert ask(server.url, "/v1/predict", made.instance) == 200
        assert server.process.wait(60) == watchdog.EXIT
        (said,) = [line["message"] for line in server.lines() if line["log.level"] == "critical"]
        assert said.startswith("model: hangs")


def test_a_process_that_was_suspended_does_not_hang(tmp_path: Path) -> None:
    made = make_project(tmp_path, timeout_seconds=0.5)
    with serve(made, "uvicorn") as server:
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(0.5 + watchdog.HUNG_SECONDS + 2 * watchdog.TICK_SECONDS)
        server.process.send_signal(signal.SIGCONT)
        time.sleep(3 * watchdog.TICK_SECONDS)
        assert ask(server.url, "/v1/predict", made.instance) == 200


def test_an_event_loop_that_is_never_idle_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(watchdog, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(watchdog, "HUNG_SECONDS", 1.0)
    monkeypatch.setattr(os, "_exit", ended.append)

    async def busy() -> None:
        watchdog.start({}, 0.0, lambda: None)
        until = time.monotonic() + 3
        while time.monotonic() < until and not ended:
            await asyncio.sleep(0)

    asyncio.run(busy())
    assert ended == []


def test_neither_a_mute_audit_store_nor_who_does_not_read_keeps_it_from_an_orderly_end(tmp_path: Path) -> None:
    made = make_project(tmp_path, timeout_seconds=0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        with serve(made, "uvicorn", ELASTICSEARCH_URL=url) as server, socket.socket() as idle:
            assert ask(server.url, "/v1/predict", made.instance) == 200
            held, _ = mute.accept()  # it was sent the record, and says nothing to it
            idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            idle.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
            idle.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 400)  # answers that no buffer holds
            time.sleep(3)
            assert sum("/openapi.json" in line["message"] for line in server.lines()) < 400
            server.stop()
            assert any(line["message"].startswith("Finished server process") for line in server.lines())
            held.close()


def test_the_image_gives_the_server_less_time_to_stop_than_the_service_has() -> None:
    words = started_by_the_image(0)
    server = words[words.index("--timeout-graceful-shutdown") + 1]
    assert audit.FLUSH_SECONDS + 1 + int(server) < contract.END_SECONDS
