"""Tables in files, CSV or Parquet, wide or long, as vintages of series.

`fetch` finds the files, `parse` reads one as a stream. A file that does not fit the declaration is refused whole, by
SourceError before its first cell; a cell that does not fit becomes a Reject, and the others go on.
"""

import codecs
import csv
import gzip
import io
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Annotated, BinaryIO, Literal, cast

from pydantic import AfterValidator, Field, model_validator

from model_service import periods
from model_service.contract import Series
from model_service.errors import UsageError
from model_service.loader import VALUE, Cell, Payload, Reject, Seen, SourceError, parse_value
from model_service.loader.files import GZIP, PARQUET, Files, Format, fetch
from model_service.mistakes import Section, did_you_mean

__all__ = ["PARSER_VERSION", "Options", "fetch", "parse"]

PARSER_VERSION = 1

_SHOWN = 1000  # characters of a bad line that go beside the kept file
_SWAP = str.maketrans(",.", ".,")  # a point is no decimal where the comma is


def _encoding(name: str) -> str:
    try:
        codecs.getincrementaldecoder(name)()
        "".encode(name)
    except LookupError:
        raise ValueError("unknown encoding (known are utf-8-sig, latin-1, cp1252, utf-16 and others)") from None
    return name


class Dated(Section):
    """Column that holds the period, and how it is written."""

    column: str
    format: Format = "%Y-%m-%d"


class Options(Files):
    """Keys of a `[source.*]` table with kind = "csv"; docs/csv.md explains each."""

    layout: Literal["wide", "long"]
    date: Dated
    missing: tuple[str, ...] = ("",)
    series_column: str = "series"
    value_column: str = "value"
    encoding: Annotated[str, AfterValidator(_encoding)] = "utf-8-sig"
    delimiter: Annotated[str, Field(pattern=r'^[^"\r\n]$')] = ","
    decimal: Literal[".", ","] = "."

    @model_validator(mode="after")
    def _long_only(self) -> "Options":
        if self.layout == "wide" and (given := self.model_fields_set & {"series_column", "value_column"}):
            raise ValueError(f'{", ".join(sorted(given))}: only for layout = "long"')
        if self.complete and self.vintage_column:
            raise ValueError("complete: a file with a vintage column is many vintages, of none of them provably all")
        return self

    @property
    def vintage_column(self) -> str | None:
        return self.vintage.column if self.vintage else None


def parse(payload: Payload, options: Options, series: Mapping[str, Series]) -> Iterator[Cell | Reject]:
    """Cells of the mapped `series` in the order of the file; a missing cell gives nothing, a bad one a Reject.

    Memory: about 4 bytes a cell, to name the line of a duplicate. Raises SourceError before the first cell: bytes
    that are not in `options.encoding`, no header or nothing below it, header that does not fit the mapping.
    """
    if payload.media_type == PARQUET:
        yield from _parquet(payload, options, series)
        return
    _check_bytes(payload, options.encoding)
    with _open(payload) as raw, io.TextIOWrapper(raw, options.encoding, newline="") as text:
        records = _records(text, options.delimiter)
        line, header, _ = next(records, (0, None, ""))
        if header is None:
            raise SourceError(f"{payload.name}: {'line 1 is no header' if line else 'the file is empty'}")
        places = _places(payload.name, [name.strip() for name in header], options, series)
        seen, line = Seen(), 0
        for line, cells, source in records:
            if cells is not None and len(cells) == len(header):
                yield from _line(line, [cell.strip() for cell in cells], places, payload.vintage, options, series, seen)
            else:
                found = "cannot be split: mind its quotes" if cells is None else f"{len(cells)} cells"
                yield Reject(None, line, _shown(source), "columns", f"{found}; the header has {len(header)}")
        if not line:
            raise SourceError(f"{payload.name}: the file has a header and nothing below it")


def _parquet(payload: Payload, options: Options, series: Mapping[str, Series]) -> Iterator[Cell | Reject]:
    """As `parse`. A column's own type goes before what is declared of texts; null is missing."""
    try:
        from model_service.loader import parquet
    except ImportError:
        raise UsageError(
            f"{payload.name} is Parquet: write `pyarrow>=22` into requirements/parquet.in, then `make lock setup`"
        ) from None
    with parquet.opened(payload) as file:
        typed = {
            name: one.model_copy(update={"format": parquet.TIME})
            for name, one in (("date", options.date), ("vintage", options.vintage))
            if one and one.column in parquet.times(file)
        }
        options = options.model_copy(update={"missing": (*options.missing, ""), **typed})
        places = _places(payload.name, file.schema_arrow.names, options, series)
        places = {name: place for place, name in enumerate(places)}
        seen, line = Seen(), 0
        for line, cells in parquet.rows(file, list(places), options.decimal):
            yield from _line(line, cells, places, payload.vintage, options, series, seen)
        if not line:
            raise SourceError(f"{payload.name}: the file has a header and nothing below it")


