"""Models and their life, as rows: what was registered, and every change of its state with who, when, from, to, why."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_service import artifact
from model_service.digests import of_code
from model_service.errors import ServiceError, UsageError
from model_service.settings import current_user
from model_service.store.connection import Connection

STATES = "SELECT DISTINCT ON (version) version, state_to, at FROM transition ORDER BY version, transition_id DESC"


class NoModel(ServiceError):
    """Nothing was promoted yet: what was registered, if anything, waits for a person."""

    def __init__(self) -> None:
        super().__init__("no model is champion: run `python -m model_service train`, or promote one of `models list`")


@dataclass(frozen=True)
class Registered:
    version: int
    digest: str
    files: dict[str, bytes]


def register(connection: Connection, folder: Path, reason: str) -> int:
    """Stores the model in `folder` as a candidate; the same digest again is the same version, and takes no number.

    Raises ArtifactError.
    """
    files, digest = artifact.read(folder)
    texts = {name: files[name].decode() for name in files if name != "model.onnx"}
    with connection.transaction():
        row = connection.execute(
            "INSERT INTO model (digest, files, onnx) SELECT %(digest)s, %(texts)s::jsonb, %(onnx)s WHERE NOT EXISTS"
            " (SELECT FROM model WHERE digest = %(digest)s) ON CONFLICT (digest) DO NOTHING RETURNING version",
            {"digest": digest, "texts": json.dumps(texts), "onnx": files["model.onnx"]},
        ).fetchone()
        if row:
            _record_transition(connection, row[0], "candidate", "register", reason)
        return named(connection, digest).version


def _record_transition(connection: Connection, version: int, to: str, action: str, reason: str) -> None:
    connection.execute(
        "INSERT INTO transition (version, state_from, state_to, action, who, reason) VALUES (%s, %s, %s, %s, %s, %s)",
        [version, states(connection).get(version), to, action, current_user(), reason],
    )


def states(connection: Connection) -> dict[int, str]:
    """Version: `candidate`, `challenger`, `champion` or `retired`."""
    return dict(connection.execute(f"SELECT version, state_to FROM ({STATES}) newest").fetchall())  # noqa: S608


def champion(connection: Connection) -> Registered | None:
    """The model that was promoted last, or None."""
    return _first(connection, "promotion JOIN model USING (version) ORDER BY promotion_id DESC LIMIT 1")


def challenger(connection: Connection) -> Registered | None:
    """The model in the shadow, or None."""
    return _first(connection, f"({STATES}) newest JOIN model USING (version) WHERE state_to = 'challenger'")


def find(connection: Connection, model: str) -> Registered | None:
    """The registered model of that digest or version, or None."""
    return _first(connection, "model WHERE %s IN (digest, version::text)", model)


def _first(connection: Connection, among: str, *asked: str) -> Registered | None:
    """The first model of `among`: what follows FROM in a statement."""
    row = connection.execute(f"SELECT version, digest, files, onnx FROM {among}", asked).fetchone()  # noqa: S608
    if row is None:
        return None
    version, digest, texts, onnx = row
    files = {name: text.encode() for name, text in texts.items()} | {"model.onnx": bytes(onnx)}
    return Registered(version, digest, files)


def named(connection: Connection, model: str) -> Registered:
    """The registered model of that digest or version; raises UsageError that lists those there are."""
    if found := find(connection, model):
        return found
    known = connection.execute("SELECT coalesce(string_agg(version::text, ', ' ORDER BY version), 'none') FROM model")
    raise UsageError(f"model {model} is not registered (registered: {(known.fetchone() or ['none'])[0]})")


@contextmanager
def _alone(connection: Connection) -> Iterator[None]:
    """One change of champion or challenger at a time, in one transaction: what it read of states still holds."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('promotion', 0))")
        yield


def promote(connection: Connection, version: int, action: str, reason: str) -> bool:
    """Makes `version` the champion, and retires the one before; False when it is already. Raises UsageError if unknown.

    The row of `promotion` makes those of `transition` (see the migration).
    """
    with _alone(connection):
        named(connection, str(version))
        now = champion(connection)
        if now and now.version == version:
            return False
        connection.execute(
            "INSERT INTO promotion (version, previous, action, who, reason) VALUES (%s, %s, %s, %s, %s)",
            [version, now.version if now else None, action, current_user(), reason],
        )
    return True


