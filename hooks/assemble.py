"""Makes the project's folder what templates/manifest.json says for the answers given. Runs on Python 3.10.

A part of the manifest is {"keep": [files of the template's project folder], "copy": {file of the template: file of
the project}, "append": {file of the template: file of the project}}. The part "always" holds for every project, those
under "answers" for one choice. What no part names is deleted: it was lying about where the template was baked from.
"""

import fnmatch
import json
import os
import shlex
import shutil
from typing import Any

import provenance

PROJECT = "{{cookiecutter.project}}"
RECORD = ".onemodel.json"


def parts(manifest: dict[str, Any], given: dict[str, Any]) -> list[dict[str, Any]]:
    """The part for every project, then one for each answer that chooses files."""
    return [manifest["always"]] + [choices[given[prompt]] for prompt, choices in manifest["answers"].items()]


def sources(chosen: list[dict[str, Any]]) -> list[str]:
    """Every file of the template that the parts use, relative to the template."""
    kept = [f"{PROJECT}/{path}" for part in chosen for path in part.get("keep", [])]
    return kept + [path for part in chosen for kind in ("copy", "append") for path in part.get(kind, {})]


def files(chosen: list[dict[str, Any]]) -> set[str]:
    """Every file of the project, relative to it."""
    return {path for part in chosen for path in [*part.get("keep", []), *part.get("copy", {}).values()]}


def project(given: dict[str, Any], template: str) -> int:
    """Completes the project in the working directory and prints what to do next. 1 when the manifest does not fit."""
    with open(os.path.join(template, "templates/manifest.json"), encoding="utf-8") as file:
        manifest = json.load(file)
    chosen = parts(manifest, given)
    used = sources(chosen)
    if absent := [path for path in used if not os.path.isfile(os.path.join(template, path))]:
        print("onemodel: templates/manifest.json names files that do not exist:", *absent, sep="\n  ", flush=True)
        return 1
    for part in chosen:
        _copy(template, part)
    _delete_all_but(files(chosen))
    _set_modes(manifest["executable"])
    _record(provenance.commit(template, used), provenance.address(str(given.get("_template", ""))))
    print(f"Next: cd {_place()} && make setup load train build serve", flush=True)
    return 0


def _copy(template: str, part: dict[str, Any]) -> None:
    for source, target in part.get("copy", {}).items():
        os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
        shutil.copyfile(os.path.join(template, source), target)
    for source, target in part.get("append", {}).items():
        with open(os.path.join(template, source), "rb") as addition, open(target, "ab") as file:
            file.write(addition.read())


def _delete_all_but(wanted: set[str]) -> None:
    folders = {"."} | {path[:end] for path in wanted for end, letter in enumerate(path) if letter == "/"}
    for place, names, found in os.walk("."):
        inside = {name: os.path.relpath(os.path.join(place, name)) for name in names + found}
        for name in found:
            if inside[name] not in wanted:
                os.unlink(inside[name])
        for name in list(names):
            if inside[name] not in folders:
                names.remove(name)
                (os.unlink if os.path.islink(inside[name]) else shutil.rmtree)(inside[name])


def _set_modes(executable: list[str]) -> None:
    """As git would: a zip loses execute bits, and a working tree may have any others."""
    mask = os.umask(0)
    os.umask(mask)
    for place, names, found in os.walk("."):
        for name in names:
            os.chmod(os.path.join(place, name), 0o777 & ~mask)
        for name in found:
            path = os.path.relpath(os.path.join(place, name))
            runs = any(fnmatch.fnmatch(path, pattern) for pattern in executable)
            os.chmod(path, (0o777 if runs else 0o666) & ~mask)


def _record(commit: str, address: str) -> None:
    with open(RECORD, encoding="utf-8") as file:
        record = json.load(file)
    record["commit"] = commit
    record["template"] = address or record["template"]
    with open(RECORD, "w", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def _place() -> str:
    """The folder's name where the caller stands above it, else its path."""
    above, name = os.path.split(os.getcwd())
    return shlex.quote(name if above == os.environ.get("PWD") else os.getcwd())
