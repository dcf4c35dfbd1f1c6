"""The service's image by itself: its size, what is in it, that it runs without rights and comes out the same twice."""

import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from conftest import ROOT, BakedProject
from test_stack import Stack, copied, docker

pytestmark = [pytest.mark.docker, pytest.mark.python]
HARDENED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--memory", "256m")
MAX_BYTES = 200_000_000
# What the C library's, the compiler's and zlib's packages hold; every Debian has them.
SLIM = {f"lib{name}.so" for name in ("c", "dl", "gcc_s", "m", "pthread", "resolv", "rt", "stdc++", "util", "z")}
LIBRARIES = """
for file in $(find / -xdev -type f \\( -name '*.so' -o -name '*.so.*' \\)); do
  echo "# $file"; LD_LIBRARY_PATH= ldd "$file" 2>&1
done
"""
# Starts the service, asks it for everything, and says which modules had to be compiled.
COMPILED = """
import json, pathlib, sys, threading, time, urllib.request, uvicorn
server = uvicorn.Server(uvicorn.Config("model_service.serving.app:app", port=3000, log_config=None,
                                       http="model_service.serving.protocol:Protocol"))
def ask(path, body=None):
    request = urllib.request.Request("http://127.0.0.1:3000" + path, body, {"content-type": "application/json"})
    return urllib.request.urlopen(request).read()
def asking():
    try:
        while not server.started:
            time.sleep(0.05)
        rows = json.dumps({"instances": [dict.fromkeys(json.loads(ask("/v1/model"))["inputs"], 0.1)]}).encode()
        for path in ("/", "/readyz", "/metrics", "/openapi.json", "/v1/forecast", "/v2"):
            ask(path)
        ask("/v1/predict", rows), ask("/v1/explain", rows)
    finally:
        server.should_exit = True
thread = threading.Thread(target=asking)
thread.start()
server.run()
thread.join()
files = {name: module.__spec__ for name, module in sys.modules.items() if getattr(module, "__spec__", None)}
late = [name for name, spec in files.items() if spec.origin != "frozen" and str(spec.origin).endswith(".py")
        and not pathlib.Path(spec.cached).exists()]
print("late:", *late)
"""

# What the image's own tools say is installed, as the beginnings of package URLs.
INSTALLED = """
dpkg-query -W -f '${db:Status-Status} pkg:deb/debian/${Package}@${Version}\\n' | sed -n 's/^installed //p'
for python in python "$(readlink -f "$(command -v python)")"; do
  "$python" -c 'import re, importlib.metadata as m
for one in m.distributions(): print("pkg:pypi/" + re.sub("[-_.]+", "-", one.name).lower() + "@" + one.version)'
done
"""
VALID = """
import pathlib, sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
print(JsonStrictValidator(SchemaVersion.V1_6).validate_str(pathlib.Path(sys.argv[1]).read_text("utf-8")))
"""
BY_HAND = r"""
USER root
RUN mkdir -p /by/DEBIAN /opt/by_hand-1.2.dist-info \
 && printf 'Package: by-hand\nVersion: 1:2+b3\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: B\n' \
  >/by/DEBIAN/control \
 && dpkg-deb --build /by /by.deb && dpkg --install /by.deb && rm -r /by /by.deb \
 && printf 'Metadata-Version: 2.1\nName: By_Hand\nVersion: 1.2\n' >/opt/by_hand-1.2.dist-info/METADATA
"""


class Made:
    """A project whose images were made on a base without what the public one lacks."""

    def __init__(self, project: BakedProject) -> None:
        self.project, self.stack = project, Stack(project, watch=False)
        self.base = self.stack.base
        project.make("image")
        self.name, self.loader = (self.stack.image()[what]["tag"] for what in ("service", "loader"))

    def inspect(self, name: str) -> dict[str, Any]:
        return dict(json.loads(docker("image", "inspect", name))[0])

    def run(self, script: str, *words: str) -> str:
        """What a program in the hardened container prints, which gets the script as its input."""
        return docker("run", "--rm", "-i", *HARDENED, self.name, *words, input=script)


@pytest.fixture(scope="module")
def made(built: BakedProject, workshop: Path) -> Iterator[Made]:
    made = Made(copied(built, workshop / "image"))
    yield made
    made.stack.remove()


