"""BentoML's default way, MLServer and `mlflow models serve`: the same ONNX model, in an environment of its own each."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_run import Failed

HERE = Path(__file__).resolve().parent
SERVERS = HERE / "servers"
Rows = list[list[float]]


@dataclass(frozen=True)
class Other:
    """How it is started (PORT: its port), and asked for forecasts [N, H] of rows [N, F] in its own words."""

    name: str
    says: str
    command: tuple[str, ...]
    ready: str
    path: str
    asks: Callable[[Rows], dict[str, Any]]
    tells: Callable[[Any], Rows]


def _tensor(rows: Rows) -> dict[str, Any]:
    shape = [len(rows), len(rows[0])]
    return {"inputs": [{"name": "features", "shape": shape, "datatype": "FP64", "data": rows}]}


def _matrix(answer: Any) -> Rows:
    (made,) = answer["outputs"]
    width = made["shape"][1]
    return [made["data"][place : place + width] for place in range(0, len(made["data"]), width)]


OTHERS = (
    Other("bentoml", "BentoML's default way: @bentoml.service, @bentoml.api, bentoml serve",
          ("bentoml", "serve", "bentoml_service:Model", "--working-dir", str(SERVERS), "--port", "PORT"),
          "/readyz", "/predict", lambda rows: {"rows": rows}, lambda answer: list(answer)),
    Other("mlserver", "MLServer, without parallel workers: there is one core", ("mlserver", "start", "."),
          "/v2/models/model/ready", "/v2/models/model/infer", _tensor, _matrix),
    Other("mlflow", "mlflow models serve",
          ("mlflow", "models", "serve", "-m", "model", "--env-manager", "local", "--port", "PORT"),
          "/ping", "/invocations", lambda rows: {"inputs": rows},
          lambda answer: list(answer["predictions"]["forecast"])),
)  # fmt: skip


def installed(other: Other, folder: Path, model: Path, work: Path) -> Path:
    """Its environment, in `folder`, and what it serves, in `work`; raises Failed."""
    home, lock = folder / other.name, HERE.parent / f"requirements/{other.name}.txt"
    uv, python = os.environ.get("UV", "uv"), str(home / "bin/python")
    commands = [
        [uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(home)],
        [uv, "pip", "sync", "--quiet", "--python", python, "--require-hashes", str(lock)],
    ]
    if other.name == "mlflow":
        commands.append([python, str(SERVERS / "mlflow_model.py"), str(model), str(work / "model")])
    for command in commands:
        done = subprocess.run(command, cwd=work, capture_output=True, text=True)
        if done.returncode:
            raise Failed(done.stderr.strip()[-1_000:])
    return home


def environment(home: Path, model: Path, work: Path) -> dict[str, str]:
    """What all of them are told by the environment."""
    return {
        "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(SERVERS), "MODEL": str(model),
        "BENTOML_HOME": str(work / "bentoml"), "BENTOML_DO_NOT_TRACK": "True", "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLSERVER_HTTP_PORT": "PORT", "MLSERVER_GRPC_PORT": "0", "MLSERVER_METRICS_PORT": "0",
        "MLSERVER_PARALLEL_WORKERS": "0", "MLSERVER_MODEL_NAME": "model", "MLSERVER_MODEL_URI": str(model),
        "MLSERVER_MODEL_IMPLEMENTATION": "mlserver_runtime.Onnx",
    }  # fmt: skip
