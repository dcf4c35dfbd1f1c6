"""The stack for real: TimescaleDB, loader, two replicas, HAProxy; rollouts, good and bad; and what must not leak."""

import contextlib
import hashlib
import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import BakedProject, image, missing

pytestmark = [pytest.mark.docker, pytest.mark.python, pytest.mark.timescale, pytest.mark.haproxy]
KEYS = ("POSTGRES_PASSWORD", "LOADER_PASSWORD", "READER_PASSWORD")
# As the public slim image: no bytecode of the standard library, no OpenMP.
BASE = """
RUN find / -xdev -name '*.pyc' -delete && { ! dpkg -s libgomp1 >/dev/null 2>&1 || dpkg --purge libgomp1; }
"""


def docker(*words: str, check: bool = True, **more: Any) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, **more)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout + ("" if check else done.stderr)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def copied(built: BakedProject, folder: Path) -> BakedProject:
    """A copy of the built project that may be changed; it shares the environment."""
    path = folder / built.path.name
    path.mkdir(parents=True)
    kept = [one for one in built.path.iterdir() if one.name != ".venv"]
    built.run("cp", "-a", *kept, path)  # owners too: as root the embedded database belongs to another user
    (path / ".venv").symlink_to(built.python.parents[1])
    if (path / ".git").is_dir():
        with (path / ".git/info/exclude").open("a", encoding="utf-8") as file:
            file.write(".venv\n")
    return BakedProject(path, dict(built.env))


def base_of_images(name: str) -> str:
    """A tag with that name of the base of the tests' images: one and the same, so that their layers are built once."""
    tag = f"localhost:1/{name}-base"
    docker("build", "-q", "-t", tag, "-", input=f"FROM {image('PYTHON_IMAGE')}\n{BASE}")
    return tag


class Stack:
    """A project with a name, an image repository and a port of its own on the engine."""

    def __init__(self, project: BakedProject, watch: bool) -> None:
        self.name = f"om-{uuid.uuid4().hex[:8]}"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.project = project
        self.made: list[str] = []
        self.base = base_of_images(self.name)
        env = {"COMPOSE_PROJECT_NAME": self.name, "BALANCER_PORT": str(self.port), "READY_SECONDS": "60"}
        env |= {"PYTHON_IMAGE": self.base}
        project.env |= env | ({"COMPOSE_PROFILES": "watch"} if watch else {})
        contract = project.path / "service.toml"
        text = re.sub(
            r'(?m)^repository = "[^"]*"', f'repository = "localhost:1/{self.name}"', contract.read_text("utf-8")
        )
        contract.write_text(text, "utf-8")
        project.run("git", "commit", "-qam", "A repository of its own")

    def image(self) -> dict[str, Any]:
        return dict(json.loads(self.project.text("build/image.json")))

    def ids(self, service: str = "service", *options: str) -> list[str]:
        labels = [
            f"--filter=label=com.docker.compose.project={self.name}",
            "--filter=label=com.docker.compose.oneoff=False",
        ]
        return docker(
            "ps", "-q", "--no-trunc", *options, *labels, f"--filter=label=com.docker.compose.service={service}"
        ).split()

    def images_served(self) -> set[str]:
        return {docker("inspect", "-f", "{{.Config.Image}}", one).strip() for one in self.ids()}

    def derive(self, name: str, *lines: str, of: str = "service") -> str:
        """An image made of the last one and some lines of a Dockerfile."""
        tag = f"localhost:1/{self.name}:{name}"
        docker("build", "-q", "-t", tag, "-", input="\n".join([f"FROM {self.image()[of]['tag']}", *lines]))
        self.made.append(tag)
        return tag

    def deploy(self, image: str = "", check: bool = True, **env: str) -> Any:
        more = {"DEPLOY_HOST": "local"} | ({"SERVICE_IMAGE": image} if image else {}) | env
        return self.project.make("deploy", check=check, env=more)

    def inside(self, url: str) -> Any:
        """What a part of the stack that is not bound answers to a replica."""
        script = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode())"
        return json.loads(docker("exec", self.ids()[0], "python", "-c", script, url))

    def loaded(self) -> list[str]:
        """Names of the files that were loaded, in that order."""
        question = "SELECT regexp_replace(request->>'file', '.*/', '') FROM load ORDER BY load_id"
        words = ["exec", self.ids("database")[0], "psql", "-U", "postgres", "-d", "model", "-Atc", question]
        return docker(*words).split()

    def model(self) -> dict[str, Any]:
        return dict(httpx.get(f"{self.url}/v1/model").raise_for_status().json())

    def passwords(self) -> list[str]:
        lines = (self.project.path / ".env").read_text("utf-8").splitlines()
        return [value for key, _, value in (line.partition("=") for line in lines) if key in KEYS]

    def remove(self) -> None:
        self.project.make("down", check=False)
        docker("volume", "rm", "-f", f"{self.name}_database", check=False)
        tags = docker(
            "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "--filter", f"reference=localhost:1/{self.name}*"
        )
        docker("image", "rm", "-f", *self.made, *tags.split(), check=False)


