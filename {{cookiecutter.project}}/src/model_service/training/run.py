"""`train`: read by two clocks, backtest, gate, serialize, register, promote."""

import hashlib
import json
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from threadpoolctl import threadpool_limits

from model_service import artifact, features, forecasting, registry
from model_service.contract import Contract
from model_service.errors import Blocked, ServiceError
from model_service.store import read
from model_service.training import backtest, dataset, estimators, gate, report, serialize

BUILD = "build"
Say = Callable[[str], None]


def train(
    contract: Contract, connection: psycopg.Connection[Any], root: Path, known_at: datetime, say: Say
) -> dict[str, Any]:
    """Trains as of `known_at`, gates, registers and promotes; returns version, digest and the gate's rules.

    Writes `build/report.md` and `build/report.json` in any case. Raises Blocked with every rule that refused, and
    NoDataYet or ServiceError when the data are too few.
    """
    with threadpool_limits(1):  # sums in another order are other bytes
        version = read.data_version(connection)
        _, last, known_until = forecasting.known_inputs(contract, connection, known_at, version)
        rows = read.vintages(connection, features.series_needed(contract), known_at, version.loads)
        held = features.histories(contract, rows)
        table = dataset.cases(contract, held, known_at)
        _enough(contract, table)
        say(f"{len(table.origin)} origins, {len(features.inputs(contract))} inputs, {contract.train.estimator}")
        tested = backtest.run(contract, held, table, say)
        if not tested.scored.any():
            raise ServiceError(f"no origin from train.first_origin {contract.train.first_origin} on can be scored yet")
        fitted, graph, rules = _fit(contract, held, table)
        rules = _judge(contract, table, tested) + rules + [_leak(contract, rows, table, tested, say)]
        card = _card(contract, root, known_at, version, rows, table, tested)
        card["inputs_known_until"] = forecasting.stamp(known_until)
        card["gate"] = [{"rule": one.name, "figure": one.figure, "limit": one.limit} for one in rules]
        card["intervals"] = _spread(contract, held, table, tested, tested.forecast)
        baseline = _spread(contract, held, table, tested, tested.baseline["last_value"])
        files = _files(contract, card, baseline, graph, fitted, table, last, known_until)
    _write_report(root / BUILD, card, rules)
    for rule in rules:
        say(rule.line())
    if refused := [rule for rule in rules if not rule.ok]:
        lines = [f"  {rule.name}: {rule.says} {rule.figure:.4g}, limit {rule.limit:.4g}" for rule in refused]
        raise Blocked(
            "\n".join(["the gate refused; nothing was registered (build/report.md has all figures):", *lines])
        )
    return _register(connection, root / BUILD / "model", files)


def _enough(contract: Contract, table: dataset.Cases) -> None:
    place = dataset.first_backtest(contract, table)
    usable = int(table.complete[:place].sum())
    if usable < estimators.FEWEST_CASES or len(table.origin) - place < 24:
        raise ServiceError(
            f"too little data: {usable} complete cases before train.first_origin {contract.train.first_origin}"
            f" (at least {estimators.FEWEST_CASES}) and {len(table.origin) - place} origins from it on (at least 24);"
            " load more, or choose another first_origin"
        )
    if not table.complete[-1]:
        names = [
            name for name, value in zip(features.inputs(contract), table.inputs[-1], strict=True) if np.isnan(value)
        ]
        raise ServiceError(f"too little is held now for {', '.join(names)}: load more of the series' past")


def _fit(contract: Contract, held: Any, table: dataset.Cases) -> tuple[estimators.Fitted, bytes, list[gate.Rule]]:
    """The model on everything known now, as a graph, fitted twice."""
    truth = dataset.labels(contract, held, table, int(table.origin[-1]))
    width = table.inputs.shape[1]
    fitted, again = estimators.fit(contract, table, truth), estimators.fit(contract, table, truth)
    for one in (fitted, again):
        serialize.round_thresholds(one)
    graph = serialize.graph(fitted, width)
    off = serialize.parity(fitted, graph, table.inputs[table.complete], contract.train.seed)
    differ = int(graph != serialize.graph(again, width))
    return (
        fitted,
        graph,
        [
            gate.at_most("onnx_parity", off, serialize.PARITY, "largest relative error of the ONNX graph"),
            gate.at_most("determinism", differ, 0, "bytes differ between two fits of the same data:"),
        ],
    )


