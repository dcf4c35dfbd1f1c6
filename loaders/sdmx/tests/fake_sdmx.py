"""A stand-in for providers of SDMX: what they are asked, answer and refuse. It shares no code with the loader.

`python tests/fake_sdmx.py FOLDER` serves the wide csv vintages of a folder as the history of the ECB's series that
service.toml names, under its keys, and prints the base_url.
"""

import csv
import gzip
import io
import json
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path

from fake_web import Answer, path_and_query, serving

SAMPLES = Path(__file__).parent / "sdmx"  # bytes as the providers send them
TICKET = "98de05ea-540a-43d3-903b-7c9e14faf808"
PLACES = {  # where the data are, below the host: base_url and path to a dataflow
    "ecb": ("/service", "/data/"),
    "oecd": ("/public/rest", "/data/"),
    "imf": ("/external/sdmx/2.1", "/data/"),
    "bis": ("/api/v2", "/data/dataflow/"),
    "eurostat": ("/eurostat/api/dissemination", "/sdmx/2.1/data/"),
}
AS_ECB = {  # whose values the sample's are served as
    "LFSI/M.I9.S.UNEHRT.TOTAL0.15_74.T": "UNRATE",
    "STBS/M.I10.Y.PROD.NS0020.4D0.N.IX": "INDPRO",
    "STBS/M.I10.Y.TOVV.2G4700.4D0.N.IX": "DSPIC96",
    "HICP/M.U2.N.000000.4D0.ANR": "TCU",
    "BSI/M.U2.Y.V.M10.X.1.U2.2300.Z01.E": "PERMIT",
    "FM/M.U2.EUR.DS.EI.DJES50I.HSTA": "PAYEMS",
    "EXR/M.USD.EUR.SP00.A": "HOUST",
    "FM/M.U2.EUR.RT.MM.EURIBOR3MD_.HSTA": "GACDFSA066MSFRBPHI",
}

Values = Mapping[str, str]  # period: value, or value and status: "1.5 E", " M" where it is missing


@dataclass
class Release:
    """What was published at a moment: values, and the periods that went away; () for none, None for all of them."""

    moment: datetime
    values: Values
    deleted: tuple[str, ...] | None = ()


