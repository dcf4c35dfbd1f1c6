"""Parquet files as rows of text, one form a type, so that they are read by the rules for text."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from model_service.loader import Payload, SourceError

TIME = "%Y-%m-%d %H:%M:%S.%f"  # how a date or timestamp is written, in UTC
CELLS = 200_000  # decoded at a time
# By default it would hold the whole file, and not look at a page's checksum.
HOW = {"pre_buffer": False, "buffer_size": 1 << 20, "page_checksum_verification": True}


@contextmanager
def opened(payload: Payload) -> Iterator[Any]:
    """The file; raises SourceError, also while it is read: it is broken, or a column's type is none of a cell."""
    try:
        with parquet.ParquetFile(payload.path, **HOW) as file:
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last of a name that is not UTF-8
        says = " ".join(str(error).split())
        raise SourceError(f"{payload.name}: cannot be read as Parquet: {says[:300]}") from None


def times(file: Any) -> set[str]:
    """Names of the columns that hold dates or timestamps."""
    return {one.name for one in file.schema_arrow if pa.types.is_date(one.type) or pa.types.is_timestamp(one.type)}


def rows(file: Any, columns: list[str], decimal: str) -> Iterator[tuple[int, list[str]]]:
    """(number of the row, cells); "" is null. Memory: CELLS, and what one column of a row group needs."""
    number = 0
    for batch in file.iter_batches(max(1, CELLS // len(columns)), columns=columns):
        texts = [_texts(batch.column(name), decimal) for name in columns]
        for number, cells in enumerate(zip(*texts, strict=True), number + 1):  # noqa: B020
            yield number, list(cells)


def _texts(column: Any, decimal: str) -> list[str]:
    kind = column.type
    if pa.types.is_floating(kind):
        column = column.cast(pa.float64())  # as it is, not the shortest text that a float32 would round to
    elif pa.types.is_timestamp(kind) and kind.tz:
        column = column.cast(pa.timestamp(kind.unit, "UTC")).cast(pa.int64()).cast(pa.timestamp(kind.unit))
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        column = column.cast(pa.timestamp("us"), safe=kind != pa.timestamp("ns"))
    texts = ["" if one is None else one.strip() for one in column.cast(pa.string()).to_pylist()]
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return [one.replace(".", decimal) for one in texts]
    return texts
