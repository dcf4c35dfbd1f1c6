"""What `make bench-serve` says of where the time goes is said of functions that the service has."""

import json
from pathlib import Path

import pytest
from conftest import ROOT, BakedProject

ASK = """
import asyncio, json, sys
import httpx, serve_profile
card, golden = (json.load(open(f"build/model/{name}.json")) for name in ("card", "golden"))
json.dump(card["inputs"], open(sys.argv[2], "w"))
app = getattr(serve_profile, sys.argv[1])()
body = {"instances": [dict(zip(card["inputs"], golden["instances"][0]))]}
async def main():
    if sys.argv[1] == "ours":
        await sys.modules["model_service.serving.app"].state.start()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
        for _ in range(100):
            assert (await client.post("/v1/predict", json=body)).status_code == 200
        print((await client.get("/profile")).text)
asyncio.run(main())
"""


@pytest.mark.parametrize(("side", "idle"), [("ours", set()), ("bare", {"audit record", "log line and metrics"})])
def test_every_stage_of_a_request_takes_its_time(
    built: BakedProject, tmp_path: Path, side: str, idle: set[str]
) -> None:
    inputs = str(tmp_path / "inputs.json")
    env = {"PYTHONPATH": f"src:{ROOT / 'benchmarks'}", "MODEL": "build/model/model.onnx", "INPUTS": inputs}
    done = built.run(built.python, "-c", ASK, side, inputs, env=env | {"DATABASE_URL": "postgresql://127.0.0.1:1/none"})
    told = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"body')))  # among log lines
    assert len(told) == 8
    assert {stage for stage, spent in told.items() if spent == 0} - {"other threads"} == idle
