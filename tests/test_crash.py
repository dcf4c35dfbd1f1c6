"""A load survives what can befall it, by the harness of `make bench-crash`: the same faults, fewer of each."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
from conftest import ROOT, BakedProject, image, run

pytestmark = [pytest.mark.docker, pytest.mark.timescale]
PHASES = ("fetch", "stage", "insert", "before COMMIT", "inside COMMIT", "after COMMIT")
OPEN = ("fetch", "stage", "insert", "before COMMIT")  # phases that leave nothing behind


@dataclass(frozen=True)
class Crashes:
    """What the harness found: each fault, and the figures of the whole."""

    faults: list[dict[str, Any]]
    figures: dict[str, dict[str, Any]]
    printed: str

    def of(self, kind: str, phase: str) -> list[dict[str, Any]]:
        found = [fault for fault in self.faults if (fault["kind"], fault["phase"]) == (kind, phase)]
        assert found, f"no {kind} in {phase}"
        return found


@pytest.fixture(scope="module")
def crashes(built: BakedProject, tmp_path_factory: pytest.TempPathFactory) -> Crashes:
    out = tmp_path_factory.mktemp("crash")
    env = built.env | {"OUT": str(out), "KILLS": "18", "CONTROL": "6", "TIMESCALE_IMAGE": image("TIMESCALE_IMAGE")}
    done = run(built.python, ROOT / "benchmarks/crash.py", "--project", built.path, cwd=out, env=env)
    faults = [json.loads(line) for line in (out / "crash-faults.jsonl").read_text("utf-8").splitlines()]
    rows = json.loads((out / "crash.json").read_text("utf-8"))
    return Crashes(faults, {row["name"]: row for row in rows}, done.stdout)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", ["client killed", "server killed", "network cut"])
def test_a_load_is_there_whole_or_not_at_all_after(crashes: Crashes, kind: str, phase: str) -> None:
    for fault in crashes.of(kind, phase):
        assert fault["whole"], fault
        if phase != "inside COMMIT":
            assert fault["committed"] == (phase not in OPEN), fault


def test_a_load_whose_commit_is_on_disk_is_there_though_no_answer_came(crashes: Crashes) -> None:
    unanswered = [fault for fault in crashes.faults if fault["place"] in ("record on disk, no answer", "answer lost")]
    assert {fault["kind"] for fault in unanswered} >= {"network cut"}
    assert all(fault["committed"] for fault in unanswered)
    assert all(fault["status"] for fault in unanswered), "the client cannot know, and must not claim success"


@pytest.mark.parametrize("kind, phase", [("disk full", phase) for phase in PHASES[:3]] + [("log full", PHASES[3])])
def test_a_load_fails_cleanly_and_can_be_repeated_after(crashes: Crashes, kind: str, phase: str) -> None:
    for fault in crashes.of(kind, phase):
        assert (fault["status"], fault["committed"], fault["whole"]) == (1, False, True), fault


@pytest.mark.parametrize("when", ["before it is inserted", "after it was inserted"])
def test_nothing_is_committed_when_a_row_is_dropped(crashes: Crashes, when: str) -> None:
    (fault,) = [fault for fault in crashes.of("row dropped", "insert") if fault["place"] == when]
    assert (fault["status"], fault["committed"], fault["whole"]) == (1, False, True), fault


def test_the_server_saw_every_kill_in_the_phase_that_was_meant(crashes: Crashes) -> None:
    assert crashes.figures["kills in another phase than meant"]["value"] == 0


@pytest.mark.parametrize("what", ["lost", "doubled", "without a committed ledger row", "anything else wrong"])
def test_after_a_repeated_load_there_is_no_cell(crashes: Crashes, what: str) -> None:
    assert crashes.figures[what]["value"] == 0, crashes.printed


@pytest.mark.parametrize("what", ["lost", "doubled", "without a committed ledger row"])
def test_the_same_faults_against_a_loader_that_commits_as_it_goes_show_cells(crashes: Crashes, what: str) -> None:
    assert crashes.figures[what]["reference_value"] > 0
