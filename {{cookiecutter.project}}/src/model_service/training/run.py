"""`train`: read by two clocks, backtest, gate, serialize, register, promote."""

from collections.abc import Callable
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from threadpoolctl import threadpool_limits

from model_service import artifact, features, forecasting, registry
from model_service.contract import Contract
from model_service.errors import Blocked, ServiceError
from model_service.store import read
from model_service.training import Cases, backtest, cases, estimators, gate, report, serialize

BUILD = "build"
Say = Callable[[str], None]


def train(
    contract: Contract, connection: psycopg.Connection[Any], root: Path, known_at: datetime, say: Say
) -> dict[str, Any]:
    """Trains as of `known_at`, gates, registers and promotes; returns version, digest and whether it was promoted.

    Writes `build/report.md` and `build/report.json` in any case. Raises Blocked with every rule that refused, and
    NoDataYet or ServiceError when the data are too few.
    """
    with threadpool_limits(1):  # sums in another order are other bytes
        version = read.data_version(connection)
        known = forecasting.known_inputs(contract, connection, known_at, version)
        table = cases(contract, known.rows, known_at)
        _enough(table)
        say(f"{len(table.origin)} origins, {len(features.inputs(contract))} inputs, {contract.train.estimator}")
        tested = backtest.run(table, say)
        if not tested.scored.any():
            raise ServiceError(f"no origin from train.first_origin {contract.train.first_origin} on can be scored yet")
        fitted, graph, rules = _fit(table)
        rules = [*_judge(tested), *rules, _leak(tested, say)]
        card = report.card(tested, rules, root, known_at, known.until, version)
        files = report.files(card, tested, fitted, graph)
    report.write(root / BUILD, card, rules)
    for rule in rules:
        say(f"{'pass ' if rule.ok else 'BLOCK'}  {rule}")
    if refused := [f"  {rule}" for rule in rules if not rule.ok]:
        raise Blocked(
            "\n".join(["the gate refused; nothing was registered (build/report.md has all figures):", *refused])
        )
    return _register(connection, root / BUILD / "model", files)


def _enough(table: Cases) -> None:
    first, place = table.contract.train.first_origin, table.first_backtest
    usable, tested = int(table.complete[:place].sum()), len(table.origin) - place
    if usable < estimators.FEWEST_CASES or tested < 24:
        raise ServiceError(
            f"too little data: {usable} complete cases before train.first_origin {first} (at least"
            f" {estimators.FEWEST_CASES}) and {tested} origins from it on (at least 24); load more, or choose another"
            " first_origin"
        )
    forecasting.complete(table.contract, table.inputs[-1], "now")


def _fit(table: Cases) -> tuple[estimators.Fitted, bytes, list[gate.Rule]]:
    """The model on everything known now, as a graph, fitted twice."""
    truth = table.labels(int(table.origin[-1]))
    width = table.inputs.shape[1]
    fitted, again = estimators.fit(table, truth), estimators.fit(table, truth)
    for one in (fitted, again):
        serialize.round_thresholds(one)
    graph = serialize.graph(fitted, width)
    off = serialize.parity(fitted, graph, table.inputs[table.complete], table.contract.train.seed)
    differ = int(graph != serialize.graph(again, width))
    rules = [
        gate.at_most("onnx_parity", off, serialize.PARITY, "largest relative error of the ONNX graph"),
        gate.at_most("determinism", differ, 0, "bytes differ between two fits of the same data:"),
    ]
    return fitted, graph, rules


def _judge(tested: backtest.Backtest) -> list[gate.Rule]:
    contract, scored = tested.table.contract, tested.scored
    truth = tested.truth[scored]
    losses = gate.Losses(
        np.flatnonzero(scored) // max(12, *contract.target.horizons),  # neighbours' errors overlap by a horizon
        (tested.forecast[scored] - truth) ** 2,
        {name: (forecast[scored] - truth) ** 2 for name, forecast in tested.baseline.items()},
    )
    horizons = {f"h{horizon}": number for number, horizon in enumerate(contract.target.horizons)}
    coverage = {level: min(shares) for level, shares in tested.coverage().items()}
    return gate.judge(contract.gate, losses, horizons, coverage, contract.train.seed)


def _leak(tested: backtest.Backtest, say: Say) -> gate.Rule:
    """Origins across the backtest, and the last one, each forecast twice: with and without what was not known there."""
    places = sorted({*np.linspace(tested.places[0], tested.places[-1], 4).astype(int).tolist()})
    say(f"leak test at {len(places)} origins")
    return gate.at_most("leak", len(backtest.leaked(tested.table, places)), 0, "forecasts that saw the future:")


def _register(connection: psycopg.Connection[Any], folder: Path, files: dict[str, bytes]) -> dict[str, Any]:
    artifact.write(folder, files, "unregistered")
    version = registry.register(connection, folder)
    digest = artifact.write(folder, files, str(version))
    promoted = registry.promote(connection, version, "promote", "passed the gate")
    return {"version": version, "digest": digest, "promoted": promoted}


def newest_knowledge(connection: psycopg.Connection[Any]) -> datetime:
    """The end of the day on which the newest value held became known: the same data then give the same model."""
    newest = read.newest_known_from(connection)
    if newest is None:
        raise ServiceError("nothing has been loaded yet: run `python -m model_service load`")
    return datetime.combine(newest.astimezone(UTC), time.max, UTC)
