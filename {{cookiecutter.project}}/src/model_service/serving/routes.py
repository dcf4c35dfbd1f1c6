"""The routes, in one FastAPI app."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request
from starlette.responses import Response

from model_service import forecasting
from model_service.serving import instances, problems
from model_service.serving.problems import Problem
from model_service.serving.runtime import Runtime
from model_service.telemetry import logs

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
    problems.install(app)

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
        rows = instances.parse(await _body(request, limits.timeout_seconds), model.inputs, limits.max_instances)
        strange = instances.outside(rows, model.inputs, model.card.get("input_range", {}))
        if limits.out_of_range == "reject" and any(strange):
            places = [f"instances.{number}.{name}" for number, row in enumerate(strange) for name in row]
            raise _wrong(places, "is outside the range seen in training")
        values = model.predict(rows) if len(rows) < 100 else await asyncio.to_thread(model.predict, rows)
        if wild := np.flatnonzero(~np.isfinite(values).all(axis=1)).tolist():
            raise _wrong([f"instances.{number}" for number in wild], "gives no finite forecast")
        predictions: list[dict[str, Any]] = []
        for row, names in zip(values.tolist(), strange, strict=True):
            prediction = {f"horizon_{horizon}": value for horizon, value in zip(model.horizons, row, strict=True)}
            predictions.append(prediction | ({"out_of_range": names} if names else {}))
        runtime.metrics.predictions.labels("/v1/predict").inc(len(rows))
        _audit(runtime, "/v1/predict", {"names": model.inputs, "rows": rows.tolist()}, predictions, {})
        return _json({"model": {"version": model.version, "digest": model.digest}, "predictions": predictions})

    @app.get("/v1/model", response_class=Response)
    async def card() -> Response:
        """The model that answers, and its card's figures."""
        model = runtime.model
        names = {"service": service.name, "version": model.version, "digest": model.digest, "image_digest": _image()}
        return _json(names | {field: model.card.get(field) for field in CARD_FIELDS})

    @app.get("/livez", response_class=Response)
    async def livez() -> Response:
        """The process answers."""
        return _json({"status": "alive"})

    @app.get("/readyz", response_class=Response)
    async def readyz() -> Response:
        """The model is whole: its checksums fit, and a golden example comes out as it did in training."""
        await runtime.check()
        return _json({"status": "ready", "model": {"version": runtime.model.version, "digest": runtime.model.digest}})

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


def _wrong(places: list[str], what: str) -> Problem:
    return problems.wrong([(place, what) for place in places[: instances.MAX_MISTAKES]])


def _no_others(request: Request, known: set[str]) -> None:
    """Raises Problem 422 for a parameter that would be ignored: an unknown one, or a repeated clock."""
    given = [name for name, _ in request.query_params.multi_items()]
    mistakes = [(name, f"is unknown; known: {', '.join(sorted(known))}") for name in sorted(set(given) - known)]
    mistakes += [(name, "is given more than once") for name in ("as_of", "data_version") if given.count(name) > 1]
    if mistakes:
        raise problems.wrong(mistakes)


def _known_at(text: str | None) -> datetime | None:
    try:
        return None if text is None else forecasting.parse_as_of(text)
    except ValueError as error:
        raise problems.wrong([("as_of", str(error))]) from None


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
    identifier = str(logs.request_id.get())
    document = {
        "service": {"name": runtime.contract.service.name},
        "http": {"request": {"id": identifier}},
        "route": route,
        "model": {"version": runtime.model.version, "digest": runtime.model.digest},
        "image": {"digest": _image()},
        "inputs": inputs,
        "output": output,
    }
    runtime.audit.put(identifier, datetime.now(UTC), document | more)
