"""`make add-source SOURCE=fred`: has the template take one of its sources into this project.

The template is the one that .onemodel.json records, at its commit. TEMPLATE names another address of it, or a folder,
and COMMIT another commit or a branch. What is to be done then it knows itself: its scripts/add_source.py.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from model_service.errors import ServiceError, UsageError

ROOT = Path(__file__).resolve().parents[1]
USUAL = "make add-source SOURCE=NAME"


def add(source: str) -> int:
    """Fetches the template and runs its script here; returns the exit code. Raises UsageError, ServiceError."""
    with tempfile.TemporaryDirectory() as folder:
        fetch(Path(folder))
        script = Path(folder, "scripts/add_source.py")
        if not script.is_file():
            raise UsageError(
                "the template at that commit is older than this project: it has no scripts/add_source.py to add a"
                f" source with; name a newer commit, or a branch: {USUAL} COMMIT=main"
            )
        return subprocess.run([sys.executable, script, source], cwd=ROOT).returncode


def fetch(folder: Path) -> None:
    """Puts the template's files there, as they were at the commit."""
    record = json.loads((ROOT / ".onemodel.json").read_text("utf-8"))
    address = os.environ.get("TEMPLATE") or record["template"]
    commit = os.environ.get("COMMIT") or record["commit"].removesuffix("-dirty")
    if address == "onemodel":
        raise UsageError(
            "this project was made from a folder, and .onemodel.json records no address of the template:"
            f" name one, or the folder: {USUAL} TEMPLATE=/path/to/onemodel"
        )
    if commit == "unknown":
        raise UsageError(
            "this project was made from a copy without git, and .onemodel.json records no commit of the template:"
            f" name one, or a branch: {USUAL} TEMPLATE=... COMMIT=main"
        )
    address = str(Path(address).expanduser().resolve()) if Path(address).expanduser().is_dir() else address
    _git("clone", "--quiet", "--no-checkout", "--", address, str(folder))
    _git("-C", str(folder), "checkout", "--quiet", commit, "--")


def _git(*words: str) -> None:
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ServiceError("needs git to fetch the template: install it") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        says = re.sub(r"//[^/@\s]*@", "//", last)  # no login
        raise ServiceError(f"the template cannot be had: {says}: is TEMPLATE, or COMMIT, the right one?")


if __name__ == "__main__":
    try:
        sys.exit(add(os.environ.get("SOURCE", "")))
    except ServiceError as error:
        print(f"add-source: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
