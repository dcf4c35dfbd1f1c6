"""Does what we hold still fit together: ledger and rows, checks, registry and what is built; and is it fresh."""

import json
from datetime import datetime
from pathlib import Path

from model_service import artifact, forecasting, freshness, live, registry, settings
from model_service.contract import Contract
from model_service.store.connection import Connection

Finding = dict[str, str]
MANY_CHUNKS = 80


def examine(contract: Contract, connection: Connection, now: datetime) -> list[Finding]:
    """One finding a check; state is `ok`, `look` (a person should) or `BAD` (something is broken)."""
    return [
        _ledger(connection),
        _left_over(connection),
        _refused(connection),
        _quarantine(connection),
        *_checks(contract, connection),
        *_fresh(contract, connection, now),
        *_chunks(connection),
        *_champion(contract, connection),
        *_challenger(connection),
        *_waiting(contract, connection),
        *_live(contract, connection),
    ]


def text(findings: list[Finding]) -> str:
    return "\n".join(f"{one['state']:5} {one['check']}: {one['says']}" for one in findings)


def _finding(check: str, state: str, says: str) -> Finding:
    return {"check": check, "state": state, "says": says}


def _look(check: str, trouble: str, fine: str) -> Finding:
    """What a person should look at, or, where that is nothing, that all is well."""
    return _finding(check, "look", trouble) if trouble else _finding(check, "ok", fine)


def _ledger(connection: Connection) -> Finding:
    wrong = connection.execute(
        """
        SELECT coalesce(l.load_id, o.load_id) FROM (SELECT * FROM load WHERE status <> 'blocked') l
        FULL JOIN (SELECT load_id, count(*) AS rows FROM observation GROUP BY load_id) o USING (load_id)
        WHERE l.load_id IS NULL OR l.new + l.changed + l.deleted + l.vanished <> coalesce(o.rows, 0) ORDER BY 1
        """
    ).fetchall()
    if wrong:
        return _finding("ledger", "BAD", f"rows and ledger disagree for load {', '.join(str(row[0]) for row in wrong)}")
    counted = connection.execute(
        "SELECT count(*), coalesce(sum(new + changed + deleted + vanished), 0) FROM load WHERE status <> 'blocked'"
    ).fetchone()
    loads, rows = counted or (0, 0)
    return _finding("ledger", "ok", f"{loads} loads account for {rows:,} rows")


def _left_over(connection: Connection) -> Finding:
    rows = connection.execute(
        "SELECT dataset, runner, coalesce(detail, 'died, or still running') FROM ("
        "SELECT DISTINCT ON (dataset) * FROM attempt ORDER BY dataset, attempt_id DESC) last"
        " WHERE coalesce(outcome, 'died') IN ('died', 'failed')"
    ).fetchall()
    trouble = "; ".join(f"{dataset} by {runner}: {detail}" for dataset, runner, detail in rows)
    return _look("attempts", trouble, "the last run of each loader ended well")


def _refused(connection: Connection) -> Finding:
    """The last that was made of each file counts: one that was mended and loaded is no finding."""
    rows = connection.execute(
        "SELECT load_id, status, request->>'file' FROM (SELECT DISTINCT ON (dataset, request->>'file') * FROM load"
        " WHERE kind <> 'late' ORDER BY dataset, request->>'file', load_id DESC) last"
        " WHERE status <> 'committed' ORDER BY 1"
    ).fetchall()
    says = "; ".join(f"load {number} of {file} was {status}" for number, status, file in rows)
    return _look("loads", says and f"{says}: see `load show`", "none was blocked or marked")


def _quarantine(connection: Connection) -> Finding:
    waiting = freshness.quarantined(connection)
    says = ", ".join(f"{count:,} by rule {rule}" for rule, count in waiting.items())
    return _look("quarantine", says and f"waiting: {says}; see `quarantine list`", "nothing waits in it")


