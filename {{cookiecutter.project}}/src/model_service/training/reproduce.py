"""`reproduce`: a registered model made again from its record alone (commit, lock, both clocks), and compared."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from model_service import artifact, experiments, registry
from model_service.errors import ServiceError
from model_service.store.connection import Connection
from model_service.training import report
from model_service.training.run import INPUTS
from model_service.training.serialize import PARITY

Say = Callable[[str], None]
LOCK = Path("requirements") / "train.txt"
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LOKY_MAX_CPU_COUNT")


def reproduce(
    connection: Connection, url: str, root: Path, model: str, bundle: Path | None, say: Say
) -> dict[str, Any]:
    """Trains `model` (version or digest) again, in folders of its own; nothing is registered.

    `holds`: equal to the byte on the recorded platform, on another one predictions within the parity bound.
    `bundle`: folder of wheels, used without an index. Raises UsageError for an unknown model; ServiceError when its
    code, its packages or its data are not to be had.
    """
    found = registry.named(connection, model)
    card = json.loads(found.files["card.json"])
    with TemporaryDirectory(prefix="reproduce-") as folder:
        work = Path(folder)
        with _code(root, card, work / "code") as code:
            say(f"code of {card['git_commit']}")
            python = _environment(code, work, bundle)
            say(f"packages of {LOCK}")
            made = work / "model"
            _train(python, code, url, card, made)
        files, digest = artifact.read(made)
        names = {"version": found.version, "digest": found.digest, "made": digest}
        return names | compared(found.files, files, np.load(made / INPUTS))


@contextmanager
def _code(root: Path, card: Mapping[str, Any], folder: Path) -> Iterator[Path]:
    """The recorded commit in `folder`, or, for an uncommitted model, the working tree while it is still the same."""
    commit = card["git_commit"]
    if commit == "uncommitted":
        _same(root, card, "this model was made of code that was never committed, and the working tree is no longer it")
        shutil.copytree(root / "src", folder / "src")
        shutil.copytree(root / "requirements", folder / "requirements")
        shutil.copy2(root / "service.toml", folder)
        yield folder
        return
    _run(["git", "-C", root, "worktree", "add", "--quiet", "--detach", "--", folder, commit],
         f"commit {commit} cannot be checked out: fetch it into this repository")  # fmt: skip
    try:
        _same(folder, card, f"commit {commit} is not what this model was trained on")
        yield folder
    finally:
        _run(["git", "-C", root, "worktree", "remove", "--force", folder], f"{folder} cannot be removed")


def _same(folder: Path, card: Mapping[str, Any], says: str) -> None:
    there = report.provenance(folder)
    if differing := [part for part in ("source_hash", "lock_hash") if there[part] != card[part]]:
        what = "; ".join(f"{part} is recorded as {card[part]}, and is {there[part]}" for part in differing)
        raise ServiceError(f"{says}: {what}")


def _environment(code: Path, work: Path, bundle: Path | None) -> Path:
    """Python of a new environment with the packages of the recorded lock, and no others."""
    uv = os.environ.get("UV") or shutil.which("uv") or Path(sys.executable).with_name("uv")
    python = work / "venv" / "bin" / "python"
    _run(
        [uv, "venv", "--quiet", "--no-python-downloads", "--python", sys.executable, work / "venv"],
        "uv makes no environment",
    )
    install = [uv, "pip", "install", "--quiet", "--python", python, "--require-hashes", "--no-deps"]
    install += ["--no-index", "--find-links", bundle.resolve()] if bundle else []
    try:
        _run([*install, "--requirement", code / LOCK], "the recorded packages cannot be installed")
    except ServiceError as error:
        missing = list(_missing(install, (code / LOCK).read_text("utf-8"), work / "one.txt"))
        raise ServiceError(f"missing, or not by the recorded hash: {', '.join(missing)}\n{error}") from None
    return python


def _missing(install: list[Any], lock: str, one: Path) -> Iterator[str]:
    """The pins of a lock that cannot be had; uv itself names only the first."""
    for pin in re.split(r"\n(?=\S)", lock.strip()):
        one.write_text(pin)
        if subprocess.run([*install, "--dry-run", "--requirement", one], capture_output=True).returncode:
            yield pin.split()[0]


def _train(python: Path, code: Path, url: str, card: Mapping[str, Any], folder: Path) -> None:
    clocks, overruled = card["trained_as_of"], card.get("overruled", {"rules": []})
    words = ["train", "--as-of", clocks["known_at"], "--data-version", clocks["data_version"], "--to", folder]
    words += [word for rule in overruled["rules"] for word in ("--overrule", rule)]
    words += ["--reason", overruled["reason"]] if overruled["rules"] else []
    own = {"DATABASE_URL": url, "PROJECT_ROOT": str(code), "PYTHONPATH": str(code / "src")}
    command = [python, "-m", "model_service", *words]
    environment = os.environ | own | dict.fromkeys(ONE_THREAD, "1")
    if subprocess.run(command, cwd=code, env=environment, stdout=subprocess.DEVNULL).returncode:  # it says itself why
        raise ServiceError("the training of that commit failed; its own words stand above")


def _run(command: list[Any], failing: str) -> None:
    """Raises ServiceError with the last words of what failed."""
    try:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    except OSError as error:
        raise ServiceError(f"{failing}: {command[0]}: {error.strerror}") from None
    if done.returncode:
        raise ServiceError("\n  ".join([f"{failing}:", *(done.stderr or done.stdout).strip().splitlines()[-8:]]))


def compared(recorded: Mapping[str, bytes], made: Mapping[str, bytes], inputs: Any) -> dict[str, Any]:
    """Which files differ, and where; how far predictions are apart, as a share of max(abs(recorded), their std)."""
    cards = [experiments.flatten(json.loads(files["card.json"])) for files in (recorded, made)]
    names = [name for name in dict.fromkeys([*cards[0], *cards[1]]) if cards[0].get(name) != cards[1].get(name)]
    moved = {name: [cards[0].get(name), cards[1].get(name)] for name in names if name.startswith("platform.")}
    files = sorted(name for name in {*recorded, *made} if recorded.get(name) != made.get(name))
    apart = _apart(artifact.Model(recorded, ""), artifact.Model(made, ""), inputs)
    holds = apart is not None and apart <= PARITY if moved else not files
    return {"holds": holds, "files": files, "card": names, "platform": moved, "apart": apart, "rows": len(inputs),
            "search_cut": bool(cards[0].get("search_cut"))}  # fmt: skip


def _apart(recorded: artifact.Model, made: artifact.Model, inputs: Any) -> float | None:
    """None where they take or give something else."""
    if (recorded.inputs, recorded.horizons) != (made.inputs, made.horizons):
        return None
    rows = np.concatenate([np.array(recorded.golden["instances"]), inputs])
    expected = recorded.predict(rows)
    return float((np.abs(made.predict(rows) - expected) / np.maximum(np.abs(expected), expected.std(axis=0))).max())


def text(found: Mapping[str, Any]) -> str:
    lines = [f"model     {found['version']} ({found['digest']})", f"made      {found['made']}"]
    lines += [f"platform  {part}: {experiments.described_change(*pair)}" for part, pair in found["platform"].items()]
    if not found["files"]:
        return "\n".join([*lines, "equal to the byte"])
    if found["search_cut"]:
        lines.append(
            "search    ended by train.search_seconds when it was trained: another run may choose other settings"
        )
    lines += [f"differs   {', '.join(found['files'])}"]
    lines += [f"          in card.json: {', '.join(found['card'])}"] if found["card"] else []
    if found["apart"] is not None:
        lines.append(
            f"forecasts {found['apart']:.2g} apart on golden examples and {found['rows']} rows, at most {PARITY:g}"
        )
    if found["platform"]:
        return "\n".join([*lines, f"another platform: {'equal within that bound' if found['holds'] else 'NOT EQUAL'}"])
    return "\n".join([*lines, "NOT EQUAL on the recorded platform"])
