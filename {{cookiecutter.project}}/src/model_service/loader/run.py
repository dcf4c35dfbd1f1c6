"""One run over the sources of `service.toml`: claim, fetch, keep the bytes, parse, commit; one load per payload."""

import os
import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import psycopg
from pydantic import BaseModel

from model_service import digests, freshness
from model_service.contract import Contract, Series
from model_service.errors import Blocked, ServiceError, UsageError
from model_service.loader import ALWAYS, Ask, Cell, Payload, Reject, Window, checks, sources
from model_service.loader.kept import Reader
from model_service.loader.web import Web
from model_service.periods import instant
from model_service.settings import current_user
from model_service.store import ledger, provider, quarantine, raw
from model_service.store.connection import Connection, connect
from model_service.store.observations import Batches, Landing, series_ids

Result = dict[str, Any]
Say = Callable[[str], None]
Records = Callable[[], Iterator[Cell | Reject]]  # reads a payload from its beginning


def load(
    contract: Contract, url: str, root: Path, say: Say, dry: bool = False, window: Window = ALWAYS
) -> list[Result]:
    """Loads every source, or its part in `window`; returns one record per payload: dataset, file, outcome, counts.

    Outcome is `loaded`, `nothing new` (these bytes are committed), `blocked` by a check, or `held` (another copy is at
    it). `dry` says what a load would do and does nothing. Raises UsageError for options that this loader does not know,
    SourceError for what cannot be fetched or split.
    """
    return [result for name in contract.source for result in load_dataset(contract, url, name, root, say, dry, window)]


def load_dataset(
    contract: Contract, url: str, dataset: str, root: Path, say: Say, dry: bool = False, window: Window = ALWAYS,
    until: Event | None = None, turn: AbstractContextManager[Any] = nullcontext(),  # noqa: B008  it holds nothing
) -> list[Result]:  # fmt: skip
    """Loads one source, as `load` does. `until`: no payload is begun once it is set; `turn` is held for each."""
    source, options = sources.reader(contract, dataset)
    with connect(url, "loader") as connection, ledger.claim(connection, dataset) as holder:
        if holder:
            if until is None:
                say(f"{dataset}: {holder} is at it; nothing to do here")
            return [{"dataset": dataset, "outcome": "held", "by": holder}]
        run = Run(connection, contract, dataset, source, options, say, dry)
        done: list[Result] = []
        with run.attempt() as ended:
            for payload in source.fetch(options, run.ask(root, window, until)):
                with turn:
                    if until and until.is_set():
                        break
                    done.append(run.payload(payload))
            outcomes = {result["outcome"] for result in done}
            ended["detail"] = f"{len(done)} payloads"
            ended["outcome"] = "blocked" if "blocked" in outcomes else "done" if "loaded" in outcomes else "nothing new"
        fresh = freshness.of(connection, contract, dataset, datetime.now(UTC))
        if any(fresh.states.values()):
            say(f"{dataset}: {fresh.says}")
        if "loaded" in outcomes:
            renew(connection, say)
    return [result | {"stale": fresh.states} for result in done]


def reprocess(contract: Contract, url: str, load_id: int, kind: str, reason: str, say: Say) -> Result:
    """Reads the kept bytes of a load once more under today's service.toml, as a load of its own.

    `correction` takes the place of what that load brought; `retry` brings what it had to put in quarantine.
    Raises UsageError: no such load; Blocked: a check refuses; ServiceError: another copy is at it.
    """
    with connect(url, "loader") as connection:
        found = ledger.first_hand(connection, load_id)
        dataset = found["dataset"]
        if dataset not in contract.source:
            raise UsageError(f"load {load_id} is of {dataset!r}, which service.toml no longer names")
        with ledger.claim(connection, dataset) as holder:
            if holder:
                raise ServiceError(f"{dataset}: {holder} is at it; try again when it is done")
            run = Run(connection, contract, dataset, *sources.reader(contract, dataset), say)
            with run.attempt() as ended:
                result = run.again(found, kind, reason)
                ended |= {"outcome": "done" if result["outcome"] == "loaded" else result["outcome"],
                          "detail": f"{kind} of load {load_id}"}  # fmt: skip
            renew(connection, say)
    if result["outcome"] == "blocked":
        raise Blocked(f"a check refuses the {kind} of load {load_id}: see `load show {result['load_id']}`")
    return result


