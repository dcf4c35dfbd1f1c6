"""From a backtest to what the gate judges: the table of losses, which knows nothing of time series."""

import numpy as np

from model_service.training import gate
from model_service.training.backtest import Backtest


def losses(tested: Backtest) -> gate.Losses:
    """Squared errors at the scored origins; a block is a year of them, or as many as the longest horizon overlaps."""
    scored = tested.scored
    truth = tested.truth[scored]
    return gate.Losses(
        np.flatnonzero(scored) // max(12, *tested.table.contract.target.horizons),
        (tested.forecast[scored] - truth) ** 2,
        {name: (forecast[scored] - truth) ** 2 for name, forecast in tested.baseline.items()},
    )


def rules(tested: Backtest) -> list[gate.Rule]:
    """The gate's rules on losses and coverage."""
    contract = tested.table.contract
    horizons = {f"h{horizon}": number for number, horizon in enumerate(contract.target.horizons)}
    coverage = {level: min(shares) for level, shares in tested.coverage().items()}
    return gate.judge(contract.gate, losses(tested), horizons, coverage, contract.train.seed)
