"""What each answer may be, and a refusal that names all mistakes and leaves no folder behind. Runs on Python 3.10."""

import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

HOST = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
REGISTRY = re.compile(
    rf"(localhost(:\d+)?|{HOST}(\.{HOST})+(:\d+)?|{HOST}:\d+)"  # without dot or port Docker takes it for a user name
    r"(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*"
)
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")  # control, line ends, text direction
SAME_MOMENT = 0.05  # seconds; cookiecutter makes nested folders within microseconds, and needs longer to start
RENDERED = 0.2  # seconds, from there until it has rendered the hook


class Rule(NamedTuple):
    """Whether a text is allowed, what is, and an example."""

    fits: Callable[[str], bool]
    allowed: str
    example: str


def _is_registry(text: str) -> bool:
    port = re.search(r":(\d+)", text)
    return bool(REGISTRY.fullmatch(text)) and len(text) <= 200 and (not port or 1 <= int(port[1]) <= 65535)


RULES = {
    "project": Rule(
        lambda text: bool(re.fullmatch(r"[a-z][a-z0-9-]{1,38}[a-z0-9]", text)),
        "3 to 40 lower-case letters, digits and dashes, a letter first, no dash at the end",
        "us-unemployment",
    ),
    "description": Rule(
        lambda text: bool(text.strip()) and len(text) <= 200 and not UNSAFE.search(text),
        "one line of 1 to 200 characters, no control characters",
        "US unemployment rate, 1, 3 and 6 months ahead",
    ),
    "image_registry": Rule(
        _is_registry,
        "HOST, HOST:PORT or HOST/PATH in lower case, HOST with a dot or a port (or localhost), no scheme",
        "ghcr.io/acme",
    ),
}


def rules(template: str) -> dict[str, Rule]:
    """A rule for every prompt: the texts above, and the choices as cookiecutter.json lists them."""
    with open(os.path.join(template, "cookiecutter.json"), encoding="utf-8") as file:
        prompts = json.load(file)
    choices = {key: value for key, value in prompts.items() if isinstance(value, list) and not key.startswith("_")}
    return {
        key: RULES.get(key) or Rule(choices[key].__contains__, "one of " + ", ".join(choices[key]), choices[key][0])
        for key in prompts
        if not key.startswith("_")
    }


def mistakes(given: dict[str, Any], rules: dict[str, Rule]) -> list[str]:
    """One line for each answer that breaks its rule, in the order of the prompts."""
    found = []
    for name, rule in rules.items():
        value = given.get(name)
        if not isinstance(value, str) or not rule.fits(value):
            shown = ascii(value) if len(ascii(value)) <= 80 else ascii(value)[:77] + "..."
            found.append(f"{name}: {shown} is not allowed. Allowed: {rule.allowed}. Example: {rule.example}")
    return found


def refuse(given: dict[str, Any], template: str, hook: str) -> int:
    """0 when all answers fit and the folder is new; else prints every mistake, clears up and gives 1.

    Runs in the folder that cookiecutter has just made for the project; `hook` is the rendered hook's own file.
    """
    folder = os.getcwd()
    moment = os.stat(folder).st_mtime
    # Before it is listed: on a slow machine that comes late enough to look like somebody else's doing.
    new = abs(os.stat(hook).st_mtime - moment) < RENDERED and _made(folder, moment)
    filled = bool(os.listdir(folder)) if os.path.isdir(folder) else True
    wrong = mistakes(given, rules(template))
    if filled:
        wrong.append(f"project: the folder {folder} exists and is not empty; it was not touched. Choose another name")
    if not wrong:
        return 0
    count = "1 mistake" if len(wrong) == 1 else f"{len(wrong)} mistakes"
    report = [f"onemodel: nothing was written, {count} in the answers:", *(f"  {line}" for line in wrong)]
    # To stdout, before all else: cookiecutter prints its traceback there.
    sys.stdout.buffer.write("".join(f"{line}\n" for line in report).encode("utf-8", "backslashreplace"))
    sys.stdout.flush()
    return _leave_nothing(given, folder, filled, new)


def _leave_nothing(given: dict[str, Any], folder: str, filled: bool, new: bool) -> int:
    """Removes the folders that this bake made above or beside the project's own, which cookiecutter removes itself."""
    moment = os.stat(folder).st_mtime
    parents = [folder]
    while os.path.dirname(parents[-1]) != parents[-1]:
        parents.append(os.path.dirname(parents[-1]))
    made = []
    if new:
        for parent in parents[1:]:
            if not _made(parent, moment) or len(os.listdir(parent)) != 1:
                break
            made.append(parent)
    for path in ([folder] if made else []) + made + _detours(given, parents, moment):
        with contextlib.suppress(OSError):  # not empty after all: somebody else's
            os.rmdir(path)
    if filled and ".." in str(given.get("project")).split("/"):
        # Cookiecutter takes the folder at the end of `a/..` for one that it made, and would delete all that is in it
        # once this hook fails. An interrupt stops it before; what runs in the background may be deaf to that.
        deaf = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        os.kill(os.getppid(), signal.SIGTERM if deaf else signal.SIGINT)
        time.sleep(2)
    return 1


def _detours(given: dict[str, Any], parents: list[str], moment: float) -> list[str]:
    """Folders that `..` in the project's name made beside its own path, deepest first."""
    name, base = str(given.get("project")), given.get("_output_dir")
    if not base or ".." not in name.split("/"):
        return []
    parts = os.path.join(base, name).split("/")
    steps = {os.path.abspath("/".join(parts[: end + 1]) or "/") for end in range(len(parts))} - set(parents)
    return sorted((path for path in steps if _made(path, moment)), key=len, reverse=True)


def _made(path: str, moment: float) -> bool:
    """Whether `path` was made at `moment`: its parent changed then, and nobody has listed it since or before."""
    try:
        own, above = os.lstat(path), os.lstat(os.path.dirname(path))
    except OSError:
        return False
    times = [above.st_mtime, own.st_atime, getattr(own, "st_birthtime", moment)]
    return os.path.isdir(path) and not os.path.islink(path) and all(abs(time - moment) < SAME_MOMENT for time in times)