def _judge(contract: Contract, table: dataset.Cases, tested: backtest.Backtest) -> list[gate.Rule]:
    scored = tested.scored
    truth = tested.truth[scored]
    losses = gate.Losses(
        np.flatnonzero(scored) // max(12, *contract.target.horizons),  # neighbours' errors overlap by a horizon
        (tested.forecast[scored] - truth) ** 2,
        {name: (forecast[scored] - truth) ** 2 for name, forecast in tested.baseline.items()},
    )
    horizons = {f"h{horizon}": number for number, horizon in enumerate(contract.target.horizons)}
    coverage = {level: min(shares) for level, shares in _coverage(tested).items()}
    return gate.judge(contract.gate, losses, horizons, coverage, contract.train.seed)


def _leak(
    contract: Contract, rows: features.Rows, table: dataset.Cases, tested: backtest.Backtest, say: Say
) -> gate.Rule:
    """Origins across the backtest, and the last one, each forecast twice: with and without what was not known there."""
    places = sorted({*np.linspace(tested.places.start, tested.places.stop - 1, 4).astype(int).tolist()})
    say(f"leak test at {len(places)} origins")
    return gate.at_most(
        "leak", len(backtest.leaked(contract, rows, table, places)), 0, "forecasts that saw the future:"
    )


def _coverage(tested: backtest.Backtest) -> dict[str, list[float]]:
    """Share of truths inside the intervals, by level, one a horizon; 0 where no interval could be judged."""
    truth = tested.truth[:, :, None]
    judged = ~np.isnan(truth) & ~np.isnan(tested.lower)
    inside = judged & (truth >= tested.lower) & (truth <= tested.upper)
    shares = inside.sum(axis=0) / np.maximum(judged.sum(axis=0), 1)
    return {str(level): shares[:, number].tolist() for number, level in enumerate(backtest.LEVELS)}


def _spread(
    contract: Contract, held: Any, table: dataset.Cases, tested: backtest.Backtest, forecast: features.Floats
) -> list[dict[str, Any]]:
    errors = backtest.errors_known(contract, held, table, tested.places, forecast, int(table.origin[-1]))
    return [
        {"horizon": horizon, "level": level, "lower": float(low), "upper": float(high)}
        for number, horizon in enumerate(contract.target.horizons)
        for level, (low, high) in zip(backtest.LEVELS, backtest.offsets(errors[:, number]), strict=True)
    ]


def _card(
    contract: Contract,
    root: Path,
    known_at: datetime,
    version: read.DataVersion,
    rows: features.Rows,
    table: dataset.Cases,
    tested: backtest.Backtest,
) -> dict[str, Any]:
    scored = tested.scored
    made_by = {"model": tested.forecast, **tested.baseline}
    origins = table.origin[tested.places.start : tested.places.stop]
    real = table.real[tested.places.start : tested.places.stop]
    known = table.inputs[table.complete]
    target = contract.series[contract.target.series]
    return {
        "service": contract.service.name,
        "task": contract.service.task,
        "target": {"series": contract.target.series, "unit": target.unit, "frequency": target.frequency,
                   "transform": contract.target.transform},
        "inputs": features.inputs(contract),
        "horizons": list(contract.target.horizons),
        "estimator": contract.train.estimator,
        "seed": contract.train.seed,
        "trained_as_of": {"known_at": forecasting.stamp(known_at), "data_version": version.version},
        "loads": version.loads,
        "data_hash": _hash(json.dumps(rows, sort_keys=True).encode()),
        **provenance(root),
        "input_range": {name: [float(known[:, n].min()), float(known[:, n].max())]
                        for n, name in enumerate(features.inputs(contract))},
        "metrics": {
            "rmse": {name: _rmse((made - tested.truth)[scored]) for name, made in made_by.items()},
            "coverage": _coverage(tested),
            "origins": {"scored": int(scored.sum()), "real": int(real.sum()), "pseudo": int((~real).sum()),
                        "first": f"{features.moment(int(origins[scored][0])):%Y-%m-%d}",
                        "last": f"{features.moment(int(origins[scored][-1])):%Y-%m-%d}"},
        },
    }  # fmt: skip


