"""A replica that dies takes no request with it: the balancer asks the next one, and the record has it once."""

import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import ROOT, BakedProject, image, missing
from test_stack import KEYS, Stack, copied, docker

pytestmark = [pytest.mark.docker, pytest.mark.python, pytest.mark.haproxy]
KILLS = "3"
# Answers with the request's id and the length of its body; or, told to, says its id and hangs up. Always ready.
REPLICA = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Replica(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        length = len(self.rfile.read(int(self.headers["content-length"] or 0)))
        if self.path != "/readyz" and sys.argv[1] == "dies":
            print(self.headers["x-request-id"], flush=True)
            self.close_connection = True
            return
        body = json.dumps([self.headers["x-request-id"], length]).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_POST = do_GET
    def log_message(self, *_): ...
server = ThreadingHTTPServer(("", 3000), Replica)
print("listens", flush=True)
server.serve_forever()
"""


class Balancer:
    """The project's balancer before two replicas, one of which hangs up on whoever asks."""

    def __init__(self, config: str, folder: Path) -> None:
        self.name = f"om-{uuid.uuid4().hex[:8]}"
        docker("network", "create", self.name)
        where = ["--network", self.name, "--network-alias", "service", image("PYTHON_IMAGE"), "python3", "-c", REPLICA]
        self.ids = [docker("run", "-d", *where, kind).strip() for kind in ("dies", "answers")]
        for number in (0, 1):
            self.logs(number, "listens")
        file = folder / "haproxy.cfg"
        file.write_text(config, "utf-8")
        file.chmod(0o644)
        where = ["--network", self.name, "-p", "127.0.0.1:0:8080", "-e", "ANSWER_SECONDS=10"]
        self.ids.append(docker("create", *where, image("HAPROXY_IMAGE")).strip())
        docker("cp", str(file), f"{self.ids[-1]}:/usr/local/etc/haproxy/haproxy.cfg")
        docker("start", self.ids[-1])
        self.url = f"http://127.0.0.1:{docker('port', self.ids[-1], '8080').split(':')[-1].strip()}"
        self.logs(-1, "is UP/READY", 2)

    def logs(self, number: int, what: str, times: int = 1) -> str:
        """Of that container, once `what` stands there so many times."""
        until = time.monotonic() + 60
        while (said := docker("logs", self.ids[number], check=False)).count(what) < times:
            assert time.monotonic() < until, said
            time.sleep(0.1)
        return said

    def hung_up_on(self) -> list[str]:
        """Ids of the requests that the one which dies was asked."""
        return docker("logs", self.ids[0]).split()[1:]

    def remove(self) -> None:
        docker("rm", "-f", *self.ids)
        docker("network", "rm", self.name)


@pytest.fixture
def balancer(default: BakedProject, tmp_path: Path) -> Iterator[Callable[[str], Balancer]]:
    """One with the project's configuration, without the lines that match."""
    made: list[Balancer] = []

    def make(without: str = "$never") -> Balancer:
        made.append(Balancer(re.sub(rf"(?m)^{without}\n", "", default.text("ops/haproxy.cfg")), tmp_path))
        return made[-1]

    yield make
    for one in made:
        one.remove()


def test_what_a_dying_replica_was_asked_the_next_one_answers_under_the_same_id(balancer: Any) -> None:
    ours, answered = balancer(), []
    with httpx.Client(base_url=ours.url, headers={"X-Request-ID": "the-callers-own"}, timeout=30) as client:
        for size in [0, 1, 1_000, 100_000, 250_000] * 6:
            response = client.post("/v1/predict", content=b"x" * size) if size else client.get("/v1/forecast")
            identifier, length = response.raise_for_status().json()
            assert length == size
            answered.append(identifier)
    assert len(set(answered)) == len(answered) and "the-callers-own" not in answered
    hung_up_on = ours.hung_up_on()
    assert len(hung_up_on) > 5 and set(hung_up_on) <= set(answered)


def test_what_is_too_large_to_be_kept_goes_through_once(balancer: Any) -> None:
    ours = balancer()
    with httpx.Client(base_url=ours.url, timeout=30) as client:
        found = [client.post("/v1/predict", content=b"x" * 1_000_000) for _ in range(10)]
    good = [one.json()[0] for one in found if one.status_code == 200]
    failed = [one.json()["request_id"] for one in found if one.status_code == 502]
    assert len(good) + len(failed) == 10 and good
    assert sorted(failed) == sorted(ours.hung_up_on())
    assert all(one.headers["retry-after"] for one in found if one.status_code == 502)


def test_without_the_rule_that_asks_again_requests_fail(balancer: Any) -> None:
    ours = balancer(without=" *retry-on .*")
    with httpx.Client(base_url=ours.url, timeout=30) as client:
        found = [client.post("/v1/predict", content=b"x").status_code for _ in range(10)]
    assert set(found) == {200, 502}


def test_who_waits_for_a_replica_waits_longer_than_it_may_take(built: BakedProject, tmp_path: Path) -> None:
    """Whatever its contract says: the engine until it kills a container, the balancer until it gives an answer up."""
    project = copied(built, tmp_path / "slow")
    project.edit("service.toml", "timeout_seconds = 2.0 ", "timeout_seconds = 42.5 ")
    project.edit("service.toml", "drain_seconds = 1.5 ", "drain_seconds = 20 ")
    env = dict.fromkeys(("SERVICE_IMAGE", "LOADER_IMAGE", *KEYS), "x") | {"PYTHONPATH": ""}
    made = project.run("bash", "-c", ". ops/lib.sh && compose config --format json", env=env)
    services = json.loads(made.stdout)["services"]
    assert services["service"]["stop_grace_period"] == "1m14s"  # 20 s, 42.5 s, and 10 s for the audit trail
    assert services["balancer"]["environment"]["ANSWER_SECONDS"] == "48"


@pytest.fixture(scope="module")
def shot(built: BakedProject, workshop: Path) -> Iterator[dict[str, float]]:
    """What `make bench-replica` finds, with few kills."""
    project = copied(built, workshop / "replica")
    stack = Stack(project, watch=not (missing("prometheus") or missing("elasticsearch")))
    try:
        project.make("image")
        env = {"KILLS": KILLS, "OUT": str(workshop / "shot")}
        env |= {} if "COMPOSE_PROFILES" in project.env else {"COMPOSE_PROFILES": ""}
        project.run(project.python, ROOT / "benchmarks/replica.py", env=env)
        rows = json.loads((workshop / "shot/replica.json").read_text("utf-8"))
        yield {row["name"]: row["value"] for row in rows}
    finally:
        stack.remove()


@pytest.mark.timescale
def test_a_replica_that_is_shot_costs_no_request_and_comes_back(shot: dict[str, float]) -> None:
    assert shot["requests"] > 500
    assert shot["failed"] == 0
    assert shot["asked again by the balancer"] > 0, "the shots were felt"
    assert shot["killed until back, p95"] > 0


@pytest.mark.timescale
@pytest.mark.elasticsearch
@pytest.mark.prometheus
def test_a_request_that_was_asked_again_is_on_record_once(shot: dict[str, float]) -> None:
    assert shot["requests with two documents"] == 0
    assert shot["answers since the last kill without a document"] == 0
