"""A backup that is restored into a new server gives the same answers by both clocks, and is loaded on from there."""

import json
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import BakedProject, image, run

pytestmark = [pytest.mark.docker, pytest.mark.timescale]
ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
DATABASE = "model"

# Hash of the answer for every (known_at, data_version), by the project's own read.
ANSWERS = """
import hashlib, json, os, sys
from datetime import UTC, datetime
from model_service import contract, settings
from model_service.store import read
from model_service.store.connection import connect
names = sorted(contract.load(settings.root() / "service.toml").series)
found = {}
with connect(os.environ["DATABASE_URL"]) as connection:
    for (version,) in connection.execute("SELECT version FROM data_version ORDER BY ordinal").fetchall():
        loads = read.data_version(connection, version).loads
        for day in sys.argv[1:]:
            known = read.as_of(connection, names, datetime.fromisoformat(day).replace(tzinfo=UTC), loads)
            parts = [name.encode() + values.tobytes() for name, values in sorted(known.items())]
            found[day + " " + version] = [sum(map(len, known.values())), hashlib.sha256(b"".join(parts)).hexdigest()]
print(json.dumps(found))
"""
DAYS = ("2016-06-29", "2016-07-15", "2016-07-29", "2016-08-30")


class Server:
    """A TimescaleDB of this test's own with an empty database, and what an operator runs in its container."""

    def __init__(self, container: str, password: str) -> None:
        self.container, self.password = container, password

    def do(self, *command: str, check: bool = True) -> Any:
        return run("docker", "exec", self.container, *command, cwd=Path("/"), env=ENV, check=check)

    def sql(self, statement: str) -> str:
        words = ("psql", "-XAtqU", "postgres", "-v", "ON_ERROR_STOP=1", "-d", DATABASE)
        return str(self.do(*words, "-c", statement).stdout.strip())

    @property
    def url(self) -> str:
        port = run("docker", "port", self.container, "5432", cwd=Path("/"), env=ENV).stdout.split(":")[-1].strip()
        return f"postgresql://postgres:{self.password}@127.0.0.1:{port}/{DATABASE}"


@contextmanager
def server() -> Iterator[Server]:
    """No power fails here: it does not wait for disks."""
    password = secrets.token_hex(16)
    words = ["run", "-d", "-e", f"POSTGRES_PASSWORD={password}", "-e", f"POSTGRES_DB={DATABASE}"]
    start = ["docker", *words, "-p", "127.0.0.1:0:5432", image("TIMESCALE_IMAGE"), "postgres", "-c", "fsync=off"]
    made = Server(run(*start, cwd=Path("/"), env=ENV).stdout.strip(), password)
    try:
        for _ in range(240):  # while it is set up it listens on its socket alone
            if made.do("pg_isready", "-q", "-h", "127.0.0.1", "-d", DATABASE, check=False).returncode == 0:
                break
            time.sleep(0.5)
        yield made
    finally:
        run("docker", "rm", "-f", "-v", made.container, cwd=Path("/"), env=ENV)


class Desk:
    """The project with a folder of data of its own, that grows vintage by vintage."""

    def __init__(self, built: BakedProject, folder: Path) -> None:
        self.built, self.folder = built, folder
        (folder / "data/us-macro").mkdir(parents=True)
        shutil.copy2(built.path / "service.toml", folder)

    def add(self, vintage: str, of: str | None = None) -> None:
        data = Path("data/us-macro")
        shutil.copy2(self.built.path / data / f"{of or vintage}.csv", self.folder / data / f"{vintage}.csv")

    def at(self, server: Server) -> dict[str, str]:
        return {"DATABASE_URL": server.url, "PROJECT_ROOT": str(self.folder)}

    def answers(self, server: Server) -> dict[str, Any]:
        script = ["-c", ANSWERS, *DAYS]
        done = self.built.run(self.built.python, *script, env={"PYTHONPATH": "src"} | self.at(server))
        return dict(json.loads(done.stdout))


def restore(old: Server, new: Server, folder: Path) -> None:
    """As the README says, here inside the containers. Roles belong to a server, so no database's backup has them."""
    old.do("pg_dump", "-U", "postgres", "-Fc", "-f", "/tmp/store.dump", DATABASE)
    run("docker", "cp", f"{old.container}:/tmp/store.dump", folder, cwd=folder, env=ENV)
    run("docker", "cp", folder / "store.dump", f"{new.container}:/tmp/store.dump", cwd=folder, env=ENV)
    new.sql("CREATE ROLE model_owner; CREATE ROLE model_loader; CREATE ROLE model_reader")
    new.sql("CREATE EXTENSION IF NOT EXISTS timescaledb")
    new.sql("SELECT timescaledb_pre_restore()")
    new.do("pg_restore", "-U", "postgres", "--exit-on-error", "-d", DATABASE, "/tmp/store.dump")
    new.sql("SELECT timescaledb_post_restore()")
    new.sql("ANALYZE")


@dataclass(frozen=True)
class Restored:
    desk: Desk
    old: Server
    new: Server
    before: dict[str, Any]


@pytest.fixture(scope="module")
def restored(built: BakedProject, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restored]:
    """Two vintages, loaded one after the other into one server; its backup, restored into another."""
    folder = tmp_path_factory.mktemp("restore")
    desk = Desk(built, folder / "desk")
    with server() as old, server() as new:
        built.service("migrate", env=desk.at(old))
        for vintage in ("2016-06-29", "2016-07-29"):
            desk.add(vintage)
            built.service("load", env=desk.at(old))
        before = desk.answers(old)
        restore(old, new, folder)
        yield Restored(desk, old, new, before)


def test_every_answer_by_both_clocks_is_the_same(restored: Restored) -> None:
    before = restored.before
    assert len(before) == 2 * len(DAYS)
    assert len({value for _, value in before.values()}) == 2, "the two vintages differ, or there is nothing to compare"
    assert all(cells > 1000 for cells, _ in before.values())
    assert restored.desk.answers(restored.new) == before


def test_nobody_but_the_owner_may_take_a_row_back(restored: Restored) -> None:
    words = ("psql", "-XAtqU", "postgres", "-d", DATABASE, "-c")
    for role in ("model_loader", "model_reader"):
        for statement in ("UPDATE observation SET value = 0", "DELETE FROM observation", "DELETE FROM load"):
            refused = restored.new.do(*words, f"SET ROLE {role}; {statement}", check=False)
            assert "permission denied" in refused.stderr, (role, statement)


def test_the_doctor_finds_rows_and_ledger_in_agreement(restored: Restored) -> None:
    done = restored.desk.built.service("doctor", "--json", env=restored.desk.at(restored.new), check=False)
    assert [one["state"] for one in json.loads(done.stdout) if one["check"] == "ledger"] == ["ok"]


def test_it_is_loaded_on_as_the_old_one_would_have_been(restored: Restored) -> None:
    desk, load = restored.desk, ("load", "--json")
    again = json.loads(desk.built.service(*load, env=desk.at(restored.new)).stdout)
    assert [one["outcome"] for one in again] == ["nothing new", "nothing new"]
    desk.add("2016-08-29", of="2016-06-29")
    for one in (restored.old, restored.new):
        desk.built.service(*load, env=desk.at(one))
    after = desk.answers(restored.new)
    assert after == desk.answers(restored.old)
    assert len(after) == 3 * len(DAYS) and restored.before.items() <= after.items()
