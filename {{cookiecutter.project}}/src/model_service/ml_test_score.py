"""The ML Test Score, from tests that were run: a point only for a promise that was seen to hold and seen to break.

The 28 tests are those of Breck, Cai, Nielsen, Salib, Sculley, "The ML Test Score: A Rubric for ML Production Readiness
and Technical Debt Reduction", IEEE Big Data 2017. Tests of this repository name the one they speak for by the marker
`ml_test("data-1")`, their sabotage twins by `ml_test("data-1", sabotage=True)`; what passed is kept in build/, with the
hash of code, tests and service.toml it passed on. Half a point, the paper's for a test done by hand, is never given.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_service import digests, settings
from model_service.store.connection import Connection

EVIDENCE = Path("build", "ml-test-score.json")
RUBRIC = {
    "data-1": "feature expectations are captured in a schema",
    "data-2": "whether each feature helps is tested",
    "data-3": "no feature costs too much",
    "data-4": "features keep to declared requirements",
    "data-5": "privacy is controlled in the whole pipeline",
    "data-6": "new features can be added quickly",
    "data-7": "all code of input features is tested",
    "model-1": "every model's specification is reviewed and kept",
    "model-2": "offline figures agree with live ones",
    "model-3": "hyper-parameters are tuned",
    "model-4": "the effect of a model's age is known",
    "model-5": "a simpler model is not better",
    "model-6": "quality holds on every important slice",
    "model-7": "the model was tested for inclusion",
    "infra-1": "training is reproducible",
    "infra-2": "model code is unit tested",
    "infra-3": "the whole pipeline is integration tested",
    "infra-4": "quality is validated before a model serves",
    "infra-5": "a single answer can be followed step by step",
    "infra-6": "a model is tried on the serving path before it serves",
    "infra-7": "a model can be rolled back",
    "monitor-1": "changes of dependencies are noticed",
    "monitor-2": "data invariants hold in training and serving",
    "monitor-3": "training and serving compute features alike",
    "monitor-4": "models are not too stale",
    "monitor-5": "the model is numerically stable",
    "monitor-6": "speed and size have not regressed",
    "monitor-7": "quality on served data has not regressed",
}
# Where the champion's own training must bear it out too: the gate's rules of that name were judged, and held.
BORNE_OUT = {"data-2": "useless", "model-5": "better_than_", "model-6": "slice_", "infra-4": "evidence",
             "monitor-3": "skew", "monitor-5": "perturbation"}  # fmt: skip


def state(root: Path) -> str:
    """Hash of what tests depend on: code, tests, service.toml."""
    files = [path for part in ("src", "tests") for path in (root / part).rglob("*") if path.suffix in {".py", ".sql"}]
    return digests.of_files(root, [*files, root / settings.CONTRACT])


def keep(root: Path, outcomes: Mapping[str, tuple[str, bool, bool]]) -> None:
    """Adds outcomes, {test: (number, sabotage, passed)}, to what earlier runs of this very state kept."""
    path, now = root / EVIDENCE, state(root)
    held = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    tests = (held["tests"] if held.get("state") == now else {}) | {name: list(one) for name, one in outcomes.items()}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"state": now, "tests": tests}, indent=1) + "\n", "utf-8")


def score(root: Path, connection: Connection) -> list[dict[str, Any]]:
    """One entry a test of the rubric: number, what it asks, points (0 or 1), and why."""
    path = root / EVIDENCE
    held = json.loads(path.read_text("utf-8")) if path.is_file() else {"state": None, "tests": {}}
    fresh = held["state"] == state(root)
    gate = _gate(connection)
    found = []
    for number, asks in RUBRIC.items():
        why = _missing(number, held["tests"], gate) if fresh else "no test was run on this code: run `make test`"
        says = why or "seen to hold and to break"
        found.append({"number": number, "asks": asks, "points": int(not why), "why": says})
    return found


def _missing(number: str, tests: Mapping[str, Any], gate: list[dict[str, Any]]) -> str:
    for twin, says in ((False, "no test speaks for it"), (True, "no sabotage of it was seen")):
        passed = [one[2] for one in tests.values() if one[:2] == [number, twin]]
        if not all(passed):
            return "a test of it failed"
        if not passed:
            return says
    if prefix := BORNE_OUT.get(number):
        judged = [rule["ok"] for rule in gate if rule["name"].startswith(prefix)]
        if not judged or not all(judged):
            return (
                f"the champion's training did not pass {prefix}*" if judged else f"no champion was judged by {prefix}*"
            )
    return ""


def _gate(connection: Connection) -> list[dict[str, Any]]:
    row = connection.execute(
        "SELECT gate FROM training_run WHERE version = ("
        "SELECT version FROM promotion ORDER BY promotion_id DESC LIMIT 1) ORDER BY run_id DESC LIMIT 1"
    ).fetchone()
    return list(row[0]) if row else []


def text(found: list[dict[str, Any]]) -> str:
    """The points by section; the score is the lowest section's."""
    sections: dict[str, int] = {}
    for one in found:
        section = one["number"].split("-")[0]
        sections[section] = sections.get(section, 0) + one["points"]
    lines = [f"{one['points']}  {one['number']:10} {one['asks']}: {one['why']}" for one in found]
    of = ", ".join(f"{name} {points} of 7" for name, points in sections.items())
    return "\n".join([*lines, f"ML Test Score {min(sections.values())}: {of}"])
