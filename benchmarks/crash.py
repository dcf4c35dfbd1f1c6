"""kill -9 of loader and database at every phase of a load, and cut networks, lost answers and full disks besides.

After each fault what stands is judged (a file is there whole, or not at all), after each repeated load all of it is,
by an oracle made from the files. The same faults against a loader that commits as it goes must show losses.

KILLS=1000 kills in all, CONTROL=60 of them again on that loader. Prints a table, writes build/bench/crash.json, and a
line for each fault to build/bench/crash-faults.jsonl. `--project DIR` takes a project with its environment as it is.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crash_campaign import DROPS, PLACES, Campaign, Fault
from crash_oracle import Verdict
from crash_server import Server, SmallServer

ROOT = Path(__file__).resolve().parents[1]
OUT = Path(os.environ.get("OUT", ROOT / "build/bench"))
KILLS = int(os.environ.get("KILLS", "1000"))
CONTROL = int(os.environ.get("CONTROL", "60"))
GOAL = 0.1  # of the kills, in each phase
SEASON = 250  # faults on one database


def schedule(kills: int, seed: int) -> list[Fault]:
    """Kills over all phases in equal shares, the server's among them, in no order."""
    chosen, every = random.Random(seed), min(6, max(2, kills // 20))
    plan = []
    for number in range(kills):
        turn, phase = number // len(PLACES), list(PLACES)[number % len(PLACES)]
        kind = "server killed" if turn % every == every - 1 else "client killed"
        plan.append(Fault(kind, phase, chosen.choice(list(PLACES[phase]))))
    chosen.shuffle(plan)
    return plan


def cuts(times: int) -> list[Fault]:
    """The network cut at every place: once COMMIT was sent, that is a lost answer."""
    return [Fault("network cut", phase, place) for _ in range(times) for phase in PLACES for place in PLACES[phase]]


def strike(campaign: Campaign, plan: list[Fault], progress: Callable[[Fault], None]) -> None:
    """Faults in bursts of one to three, each burst healed and judged."""
    for number, fault in enumerate(plan):
        tries = 0
        while not campaign.strike(fault):
            tries += 1
            if tries > 5:
                raise RuntimeError(f"no run came to {fault.place!r}")
        progress(fault)
        if number % 3 == 2 or campaign.random.random() < 0.4:
            campaign.heal()


def fill_disks(source: Path, folder: Path, progress: Callable[[Fault], None]) -> Campaign:
    """A volume that is full when the load goes on, with a load that needs more than is left in any page."""
    server = SmallServer()
    try:
        campaign = Campaign(server, source, folder, 1, series=20, months=60, revised=60)
        plan = [Fault("disk full", "fetch", "keeping the bytes"), Fault("disk full", "stage", "half of COPY sent"),
                Fault("disk full", "insert", "amid the rows of a statement"),
                Fault("log full", "before COMMIT", "COMMIT not sent")]  # fmt: skip
        strike(campaign, plan, progress)
        campaign.finish()
    finally:
        server.remove()
    return campaign


def run(source: Path, folder: Path) -> tuple[list[Campaign], Campaign]:
    """All campaigns, and the control's."""
    begun, done, log = time.monotonic(), 0, OUT / "crash-faults.jsonl"
    log.unlink(missing_ok=True)

    def progress(fault: Fault) -> None:
        nonlocal done
        done += 1
        print(f"\rfault {done}, {time.monotonic() - begun:.0f} s", end="", file=sys.stderr, flush=True)
        with log.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(fault)) + "\n")

    server, campaigns, plan = Server(), list[Campaign](), schedule(KILLS, 1)
    try:
        for first in range(0, len(plan), SEASON):
            campaign = Campaign(server, source, folder / f"season{first}", first)
            strike(campaign, plan[first : first + SEASON], progress)
            if first + SEASON >= len(plan):
                strike(campaign, cuts(max(1, KILLS // 100)), progress)
                for when in DROPS:
                    campaign.drop_row(fault := Fault("row dropped", "insert", when))
                    progress(fault)
                    campaign.heal()
            campaign.finish()
            campaigns.append(campaign)
        control = Campaign(server, source, folder / "control", 1, naive=True)
        strike(control, schedule(CONTROL, 2), lambda _: None)
        control.finish()
    finally:
        server.remove()
    campaigns.append(fill_disks(source, folder / "small", progress))
    print(file=sys.stderr)
    return campaigns, control


def report(campaigns: list[Campaign], control: Campaign) -> None:
    """Writes the figures and prints them."""
    total, faults = Verdict(), [fault for one in campaigns for fault in one.faults]
    for one in campaigns:
        total.add(one.verdict)
    kills = [fault for fault in faults if fault.kind.endswith("killed")]
    rows = [
        _row(
            f"kills, {phase}", sum(f.phase == phase and f.fits() for f in kills), "kills", "all kills", len(kills), GOAL
        )
        for phase in PLACES
    ]
    misplaced = sum(not fault.fits() for fault in kills)
    rows.append(_row("kills in another phase than meant", misplaced, "kills", "all kills", len(kills)))
    for kind, count in Counter(fault.kind for fault in faults).items():
        rows.append(_row(f"faults: {kind}", count, "faults", "all faults", len(faults), 0.0))
    half = sum(not fault.whole for fault in faults)
    rows.append(_row("faults that left half a load", half, "faults", "all faults", len(faults)))
    naive = f"loader that commits as it goes, {len(control.faults)} kills"
    there = control.verdict
    rows.append(_row("lost", total.lost, "cells", naive, there.lost))
    rows.append(_row("doubled", total.doubled, "cells", naive, there.doubled))
    rows.append(_row("without a committed ledger row", total.orphans, "rows", naive, there.orphans))
    rows.append(_row("anything else wrong", len(total.wrong), "findings", naive, len(there.wrong)))
    (OUT / "crash.json").write_text(json.dumps(rows, indent=2) + "\n", "utf-8")
    print(f"{'what':36}{'found':>8}{'reference':>11}   goal")
    for row in rows:
        verdict = f"{row['goal']}: {'met' if row['met'] else 'missed'}"
        print(
            f"{row['name']:36}{row['value']:8}{row['reference_value']:11}   {verdict:14} reference: {row['reference']}"
        )
    print(*total.wrong[:20], sep="\n")
    print(f"written to {OUT / 'crash.json'}")


def _row(name: str, value: int, unit: str, reference: str, other: int, least: float | None = None) -> dict[str, Any]:
    """`least`: share of the reference that is the goal, 0 for any; None: the goal is 0."""
    ratio = round(value / other, 4) if other else 0.0
    goal, met = (
        ("0", value == 0) if least is None else (f">= {least:.0%}" if least else "> 0", 0 < value >= least * other)
    )
    return {"name": name, "value": value, "unit": unit, "reference": reference, "reference_value": other,
            "ratio": ratio, "goal": goal, "met": met}  # fmt: skip


def prepare() -> int:
    """Bakes a project with its environment, and starts anew in that one's Python: it has the database driver."""
    tools, outer = Path(sys.executable).parent, ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "VIRTUAL_ENV")
    env = {key: value for key, value in os.environ.items() if key not in outer}
    with tempfile.TemporaryDirectory(prefix="crash-") as folder:
        words = [str(tools / "cookiecutter"), "--no-input", "--default-config", "-o", folder, str(ROOT)]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        project = next(Path(folder).iterdir())
        subprocess.run(["make", "--silent", "setup", f"UV={tools / 'uv'}"], cwd=project, env=env, check=True)
        return subprocess.call([project / ".venv/bin/python", __file__, "--project", project], env=env)


def main() -> None:
    """Strikes, heals, judges and prints; a missed goal is reported, never a failure."""
    if "--project" not in sys.argv:
        sys.exit(prepare())
    source = Path(sys.argv[sys.argv.index("--project") + 1]).resolve() / "src"
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="crash-") as folder:
        report(*run(source, Path(folder)))


if __name__ == "__main__":
    main()
