"""The OpenAPI document: what each route takes and answers, with examples, made from the contract."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response

from model_service import features
from model_service.contract import Contract
from model_service.serving import examples, keys
from model_service.serving.door import PROBES
from model_service.serving.edge import MAX_MISTAKES

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 1}
MAYBE: Schema = {"type": ["string", "null"]}
CLOCK: Schema = {"type": "string", "format": "date-time"}
DAY: Schema = {"type": "string", "format": "date"}
VERSION: Schema = {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}
AS_OF: Schema = {"anyOf": [DAY, CLOCK]}
REQUEST_ID = {
    "X-Request-ID": {
        "description": "the caller's, when it was sane; the log and the audit trail name it",
        "schema": TEXT,
    }
}
RETRY_AFTER = {"Retry-After": {"description": "seconds", "schema": {"type": "string", "pattern": "^[0-9]+$"}}}
POSTED = (400, 408, 413, 415, 422, 429, 503)  # what may become of any body


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def many(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def shape(optional: tuple[str, ...] = (), /, **properties: Schema) -> Schema:
    """An object of these members and no others; all but `optional` are required."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


class Answers:
    """Arguments of FastAPI's decorators that document a route."""

    def __init__(self, shown: Mapping[str, Any]) -> None:
        self._shown = shown

    def __call__(self, name: str, *statuses: int, form: str = "Problem") -> dict[int | str, dict[str, Any]]:
        """The good answer and those of `statuses`, and of a bug, in the given form of errors."""
        good = {"description": "Answered", "content": self._json(name), "headers": REQUEST_ID}
        return {200: good, **self.errors(statuses, form)}

    def text(self, kind: str, *statuses: int) -> dict[int | str, dict[str, Any]]:
        content = {kind: {"schema": TEXT, "example": examples.TEXTS[kind]}}
        good = {"description": "Answered", "content": content, "headers": REQUEST_ID}
        return {200: good, **self.errors(statuses, "Problem")}

    def posted(self, takes: str, gives: str, *statuses: int, form: str = "Problem") -> dict[str, Any]:
        """Of a route that takes a body."""
        return {
            "response_class": Response,
            "responses": self(gives, *POSTED, *statuses, form=form),
            "openapi_extra": {"requestBody": {"content": self._json(takes), "required": True}},
        }

    def _json(self, name: str) -> dict[str, Any]:
        shown = {key: {"$ref": f"#/components/examples/{name}.{key}"} for key in self._shown[name]}
        return {"application/json": {"schema": ref(name), "examples": shown}}

    @staticmethod
    def errors(statuses: tuple[int, ...], form: str) -> dict[int | str, dict[str, Any]]:
        found: dict[int | str, dict[str, Any]] = {}
        for status in sorted({*statuses, 500}):
            example = examples.problem(status)
            kind, example = ("application/problem+json", example) if form == "Problem" else (
                "application/json", {"error": example["detail"]})  # fmt: skip
            headers = REQUEST_ID | (RETRY_AFTER if status in {429, 503} else {})
            content = {kind: {"schema": ref(form), "example": example}}
            found[status] = {"description": HTTPStatus(status).phrase, "content": content, "headers": headers}
        return found


def install(app: FastAPI, contract: Contract) -> Answers:
    """Makes the document of `app` the contract's; returns what documents its routes."""

    shown = examples.examples(contract)

    def document() -> dict[str, Any]:
        if not app.openapi_schema:
            made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            # Not in the routes: FastAPI would leave the nulls out.
            made["components"] = {
                "schemas": schemas(contract),
                "examples": {
                    f"{name}.{key}": {"value": value} for name, one in shown.items() for key, value in one.items()
                },
            }
            known = parameters(contract)
            made["components"]["securitySchemes"] = {"ApiKey": {"type": "apiKey", "in": "header", "name": keys.HEADER}}
            for path, operation in ((path, one) for path, ways in made["paths"].items() for one in ways.values()):
                # Without FastAPI's own 422, for parameters of which any text will do.
                operation["responses"] = {code: one for code, one in operation["responses"].items() if "headers" in one}
                anywhere = () if path in PROBES else (429, 503)
                if path.startswith(keys.GUARDED):  # where API_KEYS is set
                    operation["security"], anywhere = [{}, {"ApiKey": []}], (401, *anywhere)
                for status in anywhere:
                    answer = Answers.errors((status,), "Error" if path.startswith("/v2") else "Problem")[status]
                    operation["responses"].setdefault(str(status), answer)
                for parameter in operation.get("parameters", ()):
                    parameter |= known[parameter["name"]]
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
    return Answers(shown)


def parameters(contract: Contract) -> dict[str, Schema]:
    """What a parameter of each name is."""
    horizons = list(contract.target.horizons)
    says = "periods ahead; repeat it for several; left out: all"
    return {
        "horizon": {"description": says, "schema": many({"type": "integer", "enum": horizons}),
                    "example": horizons[:1]},
        "as_of": {"description": "what the world knew then; a plain date means its end, UTC", "schema": AS_OF,
                  "example": "2016-07-01"},
        "data_version": {"description": "of an earlier answer; left out: the newest", "schema": VERSION,
                         "example": examples.VERSION},
        "model": {"description": "the service's name", "schema": TEXT, "example": contract.service.name},
        "version": {"description": "the model's, as /v1/model has it", "schema": TEXT, "example": "3"},
    }  # fmt: skip


def schemas(contract: Contract) -> dict[str, Schema]:
    """Every form of a body, by name; inputs, horizons and limits are the contract's."""
    names, horizons = features.inputs(contract), list(contract.target.horizons)
    ahead: Schema = {"type": "integer", "enum": horizons}
    limit, rows = contract.serving.max_instances, {"minItems": 1, "maxItems": contract.serving.max_instances}
    instance = shape(**dict.fromkeys(names, NUMBER))
    strange = many({"type": "string", "enum": names}, description="inputs outside the range seen in training")
    model = shape(version=TEXT, digest=VERSION)
    trained = shape(version=TEXT, digest=VERSION, trained_as_of=CLOCK)
    head = {"service": TEXT, "target": TEXT, "unit": TEXT, "as_of": shape(known_at=CLOCK, data_version=VERSION),
            "inputs_known_until": CLOCK, "model": trained, "hindsight": {"type": "boolean"}}  # fmt: skip
    part = {"value": NUMBER, "base": NUMBER, "scale": NUMBER, "contributions": instance}
    by_series = {"type": "object", "additionalProperties": NUMBER}
    method: Schema = {"type": "string", "enum": ["linear", "trees", "permutation"]}
    marked = ("out_of_range",)
    tensor = shape(name=TEXT, datatype=TEXT, shape=many({"type": "integer"}))
    sizes = {"prefixItems": [{"type": "integer", "minimum": 1, "maximum": limit}, {"const": len(names)}],
             "minItems": 2, "maxItems": 2}  # fmt: skip
    given = shape(("parameters",), name={"const": "features"}, shape=many({"type": "integer"}, **sizes),
                  datatype={"const": "FP64"}, parameters={"type": "object"}, data={"type": "array"})  # fmt: skip
    wanted = shape(("parameters",), name={"const": "forecast"}, parameters={"type": "object"})
    made = shape(name=TEXT, shape=many({"type": "integer"}), datatype=TEXT, data=many(NUMBER))
    clocks = {"horizon": many(ahead), "as_of": AS_OF, "data_version": VERSION}
    each = {f"horizon_{one}": shape(**part) for one in horizons}
    explained = many(shape(marked, **each, out_of_range=strange))
    forecasts = many(shape(horizon=ahead, valid_time=DAY, **part, series=by_series))
    return {
        "Problem": _problem(),
        "Error": shape(error=TEXT),
        "Forecast": shape(
            **head,
            forecasts=many(shape(horizon=ahead, valid_time=DAY, value=NUMBER,
                                 intervals=many(shape(level=NUMBER, lower=NUMBER, upper=NUMBER)))),
            degraded={"anyOf": [{"type": "null"}, shape(reason=TEXT, source={"enum": ["last_forecast", "baseline"]})]},
        ),
        "Instances": shape(instances=many(instance, **rows)),
        "Predictions": shape(model=model, predictions=many(
            shape(marked, **{f"horizon_{one}": NUMBER for one in horizons}, out_of_range=strange))),
        "Explain": {"anyOf": [shape(instances=many(instance, **rows)), shape(tuple(clocks), **clocks)]},
        "Explanations": {"anyOf": [shape(model=model, method=method, explanations=explained),
                                   shape(**head, method=method, explanations=forecasts)]},
        "Model": _model(names, horizons),
        "Alive": shape(status={"const": "alive"}),
        "Ready": shape(status={"const": "ready"}, model=model),
        "Live": shape(live={"const": True}),
        "ServerReady": shape(ready={"const": True}),
        "Server": shape(name=TEXT, version=TEXT, extensions=many(TEXT)),
        "ModelReady": shape(name=TEXT, ready={"const": True}),
        "Metadata": shape(name=TEXT, versions=many(TEXT), platform=TEXT, inputs=many(tensor), outputs=many(tensor)),
        "Infer": shape(("id", "parameters", "outputs"), id=TEXT, parameters={"type": "object"},
                       inputs=many(given, minItems=1, maxItems=1), outputs=many(wanted)),
        "Inferred": shape(("id", "parameters"), model_name=TEXT, model_version=TEXT, id=TEXT,
                          parameters=shape(out_of_range=TEXT), outputs=many(made)),
    }  # fmt: skip


def _problem() -> Schema:
    """RFC 9457, with the request's id and what is wrong in which field."""
    known = shape(("errors",), type=TEXT, title=TEXT, status={"type": "integer"}, detail=TEXT, instance=TEXT,
                  request_id=MAYBE, errors=many(shape(field=TEXT, detail=TEXT), maxItems=MAX_MISTAKES))  # fmt: skip
    return known | {"additionalProperties": True}


def _model(names: list[str], horizons: list[int]) -> Schema:
    """What /v1/model tells; of an older model some of it is not known, and null."""
    free: Schema = {"type": ["object", "null"]}
    listed: Schema = {"type": ["array", "null"]}
    explain = shape(method=TEXT, says=TEXT, max_instances=COUNT)
    challenger = shape(version=MAYBE, digest=MAYBE, fault=MAYBE)
    return shape(
        service=TEXT, description=TEXT, version=TEXT, digest=VERSION, image_digest=MAYBE,
        challenger={"anyOf": [{"type": "null"}, challenger]},
        max_instances=COUNT, out_of_range={"enum": ["mark", "reject"]}, explain={"anyOf": [{"type": "null"}, explain]},
        task=MAYBE, target={"type": "object", "required": ["series", "transform"]},
        inputs=many({"enum": names}), input_range=free, horizons=many({"enum": horizons}), estimator=MAYBE,
        chosen=free, seed={"type": ["integer", "null"]}, trained_as_of=shape(known_at=CLOCK, data_version=VERSION),
        inputs_known_until={"anyOf": [{"type": "null"}, CLOCK]}, loads=free, data_hash=MAYBE, git_commit=MAYBE,
        source_hash=MAYBE, lock_hash=MAYBE, intervals=listed, metrics=free, gate=listed, overruled=free,
    )  # fmt: skip
