"""Time of a bake with the default answers, against plain cookiecutter with empty hooks on the same files.

Both run in turn, so that a busy machine is busy for both. Prints a table and writes build/bench/bake.json.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = Path(sys.executable).parent
OUT = ROOT / "build/bench/bake.json"
PROJECT = "{{cookiecutter.project}}"
ROUNDS = int(os.environ.get("ROUNDS", "15"))
GOAL = 1.5


def bake(template: Path, output: Path) -> float:
    """Seconds of one bake into a new folder."""
    env = os.environ | {"HOME": str(output.parent)}
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    command = [str(TOOLS / "cookiecutter"), "--no-input", "--default-config", str(template)]
    begun = time.perf_counter()
    subprocess.run(command, cwd=output, env=env, check=True, capture_output=True)
    return time.perf_counter() - begun


def copy_template(target: Path) -> Path:
    """The template without what lies about in a working tree."""
    junk = shutil.ignore_patterns(".venv", "build", "__pycache__", ".*_cache", ".local", ".env")
    return Path(shutil.copytree(ROOT, target, ignore=junk, symlinks=True))


def plain_template(target: Path, baked: Path) -> Path:
    """A template of the same files with empty hooks: what is not rendered here was put in its place before."""
    settings = json.loads((ROOT / "cookiecutter.json").read_text("utf-8"))
    shutil.copytree(ROOT / "templates/licence", target / "templates/licence")
    shutil.copytree(baked, target / PROJECT)
    for name in ("README.md", "LICENSE", "pyproject.toml", "service.toml", ".onemodel.json"):
        shutil.copy2(ROOT / PROJECT / name, target / PROJECT / name)
    (target / "cookiecutter.json").write_text(json.dumps(settings), "utf-8")
    (target / "hooks").mkdir()
    for hook in ("pre_gen_project.py", "post_gen_project.py"):
        (target / "hooks" / hook).write_text("", "utf-8")
    return target


def measure(folder: Path) -> tuple[list[float], list[float]]:
    """Seconds of each bake of ours and of the reference, one after the other."""
    ours = copy_template(folder / "onemodel")
    bake(ours, folder / "first")
    plain = plain_template(folder / "plain", folder / "first/us-unemployment")
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(ROUNDS):
        for template, seconds in zip((ours, plain), times, strict=True):
            seconds.append(bake(template, folder / "out"))
        print(f"\rbake {turn + 1}/{ROUNDS}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return times


def main() -> None:
    """Measures, prints and writes; a missed goal is reported, never a failure."""
    with tempfile.TemporaryDirectory() as folder:
        value, reference = (statistics.median(times) for times in measure(Path(folder)))
    ratio = value / reference
    row = {
        "name": "bake with default answers",
        "value": round(value, 4),
        "unit": "s",
        "reference": "plain cookiecutter, empty hooks, same files",
        "reference_value": round(reference, 4),
        "ratio": round(ratio, 3),
        "goal": f"ratio <= {GOAL}",
        "met": ratio <= GOAL,
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps([row], indent=2) + "\n", "utf-8")
    print(f"{'what':28}{'ours':>10}{'reference':>11}{'ratio':>8}   goal")
    verdict = "met" if row["met"] else "missed"
    print(f"{row['name']:28}{value:8.3f} s{reference:9.3f} s{ratio:8.2f}   {row['goal']}: {verdict}")
    print(f"written to {OUT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
