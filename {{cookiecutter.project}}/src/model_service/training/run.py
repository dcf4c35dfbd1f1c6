"""`train`: read by two clocks, backtest, gate, serialize, record, register, promote."""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from model_service import artifact, experiments, features, forecasting, live, ml_test_score, periods, registry, settings
from model_service.arrays import Floats
from model_service.contract import Contract
from model_service.errors import Blocked, ServiceError, UsageError
from model_service.mistakes import did_you_mean, location
from model_service.registry import Registered
from model_service.store import read
from model_service.store.connection import Connection
from model_service.training import Cases, backtest, cases, estimators, evaluate, probes, report, search, serialize
from model_service.training.gate import MANDATORY, OTHER, Rule
from model_service.training.probes import Candidate, Say, Serve

BUILD = "build"
FEWEST_ORIGINS = 24  # of a backtest
INPUTS = "inputs.npy"


@dataclass(frozen=True)
class Overruling:
    """Rules that a person lets pass, whatever their figures, and why."""

    rules: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Training:
    """A training that nothing was done about yet. It rests on clocks, code and `Overruling` alone: it can be repeated.

    rules: those that look at neither champion nor this machine's clock.
    """

    candidate: Candidate
    rules: list[Rule]
    card: dict[str, Any]


def train(
    contract: Contract,
    connection: Connection,
    root: Path,
    known_at: datetime,
    say: Say,
    data_version: str | None = None,
    overruling: Overruling = Overruling(),  # noqa: B008
) -> dict[str, Any]:
    """Trains as of `known_at`, gates, records the run, registers and promotes; returns what came of it.

    Writes `build/report.html` and `build/report.json` in any case. Raises Blocked with every rule that refused,
    NoDataYet or ServiceError when the data are too few, UsageError when a rule is overruled that is unknown or may not
    be.
    """
    began = time.monotonic()
    with threadpool_limits(1):  # sums in another order are other bytes
        made = make(contract, connection, root, known_at, say, data_version, overruling)
        champion = registry.champion(connection)
        rules = [*made.rules, *champion_rules(made.candidate, champion)]
        _known(overruling.rules, [rule.name for rule in rules])
        rules = [replace(rule, overruled=not rule.ok and rule.name in overruling.rules) for rule in rules]
        around = _around(contract, connection, root, made, champion)
        page = report.write(root / BUILD, report.body(made.card, made.candidate, rules, **around))
        for rule in rules:
            say(f"{'pass ' if rule.ok else 'BLOCK' if rule.blocks else 'OVERRULED'}  {rule}")
        refused = [f"  {rule}" for rule in rules if rule.blocks]
        files = {} if refused else report.files(made.card, made.candidate)
    waived = ", ".join(rule.name for rule in rules if rule.overruled)
    why = f"overruled {waived}: {overruling.reason}" if waived else "passed the gate"
    outcome = "blocked" if refused else "overruled" if waived else "passed"
    with connection.transaction():
        done = {} if refused else _register(contract, connection, root / BUILD / "model", files, why)
        told = {"gate": [vars(rule) for rule in rules], "page": page, "seconds": time.monotonic() - began}
        told |= _recorded(contract, made.card)
        number = experiments.record(connection, outcome=outcome, version=done.get("version"), **told)
    if refused:
        raise Blocked(
            "\n".join(["the gate refused; nothing was registered (build/report.html has all figures):", *refused])
        )
    if champion and done["promoted"] and known_at < artifact.trained_at(json.loads(champion.files["card.json"])):
        say(f"it knows less than model {champion.version}, whose place it took: `rollback` takes that back")
    return done | {"run": number, "outcome": outcome}


