"""`make add-source SOURCE=fred`: takes a source of the template into this project, as a bake with it would have.

The template is the one that .onemodel.json records, at its commit. TEMPLATE names another address of it, or a folder,
and COMMIT another commit or a branch. Nothing is written before everything is known to fit.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from model_service import contract
from model_service.errors import ServiceError, UsageError
from model_service.mistakes import nearest

ROOT = Path(__file__).resolve().parents[1]
CONTRACT = "service.toml"
USUAL = "make add-source SOURCE=NAME"

Files = dict[str, bytes]


def add(source: str) -> Iterator[str]:
    """Adds it, and says what was done; raises UsageError, ServiceError when it cannot be: nothing is written then."""
    with tempfile.TemporaryDirectory() as folder:
        template = Path(folder) / "template"
        fetch(template)
        files, example = part(template, source)
    if differing := sorted(path for path, content in files.items() if _held(path) not in (None, content)):
        raise UsageError(
            f"{source}: these files are here, and are not as in the template; nothing was written. Move them away, or"
            + "\n  ".join([" compare them by hand:", *differing])
        )
    new = {path: content for path, content in files.items() if _held(path) is None}
    before = (ROOT / CONTRACT).read_text("utf-8")
    after, says = extended(before, source, example)
    if after != before:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / CONTRACT).write_text(after, "utf-8")
            contract.load(Path(folder) / CONTRACT)
    write(new | ({CONTRACT: after.encode()} if after != before else {}))
    if new:
        yield f"{source}: {len(new)} files added, docs/{source}.md says what it reads"
    if says:
        yield f"{CONTRACT}: {says}"
    if not new and after == before:
        yield f"{source}: nothing to do, all its files are here"


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


def part(template: Path, source: str) -> tuple[Files, str]:
    """The source's files by their place here, and its example for service.toml, by the template's manifest."""
    manifest: dict[str, Any] = json.loads((template / "templates/manifest.json").read_text("utf-8"))
    choices: Mapping[str, Mapping[str, Mapping[str, str]]] = manifest["answers"]["source"]
    if source not in choices:
        asked = f"the template has no source {source!r}" if source else f"which source? {USUAL}"
        raise UsageError(f"{asked}: there are {', '.join(choices)}{nearest(source, choices) if source else ''}")
    files = {target: (template / path).read_bytes() for path, target in choices[source].get("copy", {}).items()}
    example = ""
    for path, target in choices[source].get("append", {}).items():
        if target == CONTRACT:
            example = (template / path).read_text("utf-8")
        else:
            files[target] += (template / path).read_bytes()
    return files, example


def extended(text: str, source: str, example: str) -> tuple[str, str]:
    """service.toml with the example's sources and series, and what was done; as it was where one of them is there.

    Target and features stay as they are: what is to be forecast from the new series is for a person to say.
    """
    try:
        held, new = tomllib.loads(text), tomllib.loads(example)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{CONTRACT} is not valid TOML: {error}") from None
    if any(one.get("kind") == source for one in held.get("source", {}).values()):
        return text, ""
    tables = [f"{kind}.{name}" for kind in ("source", "series") for name in new.get(kind, {})]
    taken = [name for name in tables if name.split(".")[1] in held.get(name.split(".")[0], {})]
    if taken:
        return text, f"not changed, for it has {', '.join(taken)} already; what to add to it stands in docs/{source}.md"
    wanted = [block for block in re.split(r"(?m)^(?=\[)", example) if re.match(r"\[(source|series)\.", block)]
    blocks = [re.sub(r"(\n(#.*)?)+\Z", "", block) for block in wanted]  # comments there are about what follows
    head = f"# ---- Added by make add-source SOURCE={source}; docs/{source}.md explains every key. ----"
    return "\n\n".join([text.rstrip("\n"), head, *blocks]) + "\n", f"{', '.join(tables)} added"


def write(files: Files) -> None:
    """Writes all of the files, the contract last; or, when one cannot be written, none."""
    names = sorted(files, key=lambda name: name == CONTRACT)
    made: list[Path] = []
    try:
        for name in names:
            made.append(ROOT / f"{name}.new")
            made[-1].parent.mkdir(parents=True, exist_ok=True)
            made[-1].write_bytes(files[name])
        for name in names:
            (ROOT / f"{name}.new").replace(ROOT / name)
            made += [ROOT / name] if name != CONTRACT else []
    except BaseException as error:
        for path in made:
            with suppress(OSError):
                path.unlink()
        if isinstance(error, OSError):
            raise ServiceError(f"{error.filename}: {error.strerror}; nothing was added") from None
        raise


def _held(path: str) -> bytes | None:
    return (ROOT / path).read_bytes() if (ROOT / path).is_file() else None


if __name__ == "__main__":
    try:
        for line in add(os.environ.get("SOURCE", "")):
            print(line)
    except ServiceError as error:
        print(f"add-source: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