@pytest.fixture(scope="module")
def stack(built: BakedProject, workshop: Path) -> Iterator[Stack]:
    """A copy of the built project, its images made; not started yet."""
    project = copied(built, workshop / "stack")
    stack = Stack(project, watch=not (missing("prometheus") or missing("elasticsearch")))
    stack.project.make("image")
    yield stack
    stack.remove()


def eventually(what: Callable[[], Any]) -> None:
    for _ in range(120):
        if what():
            return
        time.sleep(0.5)
    pytest.fail("never seen")


@contextlib.contextmanager
def command_lines() -> Iterator[set[str]]:
    """Arguments of every process of the machine that a sampler saw during the block."""
    seen: set[str] = set()
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.05):
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    seen.add(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def callers(url: str, headers: dict[str, str] | None = None) -> Iterator[list[int | str]]:
    """Asks for a forecast all the time during the block; every status, or error, is kept."""
    answers: list[int | str] = []
    done = threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=10, headers=headers) as client:
            while not done.wait(0.02):
                try:
                    answers.append(client.get(f"{url}/v1/forecast").status_code)
                except httpx.HTTPError as error:
                    answers.append(repr(error))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        done.set()
        thread.join()
    assert len(answers) > 20
    assert set(answers) == {200}


@pytest.fixture(scope="module")
def up(stack: Stack) -> Any:
    """`make up`: what it printed, and the command lines seen meanwhile."""
    assert not stack.project.has_file(".env")
    (stack.project.path / ".env").write_text(
        "LOG_LEVEL='info'\r\nREADY_SECONDS=\"60\"", "utf-8"
    )  # as some editors leave it
    with command_lines() as seen:
        done = stack.project.make("up")
    return done, seen


def test_up_serves_the_same_forecast_through_the_balancer(stack: Stack, up: Any) -> None:
    answer = httpx.get(f"{stack.url}/v1/forecast").raise_for_status().json()
    built = json.loads(stack.project.text("build/model/registry.json"))
    assert answer["model"]["digest"] == built["digest"]
    assert answer["degraded"] is None
    local = json.loads(stack.project.service("forecast", "--json", "--as-of", "2016-07-01").stdout)
    there = httpx.get(f"{stack.url}/v1/forecast?as_of=2016-07-01").raise_for_status().json()
    assert there["forecasts"] == local["forecasts"]
    printed = up[0].stdout
    assert f"{stack.url}/v1/forecast" in printed
    for row in answer["forecasts"]:
        assert f"{row['value']:.2f}" in printed


def test_trace_walks_from_the_answer_to_the_bytes(stack: Stack, up: Any) -> None:
    answer = httpx.get(f"{stack.url}/v1/forecast").text
    walked = docker("exec", "-i", stack.ids()[0], "python", "-m", "model_service", "trace", "-", input=answer)
    assert walked.splitlines()[-1] == "complete"
    for file in (stack.project.path / "data/us-macro").glob("*.csv"):
        assert hashlib.sha256(file.read_bytes()).hexdigest() in walked


