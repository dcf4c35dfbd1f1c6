"""The body of POST /v1/predict: from bytes to an array, or to a problem that names the field."""

import json
import math
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_service.serving.problems import Mistake, Problem, wrong

MAX_MISTAKES = 20


def parse(body: bytes, names: list[str], limit: int) -> NDArray[np.float64]:
    """Instances as [N, F] in the order of `names`; raises Problem 400 (not JSON) or 422 (wrong in some field)."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"the body is not JSON: {error}") from None
    if not isinstance(data, dict) or "instances" not in data:
        raise wrong([("instances", 'is missing; the body is {"instances": [{...}]}')])
    if extra := sorted(set(data) - {"instances"}):
        raise wrong([(name, "is unknown; only `instances` is known") for name in extra[:MAX_MISTAKES]])
    instances = data["instances"]
    if not isinstance(instances, list) or not 0 < len(instances) <= limit:
        raise wrong([("instances", f"must be a list of 1 to {limit} objects; at most {limit} are taken at a time")])
    found = chain.from_iterable(_mistakes(one, names, f"instances.{number}") for number, one in enumerate(instances))
    if mistakes := list(islice(found, MAX_MISTAKES)):
        raise wrong(mistakes)
    return np.array([[one[name] for name in names] for one in instances], np.float64)


def outside(rows: NDArray[np.float64], names: list[str], ranges: dict[str, list[float]]) -> list[list[str]]:
    """For each row the inputs that lie outside the range seen in training."""
    bounds = np.array([ranges.get(name, [-np.inf, np.inf]) for name in names])
    flags = (rows < bounds[:, 0]) | (rows > bounds[:, 1])
    return [[names[column] for column in np.flatnonzero(row)] for row in flags]


def _mistakes(instance: Any, names: list[str], place: str) -> Iterator[Mistake]:
    if not isinstance(instance, dict):
        yield place, "must be an object of input names and numbers"
        return
    for name in names:
        if name not in instance:
            yield f"{place}.{name}", "is missing"
        elif what := _not_a_number(instance[name]):
            yield f"{place}.{name}", what
    if instance.keys() != set(names):
        yield from ((f"{place}.{name}", "is no input: see /v1/model") for name in instance if name not in names)


def _not_a_number(value: Any) -> str | None:
    if type(value) not in (int, float):
        return f"is {'null' if value is None else type(value).__name__}; a number is due"
    try:
        return None if math.isfinite(value) else "is not finite"
    except OverflowError:
        return "is too large for a float"
