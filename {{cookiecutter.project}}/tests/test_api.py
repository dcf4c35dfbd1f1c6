"""What the OpenAPI document promises is what is answered; the Open Inference Protocol; the landing page."""

import json
import re
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest
from conftest import SAMPLE
from serving import Project, make_project, serve
from test_report import Seen
from test_service import problem

from model_service import artifact, explain
from model_service import contract as contracts
from model_service.contract import Contract
from model_service.loader import run
from model_service.serving import page, routes
from model_service.serving.runtime import Runtime
from model_service.telemetry import PROBES

NAME = contracts.load(SAMPLE / "service.toml").service.name
JSON = {"content-type": "application/json"}
DEEP = b'{"instances": [' + b"[" * 20_000


class Document:
    """The OpenAPI document, and whether an answer is one that it promises."""

    def __init__(self, made: dict[str, Any]) -> None:
        self.made = made
        self.seen: set[tuple[str, str, int]] = set()

    def fits(self, schema: dict[str, Any], value: Any) -> None:
        whole = {**schema, "components": self.made["components"]}
        jsonschema.Draft202012Validator(whole, format_checker=jsonschema.FormatChecker()).validate(value)

    def check(self, response: httpx.Response, template: str) -> httpx.Response:
        method = response.request.method.lower()
        promised = self.made["paths"][template][method]["responses"][str(response.status_code)]
        kind = response.headers["content-type"].split(";")[0]
        schema = promised["content"][kind]["schema"]
        self.fits(schema, response.json() if kind.endswith("json") else response.text)
        assert set(promised["headers"]) <= {name.title().replace("Id", "ID") for name in response.headers}
        self.seen.add((template, method, response.status_code))
        return response


@pytest.fixture
def document(contract: Contract, tmp_path: Path) -> Document:
    return Document(routes.build(Runtime(contract, tmp_path)).openapi())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, httpx.Client]]:
    made = make_project(tmp_path_factory.mktemp("api"), max_body_bytes=50_000, max_instances=20)
    with serve(made, "uvicorn") as server, httpx.Client(base_url=server.url) as client:
        yield made, client


def test_every_example_fits_its_schema(document: Document) -> None:
    shown, count = document.made["components"]["examples"], 0
    for path in document.made["paths"].values():
        for operation in path.values():
            parts = [*operation["responses"].values(), operation.get("requestBody", {})]
            for media in (one for part in parts for one in part.get("content", {}).values()):
                values = [shown[one["$ref"].rpartition("/")[2]]["value"] for one in media.get("examples", {}).values()]
                for value in [*values, *([media["example"]] if "example" in media else [])]:
                    document.fits(media["schema"], value)
                    count += 1
            for parameter in operation.get("parameters", ()):
                document.fits(parameter["schema"], parameter["example"])
    assert count > 80
    assert {name.partition(".")[0] for name in shown} == set(document.made["components"]["schemas"])


def test_an_example_that_does_not_fit_is_found(document: Document) -> None:
    wrong = document.made["components"]["examples"]["Forecast.one"]["value"] | {"degraded": "yes"}
    with pytest.raises(jsonschema.ValidationError):
        document.fits({"$ref": "#/components/schemas/Forecast"}, wrong)


def test_every_route_has_its_errors_in_the_document(document: Document) -> None:
    for path, operations in document.made["paths"].items():
        for method, operation in operations.items():
            answers = operation["responses"]
            assert operation["summary"] and operation["description"] and "500" in answers, path
            if method == "post":
                assert {"400", "408", "413", "415", "422"} <= set(answers)
            if path not in PROBES:  # the line may be slow, and the end near, wherever one knocks
                assert {"429", "503"} <= set(answers), path
            for status, answer in answers.items():
                (media,) = answer["content"].values()
                assert "X-Request-ID" in answer["headers"] and media.keys() & {"example", "examples"}, (path, status)
                assert ("Retry-After" in answer["headers"]) == (status in {"429", "503"})


def test_whatever_the_document_refers_to_is_in_it(document: Document) -> None:
    named = re.findall(r'"\$ref": "#/components/(\w+)/([^"]+)"', json.dumps(document.made))
    assert len(named) > 100
    assert [one for kind, one in named if one not in document.made["components"][kind]] == []


