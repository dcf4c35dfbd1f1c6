"""The contract of the running service, the same whether BentoML serves it, uvicorn, or a container at SERVICE_URL."""

import asyncio
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from serving import DEAD, POISON, SAMPLE, Project, Server, make_project, serve, wait_for
from test_report import Seen

from model_service import artifact, explain
from model_service.contract import Contract
from model_service.loader import run
from model_service.serving import protocol, runtime
from model_service.serving.runtime import Runtime

WAYS = ["given"] if os.environ.get("SERVICE_URL") else ["uvicorn", "bentoml"]
LIMIT = 50_000
MOST = 20


@dataclass
class Running:
    client: httpx.Client
    inputs: list[str]
    horizons: list[int]
    made: Project | None = None  # None for a service that was given: its model is not ours
    server: Server | None = None

    @property
    def instance(self) -> dict[str, float]:
        return {name: float(number % 5) for number, name in enumerate(self.inputs)}

    def ours(self) -> tuple[Project, Server]:
        if self.made is None or self.server is None:
            pytest.skip("the service at SERVICE_URL holds a model and a database that are not the test's")
        return self.made, self.server


@pytest.fixture(scope="module", params=WAYS)
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    if request.param == "given":
        with httpx.Client(base_url=os.environ["SERVICE_URL"]) as client:
            card = client.get("/v1/model").json()
            yield Running(client, card["inputs"], card["horizons"])
        return
    made = make_project(tmp_path_factory.mktemp("service"), max_body_bytes=LIMIT, max_instances=MOST)
    with serve(made, request.param) as server, httpx.Client(base_url=server.url) as client:
        yield Running(client, made.inputs, made.horizons, made, server)


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """The problem document of `response`, after what holds for every one of them."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == status
    assert body["title"] and body["detail"]
    assert body["instance"] == response.request.url.path
    assert body["request_id"] == response.headers["x-request-id"]
    assert (status in {429, 503}) == ("retry-after" in response.headers)
    return body


def fields(response: httpx.Response) -> list[str]:
    return [wrong["field"] for wrong in problem(response, 422)["errors"]]


@pytest.mark.ml_test("infra-6")
def test_probes_answer_with_our_documents(service: Running) -> None:
    assert service.client.get("/livez").json() == {"status": "alive"}
    ready = service.client.get("/readyz").json()
    assert ready["status"] == "ready"
    assert ready["model"]["digest"] == service.client.get("/v1/model").json()["digest"]


def test_model_names_what_a_caller_and_an_auditor_need(service: Running) -> None:
    card = service.client.get("/v1/model").json()
    assert {"service", "version", "digest", "image_digest", "horizons", "target", "trained_as_of"} <= set(card)
    assert card["digest"].startswith("sha256:")
    assert card["inputs"] == service.inputs


def test_docs_list_the_routes(service: Running) -> None:
    assert service.client.get("/docs").status_code == 200
    paths = service.client.get("/openapi.json").json()["paths"]
    assert {"/v1/forecast", "/v1/predict", "/v1/model", "/report", "/livez", "/readyz", "/metrics"} <= set(paths)


def test_docs_need_no_other_host(service: Running) -> None:
    page = service.client.get("/docs").text
    assert "url: '/openapi.json'" in page and "//" not in page
    parts = {part.rpartition("/")[2]: service.client.get(part) for part in Seen(page).outside}
    assert {name: (part.status_code, len(part.content) > 1000) for name, part in parts.items()} == {
        "swagger-ui.css": (200, True), "swagger-ui-bundle.js": (200, True), "favicon.png": (200, True)
    }  # fmt: skip
    style = parts["swagger-ui.css"].text
    assert "@import" not in style and re.findall(r"url\((?!\"?data:)", style) == []
    assert problem(service.client.get("/redoc"), 404)  # it would show a picture from its maker's host


def test_the_report_of_the_model_is_a_page(service: Running) -> None:
    made, server = service.ours()
    page = service.client.get("/report")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.text == "<!doctype html><title>Made up</title>"
    assert any("/report" in line["message"] for line in server.lines() if "model" in line["message"])
    served = max(made.root.rglob("report.html"), key=lambda path: "bentos" in path.parts)
    away = served.rename(served.with_suffix(".away"))
    try:
        assert "make build" in problem(service.client.get("/report"), 404)["detail"]
        assert service.client.get("/readyz").status_code == 200  # the model is whole without it
    finally:
        away.rename(served)


def test_predict_answers_in_the_order_of_the_instances(service: Running) -> None:
    shuffled = dict(reversed(service.instance.items()))
    other = dict.fromkeys(service.inputs, 1)
    answer = service.client.post("/v1/predict", json={"instances": [shuffled, other, service.instance]}).json()
    assert answer["model"]["digest"] == service.client.get("/v1/model").json()["digest"]
    first, second, third = answer["predictions"]
    assert set(first) - {"out_of_range"} == {f"horizon_{horizon}" for horizon in service.horizons}
    assert first == third != second
    made, _ = service.ours()
    assert [first[f"horizon_{h}"] for h in made.horizons] == pytest.approx(made.expected)


def test_an_input_outside_the_range_of_training_is_marked(service: Running) -> None:
    service.ours()
    seen, strange = (service.instance | {service.inputs[2]: value} for value in (10.0, 11.0))  # the largest, and beyond
    answer = service.client.post("/v1/predict", json={"instances": [seen, strange]}).json()
    assert "out_of_range" not in answer["predictions"][0]
    assert answer["predictions"][1]["out_of_range"] == [service.inputs[2]]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("null", "null"),
        ("NaN", "not finite"),
        ("-Infinity", "not finite"),
        ("1e999", "not finite"),
        ("1" + "0" * 400, "too large"),
        ('"4.7"', "str"),
        ("true", "bool"),
        ("[1]", "list"),
    ],
)
def test_a_value_that_is_no_number_is_refused_by_name(service: Running, value: str, says: str) -> None:
    name = service.inputs[1]
    wrong = json.dumps(service.instance | {name: "@"}).replace('"@"', value)
    body = f'{{"instances": [{json.dumps(service.instance)}, {wrong}]}}'
    response = service.client.post("/v1/predict", content=body, headers={"content-type": "application/json"})
    assert fields(response) == [f"instances.1.{name}"]
    assert says in response.json()["detail"]


def test_missing_extra_and_too_many_are_refused_by_name(service: Running) -> None:
    first, *others = service.inputs
    missing = dict.fromkeys(others, 0.0)
    post = service.client.post
    assert fields(post("/v1/predict", json={"instances": [missing]})) == [f"instances.0.{first}"]
    extra = service.instance | {"surplus": 1.0}
    assert fields(post("/v1/predict", json={"instances": [extra]})) == ["instances.0.surplus"]
    renamed = missing | {"surplus": 1.0}
    assert fields(post("/v1/predict", json={"instances": [renamed]})) == [f"instances.0.{first}", "instances.0.surplus"]
    assert fields(post("/v1/predict", json={"instances": []})) == ["instances"]
    assert fields(post("/v1/predict", json={"instances": 3})) == ["instances"]
    assert fields(post("/v1/predict", json={})) == ["instances"]
    assert fields(post("/v1/predict", json={"instances": [1]})) == ["instances.0"]
    assert fields(post("/v1/predict", json={"instances": [service.instance], "more": 1})) == ["more"]
    assert "errors" in problem(post("/v1/predict", json=[1]), 422)
    many = post("/v1/predict", json={"instances": [{}] * 1001})
    assert fields(many) == ["instances"]
    assert "at most" in many.json()["detail"]


def test_as_many_instances_as_are_allowed_are_taken_and_no_more(service: Running) -> None:
    service.ours()  # its limit, of which a body has room for as many
    post, (first, *_), most = service.client.post, service.inputs, [service.instance] * MOST
    assert post("/v1/predict", json={"instances": most}).status_code == 200
    missing = {name: value for name, value in service.instance.items() if name != first}
    answer = post("/v1/predict", json={"instances": [*most[1:], missing]})
    assert fields(answer) == [f"instances.{MOST - 1}.{first}"]
    assert fields(post("/v1/predict", json={"instances": [*most, service.instance]})) == ["instances"]


TWICE = b'{"instances": [{"a": 1, "a": 2}]}'
FEW = '{"instances": []}'


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b'{"instances": [' + b"[" * 20_000, TWICE, FEW.encode("utf-16"), FEW.encode("utf-8-sig"),
     b'{"instances": [{"a": ' + b"1" * 5_000 + b"}]}"],
    ids=["empty", "cut", "no text", "deep", "twice", "utf-16", "mark", "digits"],
)  # fmt: skip
def test_a_body_that_is_not_json_is_400(service: Running, body: bytes) -> None:
    problem(service.client.post("/v1/predict", content=body, headers={"content-type": "application/json"}), 400)


def test_an_input_that_stands_twice_is_400_though_all_are_there(service: Running) -> None:
    once = json.dumps({"instances": [service.instance]})
    name = json.dumps(service.inputs[0])
    assert service.client.post("/v1/predict", content=once).status_code == 200
    problem(service.client.post("/v1/predict", content=once.replace(f"{{{name}", f"{{{name}: 2.0, {name}")), 400)


def test_half_a_surrogate_pair_goes_back_as_the_escape_that_it_came_as(service: Running) -> None:
    answer = service.client.post("/v1/predict", content=r'{"instances": [], "\ud800": 1}')
    assert fields(answer) == ["\ud800"]


def test_another_content_type_is_415(service: Running) -> None:
    problem(service.client.post("/v1/predict", data={"a": "b"}), 415)


@pytest.mark.parametrize("announced", [True, False], ids=["content-length", "chunked"])
def test_a_body_above_the_limit_is_413(service: Running, announced: bool) -> None:
    size = 1_200_000
    body = b" " * size if announced else (b" " * 10_000 for _ in range(size // 10_000))
    kind = {"content-type": "application/json"}
    problem(service.client.post("/v1/predict", content=body, headers=kind), 413)
    whole = json.dumps({"instances": [service.instance]}).encode().ljust(LIMIT)
    body = whole if announced else iter([whole[:9], whole[9:]])
    assert service.client.post("/v1/predict", content=body, headers=kind).status_code == 200


def test_unknown_path_and_wrong_method(service: Running) -> None:
    for path in ("/nowhere", "/v1", "/v1/forecast/", "/healthz", "/schema.json"):
        problem(service.client.get(path), 404)
    refused = service.client.get("/v1/predict")
    problem(refused, 405)
    assert refused.headers["allow"] == "POST"
    problem(service.client.post("/livez"), 405)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("horizon=99", "horizon"),
        ("horizon=x", "horizon.0"),
        ("horizons=1", "horizons"),
        ("as_of=yesterday", "as_of"),
        ("as_of=2016-02-30", "as_of"),
        ("as_of=2016-07-01&as_of=2016-07-02", "as_of"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(service: Running, query: str, field: str) -> None:
    response = service.client.get(f"/v1/forecast?{query}")
    assert fields(response) == [field]
    if field == "horizon":
        assert str(service.horizons) in response.json()["detail"]


def test_the_request_id_is_the_callers_when_sane(service: Running) -> None:
    for given in ("abc-1.2_3", "x" * 128):
        assert service.client.get("/livez", headers={"X-Request-ID": given}).headers["x-request-id"] == given
    for bad in ("a b", "x" * 129, '"'):
        assert len(service.client.get("/livez", headers={"X-Request-ID": bad}).headers["x-request-id"]) == 32


def test_many_urls_make_few_series(service: Running) -> None:
    for number in range(50):
        service.client.get(f"/v1/{number}")
        service.client.request(f"ODD{number}", "/livez")
    service.client.request("PURGE", "/livez")
    text = service.client.get("/metrics").text
    assert "/v1/7" not in text and "ODD" not in text
    assert 'http_requests_total{method="other",route="/livez",status="405"}' in text
    assert len([line for line in text.splitlines() if line[0] != "#"]) < 300


def test_a_model_that_fails_is_503_and_the_log_has_its_cause(service: Running) -> None:
    _, server = service.ours()
    poisoned = service.instance | {service.inputs[0]: 2 * POISON}
    response = service.client.post("/v1/predict", json={"instances": [poisoned]})
    identifier = problem(response, 503)["request_id"]
    lines = server.of_request(identifier)
    assert [line for line in lines if "error.stack_trace" in line]
    assert lines[-1]["http.response.status_code"] == 503


def test_without_its_database_the_service_says_so(service: Running) -> None:
    _, server = service.ours()
    before = server.metrics().get('degraded_total{reason="database_away"}', 0)
    answer = service.client.get("/v1/forecast", params={"horizon": service.horizons[1]})
    assert answer.status_code == 200
    assert answer.json()["degraded"] == {"reason": "database_away", "source": "last_forecast"}
    assert [part["horizon"] for part in answer.json()["forecasts"]] == [service.horizons[1]]
    assert server.metrics()['degraded_total{reason="database_away"}'] == before + 1
    problem(service.client.get("/v1/forecast?as_of=2016-07-01"), 503)
    problem(service.client.get("/v1/forecast?data_version=sha256:" + "0" * 64), 503)


def test_every_line_is_json_and_names_its_request(service: Running) -> None:
    _, server = service.ours()
    service.client.get("/v1/forecast", headers={"X-Request-ID": "seen-in-the-log"})
    ours = server.of_request("seen-in-the-log")
    lines = server.lines()  # raises when a line is not JSON
    assert all({"@timestamp", "log.level", "message", "service.name", "ecs.version"} <= set(line) for line in lines)
    assert len(ours) == 3  # the database's refusal, the stand-in, the answer
    assert ours[-1]["http.response.status_code"] == 200
    assert ours[-1]["url.path"] == "/v1/forecast" and ours[-1]["http.request.method"] == "GET"
    assert isinstance(ours[-1]["event.duration"], int) and ours[-1]["event.duration"] > 0
    assert "s3cret" not in server.out.read_text("utf-8")


def test_the_training_stack_is_not_in_the_process(service: Running) -> None:
    _, server = service.ours()
    pids = {line["process.pid"] for line in server.lines()}
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc to look into a running process")
    maps = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in pids if Path(f"/proc/{pid}/maps").exists())
    assert "onnxruntime" in maps  # the control: this is how a loaded package is seen
    assert not [name for name in ("sklearn", "scipy", "pandas", "matplotlib") if f"/{name}/" in maps]


def test_a_corrupted_model_is_not_ready(service: Running) -> None:
    made, _ = service.ours()
    served = max(made.root.rglob("model.onnx"), key=lambda path: "bentos" in path.parts)  # the Bento's, if there is one
    whole = served.read_bytes()
    try:
        served.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert "model.onnx" in problem(service.client.get("/readyz"), 503)["detail"]
        assert service.client.get("/livez").status_code == 200
    finally:
        served.write_bytes(whole)
    assert service.client.get("/readyz").status_code == 200


@pytest.mark.skipif("bentoml" not in WAYS, reason="SERVICE_URL is set: nothing is built or started here")
def test_a_port_that_is_taken_and_a_missing_bento_are_named(service: Running) -> None:
    made, server = service.ours()
    port = server.url.rsplit(":", 1)[1]
    bentos = made.root / ".local" / "bentoml" / "bentos"
    env = os.environ | {"PYTHONPATH": str(made.root / "src"), "DATABASE_URL": DEAD, "PORT": port}
    command = [sys.executable, "-m", "model_service", "serve"]
    done = subprocess.run(command, cwd=made.root, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert (f"port {port} is taken" if bentos.is_dir() else "make build") in done.stderr


@pytest.mark.parametrize("entry", ["app", "service"])
def test_a_serving_process_neither_trains_nor_unpickles(entry: str, tmp_path: Path) -> None:
    made = make_project(tmp_path)
    names = ("pandas", "sklearn", "scipy", "joblib", "matplotlib")
    for name in names:  # there to be imported, whatever is installed
        (tmp_path / "there" / name).mkdir(parents=True)
        (tmp_path / "there" / name / "__init__.py").touch()
    code = f"""
