"""The report of a training as one HTML page that needs nothing else: page.html, with charts as SVG.

Whatever comes from data, from service.toml or from people is escaped. Charts are in the page's font and colours; each
shows one horizon of the backtest. The same report gives the same page.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from model_service import periods
from model_service.arrays import Floats

Report = Mapping[str, Any]
CHARTS = 6  # horizons drawn, from the first to the last
FIGURE = re.compile(r"–|[-+]?\d[\d.,%e+-]*")
FEW_VINTAGES = 12
INK = "#1b1f24"
COLOURS = ("#0072b2", "#d55e00", "#00805d", "#b0457f", "#8f6a00")  # page.html has them as --c0 to --c4, light and dark
DASHES: tuple[tuple[float, ...], ...] = ((), (4, 2), (1, 1.5), (6, 2, 1, 2), (9, 3))  # colours alone are not enough
SHADES = (0.18, 0.3)
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
STYLE |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
FAN, POINTS = 240, 400  # origins of a fan, points of a line: more cannot be told apart


def _text(value: Any) -> str:
    """How the page shows a value; its own HTML as it is."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_text(part)}" for name, part in value.items())
    return ", ".join(map(_text, value)) if isinstance(value, list) else "–" if value is None else str(value)


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
    window: origins that an error over time is averaged over. fans, over_time: (head, SVG) each. dashes: of the
    legend's lines.
    """
    card, backtest, found = report["card"], report["backtest"], report.get("importance", {})
    window = min(max(12, periods.season(card["target"]["frequency"])), len(backtest["origins"]))  # at least a year's
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
        fans=_figures(card, "fan", partial(_fan, backtest), "forecasts with intervals, and what came true"),
        over_time=_figures(card, "time", partial(_over_time, backtest, window), "RMSE of model and baselines"),
        dashes=[[2 * length for length in dashes] for dashes in DASHES],
    )


def _figures(card: Report, name: str, draw: Callable[[int, Axes], None], says: str) -> list[tuple[str, str]]:
    """One chart a horizon, of CHARTS of them at most, each with its head."""
    horizons = card["horizons"]
    drawn = np.unique(np.linspace(0, len(horizons) - 1, CHARTS).astype(int)).tolist()
    heads = {place: f"Horizon {horizons[place]}" for place in drawn}
    return [(head, _svg(f"{name}{place}", f"{head}: {says}", partial(draw, place))) for place, head in heads.items()]


def _fan(made: Report, place: int, axes: Axes) -> None:
    """Forecasts with their intervals, and what came true, by the period that they are about; the last FAN of them."""
    when = np.array([row[place] for row in made["valid_time"][-FAN:]], "M8[D]")
    for level, shade in zip(sorted(made["lower"], reverse=True), SHADES, strict=True):
        low, high = (_column(made[end][level][-FAN:], place) for end in ("lower", "upper"))
        axes.fill_between(when, low, high, color=COLOURS[0], alpha=shade, linewidth=0)
    axes.plot(when, _column(made["forecast"]["model"][-FAN:], place), color=COLOURS[0], linewidth=1)
    axes.plot(when, _column(made["truth"][-FAN:], place), color=INK, linewidth=1)


def _over_time(made: Report, window: int, place: int, axes: Axes) -> None:
    """RMSE of the `window` origins up to each, of the model and every baseline."""
    truth = _column(made["truth"], place)
    when = np.array([origin[:10] for origin in made["origins"]], "M8[D]")[window - 1 :]
    step = -(-len(when) // POINTS)
    for number, rows in enumerate(made["forecast"].values()):
        squares = np.lib.stride_tricks.sliding_window_view((_column(rows, place) - truth) ** 2, window)
        dashes = (0, DASHES[number]) if DASHES[number] else "solid"
        rmse = np.sqrt(squares.mean(axis=1))[::step]
        axes.plot(when[::step], rmse, color=COLOURS[number], linewidth=1.2, linestyle=dashes)
    axes.set_yscale("log", nonpositive="mask")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def _column(rows: Sequence[Sequence[float | None]], place: int) -> Floats:
    return np.array(rows, np.float64)[:, place]  # None becomes NaN


def _svg(name: str, says: str, draw: Callable[[Axes], None]) -> str:
    """`name` keeps the ids of this chart apart from those of others; `says` is for those who cannot see it."""
    locator = AutoDateLocator(minticks=3, maxticks=7)  # type: ignore[no-untyped-call]
    out, unsaid = io.StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(4.6, 2.4))
        axes = figure.add_axes((0.12, 0.13, 0.87, 0.83))
        draw(axes)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
        figure.savefig(out, format="svg", transparent=True, metadata=unsaid)
    text = out.getvalue()
    text = re.sub(r' id="[\w.]+_\d+"', "", text[text.index("<svg") :])  # numbered ids would stand in every chart
    text = re.sub(r"([ML] -?\d+\.\d)\d*( -?\d+\.\d)\d*", r"\1\2", text)  # a tenth of a point is enough
    for place, colour in enumerate(COLOURS):
        text = text.replace(colour, f"var(--c{place})")
    return text.replace(INK, "currentColor").replace("<svg", f'<svg role="img" aria-label="{escape(says)}"', 1)
