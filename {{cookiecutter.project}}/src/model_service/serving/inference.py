"""The Open Inference Protocol, version 2, over REST: the model under the names, shapes and types of its ONNX graph.

Without the binary extension: tensors travel as JSON. Errors are `{"error": "..."}`, as the protocol has them.
https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from fastapi import APIRouter, FastAPI, Request
from starlette.responses import Response

from model_service.arrays import Floats
from model_service.artifact import Model, Tensor
from model_service.serving import body
from model_service.serving.edge import Problem, as_json, invalid
from model_service.serving.runtime import Runtime
from model_service.serving.schema import documented

REQUEST = {"id", "parameters", "inputs", "outputs"}
FORM = '{"inputs": [{"name": ..., "shape": [...], "datatype": ..., "data": [...]}]}'
BINARY = "inference-header-content-length"  # what announces the binary extension


def add(app: FastAPI, runtime: Runtime) -> None:
    """Adds the protocol's routes to `app`."""
    name, limits = runtime.contract.service.name, runtime.contract.serving
    of_model = APIRouter()

    def named(model: str, version: str | None) -> Model:
        """The one that is served, by its name and, where one is given, its version; raises Problem 404."""
        if model != name:
            raise Problem(404, f"there is no model {model!r}: this service has {name!r}")
        if version not in (None, runtime.model.version):
            raise Problem(
                404, f"there is no version {version!r} of {name!r}: version {runtime.model.version!r} answers"
            )
        return runtime.model

    @app.get("/v2/health/live", **documented("Live"))
    async def live() -> Response:
        """The process answers."""
        return as_json({"live": True})

    @app.get("/v2/health/ready", **documented("ServerReady", 429, 503))
    async def ready() -> Response:
        """The model is whole, as at /readyz."""
        await runtime.check()
        return as_json({"ready": True})

    @app.get("/v2", **documented("Server"))
    async def server() -> Response:
        """Name and version of this service; it has no extensions."""
        return as_json({"name": name, "version": runtime.model.version, "extensions": []})

    @of_model.get("/ready", **documented("ModelReady", 404))
    async def model_ready(model: str, version: str | None = None) -> Response:
        """The model is whole, as at /readyz."""
        named(model, version)
        await runtime.check()
        return as_json({"name": name, "ready": True})

    @of_model.get("", **documented("Metadata", 404))
    async def metadata(model: str, version: str | None = None) -> Response:
        """Inputs and outputs of the graph."""
        found = named(model, version)
        inputs, outputs = ([vars(one) for one in part] for part in (found.takes, found.gives))
        tensors = {"inputs": inputs, "outputs": outputs}
        return as_json({"name": name, "versions": [found.version], "platform": "onnx_onnxruntime", **tensors})

    @of_model.post("/infer", **documented("Inferred", 404, takes="Infer"))
    async def infer(request: Request, model: str, version: str | None = None) -> Response:
        """The graph's outputs, row by row, for given inputs: columns in the order of `inputs` of /v1/model."""
        found = named(model, version)
        if BINARY in request.headers:
            raise Problem(400, "the binary extension is not spoken here: send tensors as JSON data")
        content = await body.read(request, any_type=True)
        given = body.parse_object(content, REQUEST, FORM, limits.max_instances)
        (takes,), (gives,) = found.takes, found.gives
        if mistakes := list(_mistakes(given, takes, gives)):
            raise invalid(mistakes)
        rows = _rows(given["inputs"][0], takes, limits.max_instances)
        values, strange = await runtime.predict(rows)
        output = {"name": gives.name, "shape": list(values.shape), "datatype": gives.datatype}
        answer: dict[str, Any] = {"model_name": name, "model_version": found.version}
        if given.get("id") is not None:
            answer["id"] = given["id"]
        if marked := [f"{row}.{one}" for row, names in enumerate(strange) for one in names]:
            answer["parameters"] = {"out_of_range": ", ".join(marked)}
        answer["outputs"] = [output | {"data": values.ravel().tolist()}]
        inputs = {"names": found.inputs, "rows": rows.tolist()}
        runtime.record_answer("/v2/models/{model}/infer", inputs, values.tolist(), len(rows))
        return as_json(answer)

    for prefix in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        app.include_router(of_model, prefix=prefix)


def _mistakes(given: dict[str, Any], takes: Tensor, gives: Tensor) -> Iterator[tuple[str, str]]:
    """What is wrong with all but the data."""
    if not isinstance(given.get("id"), str | None):
        yield "id", "must be a text"
    if not isinstance(given.get("parameters"), dict | None):
        yield "parameters", "must be an object"
    outputs = given.get("outputs")
    if outputs is not None and not (
        isinstance(outputs, list) and all(isinstance(one, dict) and one.get("name") == gives.name for one in outputs)
    ):
        yield "outputs", f"must be a list that names {gives.name!r}, or be left out"
    inputs = given.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        yield "inputs", f"must be a list of one object: the tensor {takes.name!r}"
        return
    for part, due in (("name", takes.name), ("datatype", takes.datatype)):
        if inputs[0].get(part) != due:
            yield f"inputs.0.{part}", f"must be {due!r}"
    if extra := sorted(set(inputs[0]) - {"name", "shape", "datatype", "parameters", "data"}):
        yield f"inputs.0.{extra[0]}", "is unknown"
    if "data" not in inputs[0]:
        yield "inputs.0.data", "is missing: the binary extension is not spoken here"


def _rows(tensor: dict[str, Any], takes: Tensor, limit: int) -> Floats:
    """The tensor's data, flat or nested, as [N, F]; raises Problem 422."""
    shape, width = tensor.get("shape"), takes.shape[1]
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(one) is int for one in shape)
            and 0 < shape[0] <= limit and shape[1] == width):  # fmt: skip
        raise invalid([("inputs.0.shape", f"must be [rows, {width}], at most {limit} rows at a time")])
    data = tensor["data"]
    if isinstance(data, list) and len(data) == shape[0] and all(isinstance(row, list) for row in data):
        if any(len(row) != width for row in data):
            raise invalid([("inputs.0.data", f"must have {width} numbers in each row, as its shape says")])
        data = [value for row in data for value in row]
    if not isinstance(data, list) or len(data) != math.prod(shape):
        raise invalid([("inputs.0.data", f"must be {shape[0]} times {width} numbers, as its shape says")])
    mistakes = ((f"inputs.0.data.{place}", what) for place, value in enumerate(data)
                if (what := body.number_error(value)))  # fmt: skip
    if found := list(mistakes):
        raise invalid(found)
    return np.array(data, np.float64).reshape(shape)
