"""Hashes that name things: "sha256:" and the digest, in hex."""

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any


def digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def of_json(value: Any) -> str:
    """Of a value that JSON can hold; the order of keys does not count."""
    return digest(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def of_files(root: Path, paths: Iterable[Path]) -> str:
    """Of the files' names below `root` and their contents."""
    names = {path.relative_to(root).as_posix(): path for path in paths}
    return digest(b"".join(f"{name} {digest(names[name].read_bytes())}\n".encode() for name in sorted(names)))


@cache
def of_code() -> str:
    """Of this package: which code it was, also where there is no git."""
    package = Path(__file__).parent
    return of_files(package, (path for path in package.rglob("*") if path.suffix in {".py", ".sql"}))
