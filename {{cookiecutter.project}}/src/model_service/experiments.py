"""Training runs and models side by side: as rows for programs, as tables for people."""

import json
from collections.abc import Mapping
from typing import Any

from model_service import registry
from model_service.listing import Row, columns, fetch
from model_service.settings import current_user
from model_service.store.connection import Connection

LONG = 100  # characters
# What `models diff` compares, in this order; of a card, everything else follows from it.
PARTS = {
    "parameters": ("target", "inputs", "horizons", "estimator", "chosen", "seed"),
    "data": ("trained_as_of", "loads", "data_hash"),
    "code": ("git_commit", "source_hash", "lock_hash", "platform"),
    "figures": ("metrics",),
}
MODELS = f"""
SELECT m.version, m.digest, coalesce(s.state_to, 'candidate') AS state, coalesce(s.at, m.created_at) AS since,
       m.files->>'card.json' AS card
FROM model m LEFT JOIN ({registry.STATES}) s USING (version) ORDER BY m.version DESC
"""  # noqa: S608
RECORD = """
INSERT INTO training_run (outcome, version, known_at, data_version, parameters, figures, gate, provenance, page,
                          seconds, who)
SELECT outcome, version, known_at, data_version, parameters, figures, gate, provenance, page, seconds, who
FROM jsonb_populate_record(NULL::training_run, %s) RETURNING run_id
"""


def record(connection: Connection, **columns: Any) -> int:
    """Appends a training run, given by the columns of its table; returns its number. No `version`: the gate refused."""
    made = connection.execute(RECORD, [_json(columns | {"who": current_user()})]).fetchone()
    return int(made[0]) if made else 0


def _json(value: Any) -> str:
    """A database's JSON knows no NaN and no infinity: null stands for them."""
    return json.dumps(json.loads(json.dumps(value), parse_constant=lambda _: None))


def runs(connection: Connection, version: int | None = None) -> list[Row]:
    """Every training run, newest first, without its page; those that made one model, for its version."""
    return fetch(
        connection,
        "SELECT run_id, finished_at, seconds, who, outcome, version, known_at, data_version, parameters, figures, gate,"
        " provenance FROM training_run WHERE version IS NOT DISTINCT FROM coalesce(%s, version) ORDER BY run_id DESC",
        [version],
    )


def in_brief(found: list[Row]) -> list[Row]:
    """Training runs in brief, one row each, to be read side by side."""
    head = ("run", "finished", "outcome", "model", "as of", "data", "estimator", "commit", "RMSE / last", "failed")
    lines = [
        (row["run_id"], f"{row['finished_at']:%Y-%m-%d %H:%M}", row["outcome"], row["version"] or "-",
         f"{row['known_at']:%Y-%m-%d}", _short(row["data_version"]), row["parameters"]["train"]["estimator"],
         row["provenance"]["git_commit"][:12],
         _ratios(row["figures"]["rmse"], row["parameters"]["target"]["horizons"]),
         ", ".join(rule["name"] for rule in row["gate"] if not rule["ok"]))
        for row in found
    ]  # fmt: skip
    return [dict(zip(head, line, strict=True)) for line in lines]


def runs_text(found: list[Row]) -> str:
    lines = in_brief(found)
    return columns(list(lines[0]), [list(line.values()) for line in lines]) if lines else "no training run is recorded"


def models(connection: Connection) -> list[Row]:
    """Every registered model with its state, newest first."""
    return [row | {"card": json.loads(row["card"])} for row in fetch(connection, MODELS)]


def models_text(found: list[Row]) -> str:
    head = ("model", "state", "since", "trained as of", "target", "estimator", "RMSE / last", "digest")
    lines = [
        (row["version"], row["state"], f"{row['since']:%Y-%m-%d %H:%M}",
         row["card"]["trained_as_of"]["known_at"][:10], row["card"]["target"]["series"], row["card"]["estimator"],
         _ratios(row["card"]["metrics"]["rmse"], row["card"]["horizons"]), _short(row["digest"]))
        for row in found
    ]  # fmt: skip
    return columns(head, lines) if lines else "no model is registered"


