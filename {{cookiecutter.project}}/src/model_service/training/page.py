"""The report of a training as one HTML page that needs nothing else: page.html, with charts as SVG.

Whatever comes from data, from service.toml or from people is escaped. The same report gives the same page.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from model_service import periods
from model_service.training import charts

Report = Mapping[str, Any]
CHARTS = 6  # horizons drawn, from the first to the last
FIGURE = re.compile(r"–|[-+]?\d[\d.,%e+-]*")
FEW_VINTAGES = 12


def _text(value: Any) -> str:
    """How the page shows a value; its own HTML as it is."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_text(part)}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return "–" if value is None else str(value)


ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_text,
    trim_blocks=True,
)
ENVIRONMENT.filters["text"] = _text
ENVIRONMENT.tests["figure"] = lambda value: bool(FIGURE.fullmatch(_text(value)))


def page(report: Report) -> str:
    """The page of `report.body`, with a section for each of `search`, `live`, `runs` and `score` that it has.

    Besides the report page.html is given: heads, levels: of columns by horizon and by level of an interval. inputs: by
    importance, each with its loss ratio, and the length of its bar in percent. few: how many vintages, if they are few.
    window: origins that an error over time is averaged over. fans, over_time: (head, SVG) each. line: see `charts`.
    """
    card, backtest, found = report["card"], report["backtest"], report.get("importance", {})
    window = _window(report)
    longest = max([ratio - 1 for ratio in found.values()], default=0) or 1
    vintages = max(one["vintages"] for one in report["series"].values())
    optional = dict.fromkeys(("champion", "search", "live", "runs", "score"))
    return ENVIRONMENT.get_template("page.html").render(
        {**optional, **report},
        heads=[f"horizon {horizon}" for horizon in card["horizons"]],
        levels=[f"{float(level):.0%} interval" for level in card["metrics"]["coverage"]],
        inputs=[
            (name, found.get(name), 100 * max(0.0, found.get(name, 1) - 1) / longest)
            for name in sorted(card["inputs"], key=lambda name: -found.get(name, 0))
        ],
        few=vintages if vintages < FEW_VINTAGES else None,
        window=window,
        fans=_figures(card, partial(charts.fan, backtest), "forecasts with intervals, and what came true"),
        over_time=_figures(card, partial(charts.over_time, backtest, window=window), "RMSE of model and baselines"),
        line=charts.line,
    )


def _figures(card: Report, draw: Callable[[int, str], str], says: str) -> list[tuple[str, str]]:
    """One chart a horizon, of CHARTS of them at most, each with its head."""
    horizons = card["horizons"]
    drawn = np.unique(np.linspace(0, len(horizons) - 1, CHARTS).astype(int)).tolist()
    heads = {place: f"Horizon {horizons[place]}" for place in drawn}
    return [(head, draw(place, f"{head}: {says}")) for place, head in heads.items()]


def _window(report: Report) -> int:
    """Origins that an error over time is averaged over: a year's, at least twelve."""
    return min(max(12, periods.season(report["card"]["target"]["frequency"])), len(report["backtest"]["origins"]))
