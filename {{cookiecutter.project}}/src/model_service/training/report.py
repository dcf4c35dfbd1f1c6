"""What is written of a model: its card, its golden examples, the answer it holds, and `build/report.md` for people."""

import json
import platform
import re
import subprocess
import sysconfig
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from model_service import artifact, digests, features, forecasting
from model_service.features import Floats
from model_service.store.read import DataVersion
from model_service.training import serialize
from model_service.training.backtest import Backtest
from model_service.training.gate import Rule
from model_service.training.probes import Candidate

PROVENANCE = ("git_commit", "source_hash", "lock_hash", "platform")


def card(
    tested: Backtest, rules: list[Rule], root: Path, known_at: datetime, known_until: datetime, version: DataVersion
) -> dict[str, Any]:
    """What the model was made from, and how it did."""
    table, contract, scored = tested.table, tested.table.contract, tested.scored
    origins, real, known = table.origin[tested.places], table.real[tested.places], table.inputs[table.complete]
    inputs, target = features.inputs(contract), contract.series[contract.target.series]
    made_by = {"model": tested.forecast, **tested.baseline}
    return {
        "service": contract.service.name,
        "task": contract.service.task,
        "target": {"series": contract.target.series, "unit": target.unit, "frequency": target.frequency,
                   "transform": contract.target.transform},
        "inputs": inputs,
        "horizons": list(contract.target.horizons),
        "estimator": contract.train.estimator,
        "seed": contract.train.seed,
        "trained_as_of": {"known_at": forecasting.stamp(known_at), "data_version": version.version},
        "loads": version.loads,
        "data_hash": digests.of_json(table.rows),
        **provenance(root),
        "input_range": {name: [float(known[:, n].min()), float(known[:, n].max())] for n, name in enumerate(inputs)},
        "metrics": {
            "rmse": {name: _rmse((made - tested.truth)[scored]) for name, made in made_by.items()},
            "coverage": tested.coverage(),
            "origins": {"scored": int(scored.sum()), "real": int(real.sum()), "pseudo": int((~real).sum()),
                        "first": f"{features.moment(int(origins[scored][0])):%Y-%m-%d}",
                        "last": f"{features.moment(int(origins[scored][-1])):%Y-%m-%d}"},
        },
        "inputs_known_until": forecasting.stamp(known_until),
        "gate": [{"rule": one.name, "figure": one.figure, "limit": one.limit} for one in rules],
        "intervals": tested.spread(tested.forecast),
    }  # fmt: skip


def _rmse(errors: Floats) -> list[float]:
    return [float(value) for value in np.sqrt((errors**2).mean(axis=0))]


def files(card: dict[str, Any], made: Candidate) -> dict[str, bytes]:
    """The model's files, by name."""
    tested, graph = made.tested, made.graph
    table = tested.table
    examples = table.inputs[table.complete][-5:]
    golden = artifact.session(graph).run(["forecast"], {"features": examples})[0]
    held = forecasting.held_answer(
        table.contract,
        forecasting.head(table.contract, card["trained_as_of"], card["inputs_known_until"]),
        {"model": card["intervals"], "baseline": tested.spread(tested.baseline["last_value"])},
        int(table.last[-1]),
        made.fitted.predict(table.inputs[-1:])[0].tolist(),
        float(table.anchor[-1]),
    )
    tolerance = float(np.abs(golden).max()) * serialize.PARITY
    texts = {
        "card.json": card,
        "golden.json": {"instances": examples.tolist(), "forecasts": golden.tolist(), "tolerance": tolerance},
        "held.json": held,
    }
    written = {name: (json.dumps(value, indent=1) + "\n").encode() for name, value in texts.items()}
    return written | {"model.onnx": graph}


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


def write(folder: Path, card: dict[str, Any], rules: list[Rule]) -> None:
    """`report.md`, and the same as `report.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text(_text(card, rules))
    report = {"card": card, "gate": [vars(rule) for rule in rules]}
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")


def _text(card: dict[str, Any], rules: list[Rule]) -> str:
    """The report as Markdown, from the model's card and the gate's rules."""
    target, clocks, origins = card["target"], card["trained_as_of"], card["metrics"]["origins"]
    rmse, coverage, horizons = card["metrics"]["rmse"], card["metrics"]["coverage"], card["horizons"]
    columns = [[f"{own:.4g} ({own / last:.2f})" for own, last in zip(rmse[name], rmse["last_value"], strict=True)]
               for name in rmse]  # fmt: skip
    covered = [", ".join(f"{share:.1%} at {horizon}" for horizon, share in zip(horizons, shares, strict=True))
               for shares in coverage.values()]  # fmt: skip
    gate = [(one.name, f"{one.figure:.4g}", f"{one.limit:.4g}", _verdict(one)) for one in rules]
    return f"""\
# {card["service"]}: {target["series"]} by {card["estimator"]}

Trained as of {clocks["known_at"]}, data version `{clocks["data_version"]}`, commit `{card["git_commit"]}`.

Backtest: {origins["scored"]} scored origins from {origins["first"]} to {origins["last"]}; of all \
{origins["real"] + origins["pseudo"]} origins {origins["real"]} were read from real vintages, {origins["pseudo"]} from \
the oldest vintage masked by release lags (pseudo-real-time).

RMSE in {target["unit"]}, and relative to the last value:

{_table(["horizon", *rmse], zip(horizons, *columns, strict=True))}

Coverage of the intervals, made at each origin from errors already realized there:

{_lines(f"- {level}: {shares}" for level, shares in zip(coverage, covered, strict=True))}

## Gate: {"BLOCKED" if any(rule.blocks for rule in rules) else "passed"}

{_table(["rule", "figure", "limit", ""], gate)}
"""


def _verdict(rule: Rule) -> str:
    return "pass" if rule.ok else "**block**" if rule.blocks else "overruled"


def _table(head: list[str], rows: Iterable[Iterable[Any]]) -> str:
    return _lines(f"| {' | '.join(map(str, row))} |" for row in [head, ["---"] * len(head), *rows])


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(lines)
