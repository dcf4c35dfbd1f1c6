"""`make demo` in a fresh copy of the template, as a newcomer runs it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import copy_template, environment, run


@pytest.fixture(scope="module")
def fresh(workshop: Path) -> Path:
    return copy_template(workshop / "demo/onemodel", environment(workshop / "demo/home"))


def demo(folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs it with the system's Python, not with the one of these tests."""
    words = ["make", "demo", "ONCE=1", f"PYTHON={getattr(sys, '_base_executable', sys.executable)}"]
    done: subprocess.CompletedProcess[str] = run(
        *words, cwd=folder, env=environment(folder.parent / "home", **env), check=False
    )
    return done


def processes(folder: Path) -> list[str]:
    shown = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in shown.splitlines() if str(folder) in line]


def test_a_folder_that_it_did_not_make_is_left_alone(fresh: Path) -> None:
    mine = fresh / "build/us-unemployment/mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    done = demo(fresh)
    assert done.returncode != 0
    assert "us-unemployment exists and was not made by make demo: move it away" in done.stderr
    assert mine.read_text() == "mine"
    mine.unlink()
    mine.parent.rmdir()


def test_demo_serves_a_forecast_and_stops_everything(fresh: Path) -> None:
    done = demo(fresh)
    assert done.returncode == 0, done.stdout + done.stderr
    timed = re.findall(r"^  ([a-z+ ]+?) +\d+\.\d s$", done.stdout, re.MULTILINE)
    assert timed == [
        "environment", "bake", "commit", "setup", "load", "train + gate", "build", "serve", "forecast", "total",
    ]  # fmt: skip
    row = r"^ +{} +20\d\d-\d\d +\d+\.\d\d +\d+\.\d\d to \d+\.\d\d +\d+\.\d\d to \d+\.\d\d$"
    for horizon in (1, 3, 6):
        assert re.search(row.format(horizon), done.stdout, re.MULTILINE), done.stdout
    for words in ("version 1, sha256:", "as of   20", "data sha256:", "http://127.0.0.1:"):
        assert words in done.stdout
    assert processes(fresh) == []
    project = fresh / "build/us-unemployment"
    git = ["git", "-C", str(project)]
    shown = subprocess.run([*git, "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=True).stdout
    assert Path(shown.strip()) == project  # a repository of its own
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=fresh, capture_output=True, text=True, check=True).stdout
    assert json.loads((project / ".onemodel.json").read_text())["commit"] == head.strip()


def test_a_failing_phase_shows_its_log_and_its_own_project_is_replaced(fresh: Path) -> None:
    trace = fresh / "build/us-unemployment/trace.txt"
    assert trace.parent.is_dir(), "the test before makes it"
    trace.write_text("from the run before")
    sample = fresh / "loaders/csv/sample/2016-06-29.csv"
    kept = sample.read_bytes()
    sample.write_bytes(b"")
    done = demo(fresh)
    sample.write_bytes(kept)
    assert done.returncode != 0
    assert "demo: load failed (exit" in done.stderr
    assert "2016-06-29.csv" in done.stderr and "whole log: " in done.stderr
    assert not trace.exists()
    assert processes(fresh) == []


def python_without(folder: Path, word: str) -> Path:
    """A Python that fails where its arguments say `word`, and works as usual elsewhere."""
    wrapper = folder / "python3"
    wrapper.write_text(f'#!/bin/sh\ncase "$*" in *{word}*) exit 1 ;; esac\nexec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    return wrapper


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("ensurepip", "has no ensurepip, so it cannot make an environment"),
        ("version_info", "needs Python 3.11 or newer"),
    ],
)
def test_unfit_python_is_named_with_what_to_do(template: Path, tmp_path: Path, word: str, message: str) -> None:
    python = python_without(tmp_path, word)
    done = run("make", "demo", f"PYTHON={python}", cwd=template, env=environment(tmp_path / "home"), check=False)
    assert done.returncode == 2
    assert message in done.stderr and "make PYTHON=/path/to/python3.12" in done.stderr
    assert not (template / ".venv").exists()


def test_bench_bake_writes_the_format_of_all_benchmarks(template: Path, tmp_path: Path) -> None:
    env = environment(tmp_path / "home", ROUNDS="1")
    done = run(sys.executable, "benchmarks/bake.py", cwd=template, env=env)
    rows = json.loads((template / "build/bench/bake.json").read_text())
    keys = {"name", "value", "unit", "reference", "reference_value", "ratio", "goal", "met"}
    assert rows and all(set(row) == keys for row in rows)
    assert all(abs(row["ratio"] - row["value"] / row["reference_value"]) < 0.01 for row in rows)
    assert os.path.basename("build/bench/bake.json") in done.stdout and "bake 1/1" in done.stderr
