"""What comes from the environment, and where the project's files are."""

import getpass
import os
from pathlib import Path

from model_service.errors import UsageError

CONTRACT = "service.toml"


def root() -> Path:
    """Folder that holds `service.toml`: PROJECT_ROOT, or the nearest one above this package.

    Raises UsageError when there is none.
    """
    if given := os.environ.get("PROJECT_ROOT"):
        if not (Path(given) / CONTRACT).is_file():
            raise UsageError(f"PROJECT_ROOT is {given}, and there is no {CONTRACT} in it")
        return Path(given)
    for folder in Path(__file__).resolve().parents:
        if (folder / CONTRACT).is_file():
            return folder
    raise UsageError(f"no {CONTRACT} above {Path(__file__).parent}: run inside the project, or set PROJECT_ROOT")


def environment() -> str:
    return os.environ.get("ENVIRONMENT", "development")


def database_url() -> str | None:
    """DATABASE_URL, or None where the embedded server may stand in for it.

    Raises UsageError outside development: a container never starts a database of its own.
    """
    url = os.environ.get("DATABASE_URL") or None
    if url is None and environment() != "development":
        raise UsageError(f"DATABASE_URL is not set and ENVIRONMENT is {environment()!r}: set DATABASE_URL")
    return url


def model_folder() -> Path:
    """Folder of the model that is served: MODEL_DIR, or `model/` beside the package, or `build/model/`."""
    if given := os.environ.get("MODEL_DIR"):
        return Path(given)
    beside = root() / "model"
    return beside if beside.is_dir() else root() / "build" / "model"


def current_user() -> str:
    """The person or process that acts, for rows that say who did it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
