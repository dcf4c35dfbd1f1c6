"""Forks runs of the product's command for the crash benchmark; and the control, a loader that commits as it goes."""

import csv
import hashlib
import json
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

OURS = ("cli", "loader.run", "doctor", "forecasting", "registry", "store.migrate")


def child(main: Any, asked: dict[str, Any]) -> None:
    """The run itself; never returns."""
    for number, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(asked["log"] + suffix, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ["DATABASE_URL"] = asked["url"]
    status = 1  # as Python's own
    try:
        status = main(asked["words"])
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def serve(main: Any) -> None:
    """Answers each line on standard input: a run to start (its pid), or a pid to ask for (its status, or null)."""
    while line := sys.stdin.readline():
        asked = json.loads(line)
        if "poll" in asked:
            pid, status = os.waitpid(asked["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        elif not (answer := os.fork()):
            child(main, asked)
        print(json.dumps(answer), flush=True)


def naive(words: list[str]) -> int:
    """Loads each file of data/ that the ledger does not name, one commit a statement: the way that loses."""
    if words[0] != "load":
        return int(import_module("model_service.cli").main(words))
    psycopg = import_module("psycopg")
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("SET ROLE model_loader")
        connection.execute("INSERT INTO attempt (dataset, runner) VALUES ('provider', 'naive')")
        for path in sorted(Path(os.environ["PROJECT_ROOT"], "data").glob("*.csv")):
            if not connection.execute("SELECT FROM load WHERE request->>'file' = %s", [f"data/{path.name}"]).rowcount:
                _naive(connection, path)
        connection.execute("VACUUM (ANALYZE) observation")
    return 0


def _naive(connection: Any, path: Path) -> None:
    def commit(statement: str, *values: Any) -> None:
        with connection.transaction():
            connection.execute(statement, values)

    def observe(ids: list[int]) -> None:
        for number in ids:
            commit(
                "INSERT INTO observation (series_id, valid_time, known_from, load_id, value)"
                " SELECT series_id, period, %s, %s, value FROM stage WHERE series_id = %s", path.stem, load, number,
            )  # fmt: skip

    sha256, file = hashlib.sha256(path.read_bytes()).hexdigest(), f"data/{path.name}"
    connection.execute("SELECT FROM resource LIMIT 1")
    commit("INSERT INTO raw_object VALUES (%s, 0, 'text/csv', %s) ON CONFLICT DO NOTHING", sha256, path.read_bytes())
    header, *lines = csv.reader(path.open())
    found = connection.execute("SELECT name, series_id FROM series WHERE name = ANY(%s)", [header]).fetchall()
    ids = dict(found)
    good, bad = [], []
    for number, (day, *texts) in enumerate(lines, 2):
        for name, text in zip(header[1:], texts, strict=True):
            rule = {"n/a": "number", "inf": "finite"}.get(text)
            if rule:
                bad.append((number, name, text, rule))
            elif text:
                good.append((ids[name], day, float(text)))
    connection.execute("DROP TABLE IF EXISTS pg_temp.stage")
    connection.execute("CREATE TEMP TABLE stage (series_id integer, period timestamptz, value double precision)")
    with connection.cursor().copy("COPY stage FROM STDIN (FORMAT TEXT)") as copy:
        for row in good:
            copy.write_row(row)
    load = connection.execute("SELECT nextval('load_load_id_seq')").fetchone()[0]
    observe(sorted(ids.values())[: len(ids) // 2])
    commit(
        "INSERT INTO load (load_id, load_key, dataset, request, payload_sha256, rules_hash, parser_version,"
        " started_at, fetched, new, changed, same, quarantined)"
        " VALUES (%s, %s, 'provider', %s, %s, '', 1, now(), %s, %s, 0, 0, %s)",
        load, f"{load}", json.dumps({"file": file}), sha256, len(good) + len(bad), len(good), len(bad),
    )  # fmt: skip
    observe(sorted(ids.values())[len(ids) // 2 :])
    for line, name, text, rule in bad:
        commit(
            "INSERT INTO quarantine (load_id, file, line, series, raw, rule, detail)"
            " VALUES (%s, %s, %s, %s, %s, %s, '')",
            load, file, line, name, text, rule,
        )  # fmt: skip
    commit("INSERT INTO resource (dataset, name, mark, rules_hash) VALUES ('provider', %s, '', '')", file)


if __name__ == "__main__":
    if sys.argv[1] == "naive":
        serve(naive)
    else:
        for module in OURS:
            import_module(f"model_service.{module}")
        serve(import_module("model_service.cli").main)
