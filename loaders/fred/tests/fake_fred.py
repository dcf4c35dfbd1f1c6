"""A stand-in for FRED's API v1: what it is asked, what it answers, what it refuses. It shares no code with the loader.

`python tests/fake_fred.py FOLDER` serves the wide csv vintages of a folder as FRED would, and prints its base_url.
"""

import csv
import json
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path

from fake_web import Answer, path_and_query, serving

SAMPLES = Path(__file__).parent / "fred"  # bytes as FRED sends them
KEY = "0123456789abcdef0123456789abcdef"
FOREVER = "9999-12-31"
QUARTERLY = {"GDPC1", "ULCNFB", "A261RX1Q020SBEA"}

Snapshot = Mapping[str, str]  # date: value, "." where it is missing
Rows = list[tuple[str, str, str, str]]  # date, realtime_start, realtime_end, value


def rows_of(vintages: Mapping[str, Snapshot]) -> Rows:
    """What ALFRED holds of a series that was published so: each value with the days, both included, that it stood."""
    rows, days = [], sorted(vintages)
    for day in sorted({day for snapshot in vintages.values() for day in snapshot}):
        since, value = "", None
        for vintage in [*days, None]:
            now = vintages[vintage].get(day) if vintage else None
            if vintage is None or now != value:
                if value is not None:
                    ended = f"{date.fromisoformat(vintage) - timedelta(days=1)}" if vintage else FOREVER
                    rows.append((day, since, ended, value))
                since, value = vintage or "", now
    return rows


def sample(folder: Path) -> dict[str, dict[str, Snapshot]]:
    """{series: {vintage: {date: value}}} of the csv sample; a quarter is named by its first day, as FRED does."""
    found: dict[str, dict[str, Snapshot]] = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as lines:
            for line in csv.DictReader(lines):
                day = datetime.strptime(line.pop("Date"), "%m/%d/%y").date()
                for name, value in line.items():
                    first = day.replace(month=day.month - (day.month - 1) % 3) if name in QUARTERLY else day
                    if value:
                        found.setdefault(name, {}).setdefault(path.stem, {})[f"{first}"] = value
    return found


