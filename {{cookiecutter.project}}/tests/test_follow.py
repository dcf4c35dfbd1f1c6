"""`load --follow`: what comes is loaded, what fails is tried again, a signal ends it after what is being loaded."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import ROOT, Run

from model_service import contract as contracts
from model_service.errors import ServiceError
from model_service.loader import follow

FIRST, SECOND = "data/us-macro/2016-06-29.csv", "data/us-macro/2016-07-29.csv"


def wait_for(true: Callable[[], Any], seconds: float = 120) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it did not come"
        time.sleep(0.05)


class Copy:
    """A loader that follows, as a process; `said` is what it has printed for people so far."""

    def __init__(self, project: Path, url: str, *words: str) -> None:
        env = {**os.environ, "PROJECT_ROOT": str(project), "DATABASE_URL": url, "PYTHONPATH": str(ROOT / "src")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "model_service", "load", "--follow", *words], env=env, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.said: list[str] = []
        self.reader = threading.Thread(target=lambda: self.said.extend(self.process.stderr or ()), daemon=True)
        self.reader.start()

    def says(self, words: str) -> bool:
        return any(words in line for line in self.said)

    def end(self, number: int = signal.SIGTERM) -> str:
        """Sends the signal; what it printed as its result, once it ended well."""
        self.process.send_signal(number)
        code = self.process.wait(60)
        self.reader.join()
        assert code == 0, self.said
        return self.process.stdout.read() if self.process.stdout else ""


@pytest.fixture
def following(project: Path, url: str) -> Iterator[Callable[..., Copy]]:
    """Starts copies in a project that is looked at five times a second; they end with the test."""
    toml, copies = project / "service.toml", list[Copy]()
    toml.write_text(toml.read_text().replace('kind = "csv"', 'kind = "csv"\npoll_seconds = 0.2', 1))

    def start(*words: str) -> Copy:
        copies.append(Copy(project, url, *words))
        return copies[-1]

    yield start
    for one in copies:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait()


def loaded(url: str) -> list[str]:
    """The files of the loads, in their order."""
    with psycopg.connect(url) as connection:
        return [file for (file,) in connection.execute("SELECT request->>'file' FROM load ORDER BY load_id").fetchall()]


@contextmanager
def held_up(url: str) -> Iterator[None]:
    """No load gets to its end meanwhile."""
    with psycopg.connect(url) as connection:
        connection.execute("LOCK TABLE watermark IN EXCLUSIVE MODE")
        yield
        connection.rollback()


def waits(url: str) -> bool:
    """Whether a load has its rows in place and is held up."""
    with psycopg.connect(url) as connection:
        asked = "SELECT FROM pg_locks WHERE NOT granted AND relation = 'watermark'::regclass"
        return connection.execute(asked).fetchone() is not None


def test_a_vintage_that_appears_is_loaded_and_a_signal_ends_it(
    following: Callable[..., Copy], project: Path, url: str
) -> None:
    second = (project / SECOND).read_bytes()
    (project / SECOND).unlink()
    copy = following("--json")
    wait_for(lambda: copy.says("looks again at "))
    assert loaded(url) == [FIRST]
    (project / "new.part").write_bytes(second)
    (project / "new.part").rename(project / SECOND)
    wait_for(lambda: len(loaded(url)) == 2)
    result = json.loads(copy.end())
    assert loaded(url) == [FIRST, SECOND]
    assert result["us_macro"]["loaded"] == 2
    assert copy.says("us_macro: looks every 0.2 seconds")
    assert copy.says("SIGTERM: stops")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_being_loaded_at_the_signal_is_loaded_to_its_end_and_no_more(
    following: Callable[..., Copy], url: str, number: int
) -> None:
    with held_up(url):
        copy = following()
        wait_for(lambda: waits(url))
        copy.process.send_signal(number)
        wait_for(lambda: copy.says(f"{signal.Signals(number).name}: stops once us_macro is loaded"))
        with pytest.raises(subprocess.TimeoutExpired):
            copy.process.wait(1)
    assert copy.process.wait(60) == 0
    assert loaded(url) == [FIRST]
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT outcome FROM attempt").fetchall() == [("done",)]


def test_a_source_that_fails_is_tried_again_while_the_others_go_on(
    following: Callable[..., Copy], project: Path, url: str
) -> None:
    text = (project / "service.toml").read_text()
    table = text[text.index("[source.us_macro]") : text.index("# ---- What is loaded")]
    other = table.replace("us_macro", "other").replace("data/us-macro", "data/other")
    series = '[series.OTHER]\nsource = "other"\nfrequency = "month"\nunit = "1"\nrelease_lag_days = 1\n\n[target]\n'
    (project / "service.toml").write_text(text.replace(table, table + other).replace("[target]\n", series))
    copy = following()
    wait_for(lambda: copy.says("other: failed: no file matches 'data/other/*.csv'") and len(loaded(url)) == 2)
    assert copy.says("tries again at ")
    (project / "data/other").mkdir()
    (project / "data/other/2016-06-29.csv").write_text("Date,OTHER\n1/1/16,5\n")
    wait_for(lambda: len(loaded(url)) == 3)
    assert "other: " in copy.end(signal.SIGINT)


def test_a_copy_stands_by_and_takes_over_when_the_other_one_dies(following: Callable[..., Copy], url: str) -> None:
    with held_up(url):
        first = following()
        wait_for(lambda: waits(url))
        second = following()
        wait_for(lambda: second.says("us_macro: stands by, "))
        first.process.kill()
        first.process.wait()
    wait_for(lambda: len(loaded(url)) == 2)
    second.end()
    assert loaded(url) == [FIRST, SECOND]


def test_the_database_may_go_away_for_a_while(following: Callable[..., Copy], project: Path, url: str) -> None:
    second = (project / SECOND).read_bytes()
    (project / SECOND).unlink()
    copy = following()
    wait_for(lambda: len(loaded(url)) == 1)
    with psycopg.connect(url, autocommit=True) as connection:
        kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND"
        wait_for(lambda: connection.execute(f"{kill} pid <> pg_backend_pid()").fetchone() != (0,))
    (project / SECOND).write_bytes(second)
    wait_for(lambda: len(loaded(url)) == 2)
    copy.end()


def test_a_mistake_of_the_code_ends_all_with_it(project: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(follow.run, "load_dataset", broken)
    with pytest.raises(ZeroDivisionError):
        follow.follow(contracts.load(project / "service.toml"), url, project, print, lambda: None)


def test_a_source_that_has_failed_for_days_is_still_tried_again(
    contract: contracts.Contract, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow.run, "load_dataset", lambda *_, **__: (_ for _ in ()).throw(ServiceError("away")))
    dataset = next(iter(contract.source))
    one = follow.Follower(contract, "", dataset, project, print, print, threading.Event(), failures=5_000)
    assert one._round() >= follow.REST_SECONDS / 2


def test_how_often_it_looks_follows_from_the_cadence(project: Path) -> None:
    toml = project / "service.toml"
    text = toml.read_text()
    found = []
    for mine in ("cadence_days = 31", "cadence_days = 1", "cadence_days = 0.01", "cadence_days = 1\npoll_seconds = 5"):
        toml.write_text(text.replace("cadence_days = 31", mine, 1))
        found.append(contracts.load(toml).poll_seconds("us_macro"))
    assert found == [21_600, 864, 60, 5]


@pytest.mark.parametrize("words", [["--dry-run"], ["--from", "2016-01-01"], ["--correct", "1", "--reason", "x"]])
def test_following_goes_with_nothing_else(run: Run, project: Path, words: list[str]) -> None:
    code, _, messages = run("load", "--follow", *words)
    assert code == 2
    assert "--follow loads what comes: leave out" in messages


def test_a_wrong_declaration_is_said_at_once(
    run: Run, project: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    toml = project / "service.toml"
    toml.write_text(toml.read_text().replace('layout = "wide"', 'layot = "wide"', 1))
    code, _, messages = run("load", "--follow")
    assert code == 2
    assert "did you mean 'layout'" in messages
