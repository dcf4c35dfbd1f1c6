"""Faults placed exactly in the loads of one database: where to stop a run, what to do to it, what must stand then."""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from crash_oracle import Provider, Verdict, Vintage, committed, judge
from crash_proxy import COMMIT, Proxy, Stop
from crash_server import FLUSH, LOGIN, MIDDLE, RECORD, STOPS, Process, Runner, Server, SmallServer, until

KEPT_FILES = 12  # that stay in the provider's folder once they are loaded
RIVALS = 0.05  # of the runs that stand still, met by a second copy
WRITTEN = b"INSERT INTO load "
ENDED = "renewing statistics"  # the attempt is written off as done by then
PLACES: dict[str, dict[str, Callable[[], Stop] | tuple[int, ...]]] = {
    "fetch": {
        "comparing with what was seen": lambda: Stop("before", b"FROM resource"),
        "keeping the bytes": lambda: Stop("before", b"INSERT INTO raw_object"),
    },
    "stage": {"half of COPY sent": lambda: Stop("half", b"FROM STDIN (FORMAT ", b"d\x00")},
    "insert": {"amid the rows of a statement": (MIDDLE,)},
    "before COMMIT": {"COMMIT not sent": lambda: Stop("before", WRITTEN, COMMIT)},
    "inside COMMIT": {"before its record": (RECORD,), "record on disk, no answer": (RECORD, FLUSH)},
    "after COMMIT": {
        "answer lost": lambda: Stop("answer", WRITTEN, COMMIT),
        "answer heard": lambda: Stop("before", WRITTEN, COMMIT, b"INSERT INTO resource"),
        ENDED: lambda: Stop("before", WRITTEN, COMMIT, b"VACUUM"),
    },
}
DROP = """CREATE FUNCTION drop_row() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN {} END $$;
CREATE TRIGGER drop_row {} ON observation {} EXECUTE FUNCTION drop_row()"""
DROPS = {
    "before it is inserted": DROP.format(
        "IF current_setting('crash.dropped', true) = 'yes' THEN RETURN NEW; END IF;"
        " PERFORM set_config('crash.dropped', 'yes', true); RETURN NULL;",
        "BEFORE INSERT", "FOR EACH ROW"),
    "after it was inserted": DROP.format(
        "DELETE FROM observation WHERE (series_id, valid_time, known_from, load_id) IN (SELECT series_id, valid_time,"
        " known_from, load_id FROM observation ORDER BY load_id DESC LIMIT 1); RETURN NULL;",
        "AFTER INSERT", "FOR EACH STATEMENT"),
}  # fmt: skip
SEEN = (
    "SELECT state, coalesce(wait_event_type || ' ' || wait_event, ''), query FROM pg_stat_activity"
    " WHERE usename = %s AND datname = current_database() ORDER BY backend_start DESC LIMIT 1"
)


@dataclass
class Fault:
    """What was done, where, what the server said of the loader just then, and what stood in the store after it."""

    kind: str
    phase: str
    place: str
    state: str = ""
    waits: str = ""
    query: str = ""
    status: int | None = None
    committed: bool = False
    whole: bool = False
    seconds: float = 0.0

    def fits(self) -> bool:
        """Whether the server's own view of the loader agrees with the phase."""
        inside = self.state == "active" and self.query == "COMMIT"
        return {
            "fetch": "observation" not in self.query and "stage" not in self.query and not self.committed,
            # What comes late is staged; of the newest vintage what is news goes to its place at once.
            "stage": self.query.startswith(("COPY stage", "COPY observation")) and self.state == "active",
            "insert": " observation" in self.query and self.waits == "Lock advisory",
            "before COMMIT": self.state == "idle in transaction" and not self.committed,
            "inside COMMIT": inside and self.waits in ("Lock advisory", "IPC SyncRep"),
            "after COMMIT": self.state == "idle" and self.committed,
        }[self.phase]


