"""Throughput and p99 of the service, with metrics, access log and audit trail, against bare FastAPI and ONNX Runtime.

Both answer for the same model on one core, asked by `wrk` on the others, in turn: PAIRS=7 times SECONDS=4 a case; the
median of the pairs' ratios judges. The trail goes to a live Elasticsearch, and before the next turn every answer must
be there, once. Beside them what else serves the model, in TURNS=3 shorter pairs a case (0 leaves it out), and where the
time of a request goes. Writes build/bench/serve.json. Needs wrk, Docker and ELASTICSEARCH_IMAGE.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import serve_others
from load_report import report, row
from serve_profile import STAGES
from serve_run import Bench, Failed, Report, Side, elasticsearch, server, shipped, wait_for, wrk

HERE = Path(__file__).resolve().parent
OUT = Path(os.environ.get("OUT", HERE.parent / "build/bench"))
PAIRS, SECONDS, TURNS = (
    int(os.environ.get(name) or usual) for name, usual in (("PAIRS", 7), ("SECONDS", 4), ("TURNS", 3))
)
BARE = "bare FastAPI and ONNX Runtime: uvicorn, uvloop, httptools, no access log"
GOAL = 1.5
CASES = [(size, connections) for size in (1, 100) for connections in (1, 16, 64)]
COLD = """local n = 0
request = function()
  n = n + 1
  return wrk.format("GET", string.format("/v1/forecast?as_of={}.%06dZ", n))
