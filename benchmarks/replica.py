"""Replicas shot down under load: what callers behind the balancer see of it, and how soon a replica is back.

Callers ask for forecasts, predictions (1 row, 100 rows) and explanations without a pause, while the process of one
replica after the other gets SIGKILL, KILLS times (30). Each answer must be the right one; no request may have two audit
documents (COMPOSE_PROFILES=watch keeps them). A replica is back when the balancer sends it requests again. Starts the
stack of the project's last images, stops it, and writes build/bench/replica.json.
"""

import http.client
import json
import math
import os
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from load_report import report, row

HERE = Path(__file__).resolve().parent
OUT = Path(os.environ.get("OUT", HERE.parent / "build/bench"))
KILLS = int(os.environ.get("KILLS") or 30)
DEGRADED = "degraded"  # a forecast while the machine is too busy for the database: it says so, and is no failure
CUT = "cut short"  # the head of the answer was through already, and cannot be taken back
CALLERS, BREATH_SECONDS = 6, 0.02
APART_SECONDS = 11.0  # Docker waits ever longer before it restarts what did not last for ten
WAIT_SECONDS = 60.0
SETTLED_SECONDS = 3.0  # without another document: all are there
ASK = """
import sys, urllib.request
body = sys.stdin.buffer.read() or None
request = urllib.request.Request(sys.argv[1], body, {"content-type": "application/json"})
print(urllib.request.urlopen(request).read().decode())
"""


@dataclass(frozen=True)
class Answer:
    at: float  # seconds since 1970, of the question
    seconds: float
    identifier: str
    verdict: str  # right, or what is wrong


def run(*words: str, **more: Any) -> str:
    """Its output; what it says of a failure ends the benchmark."""
    done = subprocess.run(words, capture_output=True, text=True, **more)
    if done.returncode:
        sys.exit(f"{' '.join(words[:3])}: {done.stdout}{done.stderr}")
    return str(done.stdout).strip()


