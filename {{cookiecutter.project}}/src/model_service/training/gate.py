"""What a model must show before it may be promoted. It knows losses, cases and blocks, nothing of time series."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from model_service.contract import Gate
from model_service.features import Floats, Integers

DRAWS = 10_000
FIRM = {"leak", "determinism", "onnx_parity", "signature", "skew"}  # nobody may overrule what makes the figures wrong
FEWEST_BLOCKS = 10  # of fewer, the bootstrap finds an advantage that is not there


@dataclass(frozen=True)
class Rule:
    """One rule's figure against its limit; `overruled` by a person: it failed, and does not block."""

    name: str
    ok: bool
    figure: float
    limit: float
    says: str
    overruled: bool = False

    @property
    def blocks(self) -> bool:
        return not (self.ok or self.overruled)

    def __str__(self) -> str:
        return f"{self.name}: {self.says} {self.figure:.4g}, limit {self.limit:.4g}"


@dataclass(frozen=True)
class Losses:
    """Squared errors of n cases that the model was not fitted on: model and each baseline, float64 [n, H].

    block: int [n]; cases of one block may depend on each other, blocks are resampled whole.
    """

    block: Integers
    model: Floats
    baseline: Mapping[str, Floats]


def better_than(losses: Losses, baseline: str, limit: float, seed: int) -> Rule:
    """One-sided block bootstrap of the mean loss difference, averaged over horizons scaled by the baseline's loss.

    The figure is the share of resampled means, centred on zero, that reach the one observed.
    """
    scale = losses.baseline[baseline].mean(axis=0)
    difference = ((losses.baseline[baseline] - losses.model) / scale).mean(axis=1)
    _, block = np.unique(losses.block, return_inverse=True)
    sums, counts = np.bincount(block, weights=difference), np.bincount(block)
    drawn = np.random.default_rng(seed).integers(0, len(sums), (DRAWS, len(sums)))
    centred = sums - difference.mean() * counts
    means = centred[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    share = float((1 + (means >= difference.mean()).sum()) / (1 + DRAWS))
    return at_most(f"better_than_{baseline}", share, limit, f"p-value of no advantage over {baseline}")


def rmse_ratio(losses: Losses, horizon: int, label: str, limit: float) -> Rule:
    """RMSE at one horizon against the best baseline there."""
    best, name = min((float(losses.baseline[name][:, horizon].mean()), name) for name in losses.baseline)
    ratio = float(np.sqrt(losses.model[:, horizon].mean() / best)) if best else float("inf")
    return at_most(f"rmse_ratio_{label}", ratio, limit, f"RMSE relative to {name}, the best baseline,")


def at_least(name: str, figure: float, limit: float, says: str) -> Rule:
    return Rule(name, figure >= limit, figure, limit, says)


def at_most(name: str, figure: float, limit: float, says: str) -> Rule:
    return Rule(name, figure <= limit, figure, limit, says)


def judge(
    gate: Gate, losses: Losses, horizons: Mapping[str, int], coverage: Mapping[str, float], seed: int
) -> list[Rule]:
    """Every rule on losses and coverage. horizons: label to column; coverage: nominal level to the worst share."""
    blocks = np.unique(losses.block).size
    rules = [at_least("evidence", blocks, FEWEST_BLOCKS, "independent blocks of scored cases:")]
    rules += [better_than(losses, name, gate.level, seed) for name in losses.baseline]
    rules += [rmse_ratio(losses, column, label, gate.max_rmse_ratio) for label, column in horizons.items()]
    rules += [
        at_least(
            f"coverage_{level}", share, round(float(level) - gate.coverage_slack, 4), f"coverage of {level} intervals"
        )
        for level, share in coverage.items()
    ]
    return rules
