"""The one command: parses the words, runs the verb, turns an error into one message and an exit code.

A verb imports what it needs itself: the loader's container holds neither training nor serving packages.
"""

import argparse
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from model_service import contract, settings
from model_service.errors import ServiceError
from model_service.store.connection import connect, database

CODES = "exit codes: 0 done (also: nothing new), 1 failed, 2 wrong use, 3 blocked by a gate or a check"


def main(words: list[str] | None = None) -> int:
    """Runs one verb; returns its exit code."""
    arguments = _parser().parse_args(words)
    try:
        return int(arguments.run(arguments) or 0)
    except ServiceError as error:
        return _fail(str(error), error.exit_code)
    except psycopg.OperationalError as error:
        return _fail(f"the database went away: {error}", 1)
    except psycopg.errors.UndefinedTable:
        return _fail("the database has no tables of this service: run `python -m model_service migrate`", 1)
    except psycopg.Error as error:
        return _fail(f"the database refused: {str(error).strip().splitlines()[0]}", 1)
    except KeyboardInterrupt:
        return _fail("stopped", 130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "model_service", description="One model, from data to served forecast.", epilog=CODES
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, run: Callable[[argparse.Namespace], Any], says: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=says, description=says, epilog=CODES)
        made.add_argument("--json", action="store_true", help="print the result as JSON")
        made.set_defaults(run=run)
        return made

    verb("migrate", _migrate, "bring the database's schema up to date")
    verb("load", _load, "fetch, check and commit what the sources have; then forecast from it")
    train = verb("train", _train, "backtest, gate, register and promote a model")
    train.add_argument(
        "--as-of", type=_as_of, metavar="TIME", help="train on what was known then (a date: its end, UTC)"
    )
    promote = verb("promote", _promote, "make a registered model the champion: what the next build contains")
    which = promote.add_mutually_exclusive_group(required=True)
    which.add_argument("version", nargs="?", type=int, help="number in the registry")
    which.add_argument("--artifact", type=Path, metavar="DIR", help="import the model in DIR and promote it")
    promote.add_argument("--reason", default="by hand", help="recorded beside who and when")
    back = verb("rollback", _rollback, "make the champion before this one champion again")
    back.add_argument("--reason", default="by hand", help="recorded beside who and when")
    export = verb("export", _export, "write the champion's files into a folder")
    export.add_argument("folder", type=Path)
    forecast = verb("forecast", _forecast, "forecast with the champion")
    forecast.add_argument(
        "--as-of", type=_as_of, metavar="TIME", help="from what was known then (a date: its end, UTC)"
    )
    forecast.add_argument("--data-version", metavar="HASH", help="from what this store held at that version")
    forecast.add_argument("--horizon", type=int, action="append", help="only this horizon; may be repeated")
    forecast.add_argument("--record", action="store_true", help="append to the table `forecast`")
    verb("serve", _serve, "serve the Bento that was built last")
    telemetry = verb("telemetry", _telemetry, "what the audit trail needs in Elasticsearch")
    telemetry.add_argument("what", choices=["install"], help="install: put the index template")
    trace = verb("trace", _trace, "walk from an answer of /v1/forecast back to the provider's bytes")
    trace.add_argument("answer", help="file that holds the answer as JSON, or - for standard input")
    verb("doctor", _doctor, "check the store, the registry and what is built against each other")
    return parser


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _fail(message: str, code: int) -> int:
    _say(f"error: {message}")
    return code


def _as_of(text: str) -> datetime:
    from model_service.forecasting import parse_as_of

    try:
        return parse_as_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _contract() -> contract.Contract:
    return contract.load(settings.root() / settings.CONTRACT)


def _print(arguments: argparse.Namespace, result: Any, text: str) -> None:
    print(json.dumps(result, indent=1, default=str) if arguments.json else text)


def _migrate(arguments: argparse.Namespace) -> None:
    from model_service.store.migrate import migrate

    with database() as url:
        applied = migrate(url, _contract())
    _print(arguments, applied, "\n".join(f"applied {name}" for name in applied) or "nothing to migrate")