end
"""
Instance = dict[str, Any]
BAD: dict[str, Callable[[Instance], list[Instance]]] = {  # what both must refuse
    "another input": lambda one: [one | {"more": 1.0}],
    "an input too few": lambda one: [dict(list(one.items())[1:])],
    "null": lambda one: [one | {next(iter(one)): None}],
    "text": lambda one: [one | {next(iter(one)): "1"}],
    "true": lambda one: [one | {next(iter(one)): True}],
    "no instance": lambda _: [],
    "too many": lambda one: [one] * 1_001,
}


def lasts(size: int, seconds: int) -> int:
    """Seconds of a turn: a hundred rows make a wide trail."""
    return seconds if size == 1 else max(1, seconds // 2)


def predictions(bench: Bench, name: str, one: Instance, other: str, url: str, asks: Callable[[int], dict[str, Any]],
                seconds: int, pairs: int, goal: float | None = None) -> Report:  # fmt: skip
    """Every case, against who takes `asks(size)` at `url` for as many rows."""
    rows: Report = []
    for size, connections in CASES:
        mine = Side("ours", f"{bench.ours}/v1/predict", bench.posted(f"ours-{size}", asked(one, size)))
        theirs = Side(other, url, bench.posted(f"theirs-{size}", asks(size)))
        what = f"{name}, {size} x {len(one)}, {connections} connections"
        rows += bench.compare(what, mine, theirs, connections, lasts(size, seconds), pairs, goal)
    return rows


def asked(one: Instance, size: int) -> dict[str, Any]:
    return {"instances": [one] * size}


def forecasts(bench: Bench, bare: str) -> Report:
    """From the cache; and cold, each by a clock of its own; against an app that returns stored bytes."""
    url, cold = f"{bench.ours}/v1/forecast", bench.folder / "cold.lua"
    cold.write_text(COLD.format(httpx.get(url).json()["as_of"]["known_at"][:19]))
    stored = Side(BARE, f"{bare}/v1/forecast")
    return [
        row
        for name, script, connections in (("from the cache", None, 16), ("cold", cold, 1))
        for row in bench.compare(f"/v1/forecast, {name}, {connections} connections", Side("ours", url, script), stored,
                                 connections, SECONDS, PAIRS)
    ]  # fmt: skip


def others(bench: Bench, model: Path, one: Instance) -> Report:
    """What else serves the model; where one cannot, that is said, and the next one follows."""
    rows: Report = []
    values = list(one.values())
    due = list(httpx.post(f"{bench.ours}/v1/predict", json=asked(one, 1)).json()["predictions"][0].values())
    for other in serve_others.OTHERS if TURNS else ():
        bench.tell(f"{other.name} is made ready")
        try:
            home = serve_others.installed(other, OUT / "servers", model, bench.folder)
            env = serve_others.environment(home, model, bench.folder)
            with server(*other.command, folder=bench.folder, ready=other.ready, **env) as url:
                asks = {size: other.asks([values] * size) for size, _ in CASES}
                for size, body in asks.items():
                    made = other.tells(httpx.post(f"{url}{other.path}", json=body, timeout=30).json())
                    if len(made) != size or not all(map(math.isclose, chain(*made), due * size)):
                        raise Failed(f"it answers {made}, and not {size} times {due}")
                rows += predictions(bench, f"beside {other.name}", one, other.says, f"{url}{other.path}",
                                    asks.__getitem__, max(1, SECONDS // 2), TURNS)  # fmt: skip
        except (Failed, httpx.HTTPError) as error:
            print(f"\n{other.says}: left out: {error}", file=sys.stderr)
            rows.append(row(f"{other.name} was NOT MEASURED", 0, ""))
    return rows


def profile(bench: Bench, one: Instance, sides: dict[str, dict[str, str]]) -> Report:
    """Where the time of a request goes, of ours and of the reference, each alone and under load."""
    rows: Report = []
    for size in (1, 100):
        script, told = bench.posted(f"ours-{size}", asked(one, size)), []
        for side, env in sides.items():
            bench.tell(f"where the time of {side} goes, {size} x {len(one)}")
            command = [sys.executable, "-m", "uvicorn", "--app-dir", str(HERE), "--factory", f"serve_profile:{side}"]
            with server(*command, "--port", "PORT", "--no-access-log", "--log-level", "warning", folder=bench.folder,
                        **env) as url:  # fmt: skip
                for _ in range(2):  # the first warms up
                    httpx.get(f"{url}/profile")
                    wrk(f"{url}/v1/predict", 16, lasts(size, SECONDS), script)
                    if "ELASTICSEARCH_URL" in env:
                        wait_for(partial(shipped, url), 600, "delivery")
                told.append(httpx.get(f"{url}/profile").json())
        mine, theirs = ({**each, "together": sum(each.values())} for each in told)
        rows += [row(f"time of {size} x {len(one)}: {stage}", mine[stage], "us", BARE, round(theirs[stage]))
                 for stage in (*STAGES, "together")]  # fmt: skip
    return rows


def planned() -> float:
    """Seconds in which wrk asks, but for the profile."""
    cases = sum(lasts(size, SECONDS) for size, _ in CASES) + 2 * SECONDS
    beside = sum(lasts(size, max(1, SECONDS // 2)) for size, _ in CASES) * len(serve_others.OTHERS) if TURNS else 0
    return 2 * ((PAIRS + 1) * cases + (TURNS + 1) * beside)


def main() -> None:
    """Trains, serves, measures and prints; a missed goal is reported, never a failure."""
    if missing := [tool for tool in ("wrk", "docker") if not shutil.which(tool)]:
        sys.exit(f"{' and '.join(missing)} missing: install (Debian, Ubuntu: apt install wrk; macOS: brew install wrk)")
    subprocess.run(["make", "load", "train", "build"], check=True)
    sys.path.append("tests")  # of the project
    from model_service import settings
    from model_service.serving.bento import stage
    from model_service.store import connection
    from serving import started_by_the_image

    source = stage(settings.root()) / "src"
    model = source / "model/model.onnx"
    golden, card = (json.loads((source / "model" / name).read_text()) for name in ("golden.json", "card.json"))
    one = dict(zip(card["inputs"], golden["instances"][0], strict=True))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database, store = stack.enter_context(connection.database()), stack.enter_context(elasticsearch())
        env = {"PROJECT_ROOT": str(source), "DATABASE_URL": database, "ELASTICSEARCH_URL": store}
        command = [sys.executable, "-m", *started_by_the_image("PORT"), "--app-dir", str(source)]
        ours = stack.enter_context(server(*command, folder=folder, **env))
        (folder / "inputs.json").write_text(json.dumps(card["inputs"]))
        (folder / "forecast.json").write_bytes(httpx.get(f"{ours}/v1/forecast").content)
        plain = {"MODEL": str(model), "INPUTS": "inputs.json", "FORECAST": "forecast.json"}
        bench = Bench(ours, store, folder, planned())
        with server(sys.executable, str(HERE / "reference_app.py"), folder=folder, **plain) as bare:
            for what, make in BAD.items():
                body = {"instances": make(one)}
                said = [httpx.post(f"{url}/v1/predict", json=body).status_code for url in (ours, bare)]
                if not {*said} <= {413, 422}:
                    sys.exit(f"{what}: both should refuse it, and say {said}")
            rows = predictions(bench, "/v1/predict", one, BARE, f"{bare}/v1/predict", lambda size: asked(one, size),
                               SECONDS, PAIRS, GOAL)  # fmt: skip
            rows += forecasts(bench, bare)
        rows += others(bench, model, one)
        try:
            rows += profile(bench, one, {"ours": env | {"PYTHONPATH": str(source)}, "bare": plain})
        except (Failed, httpx.HTTPError) as failed:
            print(f"\nthere is no profile: {failed}", file=sys.stderr)
    print(file=sys.stderr)
    report(OUT / "serve.json", rows)


if __name__ == "__main__":
    try:
        main()
    except Failed as failed:
        sys.exit(str(failed))
