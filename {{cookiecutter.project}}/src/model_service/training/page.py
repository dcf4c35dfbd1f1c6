"""The report of a training as one HTML page that needs nothing else: tables, and charts as SVG, put into page.html.

Whatever comes from data, from service.toml or from people is escaped. The same report gives the same page.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from model_service import periods
from model_service.training import charts

Report = Mapping[str, Any]
CHARTS = 6  # horizons drawn, from the first to the last
ROWS = 20  # of a table that has no bound; report.json has them all
NUMBER = re.compile(r"–|[-+]?\d[\d.,%e+-]*( <small>.*)?")
LONG = 300  # characters of a card's value
FEW_VINTAGES = 12
ELSEWHERE = {"inputs", "input_range", "metrics", "gate", "intervals", "loads", "reach"}  # of the card, or too long
MORE = {
    "search": "What the search tried",
    "live": "Live errors",
    "runs": "Trainings before this one",
    "score": "ML Test Score",
}


class Html(str):
    """Text that is HTML already; every other is escaped."""


def page(report: Report) -> str:
    """The page of `report.body`; of MORE whatever is there, each a list of rows {column: value}."""
    card, backtest = report["card"], report["backtest"]
    clocks, target, origins = card["trained_as_of"], card["target"], card["metrics"]["origins"]
    window = _window(report)
    parts: dict[str, Any] = {
        "title": f"{card['service']}: {target['series']} by {card['estimator']}",
        "verdict": _verdict(report["gate"], card.get("overruled", {}).get("reason", "")),
        "description": report["description"],
        "known_at": clocks["known_at"],
        "data_version": clocks["data_version"],
        "unit": target["unit"],
        "forecast": _forecast(report["forecast"]),
        "scored": origins["scored"],
        "first": origins["first"],
        "last": origins["last"],
        "real": origins["real"],
        "pseudo": origins["pseudo"],
        "fan_key": _key(["model"]),
        "fans": _figures(card, partial(charts.fan, backtest), "forecasts with intervals, and what came true"),
        "rmse": _rmse(report),
        "slices": _slices(card),
        "champion": _champion(report),
        "window": window,
        "error_key": _key(backtest["forecast"]),
        "over_time": _figures(card, partial(charts.over_time, backtest, window=window), "RMSE of model and baselines"),
        "coverage": _coverage(card),
        "gate": _gate(report["gate"]),
        "importance": _importance(card, report.get("importance", {})),
        "revisions": _revisions(report),
        "series": _series(report["series"]),
        "loads": _loads(report["loads"]),
        "more": Html("".join(_section(report[name], name, head) for name, head in MORE.items() if name in report)),
        "card": _card(card),
    }
    template = Template((Path(__file__).parent / "page.html").read_text("utf-8"))
    return template.substitute({name: _html(part) for name, part in parts.items()})


def _html(value: Any) -> str:
    if isinstance(value, Html):
        return value
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{escape(str(name))}: {_html(part)}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(_html, value))
    return "–" if value is None else escape(str(value))


def _said(name: str) -> str:
    return escape(name.replace("_", " "))


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> Html:
    """Numbers stand at the right, but for those of the first column."""
    cells = [[_html(value) for value in row] for row in rows]

    def line(kind: str, texts: Sequence[str], like: Sequence[str]) -> str:
        sides = [' class="number"' if place and NUMBER.fullmatch(one) else "" for place, one in enumerate(like)]
        return "".join(f"<{kind}{side}>{text}</{kind}>" for side, text in zip(sides, texts, strict=True))

    top = line("th", [_said(name) for name in head], cells[0] if cells else head)
    body = "".join(f"<tr>{line('td', row, row)}</tr>" for row in cells)
    says = f"<caption>{escape(caption)}</caption>" if caption else ""
    return Html(f'<div class="table"><table>{says}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>')


def _records(rows: Sequence[Mapping[str, Any]]) -> Html:
    """A table of rows that name their columns; the first ROWS of them."""
    if not rows:
        return Html("<p>Nothing yet.</p>")
    shown = [[row.get(name) for name in rows[0]] for row in rows[:ROWS]]
    return _table(list(rows[0]), shown, _left_out(len(rows)))


def _left_out(count: int) -> str:
    return f"{ROWS} of {count}; report.json has them all" if count > ROWS else ""


def _section(rows: Sequence[Mapping[str, Any]], name: str, head: str) -> str:
    return f'<h2 id="{name}">{head}</h2>\n{_records(rows)}\n'


def _small(text: Any, below: str) -> Html:
    return Html(f"{_html(text)} <small>{_html(below)}</small>")


def _word(rule: Mapping[str, Any]) -> Html:
    if rule["ok"]:
        return Html('<span class="good">pass</span>')
    return Html(f'<span class="bad">{"overruled" if rule.get("overruled") else "BLOCK"}</span>')


def _verdict(rules: Sequence[Mapping[str, Any]], reason: str) -> Html:
    failed = {rule["name"]: rule.get("overruled") for rule in rules if not rule["ok"]}
    if not failed:
        return Html(f'<span class="good">Passed the gate, all {len(rules)} rules.</span>')
    word = f"Passed, overruled because {reason!r}" if all(failed.values()) else "BLOCKED by the gate"
    return Html(f'<span class="bad">{escape(word)}: {escape(", ".join(failed))}.</span>')


def _gate(rules: Sequence[Mapping[str, Any]]) -> Html:
    rows = [(_small(rule["name"], rule["says"]), float(rule["figure"]), float(rule["limit"]), _word(rule))
            for rule in rules]  # fmt: skip
    return _table(["rule", "figure", "limit", "verdict"], rows)


def _forecast(made: Sequence[Mapping[str, Any]]) -> Html:
    levels = [spread["level"] for spread in made[0]["intervals"]]
    rows = [
        (one["horizon"], one["valid_time"], one["value"],
         *(_small(spread["lower"], f"to {_number(spread['upper'])}") for spread in one["intervals"]))
        for one in made
    ]  # fmt: skip
    return _table(["horizon", "period", "forecast", *(f"{level:.0%} interval" for level in levels)], rows)


def _rmse(report: Report) -> Html:
    rmse, horizons = report["card"]["metrics"]["rmse"], report["card"]["horizons"]
    against = [value or float("nan") for value in rmse["last_value"]]  # 0 for a target that never changes
    rows = [
        (horizon, *(_small(own[n], f"{own[n] / against[n]:.2f}") for own in rmse.values()))
        for n, horizon in enumerate(horizons)
    ]
    return _table(["horizon", *rmse], rows)


def _slices(card: Report) -> Html:
    found = card["metrics"].get("slices")
    if not found:
        return Html("")
    rows = [
        (_small(one["slice"], one["says"]), one["cases"],
         *(_small(own, f"{_number(low)}–{_number(high)}, {ratio:.2f}")
           for (own, low, high), ratio in zip(one["rmse"], one["ratio"], strict=True)))
        for one in found
    ]  # fmt: skip
    says = "The model by slice; below, a 90 % interval, and the share of the best baseline there"
    return _table(["slice", "cases", *(f"horizon {horizon}" for horizon in card["horizons"])], rows, says)


def _champion(report: Report) -> Html:
    found, horizons = report.get("champion"), report["card"]["horizons"]
    if not found:
        return Html("<p>There was no champion to compare with.</p>")
    parts = {"common": "origins that both have forecasts of, neither fitted on them", "later": "after its training"}
    rows = []
    for name, says in parts.items():
        part = found[name]
        pairs = zip(part.get("model", horizons), part.get("champion", horizons), strict=True)
        cells = [_small(own, f"champion {_number(other)}") if part["origins"] else None for own, other in pairs]
        rows.append((_small(f"{part['origins']} origins", says), *cells))
    return _table([f"beside champion {found['version']}", *(f"horizon {horizon}" for horizon in horizons)], rows)


def _coverage(card: Report) -> Html:
    found = card["metrics"]["coverage"]
    rows = zip(card["horizons"], *([f"{share:.1%}" for share in shares] for shares in found.values()), strict=True)
    return _table(["horizon", *(f"{float(level):.0%} interval" for level in found)], rows)


def _importance(card: Report, found: Mapping[str, float]) -> Html:
    """Inputs by what the loss becomes without them, with a bar, and the range each had in training."""
    names = sorted(card["inputs"], key=lambda name: -found.get(name, 0))
    most = max([ratio - 1 for ratio in found.values()], default=0) or 1
    rows = []
    for name in names[:ROWS]:
        wide = 100 * max(0.0, found.get(name, 1) - 1) / most
        bar = Html(f'<svg class="bar" viewBox="0 0 100 8" aria-hidden="true"><path d="M0 0h{wide:.1f}v8H0z"/></svg>')
        low, high = card["input_range"][name]
        rows.append((_small(name, f"{low:.3g} to {high:.3g} in training"), found.get(name), bar))
    return _table(["input", "loss ratio", ""], rows, _left_out(len(names)))


def _revisions(report: Report) -> Html:
    made = report["vintages"]
    if not made:
        return Html("<p>No vintage is complete enough to forecast from.</p>")
    many = max(one["vintages"] for one in report["series"].values())
    few = f"Only {many} vintages are held: this says little yet." if many < FEW_VINTAGES else ""
    horizons = report["card"]["horizons"]
    rows = [
        (one["vintage"], *(_small(then, f"{now - then:+.2g}") for then, now in zip(one["known"], one["revised"],
                                                                                     strict=True)))
        for one in made
    ]  # fmt: skip
    return Html(f"<p>{few}</p>" + _table(["as of", *(f"horizon {horizon}" for horizon in horizons)], rows))


def _series(series: Mapping[str, Mapping[str, Any]]) -> Html:
    most = sorted(series.items(), key=lambda item: -item[1]["revision"])
    rows = []
    for name, one in most[:ROWS]:
        about = "{unit}; by {frequency}, {first} to {last}; lag {release_lag_days} days".format_map(one)
        moved = f"by\xa0{one['revision']:.2g}" if one["revised"] else ""
        rows.append((_small(name, about), one["values"], one["vintages"], _small(one["revised"], moved)))
    return _table(["series", "values", "vintages", "revised"], rows, _left_out(len(series)))


def _loads(loads: Sequence[Mapping[str, Any]]) -> Html:
    rows = [
        (_small(one["file"], f"load {one['load_id']} of {one['dataset']}, {one['kind']}, {one['status']}"),
         *(f"{one[count]:,}" for count in ("new", "changed", "deleted")))
        for one in loads[:ROWS]
    ]  # fmt: skip
    return _table(["load", "new", "changed", "deleted"], rows, _left_out(len(loads)))


def _card(card: Report) -> Html:
    rows = []
    for name, value in card.items():
        if name not in ELSEWHERE:
            text = _html(value)  # the flags of a processor alone are a page
            text = f"<details><summary>long</summary>{text}</details>" if len(text) > LONG else text
            rows.append((Html(f"<b>{_said(name)}</b>"), Html(f"<code>{text}</code>")))
    return _table(["what", "value"], rows)


def _key(names: Iterable[str]) -> Html:
    """The legend of charts whose lines have these names, in order."""
    return Html(" ".join(f"<b>{charts.line(place)}{_said(name)}</b>" for place, name in enumerate(names)))


def _figures(card: Report, draw: Callable[[int, str], str], says: str) -> Html:
    """One chart a horizon, of CHARTS of them at most."""
    horizons = card["horizons"]
    drawn = np.unique(np.linspace(0, len(horizons) - 1, CHARTS).astype(int)).tolist()
    found = [(f"Horizon {horizons[place]}", place) for place in drawn]
    return Html("".join(f"<figure><figcaption>{head}</figcaption>{draw(place, f'{head}: {says}')}</figure>"
                        for head, place in found))  # fmt: skip


def _window(report: Report) -> int:
    """Origins that an error over time is averaged over: a year's, at least twelve."""
    return min(max(12, periods.season(report["card"]["target"]["frequency"])), len(report["backtest"]["origins"]))
