"""The provider's bytes as they came: kept by hash before anything is read from them, and opened again later."""

import hashlib
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from model_service.errors import ServiceError
from model_service.store.connection import Connection

PART_BYTES = 8_000_000


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def keep(connection: Connection, path: Path, sha256: str, media_type: str) -> None:
    """Stores the bytes in parts, compressed, all or none. Bytes that are held already cost nothing.

    Raises ServiceError when they do not have that hash any more.
    """
    if connection.execute("SELECT FROM raw_object WHERE sha256 = %s LIMIT 1", [sha256]).fetchone():
        return
    digest = hashlib.sha256()
    with path.open("rb") as file, connection.transaction():
        for part, block in enumerate(iter(lambda: file.read(PART_BYTES), b"")):
            digest.update(block)
            connection.execute(
                "INSERT INTO raw_object (sha256, part, media_type, bytes) VALUES (%s, %s, %s, %s)"
                " ON CONFLICT DO NOTHING",
                [sha256, part, media_type, zlib.compress(block)],
            )
        if digest.hexdigest() != sha256:
            raise ServiceError(f"{path.name}: was written to while it was read; nothing was kept: run again")


@contextmanager
def opened(connection: Connection, sha256: str) -> Iterator[tuple[Path, str]]:
    """Kept bytes in a temporary file, for as long as the block runs, and their media type.

    Raises ServiceError when they are not held or do not have that hash any more.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, media_type, parts, digest = Path(folder) / "payload", "", 0, hashlib.sha256()
        with path.open("wb") as file:
            while row := connection.execute(
                "SELECT bytes, media_type FROM raw_object WHERE sha256 = %s AND part = %s", [sha256, parts], binary=True
            ).fetchone():
                media_type, parts = row[1], parts + 1
                with suppress(zlib.error):  # the hash will not hold
                    block = zlib.decompress(row[0])
                    digest.update(block)
                    file.write(block)
        if digest.hexdigest() != sha256:
            raise ServiceError(f"the kept bytes of {sha256} {'do not have that hash' if parts else 'are not held'}")
        yield path, media_type
