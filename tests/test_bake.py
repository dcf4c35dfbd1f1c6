"""What comes out of the template, whichever way it is baked."""

import ast
import fnmatch
import json
import os
import shutil
import socket
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT, ROOT, TOOLS, BakedProject, cookiecutter, environment, run

RENDERED = {"README.md", "LICENSE", "pyproject.toml", "service.toml", ".onemodel.json"}
CHOICES = [
    {},
    {"estimator": "gradient_boosting"},
    {"source": "fred"},
    {"source": "sdmx"},
    {"source": "worldbank"},
    {"source": "sql"},
    {"source": "kafka"},
    {"python_version": "3.12"},
    {"python_version": "3.11", "licence": "BSD-3-Clause"},
    {"licence": "Apache-2.0", "image_registry": "ghcr.io/acme"},
    {"licence": "Proprietary", "project": "abc", "description": "x"},
]

Files = dict[str, tuple[bytes, bool]]


def git(folder: Path, home: Path, *words: str | Path) -> str:
    return str(run("git", *words, cwd=folder, env=environment(home)).stdout)


def project_in(folder: Path, home: Path, name: str = "us-unemployment") -> BakedProject:
    return BakedProject(folder / name, environment(home))


def difference(left: Files, right: Files) -> list[str]:
    """Names of the files that are not the same in both."""
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))


def test_default_answers_give_exactly_these_files(default: BakedProject) -> None:
    expected = (ROOT / "tests/default_files.txt").read_text("utf-8").split()
    assert sorted(default.files()) == expected


@pytest.mark.parametrize("answers", CHOICES, ids=str)
def test_every_answer_gives_whole_files(bake: Callable[..., BakedProject], answers: dict[str, str]) -> None:
    project = bake(**answers)
    for name in RENDERED:
        text = project.text(name)
        assert "{{" not in text and "{%" not in text and text.endswith("\n"), name
        assert not text.endswith("\n\n"), name
    for name in ("service.toml", "pyproject.toml"):
        tomllib.loads(project.text(name))


def test_a_project_has_what_every_other_has_but_for_its_source(
    bake: Callable[..., BakedProject], default: BakedProject, tmp_path: Path
) -> None:
    """Program, tests, their sample, and locks are those of the default bake."""
    parts = ("src/", "tests/", "requirements/")
    common = {name: one for name, one in default.files().items() if name.startswith(parts)}
    for source in ("fred", "sdmx", "worldbank", "sql", "kafka"):
        files = bake(output=tmp_path / source, source=source).files()
        assert difference({name: files.get(name) for name in common}, common) == [], source


def test_files_that_are_not_rendered_are_copied_byte_for_byte(default: BakedProject) -> None:
    files = default.files()
    for path in (ROOT / PROJECT).rglob("*"):
        name = path.relative_to(ROOT / PROJECT).as_posix()
        if name in files and name not in RENDERED:
            assert files[name][0] == path.read_bytes(), name
    for source, name in [("source.py", "src/model_service/loader/sources/csv.py")]:
        assert files[name][0] == (ROOT / "loaders/csv" / source).read_bytes()


def test_only_five_files_are_rendered() -> None:
    patterns = json.loads((ROOT / "cookiecutter.json").read_text("utf-8"))["_copy_without_render"]
    names = {path.name for path in (ROOT / PROJECT).iterdir()} | {
        "src/model_service/README.md",
        "docs",
        "build",
        ".env",
    }
    assert {name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)} == RENDERED


def test_scripts_can_be_executed_and_nothing_else(default: BakedProject) -> None:
    files = default.files()
    runs = {name for name, (_, executable) in files.items() if executable}
    assert runs >= {name for name, (text, _) in files.items() if text.startswith(b"#!")}
    assert {name for name in runs if not name.endswith(".sh")} == set()


def test_modes_follow_the_umask_not_the_template(template: Path, tmp_path: Path) -> None:
    for path in (template / PROJECT).rglob("*"):
        path.chmod(0o777)
    cookiecutter(tmp_path / "out", tmp_path / "home", template=template)
    project = project_in(tmp_path / "out", tmp_path / "home")
    mask = os.umask(0)
    os.umask(mask)
    assert (project.path / "service.toml").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (project.path / "ops").stat().st_mode & 0o777 == 0o777 & ~mask


