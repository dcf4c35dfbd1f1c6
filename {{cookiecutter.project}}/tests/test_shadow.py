"""A challenger in the shadow: compared and recorded; whatever becomes of it, callers get what they got without it."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Connection
from psycopg.conninfo import make_conninfo
from serving import Project, Server, challenge, make_project, serve, wait_for

from model_service import artifact

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