def test_the_store_is_a_hypertable(stack: Stack, up: Any) -> None:
    question = "SELECT hypertable_name FROM timescaledb_information.hypertables"
    assert docker(
        "exec", stack.ids("database")[0], "psql", "-U", "postgres", "-d", "model", "-Atc", question
    ).split() == ["observation"]


def test_the_loader_and_the_readers_may_not_more_than_they_need(stack: Stack, up: Any) -> None:
    for login, statement in [("reader", "INSERT INTO series (dataset) VALUES ('x')"), ("loader", "DELETE FROM load")]:
        password = dict(zip(KEYS, stack.passwords(), strict=True))[f"{login.upper()}_PASSWORD"]
        where = ["-h", "127.0.0.1", "-U", login, "-d", "model", "-c", statement]
        said = docker(
            "exec",
            "-e",
            "PGPASSWORD",
            stack.ids("database")[0],
            "psql",
            *where,
            check=False,
            env={"PGPASSWORD": password, **stack.project.env},
        )
        assert "permission denied" in said


def test_only_the_balancer_is_bound_and_only_to_this_machine(stack: Stack, up: Any) -> None:
    ids = docker("ps", "-q", f"--filter=label=com.docker.compose.project={stack.name}").split()
    assert len(ids) >= 4
    bound = {}
    for one in json.loads(docker("inspect", *ids)):
        bound[one["Config"]["Labels"]["com.docker.compose.service"]] = [
            place for places in one["NetworkSettings"]["Ports"].values() for place in places or []
        ]
    assert bound.pop("balancer") == [{"HostIp": "127.0.0.1", "HostPort": str(stack.port)}]
    assert not any(bound.values())
    assert json.loads(docker("network", "inspect", f"{stack.name}_inside"))[0]["Internal"]


def test_replicas_run_without_rights(stack: Stack, up: Any) -> None:
    replicas = json.loads(docker("inspect", *stack.ids()))
    assert len(replicas) == 2
    for one in replicas:
        host = one["HostConfig"]
        assert one["Config"]["User"] == "10001:10001"
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
        assert host["Memory"] == 256 * 2**20


def test_passwords_are_nowhere_but_in_env(stack: Stack, up: Any) -> None:
    file = stack.project.path / ".env"
    assert file.stat().st_mode & 0o777 == 0o600
    assert stack.project.run("git", "check-ignore", ".env").stdout.strip() == ".env"
    secrets = stack.passwords()
    assert len(set(secrets)) == 3
    assert all(len(one) >= 32 for one in secrets)
    images = [
        stack.image()["service"]["tag"],
        stack.image()["loader"]["tag"],
        f"{stack.name}-balancer",
    ]
    places = {
        "up": up[0].stdout + up[0].stderr,
        "processes": "\n".join(up[1]),
        "history": "".join(docker("history", "--no-trunc", one) for one in images),
        "images": docker("image", "inspect", *images),
        "logs": "".join(
            docker("logs", one, check=False)
            for one in docker("ps", "-aq", f"--filter=label=com.docker.compose.project={stack.name}").split()
        ),
        "tracked": stack.project.run("git", "grep", "-hI", "").stdout,
    }
    assert "model_service" in places["processes"]
    for name, text in places.items():
        assert text, name
        for secret in secrets:
            assert secret not in text, name


def test_an_error_of_the_database_shows_no_password(stack: Stack, up: Any) -> None:
    words = [
        "run",
        "--rm",
        "--network",
        f"{stack.name}_inside",
        "-e",
        "DATABASE_URL",
        stack.image()["loader"]["tag"],
        "load",
    ]
    env = stack.project.env | {"DATABASE_URL": "postgresql://loader:wrong-password-1@database/model"}
    done = subprocess.run(["docker", *words], capture_output=True, text=True, env=env)
    assert done.returncode == 1
    assert "the database does not answer" in done.stderr
    assert "wrong-password-1" not in done.stdout + done.stderr