def test_last_line_says_what_to_do_next(default: BakedProject, tmp_path: Path) -> None:
    line = default.printed.splitlines()[-1]
    assert line == "Next: cd us-unemployment && make setup load train build serve"
    done = cookiecutter(tmp_path / "out", tmp_path / "home", "-o", tmp_path / "else where")
    assert done.stdout.splitlines()[-1].startswith(f"Next: cd '{tmp_path}/else where/us-unemployment' && make ")


def test_no_path_of_this_machine_in_the_output(default: BakedProject) -> None:
    paths = [str(ROOT), str(default.path.parent), str(Path.home()), socket.gethostname()]
    words = [path.encode() for path in paths if len(path) > 5]
    for name, (content, _) in default.files().items():
        assert not [word for word in words if word in content], name


def test_every_way_to_bake_gives_the_same_files(clean_template: Path, tmp_path: Path) -> None:
    home, ways = tmp_path / "home", {}
    relative = os.path.relpath(clean_template, tmp_path / "relative")
    cookiecutter(tmp_path / "relative", home, template=relative)
    cookiecutter(tmp_path / "absolute", home, template=clean_template)
    cookiecutter(tmp_path / "url", home, template=f"git+file://{clean_template}")
    git(clean_template, home, "archive", "--prefix=onemodel/", "-o", tmp_path / "template.zip", "HEAD")
    cookiecutter(tmp_path / "zip", home, template=tmp_path / "template.zip")
    command = [TOOLS / "cruft", "create", "--no-input", "--default-config", clean_template]
    run(*command, "--output-dir", tmp_path / "cruft", cwd=tmp_path, env=environment(home))
    for way in ("relative", "absolute", "url", "zip", "cruft"):
        ways[way] = project_in(tmp_path / way, home).files()
    assert ".cruft.json" in ways["cruft"]
    del ways["cruft"][".cruft.json"]  # cruft's own
    for way, files in ways.items():
        assert difference(files, ways["absolute"]) == [], way
    head = git(clean_template, home, "rev-parse", "HEAD").strip()
    assert project_in(tmp_path / "zip", home).record()["commit"] == head


def test_zip_without_a_commit_says_unknown(clean_template: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "template.zip", "w") as archive:
        archive.mkdir("onemodel")
        for name in git(clean_template, tmp_path / "home", "ls-files", "-z").split("\0")[:-1]:
            archive.write(clean_template / name, f"onemodel/{name}")
    cookiecutter(tmp_path / "out", tmp_path / "home", template=tmp_path / "template.zip")
    assert project_in(tmp_path / "out", tmp_path / "home").record()["commit"] == "unknown"


