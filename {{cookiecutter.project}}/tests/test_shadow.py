"""A challenger in the shadow: compared and recorded; whatever becomes of it, callers get what they got without it."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import Connection
from prometheus_client import CollectorRegistry
from psycopg.conninfo import make_conninfo
from serving import Project, Server, challenge, make_project, serve, wait_for
from test_telemetry import Store

from model_service import artifact
from model_service.serving.shadow import MOST, OUTCOMES, Shadow
from model_service.telemetry import request_id

SECONDS = 2.0
Answers = dict[str, tuple[int, dict[str, str], bytes]]


@pytest.fixture(scope="module")
def database(server: str, loaded: Connection) -> str:
    """URL of one that holds the sample."""
    return make_conninfo(server, dbname=loaded.info.dbname)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("shadow"), timeout_seconds=SECONDS)


def asked(made: Project, url: str) -> Answers:
    """What callers get: status, headers and body, by a name."""
    rows = [made.instance | {made.inputs[0]: float(number)} for number in range(5)]
    tensor = {"name": "features", "datatype": "FP64", "shape": [1, len(made.inputs)], "data": list(rows[0].values())}
    requests: dict[str, tuple[str, str, Any]] = {
        "one": ("POST", "/v1/predict", {"instances": rows[:1]}),
        "five": ("POST", "/v1/predict", {"instances": rows}),
        "bad": ("POST", "/v1/predict", {"instances": [{}]}),
        "explained": ("POST", "/v1/explain", {"instances": rows[:1]}),
        "tensor": ("POST", "/v2/models/us-unemployment/infer", {"inputs": [tensor]}),
        "forecast": ("GET", "/v1/forecast?as_of=2016-07-01", None),
    }
    found = {}
    with httpx.Client(base_url=url) as client:
        for name, (method, path, body) in requests.items():
            answer = client.request(method, path, json=body, headers={"x-request-id": name})
            headers = {key: value for key, value in answer.headers.items() if key != "date"}
            found[name] = answer.status_code, headers, answer.content
    return found


@pytest.fixture(scope="module")
def alone(project: Project, database: str) -> Answers:
    """The answers without a challenger; nothing speaks of one."""
    with serve(project, "uvicorn", DATABASE_URL=database) as server:
        assert httpx.get(f"{server.url}/v1/model").json()["challenger"] is None
        found = asked(project, server.url)
        assert not [name for name in server.metrics() if name.startswith("shadow")]
    assert [status for status, _, _ in found.values()] == [200, 200, 422, 200, 200, 200]
    return found


def questions(server: Server) -> dict[str, float]:
    found = {name: value for name, value in server.metrics().items() if name.startswith("shadow_questions_total")}
    return {name.split('"')[1]: value for name, value in found.items() if value}


def damaged(folder: Path) -> None:
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-1])


def unreadable(folder: Path) -> None:
    files, _ = artifact.read(folder)
    artifact.write(folder, files | {"model.onnx": b"no graph"}, "other")


def boastful(folder: Path) -> None:
    """Its golden examples are not what it answers."""
    files, _ = artifact.read(folder)
    golden = json.loads(files["golden.json"])
    golden["forecasts"][0][0] += 1
    artifact.write(folder, files | {"golden.json": json.dumps(golden).encode()}, "other")


@pytest.mark.parametrize(
    ("odd", "outcome"),
    [({}, "compared"), ({"hangs": 3.0}, "model_timeout"), ({"poison": 3.5}, "model_failed"),
     ({"hole": 3.0}, "model_not_finite"), ({"most": 3}, "model_wrong_shape")],
)  # fmt: skip
def test_a_challenger_changes_nothing_for_callers(
    project: Project, database: str, alone: Answers, odd: dict[str, Any], outcome: str
) -> None:
    """That is wrong, slow, or dead: every answer is byte for byte the one of the service without it."""
    challenge(project, -project.weights, **odd)
    with serve(project, "uvicorn", DATABASE_URL=database) as server:
        wait_for(lambda: server.metrics()["shadow_loaded"] == 1)
        assert asked(project, server.url) == alone
        wait_for(lambda: outcome in questions(server))
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        assert asked(project, server.url) == alone
    assert not [line for line in server.lines() if line["log.level"] == "error"]


@pytest.mark.parametrize(
    ("break_it", "says"),
    [(damaged, "model.onnx does not fit SHA256SUMS"), (unreadable, "ONNX Runtime cannot read model.onnx"),
     (boastful, "golden examples are off by 1"), (shutil.rmtree, "no model in")],
)  # fmt: skip
def test_a_challenger_that_cannot_be_loaded_is_named_and_changes_nothing(
    project: Project, database: str, alone: Answers, break_it: Callable[[Path], None], says: str
) -> None:
    folder = challenge(project)
    break_it(folder)
    folder.mkdir(exist_ok=True)
    with serve(project, "uvicorn", DATABASE_URL=database) as server:
        told = wait_for(lambda: says in httpx.get(f"{server.url}/v1/model").json()["challenger"]["fault"])
        assert asked(project, server.url) == alone
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        assert server.metrics()["shadow_loaded"] == 0
        assert questions(server) == {}
    (line,) = [line["message"] for line in server.lines() if line["log.level"] == "error"]
    assert told and line.startswith("challenger not loaded: ") and says in line


def test_answers_come_while_the_challenger_hangs_and_its_line_is_bounded(project: Project) -> None:
    challenge(project, hangs=3.0)
    body = {"instances": [project.instance] * 1000}
    with serve(project, "uvicorn") as server, httpx.Client(base_url=server.url) as client:
        wait_for(lambda: server.metrics()["shadow_loaded"] == 1)
        assert {client.post("/v1/predict", json=body).status_code for _ in range(40)} == {200}
        seen = wait_for(lambda: (found := questions(server)).get("model_timeout") and found)
        assert seen["line_full"] > 0 and "compared" not in seen
        assert not any(value for name, value in server.metrics().items() if name.startswith(("slots_", "unanswered")))


def test_both_answers_are_recorded_once_under_the_id_of_the_request(project: Project, database: str) -> None:
    weights = project.weights.copy()
    weights[1] += [0.5, 0.25, -1.0][: weights.shape[1]]
    digest = artifact.load(challenge(project, weights)).digest
    store = Store(lambda _: 201)
    with serve(project, "uvicorn", ELASTICSEARCH_URL=store.url, DATABASE_URL=database) as server:
        wait_for(lambda: server.metrics()["shadow_loaded"] == 1)
        assert httpx.get(f"{server.url}/v1/model").json()["challenger"] == {
            "version": "other", "digest": digest, "fault": None
        }  # fmt: skip
        for number in range(2):  # the second time as a retry
            ask = {"headers": {"x-request-id": "mine"}, "json": {"instances": [project.instance, project.instance]}}
            answer = httpx.post(f"{server.url}/v1/predict", **ask).json()
            wait_for(lambda number=number: questions(server).get("compared") == number + 1)
        forecast = httpx.get(f"{server.url}/v1/forecast", headers={"x-request-id": "ahead"}).json()
        wait_for(lambda: questions(server)["compared"] == 3)
        sums = {name: value for name, value in server.metrics().items() if name.startswith("shadow_difference_sum")}
        wait_for(lambda: len(store.asked) == 6, 60)  # of three answers, and as many of the challenger's
    kept = {one["http"]["request"]["id"]: one for one in store.kept.values() if one.get("kind") == "shadow"}
    assert len(store.kept) == 4  # a retry is the same record
    mine, ahead = kept["mine"], kept["ahead"]
    ours = [list(one.values()) for one in answer["predictions"]]
    assert mine["model"] == answer["model"] and mine["challenger"]["digest"] == digest
    assert mine["output"]["horizons"] == project.horizons and mine["output"]["model"] == ours
    theirs = np.array(ours) + [0.5, 0.25, -1.0]  # the second input is 1
    assert mine["output"]["challenger"] == [pytest.approx(row) for row in theirs.tolist()]
    assert mine["difference"] == pytest.approx(1.0)
    assert ahead["output"]["model"] == [[one["value"] for one in forecast["forecasts"]]]
    assert ahead["difference"] > 0
    apart = np.abs(np.subtract(ahead["output"]["challenger"], ahead["output"]["model"]))[0]
    assert list(sums.values()) == pytest.approx([2 * 0.5 + apart[0], 2 * 0.25 + apart[1], 2 * 1.0 + apart[2]])


class Two:
    """A champion of the inputs a, b, c and the horizons 1, 3, and a challenger that may have others."""

    def __init__(self, inputs: str = "abc", horizons: tuple[int, ...] = (1, 3), series: str = "S", **odd: Any) -> None:
        self.champion = self.model("abc", (1, 3), "S")
        self.challenger = self.model(inputs, horizons, series)
        vars(self.challenger).update(odd)

    @staticmethod
    def model(inputs: str, horizons: tuple[int, ...], series: str) -> Any:
        """Forecasts the horizon times the first input."""
        return SimpleNamespace(
            inputs=list(inputs), horizons=list(horizons), card={"target": {"series": series}},
            name={"version": series, "digest": inputs}, explain=b'{"deviation": 2.0}',
            digest=inputs, check=lambda: None, predict=lambda rows: rows[:, :1] * np.array(horizons, float),
        )  # fmt: skip


class Trail:
    """Keeps what is put into it."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, Mapping[str, Any]]] = []

    def put(self, identifier: str, _: datetime, document: Mapping[str, Any], small: bool) -> None:
        self.kept.append((identifier, document))


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Puts a challenger into a shadow of its own: gives that, what is counted by outcome, and the trail."""
    made: list[Shadow] = []
    token = request_id.set("mine")

    def begin(
        two: Two, seconds: float = 60.0
    ) -> tuple[Shadow, Callable[[], dict[str, float]], CollectorRegistry, Trail]:
        monkeypatch.setattr(artifact, "load", lambda _: two.challenger)
        registry, trail = CollectorRegistry(), Trail()
        one = Shadow(tmp_path, registry, trail, {}, seconds)  # type: ignore[arg-type]
        made.append(one)
        one.start(two.champion)
        wait_for(lambda: one.pair)

        def counted() -> dict[str, float]:
            found = {name: registry.get_sample_value("shadow_questions_total", {"outcome": name}) for name in OUTCOMES}
            return {name: value for name, value in found.items() if value}

        return one, counted, registry, trail

    yield begin
    for one in made:
        one.stop()
    request_id.reset(token)


ROWS = np.array([[1.0, 2.0, 10.0], [0.0, 0.0, -2.0]])


def test_the_difference_is_the_largest_of_a_horizon_in_deviations_of_the_target(watch: Callable[..., Any]) -> None:
    """The challenger takes fewer inputs, in another order, and has another horizon: it forecasts from c."""
    two = Two("ca", (3, 6, 1))
    one, counted, registry, trail = watch(two)
    one.put(ROWS, two.champion.predict(ROWS))
    wait_for(counted)
    assert counted() == {"compared": 1}
    ((identifier, record),) = trail.kept
    assert identifier == record["http"]["request"]["id"] == "mine"
    assert record["output"] == {
        "horizons": [1, 3], "model": [[1, 3], [0, 0]], "challenger": [[10, 30], [-2, -6]]
    }  # fmt: skip
    sums = [registry.get_sample_value("shadow_difference_sum", {"horizon": horizon}) for horizon in ("1", "3")]
    assert sums == [9 / 2, 27 / 2]
    assert record["difference"] == 27 / 2


@pytest.mark.parametrize("other", [{"inputs": "abd"}, {"horizons": (6,)}, {"series": "T"}], ids=str)
def test_what_cannot_be_compared_is_counted_as_that(watch: Callable[..., Any], other: dict[str, Any]) -> None:
    two = Two(**other)
    one, counted, _, trail = watch(two)
    one.put(ROWS, two.champion.predict(ROWS))
    wait_for(counted)
    assert (counted(), trail.kept) == ({"incomparable": 1}, [])


def test_what_no_request_asked_is_not_compared(watch: Callable[..., Any]) -> None:
    one, counted, _, trail = watch(Two())
    request_id.set(None)
    one.put(ROWS, ROWS[:, :2])
    request_id.set("mine")
    one.put(ROWS, ROWS[:, :2])
    wait_for(counted)
    assert (counted(), len(trail.kept)) == ({"compared": 1}, 1)


def test_one_that_cannot_be_stopped_holds_a_bounded_line_and_nothing_else(watch: Callable[..., Any]) -> None:
    stuck = threading.Event()
    two = Two(predict=lambda rows: stuck.wait() and rows[:, :2])
    one, counted, _, trail = watch(two)
    many = np.zeros((MOST, 3))
    for _ in range(5):
        one.put(many[: MOST // 2], many[: MOST // 2, :2])
    assert counted() == {"line_full": 3}
    stuck.set()
    wait_for(lambda: counted().get("compared") == 2)
    larger = np.zeros((MOST + 1, 3))  # than the line, which is empty now
    one.put(larger, larger[:, :2])
    wait_for(lambda: counted().get("compared") == 3)
    assert len(trail.kept) == 3


def test_an_answer_that_comes_too_late_is_none(watch: Callable[..., Any]) -> None:
    two = Two(predict=lambda rows: time.sleep(0.2) or rows[:, :2])
    one, counted, _, trail = watch(two, seconds=0.1)
    one.put(ROWS, ROWS[:, :2])
    wait_for(counted)
    assert (counted(), trail.kept) == ({"model_timeout": 1}, [])
