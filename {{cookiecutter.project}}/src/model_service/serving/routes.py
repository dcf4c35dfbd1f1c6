"""The routes, in one FastAPI app, and what they take: parameters, and the body of /v1/predict."""

import asyncio
import json
import math
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import chain, islice
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request
from starlette.responses import HTMLResponse, Response

from model_service import forecasting
from model_service.features import Floats
from model_service.serving import edge
from model_service.serving.edge import MAX_MISTAKES, Mistake, Problem, wrong
from model_service.serving.runtime import Runtime
from model_service.telemetry import request_id

EXAMPLE = {"instances": [{"NAME": 0.0}]}
BODY = {"content": {"application/json": {"schema": {"type": "object"}, "example": EXAMPLE}}, "required": True}
CARD_FIELDS = ("target", "inputs", "horizons", "estimator", "trained_as_of", "intervals", "metrics")
Horizon = Annotated[list[int] | None, Query(description="periods ahead; repeat it for several; left out: all")]
AsOf = Annotated[str | None, Query(description="what the world knew then; a plain date means its end, UTC")]
Version = Annotated[str | None, Query(description="`sha256:...` of an earlier answer; left out: the newest")]


def build(runtime: Runtime) -> FastAPI:
    """The app over `runtime`. Its lifespan starts and stops the runtime, where the server runs lifespans."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await runtime.start()
        yield
        await runtime.stop()

    service, limits = runtime.contract.service, runtime.contract.serving
    app = FastAPI(title=service.name, description=service.description, lifespan=lifespan, redirect_slashes=False)
    edge.install(app)

    @app.get("/v1/forecast", response_class=Response)
    async def forecast(
        request: Request, horizon: Horizon = None, as_of: AsOf = None, data_version: Version = None
    ) -> Response:
        """The target at each horizon, with intervals."""
        _no_others(request, {"horizon", "as_of", "data_version"})
        body = await runtime.forecast(_known_at(as_of), data_version, horizon)
        runtime.metrics.predictions.labels("/v1/forecast").inc()
        more = {"as_of": body["as_of"], "degraded": body["degraded"]}
        _audit(runtime, "/v1/forecast", dict(request.query_params), body["forecasts"], more)
        return _json(body)

    @app.post("/v1/predict", response_class=Response, openapi_extra={"requestBody": BODY})
    async def predict(request: Request) -> Response:
        """The target at each horizon for given inputs; /v1/model lists them."""
        model = runtime.model
        rows = _parse(await _body(request, limits.timeout_seconds), model.inputs, limits.max_instances)
        strange = _outside(rows, model.inputs, model.card.get("input_range", {}))
        if limits.out_of_range == "reject" and any(strange):
            places = (f"instances.{number}.{name}" for number, row in enumerate(strange) for name in row)
            raise wrong((place, "is outside the range seen in training") for place in places)
        values = model.predict(rows) if len(rows) < 100 else await asyncio.to_thread(model.predict, rows)
        if wild := np.flatnonzero(~np.isfinite(values).all(axis=1)).tolist():
            raise wrong((f"instances.{number}", "gives no finite forecast") for number in wild)
        predictions: list[dict[str, Any]] = []
        for row, names in zip(values.tolist(), strange, strict=True):
            prediction = {f"horizon_{horizon}": value for horizon, value in zip(model.horizons, row, strict=True)}
            predictions.append(prediction | ({"out_of_range": names} if names else {}))
        runtime.metrics.predictions.labels("/v1/predict").inc(len(rows))
        _audit(runtime, "/v1/predict", {"names": model.inputs, "rows": rows.tolist()}, predictions, {})
        return _json({"model": model.name, "predictions": predictions})

    @app.get("/v1/model", response_class=Response)
    async def card() -> Response:
        """The model that answers, and its card's figures."""
        model = runtime.model
        names = {"service": service.name, **model.name, "image_digest": _image()}
        return _json(names | {field: model.card.get(field) for field in CARD_FIELDS})

    @app.get("/report", response_class=HTMLResponse)
    async def report() -> Response:
        """How the model was trained, tested and let through: one page for people."""
        return HTMLResponse(await runtime.report())

    @app.get("/livez", response_class=Response)
    async def livez() -> Response:
        """The process answers."""
        return _json({"status": "alive"})

    @app.get("/readyz", response_class=Response)
    async def readyz() -> Response:
        """The model is whole: its checksums fit, and a golden example comes out as it did in training."""
        await runtime.check()
        return _json({"status": "ready", "model": runtime.model.name})

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(runtime.metrics.text(), media_type="text/plain; version=0.0.4")

    return app


