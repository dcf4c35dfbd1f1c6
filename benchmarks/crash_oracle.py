"""What the crash benchmark loads, and what must be in the store after it, by the files and not by the product.

A made-up provider publishes a vintage a day: months by series, a few of them revised, some cells unreadable. Whatever
order the files arrive in, the answer as of a day is each cell's value in the newest vintage that gives one by then.
"""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

DATASET, FIRST = "provider", date(2000, 1, 1)
Cell = tuple[str, datetime]  # series, period
Steps = list[tuple[datetime, float]]  # known from then on: the value

CONTRACT = f"""
[service]
name = "crash"
[image]
repository = "crash"
base = "python"
[source.{DATASET}]
kind = "csv"
path = "data/*.csv"
layout = "wide"
date = {{ column = "Date", format = "%Y-%m-%d" }}
vintage = {{ from = "file_name", format = "%Y-%m-%d" }}
[target]
series = "S0"
horizons = [1]
[[feature]]
series = "S0"
[train]
first_origin = "1999-01-01"
"""
SERIES = '[series.{}]\nsource = "{}"\nfrequency = "month"\nunit = "1"\nrelease_lag_days = 1\n'


@dataclass
class Vintage:
    """One file: its good cells, and those that belong in quarantine as (file, line, series, raw, rule)."""

    day: date
    cells: dict[Cell, float] = field(default_factory=dict)
    refused: list[tuple[str, int, str, str, str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"data/{self.day.isoformat()}.csv"

    @property
    def known(self) -> datetime:
        return datetime(self.day.year, self.day.month, self.day.day, tzinfo=UTC)


class Provider:
    """Writes vintages into `root`. Every one revises at least one month of every series; some come days late.

    Of the `middle` series no cell is spoilt: it brings a row with every vintage.
    """

    def __init__(self, root: Path, seed: int, series: int = 6, months: int = 36, revised: int = 4) -> None:
        self.root, self.random, self.revised = root, random.Random(seed), revised
        self.names = [f"S{number}" for number in range(series)]
        self.middle = self.names[series // 2]
        self.periods = [datetime(1999 - ago // 12, 12 - ago % 12, 1, tzinfo=UTC) for ago in range(months)][::-1]
        self.now = {(name, period): self._value() for name in self.names for period in self.periods}
        self.days = 0
        self.held = [self._next()]
        (root / "data").mkdir(parents=True)
        declared = [SERIES.format(name, DATASET) for name in self.names]
        (root / "service.toml").write_text(CONTRACT + "".join(declared), "utf-8")

    def deliver(self) -> Vintage:
        """Writes one more file; of those kept back, an older one now and then."""
        while len(self.held) < 4:
            self.held.append(self._next())
        vintage = self.held.pop(0 if self.random.random() < 0.7 else self.random.randrange(4))
        (self.root / vintage.name).write_text("\n".join(vintage.lines) + "\n", "utf-8")
        return vintage

    def _value(self) -> float:
        return self.random.randrange(1, 10**7) / 8

    def _next(self) -> Vintage:
        vintage = Vintage(FIRST + timedelta(days=self.days))
        self.days += 1
        for name in self.names:
            for period in self.random.sample(self.periods, self.random.randint(max(1, self.revised - 3), self.revised)):
                self.now[name, period] = self._value()
        spoilt = [cell for cell in sorted(self.now) if cell[0] != self.middle]
        bad = self.random.sample(spoilt, self.random.choice([0, 1, 2]))
        empty = self.random.choice(spoilt)
        vintage.lines.append(",".join(["Date", *self.names]))
        for line, period in enumerate(self.periods, 2):
            texts = []
            for name in self.names:
                cell, text = (name, period), repr(self.now[name, period])
                if cell in bad:
                    text, rule = self.random.choice([("n/a", "number"), ("inf", "finite")])
                    vintage.refused.append((vintage.name, line, name, text, rule))
                elif cell == empty:
                    text = ""
                else:
                    vintage.cells[cell] = self.now[cell]
                texts.append(text)
            vintage.lines.append(",".join([f"{period:%Y-%m-%d}", *texts]))
        return vintage


@dataclass
class Verdict:
    """Cells lost (also: refused cells, files), cells held twice, rows without a ledger row, and what else is wrong."""

    lost: int = 0
    doubled: int = 0
    orphans: int = 0
    wrong: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return not (self.lost or self.doubled or self.orphans or self.wrong)

    def add(self, other: "Verdict") -> None:
        self.lost, self.doubled = self.lost + other.lost, self.doubled + other.doubled
        self.orphans += other.orphans
        self.wrong += other.wrong


ROWS = """SELECT s.name, o.valid_time, o.known_from, o.value FROM observation o JOIN series s USING (series_id)
    ORDER BY 1, 2, 3, o.load_id"""
ORPHANS = """SELECT count(*) FROM (SELECT load_id FROM observation UNION ALL SELECT load_id FROM quarantine) held
    WHERE load_id NOT IN (SELECT load_id FROM load)"""
RECOUNT = """SELECT load_id, new + changed + deleted + vanished, coalesce(rows, 0), quarantined, coalesce(bad, 0)
    FROM load
    LEFT JOIN (SELECT load_id, count(*) AS rows FROM observation GROUP BY 1) o USING (load_id)
    LEFT JOIN (SELECT load_id, count(*) AS bad FROM quarantine GROUP BY 1) q USING (load_id)
    WHERE (new + changed + deleted + vanished, quarantined) IS DISTINCT FROM (coalesce(rows, 0), coalesce(bad, 0))"""
FETCHED = "SELECT request->>'file', fetched, load_id FROM load WHERE kind = 'fetch' AND status <> 'blocked'"


def committed(connection: Any) -> Counter[str]:
    """How often the ledger says that each file was loaded."""
    return Counter(file for file, _, _ in connection.execute(FETCHED))


def judge(connection: Any, delivered: Iterable[Vintage], must: bool) -> Verdict:
    """The store against the files; all of them `must` be there, or else just those that the ledger names, whole."""
    verdict, ledger = Verdict(), connection.execute(FETCHED).fetchall()
    files = Counter(file for file, _, _ in ledger)
    expected = [one for one in delivered if must or files[one.name]]
    verdict.lost += sum(files[one.name] == 0 for one in expected)
    verdict.doubled += sum(count - 1 for count in files.values())
    _judge_cells(connection, expected, verdict)
    refused = Counter(key for one in expected for key in one.refused)
    found = Counter(connection.execute("SELECT file, line, series, raw, rule FROM quarantine").fetchall())
    verdict.lost += (refused - found).total()
    verdict.doubled += (found - refused).total()
    verdict.orphans += connection.execute(ORPHANS).fetchone()[0]
    verdict.wrong += [f"recount of load {row[0]}: {row[1:]}" for row in connection.execute(RECOUNT)]
    sizes = {one.name: len(one.cells) + len(one.refused) for one in expected}
    fetched = [(file, cells, sizes.get(file)) for file, cells, _ in ledger]
    verdict.wrong += [f"{file}: {cells} fetched of {size}" for file, cells, size in fetched if cells != size]
    newest = max((number for _, _, number in ledger), default=None)
    marks = connection.execute("SELECT load_id FROM watermark").fetchall()
    if marks != ([(newest,)] if newest else []):
        verdict.wrong.append(f"watermark at {marks}, newest load {newest}")
    return verdict


def _judge_cells(connection: Any, expected: list[Vintage], verdict: Verdict) -> None:
    """As-of answers at every moment: what is known of a cell as steps in time."""
    wanted: dict[Cell, Steps] = {}
    for vintage in sorted(expected, key=lambda one: one.day):
        for cell, value in vintage.cells.items():
            _step(wanted.setdefault(cell, []), vintage.known, value)
    held: dict[Cell, Steps] = {}
    keys = set()
    for name, period, known, value in connection.execute(ROWS):
        verdict.doubled += (name, period, known) in keys
        keys.add((name, period, known))
        _step(held.setdefault((name, period), []), known, value)
    for cell in wanted.keys() | held.keys():
        want, have = wanted.get(cell, []), held.get(cell, [])
        if want != have:
            lost, more = set(want) - set(have), set(have) - set(want)
            verdict.lost += len(lost)
            verdict.wrong += [f"{cell[0]} {cell[1]:%Y-%m} as of {known:%Y-%m-%d}: {value}" for known, value in more]


def _step(steps: Steps, known: datetime, value: float) -> None:
    if not steps or steps[-1][1] != value:
        steps.append((known, value))