@contextmanager
def serving(name: str) -> Iterator[tuple[str, str]]:
    """Id and URL of a hardened container that answers."""
    one = docker("run", "-d", "-p", "127.0.0.1:0:3000", *HARDENED, name).strip()
    try:
        url = f"http://127.0.0.1:{docker('port', one, '3000').split(':')[-1].strip()}"
        until = time.monotonic() + 60
        while not answers(url):
            assert time.monotonic() < until, docker("logs", one, check=False)
            time.sleep(0.1)
        yield one, url
    finally:
        docker("rm", "-f", one)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.HTTPError:
        return False


@functools.cache
def tree(name: str) -> dict[str, tuple[Any, ...]]:
    """Path: kind, mode, owner, content of all that is in the image."""
    one = docker("create", name).strip()
    found: dict[str, tuple[Any, ...]] = {}
    try:
        with (
            subprocess.Popen(["docker", "export", one], stdout=subprocess.PIPE) as process,
            tarfile.open(fileobj=process.stdout, mode="r|") as archive,
        ):
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                content = hashlib.sha256(file.read()).hexdigest() if file else member.linkname
                found[member.name] = (member.type, member.mode, member.uid, member.gid, content)
        assert process.returncode == 0
    finally:
        docker("rm", one)
    return found


def test_it_adds_at_most_200_megabytes_to_its_base(made: Made) -> None:
    added = made.inspect(made.name)["Size"] - made.inspect(made.base)["Size"]
    assert 0 < added <= MAX_BYTES, f"{added / 1e6:.1f} MB"


def test_what_it_adds_is_of_root_and_nobody_elses_to_change(made: Made) -> None:
    before, now = tree(made.base), tree(made.name)
    added = {path: what for path, what in now.items() if before.get(path) != what}
    assert {path for path in added if path.startswith(("app/", "venv/"))}
    for path, (kind, mode, uid, gid, _) in added.items():
        assert (uid, gid) == (0, 0), path
        assert kind == tarfile.SYMTYPE or not mode & 0o6022, f"{path} {mode:o}"
    outside = {path.split("/")[0] for path in added} - {"app", "venv"}
    assert outside <= {"usr"}, "neither caches nor homes"
    assert all(path.endswith((".pyc", "__pycache__")) for path in added if path.startswith("usr/"))


def test_no_compiler_no_pip_no_tests_no_caches(made: Made) -> None:
    paths = tree(made.name)
    programs = {path.rsplit("/", 1)[1] for path in paths if re.search(r"(^|/)s?bin/[^/]+$", path)}
    assert "python3" in programs
    assert programs & {"cc", "gcc", "g++", "clang", "ld", "make", "pip", "pip3", "uv", "git", "curl", "wget"} == set()
    folders = {part for path in paths if path.startswith(("venv/", "app/")) for part in path.split("/")}
    assert folders & {"tests", "test_data", "pip", "ensurepip", ".cache", "include"} == set()
    assert not any(re.search(r"(^|/)(pip|ensurepip)(-[^/]*)?/", path) for path in paths)
    assert not any(
        path.startswith(("root/.", "tmp/")) for path in paths if path != "root/.bashrc" and path != "root/.profile"
    )


def test_it_serves_without_rights_in_256_megabytes_as_one_process(made: Made) -> None:
    with serving(made.name) as (one, url):
        names = httpx.get(f"{url}/v1/model").json()["inputs"]
        body = {"instances": [dict.fromkeys(names, 0.1)] * 1000}
        for _ in range(50):
            assert httpx.post(f"{url}/v1/predict", json=body).status_code == 200
        processes = docker("top", one, "-o", "pid,uid,args").splitlines()[1:]
        state = json.loads(docker("inspect", one))[0]
        log = docker("logs", one, check=False)
    assert len([line for line in processes if "urlopen" not in line]) == 1, "the probe of its health aside"
    assert processes[0].split()[1] == "10001"
    assert state["State"]["Running"] and not state["State"]["OOMKilled"]
    for line in log.splitlines():
        assert json.loads(line)["log.level"] in {"info", "warning"}, line


def test_a_start_compiles_nothing(made: Made) -> None:
    assert re.findall("^late:.*$", made.run(COMPILED, "python", "-"), re.MULTILINE) == ["late:"]


def test_every_shared_library_is_there_and_on_every_slim_base(made: Made) -> None:
    said = made.run(LIBRARIES, "sh", "-s")
    assert said.count("\n# /venv/") > 30
    assert "not found" not in said
    outside = {}
    for file, needed in re.findall(r"^# (/venv/.*)\n((?:\t.*\n)*)", said, re.MULTILINE):
        for name, place in re.findall(r"^\t(\S+) => (/\S+)", needed, re.MULTILINE):
            if not place.startswith("/venv/") and re.sub(r"\.so.*", ".so", name) not in SLIM:
                outside[name] = file
    assert outside == {}