def set_challenger(connection: Connection, version: int, reason: str) -> bool:
    """Makes `version` the challenger, and retires the one before; False when it is already.

    Raises UsageError if it is unknown or the champion.
    """
    with _alone(connection):
        named(connection, str(version))
        state = states(connection).get(version)
        if state == "champion":
            raise UsageError(f"model {version} is the champion: it cannot be its own challenger")
        if state == "challenger":
            return False
        _retire(connection, "promote", f"replaced by model {version}")
        _record_transition(connection, version, "challenger", "promote", reason)
    return True


def retire_challenger(connection: Connection, reason: str) -> int | None:
    """Retires the challenger; returns its version, None where there is none."""
    with _alone(connection):
        return _retire(connection, "withdraw", reason)


def _retire(connection: Connection, action: str, reason: str) -> int | None:
    if (found := challenger(connection)) is None:
        return None
    _record_transition(connection, found.version, "retired", action, reason)
    return found.version


def rollback(connection: Connection, reason: str) -> int:
    """Makes the champion before this one champion again; returns its version. Raises ServiceError without one."""
    with _alone(connection):
        before = _champions(connection)[:-1]
        if not before:
            raise ServiceError("there is no earlier champion to go back to")
        promote(connection, before[-1], "rollback", reason)
    return before[-1]


def _champions(connection: Connection) -> list[int]:
    """The champion's version, the last, and before it those that were replaced, without what a rollback left behind.

    An image with the model before this one goes back to it as well: that is how a deployment is undone.
    """
    found: list[int] = []
    for version, action in connection.execute("SELECT version, action FROM promotion ORDER BY promotion_id"):
        if version in found[:-1] and (action == "rollback" or action == "import" and version == found[-2]):
            while found[-1] != version:
                found.pop()
        else:
            found.append(version)
    return found


def export(connection: Connection, folder: Path) -> Registered:
    """Writes the champion's files into `folder`, the report of its training, and the challenger's; raises NoModel."""
    found = champion(connection)
    if found is None:
        raise NoModel
    artifact.write(folder, found.files, str(found.version))
    page = connection.execute(
        "SELECT page FROM training_run WHERE version = %s AND page IS NOT NULL ORDER BY run_id DESC LIMIT 1",
        [found.version],
    ).fetchone()
    if page:
        (folder / artifact.REPORT).write_text(page[0], "utf-8")
    shutil.rmtree(folder / artifact.CHALLENGER, ignore_errors=True)
    if other := challenger(connection):
        artifact.write(folder / artifact.CHALLENGER, other.files, str(other.version))
    return found


TELL = """
INSERT INTO forecast (model_digest, known_at, data_version, series, horizon, valid_time, value, intervals, code_version,
                      inputs_known_until, hindsight)
SELECT model_digest, known_at, data_version, series, horizon, valid_time, value, intervals, code_version,
       inputs_known_until, hindsight
FROM jsonb_populate_recordset(NULL::forecast, %s) AS new WHERE NOT EXISTS (
    SELECT FROM forecast f WHERE (f.model_digest, f.known_at, f.data_version, f.series, f.horizon)
    = (new.model_digest, new.known_at, new.data_version, new.series, new.horizon))
"""


def record(connection: Connection, bodies: list[dict[str, Any]]) -> int:
    """Appends answers of `forecasting.answer` to `forecast`, all or none; returns how many rows.

    What was told already by the same model, as of the same clocks, for the same horizon is not told again.
    """
    rows = [
        {**one, **body["as_of"], "model_digest": body["model"]["digest"], "series": body["target"],
         "inputs_known_until": body["inputs_known_until"], "hindsight": body["hindsight"], "code_version": of_code()}
        for body in bodies for one in body["forecasts"]
    ]  # fmt: skip
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('forecast', 0))")
        return connection.execute(TELL, [json.dumps(rows)]).rowcount
