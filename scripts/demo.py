"""From the default answers to a served forecast, each phase timed. `make demo` runs it; ONCE=1 stops at the end.

Everything it makes is under build/. It replaces build/PROJECT only where an earlier run made it.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
TOOLS = Path(sys.executable).parent  # not resolved: the environment's own folder
LOGS = BUILD / "demo"
MARK = ".git/made-by-make-demo"  # holds the process that serves from there
READY_WITHIN = 60.0  # seconds
# What belongs to this make, or to a project outside, must not reach the baked one.
FOREIGN = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "VIRTUAL_ENV", "PYTHONPATH", "ONCE", "DATABASE_URL")


class Failed(Exception):
    """A phase did not work; the text says what to look at."""


class Demo:
    """One run: the project's folder, its environment, and the service once it is started."""

    def __init__(self, started: float) -> None:
        name = json.loads((ROOT / "cookiecutter.json").read_text("utf-8"))["project"]
        self.project = BUILD / name
        self.started = started
        self.service: subprocess.Popen[bytes] | None = None
        self.env = {key: value for key, value in os.environ.items() if key not in FOREIGN}
        self.env |= {"UV": str(TOOLS / "uv"), "ENVIRONMENT": "development"}
        for who in ("AUTHOR", "COMMITTER"):
            self.env |= {f"GIT_{who}_NAME": "make demo", f"GIT_{who}_EMAIL": "demo@localhost"}

    def run(self, phase: str, *command: str | Path, cwd: Path | None = None, **env: str) -> None:
        """Runs a command with its output in a log. Raises Failed with the log's end."""
        log = LOGS / f"{phase}.log"
        with log.open("ab") as file:
            words = [str(part) for part in command]
            done = subprocess.run(words, cwd=cwd or self.project, env=self.env | env, stdout=file, stderr=file)
        if done.returncode:
            raise Failed(f"{phase} failed (exit {done.returncode}): {' '.join(words)}\n{_end(log)}")

    def bake(self) -> None:
        """Bakes with a HOME of its own, so that a user's ~/.cookiecutterrc changes nothing."""
        if self.project.exists():
            mark = self.project / MARK
            if not mark.is_file():
                raise Failed(f"{self.project} exists and was not made by make demo: move it away and run again")
            if _alive(mark.read_text("utf-8").strip()):
                raise Failed(f"{self.project} is being served by another make demo: stop that one first (Ctrl-C)")
            shutil.rmtree(self.project)
        command: list[str | Path] = [
            TOOLS / "cookiecutter",
            "--no-input",
            "--default-config",
            "--output-dir",
            BUILD,
            ROOT,
        ]
        self.run("bake", *command, cwd=ROOT, HOME=str(LOGS))

    def commit(self) -> None:
        """Puts the project into a git repository of its own, whatever the user's git is configured to do."""
        git = ["git", "-c", "init.defaultBranch=main", "-c", "commit.gpgSign=false", "-c", "core.hooksPath=/dev/null"]
        self.run("commit", *git, "init", "--quiet")
        (self.project / MARK).write_text("", "utf-8")
        self.run("commit", *git, "add", "--all")
        self.run("commit", *git, "commit", "--quiet", "--message", "Baked from the template")

    def serve(self) -> str:
        """Starts the service on a free port and waits until it is ready; gives its address."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        (self.project / MARK).write_text(str(os.getpid()), "utf-8")
        log, address = LOGS / "serve.log", f"http://127.0.0.1:{port}"
        with log.open("ab") as file:
            self.service = subprocess.Popen(
                ["make", "serve"],
                cwd=self.project,
                env=self.env | {"PORT": str(port)},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,  # one group, stopped as a whole
            )
        end = time.monotonic() + READY_WITHIN
        while time.monotonic() < end:
            if self.service.poll() is not None:
                raise Failed(f"serve failed (exit {self.service.returncode})\n{_end(log)}")
            with suppress(OSError), urllib.request.urlopen(f"{address}/readyz", timeout=5):
                return address
            time.sleep(0.1)
        raise Failed(f"serve failed: {address}/readyz did not answer within {READY_WITHIN:.0f} s\n{_end(log)}")

    def stop(self) -> None:
        """Stops the service, all that it started, and the database that served it."""
        if self.service is None:
            return
        for number, patience in ((signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0)):
            with suppress(ProcessLookupError):
                os.killpg(self.service.pid, number)
            if _until(self._stopped, patience):
                break
        database = self.project / ".local/postgres/postmaster.pid"
        if not _until(lambda: not database.exists(), 5.0):
            with suppress(OSError, ValueError, IndexError):
                os.kill(int(database.read_text("utf-8").split()[0]), signal.SIGINT)
            _until(lambda: not database.exists(), 10.0)
        (self.project / MARK).write_text("", "utf-8")

    def _stopped(self) -> bool:
        assert self.service is not None
        self.service.poll()
        try:
            os.killpg(self.service.pid, 0)
        except ProcessLookupError:
            return True
        return False


def _alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return int(process) != os.getpid()


def _until(true: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _end(log: Path, lines: int = 25) -> str:
    text = log.read_text("utf-8", "replace").splitlines()[-lines:]
    return "\n".join([*(f"  | {line}" for line in text), f"  whole log: {log}"])


def ask(url: str) -> dict[str, Any]:
    """The service's answer. Raises Failed with its problem document, or when nothing answers."""
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        raise Failed(f"GET {url}: {error.code}\n{error.read().decode('utf-8', 'replace')}") from None
    except (OSError, ValueError) as error:
        raise Failed(f"GET {url}: {error}") from None


