"""A point of the ML Test Score needs a test that passed on this very code, a sabotage seen, and a champion to match."""

import json
from pathlib import Path
from typing import Any

import pytest

from model_service import ml_test_score

Connection = Any
GOOD = {"holds": ("model-3", False, True), "breaks": ("model-3", True, True)}


def points(root: Path, connection: Connection) -> dict[str, int]:
    return {one["number"]: one["points"] for one in ml_test_score.score(root, connection)}


def test_a_promise_seen_to_hold_and_to_break_is_a_point(project: Path, loader: Connection) -> None:
    ml_test_score.keep(project, GOOD)
    assert {number for number, one in points(project, loader).items() if one} == {"model-3"}
    assert "ML Test Score 0: data 0 of 7, model 1 of 7" in ml_test_score.text(ml_test_score.score(project, loader))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"breaks": ("model-2", True, True)}, "no sabotage of it was seen"),
        ({"holds": ("model-2", False, True)}, "no test speaks for it"),
        ({"another": ("model-3", False, False)}, "a test of it failed"),
    ],
    ids=["never seen red", "no test", "a failed test"],
)
def test_less_is_no_point(project: Path, loader: Connection, change: dict[str, Any], says: str) -> None:
    ml_test_score.keep(project, GOOD | change)
    found = {one["number"]: one for one in ml_test_score.score(project, loader)}
    assert (found["model-3"]["points"], found["model-3"]["why"]) == (0, says)


def test_what_passed_on_other_code_proves_nothing(project: Path, loader: Connection) -> None:
    ml_test_score.keep(project, GOOD)
    with (project / "service.toml").open("a") as file:
        file.write("# changed\n")
    assert not any(points(project, loader).values())
    ml_test_score.keep(project, {"holds": GOOD["holds"]})
    assert not any(points(project, loader).values())  # the sabotage was seen on the code before


def test_results_of_several_runs_on_the_same_code_add_up(project: Path, loader: Connection) -> None:
    for name, one in GOOD.items():
        ml_test_score.keep(project, {name: one})
    assert points(project, loader)["model-3"] == 1


@pytest.mark.parametrize(("ok", "point"), [(True, 1), (False, 0)])
def test_what_the_champion_must_bear_out_counts_only_when_it_did(
    project: Path, loader: Connection, ok: bool, point: int
) -> None:
    ml_test_score.keep(project, {name: ("model-6", *one[1:]) for name, one in GOOD.items()})
    assert points(project, loader)["model-6"] == 0  # there is no champion
    version = loader.execute(
        "INSERT INTO model (digest, files, onnx) VALUES ('sha256:0', '{}', '') RETURNING version"
    ).fetchone()[0]
    loader.execute(
        "INSERT INTO promotion (version, action, who, reason) VALUES (%s, 'promote', 'me', 'why')", [version]
    )
    loader.execute(
        "INSERT INTO training_run (seconds, who, outcome, version, known_at, data_version, parameters, figures, gate,"
        " provenance) VALUES (1, 'me', 'passed', %s, now(), 'sha256:0', '{}', '{}', %s, '{}')",
        [version, json.dumps([{"name": "slice_early", "ok": ok}])],
    )
    assert points(project, loader)["model-6"] == point
