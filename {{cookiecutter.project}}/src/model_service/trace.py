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

HELD = "SELECT load_id FROM load WHERE load_id <= (%s::jsonb ->> dataset)::bigint AND status <> 'blocked'"
TRAINED = ("trained_as_of", "loads", "data_hash", "git_commit", "source_hash", "lock_hash")  # what is told of the card


def read_answer(source: str) -> dict[str, Any]:
    """The answer, or its record in the audit trail, in a file, or on standard input for `-`.

    Always with `as_of`, None for a prediction of given inputs, and `forecasts`. Raises UsageError when it is neither.
    """
    try:
        body = json.loads(sys.stdin.read() if source == "-" else Path(source).read_text("utf-8"))
        body = {"as_of": None} | body.get("_source", body)
        body.setdefault("forecasts", body.get("output") or body.get("explanations") or body.get("predictions"))
        clocks = body["as_of"] or {"known_at": "2000-01-01T00:00:00Z", "data_version": ""}
        for part in (body["model"]["digest"], clocks["data_version"]):
            str.strip(part)
        if datetime.fromisoformat(clocks["known_at"]).tzinfo is None:
            raise ValueError
        [dict(one) for one in body["forecasts"]]
    except OSError as error:
        raise UsageError(f"{source} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(
            f"{source} holds no answer of /v1/ and no record of the audit trail: save one with curl, or pipe it in"
        ) from None
    return dict(body)


def walk(contract: Contract, connection: Connection, answer: dict[str, Any]) -> dict[str, Any]:
    """Every step from the answer to the bytes; `complete` is False when one is missing or does not fit.

    The forecasts are made again from the registered model and the pair of clocks. A prediction of given inputs has no
    clocks: it is made again from its record, and the clocks are those of its model's training, the files all that held.
    Raises UsageError when such a model is not registered.
    """
    clocks, digest = answer["as_of"], answer["model"]["digest"]
    model = registry.find(connection, digest) if clocks else registry.named(connection, digest)
    card: dict[str, Any] = json.loads(model.files["card.json"]) if model else {"reach": features.reach(contract)}
    at = clocks or card["trained_as_of"]
    version = connection.execute("SELECT loads FROM data_version WHERE version = %s", [at["data_version"]]).fetchone()
    loads = version[0] if version else {}
    used = lineage.rows_used(connection, card["reach"], datetime.fromisoformat(at["known_at"]), loads) if clocks else []
    rows = [row for row in used if row["value"] is not None]
    held = [] if clocks else connection.execute(HELD, [json.dumps(loads)]).fetchall()
    files = lineage.files(connection, sorted({row["load_id"] for row in rows} | {number for (number,) in held}))
    again = _again(contract, connection, model, answer) if model and version else None
    return {
        "complete": bool(files and again == "equal" and all(one["hash_holds"] for one in files)),
        "model": {"digest": digest, "version": model.version if model else None,
                  "trained": {name: card[name] for name in TRAINED} if model else None},
        "as_of": at,
        "degraded": answer.get("degraded"),
        "loads_at_that_version": loads,
        "made_again": again,
        "files": files,
        "rows": rows,
    }  # fmt: skip


def _again(contract: Contract, connection: Connection, model: registry.Registered, answer: dict[str, Any]) -> str:
    """`equal` when the registered model gives the same values from the same pair of clocks, or what is different."""
    ready, told, clocks = forecasting.as_model(model), answer["forecasts"], answer["as_of"]
    try:
        if clocks is None:
            told = [{"value": one[f"horizon_{horizon}"]} for one in told for horizon in ready.horizons]
            made = [{"value": value} for value in ready.predict(answer["inputs"]["rows"]).ravel()]
        elif (answer.get("degraded") or {}).get("source") == "baseline":
            made = [one for one in ready.held["baseline"] if one["horizon"] in [each["horizon"] for each in told]]
        else:
            at, horizons = datetime.fromisoformat(clocks["known_at"]), [one["horizon"] for one in told]
            made = forecasting.answer(contract, ready, connection, at, clocks["data_version"], horizons)["forecasts"]
    except KeyError:
        return "NOT FROM THIS: a prediction's inputs are in its record in the audit trail, trace that"
    except ServiceError as error:
        return f"IT CANNOT BE MADE AGAIN: {error}"
    near = [math.isclose(one["value"], other["value"], rel_tol=1e-9) for one, other in zip(told, made, strict=False)]
    return "equal" if len(told) == len(made) and all(near) else "ANOTHER FORECAST COMES OUT"


def text(steps: dict[str, Any]) -> str:
    model, clocks, lines = steps["model"], steps["as_of"], []
    if trained := model["trained"]:
        lines.append(f"model   {model['digest']} is version {model['version']} of this registry,")
        lines.append(f"        trained as of {trained['trained_as_of']['known_at']}, commit {trained['git_commit']}")
    else:
        lines.append(f"model   {model['digest']} is NOT IN THIS REGISTRY")
    loads = ", ".join(f"{dataset} {load}" for dataset, load in steps["loads_at_that_version"].items())
    lines.append(f"as of   {clocks['known_at']}, data version {clocks['data_version']}")
    lines.append(f"        of which the last loads are {loads}" if loads else "        which is NOT IN THIS STORE")
    if steps["made_again"]:
        lines.append(f"again   made with that model: {steps['made_again']}")
    if stand_in := steps["degraded"]:
        lines.append(f"        degraded ({stand_in['reason']}): by {stand_in['source']}, which was made before")
    lines += [line for one in steps["files"] for line in lineage.load_lines(one)]
    for row in steps["rows"]:
        known = f"known from {row['known_from']:%Y-%m-%d}, load {row['load_id']}"
        lines.append(f"row     {row['series']} {row['period']} {row['value']:g}  {known}")
    return "\n".join([*lines, "complete" if steps["complete"] else "INCOMPLETE: see the lines in capitals"])
