"""What is wrong in a declaration, for people: the line, the key, the nearest known name, and what is allowed."""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from model_service.errors import UsageError

M = TypeVar("M", bound=BaseModel)
Place = tuple[str | int, ...]
OWN = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"  # how service.toml names what one wrote oneself: module:name


class Section(BaseModel):
    """One table of `service.toml`: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Misfits(ValueError):
    """What does not fit together, each with its place: table, key, index."""

    def __init__(self, found: Iterable[tuple[Place, str]]) -> None:
        self.found = list(found)
        super().__init__("; ".join(message for _, message in self.found))


def validate(
    model: type[M], data: Mapping[str, Any], where: str, also: Iterable[str] = (), text: str | None = None
) -> M:
    """`data` as `model`; raises UsageError that lists every mistake with the nearest known key, `also` among them.

    With `text`, the TOML that the data come from, each names its line.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = error.errors()
        within = {problem["loc"][:-1] for problem in problems}  # a list without its wrong items is too short as well
        problems = [one for one in problems if one["type"] != "too_short" or one["loc"] not in within]
        mistakes = [one for problem in problems for one in _mistakes(model, problem, list(also))]
        lines = [f"  {f'line {line(text, place)}: ' if text else ''}{message}" for place, message in mistakes]
        raise UsageError("\n".join([f"{where} is not valid:", *lines])) from None


def line(text: str, place: Place) -> int:
    """Number of the line of a TOML text that declares what is at `place`, or the nearest that encloses it."""
    table: Place = ()
    counted: dict[Place, int] = {}
    best, depth = 1, 0
    for number, one in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", one):
            here = table = _keys(header[1])
        elif header := re.match(r"\s*\[\[\s*([^\[\]]+?)\s*\]\]", one):
            keys = _keys(header[1])
            counted[keys] = counted.get(keys, -1) + 1
            here = table = (*keys, counted[keys])
        elif key := re.match(r"\s*([\w.\"'-]+)\s*=", one):
            here = (*table, *_keys(key[1]))
        else:
            continue
        if len(here) > depth and here == place[: len(here)]:
            best, depth = number, len(here)
    return best


def location(path: Path, *place: str | int) -> str:
    """`service.toml line 12: train.seed`: what stands there, to begin a message with."""
    return f"{path.name} line {line(path.read_text('utf-8'), place)}: {'.'.join(map(str, place))}"


def why_not_callable(reference: str) -> str:
    """Why what `module:name` names cannot be called, and what to do; empty when it can."""
    try:
        return (
            "" if callable(resolve_name(reference)) else f"{reference!r} cannot be called: name a function or a class"
        )
    except Exception as error:
        return f"{reference!r} cannot be imported ({error}): write it, or mend the name"


def _keys(dotted: str) -> Place:
    return tuple(part.strip(" \"'") for part in dotted.split("."))


def did_you_mean(name: str, names: Mapping[str, Any] | list[str]) -> str:
    """`; did you mean 'x'?` for the nearest of `names`, or nothing when none is near."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _mistakes(model: type[BaseModel], problem: Any, also: list[str]) -> list[tuple[Place, str]]:
    misfits = problem.get("ctx", {}).get("error")
    if isinstance(misfits, Misfits):
        within = ".".join(str(part) for part in problem["loc"])
        return [((*problem["loc"], *place), f"{within}.{'.'.join(map(str, place))}: {message}" if within else message)
                for place, message in misfits.found]  # fmt: skip
    return [(problem["loc"], _mistake(model, problem, also))]


def _mistake(model: type[BaseModel], problem: Any, also: list[str]) -> str:
    place = [str(part) for part in problem["loc"]]
    if problem["type"] == "extra_forbidden":
        known = _fields(model, place[:-1]) + also
        return f"{'.'.join(place)}: unknown key{did_you_mean(place[-1], known)} (known: {', '.join(known)})"
    if problem["type"] == "too_short":
        return f"{'.'.join(place)}: give at least {problem['ctx']['min_length']}"
    given = "" if problem["type"] in {"missing", "value_error"} else f" (given: {problem['input']!r})"
    if problem["type"] == "literal_error":
        given += did_you_mean(str(problem["input"]), re.findall("'(.*?)'", problem["ctx"]["expected"]))
    prefix = f"{'.'.join(place)}: " if place else ""
    return f"{prefix}{problem['msg'].removeprefix('Value error, ')}{given}"


def _fields(model: type[BaseModel], place: list[str]) -> list[str]:
    """Field names of the table at `place`: a step is a field, an index or a free key (of `[series.*]`)."""
    current: Any = model
    for step in place:
        if isinstance(current, type) and issubclass(current, BaseModel) and step in current.model_fields:
            current = current.model_fields[step].annotation
        while not isinstance(current, type) or not issubclass(current, BaseModel):
            arguments = [part for part in getattr(current, "__args__", ()) if part is not Ellipsis and part is not str]
            if not arguments:
                return []
            current = arguments[0]
    return [field.alias or name for name, field in current.model_fields.items()]
