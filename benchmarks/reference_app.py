"""What our service is measured against: FastAPI and ONNX Runtime, and nothing else that a running service needs.

`MODEL=model.onnx INPUTS=inputs.json python reference_app.py`; INPUTS: a JSON list of the model's input names. HOST and
PORT (127.0.0.1, 3000), FORECAST: a file whose bytes are the answer of /v1/forecast.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Response
from pydantic import BaseModel, ConfigDict, Field, create_model

NAMES: list[str] = json.loads(Path(os.environ["INPUTS"]).read_text())
STORED = Path(os.environ["FORECAST"]).read_bytes() if "FORECAST" in os.environ else b"{}"
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


FIELDS: dict[str, Any] = {f"input_{number}": (float, Field(alias=name)) for number, name in enumerate(NAMES)}
Instance = create_model("Instance", __base__=Closed, **FIELDS)


class Instances(Closed):
    instances: Annotated[list[Instance], Field(min_length=1, max_length=1_000)]  # type: ignore[valid-type]


class Predictions(BaseModel):
    predictions: list[list[float]]


app = FastAPI()


@app.post("/v1/predict")  # type: ignore[untyped-decorator, unused-ignore]
async def predict(body: Instances) -> Predictions:
    rows = np.array([list(vars(instance).values()) for instance in body.instances])
    return Predictions(predictions=session.run(["forecast"], {"features": rows})[0].tolist())


@app.get("/v1/forecast")  # type: ignore[untyped-decorator, unused-ignore]
async def forecast() -> Response:
    return Response(STORED, media_type="application/json")


if __name__ == "__main__":
    host, port = os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "3000"))
    uvicorn.run(app, host=host, port=port, loop="uvloop", http="httptools", access_log=False, log_level="warning")
