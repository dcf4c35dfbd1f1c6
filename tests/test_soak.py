"""Two minutes at half of what the service can take, and a leak that must be seen; `make soak` takes longer."""

import json
from pathlib import Path

import pytest
from conftest import ROOT, BakedProject
from test_stack import copied

pytestmark = [pytest.mark.docker, pytest.mark.elasticsearch]
LEAKING = """
from model_service.serving import app as served

kept = []


async def app(scope, receive, send):
    kept.append(bytes(2000))
    await served.app(scope, receive, send)
"""


@pytest.fixture(scope="module")
def project(built: BakedProject, workshop: Path) -> BakedProject:
    return copied(built, workshop / "soak")


def soak(project: BakedProject, out: Path, minutes: str, **env: str) -> dict[str, dict[str, object]]:
    """Rows of the report by the first words of their names."""
    words = {"PYTHONPATH": "src", "MINUTES": minutes, "OUT": str(out)} | env
    project.run(project.python, ROOT / "benchmarks/soak.py", env=words)
    return {one["name"].split(" (")[0]: one for one in json.loads((out / "soak.json").read_text("utf-8"))}


def test_its_memory_is_flat_and_every_answer_is_in_the_audit_trail(project: BakedProject, tmp_path: Path) -> None:
    rows = soak(project, tmp_path, "2")
    assert rows["growth that is 99 % sure"]["met"] is True, rows
    assert rows["errors"]["met"] is True, rows
    assert rows["difference from what it holds"]["met"] is True, rows
    assert int(str(rows["answers"]["value"])) > 1000


def test_a_leak_of_two_kilobytes_a_request_is_seen(project: BakedProject, tmp_path: Path) -> None:
    (tmp_path / "leaking.py").write_text(LEAKING, "utf-8")
    rows = soak(project, tmp_path, "1", APP="leaking:app", PYTHONPATH=f"src:{tmp_path}")
    assert rows["growth that is 99 % sure"]["met"] is False, rows