@dataclass
class Run:
    """A claimed dataset and what its payloads are read by. `head` is where its watermark was seen last."""

    connection: Connection
    contract: Contract
    dataset: str
    source: sources.Kind
    options: BaseModel
    say: Say
    dry: bool = False
    series: dict[str, Series] = field(init=False)
    kept: Reader = field(init=False)
    rules: dict[str, Any] = field(init=False)
    rules_hash: str = field(init=False)
    head: int | None = field(init=False)

    def __post_init__(self) -> None:
        self.series = self.contract.of_source(self.dataset)
        self.kept = Reader(self.connection, self.source, self.options, self.series)
        self.rules = {
            "kind": self.contract.source[self.dataset].kind,
            "options": self.options.model_dump(mode="json", by_alias=True, exclude_unset=True),
            "series": {name: checks.rules_of(one) for name, one in self.series.items()},
        }
        # Where the bytes come from does not change what they say.
        elsewhere = {"path", "index", "login", *Web.model_fields}
        read_by = {name: value for name, value in self.rules["options"].items() if name not in elsewhere}
        read_as = {"options": read_by, "series": self.rules["series"]}
        self.rules_hash = digests.of_json([read_as, self.source.PARSER_VERSION])
        self.head = ledger.watermark(self.connection, self.dataset)

    def ask(self, root: Path, window: Window, until: Event | None = None) -> Ask:
        def newest(series: str) -> datetime | None:
            return ledger.newest(self.connection, self.dataset, [series], None)

        positions = partial(provider.positions, self.connection, self.dataset)
        return Ask(root, window, self.series, newest, positions, provider.Pace(self.connection), self.mark, until)

    def mark(self, name: str) -> str:
        return ledger.mark(self.connection, self.dataset, name, self.rules_hash)

    def attempt(self) -> AbstractContextManager[dict[str, str]]:
        if self.dry:
            return nullcontext({})
        return ledger.attempt(self.connection, self.dataset, f"{socket.gethostname()}:{os.getpid()}")

    def payload(self, payload: Payload) -> Result:
        """Loads one payload, unless it looks as it did last time, or its bytes are committed under these rules."""
        result: Result = {"dataset": self.dataset, "file": payload.name}
        if payload.mark and payload.mark == self.mark(payload.name):
            self.say(f"{payload.name}: nothing new (it was not changed since)")
            return result | {"outcome": "nothing new"}
        started, sha256 = datetime.now(UTC), raw.sha256_of(payload.path)
        # Without a vintage, bytes that were replaced and come back are news: what is known changes again.
        turn = 0 if payload.vintage else ledger.times_replaced(self.connection, self.dataset, payload.name, sha256)
        request = {"file": payload.name, "vintage": payload.vintage.isoformat() if payload.vintage else ""}
        key = digests.of_json([self.dataset, request, sha256, self.rules_hash, turn])
        if ledger.committed(self.connection, key):
            self.say(f"{payload.name}: nothing new")
            if self.head and not self.dry:
                provider.move(self.connection, self.dataset, payload.moves, self.head)
            self._remember(payload)
            return result | {"outcome": "nothing new", "sha256": sha256}
        if not self.dry:
            raw.keep(self.connection, payload.path, sha256, payload.media_type)
        entry = ledger.Entry(
            dataset=self.dataset, load_key=key, request=request, payload_sha256=sha256, rules=self.rules,
            rules_hash=self.rules_hash, parser_version=self.source.PARSER_VERSION, code_version=digests.of_code(),
            started_at=started, observed_at=started, scope=list(payload.series or self.series),
            complete=payload.complete,
        )  # fmt: skip
        found = self._commit(entry, partial(self._parsed, payload, sha256), payload=payload)
        if found["outcome"] == "loaded":
            self._remember(payload)
        return result | {"sha256": sha256} | found

    def _parsed(self, payload: Payload, sha256: str) -> Iterator[Cell | Reject]:
        """Raises ServiceError at the end when the bytes are others than those that were kept."""
        yield from self.source.parse(payload, self.options, self.series)
        if raw.sha256_of(payload.path) != sha256:
            raise ServiceError(f"{payload.name}: was written to while it was read; nothing was committed: run again")

    def again(self, found: dict[str, Any], kind: str, reason: str) -> Result:
        """Loads what `found`, a row of the ledger, kept, as a correction or a retry of it."""
        last, last_rules = ledger.last_reading(self.connection, found["load_id"])
        taken = quarantine.waiting(self.connection, found["load_id"], kind)
        wanted = taken if kind == "retry" else None
        if wanted == {}:
            self.say(f"{found['request']['file']}: nothing of load {found['load_id']} waits in quarantine")
            return {"outcome": "nothing new"}
        if kind == "correction" and last_rules == self.rules_hash:
            self.say(f"{found['request']['file']}: load {last} read it by these rules: mend service.toml first")
            return {"outcome": "nothing new"}
        unknown = not found["complete"] and any(name is None for _, name in taken)  # whom it speaks of, then
        entry = ledger.Entry(
            dataset=self.dataset, load_key=digests.of_json([found["load_key"], kind, last, sorted(taken.values())]),
            request=found["request"], payload_sha256=found["payload_sha256"], rules=self.rules,
            rules_hash=self.rules_hash, parser_version=self.source.PARSER_VERSION, code_version=digests.of_code(),
            started_at=datetime.now(UTC), observed_at=found["observed_at"],
            scope=list(self.series) if unknown or not found["scope"] else found["scope"],
            complete=found["complete"] and kind == "correction", kind=kind, origin=found["load_id"], who=current_user(),
            reason=reason,
        )  # fmt: skip
        return self._commit(entry, partial(self.kept.records, found, wanted), taken.values())

    def _commit(
        self, entry: ledger.Entry, records: Records, taken: Collection[int] = (), payload: Payload | None = None
    ) -> Result:
        """One transaction: all of the load; or, when a check blocks it, its ledger row and the checks alone."""
        with self.connection.transaction(force_rollback=self.dry):
            load_id = ledger.next_load_id(self.connection)
            with self.connection.transaction() as rows:
                landing, counts, results = self._land(load_id, entry, records)
                blocked = any(one.action == "block" and not one.ok for one in results)
                if blocked:
                    raise psycopg.Rollback(rows)
                late = landing.late(lambda: ledger.next_load_id(self.connection))
            marked = any(one.action == "mark" and not one.ok for one in results)
            status = "blocked" if blocked else "marked" if marked else "committed"
            known = [instant(one) for one in landing.moments] + [entry.moment] * entry.complete
            known += [payload.until] if payload and payload.until else []
            ended = replace(entry, known_first=min(known, default=None), known_last=max(known, default=None))
            ledger.write(self.connection, load_id, ended, counts, status)
            ledger.write_checks(self.connection, load_id, results)
            if not blocked:
                for said_by, (number, count) in late.items():
                    ledger.write_late(self.connection, number, said_by, load_id, count)
                if taken:
                    quarantine.settle(self.connection, taken, "replay", load_id, str(entry.reason))
                ledger.advance(self.connection, self.dataset, entry.request["file"], load_id, self.head)
                provider.move(self.connection, self.dataset, payload.moves if payload else {}, load_id)
                ledger.name_data_version(self.connection)
        if not blocked and not self.dry:
            self.head = load_id
        return self._report(load_id, entry, counts, status, results)

    def _land(
        self, load_id: int, entry: ledger.Entry, records: Records
    ) -> tuple[Landing, ledger.Counts, list[checks.Result]]:
        ids = series_ids(self.connection, self.dataset, self.series)
        file, rejected = entry.request["file"], 0
        said = partial(self.kept.statements, entry, ids)
        landing = Landing(
            self.connection, load_id, said,
            newest=ledger.newest(self.connection, self.dataset, entry.scope, entry.corrects),
            scope=[ids[name] for name in entry.scope if name in ids],
            complete=entry.moment if entry.complete else None,
            before=list(said(only=entry.corrects)) if entry.corrects else [],
            vintage=ledger.vintage_of(entry.request),
        )  # fmt: skip

        def cells() -> Batches:
            nonlocal rejected
            for good, bad in checks.check_cells(records(), ids, self.series, entry.observed_at):
                rejected += quarantine.keep(self.connection, load_id, file, bad)
                yield good

        landing.stage(cells())
        landing.land()
        conflicts = [
            Reject(name, line, value, "vintage_conflict", detail, valid_time)
            for line, name, valid_time, value, detail in landing.conflicts()
        ]
        if conflicts:
            conflicts = list(checks.as_written(conflicts, records()))
        quarantine.keep(self.connection, load_id, file, conflicts)
        landed = {name: landing.landed[name] for name in ("new", "changed", "same", "deleted", "vanished")}
        counts = ledger.Counts(landing.fetched + rejected, quarantined=rejected + len(conflicts), **landed)
        known = instant(max(landing.moments)) if landing.moments else None
        judged = dict(landing.landed)
        if entry.kind != "fetch":
            judged["vanished"] = 0  # a person takes it back, whatever its share
        return landing, counts, checks.check_load(self.connection, self.contract, self.dataset, load_id, judged, known)

    def _report(
        self, load_id: int, entry: ledger.Entry, counts: ledger.Counts, status: str, results: list[checks.Result]
    ) -> Result:
        shown = {name: value for name, value in vars(counts).items() if value or name != "vanished"}
        figures = ", ".join(f"{value:,} {name}" for name, value in shown.items())
        self.say(f"{entry.request['file']}: {'would be ' if self.dry else ''}{figures}")
        for one in results:
            if not one.ok:
                self.say(f"  {one.action}: {one.rule} of {one.subject}: {one.detail}")
        outcome = "blocked" if status == "blocked" else "would load" if self.dry else "loaded"
        failed = [vars(one) for one in results if not one.ok]
        return {"outcome": outcome, "load_id": load_id, **vars(counts), "failed_checks": failed}

    def _remember(self, payload: Payload) -> None:
        if payload.mark and not self.dry:
            ledger.remember(self.connection, self.dataset, payload.name, payload.mark, self.rules_hash)


def renew(connection: Connection, say: Say) -> None:
    """Statistics and visibility after a load, outside its transaction: reads right after it are as fast as later."""
    try:
        connection.execute("VACUUM (ANALYZE) observation")
    except psycopg.Error as error:
        say(f"statistics were not renewed, reads may be slower until autovacuum does: {str(error).splitlines()[0]}")
