"""`forecast --all`: what would have been told on each day that something became known, with where it comes from."""

import csv
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import Any

from model_service import forecasting
from model_service.artifact import Model
from model_service.contract import Contract
from model_service.errors import ServiceError
from model_service.store import read
from model_service.store.connection import Connection

SAID_EVERY = 500  # as-of times
Row = dict[str, Any]


def bodies(
    contract: Contract,
    model: Model,
    connection: Connection,
    until: datetime,
    data_version: str | None,
    horizons: list[int] | None,
    say: Callable[[str], None],
) -> Iterator[tuple[dict[str, Any], dict[str, int]]]:
    """The answer as of the end of each such day up to `until`, and the last load of each dataset that it could see.

    One read serves all; as of a time at which too little was known there is none. Raises as `forecasting.answer` does.
    """
    forecasting.check_fit(contract, model)
    wanted = forecasting.requested_horizons(model, horizons)
    held = forecasting.vintages(contract, connection, until, read.data_version(connection, data_version))
    if not (days := held.days()):
        raise forecasting.NoDataYet(until, connection, held)
    for number, at in enumerate(days, 1):
        if known := held.at(min(at, until)):
            try:
                yield forecasting.answer_from(contract, model, known, wanted), held.version.loads
            except forecasting.InputsMissing as error:
                say(f"left out: {error}")
        if number % SAID_EVERY == 0 or number == len(days):
            say(f"forecast {number}/{len(days)} as-of times")


def rows(body: dict[str, Any], loads: dict[str, int]) -> Iterator[Row]:
    """One a horizon: model, both clocks, what it rests on, and the intervals' ends, `lower_0.8` and so on."""
    model, clocks = body["model"], body["as_of"]
    for one in body["forecasts"]:
        ends = {f"{end}_{each['level']}": each[end] for each in one["intervals"] for end in ("lower", "upper")}
        yield {
            **{name: body[name] for name in ("service", "target", "unit")},
            **{name: one[name] for name in ("horizon", "valid_time", "value")},
            **ends,
            **clocks,
            "inputs_known_until": body["inputs_known_until"],
            "loads": json.dumps(loads, sort_keys=True),
            "model_version": model["version"],
            "model_digest": model["digest"],
            "model_trained_as_of": model["trained_as_of"],
            "hindsight": body["hindsight"],
        }


def write(made: list[Row], form: str, out: Path | None) -> None:
    """As `csv`, on standard output without `out`, or as `parquet`; raises ServiceError."""
    names = list(dict.fromkeys(name for row in made for name in row))
    if out is None:
        return _csv(sys.stdout, names, made)
    with _beside(out) as part:
        if form == "parquet":
            return _parquet(part, [{name: row.get(name) for name in names} for row in made])
        with part.open("w", newline="", encoding="utf-8") as file:
            return _csv(file, names, made)


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A file beside `out`, which takes its place once it is whole; stopped before, what was there stays."""
    part = out.with_name(f"{out.name}.part")
    try:
        yield part
        part.replace(out)
    except OSError as error:
        raise ServiceError(f"{out} cannot be written: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)


def _csv(file: Any, names: list[str], made: list[Row]) -> None:
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(made)


def _parquet(path: Path, made: list[Row]) -> None:
    instants = ("known_at", "inputs_known_until", "model_trained_as_of")
    typed = [
        row
        | {name: datetime.fromisoformat(row[name]) for name in instants}
        | {"valid_time": date.fromisoformat(row["valid_time"])}
        for row in made
    ]
    arrow = pyarrow()
    arrow.parquet.write_table(arrow.Table.from_pylist(typed), path)


def pyarrow() -> Any:
    """The package; raises ServiceError where it is not installed."""
    try:
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ServiceError(
            "--to parquet needs pyarrow, of requirements/train.txt: run it where the model is trained, or --to csv"
        ) from None
    return pyarrow
