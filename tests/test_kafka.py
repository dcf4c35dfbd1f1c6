"""The kafka source with a real broker: what it loads, what it survives, and a champion trained on it."""

import csv
import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
from conftest import ROOT, BakedProject, cookiecutter, environment, image, trains_a_champion_and_passes_its_tests

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module")
def streaming(workshop: Path) -> BakedProject:
    """A project that reads Kafka, after `make setup`."""
    folder = workshop / "streaming"
    cookiecutter(folder, folder / "home", source="kafka")
    more = {"KAFKA_IMAGE": image("KAFKA_IMAGE"), "PYTHONPATH": f"src:{ROOT / 'benchmarks'}"}
    project = BakedProject(folder / "us-unemployment", environment(folder / "home", **more))
    project.make("setup")
    return project


def cells(project: BakedProject, series: Iterable[str]) -> int:
    """How many values the sample's files have of these."""
    files = [path.open(newline="") for path in (project.path / "tests/sample/data/us-macro").glob("*.csv")]
    return sum(bool(row[name]) for file in files for row in csv.DictReader(file) for name in series)


def test_a_service_that_reads_kafka_trains_a_champion_and_passes_its_tests_of_loading_and_training(
    streaming: BakedProject,
) -> None:
    words = [str(streaming.python), str(ROOT / "benchmarks/kafka_broker.py"), "us-macro", "3"]
    with subprocess.Popen(
        words, cwd=streaming.path, env=streaming.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as broker:
        assert broker.stdout and broker.stdin
        servers = broker.stdout.readline().strip()
        toml = streaming.text("service.toml")
        (streaming.path / "service.toml").write_text(toml.replace("localhost:9092", servers))
        sent = streaming.run(streaming.python, "tests/fill_kafka.py", "tests/sample/data/us-macro", servers, "us-macro")
        streaming.service("migrate")
        done = streaming.service("load")
        assert re.search(r"[1-9]\d* of \d+ payloads loaded", done.stdout)
        assert "nothing new" in streaming.service("load").stdout
        broker.stdin.close()
        assert broker.wait(60) == 0
    (streaming.path / "service.toml").write_text(toml)
    loads = json.loads(streaming.service("load", "list", "--json").stdout)
    assert sum(one["fetched"] for one in loads) == cells(streaming, tomllib.loads(toml)["series"]) < int(sent.stdout)
    trains_a_champion_and_passes_its_tests(streaming, "UNRATE", "kafka", "follow")


def test_what_only_a_real_broker_can_show(streaming: BakedProject) -> None:
    shutil.copy(ROOT / "tests/real_kafka.py", streaming.path / "tests/test_real_kafka.py")
    try:
        done = streaming.run(streaming.python, "-m", "pytest", "tests/test_real_kafka.py")
    finally:
        (streaming.path / "tests/test_real_kafka.py").unlink()
    assert re.search(r"\d+ passed", done.stdout) and "skipped" not in done.stdout


def test_no_message_is_lost_or_doubled_while_loaders_broker_and_claims_are_shot_down(
    streaming: BakedProject, tmp_path: Path
) -> None:
    asked = {"MESSAGES": "20000", "KILLS": "3", "RESTARTS": "1", "TAKEN": "2", "REBALANCES": "1"}
    asked |= {"RATE": "1000", "LIVE": "5", "OUT": str(tmp_path)}
    streaming.run(streaming.python, ROOT / "benchmarks/kafka.py", env=asked)
    found = {one["name"]: one for one in json.loads((tmp_path / "kafka.json").read_text())}
    faults = {name.removeprefix("faults: "): one["value"] for name, one in found.items() if name.startswith("faults")}
    assert faults == {
        "kill -9 of the reading copy": 3,
        "broker killed": 1,
        "claim taken away": 2,
        "group rebalanced": 1,
    }
    for what in ("lost", "doubled", "wrong"):
        assert found[f"{what} of them"]["value"] == 0
    assert found["lost of them"]["reference_value"] == found["doubled of them"]["reference_value"] == 1  # as planted
    assert found["anything wrong after the delay was measured"]["value"] == 0
    assert found["delay at 1,000 messages/s, p99"]["unit"] == "s"
