"""Up to where parts of a source were read, its partitions or tables: moved by compare-and-set, in a load's commit."""

from collections.abc import Mapping
from typing import Any

import psycopg

from model_service.errors import ServiceError

Connection = psycopg.Connection[Any]


def all_of(connection: Connection, dataset: str) -> dict[str, str]:
    """Up to where each part of the dataset's source was read."""
    return dict(connection.execute("SELECT part, stands FROM position WHERE dataset = %s", [dataset]).fetchall())


def move(connection: Connection, dataset: str, moves: Mapping[str, tuple[str | None, str]], load_id: int) -> None:
    """Moves parts of a source from where they stood, None where nowhere; raises ServiceError when another
    copy moved one meanwhile."""
    for part, (before, after) in moves.items():
        asked = {"dataset": dataset, "part": part, "before": before, "after": after, "load": load_id}
        moved = connection.execute(
            "INSERT INTO position VALUES (%(dataset)s, %(part)s, %(after)s, %(load)s) ON CONFLICT DO NOTHING"
            if before is None
            else "UPDATE position SET stands = %(after)s, load_id = %(load)s"
            " WHERE dataset = %(dataset)s AND part = %(part)s AND stands = %(before)s",
            asked,
        ).rowcount
        if not moved:
            raise ServiceError(f"{dataset}: another copy read {part} meanwhile; nothing was committed")
