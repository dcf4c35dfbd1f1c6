"""What a model must show before it may be promoted. It knows losses, cases and blocks, nothing of time series."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from model_service.arrays import Flags, Floats, Integers
from model_service.contract import Gate

DRAWS = 10_000
MANDATORY = {"leak", "determinism", "onnx_parity", "signature", "skew"}  # who overrules these trusts wrong figures
OTHER = {"better_than_last_value", "better_than_seasonal", "better_than_ar", "evidence", "too_good", "champion",
         "size", "fresh", "complete", "in_range", "useless", "perturbation", "directions", "latency", "change"
         }  # beside one for each horizon, level and slice  # fmt: skip
FEWEST_BLOCKS = 10  # of fewer, the bootstrap finds an advantage that is not there
TINY = 1e-300  # a baseline without any error: the ratio to it is huge, but a number


@dataclass(frozen=True)
class Rule:
    """One rule's figure against its limit; `overruled` by a person: it failed, and does not block."""

    name: str
    ok: bool
    figure: float
    limit: float
    says: str
    overruled: bool = False
    least: bool = False  # the limit is the lowest good figure, not the highest

    @property
    def blocks(self) -> bool:
        return not (self.ok or self.overruled)

    def __str__(self) -> str:
        return f"{self.name}: {self.says} {self.figure:.4g}, limit {self.limit:.4g}{' at least' * self.least}"


@dataclass(frozen=True)
class Losses:
    """Squared errors of n cases that nothing here was fitted on: model, baselines and champion, float64 [n, H].

    block: int [n]; cases of one block may depend on each other, blocks are resampled whole. horizon: names of the H
    columns. slices: flags [n] by name. champion: NaN where it has no forecast; None without one.
    """

    block: Integers
    horizon: tuple[str, ...]
    model: Floats
    baseline: Mapping[str, Floats]
    slices: Mapping[str, Flags] = field(default_factory=dict)
    champion: Floats | None = None


def judge(gate: Gate, losses: Losses, coverage: Mapping[str, float], seed: int) -> list[Rule]:
    """Every rule on the model's own losses and coverage; coverage: nominal level to the worst share."""
    best = [ratio(losses, column) for column in range(len(losses.horizon))]
    closest = min(found for found, _ in best)
    return [
        at_least("evidence", np.unique(losses.block).size, FEWEST_BLOCKS, "independent blocks of scored cases:"),
        *(better_than(losses, name, gate.level, seed) for name in losses.baseline),
        *(
            at_most(f"rmse_ratio_{label}", found, gate.max_rmse_ratio, f"RMSE relative to {name}, the best baseline,")
            for label, (found, name) in zip(losses.horizon, best, strict=True)
        ),
        at_least("too_good", closest, gate.min_rmse_ratio, "RMSE relative to the best baseline, at the best horizon,"),
        *(slice_ratio(losses, name, gate.max_slice_ratio) for name in losses.slices),
        *(
            at_least(f"coverage_{level}", share, round(float(level) - gate.coverage_slack, 4),
                     f"coverage of {level} intervals")
            for level, share in coverage.items()
        ),
    ]  # fmt: skip


def better_than(losses: Losses, baseline: str, limit: float, seed: int) -> Rule:
    """One-sided block bootstrap of the mean loss difference, averaged over horizons scaled by the baseline's loss.

    The figure is the share of resampled means, centred on zero, that reach the one observed.
    """
    scale = np.maximum(losses.baseline[baseline].mean(axis=0), TINY)
    difference = ((losses.baseline[baseline] - losses.model) / scale).mean(axis=1)
    means = resampled((difference - difference.mean())[:, None], losses.block, seed)
    share = _share(~(means[:, 0] < difference.mean()))
    return at_most(f"better_than_{baseline}", share, limit, f"p-value that it is no better than {baseline}:")


def ratio(losses: Losses, column: int) -> tuple[float, str]:
    """RMSE at one horizon relative to the best baseline there, and that baseline's name."""
    best, name = min((float(losses.baseline[name][:, column].mean()), name) for name in losses.baseline)
    return float(np.sqrt(losses.model[:, column].mean() / max(best, TINY))), name


def slice_ratio(losses: Losses, name: str, limit: float) -> Rule:
    """RMSE in a slice, horizons averaged, relative to the baseline that is best there."""
    inside = losses.slices[name]
    own = losses.model[inside].mean(axis=0)
    found = {
        baseline: float(np.sqrt((own / np.maximum(loss[inside].mean(axis=0), TINY)).mean()))
        for baseline, loss in losses.baseline.items()
    }
    best = max(found, key=lambda baseline: found[baseline])
    return at_most(f"slice_{name}", found[best], limit, f"RMSE relative to {best}, the best baseline of the slice,")


def not_worse(losses: Losses, limit: float, level: float, seed: int) -> Rule:
    """That the model's RMSE is at most `limit` times the champion's, horizons averaged: a one-sided block bootstrap.

    The figure is the share of resampled ratios on the common cases and horizons that are larger. With too few common
    blocks the rule passes and says that it compared nothing.
    """
    assert losses.champion is not None
    columns = ~np.isnan(losses.champion).all(axis=0)
    rows = ~np.isnan(losses.champion[:, columns]).any(axis=1) & columns.any()
    blocks = np.unique(losses.block[rows]).size
    if blocks < FEWEST_BLOCKS:
        return at_least("champion", blocks, 0, f"not compared: fewer than {FEWEST_BLOCKS} common blocks of cases,")
    both = np.concatenate([losses.model[rows][:, columns], losses.champion[rows][:, columns]], axis=1)
    own, other = np.hsplit(resampled(both, losses.block[rows], seed), 2)
    share = _share(~((own / np.maximum(other, TINY)).mean(axis=1) <= limit**2))
    return at_most("champion", share, level, f"p-value that its RMSE is above {limit:g} times the champion's:")


def resampled(values: Floats, block: Integers, seed: int) -> Floats:
    """Means of `values` [n, k] over blocks drawn with replacement: float64 [DRAWS, k]."""
    _, place = np.unique(block, return_inverse=True)
    counts = np.bincount(place)
    sums = np.zeros((len(counts), values.shape[1]))
    np.add.at(sums, place, values)
    drawn = np.random.default_rng(seed).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), DRAWS)
    return np.asarray(drawn @ sums / (drawn @ counts)[:, None])


def _share(reached: Flags) -> float:
    """Of the draws, those that speak against the model: all that do not speak for it, which NaN never does."""
    return float((1 + reached.sum()) / (1 + reached.size))


def at_least(name: str, figure: float, limit: float, says: str) -> Rule:
    return Rule(name, bool(limit <= figure < np.inf), float(figure), limit, says, least=True)


def at_most(name: str, figure: float, limit: float, says: str) -> Rule:
    return Rule(name, bool(-np.inf < figure <= limit), float(figure), limit, says)
