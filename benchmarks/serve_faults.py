"""FAULTS=10,000 requests under a named list of faults, and CASES=10,000 of what the OpenAPI document promises.

Both are the project's own tests with a larger number; beside them the control: the same faults without their guards.
A test that fails is reported, not a failure of the benchmark. Writes build/bench/faults.json.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from load_report import report, row

ROOT = Path(__file__).resolve().parents[1]
OUT = Path(os.environ.get("OUT", ROOT / "build/bench"))
FAULTS, CASES = (os.environ.get(name) or "10000" for name in ("FAULTS", "CASES"))
LINE = re.compile(r"^(.+): (\d+) of (\d+) wrong, the longest ([\d.]+) s and ([\d.]+) s of others", re.MULTILINE)
LIMIT = 1.1  # seconds: the tests' `timeout_seconds`, and a tenth


def tested(python: str | Path, *words: str, **environment: str) -> tuple[bool, str]:
    """Whether the tests passed, and what they printed."""
    command = [str(python), "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *words]
    done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True)
    return done.returncode == 0, done.stdout


def asked_by_schemathesis() -> tuple[bool, str]:
    """In an environment of its own, beside the project's packages."""
    uv, python = os.environ["UV"], ".venv-published/bin/python"
    shutil.copy(ROOT / "tests/inside/test_published.py", "tests")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, ".venv-published"], check=True)
    locks = ["requirements/dev.txt", str(ROOT / "requirements/published.txt")]
    subprocess.run([uv, "pip", "sync", "--quiet", "--python", python, "--require-hashes", *locks], check=True)
    return tested(python, "tests/test_published.py", "-k", "document_promises", CASES=CASES)


def main() -> None:
    """Runs, prints and writes."""
    file = "tests/test_broken.py"
    print(f"{FAULTS} requests under faults, then without guards, then {CASES} cases: an hour or so", file=sys.stderr)
    held, guarded = tested(sys.executable, file, "-k", "under_every_fault", FAULTS=FAULTS)
    _, bare = tested(sys.executable, file, "-k", "without_its_guards")
    control = {fault: int(bad) / int(count) for fault, bad, count, _, _ in LINE.findall(bare)}
    rows = []
    for fault, bad, count, longest, _ in LINE.findall(guarded):
        rows.append(row(f"{fault}: wrong of {int(count):,}", int(bad), "answers", goal=0, least=False))
        rows.append(row(f"{fault}: longest, less what the machine took", float(longest), "s", goal=LIMIT, least=False))
        rows.append(row(f"{fault}: wrong without its guards", 100 * control.get(fault, 0.0), "%"))
    rows.append(row("the campaign as a test: it failed", not held, "times", goal=0, least=False))
    held, said = asked_by_schemathesis()
    found = re.search(r"(\d+) operations, (\d+) cases", said)
    rows.append(row("cases asked by Schemathesis", int(found[2]) if found else 0, "cases"))
    rows.append(row("of them not as promised: it failed", not held, "times", goal=0, least=False))
    report(OUT / "faults.json", rows)
    if not found:
        print(said[-2_000:], file=sys.stderr)


if __name__ == "__main__":
    main()
