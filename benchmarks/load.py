"""What it costs to load cells as the product does, against binary COPY of the same rows; and dlt to the same server.

Timed is what lies between parsed batches and COMMIT: row checks, staging, judging, storing, batch checks, recount,
ledger, watermark, data version. The reference is one COPY of the same rows, in the same order, into the same table with
the same indexes, committed. Both run in turn, each in a fresh copy of the same database. What is loaded is a vintage
of 2,000 daily series; what is held already, ten earlier vintages of their first years. Writes build/bench/load.json.

ROWS, HELD, SNAPSHOT, MEMORY_ROWS, DLT_ROWS and PAIRS change the sizes; --quick is a run to see that it works.
Without Docker it runs on the embedded plain PostgreSQL of the dev group, and says so.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from load_dlt import dlt
from load_file import apart, memory
from load_report import report, row
from load_store import HELD_PERIODS, OUT, SERIES, SIZE, VINTAGES, Server, contract, server, templates
from load_timed import paired
from model_service.contract import Contract


def loads(server: Server, declared: Contract, kinds: list[str], say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """New rows into each kind of table, empty and not, and what was held already."""
    on = f"on {SERIES * HELD_PERIODS * VINTAGES:,} rows"
    new, same = SIZE["ROWS"] // SERIES, min(SIZE["SNAPSHOT"] // SERIES, HELD_PERIODS)
    cases = [(f"load, {kind}{extra}", f"{state}_{kind}", new, VINTAGES, 0.6)
             for kind in kinds for state, extra in (("empty", ", empty"), ("held", f", {on}"))]  # fmt: skip
    cases += [(f"unchanged snapshot, {kind}, {on}", f"held_{kind}", same, VINTAGES - 1, 0.8) for kind in kinds]
    for what, template, periods, like, goal in cases:
        mine, other, count = paired(server, declared, template, periods, like, what, say)
        yield row(f"{count:,} rows: {what}", count / mine / 1e3, "k rows/s",
                  f"binary COPY of the same rows, same order and indexes, median of {SIZE['PAIRS']}",
                  count / other / 1e3, goal)  # fmt: skip


def main() -> None:
    """Measures, prints and writes; a missed goal is reported, never a failure."""
    declared, begun = contract(), time.monotonic()

    def say(text: str) -> None:
        print(f"\r[{time.monotonic() - begun:5.0f} s] {text:70}", end="", file=sys.stderr, flush=True)

    with server() as one, tempfile.TemporaryDirectory(prefix="bench-load-") as folder:
        kinds = templates(one, declared, say)
        rows = list(loads(one, declared, kinds, say))
        for name, work, size in (("parse", apart, SIZE["ROWS"]), ("memory", memory, SIZE["MEMORY_ROWS"])):
            say(name)
            place = Path(folder) / name
            place.mkdir()
            with one.copy_of(f"empty_{kinds[0]}") as url:
                rows += work(url, declared, size, place)
        say("dlt")
        rows += dlt(one, declared, Path(folder))
    report(OUT / "load.json", rows)


if __name__ == "__main__":
    main()