def make(
    contract: Contract,
    connection: Connection,
    root: Path,
    known_at: datetime,
    say: Say,
    data_version: str | None = None,
    overruling: Overruling = Overruling(),  # noqa: B008
) -> Training:
    """A model by a pair of clocks, and how it did; nothing is written. Raises as `train` does, but not Blocked."""
    if firm := sorted(MANDATORY.intersection(overruling.rules)):
        raise UsageError(f"{', '.join(firm)}: nobody may overrule what makes the other figures wrong")
    names = [*MANDATORY, *OTHER, *(f"coverage_{level}" for level in backtest.LEVELS)]
    names += [f"rmse_ratio_h{horizon}" for horizon in contract.target.horizons]
    _known([name for name in overruling.rules if not name.startswith("slice_")], names)  # slices come of the data
    with threadpool_limits(1):
        version = read.data_version(connection, data_version)
        known = forecasting.known_inputs(contract, connection, known_at, version)
        table = cases(contract, known.rows, known_at)
        require_enough_data(table, root / settings.CONTRACT)
        made = candidate(table, say)

        def serve(at: datetime) -> Floats:
            return forecasting.known_inputs(contract, connection, at, version).row

        rules = data_rules(made, serve, say)
        card = report.card(made.tested, rules, root, known_at, known.until, version)
        card |= {"chosen": made.fitted.chosen, "search": made.choice.tried}
        card |= {"search_cut": True} if made.is_cut else {}
    if overruling.rules:
        card["overruled"] = {"rules": list(overruling.rules), "reason": overruling.reason}
    return Training(made, rules, card)


def write(made: Training, folder: Path) -> str:
    """The model's files, and beside them the inputs that it learned from; returns the digest."""
    with threadpool_limits(1):
        digest = artifact.write(folder, report.files(made.card, made.candidate), "unregistered")
    table = made.candidate.tested.table
    np.save(folder / INPUTS, table.inputs[table.complete])
    return digest


def _known(asked: Iterable[str], names: list[str]) -> None:
    """Raises UsageError for a name that is none of a rule."""
    if unknown := [name for name in asked if name not in names]:
        raise UsageError(f"--overrule {unknown[0]}: there is no such rule{did_you_mean(unknown[0], names)}")


def candidate(table: Cases, say: Say) -> Candidate:
    """Backtest, and the model on everything known at the last case, fitted twice."""
    say(f"{len(table.origin)} origins, {len(features.inputs(table.contract))} inputs, {table.contract.train.estimator}")
    tested = backtest.run(table, say)
    if not tested.scored.any():
        first = table.contract.train.first_origin
        raise ServiceError(f"no origin from train.first_origin {first} on can be scored yet")
    choice = search.choose(table, table.labels(int(table.origin[-1])), say)
    fitted, graph = _fit(table, choice.settings)
    again = _fit(table, choice.settings)[1]
    return Candidate(tested, fitted, graph, again, *probes.importance(tested, choice.settings), choice)


def data_rules(made: Candidate, serve: Serve, say: Say) -> list[Rule]:
    """Every rule that data, clocks and code decide alone, passed or not: these stand in the card."""
    return [*evaluate.rules(made.tested), *probes.rules(made, serve, say)]


def champion_rules(made: Candidate, champion: Registered | None) -> list[Rule]:
    """Every rule that looks at the champion or at this machine's clock; a first model has no one to compare with."""
    first = Rule("champion", True, 0, 0, "the first model, judged against the baselines alone; champions before it:")
    return [evaluate.against(made.tested, champion) if champion else first, *probes.against(made, champion)]


