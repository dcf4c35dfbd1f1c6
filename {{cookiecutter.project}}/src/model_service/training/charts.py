"""The charts of a report as SVG elements of its page, in the page's font and colours; the same figures, the same bytes.

Each shows one horizon of the backtest as in report.json: lists by origin and horizon, None where nothing is known.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from model_service.features import Floats

Backtest = Mapping[str, Any]
INK = "#1b1f24"
COLOURS = ("#0072b2", "#d55e00", "#00805d", "#b0457f", "#8f6a00")  # page.html has them as --c0 to --c4, light and dark
DASHES: tuple[tuple[float, ...], ...] = ((), (4, 2), (1, 1.5), (6, 2, 1, 2), (9, 3))  # colours alone are not enough
SHADES = (0.18, 0.3)
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
STYLE |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
FAN, POINTS = 240, 400  # origins of a fan, points of a line: more cannot be told apart


def fan(made: Backtest, place: int, says: str) -> str:
    """Forecasts with their intervals, and what came true, by the period that they are about; the last FAN of them."""

    def draw(axes: Axes) -> None:
        when = np.array([row[place] for row in made["valid_time"][-FAN:]], "M8[D]")
        for level, shade in zip(sorted(made["lower"], reverse=True), SHADES, strict=True):
            low, high = (_column(made[end][level][-FAN:], place) for end in ("lower", "upper"))
            axes.fill_between(when, low, high, color=COLOURS[0], alpha=shade, linewidth=0)
        axes.plot(when, _column(made["forecast"]["model"][-FAN:], place), color=COLOURS[0], linewidth=1)
        axes.plot(when, _column(made["truth"][-FAN:], place), color=INK, linewidth=1)

    return _svg(f"fan{place}", says, draw)


def over_time(made: Backtest, place: int, says: str, window: int) -> str:
    """RMSE of the `window` origins up to each, of the model and every baseline."""

    def draw(axes: Axes) -> None:
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

    return _svg(f"time{place}", says, draw)


def line(place: int) -> str:
    """How the line of that number looks, for a legend."""
    dashes = " ".join(str(2 * length) for length in DASHES[place])
    path = f'<path d="M0 3H30" stroke="var(--c{place})" stroke-dasharray="{dashes}"/>'
    return f'<svg viewBox="0 0 30 6" aria-hidden="true">{path}</svg>'


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
