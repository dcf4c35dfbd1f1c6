"""Bakes projects for the tests, and says loudly which tests this machine cannot run.

Everything runs as a user would run it: cookiecutter, git and make as programs, each with a HOME of the test's own.
"""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = Path(sys.executable).parent
PROJECT = "{{cookiecutter.project}}"
DEFAULT_IMAGES = {
    "PYTHON_IMAGE": "python:3.13.9-slim-trixie",
    "TIMESCALE_IMAGE": "timescale/timescaledb:2.29.1-pg17-oss",
    "HAPROXY_IMAGE": "haproxy:3.0.21",
    "PROMETHEUS_IMAGE": "prom/prometheus:v3.5.0",
    "ELASTICSEARCH_IMAGE": "docker.elastic.co/elasticsearch/elasticsearch:9.5.3",
    "REGISTRY_IMAGE": "registry:2.8.3",
    "KAFKA_IMAGE": "apache/kafka:4.1.1",
}
NOISE = {
    "MAKEFLAGS",
    "MFLAGS",
    "MAKELEVEL",
    "MAKEOVERRIDES",
    "VIRTUAL_ENV",
    "PYTHONPATH",
    "PYTHONDONTWRITEBYTECODE",
    "DATABASE_URL",
    "PORT",
    "ONCE",
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
left_out: dict[str, list[str]] = defaultdict(list)


def environment(home: Path, **more: str) -> dict[str, str]:
    """A user's environment with a HOME of its own, the caches and the Docker client of the real one."""
    home.mkdir(parents=True, exist_ok=True)
    real = Path.home()
    env = {key: value for key, value in os.environ.items() if key not in NOISE}
    env.setdefault("UV_CACHE_DIR", str(Path(env.get("XDG_CACHE_HOME", real / ".cache")) / "uv"))
    env.setdefault("PIP_CACHE_DIR", str(Path(env.get("XDG_CACHE_HOME", real / ".cache")) / "pip"))
    env.setdefault("DOCKER_CONFIG", str(real / ".docker"))
    env |= {"HOME": str(home), "PATH": f"{TOOLS}{os.pathsep}{env['PATH']}", "GIT_CONFIG_NOSYSTEM": "1"}
    for who in ("AUTHOR", "COMMITTER"):
        env |= {f"GIT_{who}_NAME": "A Modeller", f"GIT_{who}_EMAIL": "modeller@example.org"}
    return env | more


def run(*command: str | Path, cwd: Path, env: dict[str, str], check: bool = True, **more: Any) -> Any:
    """Runs a program and gives its output as text; a failure shows all of it."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, **more)
    if check and done.returncode:
        shown = " ".join(str(part) for part in command)
        pytest.fail(f"{shown}: exit {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}", pytrace=False)
    return done


class BakedProject:
    """A project that came out of the template, and the means to use it."""

    def __init__(self, path: Path, env: dict[str, str], printed: str = "") -> None:
        self.path, self.env, self.printed = path, env, printed

    @property
    def python(self) -> Path:
        return self.path / ".venv/bin/python"

    def has_file(self, path: str) -> bool:
        return (self.path / path).is_file()

    def text(self, path: str) -> str:
        return (self.path / path).read_text("utf-8")

    def record(self) -> dict[str, Any]:
        """What the bake wrote down about itself."""
        return dict(json.loads(self.text(".onemodel.json")))

    def files(self) -> dict[str, tuple[bytes, bool]]:
        """Path: content and whether it can be executed, of every file but git's."""
        found = (path for path in self.path.rglob("*") if path.is_file())
        names = {path.relative_to(self.path).as_posix(): path for path in found}
        return {
            name: (path.read_bytes(), os.access(path, os.X_OK))
            for name, path in sorted(names.items())
            if not name.startswith(".git/")
        }

    def run(self, *command: str | Path, check: bool = True, env: dict[str, str] | None = None, **more: Any) -> Any:
        return run(*command, cwd=self.path, env=self.env | (env or {}), check=check, **more)

    def make(self, *targets: str, check: bool = True, env: dict[str, str] | None = None, **more: Any) -> Any:
        return self.run("make", *targets, check=check, env={"UV": str(TOOLS / "uv")} | (env or {}), **more)

    def service(self, *words: str, check: bool = True, env: dict[str, str] | None = None) -> Any:
        """`python -m model_service ...`"""
        more = {"PYTHONPATH": "src"} | (env or {})
        return self.run(self.python, "-m", "model_service", *words, check=check, env=more)

    @contextmanager
    def running(self, *words: str) -> Iterator[str]:
        """Runs one of its programs for as long as the block runs, and gives the first line that it prints."""
        command = [str(self.python), *words]
        with subprocess.Popen(command, cwd=self.path, env=self.env, stdout=subprocess.PIPE, text=True) as program:
            try:
                assert program.stdout
                yield program.stdout.readline().strip()
            finally:
                program.terminate()

    def edit(self, path: str, old: str, new: str) -> None:
        text = self.text(path)
        assert old in text
        (self.path / path).write_text(text.replace(old, new, 1), "utf-8")

    def commit(self) -> None:
        for words in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "First commit"]):
            self.run("git", *words)


def cookiecutter(
    output: Path, home: Path, *options: str | Path, template: str | Path = ROOT, check: bool = True, **answers: str
) -> Any:
    """Bakes into `output`, as on the command line. `env` of the result is what it ran with."""
    output.mkdir(parents=True, exist_ok=True)
    env = environment(home)
    words = [f"{key}={value}" for key, value in answers.items()]
    command = [TOOLS / "cookiecutter", "--no-input", "--default-config", *options, template, *words]
    return run(*command, cwd=output, env=env | {"PWD": str(output)}, check=check)