def test_forms_are_made_of_the_contract(document: Document, contract: Contract) -> None:
    instance = document.made["components"]["schemas"]["Instances"]["properties"]["instances"]
    assert instance["maxItems"] == contract.serving.max_instances
    (horizon,) = [
        one for one in document.made["paths"]["/v1/forecast"]["get"]["parameters"] if one["name"] == "horizon"
    ]
    assert horizon["schema"]["items"]["enum"] == list(contract.target.horizons)
    document.fits(instance["items"], dict.fromkeys(instance["items"]["required"], 1.0))
    with pytest.raises(jsonschema.ValidationError):
        document.fits(instance["items"], {"surplus": 1.0})


def tensor(made: Project, **changes: Any) -> dict[str, Any]:
    """A request of the protocol for two rows."""
    rows = [*made.instance.values()] * 2
    return {
        "inputs": [{"name": "features", "shape": [2, len(made.inputs)], "datatype": "FP64", "data": rows} | changes]
    }


def test_every_answer_fits_its_schema(served: tuple[Project, httpx.Client]) -> None:
    made, client = served
    document = Document(client.get("/openapi.json").json())
    instance, model = made.instance, f"/v2/models/{client.get('/v1/model').json()['service']}"
    strange = {"instances": [instance | {made.inputs[2]: 11.0}]}
    for path in ("/", "/livez", "/readyz", "/v1/model", "/metrics", "/report", "/v1/forecast", "/v2", "/v2/health/live",
                 "/v2/health/ready"):  # fmt: skip
        assert document.check(client.get(path), path).status_code == 200, path
    assert document.check(client.get("/v1/forecast?as_of=2016-07-01"), "/v1/forecast").status_code == 503
    assert document.check(client.get("/v1/forecast?as_of=x"), "/v1/forecast").status_code == 422
    for path in ("/v1/predict", "/v1/explain"):
        for body, status in (({"instances": [instance]}, 200), (strange, 200), ({"instances": [{}]}, 422), ([], 422)):
            assert document.check(client.post(path, json=body), path).status_code == status
        for content, status in ((DEEP[:30_000], 400), (b" " * 60_000, 413)):
            assert document.check(client.post(path, content=content, headers=JSON), path).status_code == status
        assert document.check(client.post(path, data={"a": "b"}), path).status_code == 415
    assert document.check(client.post("/v1/explain", json={}), "/v1/explain").status_code == 503  # no database
    for version in ("", "/versions/fake"):
        template = "/v2/models/{model}" + ("/versions/{version}" if version else "")
        for part in ("", "/ready"):
            assert document.check(client.get(model + version + part), template + part).status_code == 200
            unknown = client.get("/v2/models/other" + version + part)
            assert document.check(unknown, template + part).status_code == 404
        for body, status in ((tensor(made), 200), (tensor(made, datatype="FP32"), 422), ([], 422)):
            response = client.post(f"{model}{version}/infer", json=body)
            assert document.check(response, template + "/infer").status_code == status
    operations = {(path, method) for path, ways in document.made["paths"].items() for method in ways}
    assert {(path, method) for path, method, status in document.seen if status == 200} == operations


def test_contributions_that_overflow_are_refused_as_the_inputs_they_are(served: tuple[Project, httpx.Client]) -> None:
    made, client = served
    draws, seen = np.random.default_rng(1), set()
    for row in draws.choice([0.0, -5e307, -sys.float_info.max], (40, len(made.inputs)), p=(0.9, 0.05, 0.05)).tolist():
        answer = client.post("/v1/explain", json={"instances": [dict(zip(made.inputs, row, strict=True))]})
        seen.add(answer.status_code)
        if answer.status_code != 200:
            assert "instances.0: gives no finite forecast" in problem(answer, 422)["detail"]
    assert seen == {200, 422}


def test_explain_answers_for_instances_and_says_how(served: tuple[Project, httpx.Client]) -> None:
    made, client = served
    body = client.post("/v1/explain", json={"instances": [made.instance, dict.fromkeys(made.inputs, 0.0)]}).json()
    predicted = client.post("/v1/predict", json={"instances": [made.instance]}).json()["predictions"][0]
    assert body["method"] == "linear"
    for horizon in made.horizons:
        one = body["explanations"][0][f"horizon_{horizon}"]
        assert one["value"] == predicted[f"horizon_{horizon}"]
        assert one["base"] + sum(one["contributions"].values()) == pytest.approx(one["value"], abs=1e-9)
        assert set(one["contributions"]) == set(made.inputs)
    card = client.get("/v1/model").json()
    assert card["explain"] == {"method": "linear", "says": explain.SAYS["linear"], "max_instances": 20}