def _rmse(errors: features.Floats) -> list[float]:
    return [float(value) for value in np.sqrt((errors**2).mean(axis=0))]


def _files(
    contract: Contract,
    card: dict[str, Any],
    baseline: list[dict[str, Any]],
    graph: bytes,
    fitted: estimators.Fitted,
    table: dataset.Cases,
    last: int,
    known_until: datetime,
) -> dict[str, bytes]:
    examples = table.inputs[table.complete][-5:]
    golden = artifact.session(graph).run(["forecast"], {"features": examples})[0]
    spread = float(np.abs(golden).max()) * serialize.PARITY
    at = datetime.fromisoformat(card["trained_as_of"]["known_at"])
    head = forecasting.head(contract, at, card["trained_as_of"]["data_version"], known_until)
    intervals = {"model": card["intervals"], "baseline": baseline}
    now = fitted.predict(table.inputs[-1:])[0].tolist()
    held = forecasting.held_answer(contract, head, intervals, last, now, float(table.anchor[-1]))
    texts = {
        "card.json": card,
        "golden.json": {"instances": examples.tolist(), "forecasts": golden.tolist(), "tolerance": spread},
        "held.json": held,
    }
    return {name: (json.dumps(value, indent=1) + "\n").encode() for name, value in texts.items()} | {
        "model.onnx": graph
    }


def _write_report(folder: Path, card: dict[str, Any], rules: list[gate.Rule]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text(report.text(card, rules))
    (folder / "report.json").write_text(
        json.dumps({"card": card, "gate": [vars(rule) for rule in rules]}, indent=1) + "\n"
    )


def _register(connection: psycopg.Connection[Any], folder: Path, files: dict[str, bytes]) -> dict[str, Any]:
    artifact.write(folder, files, "unregistered")
    version = registry.register(connection, folder)
    digest = artifact.write(folder, files, str(version))
    promoted = registry.promote(connection, version, "promote", "passed the gate")
    return {"version": version, "digest": digest, "promoted": promoted}


def provenance(root: Path) -> dict[str, str]:
    """Which code and which locked packages: the commit, or `uncommitted`, with hashes of what is on disk."""
    sources = [path for path in sorted((root / "src").rglob("*")) if path.suffix in {".py", ".sql"}]
    locks = sorted((root / "requirements").glob("*.txt"))
    code = b"".join(
        path.relative_to(root).as_posix().encode() + path.read_bytes() for path in [*sources, root / "service.toml"]
    )
    return {
        "git_commit": _commit(root),
        "source_hash": _hash(code),
        "lock_hash": _hash(b"".join(path.read_bytes() for path in locks)),
    }


def _commit(root: Path) -> str:
    """The commit whose files these are; `uncommitted` when they differ from it, or when `root` is not its top."""
    try:

        def git(*words: str) -> str:
            return subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
            ).stdout.strip()

        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve() or git("status", "--porcelain"):
            return "uncommitted"
        return git("rev-parse", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return "uncommitted"


def _hash(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def newest_knowledge(connection: psycopg.Connection[Any]) -> datetime:
    """The end of the day on which the newest value held became known: the same data then give the same model."""
    newest = read.newest_known_from(connection)
    if newest is None:
        raise ServiceError("nothing has been loaded yet: run `python -m model_service load`")
    return newest.astimezone(UTC).replace(hour=23, minute=59, second=59, microsecond=999_999)