@pytest.fixture
def bake(tmp_path: Path) -> Callable[..., BakedProject]:
    """Bakes a project: `bake(description="...")`. Options: `output`, `template`, `options`."""

    def _bake(output: Path = tmp_path / "out", options: tuple[str, ...] = (), **answers: Any) -> BakedProject:
        done = cookiecutter(output, tmp_path / "home", *options, **answers)
        name = answers.get("project", "us-unemployment")
        return BakedProject(output / name, environment(tmp_path / "home"), done.stdout)

    return _bake


@pytest.fixture
def refuse(tmp_path: Path) -> Callable[..., list[str]]:
    """Bakes with wrong answers and gives the lines printed; the folder must be as it was before."""

    def _refuse(*options: str, output: Path = tmp_path / "out", status: int = 1, **answers: str) -> list[str]:
        output.mkdir(parents=True, exist_ok=True)
        before = sorted(path for path in output.rglob("*"))
        done = cookiecutter(output, tmp_path / "home", *options, check=False, **answers)
        assert done.returncode == status, done.stdout + done.stderr
        assert sorted(path for path in output.rglob("*")) == before
        return str(done.stdout).splitlines()

    return _refuse


@pytest.fixture(scope="session")
def default(tmp_path_factory: pytest.TempPathFactory) -> BakedProject:
    """The project of the default answers. Only to be read."""
    folder = tmp_path_factory.mktemp("default")
    done = cookiecutter(folder, folder / "home")
    return BakedProject(folder / "us-unemployment", environment(folder / "home"), done.stdout)


@pytest.fixture(scope="session")
def workshop() -> Iterator[Path]:
    """A folder for projects that run a database of their own.

    Not in pytest's: run by root, the embedded server gives up root and must still be able to enter, but every pytest
    that starts, also those of other people and of the projects themselves, closes its folder to all but its owner.
    """
    with tempfile.TemporaryDirectory(prefix="onemodel-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder).resolve()


@pytest.fixture(scope="session")
def built(workshop: Path) -> BakedProject:
    """The default project in a git repository of its own, after `make setup load train build`. Leave it as it is."""
    folder = workshop / "built"
    cookiecutter(folder, folder / "home")
    project = BakedProject(folder / "us-unemployment", environment(folder / "home"))
    project.commit()
    project.make("setup", "load", "train", "build")
    return project


def read_at(base_url: str) -> str:
    """Keys by which a source reads from there, as fast as it can."""
    return f'base_url = "{base_url}"\nrequests_per_second = 1000'


def trains_a_champion_and_passes_its_tests(project: BakedProject, target: str, *tests: str) -> None:
    """`tests`: of what. Those of the command line and of training need be run for one provider, here for FRED.

    They read the sample, and that every provider's project has the same one, and the same program and tests, is seen
    by test_a_project_has_what_every_other_has_but_for_its_source.
    """
    assert "is the champion" in project.service("train").stdout
    assert json.loads(project.text("build/report.json"))["card"]["target"]["series"] == target
    files = [f"tests/test_{part}.py" for part in tests]
    done = project.run(project.python, "-m", "pytest", *files, env={"PYTHONPATH": "src"})
    assert re.search(r"\d+ passed", done.stdout) and "failed" not in done.stdout


def copy_template(target: Path, env: dict[str, str]) -> Path:
    """A git repository with the template's files as they are now, tracked or new, in one commit."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in run(*words, cwd=ROOT, env=env).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    for words in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "The template"]):
        run("git", *words, cwd=target, env=env)
    return target


@pytest.fixture(scope="session")
def clean_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template as a fresh clone has it. Only to be read."""
    folder = tmp_path_factory.mktemp("template")
    return copy_template(folder / "onemodel", environment(folder / "home"))


@pytest.fixture
def template(clean_template: Path, tmp_path: Path) -> Iterator[Path]:
    """A clone of the template, to be changed at will."""
    run("git", "clone", "-q", clean_template, tmp_path / "onemodel", cwd=tmp_path, env=environment(tmp_path / "home"))
    yield tmp_path / "onemodel"


def image(variable: str) -> str:
    """Name of a component's image on this machine."""
    return os.environ.get(variable) or DEFAULT_IMAGES[variable]


def _works(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def browser() -> str | None:
    """The first browser of Chromium's family on the path."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


@functools.cache
def missing(component: str) -> str:
    """Why a component cannot be used here; empty when it can."""
    if component == "docker":
        return "" if _works("docker", "info") else "Docker: no engine answers `docker info`"
    if component == "unshare":
        return "" if _works("unshare", "--net", "true") else "cut network: `unshare --net` does not work here"
    if component == "browser":
        return "" if browser() else f"browser: none of {', '.join(BROWSERS)} here: `apt-get install chromium`"
    if reason := missing("docker"):
        return reason
    name = image(f"{component.upper()}_IMAGE")
    return (
        "" if _works("docker", "image", "inspect", name) else f"{component}: no image {name} here: `docker pull {name}`"
    )


COMPONENTS = ("browser", "docker", "unshare", *(name.removesuffix("_IMAGE").lower() for name in DEFAULT_IMAGES))


def pytest_configure(config: pytest.Config) -> None:
    for component in COMPONENTS:
        config.addinivalue_line("markers", f"{component}: left out where this component is not there")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for component in COMPONENTS:
        if item.get_closest_marker(component) and (reason := missing(component)):
            pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Names every test that did not run, by reason."""
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        left_out[reason.removeprefix("Skipped: ")].append(report.nodeid)
    if left_out:
        terminalreporter.section("LEFT OUT ON THIS MACHINE", sep="=", red=True)
        for reason, tests in sorted(left_out.items()):
            terminalreporter.line(f"{reason}: {len(tests)} not run", red=True)
            for test in tests:
                terminalreporter.line(f"    {test}")
