"""Does what we hold still fit together: ledger and rows, registry and what is built, and is it fresh."""

from datetime import datetime
from typing import Any

import psycopg

from model_service import artifact, registry, settings
from model_service.contract import Contract
from model_service.store import read

Finding = dict[str, str]


def examine(contract: Contract, connection: psycopg.Connection[Any], now: datetime) -> list[Finding]:
    """One finding a check; state is `ok`, `look` (a person should) or `BAD` (something is broken)."""
    return [_ledger(connection), _left_over(connection), _fresh(contract, connection, now), _champion(connection)]


def _finding(check: str, state: str, says: str) -> Finding:
    return {"check": check, "state": state, "says": says}


def _ledger(connection: psycopg.Connection[Any]) -> Finding:
    wrong = connection.execute(
        """
        SELECT coalesce(l.load_id, o.load_id) FROM load l
        FULL JOIN (SELECT load_id, count(*) AS rows FROM observation GROUP BY load_id) o USING (load_id)
        WHERE l.load_id IS NULL OR l.new + l.changed + l.deleted <> coalesce(o.rows, 0) ORDER BY 1
        """
    ).fetchall()
    if wrong:
        return _finding("ledger", "BAD", f"rows and ledger disagree for load {', '.join(str(row[0]) for row in wrong)}")
    counted = connection.execute(
        "SELECT count(*), coalesce(sum(new + changed), 0), coalesce(sum(quarantined), 0) FROM load"
    ).fetchone()
    loads, rows, bad = counted or (0, 0, 0)
    return _finding("ledger", "ok", f"{loads} loads account for {rows:,} rows; {bad:,} cells in quarantine")


def _left_over(connection: psycopg.Connection[Any]) -> Finding:
    rows = connection.execute(
        "SELECT dataset, runner, coalesce(detail, 'died, or still running') FROM ("
        "SELECT DISTINCT ON (dataset) * FROM attempt ORDER BY dataset, attempt_id DESC) last"
        " WHERE coalesce(outcome, 'died') IN ('died', 'failed')"
    ).fetchall()
    if rows:
        return _finding(
            "attempts", "look", "; ".join(f"{dataset} by {runner}: {detail}" for dataset, runner, detail in rows)
        )
    return _finding("attempts", "ok", "the last run of each loader ended well")


def _fresh(contract: Contract, connection: psycopg.Connection[Any], now: datetime) -> Finding:
    newest = read.newest_known_from(connection)
    if newest is None:
        return _finding("freshness", "look", "nothing has been loaded yet: run `load`")
    days, limit = (now - newest).days, contract.alerts.data_late_days
    state = "ok" if days <= limit else "look"
    return _finding(
        "freshness", state, f"the newest value became known {days} days ago (alerts.data_late_days = {limit:g})"
    )


def _champion(connection: psycopg.Connection[Any]) -> Finding:
    champion = registry.champion(connection)
    if champion is None:
        return _finding("champion", "look", "no model is registered: run `train`")
    try:
        built = artifact.load(settings.model_folder())
        built.check()
    except artifact.ArtifactError as error:
        return _finding("champion", "look", f"model {champion.version} is the champion, but {error}")
    if built.digest != champion.digest:
        return _finding(
            "champion", "look", f"model {champion.version} is the champion, model {built.version} is built: run `build`"
        )
    return _finding("champion", "ok", f"model {champion.version} is the champion and is built")
