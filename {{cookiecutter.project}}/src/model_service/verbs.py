"""What each word of the command line does: it runs one thing, prints what came of it, and gives the exit code.

A verb imports what it needs itself: the loader's container holds neither training nor serving packages.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import psycopg

from model_service import contract, listing, settings
from model_service.errors import Blocked, ServiceError, UsageError
from model_service.store import ledger, quarantine
from model_service.store.connection import connect, database

T = TypeVar("T")
Connection = psycopg.Connection[Any]


def say(line: str) -> None:
    """To people, on standard error; results go to standard output."""
    print(line, file=sys.stderr, flush=True)


def _contract() -> contract.Contract:
    return contract.load(settings.root() / settings.CONTRACT)


def _print(arguments: Namespace, result: Any, text: str) -> None:
    print(json.dumps(result, indent=1, default=str) if arguments.json else text)


def migrate(arguments: Namespace) -> None:
    from model_service.store.migrate import migrate

    with database() as url:
        applied = migrate(url, _contract())
    _print(arguments, applied, "\n".join(f"applied {name}" for name in applied) or "nothing to migrate")


def load(arguments: Namespace) -> int:
    from model_service.loader import Window, run

    if (arguments.correct is None) != (arguments.reason is None):
        raise UsageError("--correct LOAD and --reason TEXT go together")
    window = Window(arguments.first, arguments.last)
    if arguments.correct is not None:
        if arguments.dry_run or window != Window():
            raise UsageError("--correct reads the kept bytes of one load: leave out --dry-run, --from and --to")
        with database() as url:
            return _again(arguments, url, arguments.correct, "correction")
    if arguments.first and arguments.last and arguments.first > arguments.last:
        raise UsageError(f"--from {arguments.first} lies after --to {arguments.last}")
    declared = _contract()
    with database() as url:
        results = run.load(declared, url, settings.root(), say, arguments.dry_run, window)
        outcomes = [result["outcome"] for result in results]
        if "loaded" in outcomes:
            _record_forecast(declared, url)
    done, says = ("would load", "would be loaded") if arguments.dry_run else ("loaded", "loaded")
    text = f"{outcomes.count(done)} of {len(outcomes) - outcomes.count('held')} payloads {says}"
    _print(arguments, results, text if outcomes else "there is no payload in this window")
    return Blocked.exit_code if "blocked" in outcomes else 0


def _again(arguments: Namespace, url: str, number: int, kind: str) -> int:
    from model_service.loader import run

    declared = _contract()
    result = run.again(declared, url, number, kind, arguments.reason, say)
    text = result["outcome"]
    if text == "loaded":
        _record_forecast(declared, url)
        text = f"load {result['load_id']}: {kind} of load {number}; `trace --affected {number}` says what rests on that"
    _print(arguments, result, text)
    return 0


def data(arguments: Namespace) -> None:
    """What was known of some series by both clocks, as CSV: an empty value is one that the provider calls missing."""
    from model_service.store import read

    declared = _contract().series
    names = arguments.series or list(declared)
    if unknown := [name for name in names if name not in declared]:
        raise UsageError(f"no series {unknown[0]!r} in service.toml{contract.nearest(unknown[0], declared)}")
    with database() as url, connect(url) as connection:
        loads = read.data_version(connection, arguments.data_version).loads
        found = read.as_of(connection, names, arguments.as_of or datetime.now(UTC), loads)
    rows = [
        (name, str(valid_time)[:10], None if value != value else float(value))
        for name, values in found.items()
        for valid_time, value in values.tolist()
    ]
    lines = [f"{name},{period},{'' if value is None else repr(value)}" for name, period, value in rows]
    _print(arguments, rows, "\n".join(["series,period,value", *lines]))


def load_list(arguments: Namespace) -> None:
    if arguments.dataset is not None and arguments.dataset not in (declared := _contract().source):
        hint = contract.nearest(arguments.dataset, declared)
        raise UsageError(f"no source {arguments.dataset!r} in service.toml{hint}")
    _show(arguments, lambda connection: listing.loads(connection, arguments.dataset), listing.loads_text)


def load_show(arguments: Namespace) -> None:
    _show(arguments, lambda connection: listing.load(connection, arguments.load), listing.load_text)


def quarantine_list(arguments: Namespace) -> None:
    asked = arguments.open, arguments.load, arguments.rule
    _show(arguments, lambda connection: listing.quarantined(connection, *asked), listing.quarantined_text)


def quarantine_show(arguments: Namespace) -> None:
    _show(arguments, lambda connection: listing.refused(connection, arguments.cell), listing.refused_text)


def _show(arguments: Namespace, find: Callable[[Connection], T], text: Callable[[T], str]) -> None:
    with database() as url, connect(url) as connection:
        found = find(connection)
    _print(arguments, found, text(found))


def quarantine_replay(arguments: Namespace) -> int:
    number = arguments.load
    with database() as url:
        with connect(url) as connection:
            ledger.first_hand(connection, number)
            if not quarantine.waiting(connection, number):
                raise UsageError(f"nothing that load {number} refused waits for a replay: see `load show {number}`")
        return _again(arguments, url, number, "retry")


def quarantine_drop(arguments: Namespace) -> None:
    cells = list(dict.fromkeys(arguments.cells))
    with database() as url, connect(url, "loader") as connection:
        quarantine.drop(connection, cells, arguments.reason)
    _print(arguments, {"dropped": cells}, f"{len(cells)} dropped")


def _record_forecast(declared: contract.Contract, url: str) -> None:
    """After a load or a training the champion's forecast becomes a row; the loader's own container cannot."""
    try:
        from model_service import forecasting, registry
    except ModuleNotFoundError as error:
        return say(
            f"no forecast made here ({error.name} is not installed): run `forecast --record` where the model serves"
        )
    with connect(url, "loader") as connection:
        if registry.champion(connection) is None:
            return say("no forecast yet: no model is registered")
        try:
            registry.record(connection, forecasting.by_champion(declared, connection, None, None, None))
        except ServiceError as error:
            say(f"no forecast yet: {error}")
    return None


def train(arguments: Namespace) -> None:
    from model_service.training import run

    declared = _contract()
    with database() as url:
        with connect(url, "loader") as connection:
            known_at = arguments.as_of or run.newest_knowledge(connection)
            result = run.train(declared, connection, settings.root(), known_at, say)
        _record_forecast(declared, url)
    _print(arguments, result, f"model {result['version']} ({result['digest']}) is the champion; see build/report.md")


def promote(arguments: Namespace) -> None:
    from model_service import registry

    with database() as url, connect(url, "loader") as connection:
        if arguments.artifact:
            version, action = registry.register(connection, arguments.artifact), "import"
        else:
            version, action = arguments.version, "promote"
        changed = registry.promote(connection, version, action, arguments.reason)
    _print(arguments, {"version": version, "changed": changed},
           f"model {version} is {'now' if changed else 'already'} the champion")  # fmt: skip


def rollback(arguments: Namespace) -> None:
    from model_service import registry

    with database() as url, connect(url, "loader") as connection:
        version = registry.rollback(connection, arguments.reason)
    _print(arguments, {"version": version}, f"model {version} is the champion again; the next build will contain it")


def export(arguments: Namespace) -> None:
    from model_service import registry

    with database() as url, connect(url) as connection:
        found = registry.export(connection, arguments.folder)
    result = {"version": found.version, "digest": found.digest}
    _print(arguments, result, f"model {found.version} ({found.digest}) is in {arguments.folder}")


def forecast(arguments: Namespace) -> None:
    from model_service import forecasting, registry

    role = "loader" if arguments.record else "reader"
    with database() as url, connect(url, role) as connection:  # type: ignore[arg-type]
        body = forecasting.by_champion(
            _contract(), connection, arguments.as_of, arguments.data_version, arguments.horizon
        )
        if arguments.record:
            registry.record(connection, body)
    _print(arguments, body, forecasting.table(body))


def serve(_: Namespace) -> int:
    from model_service.serving.bento import launch

    return int(launch())


def telemetry(arguments: Namespace) -> None:
    from model_service.telemetry.audit import install

    result = install(_contract())
    _print(arguments, result, f"index template {result} is installed")


def trace(arguments: Namespace) -> int:
    from model_service import lineage, trace

    if not arguments.observation and (arguments.as_of or arguments.data_version):
        raise UsageError("--as-of and --data-version go with --observation: an answer names its own, a load has none")
    answer = trace.read_answer(arguments.answer) if arguments.answer else None
    with database() as url, connect(url) as connection:
        if answer:
            found = trace.walk(_contract(), connection, answer)
            text, whole = trace.text(found), found["complete"]
        elif arguments.observation:
            series, period = arguments.observation
            clocks = arguments.as_of or datetime.now(UTC), arguments.data_version
            found = lineage.observation(_contract(), connection, series, period, *clocks)
            text, whole = lineage.observation_text(found), found["load"]["hash_holds"]
        else:
            found = lineage.affected(connection, arguments.affected)
            text, whole = lineage.affected_text(found), True
    _print(arguments, found, text)
    return 0 if whole else 1


def doctor(arguments: Namespace) -> int:
    from model_service import doctor

    with database() as url, connect(url) as connection:
        findings = doctor.examine(_contract(), connection, datetime.now(UTC))
    _print(arguments, findings, "\n".join(f"{one['state']:5} {one['check']}: {one['says']}" for one in findings))
    return int(any(one["state"] == "BAD" for one in findings))
