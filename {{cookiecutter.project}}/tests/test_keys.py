"""Who may ask: keys by name, several at once, counted, compared in constant time, and never told."""

import hmac
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from serving import Project, Server, free_port, make_project, serve, started_by_the_image

from model_service.errors import UsageError
from model_service.serving.keys import Keys

OLD, NEW = "0ld-secret-of-team-a-" + "x" * 20, "n3w-secret-of-team-a-" + "y" * 20
BOTH = f"team-a={OLD}, team-a-next={NEW}"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, Server]]:
    made = make_project(tmp_path_factory.mktemp("keys"))
    with serve(made, "uvicorn", API_KEYS=BOTH) as server:
        yield made, server


def asked(server: Server, path: str, key: str | None = None) -> httpx.Response:
    return httpx.get(server.url + path, headers={"X-API-Key": key} if key else {})


def test_both_keys_are_valid_and_counted_by_name(guarded: tuple[Project, Server]) -> None:
    made, server = guarded
    before = server.metrics()
    for key in (OLD, NEW, NEW):
        assert asked(server, "/v1/model", key).status_code == 200
    body = {"instances": [made.instance]}
    assert httpx.post(f"{server.url}/v1/predict", json=body, headers={"X-API-Key": OLD}).status_code == 200
    counted = server.metrics()
    for name in ("team-a", "team-a-next"):
        label = f'api_key_requests_total{{key="{name}"}}'
        assert counted[label] - before.get(label, 0) == 2


@pytest.mark.parametrize("key", [None, "", OLD[:-1], OLD + "x", OLD.upper(), "team-a", BOTH, "\u00e9" * 30])
@pytest.mark.parametrize("path", ["/v1/model", "/v1/forecast", "/v2/models/any", "/report", "/v1/nowhere"])
def test_without_a_valid_key_nothing_is_told(guarded: tuple[Project, Server], path: str, key: str | None) -> None:
    _, server = guarded
    headers = {"X-API-Key": key.encode("latin-1")} if key else {}
    refused = httpx.get(server.url + path, headers=headers)
    assert refused.status_code == 401
    assert "x-api-key" in refused.headers["www-authenticate"]
    assert refused.headers["x-request-id"]
    assert "a valid API key is required" in (refused.json().get("detail") or refused.json()["error"])


def test_probes_metrics_and_pages_need_no_key(guarded: tuple[Project, Server]) -> None:
    for path in ("/livez", "/readyz", "/metrics", "/", "/docs", "/openapi.json", "/v2/health/ready"):
        assert asked(guarded[1], path).status_code == 200


def test_no_key_reaches_a_log_line_or_a_metric(guarded: tuple[Project, Server]) -> None:
    _, server = guarded
    asked(server, f"/v1/model?key={NEW}", OLD)
    asked(server, f"/v1/{OLD}", OLD)
    lines = httpx.get(f"{server.url}/metrics").text + server.out.read_text("utf-8")
    assert OLD not in lines and NEW not in lines
    assert "/v1/***" in lines  # the control: it would have stood there


def test_who_is_refused_counts_at_the_route_that_was_asked(guarded: tuple[Project, Server]) -> None:
    _, server = guarded
    asked(server, "/v1/model", "neither")
    counted = httpx.get(f"{server.url}/metrics").text
    assert 'http_requests_total{method="GET",route="/v1/model",status="401"}' in counted


def test_every_key_is_compared_whichever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda one, other: compared.append(other) or real(one, other))
    keys = Keys(BOTH)
    for key, owner in ((OLD, "team-a"), (NEW, "team-a-next"), ("neither", None)):
        compared.clear()
        assert keys.owner(key.encode()) == owner
        assert len(compared) == 2 and all(len(one) == 32 for one in compared)


@pytest.mark.parametrize(("text", "says"), [
    ("team-a", "has fewer than 24"), ("team-a=short", "key of team-a has fewer"), (OLD, "name 1 is none"),
    (f"a={OLD},a={NEW}", "name 2 is none"), (f"A={OLD}", "name 1"), (f"a={'é' * 30}", "key of a"),
])  # fmt: skip
def test_a_wrong_setting_is_named_without_its_keys(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        Keys(text)
    assert OLD not in str(caught.value) and NEW not in str(caught.value)


def test_a_start_with_a_wrong_setting_ends_with_one_line_of_json(tmp_path: Path) -> None:
    made = make_project(tmp_path)
    env = os.environ | {"PYTHONPATH": str(made.root / "src"), "API_KEYS": "team-a=short"}
    command = [sys.executable, "-m", *started_by_the_image(free_port())]
    done = subprocess.run(command, cwd=made.root, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "")
    assert json.loads(done.stdout)["message"].startswith("UsageError: API_KEYS is not NAME=KEY")


def test_without_the_setting_anybody_may_ask(tmp_path: Path) -> None:
    assert not Keys(None).guards("/v1/model") and not Keys("").guards("/v1/model")
    assert Keys(BOTH).guards("/v1/model")