def test_cruft_update_gives_what_a_new_bake_gives(template: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    env = environment(home)
    command = [TOOLS / "cruft", "create", "--no-input", "--default-config", template, "--output-dir", tmp_path / "old"]
    run(*command, cwd=tmp_path, env=env)
    project = project_in(tmp_path / "old", home)
    project.commit()
    changed = template / PROJECT / ".editorconfig"
    changed.write_text(changed.read_text() + "\n[*.sql]\nindent_size = 2\n")
    script = template / PROJECT / "ops/lib.sh"
    script.write_text(script.read_text() + "\n# more\n")
    git(template, home, "commit", "-q", "-a", "-m", "A change")
    project.run(TOOLS / "cruft", "update", "--skip-apply-ask")
    cookiecutter(tmp_path / "new", home, template=template)
    files = project.files()
    assert b"[*.sql]" in files[".editorconfig"][0]  # the control: there was something to update
    del files[".cruft.json"]
    assert difference(files, project_in(tmp_path / "new", home).files()) == []


def test_working_tree_bakes_what_a_clean_clone_bakes(template: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    cookiecutter(tmp_path / "clean", home, template=template)
    inside = template / PROJECT
    junk = [
        template / ".venv/lib/site.py",
        template / ".env",
        inside / ".venv/lib/{% unknown }}.py",
        inside / ".venv/bin/python",
        inside / ".local/postgres/PG_VERSION",
        inside / ".env",
        inside / "src/model_service/__pycache__/cli.cpython-311.pyc",
        inside / "src/model_service/scratch.py",
        inside / "tests/.pytest_cache/README.md",
        inside / "build/model/card.json",
        inside / "notes.txt",
        inside / "server.log",
    ]
    for path in junk:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{{ unknown }} {% broken")
    (inside / "empty/folder").mkdir(parents=True)
    (inside / "ops/link").symlink_to(template / "Makefile")
    cookiecutter(tmp_path / "working", home, template=template)
    clean, working = project_in(tmp_path / "clean", home), project_in(tmp_path / "working", home)
    assert difference(working.files(), clean.files()) == []
    folders = {path.relative_to(clean.path) for path in clean.path.rglob("*")}
    assert {path.relative_to(working.path) for path in working.path.rglob("*")} == folders


def test_git_ignores_none_of_the_template_files(tmp_path: Path) -> None:
    names = [path.relative_to(ROOT).as_posix() for path in (ROOT / "loaders/csv/sample").iterdir()]
    names += [f"{PROJECT}/{path}" for path in default_sources()]
    done = run(
        "git", "check-ignore", "--no-index", "--stdin",
        cwd=ROOT, env=environment(tmp_path / "home"), check=False, input="\n".join(names),
    )  # fmt: skip
    assert done.stdout == ""


def default_sources() -> list[str]:
    return (ROOT / "tests/default_files.txt").read_text("utf-8").split()


def test_git_keeps_all_that_was_baked_and_ignores_what_is_made_later(bake: Callable[..., BakedProject]) -> None:
    project = bake()
    baked = sorted(project.files())
    for name in (".env", ".venv/x", ".local/x", "build/x", "src/model_service/__pycache__/x.pyc", ".mypy_cache/x"):
        path = project.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    project.commit()
    assert sorted(project.run("git", "ls-files").stdout.split()) == baked


def test_bake_runs_no_git(tmp_path: Path) -> None:
    """A git that leaves a trace stands first on PATH; the control shows that it would."""
    trace, tools = tmp_path / "trace", tmp_path / "tools"
    tools.mkdir()
    (tools / "git").write_text(f"#!/bin/sh\necho called >>{trace}\nexit 1\n")
    (tools / "git").chmod(0o755)
    env = environment(tmp_path / "home", PATH=f"{tools}:/usr/bin:/bin")
    run(TOOLS / "cookiecutter", "--no-input", "--default-config", ROOT, cwd=tmp_path, env=env)
    assert not trace.exists()
    subprocess.run(["git", "status"], env=env, check=False)
    assert trace.exists()


@pytest.mark.unshare
def test_bake_needs_no_network(tmp_path: Path) -> None:
    env = environment(tmp_path / "home")
    cut = ["unshare", "--net"]
    control = "import socket; socket.create_connection(('127.0.0.1', 1), 1)"
    done = run(*cut, TOOLS / "python", "-c", control, cwd=tmp_path, env=env, check=False)
    assert "Network is unreachable" in done.stderr or "Cannot assign" in done.stderr
    run(*cut, TOOLS / "cookiecutter", "--no-input", "--default-config", ROOT, cwd=tmp_path, env=env)
    assert project_in(tmp_path, tmp_path / "home").has_file("service.toml")


def test_bake_writes_nothing_into_the_template(template: Path, tmp_path: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in template.rglob("*"))
    cookiecutter(tmp_path / "out", tmp_path / "home", template=template)
    assert sorted((path, path.stat().st_mtime_ns) for path in template.rglob("*")) == before


@pytest.mark.parametrize("hook", sorted((ROOT / "hooks").glob("*.py")), ids=lambda path: path.name)
def test_hooks_run_on_python_3_10_with_the_standard_library_only(hook: Path) -> None:
    tree = ast.parse(hook.read_text("utf-8"), feature_version=(3, 10))
    local = {path.stem for path in (ROOT / "hooks").glob("*.py")}
    known = sys.stdlib_module_names - {"tomllib"}  # that came with 3.11
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            assert name in local or name.split(".")[0] in known, name


def test_manifest_that_names_a_missing_file_stops_the_bake(template: Path, tmp_path: Path) -> None:
    (template / PROJECT / "Makefile").unlink()
    done: Any = cookiecutter(tmp_path / "out", tmp_path / "home", template=template, check=False)
    assert done.returncode == 1
    assert f"  {PROJECT}/Makefile" in done.stdout.splitlines()
    assert list((tmp_path / "out").iterdir()) == []


def test_template_files_survive_a_bake_from_a_copy_without_git(clean_template: Path, tmp_path: Path) -> None:
    shutil.copytree(clean_template, tmp_path / "copy", ignore=shutil.ignore_patterns(".git"))
    cookiecutter(tmp_path / "out", tmp_path / "home", template=tmp_path / "copy")
    assert project_in(tmp_path / "out", tmp_path / "home").record()["commit"] == "unknown"
