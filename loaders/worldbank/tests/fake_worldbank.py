"""A stand-in for the World Bank's API v2: what it is asked, what it answers, what it refuses. It shares no code with
the loader.

`python tests/fake_worldbank.py FOLDER` serves the wide csv vintages of a folder, and prints its base_url: as archived
versions, which the World Bank has of no monthly data, and the newest as what is current in database 15.
"""

import csv
import json
import re
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from fake_web import Answer, path_and_query, serving

SAMPLES = Path(__file__).parent / "worldbank"  # bytes as the World Bank sends them
COUNTRIES = {"USA": ("US", "United States"), "JPN": ("JP", "Japan"), "WLD": ("1W", "World")}
MOST = 32_500  # rows of a page
QUARTERLY = {"GDPC1", "ULCNFB", "A261RX1Q020SBEA"}
CURRENT = {"UNRATE": "UNEMPSA_", "INDPRO": "IPTOTSAKD", "CPIAUCSL": "CPTOTSAXN"}  # what database 15 calls them

Values = Mapping[str, Any]  # period, as the World Bank writes it: value
Page = tuple[list[dict[str, Any]], str]  # rows, and what they are wrapped in: "list" | "data" | the name of a concept


def sample(folder: Path) -> dict[str, dict[str, Values]]:
    """{version: {series: {period: value}}} of the csv sample."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for path in sorted(folder.glob("*.csv")):
        version = found.setdefault(path.stem[:7].replace("-", ""), {})
        with path.open(newline="") as lines:
            for line in csv.DictReader(lines):
                day = datetime.strptime(line.pop("Date"), "%m/%d/%y").date()
                for name, value in line.items():
                    period = f"{day.year}Q{(day.month + 2) // 3}" if name in QUARTERLY else f"{day:%YM%m}"
                    if value:
                        version.setdefault(name, {})[period] = float(value)
    return found  # type: ignore[return-value]


@dataclass
class WorldBank:
    """`faults`: what goes wrong, and how often still; `log`: what was asked, when, and what came of it.

    `current`: {"COUNTRY/INDICATOR": values}. `versions`: {version: {"COUNTRY/INDICATOR": values}}. `silent`: versions
    that say null of what they do not have, where others refuse.
    """

    current: dict[str, Values] = field(default_factory=dict)
    versions: dict[str, dict[str, Values]] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    updated: str = "2026-07-13"
    most: int = MOST
    faults: dict[str, int] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    @property
    def base_url(self) -> str:
        return f"{self.url}/v2"

    def asked(self, text: str = "") -> list[dict[str, Any]]:
        return [one for one in self.log if text in one["path"]]

    def answer(self, target: str, headers: Mapping[str, str]) -> Answer:
        path, query = path_and_query(target)
        page = int(query.get("page", 1))
        fault = next((name for name, times in self.faults.items() if times and (name != "updated" or page > 1)), "")
        if fault:
            self.faults[fault] -= 1
        status, kind, content = self._answer(path, query, page, fault)
        self.log.append({"at": time.monotonic(), "path": path, "status": status, "fault": fault, **query})
        return status, {"Content-Type": kind}, content

    def _answer(self, path: str, query: Mapping[str, str], page: int, fault: str) -> tuple[int, str, bytes]:
        broken = {"bad gateway": (502, "bad_gateway.html"), "maintenance": (200, "maintenance.html"),
                  "invalid": (200, "invalid_value.json"), "invalid and null": (200, "not_found.json"),
                  "xml": (200, "data.xml"), "missing page": (404, "maintenance.html")}  # fmt: skip
        if fault in broken:
            status, name = broken[fault]
            return status, "text/html" if name.endswith("html") else "application/json", _sample(name)
        if query.get("format") != "json":
            return 200, "text/xml", _sample("data.xml")
        found = self._found(path, query)
        if isinstance(found, bytes):
            return 200, "text/xml" if found.startswith(b"\xef") else "application/json", found
        return 200, "application/json;charset=utf-8", self._wrapped(*found, page, query, fault)

    def _found(self, path: str, query: Mapping[str, str]) -> bytes | Page:
        parts = path.strip("/").split("/")[1:]
        if parts[0] == "country" and len(parts) == 4 and parts[2] == "indicator":
            return self._current(parts[1], parts[3], query)
        if parts[:2] == ["sources", "57"] and parts[-1] == "data":
            asked = dict(zip(parts[2:-1:2], [*parts[3:-1:2], ""], strict=False))
            return self._concept(asked) if len(asked) == 1 else self._version(asked)
        return _sample("invalid_value.json")

    def _current(self, country: str, indicator: str, query: Mapping[str, str]) -> bytes | Page:
        if indicator not in {one.split("/")[1] for one in self.current}:
            return _sample("not_found.json")
        if country not in COUNTRIES:
            return _sample("invalid_value.json")
        sign = "Q" if "Q" in query.get("date", "") else "M" if "M" in query.get("date", "") else ""
        form = r"\d{4}" + {"": "", "Q": "Q.", "M": "M.."}[sign]
        values = self.current.get(f"{country}/{indicator}", {})
        short, name = COUNTRIES[country]
        rows = [
            {"indicator": {"id": indicator, "value": indicator}, "country": {"id": short, "value": name},
             "countryiso3code": country, "date": period, "value": value, "unit": "", "obs_status": "", "decimal": 1}
            for period, value in sorted(values.items(), reverse=True) if re.fullmatch(form, period)
        ]  # fmt: skip
        return (rows, "list") if rows else _sample("nothing.json")

    def _concept(self, asked: Mapping[str, str]) -> bytes | Page:
        ((concept, wanted),) = asked.items()
        keys = {key for version in self.versions.values() for key in version}
        listed = {"version": set(self.versions), "country": set(COUNTRIES), "series": {key[4:] for key in keys}}[
            concept
        ]
        rows = [{"id": one, "value": one} for one in sorted(listed) if wanted in ("", one)]
        return (rows, concept) if rows else _sample("no_data.xml")

    def _version(self, asked: Mapping[str, str]) -> bytes | Page:
        key, version = f"{asked['country']}/{asked['series']}", asked["version"]
        values = self.versions[version].get(key, {})
        if not values and version not in self.silent:
            return _sample("no_data.xml")
        # Every period that any version has: null where this one has none, in the years after it too.
        periods = sorted({period for one in self.versions.values() for period in one.get(key, {})}, reverse=True)
        concepts = {"Country": asked["country"], "Version": version, "Series": asked["series"]}
        rows = []
        for period in periods:
            time_id = f"YR{period.replace('M', '')}"
            variable = [
                {"concept": name, "id": one, "value": one} for name, one in (concepts | {"Time": time_id}).items()
            ]
            rows.append({"variable": variable, "value": values.get(period)})
        return rows, "data"

    def _wrapped(self, rows: list[dict[str, Any]], wrap: str, page: int, query: Mapping[str, str], fault: str) -> bytes:
        size = min(int(query.get("per_page", 50)), self.most)
        part = rows[(page - 1) * size : page * size]
        updated = "2026-07-14" if fault == "updated" else self.updated
        head = {"page": page, "pages": -(-len(rows) // size), "per_page": size, "total": len(rows)}
        if fault == "another series":
            part = json.loads(json.dumps(part).replace('"USA"', '"JPN"').replace('"US"', '"JP"'))
        if fault == "a row less":
            part = part[1:]
        source: dict[str, Any] = {"id": "57", "name": "WDI Database Archives"}
        document: Any = [head | {"sourceid": query.get("source", "2"), "lastupdated": updated}, part]
        if wrap == "data":
            document = head | {"lastupdated": updated, "source": source | {"data": part}}
        elif wrap != "list":
            document = head | {"source": [source | {"concept": [{"id": wrap, "name": wrap, "variable": part}]}]}
        content = json.dumps(document, separators=(",", ":")).encode()
        if fault == "another shape":
            content = b'[{"page":1,"pages":1,"total":"many"},{"values":[]}]'
        return content[: len(content) // 2] if fault == "cut" else content


def _sample(name: str) -> bytes:
    return (SAMPLES / name).read_bytes()


if __name__ == "__main__":
    vintages = sample(Path(sys.argv[1]))
    shown = WorldBank()
    for month, series in vintages.items():
        shown.versions[month] = {f"USA/{name}": values for name, values in series.items()}
    newest = vintages[max(vintages)]
    shown.current = {f"USA/{code}": newest[name] for name, code in CURRENT.items()}
    with serving(shown):
        print(shown.base_url, flush=True)
        threading.Event().wait()