def _json(body: dict[str, Any]) -> Response:
    content = json.dumps(body, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return Response(content, media_type="application/json")


def _image() -> str | None:
    return os.environ.get("IMAGE_DIGEST") or None


def _no_others(request: Request, known: set[str]) -> None:
    """Raises Problem 422 for a parameter that would be ignored: an unknown one, or a repeated clock."""
    given = [name for name, _ in request.query_params.multi_items()]
    mistakes = [(name, f"is unknown; known: {', '.join(sorted(known))}") for name in sorted(set(given) - known)]
    mistakes += [(name, "is given more than once") for name in ("as_of", "data_version") if given.count(name) > 1]
    if mistakes:
        raise wrong(mistakes)


def _known_at(text: str | None) -> datetime | None:
    try:
        return None if text is None else forecasting.parse_as_of(text)
    except ValueError as error:
        raise wrong([("as_of", str(error))]) from None


async def _body(request: Request, seconds: float) -> bytes:
    """The whole body; raises Problem 415 for another type than JSON, 408 when it does not arrive within `seconds`."""
    kind = request.headers.get("content-type", "application/json").split(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(415, f"the body is {kind}: send application/json")
    try:
        async with asyncio.timeout(seconds):
            return await request.body()
    except TimeoutError:
        raise Problem(408, f"the body did not arrive within {seconds} seconds") from None


def _audit(runtime: Runtime, route: str, inputs: dict[str, Any], output: list[Any], more: dict[str, Any]) -> None:
    identifier = str(request_id.get())
    document = {
        "service": {"name": runtime.contract.service.name},
        "http": {"request": {"id": identifier}},
        "route": route,
        "model": runtime.model.name,
        "image": {"digest": _image()},
        "inputs": inputs,
        "output": output,
    }
    runtime.audit.put(identifier, datetime.now(UTC), document | more)


def _parse(body: bytes, names: list[str], limit: int) -> Floats:
    """Instances as [N, F] in the order of `names`; raises Problem 400 (not JSON) or 422 (wrong in some field)."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"the body is not JSON: {error}") from None
    if not isinstance(data, dict) or "instances" not in data:
        raise wrong([("instances", 'is missing; the body is {"instances": [{...}]}')])
    if extra := sorted(set(data) - {"instances"}):
        raise wrong((name, "is unknown; only `instances` is known") for name in extra)
    instances = data["instances"]
    if not isinstance(instances, list) or not 0 < len(instances) <= limit:
        raise wrong([("instances", f"must be a list of 1 to {limit} objects; at most {limit} are taken at a time")])
    found = chain.from_iterable(_mistakes(one, names, f"instances.{number}") for number, one in enumerate(instances))
    if mistakes := list(islice(found, MAX_MISTAKES)):
        raise wrong(mistakes)
    return np.array([[one[name] for name in names] for one in instances], np.float64)


def _outside(rows: Floats, names: list[str], ranges: dict[str, list[float]]) -> list[list[str]]:
    """For each row the inputs that lie outside the range seen in training."""
    bounds = np.array([ranges.get(name, [-np.inf, np.inf]) for name in names])
    flags = (rows < bounds[:, 0]) | (rows > bounds[:, 1])
    return [[names[column] for column in np.flatnonzero(row)] for row in flags]


def _mistakes(instance: Any, names: list[str], place: str) -> Iterator[Mistake]:
    if not isinstance(instance, dict):
        yield place, "must be an object of input names and numbers"
        return
    for name in names:
        if name not in instance:
            yield f"{place}.{name}", "is missing"
        elif what := _not_a_number(instance[name]):
            yield f"{place}.{name}", what
    if instance.keys() != set(names):
        yield from ((f"{place}.{name}", "is no input: see /v1/model") for name in instance if name not in names)


def _not_a_number(value: Any) -> str | None:
    if type(value) not in (int, float):
        return f"is {'null' if value is None else type(value).__name__}; a number is due"
    try:
        return None if math.isfinite(value) else "is not finite"
    except OverflowError:
        return "is too large for a float"