def test_the_loader_holds_neither_training_nor_serving(stack: Stack) -> None:
    tag = stack.image()["loader"]["tag"]
    absent = ["sklearn", "skl2onnx", "onnx", "onnxruntime", "fastapi", "bentoml", "elasticsearch", "pip"]
    absent += ["model_service.training", "model_service.serving"]
    script = f"import importlib.util as u; print([n for n in {absent} if u.find_spec(n)])"
    assert docker("run", "--rm", "--entrypoint", "python", tag, "-c", script).strip() == "[]"


def test_the_service_image_is_lean_and_labelled(stack: Stack) -> None:
    tag = stack.image()["service"]["tag"]
    modules, programs = ["sklearn", "pandas", "scipy", "pip", "ensurepip"], ["pip", "pip3", "uv", "gcc", "cc"]
    script = (
        "import importlib.util as u, shutil;"
        f"print([n for n in {modules} if u.find_spec(n)], [n for n in {programs} if shutil.which(n)])"
    )
    run = [
        "run",
        "--rm",
        "--read-only",
        "--cap-drop",
        "ALL",
        "--security-opt",
        "no-new-privileges",
        "--network",
        "none",
    ]
    assert docker(*run, tag, "python", "-c", script).strip() == "[] []"
    assert (
        docker(*run, tag, "find", "/app", "-not", "-user", "root", "-o", "-writable", "-not", "-type", "l").strip()
        == ""
    )
    labels = json.loads(docker("image", "inspect", "-f", "{{json .Config.Labels}}", tag))
    assert labels["org.opencontainers.image.revision"] == stack.project.run("git", "rev-parse", "HEAD").stdout.strip()
    assert labels["model.digest"] == json.loads(stack.project.text("build/model/registry.json"))["digest"]


def test_the_watch_profile_sees_the_replicas_and_keeps_the_audit_trail(stack: Stack, up: Any) -> None:
    if "COMPOSE_PROFILES" not in stack.project.env:
        pytest.skip("prometheus, elasticsearch: no images here")
    for _ in range(5):
        httpx.get(f"{stack.url}/v1/forecast").raise_for_status()
    up_now = "http://prometheus:9090/api/v1/query?query=up"
    eventually(lambda: [one["value"][1] for one in stack.inside(up_now)["data"]["result"]] == ["1", "1"])
    eventually(lambda: stack.inside("http://elasticsearch:9200/_all/_count")["count"] >= 5)


def test_up_again_keeps_what_is_there(stack: Stack, up: Any) -> None:
    before = stack.passwords(), sorted(stack.ids()), stack.ids("database")
    stack.project.make("up")
    assert (stack.passwords(), sorted(stack.ids()), stack.ids("database")) == before


def test_keys_are_changed_and_kept_without_a_failed_request(stack: Stack, up: Any) -> None:
    """By `up` on the running stack, replica by replica; a deployment that knows none leaves them as they are."""
    keys, key = "team-a=0123456789abcdef0123456789abcdef", {"X-API-Key": "0123456789abcdef0123456789abcdef"}

    def statuses() -> list[int]:
        return [httpx.get(f"{stack.url}/v1/forecast", headers=headers).status_code for headers in ({}, key)]

    with callers(stack.url, key):
        done = stack.project.make("up", env={"API_KEYS": keys})
    assert f"{stack.url}/v1/forecast" in done.stdout
    assert statuses() == [401, 200]
    trail = docker("exec", stack.ids()[0], "printenv", "ELASTICSEARCH_URL", check=False)
    with callers(stack.url, key):
        assert "the balancer answers from sha256:" in stack.deploy(COMPOSE_PROFILES="").stderr
    assert statuses() == [401, 200]
    assert docker("exec", stack.ids()[0], "printenv", "ELASTICSEARCH_URL", check=False) == trail
    assert len(stack.ids()) == 2
    with callers(stack.url, key):
        stack.project.make("up", env={"API_KEYS": "none"})
    assert statuses() == [200, 200]


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """server.pem and clients.pem, as the balancer wants them; client.pem, and stranger.pem of another authority."""

    def make(name: str, *more: str | Path) -> None:
        words = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-noenc",
            "-days",
            "1",
        ]
        place = ["-subj", f"/CN={name}", "-keyout", tmp_path / f"{name}.key", "-out", tmp_path / f"{name}.crt"]
        subprocess.run([*words, *place, *more], check=True, capture_output=True)
        pair = [(tmp_path / f"{name}.{kind}").read_text() for kind in ("crt", "key")]
        (tmp_path / f"{name}.pem").write_text("".join(pair))

    make("authority")
    for name in ("server", "client"):
        signed = ["-CA", tmp_path / "authority.crt", "-CAkey", tmp_path / "authority.key"]
        make(name, *signed, "-addext", "subjectAltName=IP:127.0.0.1")
    make("stranger")
    shutil.copy(tmp_path / "authority.crt", tmp_path / "clients.pem")
    tmp_path.chmod(0o755)
    return tmp_path


