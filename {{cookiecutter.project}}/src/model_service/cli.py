"""The one command: parses the words, runs the verb, turns an error into one message and an exit code."""

import argparse
import os
import sys
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import psycopg

from model_service.errors import ServiceError
from model_service.verbs import data, model, say, shows

CODES = "exit codes: 0 done (also: nothing new), 1 failed, 2 wrong use, 3 blocked by a gate or a check"


def main(words: list[str] | None = None) -> int:
    """Runs one verb; returns its exit code."""
    arguments = _parser().parse_args(words)
    try:
        code = int(arguments.run(arguments) or 0)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter fails on it once more
        return _fail("what read the output has gone", 1)
    except ServiceError as error:
        return _fail(str(error), error.exit_code)
    except psycopg.OperationalError as error:
        return _fail(f"the database went away: {error}", 1)
    except psycopg.Error as error:
        return _fail(f"the database refused: {str(error).strip().splitlines()[0]}", 1)
    except ModuleNotFoundError as error:
        return _fail(
            f"{error.name} is not installed here: a container holds only what its own verbs need. The loader's loads,"
            " the service's forecasts, traces and runs doctor; every verb runs where `make setup` did",
            1,
        )
    except KeyboardInterrupt:
        return _fail("stopped", 130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "model_service", description="One model, from data to served forecast.", epilog=CODES
    )
    parser.set_defaults(json=False)
    top = parser.add_subparsers(required=True, metavar="VERB")

    def verb(
        name: str, run: Callable[[argparse.Namespace], Any], says: str, examples: str = "", under: Any = top
    ) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = under.add_parser(
            name, help=says, description=says, epilog=f"{examples}{CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        made.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print the result as JSON")
        made.set_defaults(run=run)
        return made

    verb("migrate", data.migrate, "bring the database's schema up to date")
    _load_words(verb)
    _quarantine_words(verb)
    known = verb("data", data.data, "what was known of some series, or of all, as CSV")
    known.add_argument("series", nargs="*", metavar="SERIES")
    _clocks(known)
    _model_words(verb)
    export = verb("export", model.export, "write the champion's files into a folder, and the challenger's")
    export.add_argument("folder", type=Path)
    forecast = verb("forecast", model.forecast, "forecast with the champion")
    _clocks(forecast)
    forecast.add_argument("--horizon", type=int, action="append", help="only this horizon; may be repeated")
    forecast.add_argument("--record", action="store_true", help="append to the table `forecast`")
    forecast.add_argument("--all", action="store_true", help="as of the end of each day that something became known")
    forecast.add_argument("--to", choices=["table", "csv", "parquet"], help="where --all goes")
    forecast.add_argument("--out", type=Path, metavar="FILE", help="written whole or not at all; csv: standard output")
    verb("serve", model.serve, "serve the Bento that was built last")
    telemetry = verb("telemetry", model.telemetry, "what the audit trail needs in Elasticsearch")
    telemetry.add_argument("what", choices=["install"], help="install: put the index template")
    trace = verb("trace", data.trace, "from an answer to the provider's bytes; from data to what rests on it", """\
examples:
  curl -s 127.0.0.1:3000/v1/forecast | model_service trace -
  model_service trace --observation UNRATE 2016-06-01 --as-of 2016-07-29
  model_service trace --affected 3      # which models and forecasts must be made again
""")  # fmt: skip
    of = trace.add_mutually_exclusive_group(required=True)
    of.add_argument("answer", nargs="?", help="file that holds an answer, or its audit record; -: standard input")
    of.add_argument(
        "--observation", nargs=2, metavar=("SERIES", "PERIOD"), help="one value: where it came from and what used it"
    )
    of.add_argument("--affected", type=int, metavar="LOAD", help="what rests on the rows of that load")
    _clocks(trace)
    doctor = verb("doctor", data.doctor, "check the store, the registry and what is built against each other")
    doctor.add_argument("--ml-test-score", action="store_true", help="what the last `make test` proved of 28 promises")
    return parser


def _clocks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--as-of", type=_as_of, metavar="TIME", help="by what was known then (a date: its end, UTC)")
    parser.add_argument("--data-version", metavar="HASH", help="by what this store held at that version")


def _load_words(verb: Callable[..., argparse.ArgumentParser]) -> None:
    load = verb("load", data.load, "fetch, check and commit what the sources have; then forecast from it", """\
examples:
  model_service load --dry-run          # what would be new, changed, vanished; each payload against what is held
  model_service load --from 2016-01-01 --to 2016-06-30    # known in these days; stopped and run again, it goes on
  model_service load --follow             # goes on until SIGTERM or Ctrl-C, by each source's poll_seconds
  model_service load --correct 3 --reason "rate was read as thousands"    # after service.toml was mended
""")  # fmt: skip
    load.add_argument("--follow", action="store_true", help="go on: look again and again, follow streams")
    load.add_argument("--dry-run", action="store_true", help="say what a load would do, and do nothing")
    load.add_argument("--from", dest="first", type=_date, metavar="DATE", help="only what became known then or later")
    load.add_argument("--to", dest="last", type=_date, metavar="DATE", help="only what became known then or before")
    load.add_argument(
        "--correct", type=int, metavar="LOAD", help="read its kept bytes again, and take the place of what it brought"
    )
    load.add_argument("--reason", type=_reason, metavar="TEXT", help="why --correct; recorded beside who and when")
    under = load.add_subparsers(metavar="[list | show]", help="what was loaded: see `load list --help`")
    listed = verb("list", data.load_list, "the ledger, newest first", under=under)
    listed.add_argument("--dataset", metavar="NAME", help="only this one's")
    show = verb("show", shows("listing.load", "load"), "one load: request, rules, counts, checks, outcome", under=under)
    show.add_argument("load", type=int)


