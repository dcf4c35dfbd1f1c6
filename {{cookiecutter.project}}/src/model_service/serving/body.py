"""What comes in: the body of a request, the instances in it, and which of their inputs training never saw."""

import json
import math
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from model_service.arrays import Floats
from model_service.contract import Serving
from model_service.serving import door
from model_service.serving.edge import MAX_MISTAKES, Mistake, Problem, invalid
from model_service.serving.slots import Overloaded

DEPTH = 8  # levels of a body; the deepest that any route takes has five
HELD_UP_SECONDS = 0.02  # that a timer is late
NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
JSON = b"application/json"


async def read(request: Request, any_type: bool = False) -> bytes:
    """The whole body; raises Problem 415 for another type than JSON, 408 when it does not arrive in time, and Full."""
    kind = dict(request.scope["headers"]).get(b"content-type", JSON).partition(b";")[0].strip().lower()
    if kind != JSON and not any_type:
        raise Problem(415, f"the body is {kind.decode('latin-1')}: send application/json")
    try:
        return await door.in_time(_whole(request.receive))
    except TimeoutError:
        if door.left() < -HELD_UP_SECONDS:  # no fault of the caller's: it may have been there
            raise Overloaded("the event loop was held up") from None
        raise Problem(408, "the body did not arrive in time: send it faster, or less of it") from None


async def _whole(receive: Receive) -> bytes:
    """The body from its parts; raises ClientDisconnect."""
    parts = []
    while True:
        part = await receive()
        if part["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(part.get("body", b""))
        if not part.get("more_body", False):
            return b"".join(parts)


def parse_object(body: bytes, known: set[str], form: str, limit: int) -> dict[str, Any]:
    """The body as an object of `known` members, and of `form`; `limit`: the most instances.

    Raises Problem 400 (not JSON, too deep) or 422.
    """
    _measure(body, limit, "instances" if "instances" in known else "inputs")
    try:
        data = json.loads(body.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"the body is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise invalid([(min(known), f"is missing; the body is {form}")])
    if extra := sorted(set(data) - known):
        raise invalid((name, f"is unknown; known: {', '.join(sorted(known))}") for name in extra)
    return data


class Inputs:
    """What a model takes, prepared once: `names` [F], and the `ranges` that training saw of them."""

    def __init__(self, names: list[str], ranges: Mapping[str, list[float]], limits: Serving) -> None:
        self.names = names
        self._low, self._high = np.array([ranges.get(name, [-np.inf, np.inf]) for name in names]).T
        self._reject = limits.out_of_range == "reject"
        fields = [(f"input_{number}", float, msgspec.field(name=name)) for number, name in enumerate(names)]
        one = msgspec.defstruct("Instance", fields, forbid_unknown_fields=True, gc=False)
        many = Annotated[list[one], msgspec.Meta(min_length=1, max_length=limits.max_instances)]  # type: ignore[valid-type]
        whole = msgspec.defstruct("Instances", [("instances", many)], forbid_unknown_fields=True)
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(whole)

    def rows(self, body: bytes) -> Floats | None:
        """{"instances": [...]} as [N, F]; None where it is wrong: `parse_object`, `parse_instances` say how."""
        try:
            given = self._decoder.decode(body).instances
        except ValueError:
            return None
        if body.count(b'"') != 2 * (1 + len(given) * len(self.names)):
            return None  # a name stands twice, of which the decoder takes the last
        flat = chain.from_iterable(map(msgspec.structs.astuple, given))
        return np.fromiter(flat, np.float64, len(given) * len(self.names)).reshape(len(given), -1)

    def out_of_range(self, rows: Floats) -> npt.NDArray[np.bool_]:
        """Which of `rows` [N, F] lie outside the range seen in training."""
        flags: npt.NDArray[np.bool_] = (rows < self._low) | (rows > self._high)
        return flags

    def names_out_of_range(self, rows: Floats) -> list[list[str]]:
        """For each row the names of those; raises Problem 422 where `serving.out_of_range` says so."""
        flags = self.out_of_range(rows)
        if not flags.any():
            return [[]] * len(rows)
        strange = [[self.names[column] for column in np.flatnonzero(row)] for row in flags]
        if self._reject:
            places = (f"instances.{number}.{name}" for number, row in enumerate(strange) for name in row)
            raise invalid((place, "is outside the range seen in training") for place in places)
        return strange


def parse_instances(given: Any, names: list[str], limit: int) -> Floats:
    """Instances as [N, F] in the order of `names`; raises Problem 422."""
    if not isinstance(given, list) or not 0 < len(given) <= limit:
        raise invalid([("instances", f"must be a list of 1 to {limit} objects; at most {limit} are taken at a time")])
    found = chain.from_iterable(_mistakes(one, names, f"instances.{number}") for number, one in enumerate(given))
    if mistakes := list(islice(found, MAX_MISTAKES)):
        raise invalid(mistakes)
    return np.array([[one[name] for name in names] for one in given], np.float64)


def number_error(value: Any) -> str | None:
    """What is wrong with a value where a number is due."""
    if type(value) not in (int, float):
        return f"is {'null' if value is None else type(value).__name__}; a number is due"
    try:
        return None if math.isfinite(value) else "is not finite"
    except OverflowError:
        return "is too large for a float"


def _measure(body: bytes, limit: int, field: str) -> None:
    """Refuses what would take long to parse, or much memory: looks at brackets alone, those in texts included."""
    left = brackets = body.translate(None, NO_BRACKETS)
    for _ in range(DEPTH):
        left = left.replace(b"[]", b"").replace(b"{}", b"")
    if len(left) > DEPTH:  # fewer are a cut body, or stand in a text
        raise Problem(400, f"the body is not JSON of at most {DEPTH} levels")
    if len(brackets) > 20 * (limit + DEPTH):
        raise invalid([(field, f"at most {limit} are taken at a time, and these are far more")])


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; raises ValueError where a name stands twice: readers of JSON do not agree which of the two counts."""
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(name for place, (name, _) in enumerate(pairs) if name in dict(pairs[:place]))
        raise ValueError(f"{twice[:100]!r} stands there twice")
    return made


def _mistakes(instance: Any, names: list[str], place: str) -> Iterator[Mistake]:
    if not isinstance(instance, dict):
        yield place, "must be an object of input names and numbers"
        return
    for name in names:
        if name not in instance:
            yield f"{place}.{name}", "is missing"
        elif what := number_error(instance[name]):
            yield f"{place}.{name}", what
    if instance.keys() != set(names):
        yield from ((f"{place}.{name}", "is no input: see /v1/model") for name in instance if name not in names)