def _load(arguments: argparse.Namespace) -> None:
    from model_service.loader import run

    declared = _contract()
    with database() as url:
        results = run.load(declared, url, settings.root(), _say)
        if any(result["outcome"] == "loaded" for result in results):
            _record_forecast(declared, url)
    loaded = sum(result["outcome"] == "loaded" for result in results)
    _print(arguments, results, f"{loaded} of {len(results)} payloads loaded")


def _record_forecast(declared: contract.Contract, url: str) -> None:
    """After a load or a training the champion's forecast becomes a row; the loader's own container cannot."""
    try:
        from model_service import forecasting, registry
    except ModuleNotFoundError as error:
        return _say(
            f"no forecast made here ({error.name} is not installed): run `forecast --record` where the model serves"
        )
    with connect(url, "loader") as connection:
        if registry.champion(connection) is None:
            return _say("no forecast yet: no model is registered")
        try:
            registry.record(connection, forecasting.by_champion(declared, connection, None, None, None))
        except ServiceError as error:
            _say(f"no forecast yet: {error}")
    return None


def _train(arguments: argparse.Namespace) -> None:
    from model_service.training import run

    declared = _contract()
    with database() as url:
        with connect(url, "loader") as connection:
            known_at = arguments.as_of or run.newest_knowledge(connection)
            result = run.train(declared, connection, settings.root(), known_at, _say)
        _record_forecast(declared, url)
    _print(arguments, result, f"model {result['version']} ({result['digest']}) is the champion; see build/report.md")


def _promote(arguments: argparse.Namespace) -> None:
    from model_service import registry

    with database() as url, connect(url, "loader") as connection:
        if arguments.artifact:
            version, action = registry.register(connection, arguments.artifact), "import"
        else:
            version, action = arguments.version, "promote"
        changed = registry.promote(connection, version, action, arguments.reason)
    _print(arguments, {"version": version, "changed": changed},
           f"model {version} is {'now' if changed else 'already'} the champion")  # fmt: skip


def _rollback(arguments: argparse.Namespace) -> None:
    from model_service import registry

    with database() as url, connect(url, "loader") as connection:
        version = registry.rollback(connection, arguments.reason)
    _print(arguments, {"version": version}, f"model {version} is the champion again; the next build will contain it")


def _export(arguments: argparse.Namespace) -> None:
    from model_service import registry

    with database() as url, connect(url) as connection:
        found = registry.export(connection, arguments.folder)
    result = {"version": found.version, "digest": found.digest}
    _print(arguments, result, f"model {found.version} ({found.digest}) is in {arguments.folder}")


def _forecast(arguments: argparse.Namespace) -> None:
    from model_service import forecasting, registry

    role = "loader" if arguments.record else "reader"
    with database() as url, connect(url, role) as connection:  # type: ignore[arg-type]
        body = forecasting.by_champion(
            _contract(), connection, arguments.as_of, arguments.data_version, arguments.horizon
        )
        if arguments.record:
            registry.record(connection, body)
    _print(arguments, body, forecasting.table(body))


def _serve(_: argparse.Namespace) -> int:
    from model_service.serving.bento import launch

    return int(launch())


def _telemetry(arguments: argparse.Namespace) -> None:
    from model_service.telemetry.audit import install

    result = install(_contract())
    _print(arguments, result, f"index template {result} is installed")


def _trace(arguments: argparse.Namespace) -> int:
    from model_service import trace

    answer = trace.read_answer(arguments.answer)
    with database() as url, connect(url) as connection:
        steps = trace.walk(_contract(), connection, answer)
    _print(arguments, steps, trace.text(steps))
    return 0 if steps["complete"] else 1


def _doctor(arguments: argparse.Namespace) -> int:
    from model_service import doctor

    with database() as url, connect(url) as connection:
        findings = doctor.examine(_contract(), connection, datetime.now(UTC))
    _print(arguments, findings, "\n".join(f"{one['state']:5} {one['check']}: {one['says']}" for one in findings))
    return int(any(one["state"] == "BAD" for one in findings))
