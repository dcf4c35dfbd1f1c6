"""Rules that need more than losses: the model itself, its graph, and the table it was made from."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from statistics import NormalDist
from time import perf_counter
from typing import Any

import numpy as np

from model_service import artifact, features, periods
from model_service.arrays import Floats
from model_service.freshness import GRACE_DAYS
from model_service.registry import Registered
from model_service.training import Cases, backtest, estimators, serialize
from model_service.training.estimators import Settings
from model_service.training.gate import TINY, Rule, at_most
from model_service.training.search import Choice

Say = Callable[[str], None]
Serve = Callable[[datetime], Floats]  # the inputs [F] that serving makes at an as-of time

RECENT = 24  # cases
NUDGE = 0.1  # of each input's spread
DRAWS = 20
SHUFFLES = 10
ROUNDS = 300
SHOWN = 5  # names in a line


@dataclass(frozen=True)
class Candidate:
    """A training before the gate has seen it.

    fitted: on everything known at the last case. graph: the same in ONNX. again: of a second fit to the same data.
    importance, useless: see `importance`. choice: of the settings that `fitted` has.
    """

    tested: backtest.Backtest
    fitted: estimators.Fitted
    graph: bytes
    again: bytes
    importance: dict[str, float]
    useless: tuple[str, ...]
    choice: Choice

    @property
    def is_cut(self) -> bool:
        """Whether the clock ended a search: a faster machine may choose other settings."""
        return any(choice.cut for choice in [*self.tested.searches, self.choice])

    @property
    def rows(self) -> Floats:
        """The complete inputs of the backtest's origins: float64 [k, F]."""
        table, places = self.tested.table, self.tested.places
        return table.inputs[places][table.complete[places]]


def rules(made: Candidate, serve: Serve, say: Say) -> list[Rule]:
    """What data, clocks and code decide alone. A graph of another signature than declared is asked nothing more."""
    table, size = made.tested.table, len(made.graph)
    found = [_signature(made), _skew(table, serve), _fresh(table), _complete(made), _in_range(table), _useless(made)]
    found.append(at_most("size", size, table.contract.gate.max_model_bytes, "bytes of the ONNX graph:"))
    if found[0].ok:
        differ = at_most("determinism", made.graph != made.again, 0, "bytes differ between two fits of the same data:")
        found += [_parity(made), differ, _leak(made, say), _perturbation(made), *_directions(made)]
    return found


def _signature(made: Candidate) -> Rule:
    contract, session = made.tested.table.contract, artifact.session(made.graph)
    declared = [
        ("features", "tensor(double)", None, len(features.inputs(contract))),
        ("forecast", "tensor(double)", None, len(contract.target.horizons)),
    ]
    found = [(one.name, one.type, *one.shape) for one in [*session.get_inputs(), *session.get_outputs()]]
    differ = len({*declared} ^ {*found})
    says = f"differences between the graph's inputs and outputs and the declared ones ({found}):"
    return at_most("signature", differ, 0, says if differ else "differences from the declared inputs and outputs:")


def _skew(table: Cases, serve: Serve) -> Rule:
    """Serving's row against the one learnt from, bit for bit, at origins that serving can answer: of real vintages."""
    real = np.flatnonzero(table.real & table.complete)
    places = real[np.unique(np.linspace(0, len(real) - 1, 4).astype(int))]
    moments = {place: periods.instant(int(table.origin[place])) for place in places}
    differ = [at for place, at in moments.items() if serve(at).tobytes() != table.inputs[place].tobytes()]
    where = f" ({', '.join(f'{at:%Y-%m-%d}' for at in differ)})" if differ else ""
    return at_most("skew", len(differ), 0, f"rows that serving makes otherwise than training{where}:")


def _fresh(table: Cases) -> Rule:
    """How long the next value of each series has been due at the training, in what its source's cadence allows."""
    contract, now, overdue = table.contract, int(table.origin[-1]), {}
    for name, held in table.held.items():
        first, values = held.at(now)
        series = contract.series[name]
        ends = features.midnight(periods.end(series.frequency, first + values.size))
        cadence = contract.cadence_days(series.source)
        late = (now - ends) / features.DAY - series.release_lag_days
        overdue[name] = max(0.0, late / (cadence + max(GRACE_DAYS, cadence / 2)))
    worst = max(overdue, key=lambda name: overdue[name])
    return at_most("fresh", overdue[worst], contract.gate.max_overdue,
                   f"{worst} is overdue at the training's as-of, relative to what its cadence allows,")  # fmt: skip