@pytest.mark.parametrize(("body", "field"), [
    ({"as_of": 3}, "as_of"), ({"as_of": "soon"}, "as_of"), ({"horizon": 1}, "horizon"),
    ({"horizon": [True]}, "horizon"), ({"horizon": [99]}, "horizon"),
    ({"data_version": "newest"}, "data_version"), ({"instance": []}, "instance"),
    ({"instances": [], "as_of": "2016-07-01"}, "as_of"), ({"instances": [{}] * 21}, "instances"),
])  # fmt: skip
def test_explain_refuses_by_name(served: tuple[Project, httpx.Client], body: dict[str, Any], field: str) -> None:
    assert [one["field"] for one in problem(served[1].post("/v1/explain", json=body), 422)["errors"]] == [field]


def test_a_model_from_before_explanations_answers_501(tmp_path: Path) -> None:
    made = make_project(tmp_path)
    folder = made.root / "build" / "model"
    files = artifact.read(folder)[0]
    del files[explain.FILE]
    artifact.write(folder, files, "old")
    with serve(made, "uvicorn") as server, httpx.Client(base_url=server.url) as client:
        document = Document(client.get("/openapi.json").json())
        for body in ({"instances": [made.instance]}, {}):
            response = document.check(client.post("/v1/explain", json=body), "/v1/explain")
            assert "train it again" in problem(response, 501)["detail"]
        assert document.check(client.get("/v1/model"), "/v1/model").json()["explain"] is None
        assert client.post("/v1/predict", json={"instances": [made.instance]}).status_code == 200


def test_a_forecast_is_explained_by_its_clocks(url: str, contract: Contract, tmp_path: Path) -> None:
    made = make_project(tmp_path)
    run.load(contract, url, SAMPLE, lambda _: None)
    with serve(made, "uvicorn", DATABASE_URL=url) as server, httpx.Client(base_url=server.url) as client:
        document = Document(client.get("/openapi.json").json())

        def ask(body: dict[str, Any]) -> httpx.Response:
            return document.check(client.post("/v1/explain", json=body), "/v1/explain")

        answer = ask({"as_of": "2016-07-01"}).json()
        forecast = client.get("/v1/forecast?as_of=2016-07-01").json()
        assert {name: answer[name] for name in ("as_of", "model", "hindsight")} == {
            name: forecast[name] for name in ("as_of", "model", "hindsight")
        }
        series = {name for feature in contract.feature for name in feature.series}
        for one, part in zip(answer["explanations"], forecast["forecasts"], strict=True):
            assert (one["horizon"], one["valid_time"], one["value"]) == (
                part["horizon"], part["valid_time"], part["value"])  # fmt: skip
            assert set(one["series"]) == series | {contract.target.series}
            assert one["base"] + sum(one["series"].values()) == pytest.approx(one["value"], abs=1e-9)
        version = answer["as_of"]["data_version"]
        pair = ask({"as_of": "2016-07-01", "data_version": version, "horizon": [6]}).json()
        assert pair["explanations"] == [answer["explanations"][-1]]
        assert ask({}).json()["explanations"] != answer["explanations"]
        assert ask({"as_of": "2016-06-28"}).json()["first_usable"] == "2016-06-29"
        assert ask({"data_version": "sha256:" + "0" * 64}).status_code == 404
        assert client.get("/v1/forecast?data_version=sha256:%00").status_code == 422
        for _ in range(2):
            assert document.check(client.get("/v1/forecast"), "/v1/forecast").json()["degraded"] is None
        counted = server.metrics()
        assert counted['predictions_total{route="/v1/explain"}'] == 3
        assert counted['http_requests_total{method="POST",route="/v1/explain",status="404"}'] == 2


