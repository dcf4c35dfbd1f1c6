"""`train`: read by two clocks, backtest, gate, serialize, register, promote."""

from datetime import UTC, datetime, time
from pathlib import Path
from typing import Any

import psycopg
from threadpoolctl import threadpool_limits

from model_service import artifact, features, forecasting, registry
from model_service.contract import Contract
from model_service.errors import Blocked, ServiceError
from model_service.store import read
from model_service.training import Cases, backtest, cases, estimators, evaluate, probes, report, serialize
from model_service.training.gate import Rule
from model_service.training.probes import Candidate, Say

BUILD = "build"


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
        made = candidate(cases(contract, known.rows, known_at), say)
        rules = judged(made, say)
        card = report.card(made.tested, rules, root, known_at, known.until, version)
        files = report.files(card, made)
    report.write(root / BUILD, card, rules)
    _refuse(rules, say)
    return _register(connection, root / BUILD / "model", files)


def candidate(table: Cases, say: Say) -> Candidate:
    """Backtest, and the model on everything known at the last case, fitted twice."""
    _enough(table)
    say(f"{len(table.origin)} origins, {len(features.inputs(table.contract))} inputs, {table.contract.train.estimator}")
    tested = backtest.run(table, say)
    if not tested.scored.any():
        first = table.contract.train.first_origin
        raise ServiceError(f"no origin from train.first_origin {first} on can be scored yet")
    fitted, graph = _fit(table)
    _, again = _fit(table)
    return Candidate(tested, fitted, graph, again)


def judged(made: Candidate, say: Say) -> list[Rule]:
    """Every rule of the gate, passed or not."""
    return [*evaluate.rules(made.tested), *probes.rules(made, say)]


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


def _fit(table: Cases) -> tuple[estimators.Fitted, bytes]:
    fitted = estimators.fit(table, table.labels(int(table.origin[-1])))
    serialize.round_thresholds(fitted)
    return fitted, serialize.graph(fitted, table.inputs.shape[1])


def _refuse(rules: list[Rule], say: Say) -> None:
    for rule in rules:
        say(f"{'pass ' if rule.ok else 'BLOCK'}  {rule}")
    if refused := [f"  {rule}" for rule in rules if not rule.ok]:
        raise Blocked(
            "\n".join(["the gate refused; nothing was registered (build/report.md has all figures):", *refused])
        )


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
