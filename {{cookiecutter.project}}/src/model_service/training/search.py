"""Settings of an estimator, chosen by what would have forecast best: small, seeded, in the order of time.

Successive halving: all candidates forecast the last year that has come true, the better half also the year before it,
and so on. Each forecast is of a year later than what was fitted on, and all of it was known at the origin of the refit.
"""

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from model_service import periods
from model_service.arrays import Floats, Integers
from model_service.training import Cases, estimators
from model_service.training.estimators import Settings

WORST = 1e300  # a loss that comes last: NaN would stand wherever it was put
RUNGS = (1, 1, 2)  # years that a candidate forecasts, newest first, before each halving


@dataclass(frozen=True)
class Choice:
    """The settings in force, what was tried for them, and whether the clock ended it (the machine's speed then counts).

    tried: one row a candidate in the order of trial: settings, years forecast, loss (mean squared error relative to
    the last value's, over horizons and years; None where none was forecast).
    """

    settings: Settings = field(default_factory=dict)
    tried: list[dict[str, Any]] = field(default_factory=list)
    cut: bool = False


def choose(table: Cases, truth: Floats, say: Callable[[str], None] = lambda _: None) -> Choice:
    """Settings for a fit on `truth` [n, H]: the labels known at its origin, NaN elsewhere; the usual ones come first.

    Chooses the usual ones when `train.search` is 0 or too little is known for a year to forecast.
    """
    train = table.contract.train
    years = _years(table, truth)
    if not train.search or not years:
        return Choice()
    candidates = _candidates(estimators.space(table.contract), train.search, train.seed)
    losses: list[list[float]] = [[] for _ in candidates]
    alive, ends, cut = list(range(len(candidates))), time.monotonic() + train.search_seconds, False
    for first, last in itertools.pairwise(itertools.accumulate(RUNGS, initial=0)):
        rung = [(number, year) for number in alive for year in years[first:last]]
        for number, year in rung:
            if cut := time.monotonic() > ends:
                break
            losses[number].append(_loss(table, truth, year, candidates[number]))
        if cut or not rung or len(alive) == 1:
            break
        alive = sorted(alive, key=lambda number: np.mean(losses[number]))[: (len(alive) + 1) // 2]
        say(f"search: {len(rung)} trials, best {candidates[alive[0]]} at {np.mean(losses[alive[0]]):.3f} of last value")
    if cut:
        say(f"search: stopped after train.search_seconds = {train.search_seconds:g}; goes on with the best so far")
    pairs = zip(candidates, losses, strict=True)
    tried = [{"settings": one, "years": len(of), "loss": float(np.mean(of)) if of else None} for one, of in pairs]
    return Choice(candidates[alive[0]], tried, cut)


def _candidates(space: Mapping[str, Any], many: int, seed: int) -> list[dict[str, Any]]:
    """The usual settings, then others drawn from the grid without repeating one."""
    grid = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values()) if values]
    drawn = np.random.default_rng(seed).permutation(len(grid))[: many - 1]
    return [{}, *(grid[number] for number in drawn)]


def _years(table: Cases, truth: Floats) -> list[Integers]:
    """Cases of the last years that have come true, newest first, each with enough that had before it to fit on."""
    known = np.flatnonzero(table.complete & ~np.isnan(truth).any(axis=1))
    size = max(12, periods.year(table.contract.series[table.contract.target.series].frequency))
    found: list[Integers] = []
    for end in range(known.size, size - 1, -size):
        year = known[end - size : end]
        enough = np.isfinite(_then(table, truth, int(year[0])))[table.complete].sum(axis=0) >= estimators.FEWEST_CASES
        if len(found) < sum(RUNGS) and enough.all():
            found.append(year)
    return found


def _then(table: Cases, truth: Floats, case: int) -> Floats:
    """`truth` as far as it had come true at the origin of `case`."""
    due = table.last[:, None] + np.array(table.contract.target.horizons)
    return np.where(due <= table.last[case], truth, np.nan)


def _loss(table: Cases, truth: Floats, year: Integers, settings: Settings) -> float:
    made = estimators.fit(table, _then(table, truth, int(year[0])), settings).predict(table.inputs[year])
    errors, naive = made - truth[year], table.anchor[year, None] - truth[year]
    with np.errstate(over="ignore", invalid="ignore"):  # a target that stands still; forecasts that are no numbers
        loss = ((errors**2).mean(axis=0) / np.maximum((naive**2).mean(axis=0), np.finfo(float).tiny)).mean()
    return float(np.nan_to_num(loss, nan=WORST, posinf=WORST))