def _line(
    line: int,
    cells: list[str],
    places: Mapping[str, int],
    vintage: datetime | None,
    options: Options,
    series: Mapping[str, Series],
    seen: Seen,
) -> Iterator[Cell | Reject]:
    """Cells of one line that has as many as the header."""
    if options.layout == "wide":
        values = [(name, cells[places[name]]) for name in series]
    else:
        values = [(cells[places[options.series_column]], cells[places[options.value_column]])]
    values = [(name, text) for name, text in values if text not in options.missing]
    for name, text in values:
        if name not in series:  # long only
            yield Reject(None, line, _shown(text), "series", f"{name!r} is not declared{did_you_mean(name, series)}")
            return
    when = cells[places[options.date.column]]
    try:
        periods.moment(when, options.date.format)
        if options.vintage and options.vintage.column:
            vintage = periods.known_from(cells[places[options.vintage.column]], options.vintage.format)
    except ValueError as error:
        yield from (Reject(name, line, _shown(text), "date", str(error)) for name, text in values)
        return
    for name, text in values:
        period, valid_time = periods.period(when, options.date.format, series[name].frequency)
        value, _, rule, detail = parse_value(text if options.decimal == "." else text.translate(_SWAP))
        detail += f" with decimal {options.decimal!r}" * (rule == "number")
        if not rule and (first := seen.line(name, vintage, period, line)):
            rule, detail = "duplicate", f"line {first} already gave {name} for the period of {valid_time:%Y-%m-%d}"
        if rule:
            yield Reject(name, line, _shown(text), rule, detail, valid_time)
        else:
            yield Cell(name, valid_time, vintage, value, line, VALUE, text)


def _records(text: Iterator[str], delimiter: str) -> Iterator[tuple[int, list[str] | None, str]]:
    """(first line, cells, text) of every record that is not blank; cells are None where a line cannot be split.

    A quote that is not closed costs its own line only: the lines it swallowed are read again.
    """
    ahead: deque[str] = deque()
    held: list[str] = []

    def lines() -> Iterator[str]:
        while line := ahead.popleft() if ahead else next(text, ""):
            held.append(line)
            yield line

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    number, width = 1, 0
    while True:
        held.clear()
        cells: list[str] | None = None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            pass
        if len(held) > 1 and (cells is None or (width and len(cells) != width)):
            ahead.extendleft(reversed(held[1:]))
            del held[1:]
            cells = None
        if cells is None:
            reader = csv.reader(lines(), delimiter=delimiter, strict=True)
        if cells is None or any(cell.strip() for cell in cells):
            width = width or len(cells or ())
            yield number, cells, "".join(held)
        number += len(held)


def _places(file: str, header: list[str], options: Options, series: Mapping[str, Series]) -> dict[str, int]:
    """Place of every column by name. Raises SourceError: one is missing, stands twice, or dates are too coarse."""
    values = tuple(series) if options.layout == "wide" else (options.series_column, options.value_column)
    needed = [name for name in (options.date.column, options.vintage_column, *values) if name is not None]
    mistakes = [f"no column {name!r}{did_you_mean(name, header)}" for name in needed if name not in header]
    mistakes += [f"column {name!r} stands twice" for name in dict.fromkeys(needed) if header.count(name) > 1]
    order, named = periods.FREQUENCIES.index, periods.grain(options.date.format)
    mistakes += [
        f"{name} is by {one.frequency}, the date format {options.date.format!r} names only a {named}"
        for name, one in series.items()
        if order(one.frequency) < order(named)
    ]
    if mistakes:
        problems = "\n  ".join(mistakes)
        raise SourceError(
            f"{file}: the header does not fit service.toml:\n  {problems}\n"
            f"Correct the names there, or the `delimiter` (now {options.delimiter!r})."
        )
    return {name: header.index(name) for name in needed}


def _open(payload: Payload) -> BinaryIO:
    zipped = payload.media_type == GZIP
    return cast(BinaryIO, gzip.open(payload.path)) if zipped else payload.path.open("rb")


def _check_bytes(payload: Payload, encoding: str) -> None:
    """Decodes once ahead: a bad file is refused before its first cell, and the message can name the byte."""
    decoder, size = codecs.getincrementaldecoder(encoding)(), 0
    try:
        with _open(payload) as stream:
            while block := stream.read(1 << 20):
                size += len(block)
                decoder.decode(block)
            decoder.decode(b"", True)
    except UnicodeDecodeError as error:
        place = size - len(error.object) + error.start
        raise SourceError(f"{payload.name}: byte {place} is not {encoding}: set `encoding` to the file's own") from None
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{payload.name}: cannot be read: {error}") from None


def _shown(text: str) -> str:
    return text.rstrip("\r\n").replace("\0", "\N{SYMBOL FOR NULL}")[:_SHOWN]
