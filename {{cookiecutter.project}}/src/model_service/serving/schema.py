"""The OpenAPI document: what each route takes and answers, made from the contract; every form has an example."""

from collections.abc import Iterator, Mapping
from functools import cache, partial
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from model_service import explain, features
from model_service.contract import Contract
from model_service.serving import keys
from model_service.serving.edge import MAX_MISTAKES
from model_service.telemetry import PROBES

Schema = dict[str, Any]
TOLD = "x-told"  # where a route's own part of the document waits for the rest
DIGEST = "sha256:" + "0123456789abcdef" * 4
NULL: Schema = {"type": "null"}
INTEGER: Schema = {"type": "integer"}
DAY: Schema = {"type": "string", "format": "date", "examples": ["2016-07-01"]}
AS_OF: Schema = {"anyOf": [DAY, {"type": "string", "format": "date-time"}]}
VERSION: Schema = {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$", "examples": [DIGEST]}
REQUEST_ID = {
    "X-Request-ID": {
        "description": "the caller's, when it was sane; the log and the audit trail name it",
        "schema": {"type": "string"},
    }
}
RETRY_AFTER = {"Retry-After": {"description": "seconds", "schema": {"type": "string", "pattern": "^[0-9]+$"}}}
POSTED = {400, 408, 413, 415, 422}  # what may become of any body
DETAILS = {
    400: "the body is not JSON: Expecting value: line 1 column 1 (char 0)",
    401: "a valid API key is required: send it as x-api-key",
    404: "nothing was known at 1950-01-01T23:59:59.999999Z: the first usable date is 2016-06-29",
    408: "the body did not arrive in time: send it faster, or less of it",
    413: "the body is larger than 1000000 bytes: send fewer instances at a time",
    415: "the body is text/plain: send application/json",
    422: "instances.0.surplus: is no input: see /v1/model",
    429: "64 requests are in line: ask again, and less often",
    500: "the service failed; its log names the cause under this id",
    501: "model 3 was trained before there were explanations: train it again",
    503: "the prediction cannot be made now: model_timeout",
}
TEXTS = {"text/html": "<!doctype html><title>...</title>", "text/plain": 'predictions_total{route="/v1/predict"} 1.0\n'}


def text(example: str) -> Schema:
    return {"type": "string", "examples": [example]}


def clock(example: str) -> Schema:
    return {"type": "string", "format": "date-time", "examples": [example]}


def number(example: float) -> Schema:
    return {"type": "number", "examples": [example]}


def count(example: int) -> Schema:
    return {"type": "integer", "minimum": 1, "examples": [example]}


def nullable(kind: str, example: Any) -> Schema:
    """What an older model, or one trained in another way, does not tell."""
    return {"type": [kind, "null"], "examples": [example]}


def array(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def obj(optional: tuple[str, ...] = (), /, **properties: Schema) -> Schema:
    """An object of these members and no others; all but `optional` are required."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def example_of(schema: Schema) -> Any:
    """An example of the form: the first it names itself, else one made of those of its parts that are required."""
    if named := schema.get("examples") or schema.get("enum"):
        return named[0]
    if "const" in schema:
        return schema["const"]
    if "anyOf" in schema:
        return example_of(schema["anyOf"][0])
    if schema["type"] == "array":
        return [example_of(schema["items"])]
    if schema["type"] == "object":
        return {name: example_of(schema["properties"][name]) for name in schema["required"]}
    raise ValueError(f"an example is due: {schema}")


def documented(gives: str, *errors: int, takes: str | None = None) -> dict[str, Any]:
    """Argument of a route's decorator: the form of its answer and of its body, and the errors that it alone has."""
    return {"openapi_extra": {TOLD: {"gives": gives, "errors": errors, "takes": takes}}}


def install(app: FastAPI, contract: Contract) -> None:
    """Makes the document of `app` the contract's."""
    app.openapi = cache(partial(_document, app, contract))  # type: ignore[method-assign]


def _document(app: FastAPI, contract: Contract) -> dict[str, Any]:
    made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    # Not in the routes: FastAPI would leave the nulls out.
    shapes, known = schemas(contract), parameters(contract)
    shown = dict(_examples(shapes, contract))
    made["components"] = {
        "schemas": shapes,
        "examples": {name: {"value": value} for name, value in shown.items()},
        "securitySchemes": {"ApiKey": {"type": "apiKey", "in": "header", "name": keys.HEADER}},
    }
    for path, ways in made["paths"].items():
        for operation in ways.values():
            _complete(path, operation, operation.pop(TOLD), shown)
            for parameter in operation.get("parameters", ()):
                parameter |= known[parameter["name"]]
    return made


def _complete(path: str, operation: dict[str, Any], says: dict[str, Any], shown: Mapping[str, Any]) -> None:
    """Puts body and answers of one operation in the place of FastAPI's, which has a 422 where any text will do."""
    statuses = {500, *says["errors"]} | (set() if path in PROBES else {429, 503})
    if takes := says.get("takes"):
        operation["requestBody"] = {"content": _content(takes, shown), "required": True}
        statuses |= POSTED
    if path.startswith(keys.GUARDED):  # where API_KEYS is set
        operation["security"] = [{}, {"ApiKey": []}]
        statuses.add(401)
    good = {"description": "Answered", "content": _content(says["gives"], shown), "headers": REQUEST_ID}
    operation["responses"] = {"200": good} | {str(status): _error(path, status) for status in sorted(statuses)}


def _content(form: str, shown: Mapping[str, Any]) -> dict[str, Any]:
    if form in TEXTS:
        return {form: {"schema": {"type": "string"}, "example": TEXTS[form]}}
    named = (name for name in shown if name.startswith(f"{form}."))
    examples = {name.partition(".")[2]: {"$ref": f"#/components/examples/{name}"} for name in named}
    return {"application/json": {"schema": _ref(form), "examples": examples}}


def _error(path: str, status: int) -> dict[str, Any]:
    """As a problem document, below /v2 as the protocol has it."""
    phrase, detail = HTTPStatus(status).phrase, DETAILS[status]
    headers = REQUEST_ID | (RETRY_AFTER if status in {429, 503} else {})
    if path.startswith("/v2"):
        content = {"application/json": {"schema": _ref("Error"), "example": {"error": detail}}}
    else:
        shown = example_of(_problem()) | {"title": phrase, "status": status, "detail": detail, "instance": path}
        if status == 422:
            field, _, what = detail.partition(": ")
            shown["errors"] = [{"field": field, "detail": what}]
        content = {"application/problem+json": {"schema": _ref("Problem"), "example": shown}}
    return {"description": phrase, "content": content, "headers": headers}


def _ref(form: str) -> Schema:
    return {"$ref": f"#/components/schemas/{form}"}


def _examples(shapes: Mapping[str, Schema], contract: Contract) -> Iterator[tuple[str, Any]]:
    """By `form.what`: one of each way a form may look, and what else is worth seeing."""
    for form, schema in shapes.items():
        for way in schema.get("anyOf", (schema,)):
            yield f"{form}.{way.get('title', 'one')}", example_of(way)
    degraded = {"degraded": {"reason": "database_away", "source": "last_forecast"}}
    yield "Forecast.degraded", example_of(shapes["Forecast"]) | degraded
    yield "Explain.forecast_of_a_day", {"as_of": "2016-07-01", "horizon": [contract.target.horizons[0]]}


def parameters(contract: Contract) -> dict[str, Schema]:
    """What a parameter of each name is."""
    horizons = list(contract.target.horizons)
    says = "periods ahead; repeat it for several; left out: all"
    return {
        "horizon": {"description": says, "schema": array({"type": "integer", "enum": horizons}),
                    "example": horizons[:1]},
        "as_of": {"description": "what the world knew then; a plain date means its end, UTC", "schema": AS_OF,
                  "example": example_of(AS_OF)},
        "data_version": {"description": "of an earlier answer; left out: the newest", "schema": VERSION,
                         "example": DIGEST},
        "model": {"description": "the service's name", "schema": {"type": "string"}, "example": contract.service.name},
        "version": {"description": "the model's, as /v1/model has it", "schema": {"type": "string"}, "example": "3"},
    }  # fmt: skip


def schemas(contract: Contract) -> dict[str, Schema]:
    """Every form of a body, by name; inputs, horizons and limits are the contract's."""
    name, names, horizons = contract.service.name, features.inputs(contract), list(contract.target.horizons)
    target = contract.target.series
    ahead: Schema = {"type": "integer", "enum": horizons}
    rows = {"minItems": 1, "maxItems": contract.serving.max_instances}
    instance = obj(**dict.fromkeys(names, number(0.5)))
    strange = array({"type": "string", "enum": names}, description="inputs outside the range seen in training")
    model = obj(version=text("3"), digest=VERSION)
    as_of = obj(known_at=clock("2016-07-01T23:59:59.999999Z"), data_version=VERSION)
    trained = obj(version=text("3"), digest=VERSION, trained_as_of=clock("2016-07-29T23:59:59.999999Z"))
    head = {"service": text(name), "target": text(target), "unit": text(contract.series[target].unit), "as_of": as_of,
            "inputs_known_until": clock("2016-06-29T00:00:00Z"), "model": trained,
            "hindsight": {"type": "boolean", "examples": [True]}}  # fmt: skip
    by_input = instance | {"examples": [dict.fromkeys(names, 0.0) | {names[0]: 0.01}]}
    groups = list(explain.inputs_by_series(contract))
    by_series = {"type": "object", "additionalProperties": {"type": "number"},
                 "examples": [dict.fromkeys(groups, 0.0) | {groups[0]: 0.01}]}  # fmt: skip
    part = {"value": number(4.71), "base": number(4.7), "scale": number(1.0), "contributions": by_input}
    method: Schema = {"type": "string", "enum": ["linear", "trees", "permutation"]}
    marked = ("out_of_range",)
    interval = obj(level=number(0.8), lower=number(4.55), upper=number(4.88))
    degraded = obj(reason=text("database_away"), source={"enum": ["last_forecast", "baseline"]})
    clocks = {"horizon": array(ahead), "as_of": AS_OF, "data_version": VERSION}
    each = {f"horizon_{one}": obj(**part) for one in horizons}
    explained = array(obj(marked, **each, out_of_range=strange))
    forecasts = array(obj(horizon=ahead, valid_time=DAY, **part, series=by_series))
    return {
        "Problem": _problem(),
        "Error": obj(error=text(DETAILS[500])),
        "Forecast": obj(
            **head,
            forecasts=array(obj(horizon=ahead, valid_time=DAY, value=number(4.71), intervals=array(interval))),
            degraded={"anyOf": [NULL, degraded], "examples": [None]},
        ),
        "Instances": obj(instances=array(instance, **rows)),
        "Predictions": obj(model=model, predictions=array(
            obj(marked, **{f"horizon_{one}": number(4.71) for one in horizons}, out_of_range=strange))),
        "Explain": {"anyOf": [obj(instances=array(instance, **rows)) | {"title": "instances"},
                              obj(tuple(clocks), **clocks) | {"title": "forecast_now"}]},
        "Explanations": {"anyOf": [
            obj(model=model, method=method, explanations=explained) | {"title": "instances"},
            obj(**head, method=method, explanations=forecasts) | {"title": "forecast"}]},
        "Model": _model(contract, names, horizons, as_of),
        "Alive": obj(status={"const": "alive"}),
        "Ready": obj(status={"const": "ready"}, model=model),
        **_protocol(name, len(names), len(horizons), contract.serving.max_instances),
    }  # fmt: skip


def _problem() -> Schema:
    """RFC 9457, with the request's id and what is wrong in which field."""
    wrong = array(obj(field=text("instances.0.surplus"), detail=text("is no input")), maxItems=MAX_MISTAKES)
    known = obj(("errors",), type=text("about:blank"), title=text("Not Found"), status=INTEGER | {"examples": [404]},
                  detail=text(DETAILS[404]), instance=text("/v1/forecast"),
                  request_id=nullable("string", "4f1c0f6e6f4d4c0b9d2f1f0a5f3f7f11"), errors=wrong)  # fmt: skip
    return known | {"additionalProperties": True}


def _model(contract: Contract, names: list[str], horizons: list[int], trained: Schema) -> Schema:
    """What /v1/model tells; of an older model some of it is not known, and null."""
    service, serving, target = contract.service, contract.serving, contract.target
    how = obj(method=text("linear"), says=text(explain.SAYS["linear"]), max_instances=count(1000))
    challenger = obj(version=nullable("string", "4"), digest=nullable("string", DIGEST), fault=nullable("string", None))
    range_, errors = dict.fromkeys(names, [-1.0, 1.0]), {"model": [0.14] * len(horizons)}
    interval = {"horizon": horizons[0], "level": 0.8, "lower": -0.16, "upper": 0.17}
    return obj(
        service=text(service.name), description=text(service.description), version=text("3"), digest=VERSION,
        image_digest=nullable("string", None), challenger={"anyOf": [challenger, NULL]},
        max_instances=count(serving.max_instances), out_of_range={"enum": ["mark", "reject"]},
        explain={"anyOf": [how, NULL]}, task=nullable("string", "forecast"),
        target={"type": "object", "required": ["series", "transform"],
                "examples": [{"series": target.series, "transform": target.transform}]},
        inputs=array({"enum": names}, examples=[names]), input_range=nullable("object", range_),
        horizons=array({"enum": horizons}, examples=[horizons]), estimator=nullable("string", contract.train.estimator),
        chosen=nullable("object", None), seed=nullable("integer", 1), trained_as_of=trained,
        inputs_known_until={"anyOf": [clock("2016-07-29T00:00:00Z"), NULL]},
        loads=nullable("object", {next(iter(contract.source)): 2}), data_hash=nullable("string", DIGEST),
        git_commit=nullable("string", None), source_hash=nullable("string", DIGEST),
        lock_hash=nullable("string", DIGEST), intervals=nullable("array", [interval]),
        metrics=nullable("object", {"rmse": errors}), gate=nullable("array", []), overruled=nullable("object", None),
    )  # fmt: skip


def _protocol(name: str, width: int, ahead: int, limit: int) -> dict[str, Schema]:
    """The forms of the Open Inference Protocol."""
    free: Schema = {"type": "object"}

    def tensor(called: str, *sizes: int, **more: Schema) -> Schema:
        return obj(name=text(called), datatype=text("FP64"), shape=array(INTEGER, examples=[list(sizes)]), **more)

    rows = {"prefixItems": [{"type": "integer", "minimum": 1, "maximum": limit}, {"const": width}],
            "minItems": 2, "maxItems": 2, "examples": [[1, width]]}  # fmt: skip
    given = obj(("parameters",), name={"const": "features"}, shape=array(INTEGER, **rows), datatype={"const": "FP64"},
                  parameters=free, data={"type": "array", "examples": [[0.5] * width]})  # fmt: skip
    wanted = obj(("parameters",), name={"const": "forecast"}, parameters=free)
    made = tensor("forecast", 1, ahead, data=array({"type": "number"}, examples=[[4.71] * ahead]))
    version = text("3")
    return {
        "Live": obj(live={"const": True}),
        "ServerReady": obj(ready={"const": True}),
        "Server": obj(name=text(name), version=version, extensions=array({"type": "string"}, examples=[[]])),
        "ModelReady": obj(name=text(name), ready={"const": True}),
        "Metadata": obj(name=text(name), versions=array(version), platform=text("onnx_onnxruntime"),
                          inputs=array(tensor("features", -1, width)), outputs=array(tensor("forecast", -1, ahead))),
        "Infer": obj(("id", "parameters", "outputs"), id=text("mine"), parameters=free,
                       inputs=array(given, minItems=1, maxItems=1), outputs=array(wanted)),
        "Inferred": obj(("id", "parameters"), model_name=text(name), model_version=version, id=text("mine"),
                          parameters=obj(out_of_range=text("0.spread")), outputs=array(made)),
    }  # fmt: skip
