"""An example of every form in the OpenAPI document, made of the contract's own names."""

from http import HTTPStatus
from typing import Any

from model_service import explain, features
from model_service.contract import Contract

VERSION = "sha256:" + "0123456789abcdef" * 4
DETAILS = {
    400: "the body is not JSON: Expecting value: line 1 column 1 (char 0)",
    401: "a valid key is due: send it as x-api-key",
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
MODEL = {"version": "3", "digest": VERSION}


def problem(status: int) -> dict[str, Any]:
    made: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": DETAILS[status],
        "instance": "/v1/forecast",
        "request_id": "4f1c0f6e6f4d4c0b9d2f1f0a5f3f7f11",
    }
    if status == 422:
        field, _, detail = DETAILS[422].partition(": ")
        made["errors"] = [{"field": field, "detail": detail}]
    return made


def examples(contract: Contract) -> dict[str, dict[str, Any]]:
    """By form, then by a name that says what the example shows."""
    names, horizons, name = features.inputs(contract), contract.target.horizons, contract.service.name
    instance = dict.fromkeys(names, 0.5)
    as_of = {"known_at": "2016-07-01T23:59:59.999999Z", "data_version": VERSION}
    target = contract.target.series
    head = {
        "service": name,
        "target": target,
        "unit": contract.series[target].unit,
        "as_of": as_of,
        "inputs_known_until": "2016-06-29T00:00:00Z",
        "model": MODEL | {"trained_as_of": "2016-07-29T23:59:59.999999Z"},
        "hindsight": True,
    }
    intervals = [{"level": 0.8, "lower": 4.55, "upper": 4.88}, {"level": 0.95, "lower": 4.41, "upper": 5.02}]
    ahead = [{"horizon": one, "valid_time": "2016-06-01"} for one in horizons]
    forecasts = [one | {"value": 4.71, "intervals": intervals} for one in ahead]
    part = {"value": 4.71, "base": 4.7, "scale": 1.0,
            "contributions": {one: 0.01 if place == 0 else 0.0 for place, one in enumerate(names)}}  # fmt: skip
    series = {one: 0.01 if place == 0 else 0.0 for place, one in enumerate(explain.groups(contract))}
    explained = {f"horizon_{one}": part for one in horizons}
    tensor = {"name": "features", "datatype": "FP64", "shape": [-1, len(names)]}
    out = {"name": "forecast", "datatype": "FP64", "shape": [-1, len(horizons)]}
    sent = tensor | {"shape": [1, len(names)], "data": [0.5] * len(names)}
    back = out | {"shape": [1, len(horizons)], "data": [4.71] * len(horizons)}
    degraded = {"reason": "database_away", "source": "last_forecast"}
    return {
        "Forecast": {"answered": head | {"forecasts": forecasts, "degraded": None},
                     "degraded": head | {"forecasts": forecasts, "degraded": degraded}},
        "Instances": {"one": {"instances": [instance]}},
        "Predictions": {"one": {"model": MODEL, "predictions": [{f"horizon_{one}": 4.71 for one in horizons}]}},
        "Explain": {"instances": {"instances": [instance]}, "forecast_now": {},
                    "forecast_of_a_day": {"as_of": "2016-07-01", "horizon": [horizons[0]]}},
        "Explanations": {
            "instances": {"model": MODEL, "method": "linear", "explanations": [explained]},
            "forecast": head | {"method": "linear", "explanations": [one | part | {"series": series} for one in ahead]},
        },
        "Model": {"model": _model(contract, as_of)},
        "Alive": {"alive": {"status": "alive"}},
        "Ready": {"ready": {"status": "ready", "model": MODEL}},
        "Live": {"live": {"live": True}},
        "ServerReady": {"ready": {"ready": True}},
        "Server": {"server": {"name": name, "version": "3", "extensions": []}},
        "ModelReady": {"ready": {"name": name, "ready": True}},
        "Metadata": {"model": {"name": name, "versions": ["3"], "platform": "onnx_onnxruntime", "inputs": [tensor],
                               "outputs": [out]}},
        "Infer": {"one_row": {"id": "mine", "inputs": [sent]}},
        "Inferred": {"one_row": {"model_name": name, "model_version": "3", "id": "mine", "outputs": [back]}},
    }  # fmt: skip


def _model(contract: Contract, trained: dict[str, str]) -> dict[str, Any]:
    names, target = features.inputs(contract), contract.target
    return {
        "service": contract.service.name, "description": contract.service.description, **MODEL, "image_digest": None,
        "challenger": {"version": "4", "digest": VERSION, "fault": None},
        "max_instances": contract.serving.max_instances, "out_of_range": contract.serving.out_of_range,
        "explain": {"method": "linear", "says": explain.SAYS["linear"], "max_instances": 1000}, "task": "forecast",
        "target": {"series": target.series, "transform": target.transform}, "inputs": names,
        "input_range": {one: [-1.0, 1.0] for one in names}, "horizons": list(target.horizons),
        "estimator": contract.train.estimator, "chosen": None, "seed": 1, "trained_as_of": trained,
        "inputs_known_until": "2016-07-29T00:00:00Z", "loads": {next(iter(contract.source)): 2}, "data_hash": VERSION,
        "git_commit": None, "source_hash": VERSION, "lock_hash": VERSION,
        "intervals": [{"horizon": target.horizons[0], "level": 0.8, "lower": -0.16, "upper": 0.17}],
        "metrics": {"rmse": {"model": [0.14] * len(target.horizons)}}, "gate": [], "overruled": None,
    }  # fmt: skip