import bentoml, importlib, pickle
harmless = pickle.dumps(len)
pickle.loads(harmless)  # the control: it works until the service is imported
import model_service.serving.{entry}
for name in {names}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{{name}} can be imported")
try:
    pickle.loads(harmless)
except PermissionError:
    print("sealed")
"""
    env = os.environ | {"PYTHONPATH": f"{made.root / 'src'}:{tmp_path / 'there'}"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "sealed\n"), done.stderr


def test_a_model_corrupt_from_the_start_leaves_a_process_that_says_so(tmp_path: Path) -> None:
    made = make_project(tmp_path)
    (made.root / "build" / "model" / "card.json").write_bytes(b"{}")
    with serve(made, "uvicorn") as server:
        for path in ("/readyz", "/v1/model", "/v1/forecast"):
            assert "card.json" in problem(httpx.get(server.url + path), 503)["detail"]
        problem(httpx.post(f"{server.url}/v1/predict", json={"instances": [made.instance]}), 503)


def test_a_model_that_comes_late_is_told_of_once_it_answers(
    tmp_path: Path, contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, honest, go_on = make_project(tmp_path), artifact.load, threading.Event()

    def slow(folder: Path) -> artifact.Model:
        go_on.wait(10)
        return honest(folder)

    async def late() -> Runtime:
        state = Runtime(contract, made.root / "build" / "model")
        await state.start()
        assert state.metrics.facts.model is None
        go_on.set()
        while state._predictor is None:
            await asyncio.sleep(0.01)
        await state.stop()
        return state

    monkeypatch.setenv("DATABASE_URL", DEAD)
    monkeypatch.setattr(runtime, "START_SECONDS", 0.1)
    monkeypatch.setattr(artifact, "load", slow)
    state = asyncio.run(late())
    assert b'model_info{digest="' + state.model.digest.encode() in state.metrics.text()


def test_a_version_that_cannot_be_read_leaves_a_process_that_says_so(tmp_path: Path) -> None:
    made = make_project(tmp_path)
    (made.root / "build" / "model" / artifact.REGISTRY).write_text("{", "utf-8")
    with serve(made, "uvicorn") as server:
        assert artifact.REGISTRY in problem(httpx.get(f"{server.url}/readyz"), 503)["detail"]


@pytest.mark.ml_test("infra-6", sabotage=True)
def test_golden_examples_that_do_not_come_out_are_not_ready(tmp_path: Path) -> None:
    made = make_project(tmp_path)
    folder = made.root / "build" / "model"
    golden = json.loads((folder / "golden.json").read_text())
    golden["forecasts"][0][0] += 0.1
    (folder / "golden.json").write_text(json.dumps(golden))
    names = [*artifact.FILES, explain.FILE]
    (folder / "SHA256SUMS").write_bytes(artifact.sha256sums({name: (folder / name).read_bytes() for name in names}))
    with serve(made, "uvicorn") as server:
        assert "golden" in problem(httpx.get(f"{server.url}/readyz"), 503)["detail"]


def test_the_fallback_is_what_service_toml_allows(tmp_path: Path) -> None:
    made = make_project(tmp_path / "baseline", fallback=["baseline"])
    with serve(made, "uvicorn") as server:
        body = httpx.get(f"{server.url}/v1/forecast").json()
        assert body["degraded"]["source"] == "baseline"
        assert body["forecasts"][0]["value"] == 4.9
    made = make_project(tmp_path / "none", fallback=[])
    with serve(made, "uvicorn") as server:
        problem(httpx.get(f"{server.url}/v1/forecast"), 503)


def test_forecasts_from_the_store(url: str, server: str, contract: Contract, tmp_path: Path) -> None:
    made = make_project(tmp_path)
    with serve(made, "uvicorn", DATABASE_URL=url) as running, httpx.Client(base_url=running.url) as client:
        assert client.get("/v1/forecast").json()["degraded"] == {"reason": "no_data", "source": "last_forecast"}
        problem(client.get("/v1/forecast?as_of=2016-07-01"), 404)
        run.load(contract, url, SAMPLE, lambda _: None)

        answer = client.get("/v1/forecast?as_of=2016-07-01")
        body = answer.json()
        assert body["as_of"]["known_at"] == "2016-07-01T23:59:59.999999Z"
        assert body["inputs_known_until"] == "2016-06-29T00:00:00Z"
        assert (body["degraded"], body["hindsight"]) == (None, True)
        assert [part["horizon"] for part in body["forecasts"]] == made.horizons
        version = body["as_of"]["data_version"]
        pair = client.get("/v1/forecast", params={"as_of": "2016-07-01", "data_version": version})
        assert pair.content == answer.content
        some = client.get("/v1/forecast?as_of=2016-07-01&horizon=6&horizon=1").json()
        assert [part["horizon"] for part in some["forecasts"]] == [1, 6]
        assert client.get("/v1/forecast?as_of=2016-07-30").json()["forecasts"] != body["forecasts"]

        early = problem(client.get("/v1/forecast?as_of=2016-06-28"), 404)
        assert early["first_usable"] == "2016-06-29"
        problem(client.get("/v1/forecast?data_version=sha256:" + "0" * 64), 404)

        live = client.get("/v1/forecast").json()
        assert live["degraded"] is None
        assert client.get("/v1/forecast?as_of=2016-07-15").status_code == 200  # of then: it never stands in for now
        assert running.metrics()["database_up"] == 1
        with psycopg.connect(server, autocommit=True) as admin:  # the database goes away under the running service
            admin.execute(f'ALTER DATABASE "{conninfo_to_dict(url)["dbname"]}" ALLOW_CONNECTIONS false')
        held = wait_for(lambda: (made := client.get("/v1/forecast").json())["degraded"] and made)  # no longer of now
        assert held["degraded"] == {"reason": "database_away", "source": "last_forecast"}
        assert held["forecasts"] == live["forecasts"]
        problem(client.get("/v1/forecast?as_of=2016-07-01"), 503)  # one clock alone is asked anew
        assert client.get(f"/v1/forecast?as_of=2016-07-01&data_version={version}").content == answer.content  # kept
        assert running.metrics()['degraded_total{reason="database_away"}'] == 1


@pytest.mark.parametrize(
    ("old", "new", "says", "degraded"),
    [
        ("horizons = [1, 3, 6]", "horizons = [1]", "horizons 1, 3, 6 -> 1", None),
        ('transform = "difference"', 'transform = "level"', "transform difference -> level", "inputs_failed"),
    ],
    ids=["horizons", "transform"],
)
def test_a_service_toml_that_the_model_was_not_trained_for_is_said_at_the_start(
    url: str, contract: Contract, tmp_path: Path, old: str, new: str, says: str, degraded: str | None
) -> None:
    made = make_project(tmp_path)
    run.load(contract, url, SAMPLE, lambda _: None)
    declared = (made.root / "service.toml").read_text("utf-8")
    target, end = declared.index("[target]"), declared.index("[[feature]]")
    changed = declared[:target] + declared[target:end].replace(old, new) + declared[end:]
    assert changed != declared
    (made.root / "service.toml").write_text(changed, "utf-8")
    with serve(made, "uvicorn", DATABASE_URL=url) as server:
        said = [line["message"] for line in server.lines() if line["log.level"] == "warning"]
        assert any(f"service.toml no longer fits model fake: {says} since it was trained" in one for one in said)
        body = httpx.get(f"{server.url}/v1/forecast").json()
        assert (body["degraded"] or {"reason": None})["reason"] == degraded
        assert [part["horizon"] for part in body["forecasts"]] == made.horizons
        explicit = httpx.get(f"{server.url}/v1/forecast?as_of=2016-07-01")
        assert explicit.status_code == (503 if degraded else 200)


def test_a_database_that_hangs_is_given_up(tmp_path: Path) -> None:
    made = make_project(tmp_path, timeout_seconds=0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections and never says a word
        url = f"postgresql://reader@127.0.0.1:{mute.getsockname()[1]}/x"
        with serve(made, "uvicorn", DATABASE_URL=url) as running:
            held = httpx.get(f"{running.url}/v1/forecast", timeout=30).json()
            assert held["degraded"] == {"reason": "database_timeout", "source": "last_forecast"}


class Written:
    """A transport that notes what is written, and when it is closed."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.seen.append(data)

    def close(self) -> None:
        self.write(b"closed")


def test_head_and_body_of_an_answer_are_written_at_once_and_a_head_alone_does_not_wait_for_long() -> None:
    async def scene() -> None:
        joined = protocol.Joined(written := Written())  # type: ignore[arg-type]
        joined.write(b"head ")
        assert not written.seen
        joined.write(b"body")
        joined.write(b"another head ")
        joined.write(b"and body")
        assert written.seen == [b"head body", b"another head and body"]
        await asyncio.sleep(0)
        joined.write(b"a head alone")
        await asyncio.sleep(0)
        joined.write(b"the last")
        joined.close()
        await asyncio.sleep(0)
        assert written.seen[2:] == [b"a head alone", b"the last", b"closed"]

    asyncio.run(scene())


def test_a_body_that_never_ends_is_408(tmp_path: Path) -> None:
    made = make_project(tmp_path, timeout_seconds=0.5)
    with serve(made, "uvicorn") as server:
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
        connection.putrequest("POST", "/v1/predict")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", "10")
        connection.endheaders(b"{")
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("content-type")) == (408, "application/problem+json")
