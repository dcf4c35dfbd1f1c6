"""Log lines, metrics against the alert rules, and the audit trail, away and against a real server."""

import asyncio
import base64
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from prometheus_client import CollectorRegistry, Counter
from serving import ROOT, SAMPLE, answers, challenge, free_port, make_project, serve, wait_for

from model_service import registry
from model_service.contract import Contract
from model_service.errors import ServiceError, UsageError
from model_service.loader import run
from model_service.store.connection import connect
from model_service.telemetry import Json, Requests, audit
from model_service.telemetry.metrics import Metrics

RULES = ROOT / "ops" / "prometheus"
NOW = datetime(2026, 3, 31, 23, 59, 59, tzinfo=UTC)


class Store(ThreadingHTTPServer):
    """Stands in for Elasticsearch: answers each document by `verdict(id)`, and keeps those that it answers by 201.

    A request of more than `most` bytes is too large for what stands before it.
    """

    def __init__(self, verdict: Callable[[str], int], most: float = float("inf")) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.verdict, self.most = verdict, most
        self.asked: list[str] = []
        self.login: str | None = None
        self.kept: dict[str, dict[str, Any]] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Store

    def do_PUT(self) -> None:  # noqa: N802
        self.server.login = self.headers["authorization"]
        size = int(self.headers["content-length"])
        lines = self.rfile.read(size).splitlines() if size <= self.server.most else []
        items = []
        for action, document in zip(lines[::2], lines[1::2], strict=True):
            identifier = json.loads(action)["create"]["_id"]
            self.server.asked.append(identifier)
            status = self.server.verdict(identifier)
            if status == 201:
                self.server.kept[identifier] = json.loads(document)
            items.append({"create": {"status": status}})
        body = json.dumps({"items": items}).encode()
        self.send_response(200 if lines else 413)
        for name, value in {"X-Elastic-Product": "Elasticsearch", "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_PUT  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "FLUSH_SECONDS", 60.0)  # a loaded machine takes long to import the client
    monkeypatch.setattr(audit, "LINGER_SECONDS", 0.01)
    monkeypatch.setattr(audit, "BACK_OFF_SECONDS", (0.01, 0.02))


@pytest.fixture
def outcome() -> Counter:
    return Counter("audit_documents", "", ["outcome"], registry=CollectorRegistry())


def count(outcome: Counter) -> dict[str, float]:
    return {one.labels["outcome"]: one.value for one in outcome.collect()[0].samples if one.name.endswith("_total")}


def ship(url: str, outcome: Counter, documents: list[dict[str, Any]]) -> None:
    trail = audit.Audit(url, outcome)
    trail.start()
    for document in documents:
        trail.put("request", NOW, document)
    trail.stop()


def test_a_repeat_is_harmless_and_refusals_are_told_apart(quick: None, outcome: Counter) -> None:
    seen: dict[str, int] = {}

    def verdict(identifier: str) -> int:
        """A document that is busy twice and then taken; one that is known; one that can never be taken; a good one."""
        seen[identifier] = seen.get(identifier, 0) + 1
        kinds = list(seen)
        return [429 if seen[identifier] < 3 else 201, 409, 400, 201][kinds.index(identifier)]

    store = Store(verdict)
    ship(store.url, outcome, [{"number": number} for number in range(4)])
    assert count(outcome) == {"stored": 2, "duplicate": 1, "rejected": 1}
    assert sorted(seen.values()) == [1, 1, 1, 3]
    assert all(document["@timestamp"].startswith("2026-03-31T23:59:59") for document in store.kept.values())


def test_the_id_depends_on_request_and_content_and_the_url_holds_the_login(quick: None, outcome: Counter) -> None:
    store = Store(lambda _: 201)
    ship(store.url.replace("//", "//me:s%C3%A9cret@"), outcome, [{"a": 1}, {"a": 1}, {"a": 2}])
    assert store.login == "Basic " + base64.b64encode("me:sécret".encode()).decode()
    assert len(store.asked) == 3
    assert len(store.kept) == 2


@pytest.mark.parametrize("at_a_time", [audit.BATCH_BYTES, 1000])
def test_a_document_too_large_to_be_taken_holds_up_no_other(
    quick: None, outcome: Counter, monkeypatch: pytest.MonkeyPatch, at_a_time: int
) -> None:
    monkeypatch.setattr(audit, "BATCH_BYTES", at_a_time)
    store = Store(lambda _: 201, most=2000)
    ship(store.url, outcome, [{"a": 1}, {"a": "x" * 3000}, *({"a": "y" * 600, "b": number} for number in range(8))])
    assert count(outcome) == {"stored": 9, "rejected": 1}


def test_an_absent_store_costs_documents_and_nothing_else(quick: None, outcome: Counter, monkeypatch: Any) -> None:
    monkeypatch.setattr(audit, "FLUSH_SECONDS", 0.05)
    ship(f"http://127.0.0.1:{free_port()}", outcome, [{"a": 1}, {"a": 2}])
    assert count(outcome) == {"dropped": 2}


def test_the_queue_is_bounded(outcome: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_QUEUED_BYTES", 1000)
    trail = audit.Audit("http://127.0.0.1:1", outcome)
    for _ in range(20):
        trail.put("request", NOW, {"text": "x" * 100})
    assert count(outcome)["dropped"] > 10


def test_what_is_sent_again_takes_its_room_in_the_queue(
    quick: None, outcome: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "MAX_QUEUED_BYTES", 1000)
    monkeypatch.setattr(audit, "FLUSH_SECONDS", 0.05)
    store, documents = Store(lambda _: 429), [{"number": number, "text": "x" * 100} for number in range(20)]
    trail = audit.Audit(store.url, outcome)
    trail.start()
    for document in documents:
        trail.put("request", NOW, document)
    before = count(outcome)["dropped"]
    wait_for(lambda: len(store.asked) > 2 * len(documents))
    for document in documents:
        trail.put("request", NOW, document)
    assert count(outcome)["dropped"] == before + 20
    trail.stop()


def test_what_comes_after_the_last_was_shipped_is_counted(
    quick: None, outcome: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    trail = audit.Audit(Store(lambda _: 201).url, outcome)
    ended = trail._thread.join

    def late(seconds: float) -> None:
        ended(seconds)
        trail.put("request", NOW, {"a": 2}, small=True)

    monkeypatch.setattr(trail._thread, "join", late)
    trail.start()
    trail.put("request", NOW, {"a": 1})
    trail.stop()
    assert count(outcome) == {"stored": 1, "dropped": 1}


def test_without_a_url_nothing_is_kept(outcome: Counter) -> None:
    ship("", outcome, [{"a": 1}])
    assert count(outcome) == {}


def test_an_absent_store_fails_no_prediction_and_one_that_comes_back_gets_all(tmp_path: Path) -> None:
    state = {"status": 503}
    store = Store(lambda _: state["status"])
    made = make_project(tmp_path)
    with serve(made, "uvicorn", ELASTICSEARCH_URL=store.url) as server:
        for number in range(5):
            instance = made.instance | {made.inputs[0]: number}
            assert httpx.post(f"{server.url}/v1/predict", json={"instances": [instance]}).status_code == 200
        assert httpx.get(f"{server.url}/v1/forecast").status_code == 200
        wait_for(lambda: store.asked)  # it was refused
        state["status"] = 201
        assert server.stop() in (0, -15)  # (uvicorn ends by the signal itself) what was queued is shipped first
    assert len(store.kept) == 6
    forecast = next(document for document in store.kept.values() if document["route"] == "/v1/forecast")
    assert forecast["degraded"] == {"reason": "database_away", "source": "last_forecast"}
    predict = next(document for document in store.kept.values() if document["route"] == "/v1/predict")
    assert predict["model"]["version"] == "fake"
    assert predict["inputs"]["names"] == made.inputs and len(predict["inputs"]["rows"][0]) == len(made.inputs)
    assert set(predict["output"][0]) == {f"horizon_{horizon}" for horizon in made.horizons}


@pytest.fixture(scope="module")
def elasticsearch() -> Iterator[str]:
    """URL of a real server: ELASTICSEARCH_URL, or a container of ELASTICSEARCH_IMAGE."""
    if url := os.environ.get("ELASTICSEARCH_URL"):
        yield url
        return
    image = os.environ.get("ELASTICSEARCH_IMAGE", "docker.elastic.co/elasticsearch/elasticsearch:9.5.3")
    if not _held(image):
        pytest.skip(f"needs Elasticsearch: ELASTICSEARCH_URL, or Docker with the image {image}")
    name = f"audit-{uuid.uuid4().hex[:12]}"
    settings = ("discovery.type=single-node", "xpack.security.enabled=false", "ES_JAVA_OPTS=-Xms256m -Xmx256m")
    options = [word for setting in settings for word in ("-e", setting)]
    start = ["docker", "run", "-d", "--rm", "--name", name, "-p", "127.0.0.1::9200", *options, image]
    subprocess.run(start, check=True, capture_output=True)
    try:
        said = subprocess.run(["docker", "port", name, "9200"], check=True, capture_output=True, text=True).stdout
        url = f"http://{said.split()[0]}"
        wait_for(lambda: answers(url), 120)
        yield url
    finally:
        subprocess.run(["docker", "rm", "-f", "-v", name], capture_output=True)


def test_every_answer_is_stored_once_in_a_real_server(
    elasticsearch: str, contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_project(tmp_path)
    monkeypatch.setenv("ELASTICSEARCH_URL", elasticsearch)
    monkeypatch.setenv("PROJECT_ROOT", str(made.root))
    assert audit.install(contract) == audit.install(contract) == "model-audit"
    before = _stored(elasticsearch)
    asked = 700  # more than one bulk
    with serve(made, "uvicorn", ELASTICSEARCH_URL=elasticsearch) as server, httpx.Client(base_url=server.url) as client:
        for number in range(asked):
            client.post("/v1/predict", json={"instances": [made.instance | {made.inputs[0]: number / asked}]})
        client.get("/v1/forecast")
        assert client.post("/v1/predict", json={"instances": []}).status_code == 422  # no answer, no document
        stored = 'audit_documents_total{outcome="stored"}'
        wait_for(lambda: server.metrics().get(stored, 0) >= asked + 1, 60)
        fates = {name: many for name, many in server.metrics().items() if name.startswith("audit_documents_total")}
        assert fates.pop(stored) == asked + 1 and not any(fates.values())
    assert _stored(elasticsearch) - before == asked + 1
    strange = httpx.post(f"{elasticsearch}/model-audit-2026.01/_doc", json={"@timestamp": 0, "unknown": 1})
    assert strange.status_code == 400  # the mapping is strict


def test_a_challengers_records_are_found_in_a_real_server_once_a_request(
    elasticsearch: str, contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_project(tmp_path)
    challenge(made, -made.weights)
    monkeypatch.setenv("ELASTICSEARCH_URL", elasticsearch)
    monkeypatch.setenv("PROJECT_ROOT", str(made.root))
    audit.install(contract)
    asked = [*(f"{tmp_path.name}-{number}" for number in range(20)), f"{tmp_path.name}-0"]  # the last is a retry
    with serve(made, "uvicorn", ELASTICSEARCH_URL=elasticsearch) as server, httpx.Client(base_url=server.url) as client:
        digest = wait_for(lambda: client.get("/v1/model").json()["challenger"]["digest"])
        for identifier in asked:
            client.post("/v1/predict", json={"instances": [made.instance]}, headers={"x-request-id": identifier})
        fates = ("stored", "duplicate", "rejected", "dropped")
        fate = {name: f'audit_documents_total{{outcome="{name}"}}' for name in fates}
        wait_for(lambda: sum(server.metrics()[one] for one in fate.values()) == 2 * len(asked), 60)
        assert [server.metrics()[one] for one in fate.values()] == [40, 2, 0, 0]
    assert _stored(elasticsearch, f"kind:shadow AND difference:>0 AND challenger.digest:%22{digest}%22") == 20


def _stored(url: str, query: str = "*") -> int:
    httpx.post(f"{url}/model-audit-*/_refresh")
    return int(httpx.get(f"{url}/model-audit-*/_count?q={query}").json()["count"])


def test_install_says_what_is_missing(contract: Contract, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ELASTICSEARCH_URL", raising=False)
    with pytest.raises(UsageError, match="ELASTICSEARCH_URL is not set"):
        audit.install(contract)
    monkeypatch.setenv("ELASTICSEARCH_URL", f"http://user:s3cret@127.0.0.1:{free_port()}")
    with pytest.raises(ServiceError, match="does not answer") as raised:
        audit.install(contract)
    assert "s3cret" not in str(raised.value)


def test_onnx_runtime_reports_nothing_to_its_maker(tmp_path: Path) -> None:
    """Where it does, it keeps an id of the machine and what it has not sent yet in the user's home."""
    env = {name: value for name, value in os.environ.items() if name not in {"ORT_DISABLE_TELEMETRY", "CI"}}
    env |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, "-c", "import model_service.artifact"], env=env, check=True)
    assert list(tmp_path.iterdir()) == []


def test_telemetry_knows_nothing_of_what_serves() -> None:
    code = (path.read_text("utf-8") for path in (ROOT / "src" / "model_service" / "telemetry").glob("*.py"))
    assert "model_service.serving" not in "".join(code)


def test_a_log_line_holds_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:p%40ss@db/x")
    monkeypatch.setenv("PGPASSWORD", "p@ss and more")
    says = "no login with p%%40ss, p@ss or p@ss and more at %s"
    record = logging.LogRecord("x", logging.ERROR, "f", 1, says, ("db",), None)
    line = json.loads(Json("svc").format(record))
    assert line["message"] == "no login with ***, *** or *** at db"
    assert line["log.level"] == "error" and line["service.name"] == "svc"


@pytest.mark.parametrize(
    ("password", "written"), [("20", "20"), ('a"b\\c', "a%22b%5Cc")], ids=["digits", "escaped in JSON"]
)
def test_whatever_the_password_is_a_line_stays_json_and_holds_none(
    monkeypatch: pytest.MonkeyPatch, password: str, written: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgresql://me:{written}@db/x")
    record = logging.LogRecord("x", logging.ERROR, "f", 1, "no login with %s", (password,), None)
    record.ecs, record.process = {"event.reason": f"by {password}", "event.count": 2020}, 2020
    line = json.loads(Json("svc").format(record))
    assert (line["message"], line["event.reason"], line["event.count"]) == ("no login with ***", "by ***", 2020)
    assert datetime.fromisoformat(line["@timestamp"]).year >= 2026


def test_a_log_that_takes_no_line_does_not_keep_the_metrics_from_being_read(
    contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics(contract.alerts)

    async def answer() -> bytes:
        Requests("svc", logging.getLogger(), metrics).put("GET", "/v1/x", "/v1/x", 200, 1000)
        return metrics.text()

    monkeypatch.setattr(logging.getLogger(), "level", logging.INFO)
    with Path("/dev/full").open("w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        scraped = asyncio.run(answer())
        patch.undo()
        with suppress(OSError):
            full.close()
    assert b'http_requests_total{method="GET",route="/v1/x",status="200"} 1.0' in scraped


def test_every_metric_of_a_rule_is_in_a_live_scrape(url: str, contract: Contract, tmp_path: Path) -> None:
    run.load(contract, url, SAMPLE, lambda _: None)
    made = make_project(tmp_path)
    with connect(url, "loader") as connection:
        version = registry.register(connection, tmp_path / "build" / "model", "test")
        registry.promote(connection, version, "promote", "test")
    with psycopg.connect(url) as owner:  # half a year of forecasts, each told in time
        owner.execute(
            "INSERT INTO forecast (made_at, model_digest, known_at, data_version, series, horizon, valid_time, value,"
            " intervals) SELECT '2015-01-01', 'x', '2015-01-01', 'x', 'UNRATE', 1, month, 5, '[]'"
            " FROM generate_series('2015-12-01', '2016-05-01', interval '1 month') month"
        )
    with serve(made, "uvicorn", DATABASE_URL=url) as server:
        httpx.get(f"{server.url}/v1/forecast")
        wait_for(lambda: "database_up" in server.metrics())
        live = server.metrics()
    assert live["champion_is_serving"] == 1
    assert live['dataset_stale{dataset="us_macro",state="frozen"}'] == 1  # the sample is of 2016
    assert live['quarantine_open{rule="vintage_conflict"}'] == 0
    assert (live['live_forecasts{horizon="1"}'], live['live_forecasts{horizon="3"}']) == (6, 0)
    assert live['live_rmse_ratio{horizon="1"}'] == pytest.approx(live['live_rmse{horizon="1",release="latest"}'] / 0.1)
    words = set(re.findall(r"[a-z_]+(?=[{\[]| > ignoring)", (RULES / "rules.yml").read_text("utf-8")))
    named = {word for word in words if word not in {"up", "absent"}}
    assert named >= {"http_requests_total", "http_request_duration_seconds_bucket", "data_age_seconds", "alert_limit",
                     "dataset_stale", "quarantine_open", "live_rmse_ratio"}  # fmt: skip
    assert named <= {name.split("{")[0] for name in live}


def test_the_alert_rules_fire_and_stay_silent() -> None:
    assert _promtool(RULES)[0] == 0


def test_the_rules_tests_can_fail(tmp_path: Path) -> None:
    folder = tmp_path / "rules"
    shutil.copytree(RULES, folder)
    text = (folder / "rules.yml").read_text("utf-8")
    for old, new in (("data_age_seconds >", "data_age_seconds <"), ("0.99, sum", "0.50, sum"), (") < 2", ") < 1"),
                     (" or vector(0)", ""), ('up{job="service"} == 1', 'up{job="service"}'),
                     ('"service"}) > 0', '"service"}) > 2'), ('conflict"}) > 0', 'conflict"}) > 3'),
                     ("> on () group_left", "< on () group_left"), ('"line_.*|threads_lost"', '"nothing"'),
                     ('"line_.*|threads_lost"', '".*"'), ("/infer", "/other"), ('"service"} == 0', '"service"} == 2'),
                     ('"service"} == 0', '"service"} >= 0'), ('"dropped|rejected"', '"rejected"'),
                     ('"dropped|rejected"', '".*"')):  # fmt: skip
        (folder / "rules.yml").write_text(text.replace(old, new), "utf-8")
        assert _promtool(folder)[0] == 1, old


def _held(image: str) -> bool:
    """Whether there is Docker, and the image in it: a test pulls nothing."""
    inspect = ["docker", "image", "inspect", image]
    return bool(shutil.which("docker")) and subprocess.run(inspect, capture_output=True).returncode == 0


def _promtool(folder: Path) -> tuple[int, str]:
    image = os.environ.get("PROMETHEUS_IMAGE", "prom/prometheus:v3.5.0")
    if shutil.which("promtool"):
        command = ["promtool"]
    elif _held(image):
        command = ["docker", "run", "--rm", "-v", f"{folder}:{folder}:ro", "--entrypoint", "promtool", image]
    else:
        pytest.skip(f"needs promtool, or Docker with the image {image}")
    done = subprocess.run([*command, "test", "rules", f"{folder}/rules_test.yml"], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr
