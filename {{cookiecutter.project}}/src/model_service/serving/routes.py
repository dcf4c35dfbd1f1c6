"""The app: the routes of /v1, and those around them."""

import os
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi_offline import FastAPIOffline
from starlette.responses import HTMLResponse, Response

from model_service import explain, forecasting
from model_service.artifact import Model
from model_service.serving import body, edge, inference, page, schema
from model_service.serving.edge import Problem, as_json, invalid
from model_service.serving.runtime import Runtime
from model_service.serving.schema import documented

CARD_FIELDS = (
    "task", "target", "inputs", "input_range", "horizons", "estimator", "chosen", "seed", "trained_as_of",
    "inputs_known_until", "loads", "data_hash", "git_commit", "source_hash", "lock_hash", "intervals", "metrics",
    "gate", "overruled",
)  # fmt: skip
CLOCKS = ("as_of", "data_version")
VERSION = re.compile(r"sha256:[0-9a-f]{64}")
Horizon = Annotated[list[int] | None, Query()]
Clock = Annotated[str | None, Query()]
FORMS = '{"instances": [{...}]}, or {"horizon": [...], "as_of": "...", "data_version": "..."} with any or none of them'


def build(runtime: Runtime) -> FastAPI:
    """The app over `runtime`. Its lifespan starts and stops the runtime, where the server runs lifespans."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await runtime.start()
        yield
        await runtime.stop()

    service, limits = runtime.contract.service, runtime.contract.serving
    app = FastAPIOffline(
        # ReDoc shows a picture from its maker's host, so it is not there at all.
        redoc_url=None, static_url="/docs/static", title=service.name, description=service.description,
        lifespan=lifespan, redirect_slashes=False,
    )  # fmt: skip
    edge.install(app)
    schema.install(app, runtime.contract)

    @app.get("/v1/forecast", **documented("Forecast", 404, 422))
    async def forecast(
        request: Request, horizon: Horizon = None, as_of: Clock = None, data_version: Clock = None
    ) -> Response:
        """The target at each horizon, with intervals."""
        _no_others(request, {"horizon", *CLOCKS})
        made = await runtime.forecast(_known_at(as_of), _version(data_version), horizon)
        runtime.record_answer("/v1/forecast", dict(request.query_params), made["forecasts"], 1,
                         as_of=made["as_of"], degraded=made["degraded"])  # fmt: skip
        return as_json(made)

    @app.post("/v1/predict", **documented("Predictions", takes="Instances"))
    async def predict(request: Request) -> Response:
        """The target at each horizon for given inputs; /v1/model lists them."""
        model = runtime.model
        content = await body.read(request)
        rows = runtime.predictor.inputs.rows(content)
        if rows is None:
            given = body.parse_object(content, {"instances"}, '{"instances": [{...}]}', limits.max_instances)
            rows = body.parse_instances(given.get("instances"), model.inputs, limits.max_instances)
        values, strange = await runtime.predict(rows)
        predictions = _by_horizon(model, values.tolist(), strange)
        runtime.record_answer("/v1/predict", {"names": model.inputs, "rows": rows.tolist()}, predictions, len(rows))
        return as_json({"model": model.name, "predictions": predictions})

    @app.post("/v1/explain", **documented("Explanations", 404, 501, takes="Explain"))
    async def explanation(request: Request) -> Response:
        """What each input did to the target at each horizon: of given inputs, or of the forecast by its clocks.

        Contributions and base sum to the value, in the target's unit; divided by `scale` they are those of the modelled
        change. A forecast's are summed up by series besides. `method`: `linear` (exact), `trees` (path-dependent
        TreeSHAP, exact), or `permutation` (an estimator of one's own: the sum is exact, the shares are estimates).
        """
        model = runtime.model
        content = await body.read(request)
        given = body.parse_object(content, {"instances", "horizon", *CLOCKS}, FORMS, limits.max_instances)
        if "instances" not in given:
            made = await runtime.explained(*_asked(given))
            runtime.record_answer("/v1/explain", given, made["explanations"], 1, as_of=made["as_of"])
            return as_json(made)
        if others := sorted(set(given) - {"instances"}):
            raise invalid((name, "goes with a forecast, not with instances") for name in others)
        explainer = await runtime.explainer()
        most = explainer.most(limits.max_instances, limits.timeout_seconds / 2)
        rows = body.parse_instances(given["instances"], model.inputs, most)
        made_of, strange = await runtime.contributions(rows)
        parts = (explain.by_horizon(model, made_of, row) for row in range(len(rows)))
        explanations = _by_horizon(model, parts, strange)
        runtime.record_answer("/v1/explain", {"names": model.inputs, "rows": rows.tolist()}, explanations, len(rows))
        return as_json({"model": model.name, "method": explainer.method, "explanations": explanations})

    @app.get("/v1/model", **documented("Model"))
    async def card() -> Response:
        """The model that answers: what it was made from, how it did, what it takes."""
        model = runtime.model
        names = {"service": service.name, "description": service.description, **model.name,
                 "image_digest": os.environ.get("IMAGE_DIGEST") or None,
                 "challenger": runtime.shadow.summary()}  # fmt: skip
        try:
            explainer = await runtime.explainer()
            most = explainer.most(limits.max_instances, limits.timeout_seconds / 2)
            how = {"method": explainer.method, "says": explain.SAYS[explainer.method], "max_instances": most}
        except Problem:
            how = None
        taken = {"max_instances": limits.max_instances, "out_of_range": limits.out_of_range, "explain": how}
        return as_json(names | taken | {field: model.card.get(field) for field in CARD_FIELDS})

    @app.get("/report", **documented("text/html", 404))
    async def report() -> Response:
        """How the model was trained, tested and let through: one page for people."""
        return HTMLResponse(await runtime.report())

    @app.get("/", **documented("text/html"))
    async def landing() -> Response:
        """The latest forecast, the model and its health: one page for people."""
        return page.answer()

    @app.get("/livez", **documented("Alive"))
    async def livez() -> Response:
        """The process answers."""
        return as_json({"status": "alive"})

    @app.get("/readyz", **documented("Ready", 429, 503))
    async def readyz() -> Response:
        """The model is whole: its checksums fit, and a golden example comes out as it did in training."""
        await runtime.check()
        return as_json({"status": "ready", "model": runtime.model.name})

    @app.get("/metrics", **documented("text/plain"))
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(runtime.metrics.text(), media_type="text/plain; version=0.0.4")

    inference.add(app, runtime)
    return app


def _by_horizon(model: Model, rows: Iterable[Sequence[Any]], strange: list[list[str]]) -> list[dict[str, Any]]:
    """What is told of each row at each horizon, and which of its inputs lie outside the range of training."""
    ahead = [f"horizon_{horizon}" for horizon in model.horizons]
    made: list[dict[str, Any]] = [dict(zip(ahead, row, strict=True)) for row in rows]
    for one, names in zip(made, strange, strict=True):
        if names:
            one["out_of_range"] = names
    return made


def _no_others(request: Request, known: set[str]) -> None:
    """Raises Problem 422 for a parameter that would be ignored: an unknown one, or a repeated clock."""
    given = [name for name, _ in request.query_params.multi_items()]
    mistakes = [(name, f"is unknown; known: {', '.join(sorted(known))}") for name in sorted(set(given) - known)]
    mistakes += [(name, "is given more than once") for name in CLOCKS if given.count(name) > 1]
    if mistakes:
        raise invalid(mistakes)


def _asked(given: dict[str, Any]) -> tuple[datetime | None, str | None, list[int] | None]:
    """Both clocks and the horizons of a body; raises Problem 422."""
    mistakes = [(name, "must be a text") for name in CLOCKS if not isinstance(given.get(name), str | None)]
    horizons = given.get("horizon")
    if horizons is not None and not (isinstance(horizons, list) and all(type(one) is int for one in horizons)):
        mistakes.append(("horizon", "must be a list of whole numbers"))
    if mistakes:
        raise invalid(mistakes)
    return _known_at(given.get("as_of")), _version(given.get("data_version")), horizons


def _known_at(text: str | None) -> datetime | None:
    try:
        return None if text is None else forecasting.parse_as_of(text)
    except ValueError as error:
        raise invalid([("as_of", str(error))]) from None


def _version(text: str | None) -> str | None:
    if text is not None and not VERSION.fullmatch(text):
        raise invalid([("data_version", "is no data version: an answer's `as_of` names one, sha256 and 64 digits")])
    return text
