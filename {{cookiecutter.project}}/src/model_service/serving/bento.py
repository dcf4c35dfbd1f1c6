"""Packs what is served into a Bento, and serves the last one; BentoML reports nothing, its store is in .local/."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from model_service import artifact, contract, digests, forecasting, settings
from model_service.errors import ServiceError, UsageError
from model_service.store import connection

BENTOFILE = """\
service: model_service.serving.service:Service
name: {name}
include: ["*"]
python:
  requirements_txt: requirements.txt
  lock_packages: false
"""


def stage(root: Path) -> Path:
    """Assembles build/context and runs `bentoml build` over it, offline; returns the Bento's folder.

    The version is made of the model's digest and of the files: the same files are the same Bento.
    Raises ServiceError: no exported model, or one that service.toml no longer fits; BentoML failed.
    """
    context, model = root / "build" / "context", root / "build" / "model"
    if not (model / "registry.json").is_file():
        raise ServiceError(f"{model} holds no model: train one and `python -m model_service export build/model`")
    declared, found = contract.load(root / settings.CONTRACT), artifact.load(model)
    forecasting.check_fit(declared, found)
    shutil.rmtree(context, ignore_errors=True)
    skipped = shutil.ignore_patterns("__pycache__", "training", "loader")
    shutil.copytree(root / "src" / "model_service", context / "model_service", ignore=skipped)
    shutil.copytree(model, context / "model")
    shutil.copytree(root / "ops" / "elasticsearch", context / "ops" / "elasticsearch")  # for `telemetry install`
    shutil.copy(root / settings.CONTRACT, context)
    shutil.copy(root / "requirements" / "serve.txt", context / "requirements.txt")
    name = declared.service.name
    (context / "bentofile.yaml").write_text(BENTOFILE.format(name=name), "utf-8")
    version = f"{found.digest.removeprefix('sha256:')[:12]}-{_digest(context).removeprefix('sha256:')[:12]}"
    bento = _store(root) / "bentos" / name / version
    if _digest(bento / "src") != _digest(context):
        shutil.rmtree(bento, ignore_errors=True)
        command = [sys.executable, "-m", "bentoml", "build", "--version", version, "--output", "tag", str(context)]
        done = subprocess.run(command, cwd=context, env=_environment(root), capture_output=True, text=True)
        if done.returncode:
            raise ServiceError(f"bentoml build failed:\n{done.stdout}{done.stderr}".rstrip())
    (bento / "bento.yaml").touch()  # newer than the model it was made of, also when it was there before
    (bento.parent / "latest").write_text(version, "utf-8")
    print(f"{name}:{version}")
    return bento


def launch() -> int:
    """Serves the last built Bento on 127.0.0.1, PORT (3000), until it is told to stop; returns its exit code.

    The embedded database, where one is used, is started here: a serving process never starts one.
    Raises ServiceError: nothing built, port taken; UsageError: PORT is no port.
    """
    root = settings.root()
    port = _port(os.environ.get("PORT") or "3000")
    name = contract.load(root / settings.CONTRACT).service.name
    latest = _store(root) / "bentos" / name / "latest"
    if not latest.is_file():
        raise ServiceError("nothing is built yet: run `make build` first")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise ServiceError(f"port {port} is taken: stop what listens there, or set PORT to another one") from None
    environment = _environment(root)
    with ExitStack() as stack:
        try:
            environment["DATABASE_URL"] = stack.enter_context(connection.database())
        except ServiceError as error:
            print(f"serving without a database: {error}", file=sys.stderr)
        tag = f"{name}:{latest.read_text('utf-8').strip()}"
        where = ["--host", "127.0.0.1", "--port", str(port), "--api-workers", "1"]
        server = subprocess.Popen([sys.executable, "-m", "bentoml", "serve", tag, *where], env=environment)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: server.terminate())
        return server.wait()


def _port(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) < 65_536):
        raise UsageError(f"PORT is {text!r}: give a number from 1 to 65535")
    return int(text)


def _store(root: Path) -> Path:
    return root / ".local" / "bentoml"


def _environment(root: Path) -> dict[str, str]:
    """Ours without what would lead a Bento back to the working tree, and with BentoML kept quiet and at home."""
    kept = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PROJECT_ROOT", "MODEL_DIR"}}
    return kept | {"BENTOML_HOME": str(_store(root)), "BENTOML_DO_NOT_TRACK": "True", "OTEL_SDK_DISABLED": "true"}


def _digest(folder: Path) -> str:
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return digests.of_files(folder, found)


if __name__ == "__main__":
    try:
        stage(settings.root())
    except ServiceError as problem:
        sys.exit(f"error: {problem}")
