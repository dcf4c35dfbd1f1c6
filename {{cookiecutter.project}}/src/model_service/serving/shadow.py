"""The challenger: asked behind the champion's back what that was asked; no caller ever hears it, or waits for it.

One thread asks it, with a bounded line before it, and rests for longer than it works: of a heavy load it sees a part.
What it says is compared with what was answered, counted, and put into the audit trail.
"""

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from model_service import artifact
from model_service.arrays import Floats
from model_service.serving.slots import Interrupted, Interrupter, Unavailable
from model_service.telemetry import request_id
from model_service.telemetry.audit import SMALL, Audit

log = logging.getLogger(__name__)

OUTCOMES = (
    "compared", "line_full", "incomparable", "model_failed", "model_timeout", "model_not_finite", "model_wrong_shape",
)  # fmt: skip
DEVIATIONS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
MOST = 2000  # rows in line
REST = 4  # times as long as it worked
Question = tuple[str, datetime, Floats, Floats]  # request, time, inputs [N, F], answer [N, H]
T = TypeVar("T")


class Pair:
    """Both models. horizons: K that both have. deviation: the target's."""

    def __init__(self, champion: artifact.Model, challenger: artifact.Model) -> None:
        self.champion, self.challenger = champion, challenger
        self.horizons = [one for one in champion.horizons if one in challenger.horizons]
        self._ours, self._theirs = ([model.horizons.index(one) for one in self.horizons]
                                    for model in (champion, challenger))  # fmt: skip
        target, theirs = (model.card["target"]["series"] for model in (champion, challenger))
        self.comparable = bool(self.horizons) and target == theirs and {*challenger.inputs} <= {*champion.inputs}
        self._columns = [champion.inputs.index(name) for name in challenger.inputs] if self.comparable else []
        told = (json.loads(one.explain)["deviation"] for one in (champion, challenger) if one.explain)
        self.deviation: float = next((one for one in told if one > 0), 1.0)  # one that is constant has none

    def ask(self, rows: Floats, values: Floats) -> tuple[Floats, Floats]:
        """Champion's and challenger's [N, K], of inputs [N, F] and the champion's [N, H]; raises Unable."""
        if not self.comparable or not np.isfinite(values).all():
            raise Unavailable("incomparable")
        made = np.asarray(self.challenger.predict(rows[:, self._columns]), np.float64)
        if made.shape != (len(rows), len(self.challenger.horizons)):
            raise Unavailable("model_wrong_shape")
        if not np.isfinite(made).all():
            raise Unavailable("model_not_finite")
        return values[:, self._ours], made[:, self._theirs]


class Shadow:
    """The challenger in `folder`, if there is one; no question takes it longer than `seconds`.

    head: what each record begins with. fault: why it is not loaded.
    """

    def __init__(
        self, folder: Path, registry: CollectorRegistry, audit: Audit, head: Mapping[str, Any], seconds: float
    ) -> None:
        self.pair: Pair | None = None
        self.fault: str | None = None
        self._folder, self._registry, self._audit, self._head = folder, registry, audit, head
        self._line: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
        self._given = self._taken = 0  # rows; one thread alone writes each
        self._open = False
        self._interrupter = Interrupter(seconds)
        self._ended = threading.Event()
        self._said: set[str] = set()

    def start(self, champion: artifact.Model) -> None:
        """Loads it beside `champion`, in its own thread; without one there is neither thread nor metric."""
        if not self._folder.is_dir():
            return
        self.fault = "it is not loaded yet"
        says = "Questions to the challenger by what came of them"
        self._questions = Counter("shadow_questions", says, ["outcome"], registry=self._registry)
        for outcome in OUTCOMES:
            self._questions.labels(outcome)
        says = "Largest difference from the champion's answer, in deviations of the target"
        self._apart = Histogram("shadow_difference", says, ["horizon"], buckets=DEVIATIONS, registry=self._registry)
        loaded = Gauge("shadow_loaded", "1 when the challenger is asked, 0 when it cannot be", registry=self._registry)
        loaded.set_function(lambda: float(self.pair is not None))
        self._open = True
        try:
            self._interrupter.start()
            threading.Thread(target=self._work, args=[champion], name="shadow", daemon=True).start()
        except RuntimeError as error:  # the machine gives no more
            self._refuse(error)

    def summary(self) -> dict[str, Any] | None:
        """What /v1/model tells of it; None without one."""
        if not self.pair and not self.fault:
            return None
        name = self.pair.challenger.name if self.pair else {"version": None, "digest": None}
        return {**name, "fault": self.fault}

    def put(self, rows: Floats, values: Floats) -> None:
        """Asks it what this request asked, [N, F], and was answered by `values` [N, H]. Never waits, never raises."""
        if not self._open or (identifier := request_id.get()) is None:  # what no request asked is not compared
            return
        if 0 < self._given - self._taken > MOST - len(rows):
            self._questions.labels("line_full").inc()
            return
        self._given += len(rows)
        self._line.put((identifier, datetime.now(UTC), rows, values))

    def stop(self) -> None:
        """May be called again; does not wait for it."""
        self._open = False
        self._ended.set()
        self._interrupter.stop()
        self._line.put(None)

    def _work(self, champion: artifact.Model) -> None:
        try:
            model = artifact.load(self._folder)
            self._in_time(model.check)
            self.pair, self.fault = Pair(champion, model), None
        except Exception as error:
            self._refuse(error)
            return
        log.info("model %s is in the shadow", model.digest)
        while (question := self._line.get()) and not self._ended.is_set():
            started = time.monotonic()
            self._settle(self.pair, question)
            self._taken += len(question[2])
            self._ended.wait(REST * (time.monotonic() - started))

    def _refuse(self, error: Exception) -> None:
        self.fault, self._open = str(error) or type(error).__name__, False
        log.error("challenger not loaded: %s", self.fault)

    def _settle(self, pair: Pair, question: Question) -> None:
        outcome, error = "compared", None
        try:
            self._compare(pair, *question)
        except Unavailable as unable:
            outcome = str(unable)
        except Exception as other:
            outcome, error = "model_failed", other
        self._questions.labels(outcome).inc()
        if outcome != "compared" and outcome not in self._said:  # from then on it is counted
            self._said.add(outcome)
            log.warning("the challenger: %s, for the first time", outcome, exc_info=error)

    def _compare(self, pair: Pair, identifier: str, when: datetime, rows: Floats, values: Floats) -> None:
        """Measures and records how far apart both are; raises Unable, and what the challenger raises."""
        ours, theirs = self._in_time(lambda: pair.ask(rows, values))
        apart = np.abs(theirs - ours).max(axis=0) / pair.deviation
        for horizon, one in zip(pair.horizons, apart.tolist(), strict=True):
            self._apart.labels(horizon).observe(one)
        document = {
            **self._head, "kind": "shadow", "http": {"request": {"id": identifier}}, "model": pair.champion.name,
            "challenger": pair.challenger.name, "difference": float(apart.max()),
            "output": {"horizons": pair.horizons, "model": ours.tolist(), "challenger": theirs.tolist()},
        }  # fmt: skip
        self._audit.put(identifier, when, document, small=len(rows) <= SMALL)

    def _in_time(self, job: Callable[[], T]) -> T:
        """`job`, which asks the model; raises Interrupted, also where it came to an end too late."""
        made = self._interrupter.run(job)
        if self._interrupter.took > self._interrupter.seconds:
            raise Interrupted
        return made
