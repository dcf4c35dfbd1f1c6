"""What the crash benchmark drives: a TimescaleDB in a container that can be killed, and runs of the loader."""

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

IMAGE = os.environ.get("TIMESCALE_IMAGE", "timescale/timescaledb:2.29.1-pg17-oss")
LOGIN = "crash_loader"  # a login of the loader's own, so that its backends can be told from the benchmark's
DATA = "/var/lib/postgresql/data"
PATIENCE = 120.0
MIDDLE, RECORD, FLUSH = 1, 2, 3  # advisory locks: whoever holds one stops the loader at that place

# No product code is touched: triggers of the benchmark's own database wait where they are told to. FLUSH works by a
# standby that does not exist: asked to wait for it, COMMIT is on disk here and does not return.
STOPS = f"""
CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(TG_ARGV[0]::integer);
    IF TG_ARGV[0]::integer = {RECORD} AND NOT pg_try_advisory_xact_lock_shared({FLUSH}) THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER middle BEFORE INSERT ON observation FOR EACH ROW
    WHEN (NEW.series_id = %s) EXECUTE FUNCTION stop({MIDDLE});
CREATE CONSTRAINT TRIGGER record AFTER INSERT ON load DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (NEW.kind = 'fetch') EXECUTE FUNCTION stop({RECORD});
"""
# FLUSH alone waits for the standby; and statements are shown whole, so that a kill's phase can be told by them.
SETTINGS = ["synchronous_standby_names=nosuch", "synchronous_commit=local", "track_activity_query_size=65536"]


def docker(*words: str, check: bool = True) -> str:
    return subprocess.run(["docker", *words], check=check, capture_output=True, text=True).stdout.strip()


def until(found: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Waits for `found` to give something true; raises TimeoutError."""
    end = time.monotonic() + seconds
    while not (value := found()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.004)
    return value


class Server:
    """A container with its data in a volume: killed and started, it is the same database. `mount`: docker's words."""

    def __init__(self, *mount: str) -> None:
        self.psycopg = import_module("psycopg")  # the project's: this file is checked where there is none
        self.password = secrets.token_hex(16)
        words = ["run", "-d", "-e", f"POSTGRES_PASSWORD={self.password}", "-p", "127.0.0.1:0:5432", *mount, IMAGE]
        self.container = docker(*words, "postgres", *(word for one in SETTINGS for word in ("-c", one)))
        self.port = 0
        self._ready()

    def _ready(self) -> None:
        until(self._answers, "the server to start")

    def _answers(self) -> bool:
        """The first start listens on its socket alone until it is set up; a restarted container gets another port."""
        published = docker("port", self.container, "5432/tcp", check=False).splitlines()
        if not published:
            return False
        self.port = int(published[0].rpartition(":")[2])
        try:
            self.connect("postgres").close()
        except self.psycopg.OperationalError:
            return False
        return True

    def url(self, database: str, port: int, user: str = "postgres") -> str:
        return f"postgresql://{user}:{self.password}@127.0.0.1:{port}/{database}?sslmode=disable"

    def connect(self, database: str) -> Any:
        connection = self.psycopg.connect(self.url(database, self.port), autocommit=True)
        connection.execute("SET TIME ZONE 'UTC'")
        return connection

    def kill(self) -> None:
        docker("kill", "-s", "KILL", self.container)

    def start(self) -> None:
        docker("start", self.container)
        self._ready()

    def remove(self) -> None:
        docker("rm", "-f", "-v", self.container, check=False)


class SmallServer(Server):
    """A server whose volume can be filled. It is in memory, and kept by a second container while the server is dead."""

    def __init__(self, megabytes: int = 300) -> None:
        options = ["type=tmpfs", "device=tmpfs", f"o=size={megabytes}m"]
        self.volume = docker("volume", "create", *(word for one in options for word in ("--opt", one)))
        mount = ["-v", f"{self.volume}:{DATA}"]
        self.keeper = docker("run", "-d", "--entrypoint", "sleep", *mount, IMAGE, "infinity")
        super().__init__(*mount)

    def fill(self) -> None:
        """Takes all that is left of the volume."""
        docker("exec", self.keeper, "sh", "-c", f"cat /dev/zero >{DATA}/filler", check=False)

    def fill_log(self) -> None:
        """And all of the log's file that is being written: the server panics."""
        connection = self.connect("postgres")  # there is no room for a login later
        self.fill()
        with contextlib.suppress(self.psycopg.OperationalError):
            while True:
                connection.execute("SELECT pg_logical_emit_message(false, '', repeat('x', 1000000))")

    def free(self) -> None:
        docker("exec", self.keeper, "rm", f"{DATA}/filler")
        until(lambda: docker("start", self.container) and self._answers(), "the server to start again")

    def remove(self) -> None:
        super().remove()
        docker("rm", "-f", self.keeper, check=False)
        docker("volume", "rm", "-f", self.volume, check=False)


class Process:
    """One run of a command, ended or not. `status` is what wait() gives: negative for a signal."""

    def __init__(self, pid: int, poll: Callable[[], int | None], log: Path) -> None:
        self.pid, self.log, self._poll = pid, log, poll
        self._status: int | None = None

    def poll(self) -> int | None:
        if self._status is None:
            self._status = self._poll()
        return self._status

    def wait(self) -> int:
        status = until(lambda: None if (code := self.poll()) is None else (code,), f"the run of {self.log.name}")
        return int(status[0])

    def printed(self) -> str:
        return self.log.with_suffix(".out").read_text("utf-8")

    def said(self) -> str:
        return self.log.with_suffix(".err").read_text("utf-8")


class Runner:
    """Runs `python -m model_service WORDS`, each in a process of its own.

    Python and numpy take longer to start than a small load takes, so most runs are forked from one process that has
    imported the command, and go through the same main(); every `fresh`th run is the command as typed.
    """

    def __init__(self, root: Path, source: Path, naive: bool, fresh: int = 25) -> None:
        self.root, self.naive, self.fresh, self.count = root, naive, fresh, 0
        self.env = os.environ | {"PROJECT_ROOT": str(root), "PYTHONPATH": str(source), "ENVIRONMENT": "test"}
        script = str(Path(__file__).with_name("crash_runs.py"))
        self.nursery = subprocess.Popen(
            [sys.executable, script, "naive" if naive else "product"],
            env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        (root / "logs").mkdir()

    def start(self, url: str, *words: str) -> Process:
        self.count += 1
        log = self.root / "logs" / f"{self.count:05}"
        if self.naive or self.count % self.fresh:
            pid = int(self._ask({"url": url, "words": words, "log": str(log)}))
            return Process(pid, lambda: self._ask({"poll": pid}), log)
        with log.with_suffix(".out").open("w") as out, log.with_suffix(".err").open("w") as err:
            command = [sys.executable, "-m", "model_service", *words]
            process = subprocess.Popen(command, env=self.env | {"DATABASE_URL": url}, stdout=out, stderr=err)
        return Process(process.pid, process.poll, log)

    def _ask(self, what: dict[str, Any]) -> Any:
        assert self.nursery.stdin and self.nursery.stdout
        self.nursery.stdin.write(json.dumps(what) + "\n")
        self.nursery.stdin.flush()
        return json.loads(self.nursery.stdout.readline())

    def close(self) -> None:
        assert self.nursery.stdin
        self.nursery.stdin.close()
        self.nursery.wait(PATIENCE)