@dataclass
class Sdmx:
    """`faults`: what goes wrong, and how often still; `log`: what was asked, how, and what came of it.

    nothing: how it says that there is nothing new: 304, 404, empty, blank row, header. cells: more than so many in one
    answer are too many, 0 for any number. queue: states of an answer that is prepared, while there are any. bodies:
    what is answered of a key, whatever is asked.
    """

    face: str = "ecb"
    releases: dict[str, list[Release]] = field(default_factory=dict)
    now: str = "2017-01-01T00:00:00+00:00"
    nothing: str = "404"
    cells: int = 0
    queue: list[str] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=dict)
    log: list[dict[str, str]] = field(default_factory=list)
    bodies: dict[str, bytes] = field(default_factory=dict)
    prepared: bytes = b""
    url: str = ""

    def publish(self, key: str, moment: str, values: Values, deleted: tuple[str, ...] | None = ()) -> None:
        self.releases.setdefault(key, []).append(Release(datetime.fromisoformat(moment), values, deleted))

    @property
    def base_url(self) -> str:
        return self.url + PLACES[self.face][0]

    def answer(self, target: str, headers: Mapping[str, str]) -> Answer:
        path, query = path_and_query(target)
        fault = next((name for name, times in self.faults.items() if times), "")
        if fault:
            self.faults[fault] -= 1
        kept = {name: headers[name] for name in ("Accept", "If-Modified-Since") if headers.get(name)}
        self.log.append({"path": path, "fault": fault, **query, **kept})
        base, data = PLACES[self.face]
        path = path.removeprefix(base)
        times = {"Date": format_datetime(datetime.fromisoformat(self.now), usegmt=True)}
        if path.startswith("/1.0/async/"):
            status, content = self._queued(path)
        else:
            key = path.removeprefix(data).rstrip("/")
            body = (200, self.bodies[key]) if key in self.bodies else None
            status, content = self._broken(fault) or body or self._data(key, query, headers)
            if self.face != "eurostat" and key in self.releases:
                changed = self.releases[key][-1].moment.astimezone(UTC)
                times["Last-Modified"] = format_datetime(changed, usegmt=True)
        if fault == "cut":
            content = content[: int(len(content) * 0.9)]
        if fault == "zipped without its end":
            content, times["Content-Encoding"] = gzip.compress(content)[:-8], "gzip"
        self.log[-1]["status"] = str(status)
        return status, {"Content-Type": "text/html" if content[:1] == b"<" else "text/csv", **times}, content

    def _broken(self, fault: str) -> tuple[int, bytes] | None:
        return {
            "maintenance": (200, _sample("maintenance.html")),
            "internal error": (500, b"Internal server error"),
            "forbidden": (403, b"<html><body>Requests from anonymised networks are not served</body></html>"),
        }.get(fault)

    def _data(self, key: str, query: Mapping[str, str], headers: Mapping[str, str]) -> tuple[int, bytes]:
        flow, _, codes = key.rpartition("/")
        dots = {one.rpartition("/")[2].count(".") for one in self.releases if one.rpartition("/")[0] == flow}
        if dots and codes.count(".") not in dots:
            name = "ecb_wrong_key.html" if self.face == "ecb" else "eurostat_wrong_key.xml"
            counts = (b"COUNT", f"{max(dots) + 1}".encode()), (b"GIVEN", f"{codes.count('.') + 1}".encode())
            return 400, _sample(name).replace(*counts[0]).replace(*counts[1])
        releases = self.releases.get(key, [])
        since = datetime.fromisoformat(query.get("updatedAfter", "0001-01-01T00:00:00+00:00"))
        news = [one for one in releases if one.moment > since]
        seen = headers.get("If-Modified-Since") if self.face != "eurostat" else None
        unchanged = seen and releases and releases[-1].moment <= parsedate_to_datetime(seen)
        if unchanged and self.nothing == "304":
            return 304, b""
        history = self.face == "ecb" and headers.get("Accept") == "application/vnd.sdmx.data+json;version=1.0.0-wd"
        if history and (self.nothing in {"blank row", "header"} or (news and not unchanged)):
            return 200, _history([] if unchanged else news, self.now)
        if not news or unchanged:
            return self._nothing(200 if key not in self.releases and self.face == "imf" else 0)
        if self.face == "ecb" and headers.get("Accept") != "text/csv":
            return 406, b"Not acceptable"
        return self._csv(key, query, news if "updatedAfter" in query and self.face == "oecd" else releases)

    def _csv(self, key: str, query: Mapping[str, str], releases: list[Release]) -> tuple[int, bytes]:
        first, last = query.get("startPeriod", "0"), query.get("endPeriod", "9999") + "~"
        state: dict[str, str] = {}
        for one in releases:
            gone = state if one.deleted is None else one.deleted
            state = {period: value for period, value in state.items() if period not in gone} | dict(one.values)
        lines = {period: value for period, value in sorted(state.items()) if first <= period < last}
        if self.cells and len(lines) > self.cells:
            return 413, _sample("eurostat_too_big.xml").replace(b"COUNT", b"420709314")
        deltas = "updatedAfter" in query
        dropped = {period for one in releases for period in one.deleted or ()} - state.keys() if deltas else set()
        rows = [("R" if deltas else "I", period, *value.partition(" ")[::2]) for period, value in lines.items()]
        rows += [("D", period, "", "") for period in sorted(dropped)]
        rows += [("D", "", "", "") for one in releases if one.deleted is None and deltas]
        if not rows:
            return self._nothing()
        content = self._table(key, rows)
        if self.queue:
            self.prepared = content
            return 200, _sample("eurostat_queued.xml")
        return 200, content

    def _table(self, key: str, rows: list[tuple[str, str, str, str]]) -> bytes:
        """The rows below the header of the sample of this face: key codes in the columns before the period."""
        flow, _, codes = key.rpartition("/")
        header = next(csv.reader(io.StringIO(_sample(f"{self.face}.csv").decode())))
        names = [name for name in header[: header.index("TIME_PERIOD")] if name not in
                 {"KEY", "DATAFLOW", "LAST UPDATE", "STRUCTURE", "STRUCTURE_ID", "ACTION"}]  # fmt: skip
        text = io.StringIO()
        table = csv.DictWriter(text, header, restval="", lineterminator="\r\n")
        table.writeheader()
        for action, period, value, status in rows:
            fixed = {"KEY": f"{flow}.{codes}", "DATAFLOW": f"ESTAT:{flow}(1.0)", "LAST UPDATE": "06/02/26 23:00:00",
                     "STRUCTURE": "dataflow", "STRUCTURE_ID": f"{flow}(1.0)", "ACTION": action, "TIME_PERIOD": period,
                     "OBS_VALUE": value, "OBS_STATUS": status, "CONF_STATUS": "C" * (status == "C"),
                     "OBS_FLAG": status * (status != "C")}  # fmt: skip
            dimensions = dict(zip(names, codes.split("."), strict=False))
            table.writerow({name: one for name, one in {**fixed, **dimensions}.items() if name in header})
        return text.getvalue().encode()

    def _nothing(self, status: int = 0) -> tuple[int, bytes]:
        """One of the faces of "nothing": for this provider, or as it was told."""
        if self.nothing in {"empty", "204"}:
            return 204 if self.nothing == "204" else 200, b""
        if self.nothing in {"blank row", "header"} or status == 200:
            return 200, _sample("imf_nothing.csv").rstrip() + b"\n" * (2 if self.nothing == "blank row" else 1)
        if self.face == "eurostat":
            return 400, _sample("eurostat_no_results.xml")
        return 404, _sample("no_results.xml")

    def _queued(self, path: str) -> tuple[int, bytes]:
        if path == f"/1.0/async/status/{TICKET}":
            return 200, _sample("eurostat_status.xml").replace(b"STATUS", self.queue.pop(0).encode())
        return (200, self.prepared) if path == f"/1.0/async/data/{TICKET}" else (404, b"")