class Stack:
    """Of this project, under a name and on a port of its own where none is given."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        self.name = os.environ.setdefault("COMPOSE_PROJECT_NAME", f"bench-{uuid.uuid4().hex[:8]}")
        self.port = int(os.environ.setdefault("BALANCER_PORT", port))
        run("make", "up")

    def ids(self, service: str) -> list[str]:
        labels = [f"--filter=label=com.docker.compose.{key}={value}"
                  for key, value in (("project", self.name), ("service", service), ("oneoff", "False"))]  # fmt: skip
        return run("docker", "ps", "-q", *labels).split()

    def ask(self, url: str, body: str = "") -> str:
        """From inside, with `body` as JSON."""
        return run("docker", "exec", "-i", self.ids("service")[0], "python", "-c", ASK, url, input=body)

    def up_at(self) -> list[float]:
        """When the balancer found a replica to be ready."""
        log = run("docker", "logs", "--timestamps", self.ids("balancer")[0])
        return [seconds(one) for one in re.findall(r"(?m)^(\S+) Server replicas/\S+ is UP", log)]

    def asked_again(self) -> int:
        """Requests that the balancer sent to a second replica."""
        lines = self.ask("http://balancer:8404/;csv").splitlines()
        place = lines[0].split(",").index("wredis")
        return sum(int(one.split(",")[place]) for one in lines if one.startswith("replicas,BACKEND"))

    def settled(self) -> Counter[str]:
        """Audit documents by request, once there come no more."""
        before, found = Counter[str](), self.documents()
        while before != found:
            time.sleep(SETTLED_SECONDS)
            before, found = found, self.documents()
        return found

    def documents(self) -> Counter[str]:
        found: Counter[str] = Counter()
        after: dict[str, Any] = {}
        while True:
            pages = {"size": 10_000, "sources": [{"id": {"terms": {"field": "http.request.id"}}}], **after}
            body = json.dumps({"size": 0, "aggs": {"requests": {"composite": pages}}})
            self.ask("http://elasticsearch:9200/model-audit-*/_refresh")
            page = json.loads(self.ask("http://elasticsearch:9200/model-audit-*/_search", body))["aggregations"]
            found.update({one["key"]["id"]: one["doc_count"] for one in page["requests"]["buckets"]})
            if "after_key" not in page["requests"]:
                return found
            after = {"after": page["requests"]["after_key"]}

    def kill(self, replica: str) -> tuple[float, float]:
        """SIGKILL from outside: Docker starts it again. When, and seconds until the balancer has it back."""
        before = len(self.up_at())
        process = run("docker", "inspect", "-f", "{{.State.Pid}}", replica)
        image = run("docker", "inspect", "-f", "{{.Image}}", replica)
        where = ["--pid", "host", "--user", "0", "--entrypoint", "sh"]
        run("docker", "run", "--rm", *where, image, "-c", f"kill -9 {process}")
        until = time.monotonic() + WAIT_SECONDS
        while len(ups := self.up_at()) == before:
            if time.monotonic() > until:
                sys.exit(f"{replica} never came back: {run('docker', 'logs', '--tail', '20', replica)}")
            time.sleep(0.2)
        killed = seconds(run("docker", "inspect", "-f", "{{.State.FinishedAt}}", replica))
        return killed, ups[-1] - killed


def seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()


class Callers:
    """Ask all the time, each question in turn, until they are told to stop."""

    def __init__(self, port: int) -> None:
        self.port, self.answers, self._done = port, list[Answer](), threading.Event()
        folder = Path("build/model")
        names = json.loads((folder / "card.json").read_text("utf-8"))["inputs"]
        golden = json.loads((folder / "golden.json").read_text("utf-8"))
        instance = dict(zip(names, golden["instances"][0], strict=True))
        self._due = golden["forecasts"][0]
        self._bodies = {rows: json.dumps({"instances": [instance] * rows}) for rows in (1, 100)}
        self._forecast: Any = None
        self._forecast = self._asked(http.client.HTTPConnection("127.0.0.1", port), 0)[1]["forecasts"]
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(CALLERS)]
        for one in self._threads:
            one.start()

    def stop(self) -> None:
        self._done.set()
        for one in self._threads:
            one.join()

    def _call(self, number: int) -> None:
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_SECONDS)
        while not self._done.wait(BREATH_SECONDS):
            number, at, identifier = number + 1, time.time(), ""
            try:
                verdict, _, identifier = self._judged(line, number % 4)
            except http.client.IncompleteRead:
                verdict = CUT
                line.close()
            except (OSError, http.client.HTTPException, ValueError) as error:
                verdict = repr(error)
                line.close()
            self.answers.append(Answer(at, time.time() - at, identifier, verdict))

    def _asked(self, line: http.client.HTTPConnection, kind: int) -> tuple[int, Any, str]:
        """Status, body and id of the answer."""
        if kind == 0:
            line.request("GET", "/v1/forecast")
        else:
            path, rows = (("/v1/predict", 1), ("/v1/predict", 100), ("/v1/explain", 1))[kind - 1]
            line.request("POST", path, self._bodies[rows], {"content-type": "application/json"})
        response = line.getresponse()
        return response.status, json.loads(response.read()), response.headers["x-request-id"]

    def _judged(self, line: http.client.HTTPConnection, kind: int) -> tuple[str, Any, str]:
        status, body, identifier = self._asked(line, kind)
        if status != 200:
            return f"{status}: {body['detail']}", body, identifier
        if kind == 0 and body["degraded"]:
            return f"{DEGRADED}: {body['degraded']['reason']}", body, identifier
        if kind == 0:
            right = body["forecasts"] == self._forecast
        elif kind == 3:
            told = [[one["value"] for one in row.values()] for row in body["explanations"]]
            right = all(map(self._near, told)) and len(told) == 1
        else:
            told = [list(row.values()) for row in body["predictions"]]
            right = all(map(self._near, told)) and len(told) == (1, 100)[kind - 1]
        return "right" if right else "wrong", body, identifier

    def _near(self, told: list[float]) -> bool:
        return all(math.isclose(one, due, rel_tol=1e-9) for one, due in zip(told, self._due, strict=True))


def judged(answers: list[Answer], kills: list[tuple[float, float]], documents: Counter[str] | None) -> list[Any]:
    """Rows of the report. `kills`: when, and the seconds until the replica was back."""
    verdicts = Counter(one.verdict for one in answers)
    print("", *(f"{count} times {verdict}" for verdict, count in verdicts.most_common(10)), sep="\n", file=sys.stderr)
    stood_in = sum(count for verdict, count in verdicts.items() if verdict.startswith(DEGRADED))
    back = sorted(after for _, after in kills)
    rows = [
        row("requests", len(answers), ""),
        row("failed", len(answers) - verdicts["right"] - stood_in, "", goal=0, least=False),
        row("of these cut short", verdicts[CUT], ""),
        row("answered by a stand-in, marked", stood_in, ""),
        row("longest until an answer", max(one.seconds for one in answers), "s"),
        row("killed until back, median", statistics.median(back), "s", goal=3, least=False),
        row("killed until back, p95", back[math.ceil(0.95 * len(back)) - 1], "s", goal=3, least=False),
    ]
    if documents is None:
        return rows
    told = [one for one in answers if one.verdict.startswith(("right", DEGRADED))]
    missing = [one for one in told if not documents[one.identifier]]
    last = max(at for at, _ in kills)
    since = sum(one.at + one.seconds > last for one in missing)  # by a replica that lives
    ages = [min((at - one.at for at, _ in kills if one.at < at), default=0.0) for one in missing]
    return [
        *rows,
        row("requests with two documents", sum(count > 1 for count in documents.values()), "", goal=0, least=False),
        row("answers since the last kill without a document", since, "", goal=0, least=False),
        row("answers whose document died with a replica", len(missing) - since, ""),
        row("the oldest of them, when it was killed", max(ages, default=0.0), "s"),
    ]


def main() -> None:
    """Measures, prints and writes; a missed goal is reported, never a failure."""
    if not Path("build/image.json").is_file():
        run("make", "load", "train", "image")
    watched = "watch" in os.environ.setdefault("COMPOSE_PROFILES", "watch")
    stack, kills = Stack(), list[tuple[float, float]]()
    try:
        callers = Callers(stack.port)
        try:
            for number in range(KILLS):
                time.sleep(APART_SECONDS)
                replica = sorted(stack.ids("service"))[number % 2]
                kills.append(stack.kill(replica))
                print(f"\rkill {number + 1} of {KILLS}: back after {kills[-1][1]:.1f} s", end="", file=sys.stderr)
        finally:
            callers.stop()
        rows = judged(callers.answers, kills, stack.settled() if watched else None)
        rows.append(row("asked again by the balancer", stack.asked_again(), ""))
    finally:
        run("make", "down")
    report(OUT / "replica.json", rows)


if __name__ == "__main__":
    main()