def test_callers_from_elsewhere_show_a_certificate(stack: Stack, up: Any, certificates: Path) -> None:
    port = str(free_port())

    def forecast(name: str) -> Any:
        trust = ssl.create_default_context(cafile=str(certificates / "authority.crt"))
        if name:
            trust.load_cert_chain(certificates / f"{name}.pem")
        return httpx.get(f"https://127.0.0.1:{port}/v1/forecast", verify=trust).raise_for_status().json()["forecasts"]

    stack.project.make("up", env={"TLS_DIR": str(certificates), "TLS_PORT": port})
    try:
        docker("exec", stack.ids("balancer")[0], "haproxy", "-c", "-f", "/usr/local/etc/haproxy/haproxy.cfg")
        assert forecast("client") == httpx.get(f"{stack.url}/v1/forecast").json()["forecasts"]
        for name in ("", "stranger"):
            with pytest.raises(httpx.TransportError):
                forecast(name)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/v1/forecast").raise_for_status()
        stack.project.make("up")  # from elsewhere, where nobody knows of it
        assert forecast("client")
    finally:
        stack.project.make("up", env={"TLS_DIR": "none"})
    with pytest.raises(httpx.TransportError):
        forecast("client")


def test_a_wrong_setting_is_named_before_anything_starts(stack: Stack) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        name = f"{stack.name}x"
        for key, value, says in [
            ("BALANCER_PORT", port, f"port {port} on 127.0.0.1 is taken: .*BALANCER_PORT="),
            ("BALANCER_PORT", "abc", "BALANCER_PORT is 'abc': give a number"),
            ("COMPOSE_PROFILES", "wach", "COMPOSE_PROFILES names 'wach': give watch"),
            ("TLS_DIR", "/nowhere", "the balancer would not start with .*TLS_DIR=/nowhere; nothing was touched"),
        ]:
            env = {"COMPOSE_PROJECT_NAME": name, "BALANCER_PORT": str(free_port()), key: value}
            done = stack.project.make("up", check=False, env=env)
            assert done.returncode != 0
            assert re.search(f"(?m)^up: {says}", done.stderr), done.stderr
            assert docker("ps", "-aq", f"--filter=name={name}") == ""
    assert not Path("/nowhere").exists()
    stack.project.make("down", env={"COMPOSE_PROJECT_NAME": name})


def test_without_an_image_up_says_what_to_do(stack: Stack) -> None:
    file = stack.project.path / "build/image.json"
    text = file.read_text("utf-8")
    file.unlink()
    try:
        done = stack.project.make("up", check=False)
    finally:
        file.write_text(text, "utf-8")
    assert done.returncode != 0
    assert "run make image" in done.stderr