def _history(releases: list[Release], now: str) -> bytes:
    """SDMX-JSON 1.0.0-wd: a data set for each release, and behind all of these one for each that deleted something."""
    shown = sorted({period for one in releases for period in [*one.values, *(one.deleted or ())]})
    place = {period: f"{number}" for number, period in enumerate(shown)}
    sets: list[dict[str, object]] = []
    for one in releases:
        held = {place[period]: [float(text.split(" ")[0]) if text.split(" ")[0] else None, 0, None]
                for period, text in one.values.items()}  # fmt: skip
        if held:
            sets.append({"action": "Replace", "validFrom": one.moment.isoformat(timespec="milliseconds"),
                         "series": {"0:0:0": {"attributes": [0], "observations": held}}})  # fmt: skip
    for one in releases:
        if one.deleted is None or one.deleted:
            went = {"observations": {place[period]: [0.0] for period in one.deleted}} if one.deleted else {}
            sets.append({"action": "Delete", "validTo": one.moment.isoformat(timespec="milliseconds"),
                         "series": {"0:0:0": went}})  # fmt: skip
    document = json.loads(_sample("ecb_history.json"))
    document["header"]["prepared"], document["dataSets"] = now, sets
    document["structure"]["dimensions"]["observation"][0]["values"] = [{"id": one, "name": one} for one in shown]
    return json.dumps(document, separators=(",", ":")).encode()


def _sample(name: str) -> bytes:
    return (SAMPLES / name).read_bytes()


def sample(folder: Path) -> Sdmx:
    """The csv sample as a history: each file a release, of what is new in it, or other than before, or gone."""
    sdmx = Sdmx("ecb", now=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}+00:00")
    held: dict[str, dict[str, str]] = {key: {} for key in AS_ECB}
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as lines:
            table = [(datetime.strptime(line["Date"], "%m/%d/%y"), line) for line in csv.DictReader(lines)]
        for key, name in AS_ECB.items():
            now = {f"{day:%Y-%m}": line[name] for day, line in table if line[name]}
            news = {period: value for period, value in now.items() if held[key].get(period) != value}
            sdmx.publish(key, f"{path.stem}T00:00:00+00:00", news, tuple(held[key].keys() - now.keys()))
            held[key] = now
    return sdmx


if __name__ == "__main__":
    with serving(sample(Path(sys.argv[1]))) as shown:
        print(shown.base_url, flush=True)
        threading.Event().wait()
