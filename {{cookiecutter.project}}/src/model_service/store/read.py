"""Reads by two clocks: what the world knew (`known_at`) and which of our loads had committed (`data_version`)."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt

from model_service.errors import ServiceError
from model_service.store.connection import Connection

_EPOCH = np.datetime64("2000-01-01", "us")  # PostgreSQL's binary timestamps count from here
VALUES = np.dtype([("valid_time", "M8[us]"), ("value", "f8")])
Values = npt.NDArray[np.void]  # of dtype VALUES


class UnknownDataVersion(ServiceError):
    """No such data version was ever current in this store."""


@dataclass(frozen=True)
class DataVersion:
    """`loads` maps each dataset to its last committed load; `version` is the hash of that map."""

    version: str
    loads: dict[str, int]


def data_version(connection: Connection, version: str | None = None) -> DataVersion:
    """The named data version, or the newest; raises UnknownDataVersion (also when nothing was loaded yet)."""
    row = connection.execute(
        "SELECT version, loads FROM data_version WHERE version = coalesce(%s, version) ORDER BY ordinal DESC LIMIT 1",
        [version],
    ).fetchone()
    if row is None:
        asked = f"the data version {version!r} is not in this store"
        detail = "nothing has been loaded yet" if version is None else asked
        raise UnknownDataVersion(f"{detail}: run `load`, or name a version that an earlier answer carried")
    return DataVersion(*row)


def vintages(
    connection: Connection, names: Iterable[str], known_at: datetime, loads: Mapping[str, int]
) -> dict[str, list[tuple[int, int, float | None]]]:
    """Every row of the series that was known at `known_at` to the loads of a data version, oldest first.

    Returns {series: [(days since 1970-01-01 of valid_time, microseconds since 1970 of known_from, value), ...]} in the
    order (valid_time, known_from); a value is None when missing or deleted. Of rows that differ in load alone the
    latest load's stands.
    """
    wanted = list(names)
    found: dict[str, list[tuple[int, int, float | None]]] = {name: [] for name in wanted}
    rows = connection.execute(
        """
        SELECT DISTINCT ON (s.name, o.valid_time, o.known_from)
               s.name, (o.valid_time AT TIME ZONE 'UTC')::date - DATE '1970-01-01',
               (extract(epoch FROM o.known_from) * 1000000)::bigint, o.value
        FROM series s
        JOIN jsonb_each_text(%s::jsonb) l (dataset, load_id) ON l.dataset = s.dataset
        JOIN observation o ON o.series_id = s.series_id AND o.load_id <= l.load_id::bigint AND o.known_from <= %s
        WHERE s.name = ANY(%s)
        ORDER BY s.name, o.valid_time, o.known_from, o.load_id DESC
        """,
        [json.dumps(dict(loads)), known_at, wanted],
        binary=True,
    )
    for name, day, known, value in rows:
        found[name].append((day, known, value))
    return found


def as_of(
    connection: Connection,
    names: Iterable[str],
    known_at: datetime,
    loads: Mapping[str, int],
    first: datetime | None = None,
    last: datetime | None = None,
) -> dict[str, Values]:
    """What was known of each series at `known_at` to the loads of a data version, in the order of valid_time.

    `first` and `last` bound valid_time, both included. A missing value is NaN; a deleted one is not there.
    """
    found = dict.fromkeys(names, np.empty(0, VALUES))
    # One packed column a series: decoding row by row would take longer than reading.
    rows = connection.execute(
        """
        SELECT s.name, known.packed
        FROM series s
        JOIN jsonb_each_text(%(loads)s::jsonb) l (dataset, load_id) ON l.dataset = s.dataset
        CROSS JOIN LATERAL (
            SELECT string_agg(timestamptz_send(k.valid_time) || float8send(coalesce(k.value, 'NaN')), ''
                              ORDER BY k.valid_time) AS packed
            FROM (SELECT DISTINCT ON (o.valid_time) o.valid_time, o.value, o.state FROM observation o
                  WHERE o.series_id = s.series_id AND o.load_id <= l.load_id::bigint AND o.known_from <= %(known)s
                  AND o.valid_time BETWEEN %(first)s AND %(last)s
                  ORDER BY o.valid_time, o.known_from DESC, o.load_id DESC) k
            WHERE k.state <> 2) known
        WHERE s.name = ANY(%(names)s) AND known.packed IS NOT NULL
        """,
        {"loads": json.dumps(dict(loads)), "known": known_at, "names": list(found), "first": first or "-infinity",
         "last": last or "infinity"},
        binary=True,
    )  # fmt: skip
    for name, packed in rows:
        wire = np.frombuffer(packed, [("valid_time", ">i8"), ("value", ">f8")])
        found[name] = values = np.empty(len(wire), VALUES)
        values["valid_time"] = _EPOCH + wire["valid_time"].astype("m8[us]")
        values["value"] = wire["value"]
    return found


def newest_known_from(connection: Connection) -> datetime | None:
    """When the newest that is held, deletions too, became known to the world, or None for an empty store."""
    row = connection.execute(
        "SELECT max(known_last) FROM load WHERE new + changed + deleted + vanished > 0 AND status <> 'blocked'"
    ).fetchone()
    return row[0] if row else None


def first_usable(connection: Connection, names: list[str], loads: Mapping[str, int]) -> datetime | None:
    """The first time at which something of every series was known, or None when one was never loaded."""
    row = connection.execute(
        """
        SELECT max(first), count(*) FROM (
            SELECT min(o.known_from) AS first
            FROM series s
            JOIN jsonb_each_text(%s::jsonb) l (dataset, load_id) ON l.dataset = s.dataset
            JOIN observation o ON o.series_id = s.series_id AND o.load_id <= l.load_id::bigint
            WHERE s.name = ANY(%s) GROUP BY s.series_id) firsts
        """,
        [json.dumps(dict(loads)), names],
    ).fetchone()
    return row[0] if row and row[1] == len(names) else None