def require_enough_data(table: Cases, declared: Path) -> None:
    """Raises ServiceError or UsageError that names the line of service.toml which asks for more than the data allow."""
    _require_usable_target(table, declared)
    train, place, target = table.contract.train, table.first_backtest, table.contract.target
    months = [f"{periods.instant(int(origin)):%Y-%m-%d}" for origin in table.origin]
    ready, last = np.flatnonzero(table.complete), len(table.origin) - FEWEST_ORIGINS
    enough = int(ready[estimators.FEWEST_CASES - 1]) + 1 if ready.size >= estimators.FEWEST_CASES else last + 1
    names = features.inputs(table.contract)
    for number, one in enumerate(table.contract.feature if enough > last else ()):
        made = table.inputs[:last, [names.index(name) for name in one.names]]
        if (known := int((~np.isnan(made).any(axis=1)).sum())) < estimators.FEWEST_CASES <= last:
            raise ServiceError(
                f"{location(declared, 'feature', number)}: {one.names[-1]} needs the last {one.reach} values, which are"
                f" there at {known} of {last} origins (at least {estimators.FEWEST_CASES}): shorten that, or load more"
            )
    if not enough <= place <= last:
        mend = f"choose one from {months[enough]} to {months[last]}, or load more" if enough <= last else "load more"
        raise ServiceError(
            f"{location(declared, 'train', 'first_origin')}: {train.first_origin} leaves"
            f" {(ready < place).sum()} complete cases before it (at least {estimators.FEWEST_CASES}) and"
            f" {len(table.origin) - place} origins from it on (at least {FEWEST_ORIGINS}): {mend}"
        )
    ahead = min(table.last[place] - table.last[enough - 1], table.last[-1] - table.last[place + FEWEST_ORIGINS - 1])
    if max(target.horizons) > ahead:
        raise ServiceError(
            f"{location(declared, 'target', 'horizons')}: {max(target.horizons)} periods is longer than"
            f" the data allow: at most {ahead}, so that {estimators.FEWEST_CASES} cases had come true at"
            f" train.first_origin and {FEWEST_ORIGINS} from it on have by now; shorten it, load more, or choose another"
            " first_origin"
        )
    if missing := estimators.missing(table.contract):
        raise UsageError(f"{location(declared, 'train', 'estimator')}: {missing}")
    forecasting.require_complete(table.contract, table.inputs[-1], "now")


def _require_usable_target(table: Cases, declared: Path) -> None:
    target, below = table.contract.target, int((table.anchor <= 0).sum())
    if target.transform == "log_difference" and below > table.contract.gate.max_incomplete * table.anchor.size:
        mend = f"above 0, and {target.series} has none at {below} of {table.anchor.size} origins: choose difference"
        raise UsageError(f"{location(declared, 'target', 'transform')}: log_difference needs values {mend}")
    days = table.held[target.series].period % 7  # of ordinals by day: 6 and 0 are Saturday and Sunday
    if table.contract.series[target.series].frequency == "day" and not np.isin(days, (6, 0)).any():
        line = location(declared, "series", target.series, "frequency")
        raise UsageError(f"{line}: it has no weekends: write weekday")


def _fit(table: Cases, settings: estimators.Settings) -> tuple[estimators.Fitted, bytes]:
    fitted = estimators.fit(table, table.labels(int(table.origin[-1])), settings)
    return fitted, serialize.graph(fitted, table.inputs.shape[1])


def _register(
    contract: Contract, connection: Connection, folder: Path, files: dict[str, bytes], why: str
) -> dict[str, Any]:
    """A candidate, and, unless a person must sign it off, at once the champion."""
    artifact.write(folder, files, "unregistered")
    version = registry.register(connection, folder, why)
    digest = artifact.write(folder, files, str(version))
    promoted = not contract.gate.sign_off and registry.promote(connection, version, "promote", why)
    state = registry.states(connection)[version]
    return {"version": version, "digest": digest, "promoted": promoted, "state": state}


def _around(
    contract: Contract, connection: Connection, root: Path, made: Training, champion: Registered | None
) -> dict[str, Any]:
    """What the report shows of others than this training."""
    return {
        "loads": report.loads(connection, made.card["loads"]),
        "runs": experiments.in_brief(experiments.runs(connection)),
        "importance": made.candidate.importance,
        "search": made.candidate.choice.tried,
        "champion": evaluate.comparison(made.candidate.tested, champion) if champion else {},
        "live": live.errors(contract, connection),
        "score": ml_test_score.score(root, connection),
    }


def _recorded(contract: Contract, card: dict[str, Any]) -> dict[str, Any]:
    """What the row of a training run says of clocks, parameters, figures and code, by its columns."""
    declared = contract.model_dump(mode="json", include={"target", "feature", "train", "gate"})
    return {
        **card["trained_as_of"],
        "parameters": declared | {"chosen": card["chosen"]},
        "figures": card["metrics"],
        "provenance": {part: card[part] for part in (*report.PROVENANCE, "loads", "data_hash")},
    }


def newest_knowledge(connection: Connection) -> datetime:
    """The end of the day on which the newest value held became known: the same data then give the same model."""
    newest = read.newest_known_from(connection)
    if newest is None:
        raise ServiceError("nothing has been loaded yet: run `python -m model_service load`")
    return datetime.combine(newest.astimezone(UTC), datetime.max.time(), UTC)