def _complete(made: Candidate) -> Rule:
    table, places = made.tested.table, made.tested.places
    gone = ~table.complete[places]
    worst = features.inputs(table.contract)[int(np.isnan(table.inputs[places]).sum(axis=0).argmax())]
    share = max(float(gone.mean()), float(gone[-RECENT:].mean()))
    says = f"share of origins without all inputs, of all or the last {RECENT}, most often {worst},"
    return at_most("complete", share, table.contract.gate.max_incomplete, says)


def _in_range(table: Cases) -> Rule:
    """How far the newest inputs lie outside all earlier ones, relative to the range of those."""
    earlier, newest = table.inputs[:-1][table.complete[:-1]], table.inputs[-1]
    low, high = earlier.min(axis=0), earlier.max(axis=0)
    beyond = np.maximum(low - newest, newest - high) / np.maximum(high - low, TINY)
    worst = int(beyond.argmax())
    says = f"newest {features.inputs(table.contract)[worst]} outside its range, relative to that range,"
    return at_most("in_range", float(np.maximum(beyond[worst], 0)), table.contract.gate.max_beyond_range, says)


def importance(tested: backtest.Backtest, settings: Settings) -> tuple[dict[str, float], tuple[str, ...]]:
    """Input to the loss with that input shuffled among the cases, relative to the loss as it is; horizons averaged.

    And the inputs that were not shown to matter: one-sided test of the mean increase at `gate.level`. Out of sample:
    fitted on what was known at the middle of the backtest, asked at the scored origins after it.
    """
    table, middle = tested.table, int(tested.places[len(tested.places) // 2])
    later = tested.scored & (tested.places >= middle)
    if not later.any():
        return {}, ()
    known = table.labels(int(table.origin[middle]))
    known[middle:] = np.nan
    fitted = estimators.fit(table, known, settings)
    rows, truth = table.inputs[tested.places][later], tested.truth[later]
    rng = np.random.default_rng(table.contract.train.seed)
    order = np.concatenate([rng.permutation(len(rows)) for _ in range(SHUFFLES)])
    repeated, plain = np.tile(rows, (SHUFFLES, 1)), (fitted.predict(rows) - truth) ** 2
    scale, found, useless = np.maximum(plain.mean(axis=0), TINY), {}, []
    for place in estimators.column_places(table.contract):
        name = features.inputs(table.contract)[place]
        repeated[:, place] = rows[order, place]
        made = fitted.predict(repeated).reshape(SHUFFLES, *truth.shape)
        repeated[:, place] = np.tile(rows[:, place], SHUFFLES)
        more = ((((made - truth) ** 2).mean(axis=0) - plain) / scale).mean(axis=1)
        found[name] = 1 + float(more.mean())
        if not more.mean() > NormalDist().inv_cdf(1 - table.contract.gate.level) * more.std() / np.sqrt(len(more)):
            useless.append(name)
    return found, tuple(useless)


def _useless(made: Candidate) -> Rule:
    named = ", ".join([*made.useless[:SHOWN], *["..."] * (len(made.useless) > SHOWN)])
    share = len(made.useless) / max(1, len(made.importance))
    says = f"share of inputs not shown to matter{f' ({named})' if named else ''}:"
    return at_most("useless", share, made.tested.table.contract.gate.max_useless, says)


def _parity(made: Candidate) -> Rule:
    table = made.tested.table
    off = serialize.parity(made.fitted, made.graph, table.inputs[table.complete], table.contract.train.seed)
    return at_most("onnx_parity", off, serialize.PARITY, "largest relative error of the ONNX graph")


def _leak(made: Candidate, say: Say) -> Rule:
    """Origins across the backtest, and the last one, each forecast twice: with and without what was not known there."""
    tested = made.tested
    places = sorted({*np.linspace(tested.places[0], tested.places[-1], 4).astype(int).tolist()})
    say(f"leak test at {len(places)} origins")
    return at_most("leak", len(backtest.leaked(tested.table, places)), 0, "forecasts that saw the future:")


def _perturbation(made: Candidate) -> Rule:
    """How far forecasts go when every declared input moves by a tenth of its spread, up or down at random.

    Root mean square over rows and draws, in the spread of the modelled change; the horizon that moves furthest.
    """
    table, rows, names = made.tested.table, made.rows, estimators.column_places(made.tested.table.contract)
    transform, rng = table.contract.target.transform, np.random.default_rng(table.contract.train.seed)
    session = artifact.session(made.graph)

    def changes(inputs: Floats) -> Floats:
        return features.apply_transform(transform, _asked(session, inputs), inputs[:, :1])

    anchor = table.anchor[made.tested.places, None]
    typical = np.nanstd(features.apply_transform(transform, made.tested.truth, anchor), axis=0)
    plain, step, squares = changes(rows), NUDGE * rows[:, names].std(axis=0), []
    for _ in range(DRAWS):
        moved = rows.copy()
        moved[:, names] += step * rng.choice([-1.0, 1.0], (len(rows), len(names)))
        squares.append(((changes(moved) - plain) ** 2).mean(axis=0))
    figure = float((np.sqrt(np.mean(squares, axis=0)) / np.maximum(typical, TINY)).max())
    says = f"forecast moved by {NUDGE:g} of each input's spread, relative to the usual change,"
    return at_most("perturbation", figure, table.contract.gate.max_perturbation, says)


def _directions(made: Candidate) -> list[Rule]:
    """Of each declared direction, all lags of the feature moved together: the way the mean forecast goes wrong."""
    contract, session, rows = made.tested.table.contract, artifact.session(made.graph), made.rows
    names, wrong = features.inputs(contract), {}
    for feature in contract.feature:
        if feature.direction:
            way = 1 if feature.direction == "up" else -1
            places = [names.index(name) for name in feature.names]
            means = []
            for step in np.linspace(-1, 1, 9):
                moved = rows.copy()
                moved[:, places] += step * rows[:, places].std(axis=0)
                means.append(_asked(session, moved).mean(axis=0))
            steps = way * np.diff(means, axis=0)
            against = np.maximum(-steps, 0).sum(axis=0) / np.maximum(np.abs(steps).sum(axis=0), TINY)
            wrong[feature.names[0]] = float(against.max())
    if not wrong:
        return []
    worst = list(wrong)[np.argmax(list(wrong.values()))]  # NaN is the worst
    limit = contract.gate.max_wrong_direction
    return [at_most("directions", wrong[worst], limit, f"share of the forecast's way against that of {worst}")]


def against(made: Candidate, champion: Registered | None) -> list[Rule]:
    """What depends on the clock of this machine or on the model in force: latency, and the change from it."""
    if not _signature(made).ok:
        return []
    contract, graph, row = made.tested.table.contract, artifact.session(made.graph), made.rows[-1:]
    if champion is None or not _routine(made, json.loads(champion.files["card.json"])):
        taken = _medians([graph], row)[0]
        return [at_most("latency", taken, contract.alerts.latency_seconds, "seconds for one row, median,")]
    before, recent = artifact.session(champion.files["model.onnx"]), made.rows[-RECENT:]
    own, other = _medians([graph, before], row)
    moved = np.sqrt(((_asked(graph, recent) - _asked(before, recent)) ** 2).mean(axis=0))
    scored = made.tested.scored
    usual = np.sqrt(((made.tested.forecast - made.tested.truth)[scored] ** 2).mean(axis=0))
    change = float((moved / np.maximum(usual, TINY)).max())
    return [
        at_most("latency", own / other, contract.gate.max_latency_ratio, "latency relative to the champion's"),
        at_most("change", change, contract.gate.max_change,
                f"change from the champion's forecasts at the last {len(recent)} origins, relative to the RMSE,"),
    ]  # fmt: skip


def _routine(made: Candidate, card: dict[str, Any]) -> bool:
    """Whether this is the champion trained anew: same target, inputs and estimator."""
    contract = made.tested.table.contract
    target = contract.target
    mine = [target.series, target.transform, list(target.horizons), features.inputs(contract), contract.train.estimator]
    was = card["target"]
    return mine == [was["series"], was["transform"], card["horizons"], card["inputs"], card["estimator"]]


def _asked(session: Any, inputs: Floats) -> Floats:
    return np.asarray(session.run(["forecast"], {"features": np.ascontiguousarray(inputs)})[0])


def _medians(sessions: list[Any], row: Floats) -> list[float]:
    """Seconds for one row, of each session, asked in turn so that noise of the machine falls on all alike."""
    taken: list[list[float]] = [[] for _ in sessions]
    for _ in range(ROUNDS):
        for session, times in zip(sessions, taken, strict=True):
            started = perf_counter()
            _asked(session, row)
            times.append(perf_counter() - started)
    return [float(np.median(times)) for times in taken]