def test_labels_say_what_it_was_made_of(made: Made) -> None:
    labels = made.inspect(made.name)["Config"]["Labels"]
    card = json.loads(made.project.text("build/model/card.json"))
    assert labels["org.opencontainers.image.revision"] == made.project.run("git", "rev-parse", "HEAD").stdout.strip()
    assert labels["model.digest"] == json.loads(made.project.text("build/model/registry.json"))["digest"]
    assert labels["data.version"] == card["trained_as_of"]["data_version"]


def test_the_same_inputs_give_the_same_files_twice(made: Made, tmp_path: Path) -> None:
    """The second time without the builder's cache, from a checkout of another time and another umask."""
    (bentos,) = (made.project.path / ".local/bentoml/bentos").iterdir()
    again = tmp_path / "bento"
    shutil.copytree(bentos / (bentos / "latest").read_text("utf-8"), again, copy_function=shutil.copyfile)
    yesterday = time.time() - 86_400  # to the split second: the builder takes files of one size and time for the same
    for path in again.rglob("*"):
        path.chmod(path.stat().st_mode & 0o700)
        os.utime(path, (yesterday, yesterday))
    for kind, context, name in (("service", again, made.name), ("loader", made.project.path, made.loader)):
        twin = f"localhost:1/{made.stack.name}-{kind}:twin"
        words = ["--no-cache", "--build-arg", f"PYTHON_IMAGE={made.base}", "-t", twin, str(context)]
        file = str(made.project.path / f"images/{kind}.Dockerfile")
        docker("build", "-q", "-f", file, *words, env=os.environ | {"DOCKER_BUILDKIT": "1"})
        first, second = tree(name), tree(twin)
        assert first.keys() == second.keys()
        assert {path for path in first if first[path] != second[path]} == set()


def packages(bill: str) -> set[str]:
    """Package URLs of a bill of materials, without qualifiers."""
    return {unquote(one["purl"].partition("?")[0]) for one in json.loads(bill)["components"]}


@pytest.mark.parametrize("name", ["sbom", "sbom-loader"])
def test_the_bill_of_materials_is_valid_and_names_the_image(made: Made, name: str) -> None:
    assert made.project.run(made.project.python, "-c", VALID, f"build/{name}.json").stdout.strip() == "None"
    itself = json.loads(made.project.text(f"build/{name}.json"))["metadata"]["component"]
    assert itself["version"] == made.inspect(made.name if name == "sbom" else made.loader)["Id"]


def test_the_bill_of_materials_holds_every_distribution_and_every_debian_package(made: Made) -> None:
    listed, installed = packages(made.project.text("build/sbom.json")), set(made.run(INSTALLED, "sh", "-s").split())
    for kind, least in (("pkg:deb/", 50), ("pkg:pypi/", 25)):
        assert len([one for one in installed if one.startswith(kind)]) > least
    (python,) = listed - installed
    assert re.fullmatch(r"pkg:generic/python@3\.\d+\.\d+", python)
    assert installed <= listed


def test_a_package_added_by_hand_is_in_the_bill_of_materials(made: Made) -> None:
    added = made.stack.derive("by-hand", BY_HAND)
    made.project.run(made.project.python, "ops/sbom.py", added, "build/by-hand.json")
    more = packages(made.project.text("build/by-hand.json")) - packages(made.project.text("build/sbom.json"))
    assert more == {"pkg:deb/debian/by-hand@1:2+b3", "pkg:pypi/by-hand@1.2"}


def test_every_cold_start_ends_in_the_right_answer(made: Made, tmp_path: Path) -> None:
    """Three of ours and three of the bare image, in turn, by the benchmark: it stops at a wrong or a missing answer."""
    env = {"PYTHON_IMAGE": made.base, "RUNS": "3", "CONTAINERIZE": "0", "OUT": str(tmp_path)}
    made.project.run(made.project.python, ROOT / "benchmarks/image.py", env=env)
    rows = {one["name"]: one for one in json.loads((tmp_path / "image.json").read_text("utf-8"))}
    assert rows.keys() == {"size above the base", "cold start, median of 3", "cold start, p95 of 3"}
    assert rows["size above the base"]["met"] is True
    assert all(one["value"] > 0 and one["reference_value"] > 0 for one in rows.values())
