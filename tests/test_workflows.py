"""The generated workflows, run by act against a real registry: one push that gets through, three that must not."""

import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import TOOLS, BakedProject, cookiecutter, environment, image
from test_stack import base_of_images, docker, free_port

pytestmark = [pytest.mark.docker, pytest.mark.python, pytest.mark.timescale, pytest.mark.haproxy, pytest.mark.registry]
PASSED_ON = (
    "LANG",
    "SSL_CERT_FILE",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "UV_CACHE_DIR",
    "PIP_CACHE_DIR",
    "DOCKER_CONFIG",
    "DOCKER_HOST",
)
IMAGES = ("TIMESCALE_IMAGE", "HAPROXY_IMAGE")


class Repository:
    """A baked project under git, a registry, and a target of its own."""

    def __init__(self, folder: Path, registry: str) -> None:
        self.name = f"om-{uuid.uuid4().hex[:8]}"
        self.port = free_port()
        self.registry = registry
        self.base = base_of_images(self.name)
        cookiecutter(folder, folder / "home", project=self.name, image_registry=registry)
        self.project = BakedProject(folder / self.name, environment(folder / "home"))
        # The whole suite is run elsewhere; one file is enough to see that a push runs it.
        for file in (self.project.path / "tests").glob("test_*.py"):
            if file.name != "test_csv.py":
                file.unlink()
        self.project.commit()
        self.folder = folder

    def push(self, workflow: str) -> Any:
        """Commits what was changed and runs the workflow on that push. Returns what act said."""
        self.project.run("git", "commit", "-qam", "A change", "--allow-empty")
        given = {key: value for key, value in self.project.env.items() if key in PASSED_ON or key.startswith("GIT_")}
        env = given | {name: image(name) for name in IMAGES} | {"PYTHON_IMAGE": self.base}
        env |= {
            "HOME": str(self.folder / "home"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "PATH": self.project.env["PATH"],
        }
        env |= {"UV": str(TOOLS / "uv"), "BALANCER_PORT": str(self.port), "READY_SECONDS": "10", "NO_COLOR": "1"}
        env |= {"MYPY_CACHE_DIR": str(self.folder / "mypy")}  # of files that did not change, types are looked at once
        words = ["push", "--platform", "ubuntu-latest=-self-hosted", "--workflows", f".github/workflows/{workflow}.yml"]
        command = [TOOLS / "act", *words, "--var", "DEPLOY_HOST=local"]
        return subprocess.run(command, cwd=self.project.path, env=env, capture_output=True, text=True)

    def change(self, path: str, old: str, new: str) -> None:
        file = self.project.path / path
        text = file.read_text("utf-8")
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {path}"
        file.write_text(text.replace(old, new), "utf-8")

    def served(self) -> str:
        return str(httpx.get(f"http://127.0.0.1:{self.port}/v1/model").raise_for_status().json()["image_digest"])


@pytest.fixture(scope="module")
def repository(workshop: Path) -> Iterator[Repository]:
    if not (TOOLS / "act").exists():
        pytest.skip("act: not installed")
    name = f"om-registry-{uuid.uuid4().hex[:8]}"
    docker("run", "-d", "--rm", "--name", name, "-p", "127.0.0.1::5000", image("REGISTRY_IMAGE"))
    made = None
    try:
        made = Repository(workshop / "workflows", "localhost:" + docker("port", name, "5000").split(":")[-1].strip())
        yield made
    finally:
        docker("rm", "-f", "-v", name)
        if made:
            docker("compose", "-p", made.name, "down", "-v", "--remove-orphans", "--rmi", "local", check=False)
            tags = docker("image", "ls", "-q", "--filter", f"reference={made.registry}/{made.name}*").split()
            docker("image", "rm", "-f", made.base, *sorted(set(tags)), check=False)


def test_a_push_is_checked(repository: Repository) -> None:
    done = repository.push("check")
    assert done.returncode == 0, done.stdout[-4000:]
    assert "Job succeeded" in done.stdout
    assert " passed" in done.stdout


def test_a_red_test_stops_the_push(repository: Repository) -> None:
    planted = repository.project.path / "tests/test_planted.py"
    planted.write_text("def test_planted() -> None:\n    value = 1\n    assert value == 2\n", "utf-8")
    repository.project.run("git", "add", planted)
    try:
        done = repository.push("deploy")
    finally:
        planted.unlink()
    assert done.returncode != 0
    assert "FAILED tests/test_planted.py::test_planted" in done.stdout, done.stdout[-4000:]
    assert "Main Check and test" in done.stdout.split("Failure")[-1]
    assert "Load, train, gate" not in done.stdout


def test_a_push_to_main_gets_through_to_the_balancer(repository: Repository) -> None:
    done = repository.push("deploy")
    assert done.returncode == 0, done.stdout[-4000:]
    assert "throw-away database" in done.stdout
    tags = httpx.get(f"http://{repository.registry}/v2/{repository.name}/tags/list").raise_for_status().json()["tags"]
    assert len(tags) == 1
    commit = repository.project.run("git", "rev-parse", "HEAD").stdout
    assert tags[0].startswith(commit[:12])
    digest = repository.served()
    manifest = f"http://{repository.registry}/v2/{repository.name}/manifests/{digest}"
    accept = {"Accept": "application/vnd.docker.distribution.manifest.v2+json"}
    assert httpx.get(manifest, headers=accept).raise_for_status().headers["docker-content-digest"] == digest


def test_a_red_gate_stops_the_push(repository: Repository) -> None:
    served = repository.served()
    repository.change("service.toml", '[target]\nseries = "UNRATE"', '[target]\nseries = "INDPRO"')
    try:
        done = repository.push("deploy")
    finally:
        repository.project.run("git", "revert", "--no-edit", "HEAD")
    assert done.returncode != 0
    assert "BLOCK" in done.stdout.upper()
    assert "Main Load, train, gate" in done.stdout.split("Failure")[-1]
    assert "Build and push" not in done.stdout
    assert repository.served() == served


def test_a_red_deployment_is_undone(repository: Repository) -> None:
    served = repository.served()
    repository.change(
        "images/service.Dockerfile", "ENV PATH=/venv/bin:$PATH", "ENV MODEL_DIR=/nowhere PATH=/venv/bin:$PATH"
    )
    done = repository.push("deploy")
    assert done.returncode != 0
    assert "it was not ready within 10 s" in done.stdout
    assert "undone: " in done.stdout
    assert "Main Roll out" in done.stdout.split("Failure")[-1]
    assert repository.served() == served
