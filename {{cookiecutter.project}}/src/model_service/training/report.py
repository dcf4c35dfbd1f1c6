"""What is written of a model: its card, its golden examples, the answer it holds, and the report."""

import json
import platform
import re
import subprocess
import sysconfig
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from model_service import artifact, digests, explain, features, forecasting, listing, periods
from model_service.arrays import Floats
from model_service.artifact import Model
from model_service.store.connection import Connection
from model_service.store.read import DataVersion
from model_service.training import Cases, evaluate, page, serialize
from model_service.training.backtest import LEVELS, Backtest
from model_service.training.gate import Rule
from model_service.training.probes import Candidate

PROVENANCE = ("git_commit", "source_hash", "lock_hash", "platform")
VINTAGES = 12  # that the report shows the effect of revisions at


def card(
    tested: Backtest, rules: list[Rule], root: Path, known_at: datetime, known_until: datetime, version: DataVersion
) -> dict[str, Any]:
    """What the model was made from, and how it did."""
    table, contract = tested.table, tested.table.contract
    known = table.inputs[table.complete]
    inputs, target = features.inputs(contract), contract.series[contract.target.series]
    return {
        "service": contract.service.name,
        "task": contract.service.task,
        "target": {"series": contract.target.series, "unit": target.unit, "frequency": target.frequency,
                   "transform": contract.target.transform},
        "inputs": inputs,
        "reach": features.reach(contract),
        "horizons": list(contract.target.horizons),
        "estimator": contract.train.estimator,
        "seed": contract.train.seed,
        "trained_as_of": {"known_at": forecasting.utc_text(known_at), "data_version": version.version},
        "loads": version.loads,
        "data_hash": digests.of_json(table.rows),
        **provenance(root),
        "input_range": {name: [float(known[:, n].min()), float(known[:, n].max())] for n, name in enumerate(inputs)},
        "metrics": evaluate.metrics(tested),
        "inputs_known_until": forecasting.utc_text(known_until),
        "gate": [{"rule": one.name, "figure": one.figure, "limit": one.limit} for one in rules],
        "intervals": tested.spread(tested.forecast),
    }  # fmt: skip


def files(card: dict[str, Any], made: Candidate) -> dict[str, bytes]:
    """The model's files, by name."""
    table, graph = made.tested.table, made.graph
    examples = table.inputs[table.complete][-5:]
    golden = artifact.session(graph).run(["forecast"], {"features": examples})[0]
    tolerance = float(np.abs(golden).max()) * serialize.PARITY
    texts = {
        "card.json": card,
        "golden.json": {"instances": examples.tolist(), "forecasts": golden.tolist(), "tolerance": tolerance},
        "held.json": held(card, made),
        "backtest.json": evaluate.stored(made.tested),
    }
    written = {name: (json.dumps(value, indent=1) + "\n").encode() for name, value in texts.items()}
    explanation = serialize.explanation(made.fitted, table.inputs[table.complete])
    written[explain.FILE] = json.dumps(explanation, separators=(",", ":")).encode()
    found = written | {"model.onnx": graph}
    explain.Explainer(Model(found, "unregistered")).explain(examples)  # raises when it is not of this graph
    return found


def held(card: dict[str, Any], made: Candidate) -> dict[str, Any]:
    """The answer of a process that never reached its database: the forecast made now."""
    table = made.tested.table
    return forecasting.fallback_answers(
        table.contract,
        forecasting.answer_head(table.contract, card["trained_as_of"], card["inputs_known_until"]),
        {"model": card["intervals"], "baseline": made.tested.spread(made.tested.baseline["last_value"])},
        int(table.last[-1]),
        made.fitted.predict(table.inputs[-1:])[0].tolist(),
        float(table.anchor[-1]),
    )


def provenance(root: Path) -> dict[str, Any]:
    """The commit, or `uncommitted`, with hashes of the code and the locks that are on disk; and the platform."""
    sources = [path for path in (root / "src").rglob("*") if path.suffix in {".py", ".sql"}]
    return {
        "git_commit": _commit(root),
        "source_hash": digests.of_files(root, [*sources, root / "service.toml"]),
        "lock_hash": digests.of_files(root, (root / "requirements").glob("*.txt")),
        "platform": _platform(),
    }


def _platform() -> dict[str, str]:
    """What the bytes of a model rest on beside code and packages: where all of it is the same, they are the same."""
    said = ("internal_api", "version", "architecture")
    kernels = {" ".join(str(one.get(part)) for part in said) for one in threadpool_info() if one["user_api"] == "blas"}
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "os": f"{sysconfig.get_platform()} {' '.join(platform.libc_ver())}".strip(),
        "cpu": _cpu(),
        "blas": ", ".join(sorted(kernels)),
    }


