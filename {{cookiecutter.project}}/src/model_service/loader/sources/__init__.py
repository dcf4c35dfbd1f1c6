"""The kinds of source, one module each; `kind` of a `[source.*]` table names it."""

import pkgutil
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Protocol, cast

from pydantic import BaseModel

from model_service.contract import Contract, Series, Source
from model_service.errors import UsageError
from model_service.loader import Ask, Cell, Payload, Reject
from model_service.mistakes import did_you_mean, validate


class Kind(Protocol):
    """Such a module. PARSER_VERSION is raised when the same bytes would give other cells: they are then loaded anew.

    Options: its keys of the table. `fetch` yields payloads with the bytes as they came, `parse` reads one without the
    network. Both raise SourceError before anything of a payload is loaded. One with STREAMS = True is not polled by
    `load --follow`: its `fetch` waits for what comes, while `Ask.until` is not set.
    """

    PARSER_VERSION: int
    Options: type[BaseModel]

    def fetch(self, options: Any, ask: Ask) -> Iterator[Payload]: ...

    def parse(self, payload: Payload, options: Any, series: Mapping[str, Series]) -> Iterator[Cell | Reject]: ...


def of(kind: str, where: str) -> Kind:
    """The module of that kind; raises UsageError, which names `where` it was asked for, when this project has none."""
    there = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
    if kind not in there:
        raise UsageError(
            f"{where}.kind is {kind!r}, but this project reads {', '.join(there)}{did_you_mean(kind, there)}:"
            f" write one of them, or add src/model_service/loader/sources/{kind}.py"
        )
    return cast(Kind, import_module(f"{__name__}.{kind}"))


def reader(contract: Contract, dataset: str) -> tuple[Kind, BaseModel]:
    """The module that reads a dataset, and its keys of service.toml; raises UsageError: no such kind, wrong key."""
    declared, where = contract.source[dataset], f"source.{dataset}"
    source = of(declared.kind, where)
    return source, validate(source.Options, declared.options, f"service.toml, [{where}]", Source.model_fields)
