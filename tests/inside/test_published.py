"""Published programs that know nothing of this service agree with it; runs inside a baked project, beside its tests.

SHAP knows Shapley values, Triton's client the Open Inference Protocol, Schemathesis what an OpenAPI document promises.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import httpx
import numpy as np
import pytest
import schemathesis
import shap
import tritonclient.http as triton
from hypothesis import HealthCheck, Phase, given, settings
from model_service import artifact, explain
from model_service.contract import Contract
from model_service.training import Cases, estimators, serialize
from psycopg.conninfo import make_conninfo
from schemathesis import GenerationMode
from schemathesis.core.failures import FailureGroup
from serving import Project, Server, make_project, serve
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

CASES = int(os.environ.get("CASES", "600"))
CHECKS = [
    schemathesis.checks.not_a_server_error,
    schemathesis.checks.status_code_conformance,
    schemathesis.checks.content_type_conformance,
    schemathesis.checks.response_headers_conformance,
    schemathesis.checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    with patch("serving.POISON", sys.float_info.max):  # no input makes this model fail
        return make_project(tmp_path_factory.mktemp("published"), max_instances=5)


@pytest.fixture(scope="module")
def running(made: Project, loaded: Any) -> Iterator[Server]:
    url = make_conninfo(loaded.info.dsn, password=loaded.info.password)
    with serve(made, "uvicorn", DATABASE_URL=url) as server:
        yield server


@pytest.mark.parametrize("name", ["random_forest", "gradient_boosting"])
def test_contributions_are_those_of_shap_on_a_thousand_rows(table: Cases, contract: Contract, name: str) -> None:
    kind, places = estimators.ESTIMATORS[name], estimators.column_places(contract)
    known = table.inputs[table.complete]
    label = table.labels(int(table.origin[-1]))[table.complete, -1] - known[:, 0]
    fitted = kind.fit(known[~np.isnan(label)][:, places], label[~np.isnan(label)], 1)
    written = serialize._trees(fitted, places)
    ours = explain.leaves(written["offset"], written["nodes"])
    draws = np.random.default_rng(1)
    rows = np.column_stack([draws.choice(column, 1000) for column in known.T])
    theirs = shap.TreeExplainer(fitted)
    due = np.zeros(rows.shape)
    due[:, places] = theirs.shap_values(rows[:, places])
    assert np.abs(due).max() > 0.01
    assert np.abs(np.array([ours.contributions(row) for row in rows]) - due).max() < 1e-9
    assert ours.base == pytest.approx(float(np.ravel(theirs.expected_value)[0]))


def test_the_client_of_triton_finds_the_model_and_gets_its_forecasts(made: Project, running: Server) -> None:
    name = httpx.get(f"{running.url}/v1/model").json()["service"]
    graph = artifact.session((made.root / "build/model/model.onnx").read_bytes())
    rows = np.random.default_rng(1).normal(size=(5, len(made.inputs)))
    with triton.InferenceServerClient(running.url.removeprefix("http://")) as client:
        assert client.is_server_live() and client.is_server_ready()
        assert client.is_model_ready(name) and client.is_model_ready(name, "fake")
        assert not client.is_model_ready("other")
        assert client.get_server_metadata()["name"] == name
        told = client.get_model_metadata(name)
        (takes,), (gives,) = told["inputs"], told["outputs"]
        for one, due in ((takes, graph.get_inputs()), (gives, graph.get_outputs())):
            (tensor,) = due
            assert (tensor.type, one["name"], one["shape"]) == ("tensor(double)", tensor.name, [-1, tensor.shape[1]])
            assert one["datatype"] == np_to_triton_dtype(np.float64)
        given = triton.InferInput(takes["name"], list(rows.shape), takes["datatype"])
        given.set_data_from_numpy(rows, binary_data=False)
        wanted = triton.InferRequestedOutput(gives["name"], binary_data=False)
        found = client.infer(name, [given], outputs=[wanted], request_id="mine")
        assert found.as_numpy("forecast") == pytest.approx(rows @ made.weights)
        assert found.get_response()["id"] == "mine"
        assert client.infer(name, [given]).as_numpy("forecast").dtype == np.float64  # it asks for binary, gets JSON
        with pytest.raises(InferenceServerException, match="there is no model 'other'"):
            client.infer("other", [given])
        given.set_data_from_numpy(rows)
        with pytest.raises(InferenceServerException, match="binary extension"):
            client.infer(name, [given])


def test_every_answer_is_one_that_the_document_promises(running: Server) -> None:
    """What the document allows, and what it does not; by its own means, as Schemathesis has none for this pytest."""
    seen: Counter[int] = Counter()
    wrong: list[str] = []
    operations = [one.ok() for one in schemathesis.openapi.from_url(f"{running.url}/openapi.json").get_all_operations()]
    taking = [one for one in operations if one.body or one.query or one.path_parameters]
    refusing = [one for one in operations if one.body or one.query]  # any text fits a part of a path
    times = CASES // (len(taking) + len(refusing)) + 1
    work = [(one, GenerationMode.POSITIVE, times) for one in taking]
    work += [(one, GenerationMode.NEGATIVE, times) for one in refusing]
    work += [(one, GenerationMode.POSITIVE, 1) for one in operations if one not in taking]
    for operation, mode, most in work:

        @settings(max_examples=most, derandomize=True, deadline=None, phases=[Phase.explicit, Phase.generate],
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: schemathesis.Case) -> None:
            response = case.call()
            seen[response.status_code] += 1
            try:
                case.validate_response(response, checks=CHECKS)
            except FailureGroup as failures:
                wrong.extend(map(str, failures.exceptions))

        ask()
    print(len(operations), "operations,", seen.total(), "cases:", dict(seen))
    assert wrong == []
    assert seen.total() >= CASES
    assert seen[200] > 50 and seen[422] > 50  # both sides of the promises
