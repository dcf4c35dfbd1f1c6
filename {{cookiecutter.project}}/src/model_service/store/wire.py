"""Rows in and out of PostgreSQL by COPY in its binary format, as documented under COPY, "Binary Format"."""

from typing import Any

import numpy as np
import numpy.typing as npt

from model_service.store.connection import Connection

Rows = npt.NDArray[np.void]  # of numbers; no column is ever NULL

EPOCH_2000 = 946_684_800_000_000  # its timestamps count microseconds from 2000, ours from 1970
TIMES = ("valid_time", "known_from")
HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)


def copy_in(connection: Connection, table: str, rows: Rows) -> int:
    """Appends rows to `table`, a name that the names of its columns may follow; returns how many the server counted."""
    sent = np.empty(len(rows), _wire(rows.dtype))
    sent["fields"] = len(rows.dtype.names or ())
    for name in rows.dtype.names or ():
        sent[f"{name} size"] = rows.dtype[name].itemsize
        sent[name] = rows[name] - EPOCH_2000 if name in TIMES else rows[name]
    cursor = connection.cursor()
    with cursor.copy(f"COPY {table} FROM STDIN (FORMAT BINARY)") as copy:
        copy.write(HEADER + sent.tobytes() + b"\xff\xff")
    return cursor.rowcount


def copy_out(connection: Connection, query: str, asked: list[Any], kind: np.dtype[np.void]) -> Rows:
    """The rows of a query that gives the columns of `kind` in their order."""
    with connection.cursor().copy(f"COPY ({query}) TO STDOUT (FORMAT BINARY)", asked) as copy:
        received = b"".join(copy)
    found = np.frombuffer(received[len(HEADER) : -2], _wire(kind))
    rows = np.empty(len(found), kind)
    for name in kind.names or ():
        rows[name] = found[name] + EPOCH_2000 if name in TIMES else found[name]
    return rows


def _wire(kind: np.dtype[np.void]) -> np.dtype[np.void]:
    """One row as it travels: the number of its fields, and each with its size before it."""
    parts = [((f"{name} size", ">i4"), (name, kind[name].newbyteorder(">"))) for name in kind.names or ()]
    return np.dtype([("fields", ">i2"), *(part for pair in parts for part in pair)])
