"""What was measured, as a table for people and a file for programs."""

import json
from pathlib import Path
from typing import Any


def row(name: str, value: float, unit: str, against: str = "", other: float | None = None, goal: float | None = None,
        least: bool = True) -> dict[str, Any]:  # fmt: skip
    """One line of the report; `goal` bounds the ratio from below (`least`) or the value from above."""
    ratio = value / other if other else None
    judged = ratio if least else value
    return {
        "name": name, "value": round(value, 3), "unit": unit, "reference": against,
        "reference_value": round(other, 3) if other else None, "ratio": round(ratio, 3) if ratio else None,
        "goal": None if goal is None else f"ratio >= {goal}" if least else f"<= {goal} {unit}",
        "met": None if goal is None or judged is None else judged >= goal if least else judged <= goal,
    }  # fmt: skip


def report(path: Path, rows: list[dict[str, Any]]) -> None:
    """Prints the table and writes the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=2) + "\n", "utf-8")
    width = max(len(one["name"]) for one in rows)
    print(f"\n{'what':{width}}{'ours':>16}{'reference':>11}{'ratio':>8}   goal")
    for one in rows:
        other = "" if one["reference_value"] is None else f"{one['reference_value']:,.4g}"
        ratio = "" if one["ratio"] is None else f"{one['ratio']:.2f}"
        verdict = "" if one["met"] is None else f"{one['goal']}: {'met' if one['met'] else 'missed'}"
        mine = f"{one['value']:,.4g} {one['unit']}"
        print(f"{one['name']:{width}}{mine:>16}{other:>11}{ratio:>8}   {verdict}")
    for reference in dict.fromkeys(one["reference"] for one in rows if one["reference"]):
        print(f"reference: {reference}")
    print(f"written to {path}")