def test_the_protocol_has_the_names_shapes_and_types_of_the_graph(served: tuple[Project, httpx.Client]) -> None:
    made, client = served
    graph = artifact.session((made.root / "build/model/model.onnx").read_bytes())
    body = client.get(f"/v2/models/{NAME}").json()
    for told, found in ((body["inputs"], graph.get_inputs()), (body["outputs"], graph.get_outputs())):
        assert [(one["name"], one["datatype"], one["shape"]) for one in told] == [
            (one.name, {"tensor(double)": "FP64"}[one.type], [-1, one.shape[1]]) for one in found
        ]
    assert (body["versions"], body["platform"]) == (["fake"], "onnx_onnxruntime")
    assert client.get("/v2").json() == {"name": NAME, "version": "fake", "extensions": []}


def test_infer_gives_what_predict_gives(served: tuple[Project, httpx.Client]) -> None:
    made, client = served
    infer = f"/v2/models/{NAME}/infer"
    body = client.post(infer, json=tensor(made) | {"id": "mine"}).json()
    assert (body["model_name"], body["model_version"], body["id"]) == (NAME, "fake", "mine")
    assert body["outputs"] == [{"name": "forecast", "datatype": "FP64", "shape": [2, len(made.horizons)],
                                "data": pytest.approx(made.expected * 2)}]  # fmt: skip
    nested = tensor(made, data=[[*made.instance.values()]] * 2)
    assert client.post(infer, json=nested).json()["outputs"] == body["outputs"]
    strange = tensor(made)
    strange["inputs"][0]["data"][-1] = 11.0
    assert client.post(infer, json=strange).json()["parameters"] == {"out_of_range": f"1.{made.inputs[-1]}"}


@pytest.mark.parametrize(("change", "says"), [
    (lambda one: one["inputs"][0].update(name="other"), "inputs.0.name: must be 'features'"),
    (lambda one: one["inputs"][0].update(datatype="FP32"), "inputs.0.datatype: must be 'FP64'"),
    (lambda one: one["inputs"][0].update(shape=[2, 1]), "inputs.0.shape"),
    (lambda one: one["inputs"][0].update(shape=[21, one["inputs"][0]["shape"][1]]), "at most 20 rows"),
    (lambda one: one["inputs"][0].update(shape=[True, 3]), "inputs.0.shape"),
    (lambda one: one["inputs"][0]["data"].pop(), "inputs.0.data: must be 2 times"),
    (lambda one: one["inputs"][0]["data"].__setitem__(3, None), "inputs.0.data.3: is null"),
    (lambda one: one["inputs"][0].pop("data"), "binary extension"),
    (lambda one: one["inputs"].append(one["inputs"][0]), "a list of one object"),
    (lambda one: one.update(outputs=[{"name": "class"}]), "outputs: must be a list that names 'forecast'"),
    (lambda one: one.update(id=3), "id: must be a text"),
    (lambda one: one.update(more=3), "more: is unknown"),
])  # fmt: skip
def test_infer_refuses_in_the_form_of_the_protocol(
    served: tuple[Project, httpx.Client], change: Callable[[dict[str, Any]], Any], says: str
) -> None:
    made, client = served
    body = tensor(made)
    change(body)
    response = client.post(f"/v2/models/{NAME}/infer", json=body)
    assert (response.status_code, response.headers["content-type"]) == (422, "application/json")
    assert list(response.json()) == ["error"] and says in response.json()["error"]


def test_infer_does_not_take_binary_data(served: tuple[Project, httpx.Client]) -> None:
    made, client = served
    headers = {"inference-header-content-length": "10"}
    response = client.post(f"/v2/models/{NAME}/infer", json=tensor(made), headers=headers)
    assert response.status_code == 400 and "binary extension" in response.json()["error"]
    response = client.get(f"/v2/models/{NAME}/versions/2")
    assert response.status_code == 404 and "version 'fake' answers" in response.json()["error"]
    assert client.get("/v2/nowhere").json()["error"]


def test_the_landing_page_is_one_file_under_a_strict_policy(served: tuple[Project, httpx.Client]) -> None:
    response = served[1].get("/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.content == page.FILE.read_bytes()
    seen = Seen(response.text)
    assert [one for one in seen.outside if "//" in one or one.startswith("/")] == []
    assert not seen.tags.keys() & {"iframe", "object", "embed", "base", "form", "img"}
    assert not re.search(r"\s(style|on\w+)=", response.text)  # what the policy would forbid
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", response.text)
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    for tag in ("script", "style"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", response.text, re.DOTALL)
        assert policy[f"{tag}-src"] == f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
