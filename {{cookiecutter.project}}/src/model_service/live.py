"""What was forecast against what came true: live errors, beside those that the backtest led to expect."""

import json
from datetime import UTC, datetime
from typing import Any

import numpy as np

from model_service import periods
from model_service.contract import Contract
from model_service.store import read
from model_service.store.connection import Connection

Release = tuple[int, float, float | None]  # since when the first was known, its value, the latest (None: taken back)

# Errors that do not overlap: neighbours at horizon h share h - 1 periods, so n errors count as n / h. An error that has
# not grown gives 6 of them a ratio of 1.5 in 4 of 100 cases, were they normal (chi-squared).
FEWEST = 6
RECENT = 12  # what lies further back says nothing of today

# Of each horizon and period the forecast that was told first: later ones with the same last known period are the same
# evidence, also when the data were corrected in between. It was told when it was made, or by its own clock, if later.
TOLD = """
SELECT DISTINCT ON (horizon, valid_time) horizon, (valid_time AT TIME ZONE 'UTC')::date - DATE '1970-01-01',
       greatest(made_at, known_at), value, intervals
FROM forecast WHERE series = %(series)s AND hindsight IS NOT TRUE
AND (%(digest)s::text IS NULL OR model_digest = %(digest)s)
ORDER BY horizon, valid_time DESC, greatest(made_at, known_at), forecast_id
"""
MODEL = """
SELECT digest, files->>'card.json' FROM model WHERE version =
coalesce(%s, (SELECT version FROM promotion ORDER BY promotion_id DESC LIMIT 1))
"""


def errors(contract: Contract, connection: Connection, version: int | None = None) -> list[dict[str, Any]]:
    """One dict a horizon, of the newest `RECENT` * horizon forecasts that have met their truth; [] without a model.

    n: how many. rmse_first, rmse_latest: against the first and the latest release, in the target's unit. coverage:
    share of latest releases inside the intervals, by level. rmse_expected: the backtest's. ratio: of rmse_latest to it,
    from `FEWEST` * horizon forecasts on. None where unknown. Only what was told before the first release counts:
    by any model, against the champion's backtest, or by that of `version` alone, against its own.
    """
    row = connection.execute(MODEL, [version]).fetchone()
    if row is None:
        return []
    card, asked = json.loads(row[1]), {"series": contract.target.series, "digest": row[0] if version else None}
    told = connection.execute(TOLD, asked).fetchall()
    truth = _releases(contract, connection) if told else {}
    expected = dict(zip(card["horizons"], card["metrics"].get("rmse", {}).get("model", []), strict=False))
    found = []
    for horizon in contract.target.horizons:
        met = [
            (truth[day][1:], value, intervals)
            for ahead, day, at, value, intervals in told
            if ahead == horizon and day in truth and periods.microseconds(at) < truth[day][0]
        ]
        found.append({"horizon": horizon, **_judged(met[: RECENT * horizon], horizon, expected.get(horizon))})
    return found


def _releases(contract: Contract, connection: Connection) -> dict[int, Release]:
    """First and latest release by day of valid_time, to all that is held now."""
    loads, name = read.data_version(connection).loads, contract.target.series
    found: dict[int, Release] = {}
    for day, known, value in read.vintages(connection, [name], datetime.now(UTC), loads)[name]:
        if day in found:
            found[day] = (*found[day][:2], value)
        elif value is not None:
            found[day] = (known, value, value)
    return {day: release for day, release in found.items() if release[2] is not None}


def _judged(met: list[Any], horizon: int, expected: float | None) -> dict[str, Any]:
    """met: ((first, latest release), forecast, intervals) each."""
    off = np.array([releases for releases, *_ in met]) - np.array([[value] for _, value, _ in met])
    first, latest = np.sqrt((off**2).mean(axis=0)).tolist() if met else (None, None)
    inside: dict[str, list[bool]] = {}
    for releases, _, intervals in met:
        for one in intervals:
            inside.setdefault(str(one["level"]), []).append(one["lower"] <= releases[1] <= one["upper"])
    return {
        "n": len(met),
        "rmse_first": first,
        "rmse_latest": latest,
        "coverage": {level: sum(hits) / len(hits) for level, hits in inside.items()},
        "rmse_expected": expected,
        "ratio": latest / expected if latest is not None and expected and len(met) >= FEWEST * horizon else None,
    }


def says(one: dict[str, Any]) -> str:
    """One of `errors` for people."""
    if not one["n"]:
        return f"horizon {one['horizon']}: no forecast has met its truth yet"
    expected = "nothing" if one["rmse_expected"] is None else f"{one['rmse_expected']:.3g}"
    verdict = "too few to judge" if one["ratio"] is None else f"{one['ratio']:.2f} times"
    covered = "".join(f"; {share:.0%} inside {float(level):.0%}" for level, share in one["coverage"].items())
    return (
        f"horizon {one['horizon']}: RMSE of {one['n']} forecasts {one['rmse_latest']:.3g} by latest,"
        f" {one['rmse_first']:.3g} by first release; {expected} expected, {verdict}{covered}"
    )
