"""Serves the project of this folder with faults planted into the process by what the file FAULT says at the time.

With UNGUARDED=all the guards against them are taken away, with UNGUARDED=spans the one that times are counted by a
clock that nobody sets: what a judge must be able to see.
"""

import contextlib
import itertools
import math
import os
import resource
import signal
import threading
import time
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import uvicorn

from model_service.serving import app as served  # seals the process before anything else is imported

from model_service import artifact, forecasting, settings  # isort: skip
from model_service.serving import cache, database, door, edge, predictor, runtime, shadow, slots  # isort: skip
from model_service.store import connection as store  # isort: skip
from model_service.telemetry import audit, metrics  # isort: skip

FAULT = Path(os.environ["FAULT"])
HANGS_SECONDS = float(os.environ["HANGS_SECONDS"])
LIMITS = {"disk full": resource.RLIMIT_FSIZE, "memory used up": resource.RLIMIT_AS}
DAYS = {"clock jumps ahead": 400, "clock jumps back": -30_000}
looks = itertools.count(1)
planted = ""
predict, read, now, answered = artifact.Model.predict, artifact.read, time.time, runtime.Runtime.record_answer


def failing(model: artifact.Model, rows: Any) -> Any:
    who = "challenger" if model.version == "other" else "model"
    if planted == f"{who} raises":
        raise RuntimeError("planted")
    if planted == f"{who} hangs":  # until it is told to stop, as a run of ONNX Runtime
        options, until = artifact.interrupt.get(), time.monotonic() + HANGS_SECONDS
        while time.monotonic() < until and not (options and options.terminate):
            time.sleep(0.005)
        raise RuntimeError("ended")
    made = predict(model, rows)
    return made * np.nan if planted == f"{who} gives NaN" else made + (planted == f"{who} is wrong")


def jump() -> timedelta:
    """Days, and one more at every look."""
    days = DAYS.get(planted, 0)
    return timedelta(days=days + math.copysign(next(looks), days) if days else 0)


class Jumped(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Any:
        return datetime.now(tz) + jump()


def jumped() -> float:
    return now() + jump().total_seconds()


def watch() -> None:
    while True:
        with contextlib.suppress(
            MemoryError
        ):  # which is for the service: whoever plants it must be able to take it back
            plant(FAULT.read_text("utf-8"))
        time.sleep(0.1)  # seldom: a thread that comes often waits often


def plant(said: str) -> None:
    global planted
    if said == planted:
        return
    for name, limit in LIMITS.items():
        most = resource.getrlimit(limit)[1]
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        low = 1 if limit == resource.RLIMIT_FSIZE else used + 3_000_000
        resource.setrlimit(limit, (low if said == name else most, most))
    planted = said


def unguard_spans() -> None:
    for spans in (door, cache, predictor, runtime, slots):
        spans.time = SimpleNamespace(monotonic=jumped, perf_counter=time.perf_counter)  # type: ignore[attr-defined]


def unguard() -> None:
    async def bare(slots: slots.Slots, seconds: float, late: str, job: Any) -> Any:
        return await slots.submit(job)

    async def whenever(answer: Any) -> Any:
        return await answer

    def connected(self: database.Database, question: Any) -> Any:
        with store.connect(str(settings.database_url())) as connection:
            return question(connection)

    def at_once(self: audit.Audit, identifier: str, when: datetime, document: Any, small: bool = False) -> None:
        audit.connect(str(self.url)).bulk(operations=[{"create": {"_index": "now", "_id": identifier}}, document])

    def asked(self: shadow.Shadow, rows: Any, values: Any) -> None:
        values[:] = self.pair.challenger.predict(rows) if self.pair else values

    def none(self: runtime.Runtime, *_: Any) -> Any:
        raise RuntimeError("nothing stands in")

    def unread(folder: Path) -> Any:
        if folder.name == artifact.CHALLENGER:
            return read(folder)
        files = {name: (folder / name).read_bytes() for name in (*artifact.FILES, "explain.json")}
        return files, "sha256:" + "0" * 64

    def aloud(self: runtime.Runtime, route: str, *words: Any, **more: Any) -> None:
        print(route, flush=True)
        answered(self, route, *words, **more)

    audit.connect("http://127.0.0.1:1")  # imported now, which takes long
    edge.MemoryError = slots.RuntimeError = ZeroDivisionError  # type: ignore[attr-defined]
    for owner, name, other in (
        *((module, "run_within", bare) for module in (predictor, database, runtime)),
        (artifact, "read", unread),
        (audit, "TIMEOUT_SECONDS", 3.0),
        (audit.Audit, "put", at_once),
        (database.Database, "_connected", connected),
        (predictor, "_told", lambda job: job()),
        (runtime, "in_time", whenever),
        (runtime.Runtime, "_finite", lambda self, values, strange: values),
        (runtime.Runtime, "_fallback", none),
        (runtime.Runtime, "record_answer", aloud),
        (shadow.Shadow, "put", asked),
        (slots.Interrupter, "_watch", lambda _: None),
    ):
        patch.object(owner, name, other).start()  # fails where there is no such guard any more


if __name__ == "__main__":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    artifact.Model.predict = failing  # type: ignore[method-assign]
    for module in (forecasting, runtime, database, metrics):
        module.datetime = Jumped  # type: ignore[attr-defined]
    time.time = jumped
    runtime.FRESH_SECONDS = 0.0
    {"": lambda: None, "spans": unguard_spans, "all": unguard}[os.environ.get("UNGUARDED", "")]()
    threading.Thread(target=watch, daemon=True).start()
    threading.stack_size(64_000_000 // resource.getpagesize() * resource.getpagesize())  # too much to be kept
    uvicorn.run(served.app, port=int(os.environ["PORT"]), access_log=False, log_config=None)