def test_a_good_image_is_rolled_out_without_a_failed_request(stack: Stack, up: Any) -> None:
    new = stack.derive("new", "ENV NOTHING=new")
    (stack.project.path / ".env").rename(
        stack.project.path / "kept.env"
    )  # as in a pipeline: the target knows its passwords
    before = stack.ids()
    try:
        with callers(stack.url):
            done = stack.deploy(new)
    finally:
        (stack.project.path / "kept.env").replace(stack.project.path / ".env")
    assert "the balancer answers from sha256:" in done.stderr
    assert stack.images_served() == {new}
    assert len(stack.ids()) == 2
    assert not set(stack.ids()) & set(before)
    assert stack.model()["image_digest"] == docker("image", "inspect", "-f", "{{.Id}}", new).strip()


ENDS = 'CMD ["python", "-c", "raise SystemExit(\'no such thing\')"]'
SECOND_ENDS = (
    'CMD ["sh", "-c", "sleep 1; [ $(getent ahostsv4 service | grep -c STREAM) -le 3 ] &&'
    ' exec python -m uvicorn model_service.serving.app:app --host 0.0.0.0 --port 3000"]'
)


@pytest.mark.parametrize(
    ("name", "verb", "line", "says"),
    [
        ("never-ready", "deploy", "ENV MODEL_DIR=/nowhere", "it was not ready within 8 s"),
        ("ends", "deploy", ENDS, "it ended by itself"),
        ("second-ends", "up", SECOND_ENDS, "it ended by itself"),
        ("liar", "deploy", "LABEL model.digest=sha256:0000", "sha256:0000 was asked for, but the answer of http"),
    ],
)
def test_a_bad_image_is_undone_without_a_failed_request(
    stack: Stack, up: Any, name: str, verb: str, line: str, says: str
) -> None:
    served, ids = stack.images_served(), sorted(stack.ids())
    env = {"DEPLOY_HOST": "local", "SERVICE_IMAGE": stack.derive(name, line)}
    if name == "never-ready":
        env["READY_SECONDS"] = "8"
    with callers(stack.url):
        done = stack.project.make(verb, check=False, env=env)
    assert done.returncode != 0
    assert says in done.stderr
    assert "the end of its log:" in done.stderr
    assert f"undone: {served.pop()} serves" in done.stderr
    assert done.stderr.count(f"{verb}: replica ") == (3 if name == "second-ends" else 2)
    assert sorted(stack.ids("service", "--all")) == ids
    assert docker("ps", "-aq", f"--filter=name={stack.name}-rollout") == ""


def test_an_answer_that_comes_from_elsewhere_turns_red(stack: Stack, up: Any) -> None:
    """A container of before that nobody stopped: the balancer finds it by the name that it has in the network."""
    (old,) = stack.images_served()
    words = ["--network", f"{stack.name}_inside", "--network-alias", "service", "--env", "IMAGE_DIGEST=sha256:old"]
    left = docker("run", "--detach", *words, old).strip()
    try:
        done = stack.deploy(check=False, LOG_LEVEL="warning")
    finally:
        docker("rm", "--force", left)
    assert done.returncode != 0
    assert "deployed, but sha256:" in done.stderr
    assert "the answer of http://balancer:8080/v1/model comes from sha256:old" in done.stderr
    stack.deploy(LOG_LEVEL="info")


def test_a_model_that_is_damaged_never_reaches_a_replica(stack: Stack, up: Any) -> None:
    ids = sorted(stack.ids())
    done = stack.deploy(
        stack.derive("damaged", "USER root", "RUN echo x >>/app/model/model.onnx", "USER 10001:10001"), check=False
    )
    assert done.returncode != 0
    assert "could not be imported; the replicas were not touched" in done.stderr
    assert sorted(stack.ids()) == ids


