"""Takes a source of this template into a project that came out of it: `add_source.py SOURCE` in the project's folder.

`make add-source SOURCE=fred` of a project fetches the template and runs this by the project's own Python, with its
package: what is added is what a bake with that source would have. Nothing is written before everything is known to fit.
"""

import json
import re
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from model_service import contract
from model_service.errors import ServiceError, UsageError
from model_service.mistakes import did_you_mean

TEMPLATE = Path(__file__).resolve().parents[1]
PROJECT = Path.cwd()
CONTRACT = "service.toml"

Files = dict[str, bytes]


def add(source: str) -> Iterator[str]:
    """Adds it, and says what was done; raises UsageError, ServiceError when it cannot be: nothing is written then."""
    files, example = part(source)
    if differing := sorted(path for path, content in files.items() if _held(path) not in (None, content)):
        raise UsageError(
            f"{source}: these files are here, and are not as in the template; nothing was written. Move them away, or"
            + "\n  ".join([" compare them by hand:", *differing])
        )
    new = {path: content for path, content in files.items() if _held(path) is None}
    before = (PROJECT / CONTRACT).read_text("utf-8")
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


def part(source: str) -> tuple[Files, str]:
    """The source's files by their place here, and its example for service.toml, by the template's manifest."""
    manifest: dict[str, Any] = json.loads((TEMPLATE / "templates/manifest.json").read_text("utf-8"))
    choices: Mapping[str, Mapping[str, Mapping[str, str]]] = manifest["answers"]["source"]
    if source not in choices:
        asked = f"the template has no source {source!r}" if source else "which source? make add-source SOURCE=NAME"
        raise UsageError(f"{asked}: there are {', '.join(choices)}{did_you_mean(source, choices) if source else ''}")
    files = {target: (TEMPLATE / path).read_bytes() for path, target in choices[source].get("copy", {}).items()}
    return files, "".join((TEMPLATE / path).read_text("utf-8") for path in choices[source].get("append", {}))


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
            made.append(PROJECT / f"{name}.new")
            made[-1].parent.mkdir(parents=True, exist_ok=True)
            made[-1].write_bytes(files[name])
        for name in names:
            (PROJECT / f"{name}.new").replace(PROJECT / name)
            made += [PROJECT / name] if name != CONTRACT else []
    except BaseException as error:
        for path in made:
            with suppress(OSError):
                path.unlink()
        if isinstance(error, OSError):
            raise ServiceError(f"{error.filename}: {error.strerror}; nothing was added") from None
        raise


def _held(path: str) -> bytes | None:
    return (PROJECT / path).read_bytes() if (PROJECT / path).is_file() else None


if __name__ == "__main__":
    try:
        for line in add(sys.argv[1]):
            print(line)
    except ServiceError as error:
        print(f"add-source: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
