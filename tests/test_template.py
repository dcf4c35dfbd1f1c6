"""The template's own code, locks and limits."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, BakedProject, environment, run

OWN = ["hooks", "tests", "scripts", "benchmarks"]


def test_own_code_is_linted_formatted_and_typed(tmp_path: Path) -> None:
    env = environment(tmp_path / "home")
    run("ruff", "check", "--no-cache", *OWN, cwd=ROOT, env=env)
    run("ruff", "format", "--no-cache", "--check", *OWN, cwd=ROOT, env=env)
    run("mypy", "--cache-dir", tmp_path / "mypy", cwd=ROOT, env=env)


@pytest.mark.parametrize("name", ["demo", "test"])
def test_locks_are_hashed_and_name_no_registry(name: str) -> None:
    text = (ROOT / f"requirements/{name}.txt").read_text("utf-8")
    assert "://" not in text and "--index" not in text and "--find-links" not in text
    pins = re.split(r"\n(?=\S)", text.strip())
    assert len(pins) > 3
    for pin in pins:
        assert re.match(r"[a-z0-9-]+==\S+", pin) and "--hash=sha256:" in pin, pin


def test_locks_agree() -> None:
    def pins(name: str) -> dict[str, str]:
        text = (ROOT / f"requirements/{name}.txt").read_text("utf-8")
        return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))

    assert pins("demo").items() <= pins("test").items()


def test_help_lists_every_target(tmp_path: Path) -> None:
    shown = run("make", "help", cwd=ROOT, env=environment(tmp_path / "home")).stdout
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert targets and set(re.findall(r"make ([a-z-]+)", shown)) == set(targets[1].split())


def test_generated_repository_keeps_its_limits(default: BakedProject) -> None:
    files = default.files()
    code = {name: text.decode() for name, (text, _) in files.items() if name.endswith(".py")}
    own = {name: text.count("\n") for name, text in code.items() if not name.startswith("tests/")}
    assert len(files) <= 100, f"{len(files)} files"
    assert sum(own.values()) <= 5000, f"{sum(own.values())} lines"
    assert {name: lines for name, lines in own.items() if lines > 300} == {}
    for name, (text, _) in files.items():
        assert not re.search(rb"\b(T[O]DO|F[I]XME)\b", text), name
    for name, text in code.items():
        assert "{%" not in text and "{{ cookiecutter" not in text, name


def test_what_is_left_out_is_said_loudly(tmp_path: Path) -> None:
    """A run without Docker names the tests that need it, with the reason, before the runner's last line."""
    (tmp_path / "test_it.py").write_text("import pytest\n\n@pytest.mark.docker\ndef test_it() -> None: ...\n")
    (tmp_path / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text("utf-8"))
    env = environment(tmp_path / "home", PATH="/nowhere")
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_it.py"]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if "LEFT OUT ON THIS MACHINE" in line)
    assert lines[at + 1] == "Docker: no engine answers `docker info`: 1 not run"
    assert lines[at + 2] == "    test_it.py::test_it"
    assert "1 skipped" in lines[-1]