def test_a_challenger_is_deployed_in_the_shadow(stack: Stack, up: Any) -> None:
    """In the image and in the target's registry; its answers in the audit trail, and to no caller."""
    before = httpx.get(f"{stack.url}/v1/forecast?as_of=2016-07-01").content
    stack.project.service("train", "--to", "build/other", "--as-of", "2016-07-01")
    stack.project.service("promote", "--artifact", "build/other", "--challenger", "--reason", "to be seen first")
    stack.project.make("image")
    with callers(stack.url):
        stack.deploy()
    champion, challenger = (
        json.loads(stack.project.text(f"build/{folder}/registry.json"))["digest"] for folder in ("model", "other")
    )
    eventually(lambda: stack.model()["challenger"]["fault"] is None)
    told = stack.model()
    assert (told["digest"], told["challenger"]["digest"]) == (champion, challenger)
    listed = docker("exec", stack.ids()[0], "python", "-m", "model_service", "models", "list", "--json")
    states = {one["digest"]: one["state"] for one in json.loads(listed)}
    assert (states[champion], states[challenger]) == ("champion", "challenger")
    assert httpx.get(f"{stack.url}/v1/forecast?as_of=2016-07-01").content == before
    if "COMPOSE_PROFILES" in stack.project.env:
        shadow = "http://elasticsearch:9200/model-audit-*/_count?q=kind:shadow"
        eventually(lambda: stack.inside(shadow)["count"] > 0)


@contextlib.contextmanager
def container(image: str) -> Iterator[str]:
    """URL of one container of the image, without a database, run as narrowly as the stack runs it."""
    narrow = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--tmpfs", "/tmp"]
    one = docker("run", "-d", "-p", "127.0.0.1:0:3000", *narrow, image).strip()
    try:
        url = f"http://127.0.0.1:{docker('port', one, '3000').split(':')[-1].strip()}"
        for _ in range(120):
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/livez").status_code == 200:
                    break
            time.sleep(0.25)
        yield url
    finally:
        docker("rm", "-f", one)


def test_the_container_keeps_the_contract_that_bentoml_serve_keeps(stack: Stack) -> None:
    with container(stack.image()["service"]["tag"]) as url:
        words = [stack.project.python, "-m", "pytest", "tests/test_service.py"]
        done = stack.project.run(*words, env={"PYTHONPATH": "src", "SERVICE_URL": url})
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed.group(1)) >= 25


def test_a_container_whose_model_is_damaged_is_alive_but_not_ready(stack: Stack) -> None:
    image = stack.derive("corrupt", "USER root", "RUN echo x >>/app/model/model.onnx", "USER 10001:10001")
    with container(image) as url:
        assert httpx.get(f"{url}/livez").status_code == 200
        answer = httpx.get(f"{url}/readyz")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert "model.onnx does not fit SHA256SUMS" in answer.json()["detail"]


def test_two_deployments_do_not_meet(stack: Stack, up: Any) -> None:
    other = f"{stack.name}-rollout"
    docker("run", "-d", "--rm", "--name", other, "--entrypoint", "sleep", stack.image()["service"]["tag"], "60")
    try:
        done = stack.deploy(check=False)
        assert docker("ps", "-q", f"--filter=name={other}") != ""
    finally:
        docker("rm", "-f", other)
    assert done.returncode != 0
    assert "another up or deploy is at work" in done.stderr


class Publisher:
    """A web server beside the stack, which its loader may reach; its files were written years ago."""

    def __init__(self, stack: Stack) -> None:
        server = ["python", "-m", "http.server", "--directory", "/tmp/published", "80"]
        where = ["--network", f"{stack.name}_outside", "--network-alias", "publisher", "--user", "0"]
        where += ["--entrypoint", "", stack.image()["loader"]["tag"]]
        self.id = docker("run", "-d", "--rm", *where, *server).strip()

    def publish(self, name: str, content: str) -> None:
        write = 'mkdir -p /tmp/published && cat >/tmp/part && touch -d 2016-01-01 /tmp/part && mv /tmp/part "$1"'
        docker("exec", "-i", self.id, "sh", "-c", write, "sh", f"/tmp/published/{name}", input=content)

    def asked(self, what: str) -> int:
        return docker("logs", self.id, check=False).count(what)


