"""CSV files, wide or long, as vintages of series.

`fetch` finds the files, `parse` reads one as a stream. A file that does not fit the declaration is refused whole, by
SourceError before its first cell; a cell that does not fit becomes a Reject, and the others go on.
"""

import codecs
import csv
import gzip
import io
import math
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, cast

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from model_service import periods
from model_service.contract import Series
from model_service.errors import UsageError
from model_service.loader import ALWAYS, Ask, Cell, Payload, Reject, Seen, SourceError
from model_service.mistakes import Section, nearest

PARSER_VERSION = 1

_SHOWN = 1000  # characters of a bad line that go beside the kept file
_SWAP = str.maketrans(",.", ".,")  # a point is no decimal where the comma is


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _local(pattern: str) -> str:
    if not pattern or "://" in pattern or Path(pattern).is_absolute():
        raise ValueError('must be a file or glob below the project\'s folder, such as "data/us-macro/*.csv"')
    return pattern


def _encoding(name: str) -> str:
    try:
        codecs.getincrementaldecoder(name)()
        "".encode(name)
    except LookupError:
        raise ValueError("unknown encoding (known are utf-8-sig, latin-1, cp1252, utf-16 and others)") from None
    return name


Glob = Annotated[str, AfterValidator(_local)]
Format = Annotated[str, AfterValidator(periods.checked)]


class Dated(Section):
    """Column that holds the period, and how it is written."""

    column: str
    format: Format


class Vintage(Section):
    """Since when the values were known: from the file's name without its endings, or from a column."""

    from_: Literal["file_name"] | None = Field(None, alias="from")
    column: str | None = None
    format: Format

    @model_validator(mode="after")
    def _one_place(self) -> "Vintage":
        if (self.from_ is None) == (self.column is None):
            raise ValueError('give either from = "file_name" or column = "..."')
        return self


class Options(Section):
    """Keys of a `[source.*]` table with kind = "csv"; docs/csv.md explains each."""

    path: Annotated[tuple[Glob, ...], BeforeValidator(_listed), Field(min_length=1)]
    layout: Literal["wide", "long"]
    date: Dated
    vintage: Vintage | None = None
    complete: bool = False
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


def fetch(options: Options, ask: Ask) -> Iterator[Payload]:
    """Files that match `options.path` below the root, by (vintage, name); of the vintages in the window only.

    Raises SourceError before the first one: no match, empty or unreadable file, name that holds no vintage; UsageError
    for a window where the names hold none.
    """
    root, window = ask.root, ask.window
    if window != ALWAYS and not (options.vintage and options.vintage.from_):
        raise UsageError("--from and --to choose vintages, and the names of these files hold none: leave them out")
    paths: set[Path] = set()
    for pattern in options.path:
        found = {path for path in root.glob(pattern) if path.is_file() and not path.name.startswith(".")}
        if not found:
            raise SourceError(f"no file matches {pattern!r} in {root}: put the data there, or change `path`")
        paths |= found
    payloads = [_payload(path, options, root) for path in paths]
    dated = [(one.vintage or datetime.min.replace(tzinfo=UTC), one.name, one) for one in payloads]
    yield from (one for when, _, one in sorted(dated) if window.holds(when))


def parse(payload: Payload, options: Options, series: Mapping[str, Series]) -> Iterator[Cell | Reject]:
    """Cells of the mapped `series` in the order of the file; a missing cell gives nothing, a bad one a Reject.

    Memory: about 4 bytes a cell, to name the line of a duplicate. Raises SourceError before the first cell: bytes
    that are not in `options.encoding`, no header or nothing below it, header that does not fit the mapping.
    """
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
            yield Reject(None, line, _shown(text), "series", f"{name!r} is not declared{nearest(name, series)}")
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
        value, rule, detail = _number(text, options.decimal)
        if not rule and (first := seen.line(name, vintage, period, line)):
            rule, detail = "duplicate", f"line {first} already gave {name} for the period of {valid_time:%Y-%m-%d}"
        if rule:
            yield Reject(name, line, _shown(text), rule, detail, valid_time)
        else:
            yield Cell(name, valid_time, vintage, value, line)


def _number(text: str, decimal: str) -> tuple[float, str, str]:
    """(value, "", "") or (NaN, rule, detail)."""
    plain = text.translate(_SWAP) if decimal == "," else text
    try:
        if not plain.isascii() or "_" in plain:  # float() takes 1_000, and the digits of other scripts
            raise ValueError
        value = float(plain)
    except ValueError:
        return math.nan, "number", f"not a number with decimal {decimal!r}"
    return (value, "", "") if math.isfinite(value) else (value, "finite", "neither NaN nor infinity is a value")


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
    mistakes = [f"no column {name!r}{nearest(name, header)}" for name in needed if name not in header]
    mistakes += [f"column {name!r} stands twice" for name in sorted({n for n in header if n and header.count(n) > 1})]
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
    return {name: place for place, name in enumerate(header)}


def _payload(path: Path, options: Options, root: Path) -> Payload:
    name, vintage = path.relative_to(root).as_posix(), None
    try:
        with path.open("rb") as stream:
            if not stream.read(1):
                raise SourceError(f"{name}: the file is empty")
    except OSError as error:
        raise SourceError(f"{name}: cannot be read: {error.strerror}") from None
    if options.vintage and options.vintage.from_:
        try:
            vintage = periods.known_from(Path(path.name.removesuffix(".gz")).stem, options.vintage.format)
        except ValueError as error:
            raise SourceError(f"{name}: the file's name holds no vintage: {error}") from None
    seen, media_type = path.stat(), "application/gzip" if path.suffix == ".gz" else "text/csv"
    mark = f"{seen.st_size} bytes, {seen.st_mtime_ns} ns"
    return Payload(name, path, media_type, vintage, complete=options.complete, mark=mark)


def _open(payload: Payload) -> BinaryIO:
    zipped = payload.media_type == "application/gzip"
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