def table(answer: dict[str, Any], url: str) -> str:
    """The forecast for people: a row a horizon, then where it comes from."""
    rows = [["horizon", "period", answer["unit"], "80 %", "95 %"]]
    for row in answer["forecasts"]:
        levels = {step["level"]: f"{step['lower']:.2f} to {step['upper']:.2f}" for step in row["intervals"] or []}
        numbers = [f"{row['value']:.2f}", levels.get(0.8, "-"), levels.get(0.95, "-")]
        rows.append([str(row["horizon"]), row["valid_time"][:7], *numbers])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  " + "   ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    clocks, model = answer["as_of"], answer["model"]
    facts = {
        "target": answer["target"],
        "model": f"version {model['version']}, {model['digest'][:19]}, trained as of {model['trained_as_of']}",
        "as of": f"{clocks['known_at']}, data {clocks['data_version'][:19]}",
        "url": url,
    }
    return "\n".join([*lines, "", *(f"  {name:8}{value}" for name, value in facts.items())])


def phase(name: str, begun: float) -> float:
    """Prints what a phase took; gives the time at which the next one begins."""
    now = time.time()
    print(f"  {name:14}{now - begun:6.1f} s", flush=True)
    return now


def perform(demo: Demo, once: bool) -> None:
    """All phases in turn, then the table; waits for Ctrl-C unless `once`."""
    shutil.rmtree(LOGS, ignore_errors=True)
    LOGS.mkdir(parents=True)
    now = phase("environment", demo.started)
    steps: dict[str, Callable[[], None]] = {
        "bake": demo.bake,
        "commit": demo.commit,
        "setup": lambda: demo.run("setup", "make", "setup"),
        "load": lambda: demo.run("load", "make", "load"),
        "train + gate": lambda: demo.run("train", "make", "train"),
        "build": lambda: demo.run("build", "make", "build"),
    }
    for name, step in steps.items():
        step()
        now = phase(name, now)
    address = demo.serve()
    now = phase("serve", now)
    url = f"{address}/v1/forecast"
    answer = ask(url)
    phase("forecast", now)
    phase("total", demo.started)
    print(f"\n{table(answer, url)}\n", flush=True)
    if not once:
        print(f"  Serving at {address}, its pages at {address}/docs. Ctrl-C stops it.", flush=True)
        assert demo.service is not None
        demo.service.wait()
        raise Failed(f"the service stopped by itself\n{_end(LOGS / 'serve.log')}")


def main() -> int:
    """0 when the forecast was served, 1 when a phase failed."""
    once = os.environ.get("ONCE", "") not in ("", "0")
    demo = Demo(float(os.environ.get("DEMO_STARTED") or time.time()))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        perform(demo, once)
    except Failed as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\n  Stopping.", flush=True)
    finally:
        demo.stop()
    print(f"  The project stays in {demo.project.relative_to(ROOT)}: cd there, and `make help`.", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
