"""Size of the service's image, and its cold start against a bare FastAPI + ONNX image's.

A cold start lasts from `docker start` to the first right answer of /v1/predict; both images stand on one base and run
without rights, in turn, RUNS times (30). What `bentoml containerize` makes of the same files is measured beside them:
it installs compilers, so it needs Debian's packages, and minutes; CONTAINERIZE=0 leaves it out. Writes
build/bench/image.json.
"""

import json
import math
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
import uuid
from pathlib import Path

from load_report import report, row

HERE = Path(__file__).resolve().parent
OUT = Path(os.environ.get("OUT", HERE.parent / "build/bench"))
RUNS = int(os.environ.get("RUNS") or 30)
WAIT_SECONDS = 60
AGAINST = "a bare FastAPI + ONNX image; the goal of a start is 1.5 times its time"
HARDENED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--memory", "256m")
# Of the reference: at the project's versions, where it has them. pip compiles what it installs.
PACKAGES = ("fastapi", "uvicorn", "uvloop", "httptools", "pydantic", "numpy", "onnxruntime")
REFERENCE = """
ARG PYTHON_IMAGE
FROM ${PYTHON_IMAGE} AS venv
COPY locked.txt .
RUN python3 -m venv --without-pip /venv \\
 && python3 -m pip --python /venv/bin/python install --quiet --no-cache-dir -c locked.txt PACKAGES
FROM ${PYTHON_IMAGE}
COPY --from=venv /venv /venv
COPY reference_app.py model.onnx inputs.json /app/
ENV MODEL=/app/model.onnx INPUTS=/app/inputs.json HOST=0.0.0.0 PORT=3000 HOME=/tmp ORT_DISABLE_TELEMETRY=1
USER 10001:10001
CMD ["/venv/bin/python", "/app/reference_app.py"]
"""


def docker(*words: str) -> str:
    """Its output; what it says of a failure ends the benchmark."""
    done = subprocess.run(["docker", *words], capture_output=True, text=True, env=os.environ | {"DOCKER_BUILDKIT": "1"})
    if done.returncode:
        sys.exit(f"docker {words[0]}: {done.stderr}")
    return done.stdout.strip()


def reference(base: str) -> str:
    """Builds the bare image over the same base and the same model; returns its name."""
    name = f"bench-image-{uuid.uuid4().hex[:8]}"
    model = Path("build/model")
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        shutil.copy(HERE / "reference_app.py", context)
        shutil.copy(model / "model.onnx", context)
        card = json.loads((model / "card.json").read_text("utf-8"))
        (context / "inputs.json").write_text(json.dumps(card["inputs"]), "utf-8")
        locked = Path("requirements/serve.txt").read_text("utf-8")
        (context / "locked.txt").write_text("\n".join(re.findall(r"(?m)^\S+==[^\\\n]+", locked)), "utf-8")
        (context / "Dockerfile").write_text(REFERENCE.replace("PACKAGES", " ".join(PACKAGES)), "utf-8")
        docker("build", "--quiet", "--build-arg", f"PYTHON_IMAGE={base}", "--tag", name, folder)
    return name


def question() -> tuple[bytes, list[float]]:
    """A body of one golden row, and the forecasts that are due."""
    model = Path("build/model")
    inputs = json.loads((model / "card.json").read_text("utf-8"))["inputs"]
    golden = json.loads((model / "golden.json").read_text("utf-8"))
    instance = dict(zip(inputs, golden["instances"][0], strict=True))
    return json.dumps({"instances": [instance]}).encode(), golden["forecasts"][0]


def cold(image: str, body: bytes, due: list[float]) -> float:
    """Seconds from the start of a new container to its first answer, which must be the right one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    container = docker("create", "--publish", f"127.0.0.1:{port}:3000", *HARDENED, image)
    try:
        url, headers = f"http://127.0.0.1:{port}/v1/predict", {"content-type": "application/json"}
        begun = time.perf_counter()
        docker("start", container)
        while time.perf_counter() - begun < WAIT_SECONDS:
            try:
                with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=5) as answer:
                    seconds, made = time.perf_counter() - begun, json.load(answer)["predictions"][0]
                break
            except OSError:  # nobody listens yet
                time.sleep(0.005)
        else:
            sys.exit(f"{image} never answered:\n{docker('logs', container)}")
    finally:
        docker("rm", "--force", container)
    values = list(made.values()) if isinstance(made, dict) else made
    if not all(math.isclose(one, other, rel_tol=1e-9) for one, other in zip(values, due, strict=True)):
        sys.exit(f"{image} answers {values}, and not {due}")
    return seconds


def added(image: str, base: str) -> float:
    """Megabytes above the base, uncompressed."""
    size, less = (int(docker("image", "inspect", "-f", "{{.Size}}", name)) for name in (image, base))
    return (size - less) / 1e6


def containerized(base: str, python: str, service: str) -> str:
    """What `bentoml containerize` makes of the same files on the same base: its name, or nothing where it fails."""
    name = f"bench-image-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree("build/context", context := Path(folder) / "context")
        with (context / "bentofile.yaml").open("a", encoding="utf-8") as file:
            file.write(f'docker:\n  base_image: {base}\n  python_version: "{python}"\n')
        env = os.environ | {"BENTOML_HOME": folder, "BENTOML_DO_NOT_TRACK": "True"}
        for words in (["build", "--version", "1", "."], ["containerize", f"{service}:1", "-t", name]):
            command = [sys.executable, "-m", "bentoml", *words]
            done = subprocess.run(command, cwd=context, env=env, capture_output=True, text=True)
            if done.returncode:
                print(f"bentoml {words[0]} fails here, its image is left out: {done.stderr[-2000:]}", file=sys.stderr)
                return ""
    return name


def main() -> None:
    """Measures, prints and writes; a missed goal is reported, never a failure."""
    if not Path("build/image.json").is_file():
        subprocess.run(["make", "load", "train", "image"], check=True, stdout=sys.stderr)
    contract = tomllib.loads(Path("service.toml").read_text("utf-8"))
    base = os.environ.get("PYTHON_IMAGE") or contract["image"]["base"]
    python = docker("run", "--rm", base, "python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
    ours, bare = json.loads(Path("build/image.json").read_text("utf-8"))["service"]["ref"], reference(base)
    made, sizes = [bare], {AGAINST: added(bare, base)}
    try:
        wanted = os.environ.get("CONTAINERIZE") != "0"
        if wanted and (theirs := containerized(base, python, contract["service"]["name"])):
            made.append(theirs)
            sizes["bentoml containerize"] = added(theirs, base)
        seconds: dict[str, list[float]] = {ours: [], bare: []}
        asked = question()
        for run in range(RUNS):
            print(f"\rcold start {run + 1} of {RUNS}", end="", file=sys.stderr, flush=True)
            for image in (ours, bare) if run % 2 else (bare, ours):
                seconds[image].append(cold(image, *asked))
    finally:
        docker("image", "rm", "--force", *made)
    rows = [row("size above the base", added(ours, base), "MB", against, other, goal=200, least=False)
            for against, other in sizes.items()]  # fmt: skip
    for name, of in (("median", statistics.median), ("p95", p95)):
        mine, other = of(seconds[ours]), of(seconds[bare])
        rows.append(row(f"cold start, {name} of {RUNS}", mine, "s", AGAINST, other,
                        goal=round(1.5 * other, 3), least=False))  # fmt: skip
    report(OUT / "image.json", rows)


def p95(values: list[float]) -> float:
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


if __name__ == "__main__":
    main()