@pytest.fixture
def publisher(stack: Stack, up: Any) -> Iterator[Publisher]:
    publisher = Publisher(stack)
    yield publisher
    docker("rm", "-f", publisher.id)


def stopped(container: str) -> int:
    """What it ended with; 137: it was killed, for it did not end in time."""
    docker("stop", container)
    return int(docker("inspect", "-f", "{{.State.ExitCode}}", container))


def test_a_follower_loads_what_is_published_and_goes_on_after_a_stop(
    stack: Stack, up: Any, publisher: Publisher
) -> None:
    """It stays up: that `down` takes it away, too, shows in the test of that."""
    held, june = stack.project.text("data/us-macro/2016-07-29.csv"), "456978,{},1189"
    publisher.publish("2016-07-29.csv", held)
    change = 's|^path = .*|path = "http://publisher/*.csv"\\npoll_seconds = 1|'
    mend = ["USER root", f"RUN sed -i '{change}' /app/service.toml", "USER 10001:10001"]
    loader = stack.derive("follows", *mend, of="loader")
    profiles = ",".join(["follow", *stack.project.env.get("COMPOSE_PROFILES", "").split()])
    stack.project.make("up", env={"COMPOSE_PROFILES": profiles})
    (first,) = stack.ids("follower")
    stack.deploy(LOADER_IMAGE=loader)
    (follower,) = stack.ids("follower")
    assert follower != first  # a deployment renews it

    before = stack.loaded()
    eventually(lambda: publisher.asked('GET /2016-07-29.csv HTTP/1.1" 304'))
    publisher.publish("2016-08-31.csv", held.replace(june.format(4.9), june.format(4.8)))
    eventually(lambda: stack.loaded() == [*before, "2016-08-31.csv"])
    known = httpx.get(f"{stack.url}/v1/forecast").raise_for_status().json()["inputs_known_until"]
    assert known == "2016-08-31T00:00:00Z"  # the replicas forecast from it at once
    eventually(lambda: "us_macro: looks again at" in docker("logs", follower, check=False))
    assert stopped(follower) == 0
    said = docker("logs", follower, check=False)
    assert re.search(r"SIGTERM: stops (at once, nothing is being|once us_macro is) loaded\n", said)
    assert re.search(r"(?m)^stopped\nus_macro: .*\b1 loaded", said)

    publisher.publish("2016-09-30.csv", held.replace(june.format(4.9), june.format(5.0)))
    docker("start", follower)
    assert stopped(follower) in {0, 143}  # also before it listens
    docker("start", follower)
    eventually(lambda: stack.loaded() == [*before, "2016-08-31.csv", "2016-09-30.csv"])
    assert publisher.asked('GET /2016-08-31.csv HTTP/1.1" 200') == 1


def test_down_leaves_the_volume_and_nothing_else(stack: Stack, up: Any) -> None:
    label = f"--filter=label=com.docker.compose.project={stack.name}"
    mounts = docker("inspect", "-f", "{{range .Mounts}}{{println .Name}}{{end}}", *docker("ps", "-aq", label).split())
    stack.project.make("down")
    assert set(mounts.split()) & set(docker("volume", "ls", "-q").split()) == {f"{stack.name}_database"}
    assert docker("ps", "-aq", label) == ""
    assert docker("network", "ls", "-q", label) == ""
    assert docker("volume", "ls", "-q", label).split() == [f"{stack.name}_database"]
    assert docker("image", "ls", "-q", f"{stack.name}-*") == ""
    stack.project.make("down")


def test_a_first_deployment(stack: Stack) -> None:
    """After `down`: nothing serves. A bad image leaves nothing that serves; a good one serves."""
    done = stack.deploy(stack.derive("first", "ENV MODEL_DIR=/nowhere"), check=False, READY_SECONDS="8")
    assert done.returncode != 0
    assert "the first deployment never got ready" in done.stderr
    assert stack.ids("service", "--all") == []
    done = stack.deploy()
    assert "first deployment" in done.stderr
    assert len(stack.ids()) == 2
    assert stack.model()["digest"] == stack.image()["model"]