def _cpu() -> str:
    """The instructions that it knows, sorted, where the system lists them; else its name."""
    try:
        listed = re.search(r"^(?:flags|Features)\s*: (.*)$", Path("/proc/cpuinfo").read_text("utf-8"), re.M)
    except OSError:
        listed = None
    return " ".join(sorted(listed[1].split())) if listed else platform.processor()


def _commit(root: Path) -> str:
    """The commit whose files these are; `uncommitted` when they differ from it, or when `root` is not its top."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() == root.resolve() and not git("status", "--porcelain"):
            return git("rev-parse", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        pass
    return "uncommitted"


def body(card: dict[str, Any], made: Candidate, rules: list[Rule], **more: Any) -> dict[str, Any]:
    """All that `report.json` and the page hold. `more`: loads, and what else `page.page` can show."""
    return {
        "description": made.tested.table.contract.service.description,
        "card": card,
        "gate": [vars(rule) for rule in rules],
        "forecast": held(card, made)["forecasts"],
        "backtest": _backtest(made.tested),
        "series": {name: _series(made.tested.table, name) for name in made.tested.table.held},
        "vintages": _vintages(made),
        **more,
    }


def _backtest(tested: Backtest) -> dict[str, Any]:
    """What the charts are drawn from, by origin and horizon; null: not known, or not to be made."""
    table, horizons = tested.table, tested.table.contract.target.horizons
    frequency = table.contract.series[table.contract.target.series].frequency
    made_by = {"model": tested.forecast, **tested.baseline}
    ends = {"lower": tested.lower, "upper": tested.upper}
    return {
        "origins": [forecasting.utc_text(periods.instant(int(origin))) for origin in table.origin[tested.places]],
        "valid_time": [[periods.date_of(frequency, int(last) + ahead).isoformat() for ahead in horizons]
                       for last in table.last[tested.places]],
        "truth": _plain(tested.truth),
        "forecast": {name: _plain(made) for name, made in made_by.items()},
        **{end: {str(level): _plain(values[..., n]) for n, level in enumerate(LEVELS)} for end, values in ends.items()},
    }  # fmt: skip


def _plain(values: Floats) -> list[Any]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in values]


def _series(table: Cases, name: str) -> dict[str, Any]:
    """What is held of a series, and how many of its values have moved since first known; `revision`: by how much on
    average, in multiples of the mean change from one period to the next."""
    held, declared = table.held[name], table.contract.series[name]
    first = np.append(True, np.diff(held.period) != 0)  # of the rows of a period
    latest = held.value[np.append(first[1:], True)]
    moved = np.abs(latest - held.value[first])
    moved, usual = moved[moved > 0], np.abs(np.diff(latest))
    usual = usual[usual > 0]
    return {
        **{key: getattr(declared, key) for key in ("unit", "frequency", "release_lag_days")},
        "first": periods.date_of(declared.frequency, int(held.period[0])).isoformat(),
        "last": periods.date_of(declared.frequency, int(held.period[-1])).isoformat(),
        "values": int((~np.isnan(latest)).sum()),
        "vintages": len(np.unique(held.known)),
        "revised": len(moved),
        "revision": float(moved.mean() / usual.mean()) if moved.size and usual.size else 0.0,
    }


def _vintages(made: Candidate) -> list[dict[str, Any]]:
    """The forecast at each of the last VINTAGES, newest first, by what was known then, and by what is known now of the
    same periods."""
    table, end, found = made.tested.table, int(made.tested.table.origin[-1]), []
    for vintage in np.unique(np.concatenate([one.known for one in table.held.values()]))[: -VINTAGES - 1 : -1]:
        cut = {name: one.up_to(int(vintage)) for name, one in table.held.items()}
        asked = ((table.held, int(vintage)), (cut, end))
        rows = np.concatenate([features.rows(table.contract, held, [origin]) for held, origin in asked])
        if not np.isnan(rows).any():
            known, revised = made.fitted.predict(rows).tolist()
            found.append({"vintage": f"{periods.instant(int(vintage)):%Y-%m-%d}", "known": known, "revised": revised})
    return found


def loads(connection: Connection, last: Mapping[str, int]) -> list[dict[str, Any]]:
    """The loads up to the last one of each dataset, newest first."""
    held = [row for row in listing.loads(connection, None) if row["load_id"] <= last.get(row["dataset"], 0)]
    names = ("load_id", "dataset", "file", "kind", "status", "new", "changed", "deleted")
    return [{name: row[name] for name in names} for row in held]


def write(folder: Path, found: dict[str, Any]) -> str:
    """`report.html` and `report.json`; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    made = page.page(found)
    (folder / "report.html").write_text(made, "utf-8")
    return made
