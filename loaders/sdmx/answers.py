"""SDMX answers as rows: CSV in all its dialects, and JSON for a history. Columns and dimensions are found by name."""

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from model_service.loader import SourceError
from model_service.loader.web import shown

JSON, CSV = "application/json", "text/csv"
HEAD = {"KEY", "DATAFLOW", "STRUCTURE", "STRUCTURE_ID", "STRUCTURE_NAME", "ACTION", "LAST UPDATE"}  # no dimensions
FLAGS = ("OBS_STATUS", "OBS_FLAG", "OBS_CONF", "CONF_STATUS")


class Row(NamedTuple):
    """One observation as it stands in an answer, all of it as text; no `period`: it speaks of the whole series.

    action: first letter of SDMX's (information, append, merge, replace, delete). known (UTC): since when, where the
    answer says so. line: of CSV, or the number of the observation in JSON.
    """

    line: int
    action: str
    period: str
    value: str
    flagged: bool = False
    known: datetime | None = None


def rows(name: str, content: bytes, media_type: str) -> Iterator[Row]:
    """The observations of an answer about one series; SourceError: it is none, it is cut off, or holds two series."""
    try:
        if content.strip():
            yield from _json(name, content) if media_type == JSON else _csv(name, content)
    except (ValueError, ArithmeticError, RecursionError, LookupError, TypeError, AttributeError, csv.Error):
        kind = "SDMX-JSON" if media_type == JSON else "SDMX-CSV"
        raise SourceError(f"{name}: this is no {kind}: {shown(content)}; nothing of it was loaded") from None


def _csv(name: str, content: bytes) -> Iterator[Row]:
    """Rows of one CSV after the other. With labels=both, the column "FREQ:Frequency" is FREQ."""
    header: list[str] = []
    first: dict[str, str] = {}
    reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
    for cells in reader:
        names = [cell.split(":")[0].strip().upper() for cell in cells]
        if {"TIME_PERIOD", "OBS_VALUE"} <= set(names):
            header = names
        elif not header:
            raise ValueError("rows without a header")
        elif any(map(str.strip, cells)):
            if len(cells) != len(header):
                says = f"line {reader.line_num} has {len(cells)} cells, the header {len(header)}"
                raise SourceError(f"{name}: {says}: it was cut off; nothing of it was loaded, run again")
            row = dict(zip(header, map(str.strip, cells), strict=True))
            for column in header[: header.index("TIME_PERIOD")]:
                if row["TIME_PERIOD"] and column not in HEAD and row[column] != first.setdefault(column, row[column]):
                    raise _two(name, f"{column} {first[column]} and {row[column]}")
            action, flagged = row.get("ACTION", "I")[:1].upper(), any(row.get(flag) for flag in FLAGS)
            yield Row(reader.line_num, action or "I", row["TIME_PERIOD"], row["OBS_VALUE"], flagged)


def _json(name: str, content: bytes) -> Iterator[Row]:
    """Rows of SDMX-JSON 1.0.0-wd: a Replace holds from its `validFrom`, what a Delete names held to its `validTo`."""
    document, line, found = json.loads(content, parse_float=str, parse_int=str, parse_constant=str), 0, set[str]()
    for data in document["dataSets"]:
        action, series = data["action"][:1].upper(), data.get("series") or {}
        found |= series.keys()
        if len(found) > 1:
            raise _two(name, f"series {' and '.join(sorted(found)[:2])}")
        moment = datetime.fromisoformat((action == "D" and data.get("validTo")) or data["validFrom"])
        known = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
        observations = {place: held for one in series.values() for place, held in one.get("observations", {}).items()}
        if action == "D" and not observations:
            yield Row(line, action, "", "", known=known)
        for place, held in observations.items():
            dimensions = document["structure"]["dimensions"]["observation"]
            period = next(one["values"] for one in dimensions if one["id"] == "TIME_PERIOD")[int(place)]["id"]
            line += 1
            yield Row(line, action, str(period), str(held[0]) if held and held[0] is not None else "", known=known)


def _two(name: str, found: str) -> SourceError:
    return SourceError(f"{name}: its key matches two series ({found}) or more: give it a code for every dimension")
