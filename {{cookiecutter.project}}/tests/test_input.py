"""Odd bodies, by a table and by chance: each is answered, or refused by a document that says what to change."""

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import DEAD, Project, make_project
from test_api import tensor
from test_service import problem

from model_service import contract as contracts
from model_service.serving import body, routes
from model_service.serving.edge import Edge
from model_service.serving.keys import Keys
from model_service.serving.runtime import Runtime

ROWS, LIMIT = 20, 50_000
Post = Callable[[str, bytes], httpx.Response]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, Post]]:
    """The app in this process, and a function that posts to it."""
    made = make_project(tmp_path_factory.mktemp("input"), max_body_bytes=LIMIT, max_instances=ROWS)
    before = os.environ.get("DATABASE_URL")
    os.environ["DATABASE_URL"] = DEAD
    runtime = Runtime(contracts.load(made.root / "service.toml"), made.root / "build" / "model")
    app = Edge(routes.build(runtime), runtime.metrics, LIMIT, Keys(None), runtime.door, {"/v1/predict"})
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service")

    def post(path: str, content: bytes) -> httpx.Response:
        return runner.run(client.post(path, content=content, headers={"content-type": "application/json"}))

    with asyncio.Runner() as runner:
        runner.run(runtime.start())
        yield made, post
        runner.run(runtime.stop())
    os.environ.pop("DATABASE_URL")
    if before:
        os.environ["DATABASE_URL"] = before


def nested(depth: int) -> bytes:
    return b'{"instances": ' + b"[" * depth + b"]" * depth + b"}"


@pytest.mark.parametrize(("content", "status"), [
    (nested(7), 422), (nested(12), 400), (nested(20_000), 400), (nested(100_000)[:LIMIT], 400),
    (b'{"instances": ' + b"[[],{" * 90 + b"}]" * 90 + b"}", 400),  # as deep, with what is closed in between
    (b"[}" * 200, 400), (b'{"a": ' * 300, 400),
    (b'{"instances": [' + b"{}," * 2_000 + b"{}]}", 422), (b'{"instances": [' + b"{}," * 100 + b"{}]}", 422),
    (b'{"instances": [' + b"0," * 20_000 + b"0]}", 422), (b" " * (LIMIT + 1), 413),
    (b'{"instances": "' + b"[" * 5 + b'"}', 422),  # brackets in a text are no levels
    (b'{"\\ud800": 1}', 422), (b'{"\xed\xa0\x80": 1}', 400), (b'{"\\u0000": 1}', 422),
    ('{"ｉnstances": []}'.encode(), 422),
    (b"null", 422), (b'"text"', 422), (b"1e400", 422), (b"-", 400), (b"NaN", 422), (b"'{}'", 400), (b"{}{}", 400),
])  # fmt: skip
def test_a_body_that_is_nothing_a_route_takes_is_refused(
    served: tuple[Project, Post], content: bytes, status: int
) -> None:
    for path in ("/v1/predict", "/v1/explain"):
        refused = served[1](path, content)
        assert problem(refused, status)["detail"], path


@pytest.mark.parametrize(("text", "value"), [
    ("-0.0", 0.0), ("1e-400", 0.0), ("5e-324", 5e-324), ("9007199254740993", 9007199254740992.0), ("1E5", 1e5),
    ("0.1", 0.1), ("3", 3.0),
])  # fmt: skip
def test_every_way_to_write_a_number_is_that_number(served: tuple[Project, Post], text: str, value: float) -> None:
    made, post = served
    written, plain = (json.dumps({"instances": [made.instance | {made.inputs[2]: 0.25}]}).replace("0.25", one)
                      for one in (text, repr(value)))  # fmt: skip
    answers = [post("/v1/predict", one.encode()) for one in (written, plain)]
    assert [one.status_code for one in answers] == ([503] * 2 if value > 1e6 else [200] * 2)
    if value < 1e6:
        assert answers[0].json() == answers[1].json()


def test_what_is_refused_by_its_brackets_is_never_parsed(served: tuple[Project, Post], monkeypatch: Any) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("parsed")

    monkeypatch.setattr(body, "json", SimpleNamespace(loads=never))
    for content, status in ((nested(900), 400), (b"[" + b"{}," * 5_000, 422)):
        problem(served[1]("/v1/predict", content), status)
    with pytest.raises(AssertionError, match="parsed"):  # the control
        body.parse_object(b"{}", {"instances"}, "", ROWS)


def test_measuring_costs_little_whatever_the_brackets() -> None:
    started = time.process_time()
    for content in (b"[" * 500_000 + b"]" * 500_000, b"[]" * 500_000, b"[{]}" * 250_000, b"x" * 1_000_000):
        for limit in (1, 10_000_000):
            try:
                body._measure(content, limit, "instances")
            except body.Problem:
                continue
    assert time.process_time() - started < 5


TEXTS = st.text(st.characters(exclude_categories=()), max_size=8)  # half surrogate pairs, too
NUMBERS = st.one_of(st.integers(-(10**400), 10**6), st.floats(max_value=1e6))
ANY = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=12,
)


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_comes_is_answered_or_refused(served: tuple[Project, Post], data: Any) -> None:
    made, post = served
    path = data.draw(st.sampled_from(("/v1/predict", "/v1/explain", "/v2/models/us-unemployment/infer")))
    form: Any = {"instances": [made.instance]} if path.startswith("/v1") else tensor(made)
    if data.draw(st.booleans()):  # a good body with one part of it exchanged
        holder: Any = form
        while isinstance(holder, dict | list) and holder:
            key = data.draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
            if not isinstance(holder[key], dict | list) or data.draw(st.booleans()):
                holder[key] = data.draw(ANY)
                break
            holder = holder[key]
    else:
        form = data.draw(st.dictionaries(st.sampled_from(("instances", "inputs", "id", "as_of")), ANY) | ANY)
    content = json.dumps(form).encode()
    if data.draw(st.integers(0, 3)) == 0:
        content = content[: data.draw(st.integers(0, len(content)))]
    response = post(path, content)
    assert response.status_code in {200, 400, 404, 413, 422} or (
        response.status_code == 503 and path == "/v1/explain" and b"instances" not in content
    ), (path, content, response.text)
    assert response.json() and response.headers["x-request-id"]