def model(connection: Connection, name: str) -> Row:
    """One model by version or digest: card, life and the runs that made it. Raises UsageError when there is none."""
    version = registry.named(connection, name).version
    life = "SELECT * FROM transition WHERE version = %s ORDER BY transition_id"
    found = next(row for row in models(connection) if row["version"] == version)
    return found | {"life": fetch(connection, life, [version]), "runs": runs(connection, version)}


def model_text(row: Row) -> str:
    card, clocks = row["card"], row["card"]["trained_as_of"]
    rmse, horizons, origins = card["metrics"]["rmse"], card["horizons"], card["metrics"]["origins"]
    lines = [
        f"model     {row['version']} ({row['digest']}), {row['state']} since {row['since']:%Y-%m-%d %H:%M}",
        f"target    {card['target']['series']} ({card['target']['unit']}), horizons {', '.join(map(str, horizons))}",
        f"made by   {card['estimator']} of {len(card['inputs'])} inputs, seed {card['seed']}",
        f"as of     {clocks['known_at']}, data version {clocks['data_version']}",
        f"code      {card['git_commit']}, source {_short(card['source_hash'])}, lock {_short(card['lock_hash'])}",
        *[f"platform  {part}: {says}" for part, says in card.get("platform", {}).items() if part != "cpu"],
        f"backtest  RMSE / last value {_ratios(rmse, horizons)}, {origins['scored']} origins from {origins['first']}",
    ]
    judged = (
        row["runs"][0]["gate"] if row["runs"] else [one | {"name": one["rule"], "ok": True} for one in card["gate"]]
    )
    for one in judged:
        verdict = "" if one["ok"] else ", overruled"
        lines.append(f"gate      {one['name']} {_plain(one['figure'])}, limit {_plain(one['limit'])}{verdict}")
    if overruled := card.get("overruled"):
        lines.append(f"overruled {', '.join(overruled['rules'])}: {overruled['reason']}")
    for one in row["runs"]:
        took = f"{one['outcome']} after {one['seconds']:.0f} s, by {one['who']}"
        lines.append(f"run       {one['run_id']} {one['finished_at']:%Y-%m-%d %H:%M} {took}")
    for one in row["life"]:
        why = f"{one['state_to']} ({one['action']} by {one['who']}: {one['reason']})"
        lines.append(f"life      {one['at']:%Y-%m-%d %H:%M} {one['state_from'] or 'new'} -> {why}")
    return "\n".join(lines)


def difference(connection: Connection, one: str, other: str) -> dict[str, list[Row]]:
    """What differs between two models, by part: [{"what", "one", "other"}]. Raises UsageError."""
    cards = [json.loads(registry.named(connection, name).files["card.json"]) for name in (one, other)]
    found = {}
    for part, names in PARTS.items():
        before, after = (flatten({name: card.get(name) for name in names}) for card in cards)
        found[part] = [
            {"what": name, "one": before.get(name), "other": after.get(name)}
            for name in dict.fromkeys([*before, *after])
            if before.get(name) != after.get(name)
        ]
    return found


def flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Every leaf of a nested value by its dotted path; a list is a leaf."""
    if isinstance(value, Mapping):
        parts = (flatten(value[key], f"{name}.{key}".lstrip(".")) for key in value)
        return {path: leaf for part in parts for path, leaf in part.items()}
    return {name: value}


def difference_text(found: dict[str, list[Row]]) -> str:
    lines = [
        f"{part:10}  {row['what']}: {described_change(row['one'], row['other'])}"
        for part, differing in found.items()
        for row in differing
    ]
    return "\n".join(lines) or "they differ in nothing that is compared"


def described_change(one: Any, other: Any) -> str:
    """From what to what; of long lists of words what went and what came."""
    if min(len(str(one)), len(str(other))) > LONG:
        before, after = (value.split() if isinstance(value, str) else value for value in (one, other))
        went, came = ([word for word in a if word not in b] for a, b in ((before, after), (after, before)))
        return " ".join([*(f"-{word}" for word in went), *(f"+{word}" for word in came)]) or "in another order"
    return f"{_plain(one)} -> {_plain(other)}"


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _ratios(rmse: Mapping[str, list[float]], horizons: list[int]) -> str:
    pairs = zip(horizons, rmse["model"], rmse["last_value"], strict=True)
    return " ".join(f"{horizon}: {own / last:.2f}" if last else f"{horizon}: -" for horizon, own, last in pairs)


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]
