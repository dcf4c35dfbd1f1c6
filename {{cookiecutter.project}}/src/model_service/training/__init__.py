"""From rows to a model that may be promoted: backtest, fit, gate, serialize, report."""
