"""Verbs of the store: migrate, load, data, quarantine, trace, doctor."""

from argparse import Namespace
from datetime import UTC, datetime

from model_service import listing, settings
from model_service.contract import Contract
from model_service.errors import Blocked, UsageError
from model_service.mistakes import did_you_mean
from model_service.store import ledger, quarantine
from model_service.store.connection import connect, database
from model_service.verbs import load_contract, print_found, print_result, record_forecast, say


def migrate(arguments: Namespace) -> None:
    from model_service.store.migrate import migrate

    with database() as url:
        applied = migrate(url, load_contract())
    print_result(arguments, applied, "\n".join(f"applied {name}" for name in applied) or "nothing to migrate")


def load(arguments: Namespace) -> int:
    from model_service.loader import Window, run

    window = Window(arguments.first, arguments.last)
    in_part = arguments.dry_run or window != Window()
    if (arguments.correct is None) != (arguments.reason is None):
        raise UsageError("--correct LOAD and --reason TEXT go together")
    if arguments.follow and (arguments.correct is not None or in_part):
        raise UsageError("--follow loads what comes: leave out --correct, --dry-run, --from and --to")
    if arguments.correct is not None and in_part:
        raise UsageError("--correct reads the kept bytes of one load: leave out --dry-run, --from and --to")
    if arguments.first and arguments.last and arguments.first > arguments.last:
        raise UsageError(f"--from {arguments.first} lies after --to {arguments.last}")
    contract = load_contract()
    with database() as url:
        if arguments.follow:
            return _follow(arguments, contract, url)
        if arguments.correct is not None:
            return _again(arguments, contract, url, arguments.correct, "correction")
        results = run.load(contract, url, settings.root(), say, arguments.dry_run, window)
        outcomes = [result["outcome"] for result in results]
        if "loaded" in outcomes:
            record_forecast(contract, url)
    done, says = ("would load", "would be loaded") if arguments.dry_run else ("loaded", "loaded")
    text = f"{outcomes.count(done)} of {len(outcomes) - outcomes.count('held')} payloads {says}"
    none = "nothing new" if window == Window() else "there is no payload in this window"
    print_result(arguments, results, text if outcomes else none)
    return Blocked.exit_code if "blocked" in outcomes else 0


def _follow(arguments: Namespace, contract: Contract, url: str) -> int:
    from model_service.loader.follow import follow

    found = follow(contract, url, settings.root(), say, lambda: record_forecast(contract, url))
    lines = [f"{name}: {', '.join(f'{count} {what}' for what, count in one.items())}" for name, one in found.items()]
    print_result(arguments, found, "\n".join(["stopped", *lines]))
    return 0


def _again(arguments: Namespace, contract: Contract, url: str, number: int, kind: str) -> int:
    from model_service.loader import run

    result = run.reprocess(contract, url, number, kind, arguments.reason, say)
    text = result["outcome"]
    if text == "loaded":
        record_forecast(contract, url)
        text = f"load {result['load_id']}: {kind} of load {number}; `trace --affected {number}` says what rests on that"
    print_result(arguments, result, text)
    return 0


def data(arguments: Namespace) -> None:
    """What was known of some series by both clocks, as CSV: an empty value is one that the provider calls missing."""
    from model_service.store import read

    series = load_contract().series
    names = arguments.series or list(series)
    if unknown := [name for name in names if name not in series]:
        raise UsageError(f"no series {unknown[0]!r} in service.toml{did_you_mean(unknown[0], series)}")
    with database() as url, connect(url) as connection:
        version, known_at = read.data_version(connection, arguments.data_version), arguments.as_of or datetime.now(UTC)
        found = read.as_of(connection, names, known_at, version.loads)
    say(f"as of {known_at.isoformat()}, data version {version.version}")
    rows = [
        (name, str(valid_time)[:10], None if value != value else float(value))
        for name, values in found.items()
        for valid_time, value in values.tolist()
    ]
    lines = [f"{name},{period},{'' if value is None else repr(value)}" for name, period, value in rows]
    print_result(arguments, rows, "\n".join(["series,period,value", *lines]))


def load_list(arguments: Namespace) -> None:
    if arguments.dataset is not None and arguments.dataset not in (sources := load_contract().source):
        raise UsageError(f"no source {arguments.dataset!r} in service.toml{did_you_mean(arguments.dataset, sources)}")
    print_found(arguments, lambda connection: listing.loads(connection, arguments.dataset), listing.loads_text)


def quarantine_replay(arguments: Namespace) -> int:
    number = arguments.load
    with database() as url:
        with connect(url) as connection:
            ledger.first_hand(connection, number)
            if not quarantine.waiting(connection, number):
                raise UsageError(f"nothing that load {number} refused waits for a replay: see `load show {number}`")
        return _again(arguments, load_contract(), url, number, "retry")


def quarantine_drop(arguments: Namespace) -> None:
    cells = list(dict.fromkeys(arguments.cells))
    with database() as url, connect(url, "loader") as connection:
        quarantine.drop(connection, cells, arguments.reason)
    print_result(arguments, {"dropped": cells}, f"{len(cells)} dropped")


def trace(arguments: Namespace) -> int:
    from model_service import lineage, trace

    if not arguments.observation and (arguments.as_of or arguments.data_version):
        raise UsageError("--as-of and --data-version go with --observation: an answer names its own, a load has none")
    if arguments.answer:
        answer = trace.read_answer(arguments.answer)
        steps = print_found(arguments, lambda connection: trace.walk(load_contract(), connection, answer), trace.text)
        return 0 if steps["complete"] else 1
    if arguments.observation:
        asked = *arguments.observation, arguments.as_of or datetime.now(UTC), arguments.data_version
        cell = print_found(arguments, lambda connection: lineage.observation(load_contract(), connection, *asked),
                    lineage.observation_text)  # fmt: skip
        return 0 if cell["load"]["hash_holds"] else 1
    print_found(arguments, lambda connection: lineage.affected(connection, arguments.affected), lineage.affected_text)
    return 0


def doctor(arguments: Namespace) -> int:
    from model_service import doctor, ml_test_score

    if arguments.ml_test_score:
        print_found(arguments, lambda connection: ml_test_score.score(settings.root(), connection), ml_test_score.text)
        return 0
    now = datetime.now(UTC)
    findings = print_found(arguments, lambda connection: doctor.examine(load_contract(), connection, now), doctor.text)
    return int(any(one["state"] == "BAD" for one in findings))
