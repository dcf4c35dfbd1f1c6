"""Reads by two clocks: what the world knew (`known_at`) and which of our loads had committed (`data_version`)."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from model_service.errors import ServiceError


class UnknownDataVersion(ServiceError):
    """No such data version was ever current in this store."""


@dataclass(frozen=True)
class DataVersion:
    """`loads` maps each dataset to its last committed load; `version` is the hash of that map."""

    version: str
    loads: dict[str, int]


def name_of(loads: Mapping[str, int]) -> str:
    text = json.dumps(loads, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def data_version(connection: psycopg.Connection[Any], version: str | None = None) -> DataVersion:
    """The named data version, or the newest; raises UnknownDataVersion (also when nothing was loaded yet)."""
    row = connection.execute(
        "SELECT version, loads FROM data_version WHERE version = coalesce(%s, version) ORDER BY ordinal DESC LIMIT 1",
        [version],
    ).fetchone()
    if row is None:
        detail = (
            f"the data version {version!r} is not in this store"
            if version is not None
            else "nothing has been loaded yet"
        )
        raise UnknownDataVersion(f"{detail}: run `load`, or name a version that an earlier answer carried")
    return DataVersion(*row)


def vintages(
    connection: psycopg.Connection[Any], names: Iterable[str], known_at: datetime, loads: Mapping[str, int]
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


def newest_known_from(connection: psycopg.Connection[Any]) -> datetime | None:
    """When the newest value held became known to the world, or None for an empty store."""
    row = connection.execute("SELECT max(known_last) FROM load WHERE new + changed > 0").fetchone()
    return row[0] if row else None


def first_usable(connection: psycopg.Connection[Any], names: list[str], loads: Mapping[str, int]) -> datetime | None:
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