@dataclass
class Fred:
    """`faults`: what goes wrong, and how often still; `log`: what was asked, when, and what came of it.

    `limit`: so many requests within a second are answered, 0 for any number; the others are too many.
    """

    series: dict[str, Rows] = field(default_factory=dict)
    no_vintages: set[str] = field(default_factory=set)
    faults: dict[str, int] = field(default_factory=dict)
    log: list[dict[str, str | float]] = field(default_factory=list)
    limit: int = 0
    today: str = field(default_factory=lambda: f"{date.today()}")
    retry_after: str = ""
    url: str = ""

    @property
    def base_url(self) -> str:
        return f"{self.url}/fred"

    def publish(self, name: str, vintages: Mapping[str, Snapshot]) -> None:
        self.series[name] = rows_of(vintages)

    def asked(self, path: str = "") -> list[dict[str, str | float]]:
        return [one for one in self.log if str(one["path"]).endswith(path)]

    def answer(self, target: str, headers: Mapping[str, str]) -> Answer:
        path, query = path_and_query(target)
        now = time.monotonic()
        recent = sum(one["status"] != 429 and float(one["at"]) > now - 1 for one in self.log)
        fault = next((name for name, times in self.faults.items() if times), "")
        if fault:
            self.faults[fault] -= 1
        elif self.limit and recent >= self.limit:
            fault = "too many requests"
        self.log.append({"at": now, "path": path, "status": 0, **query})
        status, content = self._answer(path, query, fault)
        self.log[-1] |= {"status": status, "fault": fault}
        # JSON that refuses has been sent under the name of XML
        kind = "application/json; charset=UTF-8" if status == 200 else "text/xml; charset=UTF-8"
        rest = {"Retry-After": self.retry_after} if self.retry_after and status in {429, 503} else {}
        return status, {"Content-Type": kind, "x-rate-limit-limit": "120"} | rest, content

    def _answer(self, path: str, query: Mapping[str, str], fault: str) -> tuple[int, bytes]:
        broken = {"too many requests": (429, "too_many_requests.xml"), "internal error": (500, "internal_error.json"),
                  "maintenance": (200, "maintenance.html"), "xml": (400, "unknown_series.xml")}  # fmt: skip
        if fault in broken:
            return broken[fault][0], _sample(broken[fault][1])
        if query.get("api_key") != KEY:
            return 400, _sample("bad_key.json")
        name = query.get("series_id", "")
        if name not in self.series:
            return 400, _sample("unknown_series.json")
        if query.get("file_type") != "json":
            return 200, b'<?xml version="1.0" encoding="utf-8" ?>\n<observations />'
        first, last = query.get("realtime_start", self.today), query.get("realtime_end", self.today)
        if path.endswith("/series/vintagedates"):
            found = self._vintagedates(name, first, last, query)
        else:
            found = self._observations(name, first, last, query, fault)
        status, content = found
        if fault == "cut":
            content = content[: len(content) // 2]
        if fault == "another shape":
            content = b'{"count": "2", "observations": {}}'
        if fault == "the key":
            content = content.replace(b'"count"', b'"key":"' + query["api_key"].encode() + b'","count"')
        return status, content

    def _days(self, name: str, first: str, last: str) -> list[str]:
        """Days on which anything changed, the days on which something went away among them."""
        ends = {f"{date.fromisoformat(end) + timedelta(days=1)}" for _, _, end, _ in self.series[name] if end < FOREVER}
        return sorted(day for day in {row[1] for row in self.series[name]} | ends if first <= day <= last)

    def _vintagedates(self, name: str, first: str, last: str, query: Mapping[str, str]) -> tuple[int, bytes]:
        if name in self.no_vintages:
            return 400, _sample("no_vintages.json")
        days, limit, offset = self._days(name, first, last), int(query["limit"]), int(query.get("offset", 0))
        page = {"realtime_start": first, "realtime_end": last, "order_by": "vintage_date", "sort_order": "asc",
                "count": len(days), "offset": offset, "limit": limit,
                "vintage_dates": days[offset : offset + min(limit, 10_000)]}  # fmt: skip
        return 200, json.dumps(page, separators=(",", ":")).encode()

    def _observations(
        self, name: str, first: str, last: str, query: Mapping[str, str], fault: str
    ) -> tuple[int, bytes]:
        if name in self.no_vintages:
            held = [(day, first, last, value) for day, _, end, value in self.series[name] if end == FOREVER]
        else:
            if (count := len(self._days(name, first, last))) > 2_000:
                return 400, _sample("too_many_vintages.json").replace(b"COUNT", str(count).encode())
            held = [
                (day, max(start, first), min(end, last), value)
                for day, start, end, value in self.series[name]
                if start <= last and end >= first
            ]
        limit, offset = int(query.get("limit", 100_000)), int(query.get("offset", 0))
        names = ("date", "realtime_start", "realtime_end", "value")
        rows = [dict(zip(names, row, strict=True)) for row in sorted(held)[offset : offset + limit]]
        page = {"realtime_start": first, "realtime_end": last, "observation_start": "1776-07-04",
                "observation_end": FOREVER, "units": "lin", "output_type": 1, "file_type": "json",
                "order_by": "observation_date", "sort_order": "asc",
                "count": len(held) + (fault == "another count"), "offset": offset, "limit": limit,
                "observations": rows}  # fmt: skip
        return 200, json.dumps(page, separators=(",", ":")).encode()


def _sample(name: str) -> bytes:
    return (SAMPLES / name).read_bytes()


if __name__ == "__main__":
    shown = Fred()
    for series, vintages in sample(Path(sys.argv[1])).items():
        shown.publish(series, vintages)
    with serving(shown):
        print(shown.base_url, flush=True)
        threading.Event().wait()