def _quarantine_words(verb: Callable[..., argparse.ArgumentParser]) -> None:
    quarantine = verb("quarantine", lambda _: None, "what was refused, and what was done about it", """\
examples:
  model_service quarantine list --open --rule number
  model_service quarantine replay 3 --reason "decimal comma declared"    # after service.toml was mended
  model_service quarantine drop 17 18 --reason "the provider's test rows"
""")  # fmt: skip
    under = quarantine.add_subparsers(required=True, metavar="list | show | replay | drop")
    listed = verb("list", shows("listing.quarantined", "open", "load", "rule"), "cells, oldest first", under=under)
    listed.add_argument("--open", action="store_true", help="only those that nothing was done about")
    listed.add_argument("--load", type=int, metavar="LOAD", help="only those of that load")
    listed.add_argument("--rule", help="only those that broke that rule")
    show = verb("show", shows("listing.quarantined_cell", "cell"), "one cell: record, rule, place, fate", under=under)
    show.add_argument("cell", type=int, metavar="ID")
    replay = verb(
        "replay", data.quarantine_replay, "read again what a load refused, as service.toml is now", under=under
    )
    replay.add_argument("load", type=int, help="the one that fetched the bytes")
    drop = verb("drop", data.quarantine_drop, "settle that cells stay out", under=under)
    drop.add_argument("cells", type=int, nargs="+", metavar="ID")
    for one in (replay, drop):
        one.add_argument("--reason", type=_reason, metavar="TEXT", required=True, help="recorded beside who and when")


def _model_words(verb: Callable[..., argparse.ArgumentParser]) -> None:
    train = verb("train", model.train, "backtest, gate, register and promote a model", """\
examples:
  model_service train --as-of 2016-07-01    # on what was known then
  model_service train --overrule slice_period2 --reason "one-off: the crisis"    # a row; the card says so
""")  # fmt: skip
    _clocks(train)
    train.add_argument("--if-needed", action="store_true", help="only for a reason by [retrain] in service.toml")
    train.add_argument("--overrule", action="append", default=[], metavar="RULE", help="this rule of the gate does not"
                       " block; may be repeated")  # fmt: skip
    train.add_argument("--reason", type=_reason, metavar="TEXT", help="why --overrule; recorded beside who and when")
    train.add_argument("--to", type=Path, metavar="DIR", help="only write the model's files there: nothing is judged,"
                       " recorded or registered")  # fmt: skip
    models = verb("models", lambda _: None, "registered models and training runs, and how they differ")
    under = models.add_subparsers(required=True, metavar="list | runs | show | diff")
    verb("list", shows("experiments.models"), "every model and its state, newest first", under=under)
    verb("runs", shows("experiments.runs"), "every training run, also those that the gate refused", under=under)
    shown = verb("show", shows("experiments.model", "model"), "one model: what made it, its gate and life", under=under)
    shown.add_argument("model", metavar="MODEL", help="its version or digest")
    diff = verb("diff", shows("experiments.difference", "one", "other"), "what differs between two", under=under)
    diff.add_argument("one", metavar="MODEL")
    diff.add_argument("other", metavar="MODEL")
    promote = verb("promote", model.promote, "make a registered model the champion: what the next build contains")
    which = promote.add_mutually_exclusive_group(required=True)
    which.add_argument("version", nargs="?", type=int, help="number in the registry")
    which.add_argument("--artifact", type=Path, metavar="DIR", help="import the model in DIR and promote it;"
                       " the challenger is the one in it, or none")  # fmt: skip
    which.add_argument("--no-challenger", action="store_true", help="retire the challenger")
    promote.add_argument("--challenger", action="store_true", help="make it the challenger instead: the next build"
                         " contains it beside the champion, whose answers it is compared with")  # fmt: skip
    promote.add_argument("--sign-off", metavar="NAME", help="who answers for it: needed where gate.sign_off is true")
    back = verb("rollback", model.rollback, "make the champion before this one champion again")
    for one in (promote, back):
        one.add_argument("--reason", type=_reason, default="by hand", help="recorded beside who and when")
    again = verb("reproduce", model.reproduce, "make a registered model again from its record, and compare", """\
Commit, locked packages and both clocks are taken from the model's card. On the recorded platform the files must be
equal to the byte; on another one the predictions, within the bound of the parity rule.
""")  # fmt: skip
    again.add_argument("model", metavar="MODEL", help="its version or digest")
    again.add_argument("--bundle", type=Path, metavar="DIR", help="install from its wheels, without an index")


def _fail(message: str, code: int) -> int:
    say(f"error: {message}")
    return code


def _as_of(text: str) -> datetime:
    from model_service.forecasting import parse_as_of

    try:
        return parse_as_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no date such as 2016-07-01") from None


def _reason(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("say why: it is kept for whoever asks later")
    return text
