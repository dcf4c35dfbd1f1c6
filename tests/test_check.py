"""Every check of `make check`, and what `make setup` and the Docker targets refuse, each on a fault made on purpose."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import BakedProject
from test_stack import copied

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA\n"
TOKEN = "ghp_" + "0123456789abcdefghijABCDEFGHIJ012345"
PASSWORD = "correct-horse-battery"


@pytest.fixture(scope="module")
def clean(built: BakedProject, workshop: Path) -> BakedProject:
    """A copy of the built project that may be spoilt, with the same environment."""
    return copied(built, workshop / "check")


@pytest.fixture
def project(clean: BakedProject) -> Iterator[BakedProject]:
    """The clean copy; whatever a test adds or changes is taken back by git."""
    yield clean
    clean.run("git", "reset", "-q", "--hard")
    clean.run("git", "clean", "-qfd")


@pytest.mark.docker
def test_a_fresh_project_passes_every_check(project: BakedProject) -> None:
    done = project.make("check")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["ok"] * 8


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


FAULTS = {
    "an unused import": ("ruff: mistakes", "src/model_service/planted.py", "import os\n", "F401"),
    "a badly formatted line": ("ruff: format", "src/model_service/planted.py", "A = {  'a':1 }\n", "planted.py"),
    "an untyped function": ("mypy: types", "src/model_service/planted.py", "def f(x):\n    return x\n", "planted.py:1"),
    "an unquoted variable": ("shellcheck: scripts", "ops/planted.sh", "#!/bin/sh\nrm $1\n", "SC2086"),
    "a change of folder in a RUN": ("hadolint: images", "images/service.Dockerfile", "RUN cd /tmp\n", "DL3003"),
    "an action by its tag": (
        "zizmor: workflows",
        ".github/workflows/check.yml",
        "      - name: Unpinned\n        uses: actions/setup-python@v5\n",
        "unpinned-uses",
    ),
    "a tracked .env": ("secrets", "sub/.env", "A=1\n", "sub/.env"),
    "a private key": ("secrets", "notes.txt", KEY, "notes.txt:1"),
    "a token": ("secrets", "notes.txt", f"one\ntoken: {TOKEN}\n", "notes.txt:2"),
    "a password in a URL": (
        "secrets",
        "notes.txt",
        f"postgresql://reader:{PASSWORD}@db.example.org/x\n",
        "notes.txt:1",
    ),
    "a password in a file": ("secrets", "notes.txt", f"READER_PASSWORD={PASSWORD}\n", "notes.txt:1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(project: BakedProject, fault: str) -> None:
    check, path, text, says = FAULTS[fault]
    assert project.run("ops/check.sh", check).returncode == 0
    (project.path / path).parent.mkdir(exist_ok=True)
    append(project.path / path, text)
    project.run("git", "add", "--force", path)
    done = project.run("ops/check.sh", check, check=False)
    assert done.returncode == 3
    assert f"FOUND {check}" in done.stdout
    assert says in done.stdout
    assert TOKEN not in done.stdout
    assert PASSWORD not in done.stdout


@pytest.mark.docker
def test_a_broken_compose_file_is_found(project: BakedProject) -> None:
    file = project.path / "ops/compose.yaml"
    file.write_text(file.read_text("utf-8").replace("networks: [inside, edge]", "networks: [nowhere]"), "utf-8")
    done = project.run("ops/check.sh", "compose", check=False)
    assert done.returncode == 3
    assert "nowhere" in done.stdout


def without(folder: Path, *names: str) -> str:
    """A PATH with every program of the present one but those."""
    folder.mkdir()
    for place in os.environ["PATH"].split(os.pathsep):
        for program in Path(place).glob("*") if Path(place).is_dir() else ():
            if program.name not in names and not (folder / program.name).exists():
                (folder / program.name).symlink_to(program)
    return str(folder)


@pytest.fixture
def bare(tmp_path: Path) -> Callable[..., str]:
    return lambda *names: without(tmp_path / "path", *names)


def test_without_docker_the_compose_check_is_left_out_loudly(project: BakedProject, bare: Callable[..., str]) -> None:
    done = project.run("ops/check.sh", "compose", env={"PATH": bare("docker")})
    assert "SKIP  compose: stack: needs Docker" in done.stdout


@pytest.mark.parametrize("target", ["image", "up", "down", "deploy"])
def test_a_target_that_needs_docker_says_so(project: BakedProject, bare: Callable[..., str], target: str) -> None:
    done = project.make(target, check=False, env={"PATH": bare("docker"), "DEPLOY_HOST": "local"})
    assert done.returncode != 0
    assert "needs Docker: there is no command 'docker'" in done.stderr


# An engine that has pushed two images to Docker Hub, whose name it leaves out of theirs.
PUSHED = """#!/bin/sh
[ "$1" != image ] || printf '%s\\n' acme/us-unemployment@sha256:11 acme/us-unemployment-loader@sha256:22 sha256:33
"""


def image_json(project: BakedProject, folder: Path) -> dict[str, Any]:
    """What `make image` writes with that engine; there is nothing of which it could say what is in it."""
    (folder / "bin").mkdir()
    (folder / "bin/docker").write_text(PUSHED)
    (folder / "bin/docker").chmod(0o755)
    project.make("image", check=False, env={"PATH": f"{folder / 'bin'}{os.pathsep}{project.env['PATH']}"})
    return dict(json.loads(project.text("build/image.json")))


def test_images_on_docker_hub_are_named_by_digest(project: BakedProject, tmp_path: Path) -> None:
    project.edit("service.toml", '"localhost:5000/', '"docker.io/acme/')
    made = image_json(project, tmp_path)
    assert made["service"]["tag"].startswith("docker.io/acme/us-unemployment:")
    assert made["service"]["ref"] == "acme/us-unemployment@sha256:11"
    assert made["loader"]["ref"] == "acme/us-unemployment-loader@sha256:22"


@pytest.mark.parametrize("change", ["none", "changed", "new"])
def test_images_of_what_git_does_not_hold_do_not_bear_its_commit(
    project: BakedProject, tmp_path: Path, change: str
) -> None:
    commit = project.run("git", "rev-parse", "HEAD").stdout.strip()
    if change != "none":
        append(project.path / ("src/model_service/own.py" if change == "new" else "service.toml"), "# mine\n")
    dirty = "" if change == "none" else "-dirty"
    made = image_json(project, tmp_path)
    assert made["revision"] == commit + dirty
    assert f":{commit[:12]}{dirty}-{made['model'][7:19]}" in made["service"]["tag"]


def test_a_password_may_look_like_a_variable_of_make(default: BakedProject) -> None:
    default.make("help", env={"DATABASE_URL": "postgresql://loader:pa$(ss@127.0.0.1/model"})


def test_settings_of_the_env_file_come_as_they_stand_there(project: BakedProject) -> None:
    file = project.path / ".env"
    file.write_text("# a remark=1\nMY_TOKEN=YWJj=\nMY_URL=http://a/?b=c=d\n\nMY_LAST=x y")
    printed = project.run("bash", "-c", '. ops/lib.sh; printf "%s\n" "$MY_TOKEN" "$MY_URL" "$MY_LAST"').stdout
    file.unlink()
    assert printed.splitlines() == ["YWJj=", "http://a/?b=c=d", "x y"]


def test_an_engine_that_does_not_answer_is_named(project: BakedProject, tmp_path: Path) -> None:
    if not shutil.which("docker"):
        pytest.skip("Docker: no command")
    done = project.make("up", check=False, env={"DOCKER_HOST": f"unix://{tmp_path}/none.sock"})
    assert done.returncode != 0
    assert "none.sock does not answer" in done.stderr and "needs Docker: its engine at unix:" in done.stderr


def test_deploy_without_a_target_is_skipped(project: BakedProject, bare: Callable[..., str]) -> None:
    done = project.make("deploy", env={"PATH": bare("docker"), "DEPLOY_HOST": ""})
    assert "skipped: DEPLOY_HOST is not set" in done.stderr


def test_setup_says_what_python_lacks(default: BakedProject, tmp_path: Path) -> None:
    (tmp_path / "lacking/ensurepip").mkdir(parents=True)
    (tmp_path / "lacking/ensurepip/__init__.py").write_text("raise ModuleNotFoundError('ensurepip')\n", "utf-8")
    env = {"PATH": without(tmp_path / "path", "uv"), "UV": "", "PYTHONPATH": str(tmp_path / "lacking")}
    done = default.run("ops/setup.sh", check=False, env=env)
    assert done.returncode == 1
    assert "has no ensurepip" in done.stderr
    assert "python3-venv" in done.stderr
    assert not default.has_file(".venv/bin/python")


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"PYTHON": "/bin/false"}, "needs Python 3.11 or newer, and /bin/false is not"),
        ({"UV": "/nowhere/uv"}, "UV=/nowhere/uv does not run"),
    ],
)
def test_setup_refuses_wrong_tools(default: BakedProject, env: dict[str, str], says: str) -> None:
    done = default.run("ops/setup.sh", check=False, env=env)
    assert done.returncode == 1
    assert says in done.stderr


def test_setup_brings_its_own_uv(bake: Callable[..., BakedProject], bare: Callable[..., str]) -> None:
    """No uv on the machine: pip puts the locked one, by its hash, into .venv."""
    project = bake()
    path = bare("uv")
    project.run("make", "setup", env={"PATH": path, "UV": ""})
    locked = next(line for line in project.text("requirements/dev.txt").splitlines() if line.startswith("uv=="))
    version = project.run(project.path / ".venv/bin/uv", "--version").stdout.split()[1]
    assert locked.split()[0] == f"uv=={version}"
    tampered = project.text("requirements/dev.txt").replace(locked, "uv==0.0.1 \\")
    (project.path / "requirements/dev.txt").write_text(tampered, "utf-8")
    assert project.run("make", "setup", check=False, env={"PATH": path, "UV": ""}).returncode != 0
