"""`make add-source` in a baked project: what it adds, where it gets that from, and what it leaves alone."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import BakedProject, cookiecutter, environment, read_at

ADDRESS = "https://example.org/acme/onemodel.git"
OWN = """
[source.own]
kind = "csv"
path = "data/own.csv"
layout = "long"
date = { column = "month", format = "%Y-%m" }

[series.OWN]
source = "own"
frequency = "month"
unit = "percent"
release_lag_days = 7

[target]
series = "OWN"
horizons = [1]

[[feature]]
series = "OWN"
"""


@pytest.fixture(scope="module")
def baked(built: BakedProject, clean_template: Path, workshop: Path) -> BakedProject:
    """A project with csv, made from an address that git finds on this machine. Only to be copied."""
    folder = workshop / "add"
    home = folder / "home"
    home.mkdir(parents=True)
    (home / ".gitconfig").write_text(f'[url "file://{clean_template}"]\n\tinsteadOf = {ADDRESS}\n')
    cookiecutter(folder, home, template=ADDRESS)
    project = BakedProject(folder / "us-unemployment", environment(home))
    (project.path / ".venv").symlink_to(built.path / ".venv")
    return project


@pytest.fixture
def project(baked: BakedProject, workshop: Path, tmp_path: Path) -> Iterator[BakedProject]:
    """A copy that may be changed; the environment is that of the built project."""
    folder = workshop / f"add-{tmp_path.name}"
    shutil.copytree(baked.path, folder, symlinks=True)
    yield BakedProject(folder, baked.env)


def add(project: BakedProject, source: str, check: bool = True, **env: str) -> Any:
    return project.make("-o", ".venv/synced", "add-source", f"SOURCE={source}", check=check, env=env)


def own(project: BakedProject) -> dict[str, tuple[bytes, bool]]:
    """Its files, but for the environment and what running leaves."""
    left = (".venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache")
    return {name: one for name, one in project.files().items() if not any(part in left for part in name.split("/"))}


def refused(project: BakedProject, source: str, status: int = 2, **env: str) -> str:
    """What it says; the project is as it was before."""
    before = own(project)
    done = add(project, source, check=False, **env)
    assert done.returncode == 2  # make's
    assert f"Error {status}" in done.stderr
    assert own(project) == before
    return str(done.stderr)


def test_a_source_comes_from_the_recorded_address_with_all_that_a_bake_has_of_it(
    project: BakedProject, clean_template: Path, tmp_path: Path
) -> None:
    assert project.record()["template"] == ADDRESS
    before = own(project)
    done = add(project, "fred")
    cookiecutter(tmp_path / "fred", tmp_path / "home", template=clean_template, source="fred")
    fred = BakedProject(tmp_path / "fred/us-unemployment", environment(tmp_path / "home")).files()
    after = own(project)
    new = after.keys() - before.keys()
    assert {"src/model_service/loader/sources/fred.py", "tests/test_fred.py", "docs/fred.md"} <= new
    assert fred.keys() <= after.keys()
    assert {name: after[name] for name in new} == {name: fred[name] for name in new}
    assert {name: after[name] for name in before} == before  # nothing that was there was touched
    first, second = done.stdout.splitlines()
    assert first == f"fred: {len(new)} files added, docs/fred.md says what it reads"
    assert second.startswith("service.toml: not changed, for it has series.PAYEMS, series.UNRATE, ")
    assert add(project, "fred").stdout.splitlines()[-1] == "fred: nothing to do, all its files are here"
    assert own(project) == after
    tests = project.run(project.python, "-m", "pytest", "-q", "tests/test_fred.py", env={"PYTHONPATH": "src"}).stdout
    assert "passed" in tests and "skipped" not in tests


def test_its_example_joins_a_service_that_has_none_of_its_names_and_both_are_loaded(project: BakedProject) -> None:
    head = project.text("service.toml").partition("# ---- Where the data come from")[0]
    (project.path / "service.toml").write_text(head + OWN)
    (project.path / "data/own.csv").write_text("month,series,value\n2016-01,OWN,1\n2016-02,OWN,2\n")
    assert "service.toml: source.fred, series.PAYEMS, series.UNRATE, " in add(project, "fred").stdout
    text = project.text("service.toml")
    assert text.startswith(head + OWN.rstrip("\n"))
    assert text.count("[target]") == 1 and text.count("[[feature]]") == 1 and text.count("[series.") == 11
    assert add(project, "fred").stdout == "fred: nothing to do, all its files are here\n"
    assert project.text("service.toml") == text

    with project.running("tests/fake_fred.py", "tests/sample/data/us-macro") as base_url:
        project.edit("service.toml", "requests_per_second = 1.9", read_at(base_url))
        project.service("migrate")
        done = project.service("load", env={"FRED_API_KEY": "0123456789abcdef0123456789abcdef"})
    assert "11 of 11 payloads loaded" in done.stdout
    rows = project.service("data", "OWN", "UNRATE").stdout
    assert "OWN,2016-02-01,2" in rows and "UNRATE,2016-06-01,4.9" in rows


def test_a_source_that_there_is_not_and_none_are_answered_with_those_there_are(project: BakedProject) -> None:
    assert "no source 'fret': there are csv, fred, " in (says := refused(project, "fret"))
    assert "did you mean 'fred'?" in says
    assert "which source? make add-source SOURCE=NAME: there are csv, fred, " in refused(project, "")


def test_files_that_differ_are_all_named_and_none_is_touched(project: BakedProject) -> None:
    for name in ("tests/fred/bad_key.json", "docs/fred.md"):
        (project.path / name).parent.mkdir(exist_ok=True)
        (project.path / name).write_text("mine")
    says = refused(project, "fred")
    assert "these files are here, and are not as in the template; nothing was written." in says
    assert "\n  docs/fred.md\n  tests/fred/bad_key.json\n" in says


def test_what_cannot_be_written_leaves_nothing_behind(project: BakedProject) -> None:
    (project.path / "tests/fred").write_text("a file where a folder is due")
    assert "nothing was added" in refused(project, "fred", status=1)


def test_a_contract_that_would_not_be_valid_is_not_written(project: BakedProject) -> None:
    text = project.text("service.toml")
    (project.path / "service.toml").write_text(text.partition("# ---- Where the data come from")[0] + "\n[target\n")
    assert "service.toml is not valid TOML" in refused(project, "fred")


def record(project: BakedProject, **what: str) -> None:
    path = project.path / ".onemodel.json"
    path.write_text(json.dumps(project.record() | what))


def test_a_template_without_an_address_is_named_by_hand(project: BakedProject, clean_template: Path) -> None:
    record(project, template="onemodel")
    says = refused(project, "fred")
    assert "records no address of the template" in says and "TEMPLATE=/path/to/onemodel" in says
    assert "files added" in add(project, "fred", TEMPLATE=str(clean_template)).stdout


def test_a_commit_that_is_not_recorded_or_not_there(project: BakedProject, clean_template: Path) -> None:
    record(project, commit="unknown")
    assert "records no commit of the template" in refused(project, "fred")
    assert "the template cannot be had: " in refused(project, "fred", status=1, COMMIT="0123456789abcdef" * 2)
    record(
        project, commit=f"{BakedProject(clean_template, project.env).run('git', 'rev-parse', 'HEAD').stdout[:-1]}-dirty"
    )
    assert "files added" in add(project, "fred").stdout


def test_an_address_where_no_template_is(project: BakedProject, tmp_path: Path) -> None:
    says = refused(project, "fred", status=1, TEMPLATE=f"file://me:secret@localhost{tmp_path}/none")
    assert "is TEMPLATE, or COMMIT, the right one?" in says
    assert "secret" not in says


def test_a_template_that_is_older_than_its_own_script_is_named(project: BakedProject, template: Path) -> None:
    older = BakedProject(template, project.env)
    older.run("git", "rm", "-q", "scripts/add_source.py")
    older.run("git", "commit", "-q", "-m", "As it was before")
    says = refused(project, "fred", TEMPLATE=str(template), COMMIT="main")
    assert "is older than this project: it has no scripts/add_source.py" in says and "COMMIT=main" in says