class Campaign:
    """Faults one after the other on a database of its own; the loader is reached through the proxy only."""

    def __init__(self, server: Server, source: Path, work: Path, seed: int, naive: bool = False, **size: int) -> None:
        self.server, self.work, self.naive = server, work, naive
        self.random, self.database = random.Random(seed), f"crash_{work.name}"
        self.proxy, self.provider = Proxy(server.port), Provider(work, seed, **size)
        self.delivered: list[Vintage] = []
        self.verdict, self.faults, self.loads = Verdict(), list[Fault](), 0
        self.release: Callable[[], object] = self.proxy.cut  # lets the run that stands still go on
        self.runner = Runner(work, source, naive)
        with server.connect("postgres") as admin:
            admin.execute(f'CREATE DATABASE "{self.database}"')
        self.admin = server.connect(self.database)
        self._prepare()

    def _prepare(self) -> None:
        """The product's own migration and first load, then the places to stop at."""
        done = self.runner.start(self.server.url(self.database, self.server.port), "migrate")
        assert not done.wait(), done.said()
        login = f"CREATE ROLE {LOGIN} LOGIN PASSWORD '{self.server.password}' IN ROLE model_loader, model_reader"
        if not self.admin.execute("SELECT FROM pg_roles WHERE rolname = %s", [LOGIN]).rowcount:
            self.admin.execute(login)
        if self.naive:  # what the product does on its first load
            self.admin.execute(
                "INSERT INTO series (dataset, name, frequency, unit)"
                " SELECT 'provider', unnest(%s::text[]), 'month', '1'",
                [self.provider.names],
            )
        self.deliver()
        self.heal()
        assert self.verdict, self.verdict.wrong
        asked = "SELECT series_id FROM series WHERE name = %s"
        number = self.admin.execute(asked, [self.provider.middle]).fetchone()[0]
        self.admin.execute(STOPS.replace("%s", str(number)))

    def deliver(self) -> Vintage:
        vintage = self.provider.deliver()
        self.delivered.append(vintage)
        return vintage

    def load(self) -> Process:
        self.loads += 1
        url = self.server.url(self.database, self.proxy.port, LOGIN)
        return self.runner.start(url, "load", "--json")

    def heal(self) -> None:
        """Loads again, undisturbed: it must succeed, and all that was delivered must be there once."""
        done = self.load()
        if status := done.wait():
            self.verdict.wrong.append(f"load {done.log.name} after a fault: exit {status}: {done.said()[-300:]}")
        elif '"held"' in done.printed():
            self.verdict.wrong.append(f"load {done.log.name} found the dataset held by a copy that is gone")
        if not self.naive:
            self.verdict.add(judge(self.admin, self.delivered, must=True))
            for vintage in self.delivered[:-KEPT_FILES]:
                (self.work / vintage.name).unlink(missing_ok=True)

    def strike(self, fault: Fault) -> bool:
        """Stops a run at the fault's place, does the harm, judges what stands. False: the run never came there."""
        begun = time.monotonic()
        self.deliver()
        before = committed(self.admin).total()
        with self.stopped(fault) as run:
            if run is None:
                return False
            fault.state, fault.waits, fault.query = self.admin.execute(SEEN, [LOGIN]).fetchone() or ("", "", "")
            fault.query = " ".join(fault.query.split())
            fault.committed = committed(self.admin).total() > before
            if not self.naive and self.random.random() < RIVALS:
                self.rival(run, fault)
            self.harm(fault.kind, run)
        fault.status = run.wait()
        self.settle()
        if "Traceback" in run.said():
            self.verdict.wrong.append(f"{fault}: {run.said()[-600:]}")
        fault.committed = committed(self.admin).total() > before
        stands = judge(self.admin, self.delivered, must=False)
        fault.whole, fault.seconds = bool(stands), round(time.monotonic() - begun, 3)
        if not self.naive:
            self.verdict.add(stands)
        self.faults.append(fault)
        return True

    def rival(self, run: Process, fault: Fault) -> None:
        """A second copy, while the first is at it: it says whose the dataset is, does nothing and is content."""
        done = self.load()
        self.loads -= 1  # it leaves no attempt behind
        owner = "" if fault.place == ENDED else f":{run.pid} since"
        if done.wait() or '"held"' not in done.printed() or owner not in done.printed():
            self.verdict.wrong.append(f"a second copy did not stand back: {done.printed()} {done.said()[-300:]}")

    @contextmanager
    def stopped(self, fault: Fault) -> Iterator[Process | None]:
        """A run that stands at the fault's place, or None where it ended without coming there."""
        place = PLACES[fault.phase][fault.place]
        if not isinstance(place, tuple):
            self.proxy.stop = stop = place()
            self.release = stop.go.set
            run = self.load()
            until(lambda: stop.reached.is_set() or run.poll() is not None, f"{fault.place}")
            yield run if stop.reached.is_set() else None
            self.proxy.cut()
            return
        holder = self.server.connect(self.database)
        self.release = holder.close
        for lock in place:
            holder.execute("SELECT pg_advisory_lock(%s)", [lock])
        run = self.load()
        asked = "SELECT FROM pg_stat_activity WHERE usename = %s AND wait_event = %s"

        def waits(event: str) -> bool:
            return self.admin.execute(asked, [LOGIN, event]).rowcount > 0 or run.poll() is not None

        until(lambda: waits("advisory"), fault.place)
        if FLUSH in place:
            holder.execute("SELECT pg_advisory_unlock(%s)", [RECORD])
            until(lambda: waits("SyncRep"), fault.place)
        yield run if run.poll() is None else None
        self.proxy.cut()
        holder.close()

    def settle(self) -> None:
        """The server is up, what the dead loader left there has ended."""
        self.proxy.target = self.server.port
        gone = "SELECT FROM pg_stat_activity WHERE usename = %s AND datname = current_database()"
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s AND wait_event = 'SyncRep'"
        until(lambda: [self.admin.execute(end, [LOGIN])] and not self.admin.execute(gone, [LOGIN]).rowcount, "its end")

    def harm(self, kind: str, run: Process) -> None:
        """Does it to the run that stands still; whatever was harmed is up again after it."""
        if kind == "client killed":
            os.kill(run.pid, signal.SIGKILL)
        elif kind == "server killed":
            self.server.kill()
            run.wait()
            self.server.start()
        elif kind == "network cut":
            self.proxy.cut()
        elif isinstance(self.server, SmallServer):
            (self.server.fill_log if kind == "log full" else self.server.fill)()
            self.release()
            run.wait()
            self.server.free()
        run.wait()
        if kind not in ("client killed", "network cut"):
            self.admin = self.server.connect(self.database)

    def _attempts(self) -> tuple[int, int]:
        """Runs that the store shows, and those among them that did not end well."""
        late = sum(one.place == ENDED for one in self.faults)
        broken = "SELECT count(*), count(*) FILTER (WHERE coalesce(outcome, 'failed') = 'failed') FROM attempt"
        every, bad = self.admin.execute(broken).fetchone()
        return every, bad + late

    def drop_row(self, fault: Fault) -> None:
        """A row that was staged does not arrive, or goes again: the load must not commit."""
        self.deliver()
        self.admin.execute(DROPS[fault.place])
        done = self.load()
        fault.status = done.wait()
        self.admin.execute("DROP FUNCTION drop_row CASCADE")
        fault.committed = not fault.status
        stands = judge(self.admin, self.delivered, must=False)
        fault.whole = bool(stands) and "Traceback" not in done.said()
        self.verdict.add(stands)
        self.faults.append(fault)

    def finish(self) -> None:
        """What is asked of the whole at the end: the product's own doctor, and every run that ever began."""
        self.heal()
        done = self.runner.start(self.server.url(self.database, self.server.port), "doctor", "--json")
        done.wait()
        found = {one["check"]: one for one in json.loads(done.printed() or "[]")}
        if found.get("ledger", {}).get("state") != "ok":
            self.verdict.wrong.append(f"doctor: {found.get('ledger', done.said()[-300:])}")
        if self.naive:
            self.verdict = judge(self.admin, self.delivered, must=True)
        elif (seen := self._attempts()) != (self.loads, len(self.faults)):
            self.verdict.wrong.append(f"{self.loads} runs, {len(self.faults)} broken; the store shows {seen}")
        self.admin.close()
        self.runner.close()
