"""From any answer back to the provider's bytes: model, data version, loads, kept files, and the rows that were used."""

import json
import math
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from model_service import features, forecasting, lineage, registry
from model_service.contract import Contract
from model_service.errors import ServiceError, UsageError
from model_service.store.connection import Connection

TRAINED = ("trained_as_of", "loads", "data_hash", "git_commit", "source_hash", "lock_hash")  # what is told of the card


def read_answer(source: str) -> dict[str, Any]:
    """The answer in a file, or on standard input for `-`; raises UsageError when it is no answer of /v1/forecast."""
    try:
        body = json.loads(sys.stdin.read() if source == "-" else Path(source).read_text("utf-8"))
        for part in (body["model"]["digest"], body["as_of"]["data_version"], body["as_of"]["known_at"]):
            str.strip(part)
        datetime.fromisoformat(body["as_of"]["known_at"])
    except OSError as error:
        raise UsageError(f"{source} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{source} holds no answer of /v1/forecast: save one with curl, or pipe it in") from None
    return dict(body)


def walk(contract: Contract, connection: Connection, answer: dict[str, Any]) -> dict[str, Any]:
    """Every step from the answer to the bytes; `complete` is False when one is missing or does not fit.

    The forecasts are made again from the registered model and the pair of clocks. A degraded answer has no such source.
    """
    clocks = answer["as_of"]
    model = registry.find(connection, answer["model"]["digest"])
    version = connection.execute(
        "SELECT loads FROM data_version WHERE version = %s", [clocks["data_version"]]
    ).fetchone()
    loads = version[0] if version else {}
    card = json.loads(model.files["card.json"]) if model else {"reach": features.reach(contract)}
    used = lineage.used(connection, card["reach"], datetime.fromisoformat(clocks["known_at"]), loads)
    rows = [row for row in used if row["value"] is not None]
    files = lineage.files(connection, sorted({row["load_id"] for row in rows}))
    again = _again(contract, connection, model, answer) if model and version else None
    whole = bool(rows and again == "equal" and all(one["hash_holds"] for one in files))
    return {
        "complete": whole,
        "model": {"digest": answer["model"]["digest"], "version": model.version if model else None,
                  "trained": {name: card[name] for name in TRAINED} if model else None},
        "as_of": clocks,
        "loads_at_that_version": loads,
        "made_again": again,
        "files": files,
        "rows": rows,
    }  # fmt: skip


def _again(contract: Contract, connection: Connection, model: registry.Registered, answer: dict[str, Any]) -> str:
    """`equal` when the registered model gives the same forecasts from the same pair of clocks, or what is different."""
    if answer.get("degraded"):
        return f"DEGRADED ({answer['degraded'].get('reason')}): it was not made from the data of this pair"
    horizons = [one["horizon"] for one in answer["forecasts"]]
    at, version = datetime.fromisoformat(answer["as_of"]["known_at"]), answer["as_of"]["data_version"]
    try:
        made = forecasting.answer(contract, forecasting.loaded(model), connection, at, version, horizons)
    except ServiceError as error:
        return f"IT CANNOT BE MADE AGAIN: {error}"
    pairs = zip(made["forecasts"], answer["forecasts"], strict=True)
    near = all(math.isclose(one["value"], other["value"], rel_tol=1e-9) for one, other in pairs)
    return "equal" if near else "ANOTHER FORECAST COMES OUT"


def text(steps: dict[str, Any]) -> str:
    model, clocks, lines = steps["model"], steps["as_of"], []
    if model["trained"]:
        trained = model["trained"]
        lines.append(f"model   {model['digest']} is version {model['version']} of this registry,")
        lines.append(f"        trained as of {trained['trained_as_of']['known_at']}, commit {trained['git_commit']}")
    else:
        lines.append(f"model   {model['digest']} is NOT IN THIS REGISTRY")
    loads = ", ".join(f"{dataset} {load}" for dataset, load in steps["loads_at_that_version"].items())
    lines.append(f"as of   {clocks['known_at']}, data version {clocks['data_version']}")
    lines.append(f"        of which the last loads are {loads}" if loads else "        which is NOT IN THIS STORE")
    if steps["made_again"]:
        lines.append(f"again   made from that model and those clocks: {steps['made_again']}")
    lines += [line for one in steps["files"] for line in lineage.load_lines(one)]
    for row in steps["rows"]:
        known = f"known from {row['known_from']:%Y-%m-%d}, load {row['load_id']}"
        lines.append(f"row     {row['series']} {row['period']} {row['value']:g}  {known}")
    return "\n".join([*lines, "complete" if steps["complete"] else "INCOMPLETE: see the lines in capitals"])
