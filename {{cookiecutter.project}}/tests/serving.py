"""A project with a small made-up model, served for real in a folder of its own."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
from conftest import ROOT, SAMPLE

from model_service import artifact, contract, explain, features, forecasting, periods

POISON = 1e6  # an input above it makes the made-up graph fail: a bug, seen from outside
HANGS, HOLE = 9.5, 9.25  # inputs in the range of training for which the graph never ends, and for which it gives NaN
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
    lines = (SAMPLE / "service.toml").read_text("utf-8").splitlines()
    start = lines.index("[serving]") + 1
    lines = [line for line in lines if line.split("=")[0].strip() not in serving]
    lines[start:start] = [f"{key} = {json.dumps(value)}" for key, value in serving.items()]
    (folder / "service.toml").write_text("\n".join(lines), "utf-8")
    declared = contract.load(folder / "service.toml")
    made = Project(folder, features.inputs(declared), list(declared.target.horizons), np.empty(0))
    made.weights = np.random.default_rng(1).normal(size=(len(made.inputs), len(made.horizons)))
    artifact.write(folder / "build" / "model", _files(made, declared, poison=POISON), "fake")
    (folder / "build" / "model" / artifact.REPORT).write_text("<!doctype html><title>Made up</title>", "utf-8")
    return made


def challenge(made: Project, weights: np.ndarray | None = None, **odd: float) -> Path:
    """Puts a challenger of those weights, left out: the champion's, beside the champion; returns its folder.

    odd: an input above `poison` makes it fail, one that is `hangs` makes it hang, `hole` NaN; from row `most` on rows
    are left out.
    """
    declared = contract.load(made.root / "service.toml")
    folder = made.root / "build" / "model" / artifact.CHALLENGER
    other = made if weights is None else replace(made, weights=weights)
    artifact.write(folder, _files(other, declared, **odd), "other")
    return folder


def _files(
    made: Project, declared: contract.Contract, *, poison: float = POISON, hangs: float = HANGS, hole: float = HOLE,
    most: int = 1_000_000,
) -> dict[str, bytes]:  # fmt: skip
    width, ahead = made.weights.shape
    rows = np.random.default_rng(2).normal(size=(3, width))
    model = onnx.parser.parse_model(f"""
        <ir_version: 9, opset_import: ["" : 17]>
        made_up (double[N, {width}] features) => (double[N, {ahead}] forecast)
        <double[{width}, {ahead}] weights = {{{", ".join(map(repr, made.weights.ravel().tolist()))}}},
         double poison = {{{poison}}}, double[1] nought = {{0.0}}, double hangs = {{{hangs}}}, double hole = {{{hole}}},
         double minus = {{-1.0}}, int64 forever = {{4611686018427387904}}, bool on = {{1}}, int64[1] one = {{1}},
         int64[1] first = {{0}}, int64[1] most = {{{most}}}>
        {{
            linear = MatMul (features, weights)
            poisoned = Greater (features, poison)
            place = Cast <to = 7> (poisoned)
            noughts = Gather (nought, place)
            nothing = ReduceMax <axes = [1], keepdims = 1> (noughts)
            whole = Add (linear, nothing)
            hung = Equal (features, hangs)
            rounds = Cast <to = 7> (hung)
            any = ReduceMax <keepdims = 0> (rounds)
            count = Mul (any, forever)
            spun = Loop (count, on, nought) <body = turn (int64 i, bool go, double[1] held) =>
                (bool again, double[1] kept) {{ again = Identity (go)  kept = Identity (held) }}>
            ended = Add (whole, spun)
            open = Equal (features, hole)
            nan = Sqrt (minus)
            holes = Where (open, nan, nought)
            torn = ReduceSum <keepdims = 1> (holes, one)
            every = Add (ended, torn)
            forecast = Slice (every, first, most)
        }}""")  # there is one nought: place 1 is an error
    onnx.checker.check_model(model)
    clocks = {"known_at": "2016-07-29T23:59:59.999999Z", "data_version": "sha256:" + "0" * 64}
    series = declared.target.series
    head = forecasting.answer_head(declared, clocks, "2016-07-29T00:00:00Z")
    last = periods.ordinal(declared.series[series].frequency, date(2016, 6, 1))
    texts = {
        "card.json": {
            "service": declared.service.name,
            "target": {"series": series, "transform": declared.target.transform},
            "inputs": made.inputs,
            "horizons": made.horizons,
            "estimator": "made-up",
            "trained_as_of": clocks,
            "inputs_known_until": clocks["known_at"],
            "input_range": {name: [-10.0, 10.0] for name in made.inputs},
            "intervals": [{"horizon": h, "level": 0.8, "lower": -1.0, "upper": 1.0} for h in made.horizons],
            "metrics": {"rmse": {"model": [0.1] * ahead}},
        },
        "golden.json": {"instances": rows.tolist(), "forecasts": (rows @ made.weights).tolist(), "tolerance": 1e-6},
        "held.json": forecasting.fallback_answers(
            declared, head, {"model": [], "baseline": []}, last, [5.0] * ahead, 4.9
        ),
    }
    texts[explain.FILE] = explanation(made, declared)
    return {name: json.dumps(text).encode() for name, text in texts.items()} | {"model.onnx": model.SerializeToString()}


def explanation(made: Project, declared: contract.Contract) -> dict[str, Any]:
    """Of the linear model: around the means 1, 2, 3 and so on; a change starts from the first input."""
    center = np.arange(1.0, len(made.inputs) + 1)
    weights = made.weights.T - (np.eye(len(made.inputs))[0] if declared.target.transform == "difference" else 0)
    horizons = [{"base": float(one @ center), "center": center.tolist(), "weights": one.tolist()} for one in weights]
    return {"method": "linear", "deviation": 1.0, "horizons": horizons}


def wait_for(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """What `condition` gives once it is true; fails when that takes too long."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, f"not true within {seconds} seconds"
        time.sleep(0.05)
    return found


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

        def of_it() -> list[dict[str, Any]]:
            lines = [line for line in self.lines() if line.get("http.request.id") == identifier]
            return lines if any("http.response.status_code" in line for line in lines) else []

        return list(wait_for(of_it))

    def metrics(self) -> dict[str, float]:
        text = httpx.get(f"{self.url}/metrics").text
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line[0] != "#"}

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def started_by_the_image(port: int | str) -> list[str]:
    """What the container's `python -m` runs, on another port of this machine alone."""
    image = (ROOT / "images" / "service.Dockerfile").read_text("utf-8")
    words = json.loads(str(re.findall(r"(?m)^CMD (.*)", image)[-1]))
    return [*words[2:], "--host", "127.0.0.1", "--port", str(port)]  # the last of each counts


@contextmanager
def serve(made: Project, way: str, **environment: str) -> Iterator[Server]:
    """Serves the project by `uvicorn`, as the container does, `bentoml` (built first), or `broken`; then stops it."""
    port = free_port()
    ours = {"DATABASE_URL", "ELASTICSEARCH_URL", "PROJECT_ROOT", "MODEL_DIR", "PGPASSWORD"}
    env = {name: value for name, value in os.environ.items() if name not in ours}
    env |= {"PYTHONPATH": str(made.root / "src"), "DATABASE_URL": DEAD, **environment}
    command: Sequence[str]
    if way == "uvicorn":
        command = started_by_the_image(port)
    elif way == "broken":
        env["PYTHONPATH"] += f"{os.pathsep}{Path(__file__).parent}"
        command = ["broken"]
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
        wait_for(lambda: process.poll() is not None or answers(f"{server.url}/livez"), 60)
        assert process.poll() is None, "the server ended"
        yield server
    finally:
        if process.poll() is None:
            server.stop()
        print(out.read_text("utf-8"), out.with_suffix(".err").read_text("utf-8"))  # shown where a test fails


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).is_success
    except httpx.HTTPError:
        return False
