"""A project with a small made-up model, served for real in a folder of its own."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model_service import artifact, contract, features

ROOT = Path(__file__).resolve().parents[1]
POISON = 1e6  # an input above it makes the made-up graph fail: a bug, seen from outside
DEAD = "postgresql://reader:s3cret%21word@127.0.0.1:1/none"  # nothing listens there


@dataclass
class Project:
    root: Path
    inputs: list[str]
    horizons: list[int]
    weights: np.ndarray

    @property
    def instance(self) -> dict[str, float]:
        return {name: float(number % 5) for number, name in enumerate(self.inputs)}

    @property
    def expected(self) -> list[float]:
        return (np.array(list(self.instance.values())) @ self.weights).tolist()


def make_project(folder: Path, **serving: Any) -> Project:
    """A copy of this repository's sources in `folder`, with a linear model and the given values of [serving]."""
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "ops", folder / "ops")
    shutil.copytree(ROOT / "requirements", folder / "requirements")
    lines = (ROOT / "service.toml").read_text("utf-8").splitlines()
    start = lines.index("[serving]") + 1
    lines = [line for line in lines if line.split("=")[0].strip() not in serving]
    lines[start:start] = [f"{key} = {json.dumps(value)}" for key, value in serving.items()]
    (folder / "service.toml").write_text("\n".join(lines), "utf-8")
    declared = contract.load(folder / "service.toml")
    made = Project(folder, features.inputs(declared), list(declared.target.horizons), np.empty(0))
    made.weights = np.random.default_rng(1).normal(size=(len(made.inputs), len(made.horizons)))
    artifact.write(folder / "build" / "model", _files(made, declared), "fake")
    return made


def _files(made: Project, declared: contract.Contract) -> dict[str, bytes]:
    width, rows = len(made.inputs), np.random.default_rng(2).normal(size=(3, len(made.inputs)))
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["features", "weights"], ["linear"]),
            helper.make_node("Greater", ["features", "poison"], ["poisoned"]),
            helper.make_node("Cast", ["poisoned"], ["place"], to=TensorProto.INT64),
            helper.make_node("Gather", ["nought", "place"], ["noughts"]),  # there is one nought: place 1 is an error
            helper.make_node("ReduceMax", ["noughts"], ["nothing"], axes=[1], keepdims=1),
            helper.make_node("Add", ["linear", "nothing"], ["forecast"]),
        ],
        "made-up",
        [helper.make_tensor_value_info("features", TensorProto.DOUBLE, [None, width])],
        [helper.make_tensor_value_info("forecast", TensorProto.DOUBLE, [None, len(made.horizons)])],
        [
            numpy_helper.from_array(made.weights, "weights"),
            numpy_helper.from_array(np.array(POISON), "poison"),
            numpy_helper.from_array(np.zeros(1), "nought"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    clock = {"known_at": "2016-07-29T23:59:59.999999Z", "data_version": "sha256:" + "0" * 64}
    intervals = [{"horizon": h, "level": 0.8, "lower": -1.0, "upper": 1.0} for h in made.horizons]
    target, series = declared.target.series, declared.series[declared.target.series]
    head = {"service": declared.service.name, "target": target, "unit": series.unit, "as_of": clock}
    kept = {
        name: [{"horizon": h, "valid_time": "2016-08-01", "value": value, "intervals": []} for h in made.horizons]
        for name, value in (("forecasts", 5.0), ("baseline", 4.9))
    }
    texts = {
        "card.json": {
            "service": declared.service.name,
            "target": {"series": target, "unit": series.unit, "transform": declared.target.transform},
            "inputs": made.inputs,
            "horizons": made.horizons,
            "estimator": "made-up",
            "trained_as_of": clock,
            "inputs_known_until": clock["known_at"],
            "input_range": {name: [-10.0, 10.0] for name in made.inputs},
            "intervals": intervals,
            "metrics": {},
        },
        "golden.json": {"instances": rows.tolist(), "forecasts": (rows @ made.weights).tolist(), "tolerance": 1e-6},
        "held.json": head | {"inputs_known_until": "2016-07-29T00:00:00Z"} | kept,
    }
    return {name: json.dumps(text).encode() for name, text in texts.items()} | {"model.onnx": model.SerializeToString()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A running service: `url`, the process that was started, and what it wrote so far."""

    def __init__(self, url: str, process: subprocess.Popen[bytes], out: Path) -> None:
        self.url = url
        self.process = process
        self.out = out

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.read_text("utf-8").splitlines()]

    def of_request(self, identifier: str) -> list[dict[str, Any]]:
        """Lines of one request, waiting for the last of them: it is written after the answer was sent."""
        until = time.monotonic() + 10
        while time.monotonic() < until:
            lines = [line for line in self.lines() if line.get("http.request.id") == identifier]
            if any("http.response.status_code" in line for line in lines):
                return lines
            time.sleep(0.05)
        raise AssertionError(f"no line says how request {identifier} ended")

    def metrics(self) -> dict[str, float]:
        text = httpx.get(f"{self.url}/metrics").text
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line[0] != "#"}

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextmanager
def serve(made: Project, way: str, **environment: str) -> Iterator[Server]:
    """Serves the project by `uvicorn`, as the container does, or by `bentoml` (built first); stops it afterwards."""
    port = free_port()
    ours = {"DATABASE_URL", "ELASTICSEARCH_URL", "PROJECT_ROOT", "MODEL_DIR", "PGPASSWORD"}
    env = {name: value for name, value in os.environ.items() if name not in ours}
    env |= {"PYTHONPATH": str(made.root / "src"), "DATABASE_URL": DEAD, **environment}
    command: Sequence[str]
    if way == "uvicorn":
        command = ["uvicorn", "model_service.serving.app:app", "--port", str(port)]
    else:
        build = [sys.executable, "-m", "model_service.serving.bento"]
        subprocess.run(build, cwd=made.root, env=env, check=True, stdout=subprocess.PIPE)
        command = ["model_service", "serve"]
    out = made.root / f"out-{port}.log"
    with out.open("wb") as lines, out.with_suffix(".err").open("wb") as rest:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=made.root, env=env | {"PORT": str(port)}, stdout=lines, stderr=rest
        )
    server = Server(f"http://127.0.0.1:{port}", process, out)
    try:
        _wait(server)
        yield server
    finally:
        if process.poll() is None:
            server.stop()


def _wait(server: Server) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if server.process.poll() is not None:
            break
        try:
            httpx.get(f"{server.url}/livez", timeout=1).raise_for_status()
        except httpx.HTTPError:
            time.sleep(0.05)
        else:
            return
    said = server.out.read_text("utf-8") + server.out.with_suffix(".err").read_text("utf-8")
    raise AssertionError(f"the server does not answer:\n{said}")
