"""Brings the schema up to date: numbered SQL files, each once, in order, under a lock."""

import hashlib

import psycopg

from model_service.contract import Contract
from model_service.errors import ServiceError
from model_service.store.connection import MIGRATIONS, away, migrations

LOCK = 0x6D6F64656C  # any fixed number: one migration at a time in a database
# At most 100 chunks over a century of the finest frequency: a chunk too many costs every read.
CHUNK = {"day": "2 years", "weekday": "2 years", "week": "5 years", "month": "20 years", "quarter": "50 years",
         "half_year": "50 years", "year": "50 years"}  # fmt: skip

ROLES = """
DO $$
DECLARE role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['model_owner', 'model_loader', 'model_reader'] LOOP
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role);
            END IF;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
        END;
    END LOOP;
    IF EXISTS (SELECT FROM pg_available_extensions WHERE name = 'timescaledb')
       AND current_setting('shared_preload_libraries') LIKE '%timescaledb%' THEN
        CREATE EXTENSION IF NOT EXISTS timescaledb;
    END IF;
END $$;
GRANT USAGE, CREATE ON SCHEMA public TO model_owner;
GRANT USAGE ON SCHEMA public TO model_loader, model_reader;
"""


def migrate(url: str, contract: Contract) -> list[str]:
    """Applies what is missing; returns the names applied. The login must be allowed to create roles.

    Raises DatabaseAway, or ServiceError when a file that was applied has changed since.
    """
    finest = min((series.frequency for series in contract.series.values()), key=list(CHUNK).index)
    try:
        connection = psycopg.connect(url, autocommit=True, connect_timeout=10)
    except psycopg.Error as error:
        raise away(error) from None
    with connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        try:
            connection.execute(ROLES)
            connection.execute("SET ROLE model_owner")
        except psycopg.errors.InsufficientPrivilege as error:
            raise ServiceError(
                f"the login {connection.info.user!r} may not make model_owner, model_loader and model_reader, or not"
                f" act as model_owner ({str(error).splitlines()[0]}): migrate as an administrator of the database"
            ) from None
        connection.execute("SELECT set_config('model_service.chunk_interval', %s, false)", [CHUNK[finest]])
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migration (name text PRIMARY KEY, sha256 text NOT NULL,"
            " applied_at timestamptz NOT NULL DEFAULT clock_timestamp())"
        )
        done: dict[str, str] = dict(connection.execute("SELECT name, sha256 FROM schema_migration").fetchall())
        applied = []
        for path in (MIGRATIONS / name for name in migrations()):
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            if path.name in done:
                if done[path.name] != sha256:
                    raise ServiceError(f"migration {path.name} was changed after it was applied: add a new one")
                continue
            with connection.transaction():
                connection.execute(path.read_bytes())
                connection.execute("INSERT INTO schema_migration (name, sha256) VALUES (%s, %s)", [path.name, sha256])
            applied.append(path.name)
    return applied