def _checks(contract: Contract, connection: Connection) -> list[Finding]:
    """Every check of service.toml on what is in force now; one that would block a load is broken."""
    try:
        from model_service.loader import checks
    except ModuleNotFoundError:
        return [_finding("checks", "look", "not judged here: this container holds no loader")]
    results = checks.run_checks(connection, contract, contract.series)
    failed = [
        _finding("checks", "BAD" if one.action == "block" else "look", f"{one.rule} of {one.subject}: {one.detail}")
        for one in results
        if not one.ok
    ]
    return failed or [_finding("checks", "ok", f"{len(results)} hold on what is in force now")]


def _fresh(contract: Contract, connection: Connection, now: datetime) -> list[Finding]:
    every = [freshness.of(connection, contract, dataset, now) for dataset in contract.source]
    return [_finding("freshness", "ok" if one.ok else "look", f"{one.dataset}: {one.says}") for one in every]


def _chunks(connection: Connection) -> list[Finding]:
    """Every chunk costs every read, and the interval is chosen once; plain PostgreSQL has none."""
    if not connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'").fetchone():
        return []
    count, length = connection.execute(
        "SELECT count(*), max(range_end - range_start) FROM timescaledb_information.chunks"
        " WHERE hypertable_name = 'observation'"
    ).fetchone() or (0, None)
    if count < MANY_CHUNKS:
        return [_finding("chunks", "ok", f"{count} of at most 100")]
    says = (
        f"{count} of at most 100, of {length}: as owner, SELECT set_chunk_time_interval('observation', INTERVAL '...')"
        " lengthens future chunks; replace existing ones by copying the table into one with that interval"
    )
    return [_finding("chunks", "look", says)]


def _champion(contract: Contract, connection: Connection) -> list[Finding]:
    champion = registry.champion(connection)
    if champion is None:
        return [_finding("champion", "look", str(registry.NoModel()))]
    unlike = forecasting.unlike(contract, json.loads(champion.files["card.json"]), champion.version)
    declared = _look("declaration", unlike, f"model {champion.version} was trained for what service.toml says")
    return [_built("champion", champion, settings.model_folder()), declared]


def _challenger(connection: Connection) -> list[Finding]:
    """What is in the shadow, by the registry and as built; nothing where it is nothing in both."""
    challenger, folder = registry.challenger(connection), settings.model_folder() / artifact.CHALLENGER
    return [_built("challenger", challenger, folder)] if challenger or folder.is_dir() else []


def _built(role: str, registered: registry.Registered | None, folder: Path) -> Finding:
    """Whether the model of that role is the one in `folder`, and sound there."""
    says = f"model {registered.version} is the {role}" if registered else f"no model is the {role}"
    try:
        built = artifact.load(folder)
        built.check()
    except artifact.ArtifactError as error:
        return _finding(role, "look", f"{says}, but {error}: run `make build`")
    if registered and built.digest == registered.digest:
        return _finding(role, "ok", f"{says} and is built")
    return _finding(role, "look", f"{says}, model {built.version} is built: run `make build`")


def _waiting(contract: Contract, connection: Connection) -> list[Finding]:
    """What passed the gate since the champion did, where a person must sign it off."""
    if not contract.gate.sign_off:
        return []
    states = registry.states(connection)
    champion = max((version for version, state in states.items() if state == "champion"), default=0)
    waiting = [version for version, state in sorted(states.items()) if state == "candidate" and version > champion]
    says = "; ".join(f"model {version} waits: `promote {version} --sign-off NAME`" for version in waiting)
    return [_look("sign-off", says, "no model waits for a person")]


def _live(contract: Contract, connection: Connection) -> list[Finding]:
    """Live errors beside those that the backtest led to expect, a finding a horizon."""
    limit, found = contract.alerts.live_rmse_ratio, []
    for one in live.errors(contract, connection):
        decayed = one["ratio"] is not None and one["ratio"] > limit
        more = f"; decayed, the limit is {limit:g}: see `train --if-needed`" if decayed else ""
        found.append(_finding("live", "look" if decayed else "ok", live.says(one) + more))
    return found
