"""What each word of the command line does: it runs one thing, prints what came of it, and gives the exit code.

A verb imports what it needs itself: the loader's container holds neither training nor serving packages.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from model_service import settings
from model_service.contract import Contract, load
from model_service.errors import ServiceError
from model_service.store.connection import Connection, connect, database

T = TypeVar("T")


def say(line: str) -> None:
    """To people, on standard error, unless there is nothing to say; results go to standard output."""
    if line:
        print(line, file=sys.stderr, flush=True)


def load_contract() -> Contract:
    return load(settings.root() / settings.CONTRACT)


def print_result(arguments: Namespace, result: Any, text: str) -> None:
    """The result on standard output, as JSON where that was asked for."""
    print(json.dumps(result, indent=1, default=str) if arguments.json else text)


def print_found(arguments: Namespace, find: Callable[[Connection], T], text: Callable[[T], str]) -> T:
    """Puts what `find` finds in the database, and returns it."""
    with database() as url, connect(url) as connection:
        found = find(connection)
    print_result(arguments, found, text(found))
    return found


def shows(of: str, *words: str) -> Callable[[Namespace], None]:
    """The verb that shows what `of`, MODULE.FUNCTION, finds by the arguments `words`, as FUNCTION_text tells it."""

    def run(arguments: Namespace) -> None:
        module, name = of.split(".")
        there = import_module(f"model_service.{module}")
        find, text = getattr(there, name), getattr(there, f"{name}_text")
        print_found(arguments, lambda connection: find(connection, *(getattr(arguments, word) for word in words)), text)

    return run


def record_forecast(contract: Contract, url: str) -> None:
    """After a load or a training the champion's forecast becomes a row; the loader's own container cannot."""
    try:
        from model_service import forecasting, registry
    except ModuleNotFoundError as error:
        return say(
            f"no forecast made here ({error.name} is not installed): run `forecast --record` where the model serves"
        )
    with connect(url, "loader") as connection:
        if registry.champion(connection) is None:
            return say("no forecast yet: no model is champion")
        try:
            model = forecasting.champion(connection)
            registry.record(connection, [forecasting.answer(contract, model, connection, None, None, None)])
        except ServiceError as error:
            say(f"no forecast yet: {error}")
    return None
